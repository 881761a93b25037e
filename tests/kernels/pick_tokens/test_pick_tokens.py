"""Picking by noise: the generator's known answers, transformers' filters, and frequencies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pick_problems import make_logits, mass_up_to
from specdec_kernels import gumbel_noise, pick_tokens, vocabulary_noise
from specdec_kernels.pick_tokens import reference
from specdec_kernels.pick_tokens.noise import gumbel, philox

# Random123's own known answers: counter, key, words.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0,) * 4, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, 0x299F31D0_A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "seed", "words"), KNOWN)
def test_philox_equals_published_test_vectors(counter, seed, words):
    assert tuple(philox(seed, tuple(map(torch.tensor, counter))).tolist()) == words


def test_noise_of_a_token_uses_its_word_of_the_philox_counter():
    seed, stream, position = 2**63 + 5, 7, 2**32 - 1
    noise = vocabulary_noise(seed, torch.tensor([stream]), torch.tensor([position]), 11)[0]
    for token in range(11):
        words = philox(seed, tuple(map(torch.tensor, (token >> 2, position, stream, 0))))
        v = (int(words[token & 3]) + 0.5) / 2**32
        assert noise[token].item() == pytest.approx(-math.log(-math.log1p(-v)), abs=1e-5)


def test_noise_does_not_depend_on_subset_order_or_batch():
    _, streams, positions = make_logits(5, 1, 0)
    noise = vocabulary_noise(9, streams, positions, 1001)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 1001, (5, 40), generator=generator)
    some = gumbel_noise(9, streams[:, None], positions[:, None], ids)
    assert torch.equal(some, noise.gather(1, ids))
    order = torch.tensor([3, 0, 4])
    assert torch.equal(vocabulary_noise(9, streams[order], positions[order], 77), noise[order, :77])
    one = gumbel_noise(9, streams[2], positions[2], torch.tensor(1000))
    assert one == noise[2, 1000] and one.shape == ()


def test_each_part_of_the_key_changes_the_noise():
    at = torch.tensor([5])
    noise = vocabulary_noise(1, at, at, 400)
    others = [
        vocabulary_noise(2, at, at, 400),
        vocabulary_noise(1 + 2**32, at, at, 400),
        vocabulary_noise(1, at + 1, at, 400),
        vocabulary_noise(1, at, at + 1, 400),
        vocabulary_noise(1, at, at, 800)[:, 400:],
    ]
    for other in others:
        assert torch.corrcoef(torch.cat([noise, other]))[0, 1].abs() < 0.2
    # Streams and positions are not interchangeable.
    swapped = [vocabulary_noise(1, at + i, at + 1 - i, 400) for i in (0, 1)]
    assert torch.corrcoef(torch.cat(swapped))[0, 1].abs() < 0.2


def library_scores(logits, temperature, top_k, top_p):
    """What transformers' warpers make of logits, in the order in which it puts them."""
    warpers = [] if temperature == 1 else [TemperatureLogitsWarper(temperature)]
    warpers += [] if top_k is None else [TopKLogitsWarper(top_k)]
    warpers += [] if top_p is None else [TopPLogitsWarper(top_p)]
    for warper in warpers:
        logits = warper(None, logits)
    return logits


FILTERS = [
    (temperature, top_k, top_p)
    for temperature in (1.0, 0.7, 2.5)
    for top_k in (None, 1, 40)
    for top_p in (None, 0.0, 0.3, 0.9, 0.999)
]


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("size", [50, 5000])
def test_filters_equal_transformers_logits_processors(size, scale):
    for seed, options in enumerate(FILTERS):
        logits = make_logits(6, size, seed)[0] * scale
        found = reference.processed_scores(logits, *options)
        assert torch.equal(found, library_scores(logits, *options)), options


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 60), st.integers(1, 5), st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 10**6)
)  # fmt: skip
def test_filters_keep_as_many_tied_tokens_as_transformers(size, distinct, top_k, top_p, seed):
    """Which of equals the library keeps is left open by its sort, which need not be stable; ours is."""
    logits = make_logits(3, size, seed, distinct=distinct)[0]
    found = reference.processed_scores(logits, 1.0, min(top_k, size), top_p)
    theirs = library_scores(logits, 1.0, top_k, top_p)
    assert torch.equal(found.sort(-1).values, theirs.sort(-1).values)
    for before, after in zip(logits, found, strict=True):
        border = after[after > -torch.inf].min()
        kept = after[before == border] > -torch.inf
        assert torch.equal(kept, kept.sort(stable=True).values)  # the highest ids


def test_top_p_without_a_full_sort_picks_the_same_tokens(monkeypatch):
    logits = make_logits(1, 5000, 3)[0]
    short = [
        reference._first_of_nucleus(logits * scale, 0.1) is not None for scale in (3.0, 1.0, 0.0)
    ]
    assert short == [True, True, False]  # equals need the sort
    picked = []
    for look in (True, False):
        if not look:
            monkeypatch.setattr(reference, "host_may_look", lambda x: False)
        rows = make_logits(50, 5000, 3)
        options = {"seed": 3, "streams": rows[1], "positions": rows[2]}
        picked.append(
            [pick_tokens(rows[0], **options, top_k=k, top_p=p) for _, k, p in FILTERS[:15]]
        )
    for few, whole in zip(*picked, strict=True):
        assert torch.equal(few, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2, 50, 299])
