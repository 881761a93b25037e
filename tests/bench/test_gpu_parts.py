"""What the parts of a GPU run do: wrong kernels are found, scripts are kept, tests and tools are told apart."""

import subprocess
import sys
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_map

from bench.ops.cases import OPS, cases_of, take_apart, uneven_cases

ROOT = Path(__file__).parents[2]


def off_by_little(x):
    """Change one number by more than rounding, or one index."""
    if not isinstance(x, torch.Tensor) or not x.numel():
        return x
    changed = x.clone()
    first = changed.view(-1)[:1] if x.is_contiguous() else changed.reshape(-1)[:1]
    if x.is_floating_point():
        first += 0.01
    elif x.dtype == torch.bool:
        first.logical_not_()
    else:
        first += 1
    return changed


def wrong(call):
    """The same call, whose kernel returns the reference's results changed a little."""

    def function(*args, impl, **given):
        found = call.function(*args, **given, impl="reference")
        if impl == "reference":
            return found
        if found is None:  # what it wrote instead
            given["tokens"] += 1
        return tree_map(off_by_little, found)

    function.__name__ = call.name
    return call._replace(function=function)


@pytest.mark.parametrize("op", [op for op in OPS if op != "commit_kv"])
def test_slightly_wrong_kernel_is_detected(op, monkeypatch):
    import pick_problems
    from bench.gpu.jobs import accuracy as gpu_accuracy

    for case in cases_of(op, dry=True):
        call = wrong(take_apart(op, case, "cpu"))
        # Tests of the ops make the calls themselves.
        monkeypatch.setattr(pick_problems, "pick_tokens", call.function)
        monkeypatch.setattr("early_exit_steps.early_exit_step", call.function)
        with pytest.raises(AssertionError):
            gpu_accuracy.assert_right(call, call.repeatable())


def test_wrong_commit_is_detected():
    from bench.gpu.jobs.accuracy import assert_right

    call = take_apart("commit_kv", cases_of("commit_kv", dry=True)[0], "cpu")

    def function(kv, *args, impl, **given):
        call.function(kv, *args, **given, impl="reference")
        kv[0, 0, 0, 0, 0, 0] += 0.01 if impl == "triton" else 0.0

    function.__name__ = call.name
    broken = call._replace(function=function)
    with pytest.raises(AssertionError, match="error: expected at most"):
        assert_right(broken, broken.repeatable())


def test_results_that_change_by_one_bit_are_detected():
    from bench.gpu.jobs.correct import assert_repeats

    first = [torch.tensor([1.0, torch.nan]), torch.tensor([True])]
    assert_repeats(lambda: first, first, 4)
    changing = iter([first, [torch.tensor([1.0 + 2**-23, torch.nan]), first[1]], first])
    with pytest.raises(AssertionError, match="1 of 3 launches gave other results"):
        assert_repeats(lambda: next(changing), first, 3)


def test_each_op_is_tried_with_its_smallest_and_one_real_shape_first():
    from bench.gpu.jobs.correct import of_op
    from bench.gpu.run import Run

    run = Run("all", Path(), float("inf"), first=True)
    for op in OPS:
        *small, real = of_op(op, run)
        assert small == cases_of(op, dry=True) and real in cases_of(op, dry=False)


def test_attention_is_tried_with_uneven_prefixes_and_room_to_spare():
    from bench.counted.work import sizes_of, work_of

    (ragged,) = uneven_cases(dry=True)
    call = take_apart("tree_attention", ragged, "cpu")
    assert call.arguments["prefix_lens"].tolist() == [40, 7]
    full = take_apart("tree_attention", cases_of("tree_attention", dry=True)[0], "cpu")
    less = (work_of(x, x.run("reference")).bytes for x in (full, call))
    assert (
        next(less) - next(less) == 2 * 33 * 2 * 16 * 4
    )  # K and V of 33 slots, 2 heads of 16, float32
    assert sizes_of(call)["prefix"] == 40
    names = [case.name for case in uneven_cases(dry=False)]
    assert any("ragged-32768-and-31x1024" in name for name in names)
    assert any("P2048-of-32768-slots" in name for name in names)


