"""One run of training, from its configuration to its last checkpoint."""
