import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_kernels import beam_step


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 64), st.integers(0, 10**6)
)  # fmt: skip
def test_beam_step_equals_a_stable_sort_of_all_continuations(batch, beams, count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values: many ties.
    scores, log_probs = (
        -torch.randint(0, 4, shape, generator=generator).float()
        for shape in ((batch, beams), (batch, beams, count))
    )
    ids = torch.randint(0, 1000, (batch, beams, count), generator=generator)
    best = beam_step(scores, log_probs, ids, width)
    for row in range(batch):
        candidates = [
            (-float(scores[row, w] + log_probs[row, w, i]), w, i, int(ids[row, w, i]))
            for w in range(beams)
            for i in range(count)
        ]
        expected = sorted(candidates)[:width]
        assert best.scores[row].tolist() == [-c[0] for c in expected]
        assert best.parents[row].tolist() == [c[1] for c in expected]
        assert best.tokens[row].tolist() == [c[3] for c in expected]


def test_error_names_the_bad_argument():
    scores, log_probs = torch.zeros(2, 3), torch.zeros(2, 3, 4)
    ids = torch.zeros(2, 3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"scores: expected shape \[2, 3\], got \[2, 4\]"):
        beam_step(torch.zeros(2, 4), log_probs, ids, 5)
    with pytest.raises(ValueError, match=r"log_probs: expected shape \[2, 3, 4\], got \[2, 3, 5\]"):
        beam_step(scores, torch.zeros(2, 3, 5), ids, 5)
    with pytest.raises(
        ValueError, match=r"ids: expected shape \[B, W >= 1, K >= 1\], got \[2, 3\]"
    ):
        beam_step(scores, log_probs, ids[..., 0], 5)
    with pytest.raises(TypeError, match="ids: expected int64, got torch.int32"):
        beam_step(scores, log_probs, ids.int(), 5)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        beam_step(scores, log_probs, ids, 0)
