from .ops import tree_attention
from .reference import tree_mask

__all__ = ["tree_attention", "tree_mask"]
