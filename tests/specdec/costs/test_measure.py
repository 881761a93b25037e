"""Measuring a cost table, and keeping it."""

import json
from collections import Counter

import pytest
import torch

from every_drafter import DRAFTERS
from specdec.costs import measure, table
from specdec.costs.measure import (
    NODES,
    costs_of,
    measure_drafts,
    measure_passes,
    measure_tree,
    tuned,
)
from specdec.costs.table import Costs, costs_file, known_costs, parts_of, read_costs
from specdec.drafters import PlainDrafter, load_drafter
from specdec.drafters.protocol import DraftCost
from specdec.model.target import Target
from specdec.session import Session
from tiny import POSITIONS, tiny_model


@pytest.fixture
def target(tmp_path, monkeypatch):
    """A target whose tables are kept in a folder of this test."""
    monkeypatch.setattr(table, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "STEADY", float("inf"))
    return Target(tiny_model("llama", dtype=torch.float32))


def test_passes_of_all_sizes_are_timed(target):
    passes = measure_passes(target, 0.0)
    assert [nodes for nodes, _ in passes.points] == list(NODES)
    assert all(ms > 0 for _, ms in passes.points) and passes.spread >= 1


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_timing_drafts_of_every_method_does_not_change_the_drafter(target, make):
    drafter = make(target)
    written = Session(target, drafter).generate([[5, 6, 7]], max_new_tokens=12).tokens
    for part, cost in zip(
        parts_of(drafter), measure_drafts(target, parts_of(drafter)).values(), strict=False
    ):
        assert cost.fixed >= 0 and cost.step >= 0
        assert part is not None
    assert Session(target, drafter).generate([[5, 6, 7]], max_new_tokens=12).tokens == written


def test_overhead_of_a_tree_is_timed(target):
    assert 0 <= measure_tree(target) < 50


def test_fixed_and_step_costs_are_separated(target):
    class Stepping(PlainDrafter):
        def draft(self, state, budget):
            now[0] += 5 + 3 * budget.depth
            return super().draft(state, budget)._replace(spent=budget.spent(self, budget.depth))

    now = [0.0]
    drafter = Stepping()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.time, "perf_counter", lambda: now[0] / 1e3)
        (cost,) = measure_drafts(target, [drafter]).values()
    assert cost == pytest.approx(DraftCost(5.0, 3.0))


def test_cost_table_is_measured_once_and_kept_on_disk(target, monkeypatch):
    timed = Counter()

    def counted(name):
        real = getattr(measure, name)

        def call(*args, **kwargs):
            timed[name] += "sizes" not in kwargs  # a check of a single size is no measurement
            return real(*args, **kwargs)

        monkeypatch.setattr(measure, name, call)

    counted("measure_passes"), counted("measure_drafts")
    first = costs_of(target, load_drafter("lookup", target))
    assert costs_of(target, load_drafter("lookup", target)) is first
    again = Target(target.model)
    assert costs_of(again, load_drafter("lookup", again)) == first
    assert timed == {"measure_passes": 1, "measure_drafts": 1}
    union = costs_of(again, load_drafter("lookup+suffix", again))
    assert union.passes == first.passes and set(union.drafts) == {"lookup", "suffix"}
    assert union.drafts["lookup"] == first.drafts["lookup"]
    assert timed == {"measure_passes": 1, "measure_drafts": 2}
    kept = read_costs(costs_file(target))
    assert kept == union and kept.machine["dtype"] == "float32"


def test_each_thread_count_and_dtype_has_its_own_table(target):
    threads = torch.get_num_threads()
    files = {costs_file(target), costs_file(Target(tiny_model("llama", dtype=torch.float64)))}
    try:
        torch.set_num_threads(threads + 1)
        files.add(costs_file(target))
    finally:
        torch.set_num_threads(threads)
    assert len(files) == 3


def test_table_measured_on_a_busy_machine_is_not_kept_on_disk(target, monkeypatch):
    monkeypatch.setattr(measure, "STEADY", 0.0)
    costs = costs_of(target, load_drafter("lookup", target))
    assert not costs_file(target).exists()
    assert costs_of(target, load_drafter("lookup", target)) is costs
    assert costs_of(target, load_drafter("suffix", target)).passes == costs.passes
    assert not costs_file(target).exists()


