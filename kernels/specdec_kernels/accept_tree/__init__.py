from .ops import accept_tree

__all__ = ["accept_tree"]
