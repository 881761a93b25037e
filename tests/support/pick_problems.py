"""Logits to pick from, and the comparison of kernel and reference picks up to rounding."""

import torch

from specdec_kernels import pick_tokens, vocabulary_noise
from specdec_kernels.pick_tokens.reference import processed_scores
from specdec_kernels.testing.poison import poisoned_empty

# Of a cumulative probability, and of a score: a few roundings in float32.
ROUNDING = 1e-5


def make_logits(rows, size, seed, device="cpu", dtype=torch.float32, distinct=None):
    """Random logits, all different or with few values; and streams and positions of any size."""
    generator = torch.Generator().manual_seed(seed)
    if distinct is None:
        logits = 3 * torch.randn(rows, size, generator=generator)
    else:
        logits = torch.randint(0, distinct, (rows, size), generator=generator) / 2
    streams, positions = torch.randint(0, 2**32, (2, rows), generator=generator)
    return logits.to(device, dtype), streams.to(device), positions.to(device)


def mass_up_to(scores):
    """Probability of each token and all that come before it in a stable ascending sort, float64."""
    ascending, order = scores.double().sort(dim=-1, stable=True)
    mass = ascending.softmax(-1).cumsum(-1)
    return torch.empty_like(mass).scatter(1, order, mass)


def assert_same_picks(logits, streams, positions, seed=5, temperature=1.0, top_k=None, top_p=None):
    """Compare the kernel's picks with the reference's; return how many differ, each by a near-tie."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    common = {"seed": seed, "streams": streams, "positions": positions, **options}
    with poisoned_empty():
        found = pick_tokens(logits, **common, impl="triton")
    expected = pick_tokens(logits, **common, impl="reference")
    assert found.dtype == torch.int64 and found.shape == expected.shape
    rows = (found != expected).nonzero()[:, 0]
    if len(rows) == 0:
        return 0
    scores = processed_scores(
        logits, temperature, None if top_k is None else min(top_k, logits.shape[1]), None
    )[rows].cpu()
    noise = vocabulary_noise(seed, streams[rows], positions[rows], logits.shape[1]).cpu()
    totals = scores.double() + noise
    ours, theirs = (ids[rows].cpu()[:, None] for ids in (found, expected))
    largest = scores[scores.isfinite()].abs().amax()  # what top_k leaves out is -inf
    near = totals.gather(1, ours) >= totals.gather(1, theirs) - ROUNDING * largest
    if top_p is not None:  # or either of them is at the border of the nucleus
        mass = mass_up_to(scores)
        for ids in (ours, theirs):
            near |= (mass.gather(1, ids) - (1 - top_p)).abs() <= ROUNDING
    assert near.all(), (found[rows], expected[rows])
    return len(rows)
