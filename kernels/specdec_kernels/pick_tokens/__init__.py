from .noise import gumbel_noise, vocabulary_noise
from .ops import pick_tokens

__all__ = ["gumbel_noise", "pick_tokens", "vocabulary_noise"]
