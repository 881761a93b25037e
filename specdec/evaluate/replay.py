"""The tie rule: differing texts are replayed in float64, to tell rounding ties from errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

# Relative distance to the best logit below which rounding may decide the best token. For half precision it was measured
# (bench/decoding/rounding.py): over 7,276 tokens, transformers' bfloat16 pass had an error of 0.033 of the best logit in
# the distance of the two best logits at the 99.9th percentile, and two passes differ by twice that. float16 has three more
# bits.
TIE = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 2**-4, torch.float16: 2**-7}
# Most ties per token that a float32 run may have.
TIE_RATE = 1e-4


class Verdict(NamedTuple):
    """The differences of a text from its reference."""

    ties: int
    """Tokens that are within rounding of the float64 model's best, or at which the reference's token is."""
    errors: int
    """Other differences: a worse token, or an unjustified end of the text."""
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
    """Compare a text with its reference.

    At the first difference, both tokens must be within rounding of the best. From there on, each token of the text is
    judged by the tokens before it.

    Args:
        model64: the model with its weights in `dtype`, cast to float64.
        prompt: token ids.
        expected: the reference's tokens.
        tokens: the tokens to judge.
        dtype: dtype of both computations.
    """
    if tokens == expected:
        return SAME
    part = next(
        (i for i, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]),
        None,
    )
    if part is None:  # one text continues after the other's end
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
