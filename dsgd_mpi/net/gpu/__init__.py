"""The verbs for arrays on GPUs."""
