"""The early-exit step as an op: strides, registration, compilation and errors."""

import math
import re

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code

from early_exit_steps import (
    WRITTEN,
    assert_kernel_is_no_worse,
    make_step,
    run,
)
from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels._ops import ops
from specdec_kernels.early_exit import early_exit_step


def spaced(x):
    """The same entries, each with another behind it."""
    return torch.stack([x, x + 1 if x.dtype == torch.int64 else ~x], 1)[:, 0]


def test_caches_indices_and_results_may_be_strided(kernel_device):
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


def test_cache_rows_default_to_batch_order(kernel_device):
    step = make_step(batch=3, device=kernel_device)
    order = torch.arange(3, device=kernel_device)
    named, unnamed = (run(step, "triton", cache_rows=rows) for rows in (order, None))
    for name in WRITTEN:
        assert torch.equal(named[name], unnamed[name])


def flat(step):
    """The op's own arguments."""
    names = (
        "hidden", "k_cache", "v_cache", "prefix_lens", "cache_rows", "positions", "stopped",
        "appends", "tokens", "confidence",
    )  # fmt: skip
    return *(step[name] for name in names), *step["adapter"], *step["head"], step["eta"]


def test_op_passes_opcheck(kernel_device):
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


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
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
        dynamic=dynamic,
    )


LARGEST = re.compile(r"= empty_strided_\w+\(\(([\d, ]*)\)")


@pytest.mark.parametrize(("columns", "steps"), [(12, 1), (9, 3)], ids=["whole", "sliced"])
def test_compiled_graph_does_not_copy_caches_that_share_storage(columns, steps, kernel_device):
    step = make_step(batch=3, device=kernel_device)
    del step["k_cache"], step["v_cache"]
    step["prefix_lens"] = step["prefix_lens"] % (columns - steps)

    def draft(kv, positions, stopped, tokens, confidence):
        keys, values = kv[0][:, :, :columns], kv[1][:, :, :columns]
        written = {"positions": positions, "stopped": stopped}
        for i in range(steps):
            early_exit_step(
                k_cache=keys, v_cache=values, impl="triton",
                **{**step, **written, "prefix_lens": step["prefix_lens"] + i, "eta": 0.0},
                **{"tokens": tokens[:, i], "confidence": confidence[:, i]},
            )  # fmt: skip
        return tokens + 1

    def arguments():
        generator = torch.Generator().manual_seed(1)
        kv = torch.randn(2, 5, 2, 12, 16, generator=generator).to(kernel_device)
        tokens = torch.zeros(3, steps, dtype=torch.int64, device=kernel_device)
        positions, stopped = step["positions"].clone(), step["stopped"].clone()
        return kv, positions, stopped, tokens, tokens.float()

    expected, found = arguments(), arguments()
    step.pop("tokens"), step.pop("confidence")
    draft(*expected)
    torch._dynamo.reset()
    with fresh_cache():
        _, code = run_and_get_code(torch.compile(draft, fullgraph=True), *found)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(found[0], arguments()[0])
    sizes = [
        math.prod(map(int, filter(None, dims.split(", "))))
        for dims in LARGEST.findall("".join(code))
    ]
    half_a_cache = 5 * 2 * columns * 16 // 2
    assert max(sizes) < half_a_cache


def test_error_names_the_bad_argument(kernel_device):
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


def test_unsupported_inputs_are_rejected_before_the_cache_is_written(kernel_device):
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
def test_head_dim_may_be_any_even_number(head_dim, kernel_device):
    assert_kernel_is_no_worse(make_step((40, 4, 2, head_dim), batch=16, device=kernel_device))
