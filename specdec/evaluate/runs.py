"""Results of single runs, and speeds computed from many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Run:
    """One method on one prompt; in a list, its seconds are an equal share of the list's."""

    method: str
    question_id: int
    turn: int
    category: str
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    rounds: int | None
    tokens_per_round: float | None
    ctar: list[float] | None
    nodes_per_round: float | None
    identical: bool
    """Whether the tokens equal the reference's."""
    ties: int
    """Number of differing tokens that rounding decided, by the float64 model."""
    errors: int
    """Differences beyond the tie rule."""
    margin: float
    """Largest relative distance of a token to the float64 model's best."""
    seconds: dict[str, float]
    """Seconds per stage of specdec's loop."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How much of a drafter's possible speed-up is reached."""

    tokens_per_round: float
    plain_verify_seconds: float
    """t(1): seconds of the target's pass per round of the plain loop."""
    verify_seconds: float
    """t(N): seconds of the target's pass per round of this method."""
    draft_seconds: float
    """Seconds of drafting per round of this method."""
    bound: float
    """Decode speed-up over plain decoding if only these passes took time."""
    reached: float
    """Measured decode speed-up over plain decoding divided by the bound."""


def speed(runs: Sequence[Run]) -> float:
    """Return new tokens per second, prefill included, pooled over runs."""
    return sum(r.new_tokens for r in runs) / sum(r.prefill_seconds + r.decode_seconds for r in runs)


def decode_speed(runs: Sequence[Run]) -> float | None:
    """Return tokens per second after the first token, which is prefill's; None if there is no other."""
    seconds = sum(r.decode_seconds for r in runs)
    tokens = sum(r.new_tokens - 1 for r in runs)
    return tokens / seconds if tokens and seconds else None


def decode_speedup(runs: Sequence[Run], base: Sequence[Run]) -> float | None:
    """Return the decode speed of `runs` divided by that of `base`; None if either has nothing to decode."""
    ours, theirs = decode_speed(runs), decode_speed(base)
    return ours / theirs if ours is not None and theirs is not None else None


def efficiency(runs: Sequence[Run], plain: Sequence[Run]) -> Efficiency | None:
    """Compare a method's decode speed-up with the bound that its passes give.

    Over R rounds the plain loop needs `tokens_per_round * R * t(1)` for the same tokens, and the method at least
    `R * (t(N) + t_draft)`. The rest of both times is the loop's overhead.

    Args:
        runs: runs of a method that drafts.
        plain: runs of the plain loop on the same prompts.

    Returns:
        None if either has no rounds: transformers' methods record none, and a text may be one token.
    """
    rounds, plain_rounds = (sum(r.rounds or 0 for r in of) for of in (runs, plain))
    measured = decode_speedup(runs, plain)
    if not rounds or not plain_rounds or measured is None:
        return None

    def per_round(of: Sequence[Run], stage: str, count: int) -> float:
        return sum(r.seconds.get(stage, 0.0) for r in of) / count

    tokens_per_round = sum((r.rounds or 0) * (r.tokens_per_round or 0.0) for r in runs) / rounds
    single = per_round(plain, "verify", plain_rounds)
    verify, draft = (per_round(runs, stage, rounds) for stage in ("verify", "draft"))
    bound = tokens_per_round * single / (verify + draft)
    return Efficiency(tokens_per_round, single, verify, draft, bound, measured / bound)
