"""Benchmarks of decoding methods: same prompts, one process, alternating runs, checked tokens."""
