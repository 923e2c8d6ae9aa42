"""Run NVIDIA's Triton server without a container, from the wheel `nvidia-pytriton`."""