def test_stored_table_of_a_busy_machine_is_measured_again(target, monkeypatch):
    first = costs_of(target, load_drafter("lookup", target))
    slower = tuple((nodes, 1e3 * ms) for nodes, ms in first.passes)
    Costs(slower, first.drafts, first.tree, first.machine).save(costs_file(target))
    monkeypatch.setattr(measure, "STEADY", 2.0)
    again = costs_of(Target(target.model), load_drafter("lookup", target))
    assert again.passes[0][1] < slower[0][1] / 2


def test_drafts_timed_on_a_busy_machine_are_not_kept_on_disk(target, monkeypatch):
    kept = costs_of(target, load_drafter("lookup", target))
    monkeypatch.setattr(measure, "STEADY", 2.0)
    monkeypatch.setattr(measure, "single_pass", lambda target: 3 * kept.passes[0][1])
    union = costs_of(Target(target.model), load_drafter("lookup+suffix", target))
    assert set(union.drafts) == {"lookup", "suffix"}
    assert known_costs(target) == kept


def test_known_table_is_not_written_again(target):
    costs_of(target, load_drafter("lookup", target))
    before = costs_file(target).stat().st_mtime_ns
    costs_of(Target(target.model), load_drafter("lookup", target))
    assert costs_file(target).stat().st_mtime_ns == before


def test_damaged_table_is_measured_again(target):
    costs_of(target, load_drafter("lookup", target))
    costs_file(target).write_text("{")
    assert known_costs(target) is None
    costs_of(Target(target.model), load_drafter("lookup", target))
    assert known_costs(target) is not None


def test_unwritable_cache_folder_is_ignored(target, tmp_path, monkeypatch):
    (tmp_path / "costs").write_text("in the way")
    assert costs_of(target, load_drafter("lookup", target)).drafts


def test_tuning_replaces_the_table_and_keeps_other_drafters(target):
    costs_of(target, load_drafter("suffix", target))
    told = []
    costs, spread = tuned(
        target, load_drafter("lookup", target), 0.05, lambda *said: told.append(said)
    )
    assert set(costs.drafts) == {"suffix", "lookup"} and spread >= 1 and told
    assert known_costs(target) == costs == costs_of(target, load_drafter("lookup", target))


def test_models_with_few_positions_are_timed_within_them(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "cache_folder", lambda: tmp_path)
    model = tiny_model.__wrapped__("llama", dtype=torch.float32)
    model.config.max_position_embeddings = 40
    short = Target(model)
    assert POSITIONS > 40 == short.position_limit
    assert [nodes for nodes, _ in measure_passes(short, 0.0).points] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert costs_of(short, load_drafter("lookup", short)).drafts


def test_tables_are_saved_and_read(tmp_path):
    costs = Costs(((1, 2.5), (8, 3.0)), {"lookup": DraftCost(0.25, 0.0)}, 0.5, {"threads": "2"})
    costs.save(tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == costs


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"passes": [[1, 2.0]], "drafts": {}, "tree": 0, "machine": {}},
        {"passes": [[1, 2.0], [1, 3.0]], "drafts": {}, "tree": 0, "machine": {}},
        {"passes": [[1, 0.0], [8, 3.0]], "drafts": {}, "tree": 0, "machine": {}},
        {"passes": [[1, "2"], [8, 3.0]], "drafts": {}, "tree": 0, "machine": {}},
        {"passes": [[1, 2.0], [8, 3.0]], "drafts": {"lookup": {"fixed": -1, "step": 0}}, "tree": 0, "machine": {}},
        {"passes": [[1, 2.0], [8, 3.0]], "drafts": [], "tree": 0, "machine": {}},
        {"passes": [[1, 2.0], [8, 3.0]], "drafts": {}, "machine": {}},
        {"passes": [[1, 2.0], [8, float("inf")]], "drafts": {}, "tree": 0, "machine": {}},
    ],
)  # fmt: skip
def test_error_names_the_file_that_is_not_a_cost_table(tmp_path, content):
    (tmp_path / "costs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"costs: expected a cost table in .*costs\.json, got"):
        read_costs(tmp_path / "costs.json")


def test_table_without_the_drafter_is_rejected(target):
    costs = Costs(((1, 2.5), (8, 3.0)), {"lookup": DraftCost(0.25, 0.0)})
    with pytest.raises(ValueError, match="costs: expected times of suffix, got a table of lookup"):
        Session(target, "lookup+suffix", costs=costs).generate([[1, 2]], max_new_tokens=2)
