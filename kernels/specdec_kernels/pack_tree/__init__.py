from .ops import MAX_PROPOSALS, beam_parents, pack_beams, pack_tree
from .reference import PackedTree

__all__ = ["MAX_PROPOSALS", "PackedTree", "beam_parents", "pack_beams", "pack_tree"]
