"""What travels takes fewer bytes."""
