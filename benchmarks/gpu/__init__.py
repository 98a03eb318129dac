"""The kernels for GPUs against those of PyTorch, and what feeds them."""
