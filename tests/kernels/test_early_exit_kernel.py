"""The kernels of Kangaroo's step against their reference, and the reference against tokens one by one in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import check_compiles_whole, check_never_silent, check_op
from specdec_kernels import EarlyExitAdapter, LMHeadTopK, tree_attention
from specdec_kernels._ops import ops
from specdec_kernels.early_exit import AdapterWeights, HeadWeights, early_exit_step
from specdec_kernels.early_exit.reference import functional_parts
from specdec_kernels.lm_head.reference import finish_logits
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WRITTEN = ("k_cache", "v_cache", "positions", "stopped", "tokens", "confidence")
# Size, query heads, K/V heads, size of a head.
SHAPES = {"E64-H4-G2-D16": (64, 4, 2, 16), "E63-H3-G1-D32": (63, 3, 1, 32), "E130-H2-G2-D80": (130, 2, 2, 80)}  # fmt: skip


def make_step(
    shape=SHAPES["E64-H4-G2-D16"],
    *,
    batch=3,
    slots=12,
    vocabulary=150,
    dtype=torch.float32,
    device="cpu",
    seed=0,
    positions=None,
    **head,
):
    """All arguments of `early_exit_step` by name, for rows of several lengths in a cache with more rows."""
    size, heads, kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, scale=1.0):
        numbers = torch.randn(sizes, generator=generator) * scale
        return numbers.to(device, dtype)

    def weight(*sizes):
        return normal(*sizes, scale=sizes[1] ** -0.5)

    wide, narrow = heads * head_dim, kv_heads * head_dim
    adapter = AdapterWeights(
        1 + normal(size, scale=0.2), weight(wide, size), weight(narrow, size),
        weight(narrow, size), weight(size, wide), 1 + normal(size, scale=0.2), 500.0, 1e-6,
    )  # fmt: skip
    kv = normal(2, batch + 2, kv_heads, slots, head_dim)
    prefix = torch.randint(0, slots, (batch,), generator=generator)
    return {
        "hidden": normal(batch, size),
        "k_cache": kv[0],
        "v_cache": kv[1],
        "adapter": adapter,
        "head": HeadWeights(3 * weight(vocabulary, size), round_to=dtype)._replace(**head),
        "prefix_lens": prefix.to(device),
        "positions": (prefix + 5 if positions is None else positions).to(device),
        "stopped": torch.zeros(batch, dtype=torch.bool, device=device),
        "tokens": torch.full((batch,), -1, device=device),
        "confidence": torch.full((batch,), -1.0, device=device),
        "eta": 0.1,
        "cache_rows": torch.randperm(batch + 2, generator=generator)[:batch].to(device),
        "appends": None,
    }


def run(step, impl, **changed):
    """Run on copies of what is written, and return those."""
    step = {**step, **changed}
    copies = {name: step[name].clone() for name in WRITTEN}
    with poisoned_empty():
        early_exit_step(**{**step, **copies}, impl=impl)
    return copies


def by_hand(step):
    """One row after another in float64: appended keys and values, logits."""
    adapter = AdapterWeights(*(x.double() for x in step["adapter"][:6]), *step["adapter"][6:])
    keys, values, logits = [], [], []
    for b, hidden in enumerate(step["hidden"].double()):
        row, prefix = int(step["cache_rows"][b]), int(step["prefix_lens"][b])
        k_cache, v_cache = (step[name][row, :, :prefix].double() for name in ("k_cache", "v_cache"))
        kv_heads, _, size = k_cache.shape
        turn = torch.polar(
            torch.ones(size // 2, dtype=torch.float64, device=hidden.device),
            float(step["positions"][b])
            / adapter.rope_theta
            ** (torch.arange(0, size, 2, dtype=torch.float64, device=hidden.device) / size),
        )

        def rotated(x, turn=turn, half=size // 2):
            pairs = torch.complex(x[:, :half].contiguous(), x[:, half:].contiguous()) * turn
            return torch.cat([pairs.real, pairs.imag], 1)

        def normed(x, weight):
            return weight * x / (x.square().mean() + adapter.norm_eps).sqrt()

        x = normed(hidden, adapter.input_norm)
        q, k, v = ((w @ x).view(-1, size) for w in (adapter.q_proj, adapter.k_proj, adapter.v_proj))
        q, k = rotated(q), rotated(k)
        all_k, all_v = (
            torch.cat([cache, new[:, None]], 1) for cache, new in ((k_cache, k), (v_cache, v))
        )
        group = len(q) // kv_heads
        heads = [
            torch.softmax(all_k[h // group] @ one * size**-0.5, 0) @ all_v[h // group]
            for h, one in enumerate(q)
        ]
        y = normed(hidden + adapter.o_proj @ torch.cat(heads), adapter.output_norm)
        keys.append(k)
        values.append(v)
        logits.append(step["head"].weight.double() @ y)
    return torch.stack(keys), torch.stack(values), finished(step["head"], torch.stack(logits))


def finished(head, logits):
    if head.bias is not None:
        logits = logits + head.bias
    rounding = None if logits.dtype == torch.float64 else head.round_to
    return finish_logits(
        logits, logit_scale=head.logit_scale, softcap=head.softcap, round_to=rounding
    )


def logits_error(step, exact):
    """How far the reference's own logits are from the truth, at most."""
    prefix, rows = step["prefix_lens"], step["cache_rows"]
    project, finish, _ = functional_parts(step["adapter"], step["head"], step["k_cache"].shape[-1])
    hidden = step["hidden"][:, None]
    q, k, v = project(hidden, step["positions"][:, None])
    caches = [step["k_cache"].clone(), step["v_cache"].clone()]
    for cache, new in zip(caches, (k, v), strict=True):
        cache[rows, :, prefix] = new[:, :, 0]
    one = torch.ones_like(prefix)[:, None, None]
    attended = tree_attention(
        q, *caches, prefix_lens=prefix, ancestors=one, depth=one[..., 0] - 1, cache_rows=rows,
        impl="reference",
    )  # fmt: skip
    logits = finish(hidden, attended)[:, 0] @ step["head"].weight.T
    return (finished(step["head"], logits).double() - exact).abs().amax()


