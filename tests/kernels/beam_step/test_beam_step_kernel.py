"""The kernels of beam search, alone and behind the head: order decides, so ids and parents must be equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from head_problems import extreme_logits
from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import HeadWeights, beam_step, lm_head_topk
from specdec_kernels._ops import ops
from specdec_kernels.beam_step import lm_head_beams
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_candidates(batch, beams, count, seed, device, distinct=4):
    """Few distinct scores, so that many are equal; halves are exact, and zeros of both signs occur."""
    generator = torch.Generator().manual_seed(seed)
    scores, log_probs = (
        -torch.randint(0, distinct, shape, generator=generator).float() / 2
        for shape in ((batch, beams), (batch, beams, count))
    )
    ids = torch.randint(0, 1 << 40, (batch, beams, count), generator=generator)
    return [x.to(device) for x in (scores, log_probs, ids)]


def assert_same(candidates, width):
    with poisoned_empty():
        found = beam_step(*candidates, width, impl="triton")
    for x, y in zip(found, beam_step(*candidates, width, impl="reference"), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("batch", "beams", "count", "width"),
    [(1, 1, 1, 1), (3, 10, 10, 10), (2, 1, 64, 5), (2, 63, 1, 64), (1, 64, 64, 64), (2, 5, 13, 65)],
)
def test_kernel_equals_reference(batch, beams, count, width, kernel_device):
    assert_same(make_candidates(batch, beams, count, width, kernel_device), width)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20),
    st.integers(1, 50), st.integers(0, 10**6),
)  # fmt: skip
def test_kernel_equals_reference_for_any_shape(
    kernel_device, batch, beams, count, width, distinct, seed
):
    assert_same(make_candidates(batch, beams, count, seed, kernel_device, distinct), width)


def test_nan_infinities_zeros_and_subnormals_are_ordered(kernel_device):
    tiny, inf, nan = 1e-45, torch.inf, torch.nan
    values = [-inf, -1.0, -tiny, -0.0, 0.0, tiny, 3e38, -3e38, inf, nan, -1.0, -nan]
    log_probs = torch.tensor(values, device=kernel_device)[None, None]
    ids = torch.arange(len(values), device=kernel_device)[None, None]
    # Nothing is added to a zero, so that every number arrives as it is.
    best = beam_step(torch.zeros(1, 1, device=kernel_device), log_probs, ids, 12, impl="triton")
    assert best.tokens.tolist() == [[9, 11, 8, 6, 5, 3, 4, 2, 1, 10, 7, 0]]
    assert best.scores[0, :2].isnan().all() and best.scores[0, 4] > 0 and best.scores[0, 7] < 0


def test_candidates_may_be_strided(kernel_device):
    candidates = make_candidates(3, 4, 5, 1, kernel_device)
    sliced = [torch.stack([x, x], -1)[..., 0] for x in candidates]
    assert not sliced[2].is_contiguous()
    assert_same(sliced, 6)


def make_beams(batch, beams, size, vocabulary, seed, device, integers=2):
    """Exact sums; some beams and some tokens twice, so that equals of both kinds are certain."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-integers, integers + 1, (batch, beams, size), generator=generator)
    weight = torch.randint(-integers, integers + 1, (vocabulary, size), generator=generator)
    scores = -torch.rand(batch, beams, generator=generator)
    like = (torch.rand(beams, generator=generator) * torch.arange(1, beams + 1)).long()
    hidden, scores = hidden[:, like], scores[:, like]
    weight[vocabulary // 2 :] = weight[: vocabulary - vocabulary // 2].clone()
    return [x.to(device) for x in (hidden.float(), weight.float(), scores)]


def assert_same_beams(hidden, weight, scores, width, **options):
    head = HeadWeights(weight, **options)
    with poisoned_empty():
        found = lm_head_beams(hidden, head, scores, width, impl="triton")
    expected = lm_head_beams(hidden, head, scores, width, impl="reference")
    assert torch.equal(found.parents, expected.parents)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "beams", "size", "vocabulary", "width"),
    [
        (1, 1, 16, 1, 3),
        (2, 10, 64, 300, 10),
        (3, 5, 33, 129, 7),
        (1, 3, 16, 2, 64),
        (1, 64, 16, 140, 64),
    ],
)
def test_fused_lm_head_beams_equals_lm_head_then_beam_step(
    dtype, batch, beams, size, vocabulary, width, kernel_device
):
    hidden, weight, scores = make_beams(batch, beams, size, vocabulary, width, kernel_device)
    assert_same_beams(hidden.to(dtype), weight.to(dtype), scores, width, round_to=dtype)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 280),
    st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_fused_lm_head_beams_equals_lm_head_then_beam_step_for_any_shape(
    kernel_device, batch, beams, size, vocabulary, width, integers, seed
):
    inputs = make_beams(batch, beams, size, vocabulary, seed, kernel_device, integers)
    id_map = torch.randperm(10 * vocabulary, generator=torch.Generator().manual_seed(seed))
    id_map = id_map[:vocabulary].to(kernel_device)
    assert_same_beams(*inputs, width, id_map=id_map)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_no_less_accurate_than_the_reference(dtype, kernel_device):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 6, 100, generator=generator).to(kernel_device, dtype)
    weight = torch.randn(270, 100, generator=generator).to(kernel_device, dtype) / 5
    bias = torch.randn(270, generator=generator).to(kernel_device, dtype)
    scores = -torch.rand(2, 6, generator=generator).to(kernel_device)
    head = HeadWeights(weight, bias, logit_scale=0.5, softcap=9.0)
    with poisoned_empty():
        found = lm_head_beams(hidden, head, scores, 6, impl="triton")
    expected = lm_head_beams(hidden, head, scores, 6, impl="reference")
    assert torch.equal(found.parents, expected.parents)
    assert torch.equal(found.tokens, expected.tokens)
    logits = (hidden.double() @ weight.double().T + bias.double()) * 0.5
    exact = (9 * torch.tanh(logits / 9)).log_softmax(-1) + scores.double()[..., None]
    at = found.parents * 270 + found.tokens
    assert_no_worse(found.scores, expected.scores, exact.flatten(1).gather(1, at))


