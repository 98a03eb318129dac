"""The verbs over a simulated cluster."""