def appended(step, found):
    """The slots that the step's tokens belong in."""
    at = (step["cache_rows"], slice(None), step["prefix_lens"])
    return found["k_cache"][at], found["v_cache"][at]


def assert_kernel_is_no_worse(step):
    keys, values, logits = by_hand(step)
    found, reference = run(step, "triton"), run(step, "reference")
    for x, y, z in zip(
        appended(step, found), appended(step, reference), (keys, values), strict=True
    ):
        assert_no_worse(x, y, z)
    # With every logit at most twice as wrong as the reference's worst one, two of them decide a choice, and one of them
    # and all of them a probability.
    allowed = 4 * logits_error(step, logits) + 8 * torch.finfo(torch.float32).eps
    ids = found["tokens"] if step["head"].id_map is None else (found["tokens"] - 1) // 3
    chosen = logits.gather(1, ids[:, None])[:, 0]
    assert (logits.amax(1) - chosen <= allowed).all()
    exact = chosen - logits.logsumexp(1)
    assert ((found["confidence"].double().log() - exact).abs() <= allowed).all()
    assert torch.equal(found["positions"], step["positions"] + 1)
    assert torch.equal(found["stopped"], found["confidence"] < step["eta"])
    # Nothing else of the cache has changed.
    for name in ("k_cache", "v_cache"):
        found[name][step["cache_rows"], :, step["prefix_lens"]] = 0
        before = step[name].clone()
        before[step["cache_rows"], :, step["prefix_lens"]] = 0
        assert torch.equal(found[name], before)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_reference_is_the_mathematics(shape):
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernel_is_as_exact_as_the_reference(shape, dtype, kernel_device):
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
def test_kernel_is_as_exact_on_any_shape(
    kernel_device, batch, size, heads, head_dim, vocabulary, dtype, seed
):
    shape = (size, *heads, head_dim)
    sizes = {"batch": batch, "vocabulary": vocabulary, "slots": 5}
    assert_kernel_is_no_worse(
        make_step(shape, **sizes, dtype=dtype, device=kernel_device, seed=seed)
    )


