"""The benchmark on a tiny model: recorded results, and detection of wrong tokens."""

import json

import pytest
import torch
from rich.console import Console

from specdec.evaluate.benchmark import chat_prompts, run_benchmark
from specdec.evaluate.method_names import check_methods
from specdec.evaluate.methods import Runner
from specdec.evaluate.questions import Question, read_questions
from specdec.evaluate.replay import SAME, Verdict, judge
from specdec.evaluate.report import benchmark_tables, metrics_table
from specdec.evaluate.runs import Efficiency, Run, decode_speed, decode_speedup, efficiency
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.state import Emitted
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model

METHODS = ["transformers", "transformers-lookup", "lookup"]
QUESTIONS = [Question(1, "qa", ["ab", "c"]), Question(2, "rag", ["abcabcabc"])]


class Letters:
    """A tokenizer of one letter per token."""

    def apply_chat_template(self, messages, add_generation_prompt):
        return {"input_ids": [3 + ord(c) % 50 for m in messages for c in m["content"]]}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + i % 26) for i in ids)


def benchmark(runner=Runner, dtype=torch.float64, turns=2, exact=False, batch=None):
    model = tiny_model("llama", seed=6, dtype=dtype)
    target = Target(model, Letters(), exact=exact)
    return run_benchmark(
        runner(target, model, max_nodes=8, eos=[VOCABULARY + 1]),
        chat_prompts(Letters(), QUESTIONS, turns),
        METHODS,
        max_new_tokens=12,
        load_model64=lambda: tiny_model("llama", seed=6),
        progress=lambda question, method: None,
        batch=batch,
    )


def test_every_run_is_recorded_and_summarized():
    result = benchmark()
    saved = json.loads(json.dumps(result.as_json()))
    assert set(saved) == {"runs", "summary", "machine"}
    assert len(saved["runs"]) == 4 * 3  # the plain loop joins; three turns in all
    for run in saved["runs"]:
        assert {
            "method", "question_id", "category", "new_tokens", "rounds", "prefill_seconds", "decode_seconds",
            "tokens_per_round", "ctar", "nodes_per_round", "identical", "ties",
        } <= set(run)  # fmt: skip
        assert run["identical"]
        assert run["new_tokens"] == 12
    assert list(saved["summary"]) == ["plain", *METHODS]
    for summary in saved["summary"].values():
        assert {
            "tokens_per_second", "speedup_vs_transformers", "speedup_vs_plain", "tokens_per_round", "ctar",
            "identical", "stage_seconds", "decode_speedup_vs_transformers", "decode_speedup_vs_plain", "efficiency",
        } <= set(summary)  # fmt: skip
        assert summary["lossless"]
    assert saved["summary"]["plain"]["tokens_per_round"] == 1.0
    assert saved["summary"]["plain"]["speedup_vs_plain"] == 1.0
    assert [m for m, s in saved["summary"].items() if s["efficiency"]] == ["lookup"]
    assert efficiency(
        *([r for r in result.runs if r.method == m] for m in ("lookup", "plain"))
    ) == Efficiency(**saved["summary"]["lookup"]["efficiency"])
    assert {"device", "dtype", "threads", "versions"} <= set(saved["machine"])
    assert saved["machine"]["reference"] == "transformers"
    assert result.lossless
    tables = benchmark_tables(result)
    assert [t.row_count for t in tables] == [4, 4, 1, 2]
    wide = Console(width=200)
    assert all(wide.measure(table).maximum <= 80 for table in tables)


def test_listed_texts_share_the_time_and_are_compared_with_single_texts():
    result = benchmark(turns=1, batch=1)
    assert result.machine["batch"] == 1
    assert result.machine["reference"] == "plain"
    assert result.lossless
    assert len(result.runs) == 2 * 4
    plain = [run for run in result.runs if run.method == "plain"]
    assert plain[0].decode_seconds == plain[1].decode_seconds > 0
    assert plain[0].seconds == plain[1].seconds
    assert [run.rounds for run in plain] == [11, 11]
    speed = 24 / sum(run.prefill_seconds + run.decode_seconds for run in plain)
    assert result.summary["plain"]["tokens_per_second"] == pytest.approx(speed)
    assert [t.row_count for t in benchmark_tables(result)] == [4, 4, 1]


