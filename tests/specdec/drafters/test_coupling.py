"""Coupled drafting uses the noise of the positions that it drafts for."""

from types import SimpleNamespace

import pytest
import torch

from specdec.drafters.parts.coupling import coupled
from specdec.sampling import Sampling


@pytest.mark.parametrize("depth", [0, 3])
def test_coupled_perfect_drafter_ranks_the_sampled_token_first(depth):
    generator = torch.Generator().manual_seed(depth)
    logits = torch.randn(3, 50, generator=generator)
    sampling = Sampling(7, torch.tensor([5, 0, 2**31, 9]), temperature=0.8)
    rows = torch.tensor([3, 0, 2])  # row 1 has ended
    positions = torch.tensor([7, 3, 12]) + depth
    state = SimpleNamespace(
        sampling=sampling, rows=SimpleNamespace(ids=rows), position_after=lambda depth: positions
    )
    log_probs, ids = logits.log_softmax(-1).sort(-1)
    ranked = coupled(log_probs[:, None], ids[:, None], state=state, depth=depth)[:, 0]
    drawn = sampling.draw(logits, rows, positions)
    assert torch.equal(ids.gather(1, ranked.argmax(-1, keepdim=True))[:, 0], drawn)
    torch.testing.assert_close(ranked.exp().sum(-1), torch.ones(3))
