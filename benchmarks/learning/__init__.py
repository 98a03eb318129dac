"""What algorithms learn, and how soon."""
