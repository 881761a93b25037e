from .head import lm_head_beams
from .ops import beam_step
from .reference import Beams

__all__ = ["Beams", "beam_step", "lm_head_beams"]
