from .module import TreeAttention
from .ops import tree_attention, tree_attention_lse
from .reference import tree_mask

__all__ = ["TreeAttention", "tree_attention", "tree_attention_lse", "tree_mask"]
