"""JSON and JSONL from anywhere: what can be read is read, the rest is named."""

import gzip
import json

import pytest

from specdec.evaluate.questions import read_questions
from specdec.host.json_files import read_json
from specdec.selftext.conversation import read_conversations, read_turns

QUESTION = {"question_id": 1, "category": "a", "turns": ["x"]}
CONVERSATION = {"prompt_ids": [1], "answer_ids": [2]}
READERS = {
    "questions": (read_questions, QUESTION, "prompts"),
    "turns": (read_turns, QUESTION, "prompts"),
    "conversations": (read_conversations, CONVERSATION, "data"),
}


@pytest.fixture(params=READERS)
def reader(request):
    return READERS[request.param]


def test_byte_order_marks_line_endings_empty_lines_and_gzip_are_read(tmp_path, reader):
    read, line, _ = reader
    text = json.dumps(line)
    for name, data in {
        "mark": b"\xef\xbb\xbf" + f"{text}\n{text}\n".encode(),
        "windows": f"{text}\r\n{text}\r\n".encode(),
        "empty lines": f"\n{text}\n \n\n{text}".encode(),
        "packed.gz": gzip.compress(b"\xef\xbb\xbf" + f"{text}\n{text}".encode()),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert len(read(path)) == 2, name


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_inside_texts_are_kept(tmp_path, separator):
    path = tmp_path / "x"
    text = f"a{separator}b"
    line = json.dumps(QUESTION | {"turns": [text]}, ensure_ascii=False)
    path.write_text(f"{line}\n{line}", encoding="utf-8")
    assert read_turns(path) == [text, text]


@pytest.mark.parametrize(
    "line",
    ["[]", "3", "null", '"text"', "{", "NaN", '{"a": 1}', "\0", "[" * 100_000, '{"question_id": 1e999}', "1" * 5000],
)  # fmt: skip
def test_error_names_the_malformed_line(tmp_path, reader, line):
    read, right, name = reader
    path = tmp_path / "x"
    path.write_text(f"{json.dumps(right)}\n{line}\n")
    with pytest.raises(ValueError, match=f"^{name}: expected an object .* line 2, got ") as refusal:
        read(path)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "turns", ['"text"', "[]", '[""]', "[3]", "{}", "null", '[["a"]]', '["\\ud800"]', '["a", null]']
)
def test_turns_that_are_no_list_of_texts_are_rejected(tmp_path, turns):
    path = tmp_path / "x"
    path.write_text(f'{{"question_id": 1, "category": "a", "turns": {turns}}}')
    for read in (read_questions, read_turns):
        with pytest.raises(ValueError, match="prompts: expected an object .* line 1, got "):
            read(path)


@pytest.mark.parametrize(
    "fields",
    [{"question_id": float("inf")}, {"question_id": float("nan")}, {"question_id": "x"}, {"question_id": None},
     {"category": 3}, {"category": "\ud800"}],
)  # fmt: skip
def test_questions_without_valid_id_and_category_are_rejected(tmp_path, fields):
    path = tmp_path / "x"
    path.write_text(json.dumps(QUESTION | fields))
    with pytest.raises(ValueError, match="prompts: expected an object"):
        read_questions(path)


@pytest.mark.parametrize("ids", ["text", [1.5], [True], [-1], [None], {}, 3, [float("nan")], [[1]]])
def test_token_ids_that_are_no_lists_of_integers_are_rejected(tmp_path, ids):
    path = tmp_path / "x"
    for name in CONVERSATION:
        path.write_text(json.dumps(CONVERSATION | {name: ids}))
        with pytest.raises(ValueError, match="data: expected an object with prompt_ids"):
            read_conversations(path)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe{\x00}\x00", b'{"a": "\xe9"}', gzip.compress(b"{}" * 9, mtime=0)[:-9], b"\x1f\x8bx"],
)
def test_error_names_files_that_are_not_text(tmp_path, reader, data):
    read, _, name = reader
    for path in (tmp_path / "x", tmp_path / "x.gz"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{name}: expected a"):
            read(path)


@pytest.mark.parametrize("read", [read_questions, read_turns])
def test_empty_files_are_rejected(tmp_path, read):
    path = tmp_path / "x"
    for data in (b"", b"\xef\xbb\xbf", b"\n\n"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="prompts: expected at least one"):
            read(path)


def test_json_files_must_hold_an_object(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    for data in (b"", b"[]", b"NaN", b"3", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="expected a"):
            read_json(path)
