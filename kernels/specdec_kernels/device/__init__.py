"""Functions in registers, and a linear layer, that kernels of several ops are built of; needs Triton."""
