"""The hot steps of a speculative-decoding round as functions of tensors; needs torch and einops alone."""

from .accept_tree import accept_tree
from .ancestors import ancestor_matrix, pack_bits, unpack_bits
from .beam_step import Beams, beam_step
from .commit_kv import commit_kv
from .draft_step import RecurrentDraftStep
from .early_exit import EarlyExitAdapter
from .lm_head import LMHeadTopK, SureToken, TopTokens, lm_head_confidence, lm_head_topk
from .pack_tree import PackedTree, beam_parents, pack_beams, pack_tree
from .tree_attention import tree_attention, tree_mask

__all__ = [
    "Beams",
    "EarlyExitAdapter",
    "LMHeadTopK",
    "PackedTree",
    "RecurrentDraftStep",
    "SureToken",
    "TopTokens",
    "accept_tree",
    "ancestor_matrix",
    "beam_parents",
    "beam_step",
    "commit_kv",
    "lm_head_confidence",
    "lm_head_topk",
    "pack_beams",
    "pack_bits",
    "pack_tree",
    "tree_attention",
    "tree_mask",
    "unpack_bits",
]