def test_wrong_tokens_of_a_list_count_as_errors():
    class Wrong(Runner):
        def write_list(self, method, *arguments):
            written = super().write_list(method, *arguments)
            if method == "lookup":
                written[1] = written[1]._replace(tokens=wrong_token(written[1].tokens))
            return written

    result = benchmark(Wrong, turns=1, batch=2)
    assert not result.lossless
    assert result.summary["lookup"]["identical"] == 1
    assert result.summary["plain"]["errors"] == 0


def lookup_that(change):
    """A runner whose lookup text is changed."""

    class Wrong(Runner):
        def write(self, method, prompt, max_new_tokens):
            written = super().write(method, prompt, max_new_tokens)
            return (
                written._replace(tokens=change(written.tokens)) if method == "lookup" else written
            )

    return Wrong


def wrong_token(tokens):
    return [*tokens[:5], (tokens[5] + 1) % VOCABULARY, *tokens[6:]]


@pytest.mark.parametrize(
    "change", [wrong_token, lambda tokens: tokens[:-3], lambda tokens: [*tokens, 5]]
)
def test_wrong_tokens_and_wrong_ends_count_as_errors(change):
    result = benchmark(lookup_that(change))
    assert not result.lossless
    assert result.summary["lookup"]["errors"] >= 3
    assert result.summary["lookup"]["identical"] == 0
    assert result.summary["transformers"]["errors"] == 0


def test_exact_mode_counts_ties_as_errors(monkeypatch):
    monkeypatch.setattr("specdec.evaluate.benchmark.judge", lambda *_: Verdict(1, 0, 0.0))
    result = benchmark(lookup_that(wrong_token), dtype=torch.bfloat16, exact=True)
    assert result.summary["lookup"]["errors"] == 3
    assert not result.lossless


def test_exact_mode_compares_with_the_plain_loop_instead_of_transformers(monkeypatch):
    monkeypatch.setattr("specdec.evaluate.benchmark.judge", lambda *_: Verdict(1, 0, 1e-7))

    class OtherLibrary(Runner):
        def _library(self, method, prompt, max_new_tokens):
            written = super()._library(method, prompt, max_new_tokens)
            return written._replace(tokens=wrong_token(written.tokens))

    result = benchmark(OtherLibrary, dtype=torch.float32, exact=True)
    assert result.machine["reference"] == "transformers"
    assert result.summary["lookup"]["errors"] == result.summary["plain"]["errors"] == 0


def test_judge_distinguishes_ties_from_errors():
    model, prompt = tiny_model("llama", seed=6), random_prompt(5, 1)
    expected = library_greedy(model, prompt, 8)
    assert judge(model, prompt, expected, expected, torch.float32) == SAME
    with torch.inference_mode():
        last = model(torch.tensor([prompt + expected[:-1]])).logits[0, -1]
    best, second = last.topk(2).values
    other = [*expected[:-1], int(last.topk(2).indices[1])]
    for text, reference in ((other, expected), (expected, other)):  # whichever of the two is wrong
        verdict = judge(model, prompt, reference, text, torch.float32)
        assert verdict[:2] == (0, 1)
        assert verdict.margin == pytest.approx(float((best - second) / best.abs()))

    class Tied:
        """The same model with the second-best token lifted to just under the best."""

        device = model.device

        def __call__(self, ids, **options):
            out = model(ids, **options)
            out.logits[0, -1, other[-1]] = out.logits[0, -1].max() * (1 - 1e-7)
            return out

    for text, reference in ((other, expected), (expected, other)):
        assert judge(Tied(), prompt, reference, text, torch.float32)[:2] == (1, 0)