def test_ties_go_to_the_lowest_beam_and_token(kernel_device):
    hidden = torch.ones(1, 3, 16, device=kernel_device)
    weight = torch.zeros(200, 16, device=kernel_device)
    weight[[7, 150, 199]] = 1
    scores = torch.zeros(1, 3, device=kernel_device)
    found = lm_head_beams(hidden, weight, scores, 7, impl="triton")
    assert found.parents.tolist() == [[0, 0, 0, 1, 1, 1, 2]]
    assert found.tokens.tolist() == [[7, 150, 199, 7, 150, 199, 7]]


def test_all_results_may_come_from_one_beam(kernel_device):
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(1, 4, 8, generator=generator).to(kernel_device)
    weight = torch.randn(2000, 8, generator=generator).to(kernel_device)
    scores = torch.tensor([[-90.0, 0.0, -90.0, -torch.inf]], device=kernel_device)
    found = lm_head_beams(hidden, weight, scores, 4, impl="triton")
    top = lm_head_topk(hidden[:, 1], weight, 4, impl="reference")
    assert found.parents.tolist() == [[1, 1, 1, 1]] and torch.equal(found.tokens, top.ids)
    torch.testing.assert_close(found.scores, top.log_probs)


def test_nan_beams_return_valid_token_ids(kernel_device):
    hidden, weight, scores = make_beams(2, 3, 16, 150, 0, kernel_device)
    hidden[0, 1] = torch.nan
    found = lm_head_beams(hidden, weight, scores, 4, impl="triton")
    assert found.scores[0].isnan().all() and (found.parents[0] == 1).all()
    assert found.tokens[0].tolist() == [0, 1, 2, 3]
    expected = lm_head_beams(hidden[1:], weight, scores[1:], 4, impl="reference")
    assert torch.equal(found.tokens[1:], expected.tokens)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("name", extreme_logits(1))
