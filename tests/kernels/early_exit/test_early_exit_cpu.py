"""Kangaroo's step in few operators on a CPU, against the reference and against float64."""

import copy

import pytest
import torch

from counted_operators import Counted
from early_exit_steps import DTYPES, SHAPES, WRITTEN, appended, by_hand, make_step
from specdec_kernels import EarlyExitAdapter, LMHeadTopK
from specdec_kernels.early_exit import cpu
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

NAMES = ("input_norm", "q_proj", "k_proj", "v_proj", "o_proj", "output_norm")
# As counted with the copies that a test makes; in 32 bits 61, and the reference takes 154.
MOST = 64


def modules_of(step):
    """The step's weights as modules, which know of CPUs."""
    size, kv_heads, head_dim = step["hidden"].shape[1], *step["k_cache"].shape[1::2]
    weights, head = step["adapter"], step["head"]
    heads = len(weights.q_proj) // head_dim
    module = EarlyExitAdapter(size, heads, kv_heads, head_dim, weights.norm_eps, weights.rope_theta)
    module = module.to(head.weight.dtype).requires_grad_(False)
    module.load_state_dict({f"{name}.weight": getattr(weights, name) for name in NAMES})
    linear = torch.nn.Linear(size, len(head.weight), bias=head.bias is not None)
    linear.weight = torch.nn.Parameter(head.weight, requires_grad=False)
    options = {name: getattr(head, name) for name in ("logit_scale", "softcap", "id_map")}
    return module, LMHeadTopK(linear, **options)


def run(step, impl, modules=None, **changed):
    """Run the module on copies of what is written, and return those."""
    step = {**step, **changed}
    module, head = modules or modules_of(step)
    copies = {name: step[name].clone() for name in WRITTEN}
    rest = {name: x for name, x in step.items() if name not in ("adapter", "head")}
    with torch.inference_mode(), poisoned_empty():
        module.step(**{**rest, **copies}, head=head, impl=impl)
    return copies


def in_order(step, *, prefix=None):
    """The same rows, first and in order in the cache."""
    lens = step["prefix_lens"] if prefix is None else torch.full_like(step["prefix_lens"], prefix)
    return {**step, "cache_rows": None, "prefix_lens": lens}


CASES = {
    "rows-anywhere": lambda step: step,
    "rows-in-order": in_order,
    "alike": lambda step: in_order(step, prefix=7),
    "stopped": lambda step: {**step, "stopped": torch.tensor([True, False, True])},
    "appends": lambda step: {**step, "stopped": torch.tensor([True, False, True]), "appends": torch.tensor([True, True, False])},
    "alike-appends": lambda step: {**in_order(step, prefix=3), "stopped": torch.tensor([True, False, True]), "appends": torch.tensor([True, True, True])},
    "all-stopped": lambda step: {**step, "stopped": torch.ones(3, dtype=torch.bool)},
    "padding": lambda step: {**step, "cache_rows": step["cache_rows"].masked_fill(torch.tensor([False, True, False]), -1)},
    "full": lambda step: {**step, "prefix_lens": torch.tensor([12, 3, 1 << 40])},
    "id-map": lambda step: {**step, "head": step["head"]._replace(id_map=torch.arange(150) * 3 + 1)},
    "scaled": lambda step: {**step, "head": step["head"]._replace(logit_scale=0.7, softcap=2.0)},
    "unsure": lambda step: {**step, "eta": 1.1},
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cpu_step_equals_the_reference(case, dtype):
    step = case(make_step(dtype=dtype))
    found, expected = run(step, "auto"), run(step, "reference")
    for name in ("positions", "stopped", "tokens"):
        assert torch.equal(found[name], expected[name]), name
    close = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for name in ("k_cache", "v_cache", "confidence"):
        torch.testing.assert_close(found[name], expected[name], **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cpu_step_is_no_less_accurate_than_the_reference(shape, dtype):
    step = make_step(shape, batch=16, dtype=dtype)
    keys, values, logits = by_hand(step)
    modules = modules_of(step)
    found, expected = (run(step, impl, modules) for impl in ("auto", "reference"))
    for ours, theirs, exact in zip(
        appended(step, found), appended(step, expected), (keys, values), strict=True
    ):
        assert_no_worse(ours, theirs, exact, factor=1.06)
    log_probs = logits.log_softmax(1).gather(1, found["tokens"][:, None])[:, 0]
    errors = [(x["confidence"].double().log() - log_probs).norm() for x in (found, expected)]
    assert errors[0] <= 1.06 * errors[1] + 1e-6


def test_float32_keys_and_values_equal_the_reference_bit_for_bit():
    step = in_order(make_step(batch=1), prefix=4)
    found, expected = run(step, "auto"), run(step, "reference")
    assert torch.equal(found["v_cache"], expected["v_cache"])
    torch.testing.assert_close(found["k_cache"], expected["k_cache"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_rows_with_only_minus_infinity_logits_equal_the_reference(value, eta):
    step = make_step(batch=2)
    module, head = modules_of(step)
    head.linear.bias = torch.nn.Parameter(torch.full((150,), value), requires_grad=False)
    found, expected = (run(step, impl, (module, head), eta=eta) for impl in ("auto", "reference"))
    for name in WRITTEN:
        torch.testing.assert_close(found[name], expected[name], equal_nan=True)


def test_buffers_adapt_to_changed_weights_batch_sizes_and_copies():
    step = make_step()
    module, head = modules_of(step)
    run(step, "auto", (module, head))
    copied = copy.deepcopy(module)
    assert not copied._cpu_steps._kept and module._cpu_steps._kept
    for norm in (module.input_norm, module.output_norm):
        norm.weight = torch.nn.Parameter(2 * norm.weight, requires_grad=False)
    for other in (module, copied):
        found, expected = (run(step, impl, (other, head)) for impl in ("auto", "reference"))
        torch.testing.assert_close(found, expected)
    for batch in range(1, cpu.KEPT + 3):
        step = make_step(batch=batch)
        found, expected = (run(step, impl, (module, head)) for impl in ("auto", "reference"))
        torch.testing.assert_close(found, expected)
        assert len(module._cpu_steps._kept) <= cpu.KEPT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_per_step_do_not_exceed_the_recorded_maximum(dtype):
    step = in_order(make_step(batch=1, dtype=dtype), prefix=5)
    modules = modules_of(step)
    run(step, "auto", modules)
    with Counted() as counted:
        run(step, "auto", modules)
    assert counted.count <= MOST
