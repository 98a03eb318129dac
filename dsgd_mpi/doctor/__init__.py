"""Does it work here? What there is to train with, and what is wrong."""
