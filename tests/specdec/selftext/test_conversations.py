"""Conversations to learn from: user turns, what must stay out, and texts of any origin."""

import pytest

from specdec.selftext.conversation import read_conversations, read_turns
from specdec.selftext.overlap import Overlap
from specdec.selftext.record import Conversation


def test_user_turns_are_read_from_text_prompt_and_turns_fields(tmp_path):
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


def test_plain_texts_become_conversations_with_all_tokens_learned(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "abc"}\n{"prompt_ids": [7], "answer_ids": [8]}\n')

    def tokenizer(text):
        return {"input_ids": [ord(c) - 90 for c in text]}

    assert read_conversations(path, tokenizer) == [
        Conversation([7], [8, 9]), Conversation([7], [8])
    ]  # fmt: skip
    with pytest.raises(ValueError, match="data: expected an object with prompt_ids"):
        read_conversations(path)
