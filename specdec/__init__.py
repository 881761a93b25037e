"""Lossless speculative decoding for Hugging Face models: the same text in fewer passes."""

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .drafters import load_drafter
    from .embedded import DEFAULT_MODEL
    from .generation import generate, method
    from .loading import load_target
    from .metrics import Metrics
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

__getattr__, __dir__ = lazily(
    __name__,
    {
        "drafters": ["load_drafter"],
        "embedded": ["DEFAULT_MODEL"],
        "generation": ["generate", "method"],
        "loading": ["load_target"],
        "metrics": ["Metrics"],
        "session": ["Generation", "Session"],
        "target": ["Target"],
    },
)
