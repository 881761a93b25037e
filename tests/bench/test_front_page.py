"""The README's table of results, and the recording that it shows."""

import json
import re
from xml.etree import ElementTree

import pytest

from bench.recording.draw import COLUMNS, draw_recording, placed
from bench.report.front.page import results_table

SVG = "{http://www.w3.org/2000/svg}"


def result(device, plain, drafted):
    methods = {"transformers": 10.0, "transformers-lookup": 11.0, "plain": plain, "suffix+recycling": drafted, "mixed": drafted}  # fmt: skip
    summary = {
        method: {
            "tokens_per_second": speed,
            "speedup_vs_transformers": speed / 10,
            "speedup_vs_plain": speed / plain,
            "tokens_per_round": 2.5,
            "identical": 13,
            "answers": 13,
        }
        for method, speed in methods.items()
    }
    machine = {"device": device, "dtype": "float32", "threads": 2, "versions": {"torch": "2"}}
    return json.dumps({"summary": summary, "machine": machine})


@pytest.fixture
def results(tmp_path):
    for dtype in ("float32", "bfloat16"):
        (tmp_path / f"spec_bench_cpu_{dtype}.json").write_text(
            result("cpu (AMD EPYC, AVX512)", 20.0, 30.0)
        )
    return tmp_path


def rows(results):
    lines = [line for line in results_table(results).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_table_has_five_rows_with_the_two_factors_apart(results):
    found = rows(results)
    assert len(found) == 5
    assert found[0][0] == "AMD EPYC, AVX-512"
    assert found[0][3:9] == ["10.0", "30.0", "2.00", "1.50", "3.00", "2.50"]


def test_class_without_a_file_is_not_measured(results):
    *_, last = rows(results)
    assert last[:5] == ["AVX2", "float32", "`redrafter+lookup`", "not measured", "-"]


def test_another_class_has_its_own_ratios_and_machine(results):
    (results / "spec_bench_cpu_float32_avx2.json").write_text(
        result("cpu (Intel Xeon, AVX2)", 11.0, 22.0)
    )
    *_, last = rows(results)
    assert last[:8] == ["Intel Xeon, AVX2", "float32", "`redrafter+lookup`", "10.0", "22.0", "1.10", "2.00", "2.20"]  # fmt: skip
    assert "cpu (Intel Xeon, AVX2)" in results_table(results)


def test_older_file_has_a_class_that_was_not_recorded(results):
    (results / "spec_bench_cpu_float32.json").write_text(result("cpu (AMD EPYC)", 20.0, 30.0))
    assert rows(results)[0][0] == "AMD EPYC, class not recorded"


def recording():
    words = ["Some", " words", "\n", "    of", " code <b>", " and", " more"] * 20
    runs = {}
    for way, size in (("plain", 1), ("drafted", 3)):
        rounds = [
            {"at": 0.1 + at / 50, "tokens": [[word, way == "drafted" and place < size - 1] for place, word in enumerate(words[at : at + size])]}
            for at in range(0, len(words), size)
        ]  # fmt: skip
        seconds = rounds[-1]["at"]
        runs[way] = {"tokens": len(words), "seconds": seconds, "tokens_per_second": len(words) / seconds, "rounds": rounds}  # fmt: skip
    machine = {"device": "cpu (AMD EPYC, AVX512)", "dtype": "float32", "threads": 2}
    return {"machine": machine, "model": "tiny", "prompt": "Say it.", "same_text": True, "runs": runs}  # fmt: skip


def test_picture_is_small_and_plays_without_scripts_or_fonts(tmp_path):
    draw_recording(recording(), tmp_path / "terminal.svg")
    text = (tmp_path / "terminal.svg").read_text()
    assert len(text) < 150_000
    assert not re.search(r"<script|@import|@font-face|href|url\(", text)
    assert "prefers-reduced-motion" in text and "prefers-color-scheme" in text
    assert text.count("@keyframes") == len(re.findall("animation-name", text))


def test_picture_shows_the_whole_text_of_both_ways_and_marks_drafted_tokens(tmp_path):
    draw_recording(recording(), tmp_path / "terminal.svg")
    tree = ElementTree.parse(tmp_path / "terminal.svg")
    shown = [element.text for element in tree.iter(f"{SVG}text")]
    assert shown.count("words") == 2 * 20
    drafted = [group for group in tree.iter(f"{SVG}g") if group.get("class") == "d"]
    assert sum(len(group.findall(f"{SVG}text")) for group in drafted) > 40
    right = max(float(e.get("x")) + float(e.get("textLength")) for e in tree.iter(f"{SVG}text"))
    assert right <= float(tree.getroot().get("width"))


def test_text_is_broken_between_words():
    pieces, lines = placed(["word "] * 40)
    assert lines == 3
    for own in pieces:
        for _, column, text in own:
            assert column + len(text.rstrip()) <= COLUMNS
