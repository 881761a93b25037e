"""Tables of methods that need no training."""