def test_more_rows_than_one_block_holds(kernel_device):
    assert_kernel_is_no_worse(
        make_step((32, 2, 1, 16), batch=70, slots=3, vocabulary=40, device=kernel_device)
    )


@pytest.mark.parametrize("theta", [500.0, 10000.0, 500000.0])
def test_far_positions_turn_as_exactly_as_near_ones(theta, kernel_device):
    far = torch.tensor([0, 1, 4095, 8191, 32767, 131071])
    step = make_step((32, 2, 2, 64), batch=6, device=kernel_device, positions=far)
    step["adapter"] = step["adapter"]._replace(rope_theta=theta)
    keys, _, _ = by_hand(step)
    found, reference = (appended(step, run(step, impl))[0] for impl in ("triton", "reference"))
    for row in range(6):
        assert_no_worse(found[row], reference[row], keys[row])


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_row_that_has_stopped_keeps_all_it_has(impl, kernel_device):
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


def test_attention_reads_one_slot_of_a_row_that_has_stopped(kernel_device):
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
    assert tree.tolist() == [[4, 0, 8], [1, 1, 1], [0, 0, 0]]
    assert q[1].isnan().all() and not q[0].isnan().any()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_token_that_stopped_a_row_is_still_appended(impl, kernel_device):
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


def test_a_draft_of_fixed_length_stops_where_it_should(kernel_device):
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
def test_eta_decides(eta, stops, impl, kernel_device):
    found = run(make_step(device=kernel_device), impl, eta=eta)
    assert (found["stopped"] == stops).all()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_nan_is_no_confidence(impl, kernel_device):
    step = make_step(batch=2, device=kernel_device)
    hidden = step["hidden"].clone()
    hidden[0, 3] = torch.nan
    found = run(step, impl, hidden=hidden, eta=0.0)
    assert found["stopped"].tolist() == [True, False]


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_full_cache_is_not_written_beyond(impl, kernel_device):
    step = make_step(batch=2, slots=6, device=kernel_device)
    wide = torch.full((4, 2, 8, 16), 7.0, device=kernel_device)
    prefix = torch.tensor([6, 1 << 40], device=kernel_device)
    early_exit_step(
        **{**step, "k_cache": wide[:, :, 1:7], "v_cache": wide[:, :, 1:7], "prefix_lens": prefix},
        impl=impl,
    )
    assert (wide == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_heads_options_are_those_of_lm_head(dtype, kernel_device):
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


def test_equal_logits_give_the_lowest_id(kernel_device):
    step = make_step(batch=2, vocabulary=300, device=kernel_device)
    step["head"] = HeadWeights(torch.zeros(300, 64, device=kernel_device))
    for impl in ("triton", "reference"):
        found = run(step, impl)
        assert found["tokens"].tolist() == [0, 0]
        torch.testing.assert_close(found["confidence"].cpu(), torch.full((2,), 1 / 300))


def test_what_lies_beyond_the_prefix_is_never_read(kernel_device):
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


def test_a_row_has_the_same_bits_beside_any_others(kernel_device):
    step = make_step(batch=5, dtype=torch.bfloat16, device=kernel_device)
    whole, again = run(step, "triton"), run(step, "triton")
    for name in WRITTEN:
        assert torch.equal(whole[name], again[name])
    rows = ("hidden", "prefix_lens", "positions", "stopped", "tokens", "confidence", "cache_rows")
    alone = run({**step, **{name: step[name][2:3] for name in rows}}, "triton")
    for name in WRITTEN[2:]:
        assert torch.equal(alone[name], whole[name][2:3])


def spaced(x):
    """The same entries, each with another behind it."""
    return torch.stack([x, x + 1 if x.dtype == torch.int64 else ~x], 1)[:, 0]


def test_caches_indices_and_results_may_be_slices(kernel_device):
    step = make_step(batch=3, device=kernel_device)
    expected = run(step, "triton")
    kv = torch.full((2, 5, 12, 2, 20), torch.nan, device=kernel_device).transpose(2, 3)
    for i, name in enumerate(("k_cache", "v_cache")):
        kv[i, ..., :16] = step[name]
    id_map = torch.arange(300, device=kernel_device).view(150, 2)[:, 0]
    expected["tokens"] *= 2
    out = torch.full((3, 4), -1, device=kernel_device)
    sure = torch.full((3, 4), -1.0, device=kernel_device)
    positions, stopped = step["positions"].clone(), step["stopped"].clone()
    hidden = torch.stack([step["hidden"]] * 2, 1)[:, 0]
    early_exit_step(
        **{
            **step, "hidden": hidden, "k_cache": kv[0, ..., :16], "v_cache": kv[1, ..., :16],
            "positions": positions, "stopped": stopped, "tokens": out[:, 2], "confidence": sure[:, 2],
            "head": step["head"]._replace(id_map=id_map),
            "prefix_lens": spaced(step["prefix_lens"]), "cache_rows": spaced(step["cache_rows"]),
            "appends": spaced(~step["stopped"]),
        },
        impl="triton",
    )  # fmt: skip
    found = {
        "k_cache": kv[0, ..., :16], "v_cache": kv[1, ..., :16], "positions": positions,
        "stopped": stopped, "tokens": out[:, 2], "confidence": sure[:, 2],
    }  # fmt: skip
    for name in WRITTEN:
        assert torch.equal(found[name], expected[name]), name
    assert (out[:, [0, 1, 3]] == -1).all() and kv[..., 16:].isnan().all()


def test_rows_of_the_cache_may_go_in_order(kernel_device):
    step = make_step(batch=3, device=kernel_device)
    order = torch.arange(3, device=kernel_device)
    named, unnamed = (run(step, "triton", cache_rows=rows) for rows in (order, None))
    for name in WRITTEN:
        assert torch.equal(named[name], unnamed[name])


def test_the_modules_step_is_its_parts(kernel_device):
    torch.manual_seed(0)
    module = EarlyExitAdapter(64, 4, 2, 16, rope_theta=500.0).to(kernel_device)
    head = LMHeadTopK(torch.nn.Linear(64, 90, bias=False)).to(kernel_device)
    step = make_step(device=kernel_device, vocabulary=90)
    del step["adapter"], step["head"]
    hidden, at = step["hidden"][:, None], step["positions"][:, None]
    with torch.no_grad():
        q, k, v = module.project(hidden, at)
        k_cache, v_cache = step["k_cache"].clone(), step["v_cache"].clone()
        k_cache[step["cache_rows"], :, step["prefix_lens"]] = k[:, :, 0]
        v_cache[step["cache_rows"], :, step["prefix_lens"]] = v[:, :, 0]
        nodes = {
            "prefix_lens": step["prefix_lens"], "cache_rows": step["cache_rows"],
            "ancestors": torch.ones_like(at)[..., None], "depth": torch.zeros_like(at),
        }  # fmt: skip
        read, again = (
            module.attend(hidden, q, k_cache, v_cache, **nodes, impl=impl)
            for impl in ("reference", "triton")
        )
        torch.testing.assert_close(read, again)
        check_never_silent(
            lambda impl: module.attend(hidden, q, k_cache, v_cache, **nodes, impl=impl)
        )
        sure = head.confidence(read[:, 0])
        for impl in ("auto", "reference", "triton"):
            found = {name: step[name].clone() for name in WRITTEN}
            module.step(**{**step, **found}, head=head, impl=impl)
            assert torch.equal(found["tokens"], sure.tokens)
            torch.testing.assert_close(found["confidence"], sure.confidence)
            torch.testing.assert_close(found["k_cache"], k_cache)
            torch.testing.assert_close(found["v_cache"], v_cache)


def flat(step):
    """The op's own arguments."""
    names = (
        "hidden", "k_cache", "v_cache", "prefix_lens", "cache_rows", "positions", "stopped",
        "appends", "tokens", "confidence",
    )  # fmt: skip
    return *(step[name] for name in names), *step["adapter"], *step["head"], step["eta"]


def test_op_is_registered_as_torch_wants(kernel_device):
    step = make_step(batch=2, vocabulary=40, slots=4, device=kernel_device)
    check_op(ops.early_exit_step, *flat(step))
    step = make_step(
        batch=2, vocabulary=40, slots=4, dtype=torch.float16, device=kernel_device,
        softcap=3.0, id_map=torch.arange(40, device=kernel_device),
    )  # fmt: skip
    for name in ("k_cache", "v_cache"):
        step[name] = step[name].transpose(1, 2).contiguous().transpose(1, 2)
    for name in ("tokens", "confidence"):
        step[name] = torch.stack([step[name]] * 2, 1)[:, 0]
    step |= {"cache_rows": None, "appends": torch.ones_like(step["stopped"])}
    check_op(ops.early_exit_step, *flat(step))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_compiles_whole(impl, kernel_device):
    def step(
        hidden, k_cache, v_cache, prefix_lens, positions, stopped, tokens, confidence, *others
    ):
        written = [x.clone() for x in (k_cache, v_cache, positions, stopped, tokens, confidence)]
        k_cache, v_cache, positions, stopped, tokens, confidence = written
        adapter, head = others
        early_exit_step(
            hidden, k_cache, v_cache, adapter, head,
            prefix_lens=prefix_lens, positions=positions, stopped=stopped, tokens=tokens,
            confidence=confidence, eta=0.1, impl=impl,
        )  # fmt: skip
        return written

    def apart(made):
        # Inductor 2.13 reads a copy of a view as if the view began its storage; the caches are views of one tensor.
        return made | {name: made[name].clone() for name in ("k_cache", "v_cache")}

    names = ("hidden", "k_cache", "v_cache", "prefix_lens", *WRITTEN[2:], "adapter", "head")
    check_compiles_whole(
        step,
        *(
            tuple(made[name] for name in names)
            for made in (
                apart(make_step(batch=2, slots=5, device=kernel_device)),
                apart(make_step(batch=3, slots=7, device=kernel_device)),
            )
        ),
    )


def test_bad_arguments_are_named(kernel_device):
    step = make_step(batch=2, device=kernel_device)
    adapter, head = step["adapter"], step["head"]

    def call(impl="triton", **changed):
        early_exit_step(**{**step, **changed}, impl=impl)

    check_never_silent(lambda impl: call(impl=impl))
    for changed, message in (
        ({"hidden": step["hidden"][0]}, r"hidden: expected shape \[B >= 1, E\], got \[64\]"),
        ({"k_cache": step["k_cache"][..., :15]}, r"k_cache, v_cache: expected two tensors"),
        (
            {name: step[name][:, :0] for name in ("k_cache", "v_cache")},
            r"k_cache, v_cache: expected .* none of these 0 and D even, got \[4, 0, 12, 16\]",
        ),
        (
            {name: step[name][..., :0] for name in ("k_cache", "v_cache")},
            r"k_cache, v_cache: expected .* none of these 0 and D even, got \[4, 2, 12, 0\]",
        ),
        ({"tokens": step["tokens"][:1]}, r"tokens: expected shape \[2\], got \[1\]"),
        (
            {"cache_rows": None, "k_cache": step["k_cache"][:1], "v_cache": step["v_cache"][:1]},
            "hidden: expected at most 1 rows as in k_cache, got 2",
        ),
        (
            {"adapter": adapter._replace(q_proj=adapter.q_proj[:48])},
            r"q_proj: expected shape \[H \* 16, 64\] with H a multiple of 2, got \[48, 64\]",
        ),
        (
            {"adapter": adapter._replace(o_proj=adapter.o_proj[:, :5])},
            r"o_proj: expected shape \[64, 64\], got \[64, 5\]",
        ),
        (
            {"adapter": adapter._replace(q_proj=torch.cat([adapter.q_proj] * 2, 1)[:, :64])},
            "q_proj: expected contiguous, got strides",
        ),
        ({"adapter": adapter._replace(rope_theta=0.0)}, "rope_theta: expected above 0, got 0.0"),
        ({"head": head._replace(weight=head.weight[:, :5])}, r"head.weight: expected shape \[V"),
        ({"head": head._replace(bias=head.weight[:3, 0])}, r"head.bias: expected shape \[150\]"),
        ({"positions": torch.zeros(4, dtype=torch.int64)[::2]}, "positions: expected contiguous"),
        ({"stopped": step["stopped"].to("meta")}, "device: expected all tensors on one device"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**changed)
    for changed, message in (
        ({"stopped": step["stopped"].int()}, "stopped: expected torch.bool, got torch.int32"),
        (
            {"prefix_lens": step["prefix_lens"].int()},
            "prefix_lens: expected int64, got torch.int32",
        ),
        ({"confidence": step["confidence"].half()}, "confidence: expected torch.float32, got"),
        (
            {"hidden": step["hidden"].half()},
            "k_cache: expected torch.float16 as hidden, got torch.float32",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call(**changed)


def test_what_no_kernel_can_do_is_refused_before_the_cache_is_written(kernel_device):
    step = make_step((16, 1, 1, 258), batch=2, slots=3, vocabulary=20, device=kernel_device)
    before = step["k_cache"].clone(), step["v_cache"].clone()
    with pytest.raises(
        ValueError, match="k_cache: expected heads of at most 256 in a kernel, got 258"
    ):
        early_exit_step(**step, impl="triton")
    run(step, "reference")
    rounded = {**step, "head": step["head"]._replace(round_to=torch.float64)}
    for name in ("k_cache", "v_cache"):
        rounded[name] = step[name][..., :256]
    adapter = {
        f"{name}_proj": getattr(step["adapter"], f"{name}_proj")[:256] for name in ("q", "k", "v")
    }
    rounded["adapter"] = step["adapter"]._replace(
        **adapter, o_proj=step["adapter"].o_proj[:, :256].contiguous()
    )
    with pytest.raises(TypeError, match="head.round_to: expected float32, float16 or bfloat16"):
        early_exit_step(**rounded, impl="triton")
    for x, y in zip(before, (step["k_cache"], step["v_cache"]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("head_dim", [2, 6, 34])
def test_heads_may_have_any_even_size(head_dim, kernel_device):
    assert_kernel_is_no_worse(make_step((40, 4, 2, head_dim), batch=16, device=kernel_device))


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@torch.no_grad()
def test_the_modules_step_refuses_what_the_op_does(impl, kernel_device):
    module = EarlyExitAdapter(64, 4, 2, 16).to(kernel_device)
    head = LMHeadTopK(torch.nn.Linear(64, 90, bias=False)).to(kernel_device)
    step = make_step(device=kernel_device, vocabulary=90)
    del step["adapter"]
    step["head"] = head
    for name in ("prefix_lens", "positions", "cache_rows"):
        with pytest.raises(ValueError, match=rf"{name}: expected shape \[3\], got \[1\]"):
            module.step(**{**step, name: step[name][:1]}, impl=impl)
    with pytest.raises(TypeError, match="stopped: expected torch.bool, got torch.int32"):
        module.step(**{**step, "stopped": step["stopped"].int()}, impl=impl)
    with pytest.raises(ValueError, match="device: expected all tensors on one device"):
        module.step(**{**step, "tokens": step["tokens"].to("meta")}, impl=impl)
    check_never_silent(lambda impl: module.step(**step, impl=impl))
