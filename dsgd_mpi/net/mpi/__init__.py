"""The verbs over MPI."""
