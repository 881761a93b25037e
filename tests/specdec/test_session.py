import pytest
import torch

import specdec
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.session import Session
from tiny import POSITIONS, VOCABULARY, library_greedy, random_prompt, tiny_model


def test_generate_output_equals_transformers():
    model = tiny_model("llama")
    ids = torch.tensor([random_prompt(9, 1), random_prompt(9, 2)])
    ends = [int(library_greedy(model, ids[0].tolist(), 12)[6])]
    options = {"max_new_tokens": 12, "eos_token_id": ends, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    for drafter in ("plain", "lookup"):
        assert torch.equal(specdec.generate(model, ids, drafter, **options), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_change_the_tokens(side):
    model = tiny_model("qwen3")
    prompts = [random_prompt(4, 1), random_prompt(11, 2)]
    rows = [torch.tensor(p) for p in prompts]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(rows, batch_first=True, padding_side=side)
    mask = pad([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    options = {"max_new_tokens": 9, "eos_token_id": [VOCABULARY + 1]}
    out = specdec.generate(model, ids, attention_mask=mask, **options)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    expected = [library_greedy(model, p, 9) for p in prompts]
    assert out[:, ids.shape[1] :].tolist() == expected
    assert specdec.generate(model, rows, **options)[:, 11:].tolist() == expected


def test_session_prefills_only_new_tokens(monkeypatch):
    model = tiny_model("llama", seed=3)
    target = Target(model)
    read = []
    prefill = target.prefill
    monkeypatch.setattr(
        target, "prefill", lambda ids, *rest: read.append(ids.shape[1]) or prefill(ids, *rest)
    )
    session = Session(target, "lookup", max_nodes=8)
    prompt = random_prompt(20, 4)
    first = session.generate([prompt], max_new_tokens=10).tokens[0]
    longer = prompt + first + random_prompt(5, 5)
    second = session.generate([longer], max_new_tokens=10).tokens[0]
    assert second == library_greedy(model, longer, 10)
    assert read == [20, 6]  # the last token written was never cached, and five came new

    other = longer[:12] + random_prompt(9, 6)  # goes back: rolled back by length
    third = session.generate([other], max_new_tokens=10).tokens[0]
    assert third == library_greedy(model, other, 10)
    assert read[2] <= 9

    again = session.generate([other], max_new_tokens=10).tokens[0]  # the same prompt once more
    assert again == third
    assert read[3] == 1


def test_session_continues_after_eos_inside_a_path_and_after_an_abandoned_stream():
    model = tiny_model("llama", seed=4)
    prompt = random_prompt(6, 6) * 3
    full = library_greedy(model, prompt, 20)
    session = Session(Target(model), "lookup")
    ended = session.generate([prompt], max_new_tokens=20, eos_token_ids=[full[7]]).tokens[0]
    longer = prompt + ended + random_prompt(3, 7)
    assert session.generate([longer], max_new_tokens=9).tokens[0] == library_greedy(
        model, longer, 9
    )

    rounds = session.stream([longer], max_new_tokens=20)
    next(rounds), next(rounds)
    rounds.close()
    assert session.generate([longer], max_new_tokens=9).tokens[0] == library_greedy(
        model, longer, 9
    )


def test_stream_ended_by_a_newer_one_raises():
    session = Session(Target(tiny_model("llama", seed=5)), "plain")
    older = session.stream([random_prompt(4, 1)], max_new_tokens=9)
    next(older)
    list(session.stream([random_prompt(4, 2)], max_new_tokens=3))
    with pytest.raises(RuntimeError, match="a newer stream replaced"):
        next(older)


def test_metrics_of_several_streams_add_up():
    session, metrics = Session(Target(tiny_model("llama", seed=5)), "plain"), Metrics()
    list(session.stream([random_prompt(4, 1)], max_new_tokens=9, metrics=metrics))
    once = dict(metrics.seconds)
    list(session.stream([random_prompt(4, 2)], max_new_tokens=5, metrics=metrics))
    assert metrics.new_tokens == 14
    assert all(metrics.seconds[stage] > seconds for stage, seconds in once.items())


def test_session_accepts_batches_between_conversations():
    model = tiny_model("llama", seed=5)
    session = Session(Target(model), "lookup")
    for prompts in ([random_prompt(5, 1)], [random_prompt(4, 2), random_prompt(8, 3)], [[7]]):
        expected = [library_greedy(model, p, 8) for p in prompts]
        assert session.generate(prompts, max_new_tokens=8).tokens == expected


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts: expected at least one, got none"),
        ([[3], []], {}, "prompts: expected at least one token, got none in row 1"),
        ([[3] * POSITIONS], {}, f"fewer tokens than the model's {POSITIONS} positions, got {POSITIONS} in row 0"),
        ([[3, VOCABULARY]], {}, f"prompts: expected ids from 0 to {VOCABULARY - 1}, got 3 to {VOCABULARY} in row 0"),
        ([[3, -1]], {}, "got -1 to 3 in row 0"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
    ],
)  # fmt: skip
def test_error_names_the_invalid_prompt(prompts, options, message):
    session = Session(Target(tiny_model("llama")))
    with pytest.raises(ValueError, match=message):
        session.generate(prompts, **({"max_new_tokens": 4} | options))


def test_session_is_correct_after_an_interrupted_prefill(monkeypatch):
    model = tiny_model("llama", seed=8)
    target = Target(model)
    session = Session(target, "plain")
    first = random_prompt(30, 8)
    text = first + session.generate([first], max_new_tokens=4).tokens[0]
    held = session.cache
    monkeypatch.setattr("specdec.model.target.PREFILL_CHUNK", 8)
    passes, run = [], target.run_layers

    def interrupted(*arguments):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(target, "run_layers", interrupted)
        session.generate([first[:5] + random_prompt(24, 9)], max_new_tokens=4)
    assert session.cache is held  # the interruption struck while the held cache was written over
    again = session.generate([text], max_new_tokens=9).tokens[0]
    assert again == library_greedy(model, text, 9)
