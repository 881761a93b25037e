"""Decoding inside the library's own `generate`."""
