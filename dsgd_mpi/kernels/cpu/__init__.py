"""The kernels by oneDNN."""
