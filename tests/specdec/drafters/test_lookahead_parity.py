"""Lookahead against the authors' code, step by step from the state that they recorded.

Two rules of theirs are not ours. A guess that matches in full gives one token less than it could; here it gives it. And
n-grams of their generated text hold its last token several times; here they are the text's own.
"""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.decode import accept, pack
from specdec.drafters import Budget
from specdec.drafters.lookahead import LookaheadConfig, LookaheadDrafter
from specdec.model.target import Target
from specdec.sampling import most_likely
from specdec.state import State
from specdec.text import Text

GOLDEN = Path(__file__).parents[2] / "data" / "lookahead"
CASES = ["w5n4g4", "w4n3g3_eos"]
NODES = 64


class Case:
    """A recorded text, its model, and a drafter with the same settings."""

    def __init__(self, name):
        golden = json.loads((GOLDEN / f"{name}.json").read_text())
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.tensors = {n[7:]: x for n, x in tensors.items() if n.startswith("golden.")}
        model = LlamaForCausalLM(LlamaConfig(**golden["model"])).eval()
        model.load_state_dict({n: x for n, x in tensors.items() if not n.startswith("golden.")})
        self.target, was = Target(model), golden["config"]
        self.config = LookaheadConfig(
            window=was["WINDOW_SIZE"],
            ngram=was["LEVEL"],
            guesses=was["GUESS_SET_SIZE"],
            text_ngrams=False,
            min_prob=1e-9,
        )
        self.golden, self.steps = golden, golden["steps"]

    @torch.inference_mode()
    def state_before(self, step):
        """Return rows that hold the text before a step, its current token the root, and the drafter."""
        text = self.golden["final"][: step["input_len"]]
        cache = self.target.new_cache(rows=1, capacity=len(text) + 40, tree_capacity=NODES + 40)
        rows = Text([list(text)], [30], margin=NODES, device=self.target.device)
        self.target.prefill(rows.ids[:, : len(text) - 1], [len(text) - 1], cache)
        state = State(cache, rows, eos_token_ids=frozenset())
        state._roots = 1
        drafter = LookaheadDrafter(self.config)
        drafter.start(state)
        return state, drafter


def pool_of(recorded):
    return {int(key): [tuple(n) for n in ngrams] for key, ngrams in recorded.items()}


def listed(pool):
    return {key: list(ngrams) for key, ngrams in pool.items()}


def pools_before(case):
    """Return the recorded pool before each step."""
    pools, pool = [], case.golden["initial_pool"]
    for step in case.steps:
        pools.append(pool_of(pool))
        pool = step.get("pool_after_generated") or step.get("pool_after_window") or pool
    return pools


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_window_guesses_pool_and_acceptance_equal_the_authors_in_every_step(name):
    case = Case(name)
    length = case.config.ngram - 1
    full = 0
    for at, (step, pool) in enumerate(zip(case.steps, pools_before(case), strict=True)):
        if at == 0:
            continue  # theirs runs in the prompt's pass, ours in the first round
        state, drafter = case.state_before(step)
        assert state.roots.tolist() == step["input_tokens"]
        row = state.memory[drafter].rows[0]
        row.levels = [level for level in step["window"] if level is not None]
        row.pool = {key: OrderedDict.fromkeys(ngrams) for key, ngrams in pool.items()}

        budget = Budget(NODES, NODES - 1, torch.tensor([NODES - 1]))
        proposals = drafter.draft(state, budget)
        side = proposals.side
        window = [token for level in row.levels for token in level]
        assert side.tokens.tolist() == [window]
        mask = case.tensors.get(f"step{at}/mask")
        if mask is not None:
            cached = mask.shape[1] - mask.shape[0]
            theirs = mask[1 : 1 + len(window), cached:]
            assert theirs[:, 0].all()  # the root
            assert torch.equal(theirs[:, 1 : 1 + len(window)], side.sees)
            assert mask[:, :cached].all()
        guesses = proposals.tokens.view(-1, length)[proposals.valid.view(-1, length)[:, 0]]
        theirs = torch.tensor(step["guess"] or []).view(-1, length)
        assert guesses.flip(0).tolist() == theirs.tolist()  # the latest first

        tree = pack(state.roots, proposals, budget)
        verified = case.target.verify(tree, state.cache, state.rows, None, side)
        picked = most_likely(verified.logits)
        assert picked[0, 0] == step["out_argmax"]
        assert most_likely(verified.side_logits).tolist() == [step["window_argmax"]]
        logits = case.tensors.get(f"step{at}/window_logits")
        if logits is not None:
            torch.testing.assert_close(verified.side_logits[0], logits, atol=1e-4, rtol=0)

        accepted = accept(tree, picked)
        count = int(accepted.lengths)
        tokens = tree.tokens[0, accepted.path[0, 1 : count + 1]].tolist()
        tokens.append(int(accepted.next_tokens))
        whole = count == length
        full += whole
        written = step["accepted_tokens"]
        assert tokens[: len(written)] == written
        # Theirs ends with the text, and drops the token after a whole guess.
        ended = written[-1] == case.golden["config"]["eos"] or at == len(case.steps) - 1
        assert len(tokens) - len(written) == whole or ended

        drafter.observe(state, tree, accepted, verified)
        state.memory[drafter].advance()
        # Nothing goes into the pool while the window fills.
        recorded = step.get("pool_after_window")
        assert listed(row.pool) == (pool_of(recorded) if recorded else pool)
        if at + 1 < len(case.steps):
            assert row.levels == [x for x in case.steps[at + 1]["window"] if x is not None]
    assert full or name != "w5n4g4"


def test_prompt_pool_equals_the_authors():
    case = Case("w4n3g3_eos")
    state, drafter = case.state_before(case.steps[0] | {"input_len": len(case.golden["prompt"])})
    row = state.memory[drafter].rows[0]
    row.read(case.golden["prompt"])
    assert listed(row.pool) == pool_of(case.golden["initial_pool"])
