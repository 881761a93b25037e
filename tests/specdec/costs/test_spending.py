"""From a cost table to what a round may draft, and back to the guard."""

import pytest
import torch
from known_costs import known_costs

from every_drafter import DRAFTERS, lookup, redrafter
from specdec.costs.guard import Guard
from specdec.costs.prices import price
from specdec.costs.table import Costs
from specdec.drafters import Drafter, LookupDrafter, MixedDrafter, Proposals, load_drafter
from specdec.drafters.lookup import LookupConfig
from specdec.drafters.parts.calibration import Calibration
from specdec.drafters.protocol import Budget, DraftCost
from specdec.huggingface.generate import generate
from specdec.model.target import Target
from specdec.session import Session
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model

FLAT = ((1, 1.0), (16, 1.02), (64, 1.1))
PROMPTS = [random_prompt(9, 0) * 2, random_prompt(5, 1), random_prompt(7, 2)]


class Noise(Drafter):
    """Sure of random tokens."""

    calibration = Calibration(rate=2.0, share=1.0)

    def __init__(self):
        self.budgets = []

    def draft(self, state, budget):
        self.budgets.append(budget)
        rows, nodes = len(state.rows.host), min(budget.nodes - 1, budget.depth)
        tokens = torch.full((rows, nodes), 3)
        chain = torch.arange(-1, nodes - 1).expand_as(tokens)
        sure = torch.zeros(tokens.shape)
        return Proposals(tokens, chain, sure, sure == 0, torch.zeros_like(tokens))


def table(passes=FLAT, *drafters):
    return Costs(passes, dict.fromkeys(drafters, DraftCost(0.1, 0.2)))


def test_budget_uses_the_prices_of_the_cost_table():
    target = Target(tiny_model("llama"))
    drafter = load_drafter("lookup", target)
    costs = known_costs(target, drafter)
    for rows in (1, 4, 8):
        terms = Session(target, drafter, costs=costs).terms(rows)
        wanted = price(costs.line, drafter.calibration.rate, rows)
        assert (terms.nodes, terms.width) == (wanted.nodes, wanted.width)
        assert (terms.node_price, terms.ms_price) == (wanted.node, wanted.per_ms)


def test_flat_machines_get_wider_trees_and_lower_thresholds_than_steep_ones():
    target = Target(tiny_model("llama"))
    drafter = load_drafter("lookup", target)
    steep = Session(target, drafter).terms(1)
    flat = Session(target, drafter, costs=table(FLAT, "lookup")).terms(1)
    assert flat.nodes > 2 * steep.nodes and flat.width > steep.width
    assert flat.node_price < steep.node_price / 4
    assert Session(target, drafter).terms(8).nodes < steep.nodes


def test_union_adds_rates_and_prices_steps_per_drafter():
    target = Target(tiny_model("llama", dtype=torch.float32))
    parts = [redrafter(target, exit_dim=96), lookup(target)]
    union = MixedDrafter(parts)
    assert union.calibration.rate == pytest.approx(sum(p.calibration.rate for p in parts) - 1)
    costs = Costs(FLAT, {"ReDrafter": DraftCost(0.1, 0.2), "LookupDrafter": DraftCost(0.3, 0.0)})
    terms = Session(target, union, costs=costs).terms(1)
    known = parts[0].calibration
    assert terms.least_to_go_on(None, parts[0], known) == pytest.approx(
        terms.ms_price * 0.2 / known.step_gain
    )
    assert terms.least_to_go_on(None, parts[1], known) == 0
    assert terms.least_to_go_on(0.4, parts[0], known) == 0.4
    assert terms.spent(parts[0], 3) == pytest.approx(0.7)


def test_given_settings_override_the_cost_table():
    target = Target(tiny_model("llama"))
    drafter = LookupDrafter(LookupConfig(min_prob=0.5))
    assert Session(target, drafter, max_nodes=7).terms(4).nodes == 7
    budget = Budget(8, 3, torch.zeros(1), node_price=0.01)
    assert budget.least_score(0.5, drafter.calibration) == pytest.approx(-0.693, abs=1e-3)
    assert budget.least_score(None, drafter.calibration) < -4
    assert Budget(8, 3, torch.zeros(1)).least_score(None, drafter.calibration) == -float("inf")


