"""The host waits for the GPU once per round; measured on a simulated GPU."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from every_drafter import DRAFTERS, bare_kangaroo, layer_kangaroo, lookup
from specdec.drafters import PlainDrafter
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.session import Session
from specdec_kernels.gpu import KNOWN
from specdec_kernels.testing.absent_gpu import CUDA, absent_gpu
from specdec_kernels.testing.calls import counted_calls
from tiny import random_prompt, tiny_model

STAGES = {"draft", "pack", "verify", "pick", "accept", "commit", "observe"}
# How else a drafter could look at the device.
LOOKS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "equal": lambda x: torch.equal(x, x),
    "isin": lambda x: torch.isin(x, torch.arange(10, device=x.device)),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "repeat": lambda x: torch.repeat_interleave(x, torch.ones_like(x)),
    "copy": lambda x: torch.zeros(x.shape, dtype=x.dtype).copy_(x),
}
COPIES = {
    "tensor": lambda x: torch.tensor([1, 2], device=x.device),
    "to": lambda x: torch.zeros(2).to(x.device),
    "places": lambda x: x[[0, 0]],
    "copy": lambda x: x.copy_(torch.zeros(x.shape, dtype=x.dtype)),
}
HARMLESS = {
    "late": lambda x: x.to("cpu", non_blocking=True),
    "places": lambda x: x[torch.zeros_like(x)],
    "scalar": lambda x: torch.where(x > 0, -1, x),
    "repeat": lambda x: x.repeat_interleave(2),
}


@pytest.fixture
def launches():
    from bench.counted import launches

    return launches


def absent_target():
    # New every time: what is moved to the GPU that is not there cannot come back.
    return Target(tiny_model.__wrapped__("llama-16", dtype=torch.float32).to(CUDA))


def rounds_of(launches, make, new_picker=None):
    with absent_gpu(CUDA, KNOWN["sm_90"]), torch.inference_mode(False):
        target = absent_target()
        return launches.count_rounds(target, make(target), new_picker)


def walked(target):
    """Walk with more end tokens than are looked for one by one elsewhere."""
    return PathPicker(end_tokens=torch.arange(100, 120, device=target.device))


PICKERS = {"likeliest": None, "drawn": "drawn", "processed": "processed", "walked": walked}


@pytest.mark.parametrize("how", PICKERS.values(), ids=PICKERS)
@pytest.mark.parametrize(
    "make", [*DRAFTERS, layer_kangaroo, bare_kangaroo], ids=lambda make: make.__name__
)
def test_host_synchronizes_once_per_round(launches, make, how):
    rounds = rounds_of(launches, make, getattr(launches, how) if isinstance(how, str) else how)
    assert len(rounds) == launches.ROUNDS
    for counted in rounds:
        assert set(counted) >= STAGES | {"emit"}
        reads = {stage: counts.reads.total() for stage, counts in counted.items() if counts.reads}
        assert reads == {"emit": 1}
        assert not any(counts.uploads for counts in counted.values())


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_host_synchronizes_once_per_round_while_prompts_start_later(launches, make):
    with absent_gpu(CUDA, KNOWN["sm_90"]), torch.inference_mode(False):
        target = absent_target()
        drafter, prompts = make(target), [random_prompt(5, seed) for seed in range(3)]
        with counted_calls(dry=True) as calls:
            stages = launches.CountedStages(calls)
            Session(target, drafter, max_nodes=8).generate(
                prompts, max_new_tokens=4, rows_at_once=2, metrics=stages
            )
    rounds = [counted for counted in stages.counted if "verify" in counted]
    assert len(rounds) == 2 * 3
    for counted in rounds:
        reads = {stage: counts.reads.total() for stage, counts in counted.items() if counts.reads}
        assert reads == {"emit": 1}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_device_read_by_a_drafter_is_counted(launches, look):
    class Looking(PlainDrafter):
        def draft(self, state, budget):
            look(state.roots)
            return super().draft(state, budget)

    first, *_ = rounds_of(launches, lambda target: Looking())
    assert first["draft"].reads.total() == 1
    assert not first["draft"].uploads


def counted(call):
    with absent_gpu(CUDA, KNOWN["sm_90"]), torch.inference_mode():
        x = torch.zeros(3, dtype=torch.int64, device=CUDA)
        with counted_calls(dry=True) as calls:
            call(x)
    return calls.counts


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_host_to_device_copy_is_counted(copy):
    counts = counted(copy)
    assert counts.uploads.total() == 1
    assert not counts.reads


@pytest.mark.parametrize("call", HARMLESS.values(), ids=HARMLESS)
def test_asynchronous_calls_are_not_counted(call):
    counts = counted(call)
    assert not counts.reads
    assert not counts.uploads


def test_kernel_launches_do_not_depend_on_beam_width(launches):
    with absent_gpu(CUDA, KNOWN["sm_90"]):
        target = launches.small_target()
        per_width = [
            launches.describe(launches.count_rounds(target, launches.redrafter(target, width)))
            for width in (1, 64)
        ]
    assert per_width[0] == per_width[1]
    kernels = sum((Counter(counts["kernels"]) for counts in per_width[0].values()), Counter())
    # Five steps of a cell, two blocks and a head in two launches; then pack, two layers, accept, commit.
    assert kernels == {
        "_recurrent_cell_kernel": 5, "_skinny_linear_kernel": 10, "_head_tiles_kernel": 5, "_merge_tiles_kernel": 5,
        "_pack_tree_kernel": 1, "_tree_attention_kernel": 2, "_accept_tree_kernel": 1, "_commit_kv_kernel": 1,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs the kernels in the interpreter")
def test_executed_launches_equal_dry_run_launches_and_tokens_equal_references(
    launches, monkeypatch
):
    monkeypatch.setattr(launches, "NEW_TOKENS", 4)
    on_cpu = Target(tiny_model("llama-16", dtype=torch.float32))
    options = {"prompts": launches.PROMPTS, "max_new_tokens": 4}
    expected = Session(on_cpu, lookup(on_cpu)).generate(**options).tokens
    with absent_gpu(CUDA, KNOWN["sm_90"]), torch.inference_mode(False):
        target = absent_target()
        with counted_calls() as calls:
            stages = launches.CountedStages(calls)
            session = Session(target, lookup(target))
            written = session.generate(**options, metrics=stages).tokens
        dry = launches.count_rounds(target, lookup(target))
    assert written == expected
    assert launches.describe(stages.counted[1:2]) == launches.describe(dry[:1])


class StrictStages(Metrics):
    """Lets torch raise where the host would wait within a stage."""

    @contextmanager
    def stage(self, name):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error" if name in STAGES else before)
        try:
            with super().stage(name):
                yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_cuda_sync_debug_mode_finds_no_other_synchronization(make):
    with torch.inference_mode(False):
        target = Target(tiny_model.__wrapped__("llama-16", dtype=torch.float32).cuda())
        drafter = make(target)
    prompts = [random_prompt(5, 0), random_prompt(11, 1) * 2]
    expected = Session(target, drafter).generate(prompts, max_new_tokens=8).tokens
    again = Session(target, drafter).generate(prompts, max_new_tokens=8, metrics=StrictStages())
    assert again.tokens == expected
