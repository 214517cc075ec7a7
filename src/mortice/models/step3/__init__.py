"""Step-3, text."""
