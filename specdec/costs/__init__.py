"""What passes of this target cost on this machine, and what drafting is worth there."""
