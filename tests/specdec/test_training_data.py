"""Data: what the target writes for itself, and texts of other origin."""

import json

import pytest

from specdec.models import load_model
from specdec.train.data import (
    Conversation,
    Overlap,
    SelfWriter,
    read_conversations,
    read_turns,
    write_data,
)
from specdec.train.openers import Opener
from tiny import library_greedy


def test_user_turns_come_from_any_jsonl(tmp_path):
    path = tmp_path / "turns.jsonl"
    path.write_text('{"text": "a"}\n{"prompt": "b"}\n{"turns": ["c", "d"]}\n')
    assert read_turns(path) == ["a", "b", "c"]


def test_texts_that_share_thirteen_words_overlap():
    words = [f"w{i}" for i in range(40)]
    kept_out = Overlap.of([" ".join(words), "a short question"])
    assert "so " + " ".join(words[10:23]).upper() + "!" in kept_out
    assert " ".join(words[10:22]) not in kept_out
    assert "A short question?" in kept_out
    assert "a short question more" not in kept_out


class Writer:
    """Writes like `SelfWriter`, without a model; some batches are empty."""

    def __init__(self, seed=0, batch=2):
        self.seed, self.batch, self.answer_tokens = seed, batch, 9

    def write(self, number, exclude, turns):
        texts = turns or [f"{number}a", f"{number}b"]
        lines = [{"prompt_ids": [1], "answer_ids": [number, len(t)], "of": t} for t in texts]
        return [] if number % 4 == 3 else lines


def test_data_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path):
    nothing = Overlap.of([])
    whole = tmp_path / "whole.jsonl"
    assert write_data(Writer(), whole, tokens=24, exclude=nothing) == 24
    for left in (0, 1, 2, 5):
        killed = tmp_path / f"{left}.jsonl"
        lines = whole.read_text().splitlines(keepends=True)
        killed.write_text("".join(lines[:left]) + lines[left][:7])  # in the middle of a line
        assert write_data(Writer(), killed, tokens=24, exclude=nothing) == 24
        assert killed.read_text() == whole.read_text()
    for other in (Writer(seed=1), Writer(batch=3)):
        with pytest.raises(ValueError, match="out: expected a file made with"):
            write_data(other, whole, tokens=99, exclude=nothing)
    for text in ('{"prompt_ids": [1]}\n', "[1]\n", "text\n"):
        killed.write_text(text)
        with pytest.raises(ValueError, match="out: expected a file that specdec data began"):
            write_data(Writer(), killed, tokens=99, exclude=nothing)
    with pytest.raises(ValueError, match="out: expected a name that does not end in .gz"):
        write_data(Writer(), tmp_path / "data.gz", tokens=9, exclude=nothing)


@pytest.mark.parametrize("after", ["\nAnswer:", ""])
def test_a_turn_ends_where_the_template_goes_on(after):
    class Tokenizer:
        chat_template = "{{ … }}"

        def apply_chat_template(self, messages, tokenize):
            return f"Question: {messages[0]['content']}{after}"

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids))

    writer = SelfWriter(None, Tokenizer())
    assert writer.before_turn == "Question: "
    new = " tides.\nAnswer: The moon.\nQuestion:"
    turn = writer._turn(Opener("Explain", 20), [ord(c) for c in new])
    assert turn == ("Explain tides." if after else f"Explain{new}")


def test_given_turns_are_answered_once_each(tmp_path):
    turns = list("abcdefg")
    out = tmp_path / "data.jsonl"
    write_data(Writer(), out, tokens=10**6, exclude=Overlap.of([]), turns=turns)
    written = [json.loads(line)["of"] for line in out.read_text().splitlines()]
    assert written == list("abcdef")  # the fourth batch of this writer is empty


@pytest.mark.model
@pytest.mark.slow
def test_the_target_writes_its_own_data():
    model, tokenizer = load_model()
    writer = SelfWriter(model, tokenizer, batch=3, answer_tokens=12, seed=5)
    first = writer.write(0, Overlap.of([]))
    assert first == writer.write(0, Overlap.of([]))
    assert writer.write(2, Overlap.of([]), ["Name a colour."])[0]["mode"] == "sampled"
    assert {line["mode"] for line in first} == {"greedy"}
    for line in first:
        text = tokenizer.decode(line["prompt_ids"])
        assert text.startswith(writer.before_turn)
        assert text.endswith("assistant\n")
        # Greedy answers are the library's, up to rounding: batched rows are padded.
        expected = library_greedy(model, line["prompt_ids"], 4, [2])
        assert line["answer_ids"][:2] == expected[:2]
    turn = "What is the tallest mountain on Earth, and who was the first to climb it?"
    assert writer.write(0, Overlap.of([turn]), [turn]) == []


def test_texts_of_any_origin_are_learned_whole(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "abc"}\n{"prompt_ids": [7], "answer_ids": [8]}\n')

    def tokenizer(text):
        return {"input_ids": [ord(c) - 90 for c in text]}

    assert read_conversations(path, tokenizer) == [
        Conversation([7], [8, 9]), Conversation([7], [8])
    ]  # fmt: skip
    with pytest.raises(ValueError, match="data: expected an object with prompt_ids"):
        read_conversations(path)
