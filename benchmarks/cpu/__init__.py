"""The kernels for CPUs against those of PyTorch."""
