from .module import LMHeadTopK
from .ops import lm_head_confidence, lm_head_topk
from .reference import SureToken, TopTokens

__all__ = ["LMHeadTopK", "SureToken", "TopTokens", "lm_head_confidence", "lm_head_topk"]
