"""The steps of a speculative-decoding round as functions of tensors, with Triton kernels for GPUs.

Needs torch and einops, and Triton to run the kernels.
"""

from .accept_tree import accept_tree
from .ancestors import ancestor_matrix, pack_bits, unpack_bits
from .beam_step import Beams, beam_step, lm_head_beams
from .commit_kv import commit_kv
from .coupled_log_probs import coupled_log_probs
from .draft_step import DraftStepWeights, RecurrentDraftStep, draft_step
from .early_exit import AdapterWeights, EarlyExitAdapter, early_exit_step
from .lm_head import HeadWeights, LMHeadTopK, SureToken, TopTokens, lm_head_confidence, lm_head_topk
from .pack_tree import PackedTree, beam_parents, pack_beams, pack_tree
from .pick_tokens import gumbel_noise, pick_tokens, vocabulary_noise
from .tree_attention import TreeAttention, tree_attention, tree_attention_lse, tree_mask
from .warmup import DecodeShape, warmup

__all__ = [
    "AdapterWeights",
    "Beams",
    "DecodeShape",
    "DraftStepWeights",
    "EarlyExitAdapter",
    "HeadWeights",
    "LMHeadTopK",
    "PackedTree",
    "RecurrentDraftStep",
    "SureToken",
    "TopTokens",
    "TreeAttention",
    "accept_tree",
    "ancestor_matrix",
    "beam_parents",
    "beam_step",
    "commit_kv",
    "coupled_log_probs",
    "draft_step",
    "early_exit_step",
    "gumbel_noise",
    "lm_head_beams",
    "lm_head_confidence",
    "lm_head_topk",
    "pack_beams",
    "pack_bits",
    "pack_tree",
    "pick_tokens",
    "tree_attention",
    "tree_attention_lse",
    "tree_mask",
    "unpack_bits",
    "vocabulary_noise",
    "warmup",
]