@pytest.mark.parametrize("tokens_a_round", [1.5, 2.5, 4.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_oracle_acceptance_equals_its_script(tokens_a_round, batch):
    from bench.gpu.jobs.rounds import SHAPES_DRY, Oracle, prompts_of, target_of, write
    from specdec.drafters import PlainDrafter

    for shape in SHAPES_DRY:
        target, prompts = target_of(shape, "cpu"), prompts_of(shape, batch)
        new = 61  # 60 after prefill's: a whole number of rounds
        plain = write(target, PlainDrafter(), prompts, new).tokens
        texts = [prompt + tokens for prompt, tokens in zip(prompts, plain, strict=True)]
        oracle = Oracle(texts, tokens_a_round, shape.sizes["vocab_size"])
        found = write(target, oracle, prompts, new)
        assert found.tokens == plain
        assert found.metrics.tokens_per_round == tokens_a_round
        assert found.metrics.nodes_per_round > 10


def test_only_certain_texts_count():
    from bench.gpu.jobs.rounds import SHAPES_DRY, prompts_of, target_of, write
    from specdec.drafters import PlainDrafter

    certain, uncertain = (
        write(target_of(shape, "cpu"), PlainDrafter(), prompts_of(shape, 1), 9).tokens[0]
        for shape in SHAPES_DRY
    )
    steps = [(b - a) % 61 for a, b in pairwise(certain)]
    assert steps == 8 * [1] and len(set(uncertain)) > 2


def test_device_time_and_launches_are_assigned_to_their_stage():
    from torch.autograd import DeviceType

    from bench.gpu.jobs.stages import sums_per_stage

    def event(name, start, end, device=DeviceType.CUDA, annotation=False):
        time_range = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(
            name=name, device_type=device, time_range=time_range, is_user_annotation=annotation
        )

    def marks(stage, start, end):  # the second as the device saw it
        yield event(f"stage {stage}", start, end, DeviceType.CPU, True)
        yield event(f"stage {stage}", start + 1, end - 1, annotation=True)

    events = [
        *marks("draft", 0, 100), *marks("verify", 100, 300), *marks("draft", 310, 400),
        event("kernel", 10, 20), event("kernel", 30, 50), event("cudaLaunchKernel", 5, 9, DeviceType.CPU),
        event("kernel", 110, 200), event("kernel", 303, 309), event("kernel", 320, 330),
    ]  # fmt: skip
    seconds, launches = sums_per_stage(events, DeviceType.CUDA)
    assert seconds == {"draft": pytest.approx(40e-6), "verify": pytest.approx(90e-6)}
    assert launches == {"draft": 3, "verify": 1}


TESTS = """
import time
from hypothesis import given, settings, strategies as st
examples = []

@settings(max_examples=50)
@given(st.integers())
def test_examples(number):
    examples.append(number)

def test_few():
    assert 0 < len(examples) <= 3

def test_fails():
    assert False

def test_takes_long():
    time.sleep(9999)
"""


def test_tests_are_counted_with_few_examples_and_stopped_in_time(tmp_path):
    from bench.gpu.jobs.tests import run_pytest

    file = tmp_path / "test_made_up.py"
    file.write_text(TESTS)
    words = ["-p", "bench.gpu.few_examples", str(file)]
    row = run_pytest([*words, "-k", "not long"], float("inf"))
    assert (row["ok"], row["passed"]) == (False, 2)
    assert "test_fails" in row["failed"][0] and "assert False" in row["tail"]
    row = run_pytest([*words, "-k", "long"], time.monotonic() + 2)
    assert (row["ok"], row["passed"], row["failed"]) == (None, 0, [])
    assert row["ended"] == "stopped at the time limit"


def test_without_pytest_the_tests_are_unknown(monkeypatch):
    from bench.gpu.jobs import tests as gpu_tests

    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: None)
    row = gpu_tests.run_tests("lm_head", False, time.monotonic() + 60)
    assert row["ok"] is None and row["ended"] == "no pytest here"


@pytest.mark.parametrize(("code", "told"), [(0, "found nothing"), (86, "found something"), (1, "exit code 1"), (None, "stopped at the time limit")])  # fmt: skip
def test_memcheck_reports_without_judging(monkeypatch, code, told):
    from bench.gpu.jobs import tests as gpu_tests
    from bench.gpu.run import Run
    from bench.report.gpu.page import is_wrong

    asked = []

    def execute(command, ends, **environment):
        asked.append(command)
        return code, "said"

    monkeypatch.setattr(gpu_tests, "execute", execute)
    monkeypatch.setattr(gpu_tests.shutil, "which", lambda tool: tool)
    (row,) = gpu_tests.memcheck(Run("memcheck", Path(), float("inf")))
    assert row["ok"] is None and row["ended"] == told and not is_wrong(row)
    at = asked[0].index("--report-api-errors")
    assert asked[0][at + 1] == "no" and asked[0][-len(OPS) :] == OPS


def test_missing_flashinfer_removes_one_peer(monkeypatch):
    from bench.ops.peers import attention
    from bench.ops.peers.references import peers_of

    call = take_apart("tree_attention", cases_of("tree_attention", dry=True)[1], "cpu")
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    without = peers_of(call, "eager")
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    assert peers_of(call, "eager").keys() - without.keys() == {"flashinfer"}


def test_failed_peer_gives_its_reason_and_others_are_timed(monkeypatch):
    from bench.gpu.jobs import times as gpu_times
    from bench.gpu.run import Run

    def broken():
        raise RuntimeError("no such card")

    peers = {"broken": broken, "eager": lambda: lambda: torch.ones(2)}
    monkeypatch.setattr(gpu_times, "peers_of", lambda call, backend: peers)
    op, case = "accept_tree", cases_of("accept_tree", dry=True)[0]
    (row,) = gpu_times.time_case(Run("all", Path(), float("inf"), dry=True), op, case, "alone")
    assert row["times"]["broken"] == {"error": "RuntimeError: no such card"}
    assert "error" in row["times"]["eager"] and row["times"]["kernel"]["median_microseconds"] > 0


def test_attention_is_timed_with_the_requested_number_of_splits(monkeypatch):
    from bench.gpu.jobs import times as gpu_times
    from bench.gpu.run import Run

    kernel = import_module("specdec_kernels.tree_attention.kernel")
    asked = []
    launch = kernel.launch_tree_attention

    def noted(*args, **options):
        asked.append(kernel.choose_splits)
        return launch(*args, **options)

    monkeypatch.setattr(kernel, "launch_tree_attention", noted)
    case = cases_of("tree_attention", dry=True)[0]
    run = Run("all", Path(), float("inf"), dry=True)
    (row,) = gpu_times.time_splits(run, case, 3)
    assert 3 in [choose() for choose in asked if choose.__name__ == "<lambda>"]
    assert row["of"] == f"{case.name} in 3 splits"
    assert row["times"]["kernel"]["median_microseconds"] > 0
    assert gpu_times.split_case().name == "vicuna-7b-B1-N16-P8192-float16"


def test_gpu_run_needs_only_installed_packages():
    """What a machine that is lent for a run lacks."""
    code = (
        "import sys\n"
        "for name in ('gguf', 'rensa', 'platformdirs', 'matplotlib', 'flashinfer', 'xdist', 'pytest_timeout'): sys.modules[name] = None\n"
        "import bench.gpu.__main__, bench.gpu.train, specdec.train.run\n"
        "from bench.gpu.jobs import correct, rounds, sweep, tests, texts, times"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
