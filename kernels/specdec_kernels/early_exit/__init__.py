from ..lm_head import HeadWeights
from .module import EarlyExitAdapter
from .ops import early_exit_step
from .reference import AdapterWeights, rms_norm, rotate, rotation

__all__ = [
    "AdapterWeights",
    "EarlyExitAdapter",
    "HeadWeights",
    "early_exit_step",
    "rms_norm",
    "rotate",
    "rotation",
]
