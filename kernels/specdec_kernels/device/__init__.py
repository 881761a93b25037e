"""Triton device functions, and a linear layer, shared by the kernels of several ops."""
