"""How shared prefixes are counted, and that the search is asked for every width and length."""

import pytest
import torch

from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.model.target import Target
from specdec.session import Session
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model


@pytest.fixture
def dedup():
    from bench.decoding import dedup

    return dedup


def test_shares_equal_hand_computed_values(dedup):
    counter = dedup.BeamCounter({}, ())
    # Three beams behind the root 9: 1-2-3, 1-2-4, 5-2-3. One prefix of two tokens is shared.
    counter.count((3, 4), torch.tensor([9]), torch.tensor([[[1, 2, 3], [1, 2, 4], [5, 2, 3]]]))
    assert counter.without_root[3, 4] == pytest.approx([2 / 9])
    assert counter.with_root[3, 4] == pytest.approx([4 / 12])


def test_beams_are_counted_at_every_token_of_a_plain_decode(dedup):
    target = Target(tiny_model("llama"))
    width = target.config.hidden_size
    drafters = {
        beams: ReDrafter(
            target,
            ReDrafterModel(ReDrafterConfig(hidden_size=width, exit_dim=16), VOCABULARY),
            ReDrafterConfig(
                hidden_size=width, exit_dim=16, beam_width=beams, keep="final", min_prob=0, min_step_prob=0
            ),
        )
        for beams in (1, 4)
    }  # fmt: skip
    counter = dedup.BeamCounter(drafters, (3, 6))
    prompt = random_prompt(5, 1)
    written = Session(target, counter).generate([prompt], max_new_tokens=8)
    assert written.tokens == [library_greedy(tiny_model("llama"), prompt, 8)]
    assert set(counter.with_root) == {(1, 3), (1, 6), (4, 3), (4, 6)}
    for which, shares in counter.with_root.items():
        assert len(shares) == 7
        if which[0] == 1:
            assert shares == [0.0] * 7
        else:
            assert all(0 < share < 1 for share in shares)
