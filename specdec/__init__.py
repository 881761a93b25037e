"""Lossless speculative decoding for Hugging Face causal language models."""

from typing import TYPE_CHECKING

from .host.lazy import lazily

if TYPE_CHECKING:
    from .drafters import load_drafter
    from .huggingface.generate import generate, method
    from .load import load_target
    from .metrics import Metrics
    from .model.target import Target
    from .observer import Round
    from .session import Generation, Session
    from .sources.embedded import DEFAULT_MODEL

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_MODEL",
    "Generation",
    "Metrics",
    "Round",
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
        "sources.embedded": ["DEFAULT_MODEL"],
        "huggingface.generate": ["generate", "method"],
        "load": ["load_target"],
        "metrics": ["Metrics"],
        "observer": ["Round"],
        "session": ["Generation", "Session"],
        "model.target": ["Target"],
    },
)
