"""The cluster as an algorithm sees it: over MPI, or simulated."""
