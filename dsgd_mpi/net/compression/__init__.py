"""Messages of fewer bytes."""
