"""The hot steps of a speculative-decoding round as functions of tensors; needs torch and einops alone."""

from .accept_tree import accept_tree
from .ancestors import ancestor_matrix, pack_bits, unpack_bits
from .commit_kv import commit_kv
from .pack_tree import PackedTree, beam_parents, pack_beams, pack_tree
from .tree_attention import tree_attention, tree_mask

__all__ = [
    "PackedTree",
    "accept_tree",
    "ancestor_matrix",
    "beam_parents",
    "commit_kv",
    "pack_beams",
    "pack_bits",
    "pack_tree",
    "tree_attention",
    "tree_mask",
    "unpack_bits",
]
