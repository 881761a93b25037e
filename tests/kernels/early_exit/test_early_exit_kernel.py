"""The kernels of Kangaroo's step against their reference, and the reference against tokens one by one in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from early_exit_steps import (
    DTYPES,
    SHAPES,
    WRITTEN,
    appended,
    assert_kernel_is_no_worse,
    by_hand,
    make_step,
    run,
)
from specdec_kernels.early_exit import HeadWeights, early_exit_step
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_reference_equals_a_float64_computation(shape):
    step = make_step(shape)
    keys, values, logits = by_hand(step)
    found = run(step, "reference")
    for x, y in zip(appended(step, found), (keys, values), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4)
    probabilities = logits.softmax(1).max(1)
    assert torch.equal(found["tokens"], probabilities.indices)
    torch.testing.assert_close(
        found["confidence"].double(), probabilities.values, rtol=1e-4, atol=1e-4
    )


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernel_is_no_less_accurate_than_the_reference(shape, dtype, kernel_device):
    assert_kernel_is_no_worse(make_step(shape, batch=16, dtype=dtype, device=kernel_device))


@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    st.integers(4, 12),
    st.integers(1, 100),
    st.sampled_from([(1, 1), (4, 1), (3, 3), (6, 2)]),
    st.sampled_from([16, 48, 64]),
    st.integers(1, 300),
    st.sampled_from(DTYPES),
    st.integers(0, 10**6),
)
def test_kernel_is_no_less_accurate_on_any_shape(
    kernel_device, batch, size, heads, head_dim, vocabulary, dtype, seed
):
    shape = (size, *heads, head_dim)
    sizes = {"batch": batch, "vocabulary": vocabulary, "slots": 5}
    assert_kernel_is_no_worse(
        make_step(shape, **sizes, dtype=dtype, device=kernel_device, seed=seed)
    )


def test_batch_may_exceed_one_block_of_rows(kernel_device):
    assert_kernel_is_no_worse(
        make_step((32, 2, 1, 16), batch=70, slots=3, vocabulary=40, device=kernel_device)
    )


@pytest.mark.parametrize("theta", [500.0, 10000.0, 500000.0])
def test_rotary_embedding_is_accurate_at_large_positions(theta, kernel_device):
    far = torch.tensor([0, 1, 4095, 8191, 32767, 131071])
    step = make_step((32, 2, 2, 64), batch=6, device=kernel_device, positions=far)
    step["adapter"] = step["adapter"]._replace(rope_theta=theta)
    keys, _, _ = by_hand(step)
    found, reference = (appended(step, run(step, impl))[0] for impl in ("triton", "reference"))
    for row in range(6):
        assert_no_worse(found[row], reference[row], keys[row])


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_stopped_rows_are_unchanged(impl, kernel_device):
    step = make_step(batch=4, device=kernel_device)
    alone = run(step, impl)
    stopped = torch.tensor([False, True, False, True], device=kernel_device)
    hidden = step["hidden"].masked_fill(stopped[:, None], torch.nan)
    found = run(step, impl, stopped=stopped, hidden=hidden)
    for b in range(4):
        row = step["cache_rows"][b]
        for name in WRITTEN:
            at, before = (row if "cache" in name else b), {**step, "stopped": stopped}
            assert torch.equal(found[name][at], (before if stopped[b] else alone)[name][at]), name


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("padding", [[0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_padding_rows_write_nothing(padding, impl, kernel_device):
    step = make_step(batch=4, device=kernel_device)
    step["stopped"][3] = True
    step["appends"] = torch.ones_like(step["stopped"])
    alone = run(step, impl)
    changed = {name: step[name].clone() for name in ("hidden", "prefix_lens", "cache_rows")}
    changed["hidden"][padding] = torch.nan
    changed["prefix_lens"][padding] = 5
    changed["cache_rows"][padding] = -1
    found = run(step, impl, **changed)
    for b in range(4):
        row = step["cache_rows"][b]
        for name in WRITTEN:
            at = row if "cache" in name else b
            assert torch.equal(found[name][at], (step if b in padding else alone)[name][at]), name
    unnamed = [row for row in range(6) if row not in step["cache_rows"]]
    for name in ("k_cache", "v_cache"):
        assert torch.equal(found[name][unnamed], step[name][unnamed])


def test_attention_reads_one_slot_of_a_stopped_row(kernel_device):
    from specdec_kernels.early_exit.kernel import launch_adapter_qkv

    step = make_step(batch=3, slots=9, device=kernel_device)
    step["stopped"][1] = True
    step["prefix_lens"][:] = torch.tensor([4, 5, 1 << 40])
    names = ("hidden", "k_cache", "v_cache", "prefix_lens", "cache_rows", "positions", "stopped")
    with poisoned_empty():
        q, tree = launch_adapter_qkv(
            *(step[name] for name in names), None, *step["adapter"][:4], *step["adapter"][6:]
        )
    # A full cache's last slot is the most that is read.
    assert tree.tolist() == [[4, 0, 8], [1, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert q[1].isnan().all() and not q[0].isnan().any()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_stopped_row_still_appends_its_last_token_to_the_cache(impl, kernel_device):
    step = make_step(batch=3, device=kernel_device)
    running = run(step, impl)
    stopped = torch.ones(3, dtype=torch.bool, device=kernel_device)
    appends = torch.tensor([True, False, True], device=kernel_device)
    found = run(step, impl, stopped=stopped, appends=appends)
    for b in range(3):
        row = step["cache_rows"][b]
        for name in ("k_cache", "v_cache"):
            assert torch.equal(found[name][row], (running if appends[b] else step)[name][row])
    for name in WRITTEN[2:]:
        assert torch.equal(found[name], stopped if name == "stopped" else step[name])


def test_six_steps_without_host_reads_stop_each_row_at_its_threshold(kernel_device):
    """Six steps behind a made-up exit layer, with no look at the results between them."""
    start = make_step(batch=5, slots=20, device=kernel_device, seed=3)
    embedding = torch.randn(150, 64, generator=torch.Generator().manual_seed(9)).to(kernel_device)
    ends = {}
    for impl in ("triton", "reference"):
        step = {**start, "eta": 0.15, "positions": start["prefix_lens"].clone()}
        step |= {name: step[name].clone() for name in ("k_cache", "v_cache", "stopped")}
        tokens = torch.full((5, 7), -1, device=kernel_device)
        confidence = torch.full((5, 6), -1.0, device=kernel_device)
        tokens[:, 0] = torch.arange(5)
        before = step["stopped"].clone()
        for i in range(6):
            # Rows that have stopped run on as padding, on whatever their token is.
            step["hidden"] = embedding[tokens[:, i].clamp(min=0)]
            step["prefix_lens"] = step["positions"].clone()
            now = step["stopped"].clone()
            early_exit_step(
                **{
                    **step,
                    "tokens": tokens[:, i + 1],
                    "confidence": confidence[:, i],
                    "appends": before,
                },
                impl=impl,
            )
            before = now
        ends[impl] = (tokens, step["positions"], step["stopped"]), confidence, step["k_cache"]
    for x, y in zip(ends["triton"][0], ends["reference"][0], strict=True):
        assert torch.equal(x, y)
    for x, y in zip(ends["triton"][1:], ends["reference"][1:], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    (tokens, positions, stopped), confidence, _ = ends["triton"]
    drafted = (tokens[:, 1:] >= 0).sum(1)
    assert torch.equal(positions - start["prefix_lens"], drafted)
    assert drafted.unique().numel() > 1, "rows of one length prove little"
    for b in range(5):
        sure = confidence[b, : drafted[b]] >= 0.15
        assert sure[:-1].all() and bool(sure[-1]) != bool(stopped[b])


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(("eta", "stops"), [(0.0, False), (1.1, True)])
def test_eta_zero_never_stops_and_eta_above_one_always_stops(eta, stops, impl, kernel_device):
    found = run(make_step(device=kernel_device), impl, eta=eta)
    assert (found["stopped"] == stops).all()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_nan_hidden_state_stops_the_row(impl, kernel_device):
    step = make_step(batch=2, device=kernel_device)
    hidden = step["hidden"].clone()
    hidden[0, 3] = torch.nan
    found = run(step, impl, hidden=hidden, eta=0.0)
    assert found["stopped"].tolist() == [True, False]


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_all_minus_infinity_logits_give_confidence_zero(impl, kernel_device):
    bias = torch.full((150,), -torch.inf, device=kernel_device)
    step = make_step(batch=2, device=kernel_device, bias=bias)
    found = run(step, impl)
    assert found["tokens"].tolist() == [0, 0]
    assert found["confidence"].tolist() == [0, 0]
    assert found["stopped"].all()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_infinite_logit_gives_nan_confidence_and_stops(impl, kernel_device):
    bias = torch.zeros(150, device=kernel_device)
    bias[131] = torch.inf
    found = run(make_step(batch=2, device=kernel_device, bias=bias), impl, eta=0.0)
    assert found["tokens"].tolist() == [131, 131]
    assert found["confidence"].isnan().all()
    assert found["stopped"].all()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_full_cache_is_not_written_past_its_end(impl, kernel_device):
    step = make_step(batch=2, slots=6, device=kernel_device)
    wide = torch.full((4, 2, 8, 16), 7.0, device=kernel_device)
    prefix = torch.tensor([6, 1 << 40], device=kernel_device)
    early_exit_step(
        **{**step, "k_cache": wide[:, :, 1:7], "v_cache": wide[:, :, 1:7], "prefix_lens": prefix},
        impl=impl,
    )
    assert (wide == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_supports_bias_id_map_scale_and_softcap(dtype, kernel_device):
    options = {
        "bias": torch.randn(150, generator=torch.Generator().manual_seed(1)).to(
            kernel_device, dtype
        ),
        "id_map": torch.arange(150, device=kernel_device) * 3 + 1,
        "logit_scale": 0.37,
        "softcap": 5.0,
    }
    step = make_step(batch=8, dtype=dtype, device=kernel_device, **options)
    assert_kernel_is_no_worse(step)
    assert (run(step, "triton")["tokens"] % 3 == 1).all()


def test_equal_logits_pick_the_lowest_id(kernel_device):
    step = make_step(batch=2, vocabulary=300, device=kernel_device)
    step["head"] = HeadWeights(torch.zeros(300, 64, device=kernel_device))
    for impl in ("triton", "reference"):
        found = run(step, impl)
        assert found["tokens"].tolist() == [0, 0]
        torch.testing.assert_close(found["confidence"].cpu(), torch.full((2,), 1 / 300))


def test_cache_slots_beyond_the_prefix_are_never_read(kernel_device):
    step = make_step(batch=3, device=kernel_device)
    expected = run(step, "triton")
    beyond = torch.ones(step["k_cache"].shape[:3], dtype=torch.bool, device=kernel_device)
    for row, prefix in zip(step["cache_rows"], step["prefix_lens"], strict=True):
        beyond[row, :, :prefix] = False
    dirty = {
        name: step[name].masked_fill(beyond[..., None], torch.nan)
        for name in ("k_cache", "v_cache")
    }
    found = run(step, "triton", **dirty)
    for name in WRITTEN[2:]:
        assert torch.equal(found[name], expected[name])


def test_result_of_a_row_is_bit_identical_in_any_batch(kernel_device):
    step = make_step(batch=5, dtype=torch.bfloat16, device=kernel_device)
    whole, again = run(step, "triton"), run(step, "triton")
    for name in WRITTEN:
        assert torch.equal(whole[name], again[name])
    rows = ("hidden", "prefix_lens", "positions", "stopped", "tokens", "confidence", "cache_rows")
    alone = run({**step, **{name: step[name][2:3] for name in rows}}, "triton")
    for name in WRITTEN[2:]:
        assert torch.equal(alone[name], whole[name][2:3])