def test_extreme_logits_equal_the_reference(name, impl, kernel_device):
    logits = extreme_logits(300)[name].to(kernel_device)
    hidden = torch.zeros(1, 3, 16, device=kernel_device)
    weight, scores = torch.zeros(300, 16), torch.tensor([[-3.0, -1.0, -torch.inf]])
    weight, scores = weight.to(kernel_device), scores.to(kernel_device)
    found = lm_head_beams(hidden, HeadWeights(weight, logits), scores, 7, impl=impl)
    top = lm_head_topk(hidden[0], HeadWeights(weight, logits), 7, impl="reference")
    one_by_one = beam_step(scores, top.log_probs[None], top.ids[None], 7, impl=impl)
    for x, y in zip(found, one_by_one, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True)
    if name == "nothing":
        assert found.scores.isneginf().all()
        assert found.parents.tolist() == [[0] * 7] and found.tokens.tolist() == [list(range(7))]


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_beam_with_only_minus_infinity_logits_ranks_last(impl, kernel_device):
    hidden, weight, scores = make_beams(2, 3, 16, 150, 0, kernel_device)
    hidden, weight = hidden.abs(), weight.abs()
    weight[:, 0], hidden[..., 0] = -torch.inf, 1.0  # nothing but -inf,
    hidden[:, 1:, 0] = 0.0
    weight_of_others = weight.clone()
    weight_of_others[:, 0] = 0.0
    lists = [
        lm_head_topk(hidden[:, beam], weight if beam == 0 else weight_of_others, 4, impl=impl)
        for beam in range(3)
    ]
    log_probs, ids = (
        torch.stack([getattr(x, name) for x in lists], 1) for name in ("log_probs", "ids")
    )
    found = beam_step(scores, log_probs, ids, 8, impl=impl)
    assert (found.parents > 0).all() and found.scores.isfinite().all()


def test_ops_pass_opcheck(kernel_device):
    candidates = make_candidates(3, 4, 5, 1, kernel_device)
    check_op(ops.beam_step, *candidates, 6)
    check_op(ops.beam_step, *(torch.stack([x, x], -1)[..., 0] for x in candidates), 100)
    hidden, weight, scores = make_beams(2, 3, 16, 150, 0, kernel_device)
    rows, none = hidden.flatten(0, 1), (None,) * 4
    check_op(ops.lm_head_beams, rows, weight, scores, 4, *none, None)
    id_map = torch.arange(150, device=kernel_device)
    transposed = scores.T.contiguous().T
    check_op(ops.lm_head_beams, rows[:, :8], weight[:, 8:], transposed, 4, *none, id_map)


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    check_compiles_whole(
        lambda *candidates: beam_step(*candidates, 4, impl=impl),
        make_candidates(2, 3, 4, 1, kernel_device),
        make_candidates(3, 4, 5, 1, kernel_device),
        dynamic=dynamic,
    )
    check_compiles_whole(
        lambda *inputs: lm_head_beams(*inputs, 4, impl=impl),
        make_beams(2, 3, 16, 150, 0, kernel_device),
        make_beams(3, 4, 32, 160, 0, kernel_device),
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    scores, log_probs, ids = make_candidates(2, 3, 4, 1, kernel_device)
    check_never_silent(lambda impl: beam_step(scores, log_probs, ids, 2, impl=impl))
    with pytest.raises(TypeError, match="log_probs: expected torch.float32 in a kernel"):
        beam_step(scores, log_probs.double(), ids, 2, impl="triton")
    with pytest.raises(ValueError, match="ids: expected at most 4096 candidates in a kernel"):
        beam_step(*make_candidates(1, 5, 1000, 1, kernel_device), 2, impl="triton")

    hidden, weight, scores = make_beams(2, 3, 16, 150, 0, kernel_device)

    def call(hidden=hidden, weight=weight, scores=scores, width=2, impl="triton", **options):
        lm_head_beams(hidden, HeadWeights(weight, **options), scores, width, impl=impl)

    check_never_silent(lambda impl: call(impl=impl))
    with pytest.raises(ValueError, match=r"hidden: expected shape \[B, W >= 1, E\]"):
        call(hidden=hidden[0])
    with pytest.raises(ValueError, match=r"scores: expected shape \[2, 3\], got \[2, 4\]"):
        call(scores=torch.zeros(2, 4, device=kernel_device))
    for impl in ("triton", "reference"):
        with pytest.raises(
            ValueError, match=r"weight: expected shape \[V >= 1, E\], got \[0, 16\]"
        ):
            call(weight=weight[:0], impl=impl)
    with pytest.raises(ValueError, match="width: expected 1 to 64, got 65"):
        call(width=65)
    with pytest.raises(TypeError, match="scores: expected torch.float32 in a kernel"):
        call(scores=scores.half())
    with pytest.raises(ValueError, match="scores: expected at most 64 beams in a kernel, got 65"):
        many = make_beams(1, 65, 16, 150, 0, kernel_device)
        call(*many)
    with pytest.raises(ValueError, match="device: expected all tensors on one device, got"):
        call(scores=scores.to("meta"))
