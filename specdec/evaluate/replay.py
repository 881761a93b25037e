"""Telling a tie from an error: the text is replayed in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

# Relative distance to the best logit below which rounding may decide which token is the best.
TIE = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
# Most ties per token that a float32 run may show.
TIE_RATE = 1e-4


class Replay(NamedTuple):
    """How a text compares with the float64 model's own picks at each of its prefixes."""

    ties: int
    """Tokens that are not the best but within rounding of it."""
    errors: int
    """Tokens that are neither."""
    margin: float
    """Largest relative distance of a token to the best one."""


@torch.inference_mode()
def replay(
    model64: PreTrainedModel, prompt: list[int], tokens: list[int], dtype: torch.dtype
) -> Replay:
    """Judge every token of a text given the text before it.

    Args:
        model64: the model, its weights as they were in `dtype`, cast to float64.
        prompt: token ids.
        tokens: the text to judge.
        dtype: what the text was computed in.
    """
    ids = torch.tensor([prompt + tokens[:-1]], device=model64.device)
    logits = model64(ids, use_cache=False, logits_to_keep=len(tokens)).logits[0]
    best = logits.max(-1).values
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    margin = (best - chosen) / best.abs()
    ties = int(((margin > 0) & (margin <= TIE[dtype])).sum())
    return Replay(ties, int((margin > TIE[dtype]).sum()), float(margin.max()))
