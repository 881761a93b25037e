"""What the figures of a GPU run are made of, and which of them are told."""

import pytest
import torch


def test_least_work_equals_the_formulas():
    from bench.counted.work import work_of
    from bench.ops.cases import take_apart
    from bench.report.gpu.figures import floors_of
    from specdec_kernels.testing.cases import commit_kv, lm_head, tree_attention

    batch, nodes, heads, kv_heads, size, prefix = 2, 5, 4, 2, 16, 40
    alone, _, shared = tree_attention.SMALL
    tree = batch * (8 + nodes * 8 + nodes * 8 + 8)  # prefix_lens, ancestors, depth, cache_rows
    for case, slots, extra in ((alone, 2 * 45, 0), (shared, 2 * 45 - 20, batch * 16)):
        call = take_apart("tree_attention", case, "cpu")
        work = work_of(call, call.run("reference"))
        queries = batch * nodes * heads * size * 4
        assert work.bytes == 2 * slots * kv_heads * size * 4 + 2 * queries + tree + extra
        assert work.flops == 4 * batch * heads * nodes * (prefix + nodes) * size

    call = take_apart("lm_head", lm_head.SMALL[0], "cpu")
    work = work_of(call, call.run("reference"))
    assert work.bytes == 4 * (3 * 32 + 150 * 32) + 3 * 4 * (8 + 4) + 3 * 4
    assert work.flops == 2 * 3 * 150 * 32

    call = take_apart("commit_kv", commit_kv.SMALL[0], "cpu")
    work = work_of(call, call.run("reference"))
    indices = 8 * (32 + 1 + 1)
    assert work.bytes == 2 * 4 * (2 * 2 * 2 * 16 * 4) + indices  # four rows move, read and written

    floors = {"memory": pytest.approx(3.0), "compute": pytest.approx(90.0), "launch": 8.0}
    assert floors_of(3_000_000, 90_000_000, 1e12, 1e12) == floors


def content_of(times, gates=None, limits=None, planned=()):
    """The record of a run with these times; a gate is true, false or None, as `correct` leaves it."""
    rows = [{"part": "correct", "case": name, "op": name.split()[0], "ok": ok} for name, ok in (gates or {}).items()]  # fmt: skip
    if limits:
        rows.append({"part": "times", "case": "limits", "limits": limits})
    rows += [{"part": "times", "case": f"{row['op']} {row['of']}", **row} for row in times]
    return {"measured": True, "planned": {"correct": list(planned)}, "rows": rows}


def timed_row(op, case, microseconds, *, bytes, flops=0, sizes=None, **peers):
    times = {"kernel": {"median_microseconds": microseconds, "graph": True}}
    for name, value in peers.items():
        times[name] = {"median_microseconds": value, "graph": True, "distance": 1e-7}
    facts = {"op": op, "of": case, "bytes": bytes, "flops": flops, "dtype": "torch.float32"}
    return {**facts, "sizes": sizes or {}, "times": times}


LIMITS = {"bytes_per_second": 1e12, "torch.float32": 1e12, "empty_microseconds": 2.5}


def test_each_case_has_its_own_gate_and_unstarted_cases_are_unknown():
    from bench.report.gpu.figures import gates_of, timed_rows
    from bench.report.gpu.tables import correct

    gates = {"a B1": True, "a B2": False, "a B3": None}
    content = content_of([], gates, planned=[*gates, "a B4", "a B5"])
    content["rows"] += [
        {"part": "correct", "case": "a B5", "error": "died"},
        {"part": "correct", "case": "b B1", "ok": False, "beside": "times"},
    ]
    assert gates_of(content) == {**gates, "a B4": None, "a B5": False}
    assert "| a | 1 | 2 | 2 | B2 (see below); B5 (see below) |" in correct(content)

    times = [timed_row("a", f"B{n}", 25.0, bytes=2_000_000, flops=10**7, eager=50.0) for n in range(1, 5)]  # fmt: skip
    content["rows"] += content_of(times, limits={**LIMITS, "bytes_per_second": 1e11})["rows"]
    rows = timed_rows(content)
    assert [row.get("speedups") for row in rows] == [{"eager": 2.0}, None, None, None]
    for row in rows:
        assert row["floors_microseconds"] == {"memory": 20.0, "compute": 10.0, "launch": 8.0}
        assert (row["over_floor"], row["share_of_copy"]) == (1.25, 0.8)
        assert row["teraflops"] == pytest.approx(0.4)


