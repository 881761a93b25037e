"""The target: its parts, its cache, attention over trees, and the checks that this view of a model is right."""
