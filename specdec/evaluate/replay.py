"""Telling a tie from an error: texts that differ are judged by the float64 model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

# Relative distance to the best logit below which rounding may decide which token is the best. Half precision by
# measurement (bench/decoding/rounding.py): over 7,276 tokens the library's own bfloat16 pass misjudged the distance of the two
# best logits by 0.033 of the best at the 99.9th percentile, and two passes differ by twice that. float16 has three bits
# more.
TIE = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 2**-4, torch.float16: 2**-7}
# Most ties per token that a float32 run may show.
TIE_RATE = 1e-4


class Verdict(NamedTuple):
    """How a text differs from the one it should be."""

    ties: int
    """Tokens that are not the float64 model's best but within rounding of it, or where the reference's is not."""
    errors: int
    """Differences beyond that: a worse token, or an end in another place than the text gives reason for."""
    margin: float
    """Largest relative distance of a token to the best one."""


SAME = Verdict(0, 0, 0.0)


@torch.inference_mode()
def judge(
    model64: PreTrainedModel,
    prompt: list[int],
    expected: list[int],
    tokens: list[int],
    dtype: torch.dtype,
) -> Verdict:
    """Judge a text that should be another.

    Where the two part, both tokens must be within rounding of the best. From there on each token of the text is
    judged by what comes before it.

    Args:
        model64: the model, its weights as they were in `dtype`, cast to float64.
        prompt: token ids.
        expected: the reference's text.
        tokens: the text to judge.
        dtype: what both were computed in.
    """
    if tokens == expected:
        return SAME
    part = next(
        (i for i, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]),
        None,
    )
    if part is None:  # one text goes on where the other ended
        return Verdict(0, 1, 0.0)
    ids = torch.tensor([prompt + tokens[:-1]], device=model64.device)
    logits = model64(ids, use_cache=False, logits_to_keep=len(tokens)).logits[0]
    best = logits.max(-1).values
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    margins = (best - chosen) / best.abs()
    reference = (best[part] - logits[part, expected[part]]) / best[part].abs()
    margins[part] = torch.maximum(margins[part], reference)
    ties = int(((margins > 0) & (margins <= TIE[dtype])).sum())
    return Verdict(ties, int((margins > TIE[dtype]).sum()), float(margins.max()))
