"""Utilities for tests, benchmarks and tuning of the kernels; not needed to run them."""
