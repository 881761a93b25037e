from .module import EarlyExitAdapter
from .reference import rms_norm, rotate, rotation

__all__ = ["EarlyExitAdapter", "rms_norm", "rotate", "rotation"]
