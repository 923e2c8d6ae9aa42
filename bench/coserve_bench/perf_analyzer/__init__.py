"""NVIDIA's perf_analyzer against Triton or the gateway."""
