"""Comparing methods honestly: same prompts, one process, alternating, tokens always checked."""
