"""Host utilities: files, locks, messages and lazy imports."""
