"""The index of all results."""
