"""The models, found by file: each file names those that it builds."""
