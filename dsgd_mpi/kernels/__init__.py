"""The operations of a network: in NumPy, by oneDNN on CPUs, by cuDNN and CUDA on GPUs."""
