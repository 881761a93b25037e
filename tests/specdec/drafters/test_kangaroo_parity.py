"""Kangaroo against the authors' code: drafts, confidences, verification and text of recorded rounds."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from kangaroo_drafts import Recorder, follows_the_rule
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.model.target import Target
from specdec.session import Session

GOLDEN = Path(__file__).parents[2] / "data" / "kangaroo"


@pytest.mark.parametrize("case", ["mha_base", "gqa", "eos_stop"])
def test_rounds_equal_the_authors(case, monkeypatch):
    golden = json.loads((GOLDEN / f"{case}.json").read_text())
    was, weights = golden["config"], load_file(GOLDEN / golden["weights"])
    config = LlamaConfig(
        vocab_size=was["vocab"],
        hidden_size=was["hidden"],
        intermediate_size=was["inter"],
        num_hidden_layers=was["layers"],
        num_attention_heads=was["heads"],
        num_key_value_heads=was["kv_heads"],
        max_position_embeddings=was["max_length"],
        rms_norm_eps=1e-6,
    )
    model = LlamaForCausalLM(config).eval()
    own = {name.removeprefix("adapter."): w for name, w in weights.items() if "adapter" in name}
    model.load_state_dict({name: w for name, w in weights.items() if "adapter" not in name})
    kangaroo_config = KangarooConfig(
        was["hidden"],
        was["heads"],
        was["kv_heads"],
        was["hidden"] // was["heads"],
        exit_layer=was["exit"],
        eta=was["eta"],
        gamma=was["steps"],
    )
    adapter = kangaroo_config.new_adapter()
    adapter.load_state_dict(own)
    drafter = KangarooDrafter(Target(model), kangaroo_config, adapter)
    recorder = Recorder(drafter, monkeypatch)

    prompt, gamma = golden["prompt"], was["steps"]
    # They count the longest text, the prompt included.
    most = min(was["max_length"] - len(prompt), was["max_new"])
    text, accepted = list(prompt), []
    session = Session(drafter.target, drafter, max_nodes=gamma + 1)
    stream = session.stream([prompt], max_new_tokens=most, eos_token_ids=[was["eos"]])
    for (emitted,) in stream:
        text += emitted.tokens
        accepted.append(len(emitted.tokens))  # prefill's token is their first entry
        if (
            len(text) - len(prompt) >= most - gamma
        ):  # they begin a round only where a whole draft fits
            break

    assert text == golden["final"]
    assert accepted == golden["accept_lengths"]
    rounds = golden["rounds"]
    assert [draft for (draft,) in recorder.tokens] == [r["draft"] for r in rounds]
    assert [p[0].tolist() for p in recorder.picked[1:]] == [r["verify"] for r in rounds]
    for (ours,), theirs in zip(recorder.confidences, rounds, strict=True):
        assert ours == pytest.approx(theirs["conf"], abs=1e-4)
        assert follows_the_rule(ours, was["eta"], gamma)
