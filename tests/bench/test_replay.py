"""Replayed settings: small cases by hand, and texts that were written for real."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.replay.drafts import Thresholds, draft
from bench.replay.measure import oracle
from bench.replay.policy import Fitted, Fixed, Replay
from bench.replay.positions import LENGTH, Positions, load_record
from bench.replay.record import PLACES, STEPS, WIDTH
from bench.replay.tables import Table, load_tables, noisy, steeper
from specdec.costs.line import CostLine

RESULTS = Path(__file__).parents[2] / "bench" / "results"
FITTED = Fitted(rate=2.2, search=0.76, lookup=0.97, step=0.2)
TABLE = Table("by hand", {1: 10, 2: 11, 3: 13}, step=1.0, search=0.5, lookup=0.25)


@pytest.fixture(scope="module")
def record():
    return load_record()


@pytest.fixture(scope="module")
def replay(record):
    return Replay(record.positions)


def by_hand(lengths=(4, 2, 2)):
    """Texts; at every position a right token of probability 0.5 and behind it a wrong one of 0.45."""
    starts = np.cumsum([0, *lengths])
    left = np.concatenate([np.arange(length, 0, -1) for length in lengths])
    count = len(left)
    score = np.full((count, STEPS, WIDTH), -np.inf)
    score[:, 0, 0], score[:, 1, 0] = np.log(0.5), np.log(0.45)
    node = np.zeros((count, STEPS, WIDTH), np.int16)
    node[:, 1, 0] = 1
    right, depth = np.zeros((count, 100), bool), np.zeros((count, 100), np.int8)
    right[:, 0], depth[:, :2] = True, (1, 2)
    none = np.zeros((count, PLACES), np.int16)
    places = np.full((count, PLACES, LENGTH), -1, np.int16)
    return Positions(starts, left, left, score, np.zeros_like(node), node, none, places, right, depth)  # fmt: skip


def test_one_row_equals_hand_computed_values():
    replay = Replay(by_hand())
    written = replay.write([0], TABLE, replay.today(TABLE))
    # Two nodes, the first right: two tokens; a third step is paid for and finds nothing. Then a single token is left to draft.
    assert (written.tokens, written.rounds, written.steps, written.nodes) == (4, 2, 4, 5)
    assert written.ms == pytest.approx((13 + 0.75 + 3) + (11 + 0.75 + 1))


def test_rows_are_padded_to_the_widest():
    replay = Replay(by_hand((4, 2)))
    written = replay.write([0, 1], TABLE, replay.fixed(Fixed(nodes=32)), rows=2)
    # Both rows: 3 and 2 nodes are 2 x 3 of a pass, which the table's last slope makes 19 ms; steps of two rows take 1.1 ms.
    assert (written.tokens, written.rounds, written.nodes) == (6, 2, 7)
    assert written.ms == pytest.approx((19 + 0.75 + 3 * 1.1) + (11 + 0.75 + 1))


@pytest.mark.parametrize(("refill", "rounds"), [(False, 3), (True, 2)])
def test_next_text_starts_when_one_or_all_texts_end(refill, rounds):
    replay = Replay(by_hand())
    written = replay.write([0, 1, 2], TABLE, replay.today(TABLE), rows=2, refill=refill)
    assert (written.tokens, written.rounds) == (8, rounds)


def test_plain_passes_generate_one_token_per_row():
    replay = Replay(by_hand())
    written = replay.write([0, 1], TABLE, replay.plain, rows=2)
    assert (written.tokens, written.rounds) == (6, 4)
    assert written.ms == pytest.approx(2 * 11 + 2 * 10)


def test_rows_share_nodes_only_on_a_cpu():
    replay = Replay(by_hand())
    assert [replay.today(TABLE)(rows).nodes for rows in (1, 2, 4, 8)] == [16, 4, 2, 2]
    elsewhere = replace(TABLE, on_cpu=False)
    assert [replay.today(elsewhere)(rows).nodes for rows in (1, 2, 8)] == [16, 16, 16]


def test_capacity_keeps_the_most_likely_nodes_and_ends_the_search():
    replay = Replay(by_hand())
    written = replay.write([0], TABLE, replay.fixed(Fixed(nodes=2)))
    assert (written.nodes, written.steps, written.tokens) == (4, 2, 4)


def test_thresholds_leave_out_nodes():
    positions = by_hand()
    assert draft(positions, Thresholds(search=0.46)).size[0].tolist() == [0, 1, 1, 1, 1]
    assert draft(positions, Thresholds(search=0.51)).size[0].tolist() == [0] * 5
    assert draft(positions, Thresholds()).accepted[0, 2, :3].tolist() == [0, 1, 1]


def test_oracle_verifies_only_correct_nodes():
    replay = Replay(by_hand((4,)))
    # Two rounds of a root and a right node, each a search with one step, without lookup.
    assert oracle(replay, [0], TABLE) == pytest.approx(4 / (2 * (11 + 0.5 + 1)))


def test_replayed_rounds_equal_decoded_rounds(record, replay):
    assert len(record.again) == 4
    for text, (gains, nodes) in record.again.items():
        roots = replay.visited([text], replay.today(TABLE)(1))
        end = record.positions.starts[text + 1]
        assert np.diff([*roots, end]).tolist() == gains
        written = replay.write([text], TABLE, replay.today(TABLE))
        assert (written.rounds, written.nodes) == (len(gains), nodes)


def test_replayed_texts_come_from_the_record_for_any_number(record):
    few = load_record(texts=2)
    assert len(few.positions.starts) == 3
    count = few.positions.starts[-1]
    assert (few.positions.right == record.positions.right[:count]).all()


@pytest.mark.parametrize("table", load_tables(), ids=lambda table: table.name)
def test_times_wrong_by_a_fifth_cost_at_most_three_percent(replay, table):
    texts = range(39)
    undisturbed = replay.write(texts, table, replay.computed(table, FITTED)).rate
    rates = []
    for seed in range(8):
        line = CostLine.fit(noisy(table.points(), 0.2, seed))
        rates.append(replay.write(texts, table, replay.computed(table, FITTED, line)).rate)
    assert np.mean(rates) >= 0.97 * undisturbed


def test_steeper_line_starts_at_the_same_time():
    line = CostLine(20.0, 4.0, 0.5)
    assert steeper(line, 1.2).ms(1) == line.ms(1)
    assert steeper(line, 1.2).ms(14) == pytest.approx(26.0)


def test_tables_on_the_page_equal_the_result(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    from bench.report.settings.replay import draw_settings, replay_tables

    result = json.loads((RESULTS / "replay.json").read_text())
    tables = replay_tables(result)
    rows = {name: sum(line.startswith("|") for line in text.splitlines()) for name, text in tables.items()}  # fmt: skip
    assert rows["replay-single"] == rows["replay-prices"] == 2 + 4
    assert rows["replay-batches"] == 2 + 16
    assert rows["replay-disturbed"] == 2 + 7
    assert "aims are met" in tables["replay-gates"]
    draw_settings(result, tmp_path / "settings.png")
    assert (tmp_path / "settings.png").stat().st_size > 10_000