def test_partial_timings_of_a_case_are_merged():
    from bench.report.gpu.figures import timed_rows

    alone = timed_row("a", "B1", 10.0, bytes=1, eager=30.0)
    beside = timed_row("a", "B1", 0.0, bytes=1, compiled=20.0)
    del beside["times"]["kernel"]
    lonely = {**beside, "of": "B2"}
    (row,) = timed_rows(content_of([alone, beside, lonely], {"a B1": True}))
    assert row["speedups"] == {"eager": 3.0, "compiled": 2.0}
    assert "floors_microseconds" not in row  # the limits were not measured


def test_wrong_failed_or_differently_timed_peer_gives_no_speedup():
    from bench.report.gpu.figures import timed_rows
    from bench.report.gpu.tables import times

    row = timed_row("a", "B1", 10.0, bytes=1, right=30.0, near=20.0, wrong=5.0, lost=5.0, waits=4.0)
    row["times"]["near"]["distance"] = 1.2e-6
    row["times"]["wrong"]["distance"] = 1e-3
    row["times"]["lost"]["distance"] = float("nan")
    row["times"]["waits"]["graph"] = False
    row["times"]["flex"] = {"error": "RuntimeError: no such thing"}
    content = content_of([row], {"a B1": True}, LIMITS)
    assert timed_rows(content)[0]["speedups"] == {"right": 3.0, "near": 2.0}
    told = times(content)
    assert (
        "right 30 (1e-07), near 20 (1e-06), wrong 5 (0.001), lost 5 (nan), waits 4* (1e-07)" in told
    )
    assert "flex error RuntimeError: no such thing | 2.00 |" in told


def test_results_are_compared_number_by_number():
    from bench.ops.cases import distance

    x, y = torch.tensor([3.0, 4.0]), torch.tensor([-torch.inf, 2.0])
    assert distance((x, y), (x, y)) == 0.0
    assert distance((x, y * 1.5), (x, y)) == pytest.approx(0.5)
    assert distance([x * 1.1, torch.arange(2)], [x, torch.zeros(2)]) > 1
    assert distance([x * 1.1, torch.arange(2)], [x, torch.arange(2) * 0]) == pytest.approx(0.1)
    assert not distance(x * torch.nan, x) <= 1
    assert distance(torch.arange(2), torch.arange(2)) == 0.0
    assert distance(torch.arange(2), torch.tensor([0, 7])) == 0.5
    with pytest.raises(ValueError, match=r"result: expected shape \[2\], got \[1\]"):
        distance(x[:1], x)


def test_targets_are_met_or_missed_or_not_measured():
    from bench.report.gpu.tables import targets

    few = {"batch": 8, "nodes": 16, "prefix": 8192, "rows": 64}
    large = {"head_bytes": 300_000_000, "weight_bytes": 90_000_000}
    rows = [
        timed_row("tree_attention", "long", 220.0, bytes=200_000_000, sizes=few, eager=400.0, flex=300.0),
        timed_row("tree_attention", "longer", 250.0, bytes=200_000_000, sizes=few, repeated=500.0),
        timed_row("tree_attention", "short", 18.5, bytes=10_000_000, sizes=few, flex=37.0),
        timed_row("tree_attention", "one", 20.0, bytes=15_000_000, sizes={**few, "nodes": 1, "rows": 4}, sdpa=20.0),
        timed_row("lm_head", "llama", 330.0, bytes=300_000_000, sizes=large),
        timed_row("lm_head", "small", 99.0, bytes=1, sizes={"head_bytes": 1}),
        timed_row("draft_step", "llama", 108.0, bytes=100_000_000, sizes=large, eager=216.0),
        timed_row("commit_kv", "B8", 9.0, bytes=1, sizes={"batch": 8}),
        timed_row("pack_tree", "B1", 10.5, bytes=1, sizes={"batch": 1}),
        timed_row("accept_tree", "B8", 5.0, bytes=1, sizes={"batch": 8}),
    ]  # fmt: skip
    gates = {f"{row['op']} {row['of']}": True for row in rows}
    gates |= {"accept_tree B8": False, "draft_step llama": None}
    told = targets(content_of(rows, gates, LIMITS))
    for line in (
        "floor ≥ 100 µs, N·H/G ≤ 64: share of copy bandwidth | ≥ 85 % | 2 of 2 | 80 % (longer) | missed",
        "floor < 100 µs, N·H/G ≤ 64: time above the floor | ≤ 8 µs | 2 of 2 | 8.5 µs (short) | missed",
        "floor < 100 µs, N·H/G > 64: time above the floor | ≤ 8 µs | 0 of 0 | - | not measured",
        "speed-up over FlexAttention | ≥ 1.5 | 2 of 3 | 1.36 (long) | missed",
        "speed-up over masked SDPA | ≥ 1.5 | 2 of 3 | 1.82 (long) | met",
        "N = 1: speed-up over SDPA | ≥ 1 | 1 of 1 | 1 (one) | met",
        "share of copy bandwidth | ≥ 90 % | 1 of 1 | 90.9 % (llama) | met",
        "time / reading the weights | ≤ 1.25 | 0 of 1 | - | not checked",
        "commit_kv, B ≤ 8: time | ≤ 10 µs | 1 of 1 | 9 µs (B8) | met",
        "pack_tree, B ≤ 8: time | ≤ 10 µs | 1 of 1 | 10.5 µs (B1) | missed",
        "accept_tree, B ≤ 8: time | ≤ 10 µs | 0 of 1 | - | wrong: B8",
    ):
        assert f"{line} |" in told, told
    assert told.endswith("A graph of one empty launch: 2.5 µs.")


