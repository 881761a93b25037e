from .module import LMHeadTopK
from .ops import lm_head_confidence, lm_head_topk
from .reference import SureToken, TopTokens
from .weights import HeadWeights

__all__ = [
    "HeadWeights",
    "LMHeadTopK",
    "SureToken",
    "TopTokens",
    "lm_head_confidence",
    "lm_head_topk",
]
