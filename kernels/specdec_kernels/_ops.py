"""The namespace of the registered ops; republishing the package under another name replaces only this file."""

import torch

NAMESPACE = "specdec_kernels"
library = torch.library.Library(NAMESPACE, "DEF")
ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(name: str) -> str:
    """Return the full name of the op `name`."""
    return f"{NAMESPACE}::{name}"
