"""The reference: formula, the target's noise, NaN and infinities, errors."""

import math

import pytest
import torch

from coupled_problems import exactly, make_candidates
from specdec_kernels import coupled_log_probs, pick_tokens


def couple(log_probs, ids, streams, positions, **options):
    options = {"seed": 5, "temperature": 1.0, "sharpness": 1.0} | options
    return coupled_log_probs(log_probs, ids, streams=streams, positions=positions, **options)


@pytest.mark.parametrize(("temperature", "sharpness"), [(1.0, 1.0), (0.7, 1.5), (2.5, 0.3)])
@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 33), (2, 5, 64)], ids=str)
def test_reference_equals_the_formula_in_float64(shape, seed, temperature, sharpness):
    candidates = make_candidates(*shape, seed % 97)
    options = {"seed": seed, "temperature": temperature, "sharpness": sharpness}
    found, exact = couple(*candidates, **options), exactly(*candidates, **options)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(shape[:2]))
    log_probs, *others = candidates
    torch.testing.assert_close(
        couple(log_probs.double(), *others, **options), exact, atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_top_candidate_is_the_sampled_token(temperature):
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    _, _, *key = make_candidates(40, 1, 1, 2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    found = couple(
        logits[:, None, order], order.expand(40, 1, -1), *key, temperature=temperature, sharpness=1.5
    )  # fmt: skip
    options = {"streams": key[0], "positions": key[1], "temperature": temperature}
    drawn = pick_tokens(logits, seed=5, **options)
    assert torch.equal(order[found[:, 0].argmax(-1)], drawn)


def test_other_candidates_only_change_the_normalization():
    log_probs, ids, *key = make_candidates(3, 4, 20, 1)
    whole = couple(log_probs, ids, *key)
    some = couple(log_probs[:, 1:2, ::3], ids[:, 1:2, ::3], *key)
    expected = whole[:, 1:2, ::3].log_softmax(-1)
    torch.testing.assert_close(some, expected)


def test_minus_infinity_is_kept_and_nan_or_infinity_gives_nan():
    log_probs, *others = make_candidates(1, 5, 6, 1)
    log_probs[0, :3, ::2] = -torch.inf
    log_probs[0, 1] = -torch.inf
    log_probs[0, 2, 1] = torch.nan
    log_probs[0, 3, 1] = torch.inf
    found = couple(log_probs, *others)
    assert torch.equal(found == -torch.inf, log_probs == -torch.inf)
    assert found.isnan().sum(-1).tolist() == [[0, 0, 3, 6, 0]]
    torch.testing.assert_close(found[0, [0, 4]].exp().sum(-1), torch.ones(2))
    # What overflows is as impossible, rather than no number.
    low = couple(log_probs[:, 4:] - 4, others[0][:, 4:], *others[1:], temperature=1e-38)
    assert (low == -torch.inf).all()


ROWS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ids": torch.zeros(2, 3).long()}, ValueError, r"ids: expected shape \[B, W >= 1, k >= 1\], got \[2, 3\]"),
        ({"ids": torch.zeros(2, 3, 0).long()}, ValueError, r"ids: expected shape .* got \[2, 3, 0\]"),
        ({"ids": torch.zeros(2, 3, 4)}, TypeError, "ids: expected int64, got torch.float32"),
        ({"log_probs": torch.zeros(2, 3, 5)}, ValueError, r"log_probs: expected shape \[2, 3, 4\], got \[2, 3, 5\]"),
        ({"log_probs": torch.zeros(2, 3, 4).long()}, TypeError, "log_probs: expected floating point, got torch.int64"),
        ({"streams": torch.zeros(3).long()}, ValueError, r"streams: expected shape \[2\], got \[3\]"),
        ({"streams": ROWS.int()}, TypeError, "streams: expected int64"),
        ({"positions": torch.zeros(2, 1).long()}, ValueError, r"positions: expected shape \[2\], got \[2, 1\]"),
        ({"positions": ROWS.float()}, TypeError, "positions: expected int64"),
        ({"seed": -1}, ValueError, r"seed: expected 0 to 2\^64 - 1, got -1"),
        ({"seed": 2**64}, ValueError, "seed: expected 0 to"),
        ({"temperature": 0.0}, ValueError, "temperature: expected above 0, got 0.0"),
        ({"temperature": math.nan}, ValueError, "temperature: expected above 0, got nan"),
        ({"sharpness": 0.0}, ValueError, "sharpness: expected above 0, got 0.0"),
        ({"sharpness": math.inf}, ValueError, "sharpness: expected above 0, got inf"),
    ],
)  # fmt: skip
def test_error_names_the_bad_argument(options, error, message):
    good = {"log_probs": torch.zeros(2, 3, 4), "ids": torch.zeros(2, 3, 4).long()}
    with pytest.raises(error, match=message):
        couple(**{**good, "streams": ROWS, "positions": ROWS, **options})
