"""Measures ensembles and servers.

`speedup` compares a network with its divisions, `tune` finds the best way to serve an ensemble, `http` sends
load to a running server, and `perf_analyzer` runs NVIDIA's load generator. `gpu` measures members on a GPU
with PyTorch alone. `engine` times networks in this process.
"""