def test_drafting_pauses_with_a_bad_drafter_and_tokens_do_not_change():
    model = tiny_model("llama")
    target, noise = Target(model), Noise()
    costs = known_costs(target, noise)
    for prompts in (PROMPTS[:1], PROMPTS):
        session = Session(target, noise, costs=costs)
        written = session.generate(prompts, max_new_tokens=60)
        assert written.tokens == [library_greedy(model, prompt, 60) for prompt in prompts]
        for row in written.statistics.rows:
            assert row.rested > 0.6 * row.rounds
        assert written.statistics.guard.rests
    asleep = [budget for budget in noise.budgets if budget.nodes == 1]
    assert asleep and all(budget.depth == 0 for budget in asleep)
    noise.budgets.clear()
    unwatched = Session(target, noise, costs=costs, guard=False).generate(
        PROMPTS, max_new_tokens=60
    )
    assert not any(budget.nodes == 1 and budget.depth for budget in noise.budgets)
    assert all(row.rested == 0 for row in unwatched.statistics.rows)


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_tokens_equal_transformers_however_often_drafting_pauses(make, monkeypatch):
    """Drafters are asked again after rounds in which they were not."""
    model = tiny_model("llama")
    target = Target(model)
    drafter = make(target)
    wanted = [library_greedy(model, prompt, 40) for prompt in PROMPTS]

    def in_turn(self, gained, plain, rows, drafted):
        self._rounds += 1
        self.resting = self._rounds // 3 % 2 == 1

    monkeypatch.setattr(Guard, "count", in_turn)
    for prompts, texts in ((PROMPTS, wanted), (PROMPTS[:1], wanted[:1])):
        written = Session(target, drafter).generate(prompts, max_new_tokens=40)
        assert written.tokens == texts
    (row,) = written.statistics.rows
    assert bool(row.rested) == (drafter.calibration is not None)


def test_same_call_gives_the_same_trees():
    target = Target(tiny_model("llama"))

    def trees():
        found = []
        drafter = load_drafter("suffix+recycling", target)
        Session(target, drafter).generate(
            PROMPTS, max_new_tokens=40, on_round=lambda r: found.extend(r.trees())
        )
        return found

    assert trees() == trees()


def test_max_nodes_limits_a_call_and_each_row():
    model = tiny_model("llama")
    target = Target(model)
    drafter = load_drafter("suffix+recycling", target)
    wanted = [library_greedy(model, prompt, 30) for prompt in PROMPTS]
    most = {0: 1, 1: 3, 2: 9}

    def check(round_):
        for e in round_.emitted:
            assert e.nodes <= most[e.row]

    session = Session(target, drafter, guard=False)
    written = session.generate(
        PROMPTS, max_new_tokens=30, max_nodes=list(most.values()), on_round=check
    )
    assert written.tokens == wanted
    rows = written.statistics.rows
    assert rows[0].drafted == 0 and rows[1].drafted > 0 and rows[2].drafted > 0
    again = session.generate(PROMPTS, max_new_tokens=30, max_nodes=2)
    assert again.tokens == wanted
    assert all(row.nodes <= 2 * row.rounds for row in again.statistics.rows)


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        ([1, 2], "max_nodes: expected one per text, 3, got 2"),
        ([1, 2, 0], "max_nodes: expected 1 to 256, got 0"),
        (257, "max_nodes: expected 1 to 256, got 257"),
    ],
)
def test_out_of_range_max_nodes_are_rejected(caps, message):
    target = Target(tiny_model("llama"))
    with pytest.raises(ValueError, match=message):
        Session(target, "lookup").generate(PROMPTS, max_new_tokens=3, max_nodes=caps)


def test_statistics_add_up_per_text_and_per_drafter():
    target = Target(tiny_model("llama"))
    union = load_drafter("lookup+recycling", target)
    written = Session(target, union).generate(PROMPTS, max_new_tokens=40)
    rows, metrics = written.statistics.rows, written.metrics
    assert [row.new_tokens for row in rows] == [len(text) for text in written.tokens]
    assert sum(row.rounds for row in rows) == metrics.rounds
    assert sum(row.nodes for row in rows) == metrics.nodes
    for row in rows:
        assert list(row.by_source) == ["lookup", "recycling"]
        assert row.drafted == row.nodes - row.rounds
        assert row.drafted == sum(counts.drafted for counts in row.by_source.values())
        assert row.accepted == sum(counts.accepted for counts in row.by_source.values())
        # Every round adds one token of the target's own, but perhaps the last; prefill gives one.
        assert row.new_tokens - row.accepted in (row.rounds, row.rounds + 1)
    assert any(row.accepted for row in rows)


def test_drafters_with_the_same_name_are_counted_separately():
    target = Target(tiny_model("llama"))
    union = MixedDrafter([lookup(target), lookup(target)])
    rows = Session(target, union).generate(PROMPTS, max_new_tokens=9).statistics.rows
    assert list(rows[0].by_source) == ["LookupDrafter", "LookupDrafter (2)"]


def test_generate_without_speculation_drafts_nothing():
    model = tiny_model("llama")
    target = Target(model)
    how = {"max_new_tokens": 20, "eos_token_id": VOCABULARY - 1, "return_dict_in_generate": True}
    plain = generate(target, PROMPTS[:1], "suffix", speculate=False, **how)
    (row,) = plain.statistics.rows
    assert row.drafted == 0 and row.rounds == row.new_tokens - 1
    drafted = generate(target, PROMPTS[:1], "suffix", **how)
    assert drafted.sequences.tolist() == plain.sequences.tolist()
    # A cache is read on by the drafter that has read it, which drafts nothing now.
    ids = drafted.sequences
    on = generate(target, ids, "suffix", speculate=False, cache=drafted.cache, **how)
    assert on.statistics.rows[0].drafted == 0
    capped = generate(target, PROMPTS, "suffix", max_nodes=[1, 4, 4], **how)
    assert capped.statistics.rows[0].drafted == 0
