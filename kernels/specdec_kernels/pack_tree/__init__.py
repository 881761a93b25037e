from .ops import MOST_PROPOSALS, beam_parents, pack_beams, pack_tree
from .reference import PackedTree

__all__ = ["MOST_PROPOSALS", "PackedTree", "beam_parents", "pack_beams", "pack_tree"]
