"""One method on one prompt, and what speed many of those make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Run:
    """One method on one prompt; its seconds are an equal share where it wrote all prompts as one list."""

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
    """Whether the tokens are the reference's."""
    ties: int
    """Where they are not: tokens that rounding decided, as the float64 model judges."""
    errors: int
    """Differences beyond the tie rule."""
    margin: float
    """Largest relative distance of a token to the float64 model's best."""
    seconds: dict[str, float]
    """Per stage of our loop."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How much of the speed-up that a drafter makes possible is there."""

    tokens_per_round: float
    plain_verify_seconds: float
    """t(1): a round of the plain loop in the target's pass."""
    verify_seconds: float
    """t(N): a round of this method in the target's pass."""
    draft_seconds: float
    """A round of this method in the drafter."""
    bound: float
    """Decode speed-up over plain if nothing but these passes took time."""
    reached: float
    """Measured decode speed-up over plain, as a share of the bound."""


def speed(runs: Sequence[Run]) -> float:
    """Return new tokens per second, prefill included, pooled over runs."""
    return sum(r.new_tokens for r in runs) / sum(r.prefill_seconds + r.decode_seconds for r in runs)


def decode_speed(runs: Sequence[Run]) -> float | None:
    """Return tokens per second after the first token, which is prefill's; None where there was no other."""
    seconds = sum(r.decode_seconds for r in runs)
    tokens = sum(r.new_tokens - 1 for r in runs)
    return tokens / seconds if tokens and seconds else None


def decode_speedup(runs: Sequence[Run], base: Sequence[Run]) -> float | None:
    """Return how many times as fast `runs` decode as `base`; None where either has nothing to decode."""
    ours, theirs = decode_speed(runs), decode_speed(base)
    return ours / theirs if ours is not None and theirs is not None else None


def efficiency(runs: Sequence[Run], plain: Sequence[Run]) -> Efficiency | None:
    """Compare a method's decode speed-up with the one that its passes allow.

    Over R rounds the plain loop needs `tokens_per_round * R * t(1)` for the same tokens, the method at least
    `R * (t(N) + t_draft)`; what it needs beyond that is the loop's own work, and so is what plain needs.

    Args:
        runs: of a method that drafts.
        plain: of the plain loop, on the same prompts.

    Returns:
        None where either has no rounds: the library's methods do not tell, and a text may be one token.
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
