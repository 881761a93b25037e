"""Tables of training-free methods."""
