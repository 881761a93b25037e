from .ops import beam_parents, pack_beams, pack_tree
from .reference import PackedTree

__all__ = ["PackedTree", "beam_parents", "pack_beams", "pack_tree"]
