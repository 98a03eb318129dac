"""Optimizers, which step a flat vector, and learning-rate schedules."""
