"""What surrounds a run: its folder and figures, its checkpoints, the signals that end it."""
