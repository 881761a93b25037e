"""Code shared by the training commands."""
