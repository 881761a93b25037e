"""The cost table of a target on this machine, and the draft budgets that follow from it."""
