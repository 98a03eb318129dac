"""What is learnt from runs: figures of one or several, from what their folders hold."""