def test_metrics_equal_hand_computed_values():
    metrics = Metrics()
    for gain in (1, 3, 4):
        metrics.count([Emitted(0, list(range(gain)), gain - 1, 8, 10, False)])
    assert metrics.tokens_per_round == pytest.approx(8 / 3)
    assert [metrics.ctar(w) for w in (1, 2, 3, 4)] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0])
    assert metrics.nodes_per_round == 8
    assert metrics.share_removed == pytest.approx(0.2)
    assert metrics_table(metrics, "by hand").row_count == 7
    other = Metrics()
    other.add(metrics)
    assert other.rounds == 3
    assert Metrics().tokens_per_round == Metrics().ctar(1) == Metrics().tokens_per_second == 0


def timed_run(method, new_tokens, decode_seconds, rounds, verify, draft):
    return Run(
        method, 1, 0, "qa", new_tokens, 0.5, decode_seconds, rounds,
        (new_tokens - 1) / rounds if rounds else 0.0, None, None, True, 0, 0, 0.0,
        {"prefill": 0.5, "draft": draft, "verify": verify, "commit": 7.0},
    )  # fmt: skip


def test_speedup_and_efficiency_equal_hand_computed_values():
    # Two prompts, 60 tokens behind the first ones. Plain: 60 rounds of 0.1 s and 1 s beside them.
    plain = [timed_run("plain", n + 1, n * 0.1 + 0.5, n, n * 0.1, 0.0) for n in (20, 40)]
    # 30 rounds of 0.12 s, 0.03 s of drafting each, and 0.5 s beside them.
    drafted = [
        timed_run("lookup", 21, 1.75, 10, 1.2, 0.3), timed_run("lookup", 41, 3.25, 20, 2.4, 0.6)
    ]  # fmt: skip
    assert decode_speed(plain) == pytest.approx(60 / 7)
    assert decode_speedup(drafted, plain) == pytest.approx(7 / 5)
    found = efficiency(drafted, plain)
    assert found.tokens_per_round == pytest.approx(2)
    assert found.plain_verify_seconds == pytest.approx(0.1)
    assert found.verify_seconds == pytest.approx(0.12)
    assert found.draft_seconds == pytest.approx(0.03)
    assert found.bound == pytest.approx(2 * 0.1 / 0.15)
    assert found.reached == pytest.approx(7 / 5 / (2 * 0.1 / 0.15))


def test_single_token_texts_have_no_speed_or_efficiency():
    single = [timed_run("plain", 1, 1e-6, 0, 0.0, 0.0)]
    assert decode_speed(single) is None
    assert decode_speedup(single, single) is None
    assert efficiency(single, single) is None


def test_questions_are_read_in_order_and_limited(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [{"question_id": i, "category": "ab"[i % 2], "turns": [str(i)]} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [q.question_id for q in read_questions(path)] == [0, 1, 2, 3, 4, 5]
    assert [q.question_id for q in read_questions(path, per_category=2, limit=3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"question_id": 1, "category": "a"}', '{"question_id": 1, "category": "a", "turns": [""]}'],
)  # fmt: skip
def test_error_names_the_malformed_line(tmp_path, line):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "category": "a", "turns": ["x"]}\n' + line)
    with pytest.raises(ValueError, match=r"prompts: expected an object .* line 2, got "):
        read_questions(path)


def test_error_names_unknown_methods_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="methods: expected some of plain, transformers"):
        check_methods(["plain", "magic"])
    with pytest.raises(ValueError, match="prompts: expected a readable JSONL file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="prompts: expected at least one question"):
        read_questions(tmp_path / "empty.jsonl")


def test_half_precision_is_compared_with_the_plain_loop():
    result = benchmark(dtype=torch.bfloat16, turns=1)
    assert result.machine["reference"] == "plain"
