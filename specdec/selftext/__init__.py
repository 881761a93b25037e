"""Self-text: what a target writes when it asks itself, and where it is kept."""
