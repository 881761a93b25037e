"""Lossless speculative decoding for Hugging Face models: the same text in fewer passes."""

from .drafters import load_drafter
from .generation import generate, method
from .loading import load_target
from .metrics import Metrics
from .models import DEFAULT_MODEL
from .session import Generation, Session
from .target import Target

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_MODEL",
    "Generation",
    "Metrics",
    "Session",
    "Target",
    "generate",
    "load_drafter",
    "load_target",
    "method",
]
