"""Does it work here? What this machine can train with, and any problems."""
