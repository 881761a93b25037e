"""The public function `coupled_log_probs` and its registered op."""

from __future__ import annotations

import math

from torch import Tensor

from ..checks import check_float32, check_integers, check_shape
from ..dispatch import Impl, chooses_kernel, register
from ..pick_tokens.noise import check_seed
from .reference import coupled_log_probs_reference

# Most candidates per beam that the kernel holds in registers.
MAX_CANDIDATES = 1024


def coupled_log_probs(
    log_probs: Tensor,
    ids: Tensor,
    *,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    sharpness: float,
    impl: Impl = "auto",
) -> Tensor:
    """Estimate the probability that `pick_tokens` with the same seed and streams picks each candidate.

    The result is the log-softmax over a beam's candidates of `sharpness * (log_probs / temperature + noise)`. Candidates
    with -inf stay -inf, also if a beam has no others; in a beam with NaN or +inf all others are NaN.

    Args:
        log_probs: `[B, W, k]` float32, a drafter's log-probabilities of k candidates per beam; need not be normalised.
        ids: `[B, W, k]` int64, 0 to 2^32 - 1: the candidates' ids in the target's vocabulary.
        seed: 0 to 2^64 - 1.
        streams: `[B]` int64, 0 to 2^32 - 1: the stream of each row's noise.
        positions: `[B]` int64, 0 to 2^32 - 1: position of the picked token, padding not counted.
        temperature: divisor of the log-probabilities, above 0.
        sharpness: factor of the sums with the noise, above 0.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere). The kernel takes up to 1024
            candidates per beam.

    Returns:
        `[B, W, k]` float32 log-probabilities; the probabilities of a beam sum to 1.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, an option, a device or `impl` does not fit.
    """
    if ids.ndim != 3 or 0 in ids.shape[1:]:
        raise ValueError(f"ids: expected shape [B, W >= 1, k >= 1], got {list(ids.shape)}")
    check_shape("log_probs", log_probs, ids.shape)
    if not log_probs.is_floating_point():
        raise TypeError(f"log_probs: expected floating point, got {log_probs.dtype}")
    for name, x in (("streams", streams), ("positions", positions)):
        check_shape(name, x, ids.shape[:1])
    check_integers(ids=ids, streams=streams, positions=positions)
    check_seed(seed)
    for name, value in (("temperature", temperature), ("sharpness", sharpness)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected above 0, got {value}")
    options = (streams, positions, temperature, sharpness)
    if not chooses_kernel(impl, log_probs, ids, streams, positions):
        return coupled_log_probs_reference(log_probs, ids, seed, *options)
    check_float32(log_probs=log_probs)
    if ids.shape[2] > MAX_CANDIDATES:
        raise ValueError(
            f"ids: expected at most {MAX_CANDIDATES} candidates in a kernel, got shape {list(ids.shape)}"
        )
    # Registered ops take signed integers.
    signed = seed - 2**64 if seed >= 2**63 else seed
    return _coupled_log_probs(log_probs, ids, signed, *options)  # type: ignore[no-any-return]


def _launch(
    log_probs: Tensor,
    ids: Tensor,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    sharpness: float,
) -> Tensor:
    from .kernel import launch_coupled_log_probs

    return launch_coupled_log_probs(
        log_probs, ids, seed, streams, positions, temperature, sharpness
    )


def _fake(log_probs: Tensor, *others: object) -> Tensor:
    return log_probs.new_empty(log_probs.shape)


_coupled_log_probs = register(
    "coupled_log_probs(Tensor log_probs, Tensor ids, int seed, Tensor streams, Tensor positions, float temperature,"
    " float sharpness) -> Tensor",
    _launch,
    _fake,
)
