"""REST against the authors' code: what is found, how often, which paths are kept, and the text.

Their rules where they differ from ours stand here: texts are joined without anything between them, a match has at least two
tokens, and paths are cut by the number of their distinct tokens. Ties are broken at random there, so paths are compared where
repeated searches agreed.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from specdec.datastore.build import build_datastore
from specdec.datastore.store import Datastore
from specdec.drafters.rest import RestConfig, RestDrafter
from specdec.model.target import Target
from specdec.session import Session

DATA = Path(__file__).parents[2] / "data" / "rest"
SETS = ("gqa_64", "mha_span5_d300")


@pytest.fixture(params=SETS)
def golden(request, tmp_path):
    """The authors' rounds, and a store of their text, which to them is one."""
    case = json.loads((DATA / f"{request.param}.json").read_text())
    joined = [token for text in case["documents"] for token in text]
    assert case["chunks"] == [len(joined)]
    vocabulary = case["config"]["vocab_size"]
    build_datastore(tmp_path / "store", [joined], vocabulary_size=vocabulary)
    return case, Datastore.open(tmp_path / "store")


def rounds_of(case, store):
    """Per round of theirs what we find."""
    config = case["config"]
    for theirs in case["rounds"]:
        context = case["final"][: theirs["input_len"] + 1]
        match = store.longest(context, max(config["token_spans"]))
        if match.length < min(config["token_spans"]):
            yield theirs, 0, Counter()
            continue
        found = match.continuations(config["k"], config["long"]).tolist()
        rows = [[token for token in row if token >= 0] for row in found]
        counts = Counter(tuple(row[:end]) for row in rows for end in range(1, len(row) + 1))
        yield theirs, match.length, counts


def test_matches_equal_the_authors(golden):
    for theirs, length, _ in rounds_of(*golden):
        assert length == theirs["matched_span"]


def test_counts_of_continuations_equal_brute_force(golden):
    case, joined = golden[0], [token for text in golden[0]["documents"] for token in text]
    for theirs, length, counts in rounds_of(*golden):
        end = case["final"][: theirs["input_len"] + 1][-length:]
        expected = Counter(
            tuple(joined[place : place + steps])
            for place in range(length, len(joined))
            for steps in range(1, case["config"]["long"] + 1)
            if length and joined[place - length : place] == end and place + steps <= len(joined)
        )
        assert counts == expected


def cut(counts, budget):
    """Choose paths by the authors' rule."""
    assert len(counts) <= budget  # none goes by its count
    cost = {path: len(set(path)) for path in counts}
    left = sorted(cost, key=cost.get)
    while sum(cost[path] for path in left) > budget:
        left.pop()
    return set(left)


def test_paths_equal_the_authors_deterministic_ones(golden):
    case, compared = golden[0], 0
    for theirs, _, counts in rounds_of(*golden):
        retrieved = {tuple(path) for path in theirs["retrieved"]}
        assert retrieved <= set(counts)
        if theirs["repeat_sets_equal"] and theirs["order_free"] and counts:
            kept = cut(counts, case["config"]["max_num_draft"])
            nodes = {path[:end] for path in kept for end in range(1, len(path) + 1)}
            assert kept == retrieved
            assert nodes == {tuple(path) for path in theirs["tree_paths"]}
            compared += 1
    assert compared >= 3


def test_final_text_equals_the_authors(tmp_path):
    case = json.loads((DATA / "gqa_64.json").read_text())
    with torch.inference_mode(False):
        model = AutoModelForCausalLM.from_pretrained(DATA / "gqa_64", dtype=torch.float32)
    build_datastore(tmp_path / "store", case["documents"], vocabulary_size=160)
    drafter = RestDrafter(Datastore.open(tmp_path / "store"), RestConfig(min_prob=1e-6))
    written = Session(Target(model.eval()), drafter, max_nodes=64).generate(
        [case["prompt"]], max_new_tokens=len(case["final"]) - len(case["prompt"])
    )
    assert case["prompt"] + written.tokens[0] == case["final"]
    assert len(written.metrics.gains) <= 2 * len(case["rounds"])