def test_cases_of_targets_are_timed_first():
    from bench.gpu.jobs.times import in_turns
    from bench.report.gpu.targets import TARGETS

    first = [f"{op} {case.name}" for op, case in in_turns(dry=False)][:18]
    needed = {f"tree_attention llama3-8b-B{shape}-bfloat16" for shape in (
        "32-N16-P8192", "8-N16-P32768", "8-N64-P8192", "1-N16-P2048", "1-N64-P2048", "1-N1-P8192", "8-N1-P8192")}  # fmt: skip
    needed |= {
        "tree_attention vicuna-7b-B32-N8-P2000-float16",
        "lm_head llama3-8b-R16-k10-bfloat16",
    }
    needed |= {"beam_step llama3-8b-head-B2-W10-bfloat16", "draft_step llama3-8b-B1-W10-bfloat16"}
    assert needed <= set(first)
    turns = [op for op, _ in in_turns(dry=False)]
    assert turns[:3] == 3 * ["lm_head"]
    assert {op for target in TARGETS for op in target.ops} <= {*turns[:40]}


def test_references_of_packing_do_not_synchronize():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bench.ops.cases import cases_of, take_apart

    call = take_apart("pack_tree", cases_of("pack_tree", dry=True)[0], "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        call.run("reference")
        with pytest.raises(Exception, match="_local_scalar_dense"):
            call.run("reference", width=None)


@pytest.mark.parametrize("op", ["lm_head", "beam_step"])
def test_head_has_a_peer_without_a_full_sort(op):
    from bench.ops.cases import cases_of, distance, take_apart
    from bench.ops.peers.references import peers_of

    case = next(c for c in cases_of(op, dry=True) if "float32" in c.name)
    call = take_apart(op, case, "cpu")
    peers = peers_of(call, "eager")
    expected = peers["eager"]()()
    for name in ("topk", "topk compiled"):
        found = peers[name]()()
        assert distance(found, expected) < 1e-6
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True) if not x.is_floating_point())  # fmt: skip


def test_sweep_lifts_the_register_limit_if_rows_or_warps_change():
    from bench.gpu.jobs.sweep import RANGES, neighbours
    from specdec_kernels.lm_head.kernel import _tiles

    tiles = {"block_m": 16, "block_n": 64, "warps": 4, "stages": 2, "registers": 168, "splits": 4}
    near = neighbours("tree_attention", tiles)
    assert all(
        choice["registers"] == (None if (choice["block_m"], choice["warps"]) != (16, 4) else 168)
        for choice in near
    )
    assert {choice["registers"] for choice in near} == {None, 168}
    shipped, *_ = _tiles(torch.empty(80, 64, dtype=torch.bfloat16))
    assert shipped in RANGES["lm_head"]["block_rows"]
