"""What runs show: plots of one or several, from their folders."""