def test_picking_among_top_k_candidates_equals_the_full_path(monkeypatch, top_k, dtype):
    logits, streams, positions = make_logits(40, 300, 3)
    logits = logits.to(dtype)
    logits[::3, 250:] = -torch.inf
    logits[1::3] = logits[1::3].round()  # many equal the last one kept
    logits[2::9, 100::60] = torch.nan
    taken = []
    short = reference._pick_of_best

    def noted(*args):
        taken.append(short(*args))
        return taken[-1]

    def picks(way):
        monkeypatch.setattr(reference, "_pick_of_best", way)
        return [
            pick_tokens(
                logits[row : row + 1], seed=5, streams=streams[row : row + 1],
                positions=positions[row : row + 1], temperature=0.7, top_k=top_k,
            ).item()
            for row in range(len(logits))
        ]  # fmt: skip

    assert picks(noted) == picks(lambda *_: None)
    assert sum(t is not None for t in taken) > 5


def test_top_p_keeps_the_smallest_set_of_that_mass():
    logits = make_logits(40, 300, 4)[0]
    kept = reference.processed_scores(logits, 1.0, None, 0.8) > -torch.inf
    mass = mass_up_to(logits)
    assert (mass[kept] > 0.2 - 1e-5).all() and (mass[~kept] < 0.2 + 1e-5).all()


def test_fused_filters_pick_the_same_tokens_as_filtered_scores():
    logits, streams, positions = make_logits(30, 400, 6)
    for temperature, top_k, top_p in FILTERS:
        key = {"seed": 8, "streams": streams, "positions": positions}
        fused = pick_tokens(logits, **key, temperature=temperature, top_k=top_k, top_p=top_p)
        scores = library_scores(logits, temperature, top_k, top_p)
        assert torch.equal(fused, pick_tokens(scores, **key))


def test_pick_is_the_argmax_of_logits_plus_noise_with_ties_to_the_lowest_id():
    logits, streams, positions = make_logits(20, 300, 7)
    key = {"seed": 2**64 - 1, "streams": streams, "positions": positions}
    totals = logits + vocabulary_noise(2**64 - 1, streams, positions, 300)
    assert torch.equal(pick_tokens(logits, **key), totals.argmax(-1))
    assert torch.equal(pick_tokens(logits.double(), **key), totals.argmax(-1))
    nothing = torch.full_like(logits, -torch.inf)
    assert (pick_tokens(nothing, **key) == 0).all()
    infinite = nothing.index_fill(1, torch.tensor([70, 9]), torch.inf)
    assert (pick_tokens(infinite, **key, top_p=0.5) == 9).all()
    for fill in (0.0, -torch.inf):
        holes = torch.full_like(logits, fill).index_fill(1, torch.tensor([80, 31]), torch.nan)
        assert (pick_tokens(holes, **key) == 31).all()
        assert (pick_tokens(holes, **key, top_k=5, top_p=0.5) == 31).all()
    assert pick_tokens(logits[:0], seed=0, streams=streams[:0], positions=positions[:0]).shape == (
        0,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"logits": torch.zeros(3)}, ValueError, r"logits: expected shape \[R, V >= 1\]"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"logits: expected shape \[R, V >= 1\]"),
        ({"logits": torch.zeros(2, 9).long()}, TypeError, "logits: expected floating point"),
        ({"streams": torch.zeros(3).long()}, ValueError, r"streams: expected shape \[2\], got \[3\]"),
        ({"positions": torch.zeros(2)}, TypeError, "positions: expected int64"),
        ({"seed": -1}, ValueError, r"seed: expected 0 to 2\^64 - 1, got -1"),
        ({"seed": 2**64}, ValueError, "seed: expected 0 to"),
        ({"temperature": 0.0}, ValueError, "temperature: expected above 0, got 0.0"),
        ({"temperature": math.nan}, ValueError, "temperature: expected above 0, got nan"),
        ({"top_k": 0}, ValueError, "top_k: expected at least 1, got 0"),
        ({"top_p": 1.1}, ValueError, "top_p: expected 0 to 1, got 1.1"),
    ],
)  # fmt: skip
def test_error_names_the_bad_argument(options, error, message):
    good = {"logits": torch.zeros(2, 9), "seed": 0}
    good |= {name: torch.zeros(2).long() for name in ("streams", "positions")}
    with pytest.raises(error, match=message):
        pick_tokens(**{**good, **options})


def test_noise_error_names_the_bad_argument():
    at = torch.tensor([1])
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        gumbel_noise(-1, at, at, at)
    with pytest.raises(TypeError, match="ids: expected int64"):
        gumbel_noise(1, at, at, at.float())
    with pytest.raises(ValueError, match=r"positions: expected shape \[1\]"):
        vocabulary_noise(1, at, torch.tensor([1, 2]), 9)


def test_extreme_noise_values_are_finite():
    bits = torch.tensor([0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1])
    noise = gumbel(bits)
    assert noise[0].item() == pytest.approx(33 * math.log(2))
    assert noise[-1].item() == pytest.approx(-math.log(24 * math.log(2)))
    assert (noise.diff() <= 0).all()
