"""Runs NVIDIA's perf_analyzer against Triton or a gateway."""
