"""Measures members on a GPU with PyTorch alone: in turn and at once, kernel by kernel and as CUDA graphs.

Nothing here imports more than torch and `coserve_training.networks`, so that it runs where nothing else is
installed. `benchmarks/gpu.py` runs it.
"""
