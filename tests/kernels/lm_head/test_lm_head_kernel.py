"""The head's kernels against the reference, which other tests hold against the whole distribution."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from head_problems import DTYPES, all_log_probs, assert_as_good, extreme_logits, make_head, run
from specdec_kernels import HeadWeights, lm_head_confidence, lm_head_topk
from specdec_kernels.early_exit import rms_norm
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import INTEGER_POISON, poisoned_empty


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "size", "vocabulary", "k"),
    [
        (1, 16, 1, 1),
        (3, 64, 257, 64),
        (17, 65, 300, 5),
        (33, 128, 128, 3),
        (65, 63, 129, 2),
        (130, 20, 140, 3),
    ],
)
def test_ids_equal_the_reference_where_sums_are_exact(
    dtype, rows, size, vocabulary, k, kernel_device
):
    hidden, weight = make_head(rows, size, vocabulary, dtype, k, kernel_device, integers=1)
    found = run(hidden, weight, k, round_to=dtype)
    expected = lm_head_topk(hidden, HeadWeights(weight, round_to=dtype), k, impl="reference")
    assert torch.equal(found.ids, expected.ids)
    _, (exact, exact_logsumexp) = all_log_probs(hidden, HeadWeights(weight))
    assert_no_worse(found.log_probs, expected.log_probs, exact.gather(1, found.ids))
    assert_no_worse(found.logsumexp, expected.logsumexp, exact_logsumexp)


OPTIONS = [
    {},
    {"round_to": True},
    {"round_to": True, "bias": True},
    {"logit_scale": 0.3, "softcap": 3.0},
    {"round_to": True, "logit_scale": 0.3, "bias": True},
    {"round_to": True, "softcap": 3.0},
]


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kernel_is_no_less_accurate_than_the_reference(dtype, options, kernel_device):
    hidden, weight = make_head(9, 100, 200, dtype, len(str(options)), kernel_device)
    options = dict(options)
    if "round_to" in options:
        options["round_to"] = dtype
    if "bias" in options:
        generator = torch.Generator().manual_seed(7)
        options["bias"] = torch.randn(200, generator=generator).to(kernel_device, dtype)
    assert_as_good(hidden, weight, 7, **options)


@pytest.mark.sampled
@pytest.mark.parametrize("round_to", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_round_to_the_input_dtype_then_to_round_to(dtype, round_to, kernel_device):
    hidden, weight = make_head(5, 64, 130, dtype, 3, kernel_device)
    assert_as_good(hidden, weight, 5, round_to=round_to, softcap=5.0)


def test_softcap_keeps_logits_near_zero_accurate(kernel_device):
    hidden, weight = make_head(4, 32, 100, torch.float32, 1, kernel_device)
    for scale in (1e-6, 1e-3, 0.3, 1.0, 30.0):
        assert_as_good(hidden * scale, weight, 3, softcap=2.0)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 20), st.integers(1, 70), st.integers(1, 280), st.integers(1, 8),
    st.integers(1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_ids_equal_the_reference_for_any_shape(
    kernel_device, rows, size, vocabulary, k, integers, seed
):
    assume(k <= vocabulary)
    hidden, weight = make_head(rows, size, vocabulary, torch.float32, seed, kernel_device, integers)
    id_map = torch.randperm(10 * vocabulary, generator=torch.Generator().manual_seed(seed))
    id_map = id_map[:vocabulary].to(kernel_device)
    found = run(hidden, weight, k, id_map=id_map)
    expected = lm_head_topk(hidden, HeadWeights(weight, id_map=id_map), k, impl="reference")
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    torch.testing.assert_close(found.logsumexp, expected.logsumexp)


def test_merge_handles_more_tiles_than_one_load(kernel_device, monkeypatch):
    from specdec_kernels.lm_head import merge

    monkeypatch.setattr(merge, "CHUNK", 16)
    hidden, weight = make_head(1, 1, 36 * 128, torch.float32, 0, kernel_device)
    assert_as_good(hidden, weight, 2)


def test_all_results_may_come_from_one_tile(kernel_device):
    hidden = torch.ones(2, 16, device=kernel_device)
    weight = torch.zeros(400, 16, device=kernel_device)
    weight[130:194] = 1  # all in the second tile, and equal
    found = run(hidden, weight, 64)
    assert found.ids.tolist() == [list(range(130, 194))] * 2


def test_minus_infinity_logits_add_no_probability(kernel_device):
    hidden, weight = make_head(3, 32, 300, torch.float32, 2, kernel_device)
    bias = torch.zeros(300, device=kernel_device)
    bias[:270] = -torch.inf  # two whole tiles and part of the third
    found = run(hidden, weight, 4, bias=bias)
    allowed = lm_head_topk(hidden, weight[270:], 4, impl="reference")
    assert torch.equal(found.ids, allowed.ids + 270)
    torch.testing.assert_close(found.log_probs, allowed.log_probs)
    torch.testing.assert_close(found.logsumexp, allowed.logsumexp)
    # Where fewer are allowed than wanted, the first forbidden ones follow.
    bias[272:] = -torch.inf
    found = run(hidden, weight, 4, bias=bias)
    assert sorted(found.ids[0, :2].tolist()) == [270, 271] and found.ids[0, 2:].tolist() == [0, 1]
    assert found.log_probs[:, 2:].isneginf().all() and found.log_probs[:, :2].isfinite().all()


def test_nan_reaches_the_result_of_its_row_only(kernel_device):
    hidden, weight = make_head(3, 32, 300, torch.float32, 4, kernel_device)
    clean = run(hidden, weight, 3)
    hidden[1] = torch.nan
    found = run(hidden, weight, 3)
    assert found.log_probs[1].isnan().all() and found.logsumexp[1].isnan()
    assert found.ids[1].tolist() == [0, 1, 2]
    for x, y in zip(found, clean, strict=True):
        assert torch.equal(x[::2], y[::2])


def test_nan_beside_minus_infinity_reaches_the_result(kernel_device):
    hidden, weight = make_head(2, 32, 300, torch.float32, 5, kernel_device)
    bias = torch.zeros(300, device=kernel_device)
    bias[128:256] = -torch.inf  # a tile whose maximum, where that passes over NaN, is -inf
    bias[130] = torch.nan
    found = run(hidden, weight, 3, bias=bias)
    assert found.log_probs.isnan().all() and found.logsumexp.isnan().all()
    assert (found.ids[:, 0] == 130).all()


@pytest.mark.parametrize("k", [1, 2, 20])
@pytest.mark.parametrize("name", extreme_logits(1))
def test_extreme_logits_equal_the_reference(name, k, kernel_device):
    """Ids, log-probabilities, logsumexp and confidence, also as torch would have them."""
    logits = extreme_logits(300)[name].to(kernel_device)
    hidden, weight = torch.zeros(2, 16, device=kernel_device), torch.zeros(300, 16)
    weight = weight.to(kernel_device)
    found = run(hidden, weight, k, bias=logits)

    def reference():
        return lm_head_topk(hidden, HeadWeights(weight, logits), k, impl="reference")

    for expected in (reference(), torch.compile(reference, backend="eager", fullgraph=True)()):
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.log_probs, expected.log_probs, equal_nan=True)
        torch.testing.assert_close(found.logsumexp, expected.logsumexp, equal_nan=True)
    order = sorted(range(300), key=lambda i: (not logits[i].isnan(), -logits[i].nan_to_num(0), i))
    assert found.ids[0].tolist() == order[:k]
    if name.startswith("nothing") and not name.endswith(("nan", "inf")):
        torch.testing.assert_close(found.logsumexp, logits.logsumexp(0).expand(2))
        certain = torch.where(logits == -torch.inf, 0.0, 1.0)[found.ids]
        assert torch.equal(found.log_probs.exp(), certain)
    else:
        assert found.log_probs.isnan().all() and found.logsumexp.isnan().all()
    for impl in ("triton", "reference"):
        sure = lm_head_confidence(hidden, HeadWeights(weight, logits), impl=impl)
        assert torch.equal(sure.tokens, found.ids[:, 0])
        torch.testing.assert_close(
            sure.confidence, found.log_probs[:, 0].exp(), equal_nan=True, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("tile", [0, 1, 1029])
def test_merge_keeps_a_nan_sum_of_a_tile_whose_maximum_is_minus_infinity(tile, kernel_device):
    from specdec_kernels.lm_head.merge import launch_merge_rows

    # Keys of zeros, each tile's first token.
    keys = (2**32 - 1 - 128 * torch.arange(1030, device=kernel_device))[None, :, None]
    maxima, sums = (torch.full((1, 1030), x, device=kernel_device) for x in (-torch.inf, 0.0))
    maxima[0, 5], sums[0, 5] = 2.0, 1.0
    assert launch_merge_rows(keys, maxima, sums, None)[2].tolist() == [2.0]
    sums[0, tile] = torch.nan
    assert launch_merge_rows(keys, maxima, sums, None)[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_may_be_strided_with_garbage_between_rows(dtype, kernel_device):
    hidden, weight = make_head(5, 40, 150, dtype, 6, kernel_device)
    bias = torch.zeros(150, 2, device=kernel_device, dtype=dtype)[:, 0]
    wide = [
        torch.full((len(x), 50), torch.nan, dtype=dtype, device=kernel_device)
        for x in (hidden, weight)
    ]
    for x, y in zip(wide, (hidden, weight), strict=True):
        x[:, 3:43] = y
    sliced = [x[:, 3:43] for x in wide]
    id_map = torch.arange(300, device=kernel_device).view(150, 2)[:, 0]
    found, expected = run(*sliced, 4, bias=bias, id_map=id_map), run(hidden, weight, 4)
    assert torch.equal(found.ids, 2 * expected.ids)
    for x, y in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(x, y)


def test_repeated_runs_are_bit_identical(kernel_device):
    hidden, weight = make_head(20, 96, 400, torch.float16, 8, kernel_device)
    for x, y in zip(run(hidden, weight, 5), run(hidden, weight, 5), strict=True):
        assert torch.equal(x, y)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, 100])
def test_fused_rms_norm_equals_norm_then_head(dtype, size, kernel_device):
    from specdec_kernels.lm_head.kernel import launch_head_tiles
    from specdec_kernels.lm_head.merge import launch_merge_rows

    hidden, weight = make_head(9, size, 200, dtype, 9, kernel_device)
    hidden *= 3
    norm_weight = make_head(1, size, 1, dtype, 10, kernel_device)[0][0]
    with poisoned_empty():
        lists = launch_head_tiles(
            hidden, HeadWeights(weight), 4, norm_weight=norm_weight, norm_eps=1e-3
        )
        ids, log_probs, _ = launch_merge_rows(*lists, None)
    normed = rms_norm(hidden, norm_weight, 1e-3)
    exact = rms_norm(hidden.double(), norm_weight.double(), 1e-3) @ weight.double().T
    reference = (normed.float() @ weight.float().T).log_softmax(-1)
    assert_no_worse(log_probs, reference.gather(1, ids), exact.log_softmax(-1).gather(1, ids))
    differ = ids != reference.topk(4).indices
    assert differ.float().mean() <= 0.05


def test_blocks_of_stopped_rows_are_skipped(kernel_device):
    from specdec_kernels.lm_head.kernel import launch_head_tiles

    hidden, weight = make_head(70, 32, 130, torch.float32, 11, kernel_device)
    stopped = torch.zeros(70, dtype=torch.bool, device=kernel_device)
    stopped[1:64] = True
    stopped[64:] = True  # the whole second block
    with poisoned_empty():
        skipped = launch_head_tiles(hidden, HeadWeights(weight), 2, stopped=stopped)
        full = launch_head_tiles(hidden, HeadWeights(weight), 2)
    for x, y in zip(skipped, full, strict=True):
        assert torch.equal(x[:64], y[:64])
    keys, maxima, sums = skipped
    assert (keys[64:] == INTEGER_POISON).all()
    assert maxima[64:].isnan().all() and sums[64:].isnan().all()
