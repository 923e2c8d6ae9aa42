"""Measures what is served: speed-up, HTTP load, perf_analyzer, tuning."""
