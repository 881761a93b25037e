"""Output of commands: answers, tables, and one line per error."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from known_costs import DRAFT, PASSES
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from specdec.cli import compare, console
from specdec.costs.table import Costs
from specdec.sources.embedded_files import embedded_model_path

QUESTIONS = Path(__file__).parents[1] / "data" / "questions.jsonl"


def test_generate_prints_answer_and_metrics(tiny_folder, run):
    out = run(
        "generate", "w5 w6 w5 w6", "--model", tiny_folder, "--max-new-tokens", 20, "--compare"
    ).out  # fmt: skip
    for figure in (
        "tokens per second",
        "tokens per round",
        "CTAR(1..6)",
        "removed by packing",
        "verify",
    ):
        assert figure in out
    assert out.count("1/1") == 3


def test_prompt_markup_is_printed_literally(tiny_folder, run):
    said = "what does [/INST] or a[i] :smile: mean"
    out = run("generate", said, "--model", tiny_folder, "--max-new-tokens", 2).out
    assert said in out


def test_bench_saves_every_run_and_reports_identical_tokens(tiny_folder, run, tmp_path):
    saved = tmp_path / "runs.json"
    arguments = ("--model", tiny_folder, "--limit", 2, "--max-new-tokens", 6, "--json", saved)
    out = run("bench", "--prompts", QUESTIONS, *arguments).out
    assert "2/2" in out
    result = json.loads(saved.read_text())
    assert len(result["runs"]) == 2 * 4
    assert list(tmp_path.iterdir()) == [saved]


def test_bench_batch_compares_listed_texts_with_single_texts(tiny_folder, run, tmp_path):
    saved = tmp_path / "runs.json"
    arguments = (
        "--model", tiny_folder, "--limit", 3, "--max-new-tokens", 6, "--json", saved, "--batch", 2,
        "--methods", "transformers,lookup,suffix",
    )  # fmt: skip
    said = run("bench", "--prompts", QUESTIONS, *arguments)
    assert "batch 2 (transformers one by one)" in said.out
    assert "plain, one text at a time" in " ".join(said.out.split())
    result = json.loads(saved.read_text())
    assert result["machine"]["batch"] == 2
    assert result["machine"]["reference"] == "plain"
    assert len(result["runs"]) == 3 * 4
    assert all(run["identical"] for run in result["runs"])
    last = said.err.splitlines()[-1]
    assert last.startswith("runs 15/15 ")  # the reference's three with them
    error = run("bench", "--prompts", QUESTIONS, "--batch", 2, "--turns", 2, code=2).err
    assert "batch: expected none with 2 turns, as a turn needs the answer before it, got 2" in error


def test_bench_exits_with_1_when_an_answer_differs(tiny_folder, run, monkeypatch):
    write = compare.Runner.write

    def wrong(self, method, prompt, most):
        written = write(self, method, prompt, most)
        return (
            written._replace(tokens=[*written.tokens[:-1], 5 - written.tokens[-1] % 2])
            if method == "lookup"
            else written
        )

    monkeypatch.setattr(compare.Runner, "write", wrong)
    arguments = ("--model", tiny_folder, "--limit", 1, "--max-new-tokens", 6)
    assert "differ beyond the tie rule" in run(
        "bench", "--prompts", QUESTIONS, *arguments, code=1
    ).err  # fmt: skip


def test_bench_rejects_too_long_prompts_before_the_first_run(
    tiny_folder, run, tmp_path, monkeypatch
):
    lines = [
        {"question_id": i, "category": "a", "turns": ["w3 " * n]} for i, n in ((1, 2), (2, 300))
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(compare, "run_benchmark", lambda *_, **__: pytest.fail("ran"))
    arguments = ("--prompts", tmp_path / "q.jsonl", "--model", tiny_folder)
    error = run("bench", *arguments, code=2).err
    assert "positions, got 301 in question 2" in error


def test_chat_keeps_history_until_exit(tiny_folder, run, monkeypatch):
    said = iter(["w5 w6", "", "w7 w8", "/exit", "w9"])
    monkeypatch.setattr(console, "input", lambda prompt: next(said))
    out = run("chat", "--model", tiny_folder, "--max-new-tokens", 8).out
    assert out.count("tokens/s") == 2
    assert list(said) == ["w9"]


@pytest.mark.parametrize("end", ["", "/exit\nw9\n", " /exit "])
def test_piped_chat_labels_user_and_model_turns(tiny_folder, run, monkeypatch, end):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffw5 [w6]\n\n  \nw7\n" + end))
    out = run("chat", "--model", tiny_folder, "--max-new-tokens", 4).out
    for line in ("you: w5 [w6]\nmodel: ", "you: w7\nmodel: "):
        assert line in out
    assert out.count("tokens/s") == 2
    assert "w9" not in out


def test_info_lists_versions_threads_and_model(tiny_folder, run):
    out = run("info", "--model", tiny_folder).out
    for fact in ("torch", "transformers", "threads", "exact bfloat16", "LlamaForCausalLM"):
        assert fact in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", " "], "prompt: expected some text, got none"),
        (["generate", "w1", "--drafter", "magic"], "drafter: expected one of plain, lookup"),
        (["generate", "w1", "--max-nodes", "0"], "max_nodes: expected 1 to 256, got 0"),
        (["generate", "w1", "--max-nodes", "257"], "max_nodes: expected 1 to 256, got 257"),
        (["generate", "w1", "--max-new-tokens", "0"], "max_new_tokens: expected at least 1, got 0"),
        (["generate", "w1", "--device", "toaster"], "device: expected one of this machine's, got 'toaster'"),
        (["generate", "w1 " * 200], "prompts: expected fewer tokens than the model's 160 positions, got 201"),
        (["generate", "w1", "--seed", "3"], "seed: expected none at temperature 0, got 3"),
        (["generate", "w1", "--top-p", "0.9"], "top_p: expected none at temperature 0, got 0.9"),
        (["chat", "--seed", "3"], "seed: expected none at temperature 0, got 3"),
        (["generate", "w1", "--temperature", "1", "--top-p", "0"], "top_p: expected above 0 to 1, got 0.0"),
        (["bench", "--prompts", "nowhere.jsonl"], "prompts: expected a readable JSONL file, got nowhere.jsonl"),
        (["bench", "--prompts", str(QUESTIONS), "--methods", "magic"], "methods: expected some of plain"),
        (["bench", "--prompts", str(QUESTIONS), "--limit", "0"], "limit: expected at least 1, got 0"),
        (["bench", "--prompts", str(QUESTIONS), "--methods", "plain+transformers"], "methods: expected some of plain"),
        (["bench", "--prompts", str(QUESTIONS), "--json", "/"], "json: expected a file in an existing folder"),
        (["bench", "--prompts", str(QUESTIONS), "--json", "/no/where.json"], "json: expected a file in an existing folder"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_error_line_and_exit_code_2(tiny_folder, refused, arguments, message):
    assert message in refused(*arguments, "--model", tiny_folder)


def test_error_names_unknown_and_unsupported_models(run, tmp_path, capsys):
    assert "got 'no/model'" in run("generate", "x", "--model", "no/model", code=2).err
    from transformers import MambaConfig, MambaForCausalLM

    shape = {"vocab_size": 11, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 1}
    MambaForCausalLM(MambaConfig(**shape)).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()  # what the library says while saving
    error = run("generate", "x", "--model", tmp_path, code=2).err
    assert "model: MambaForCausalLM is not supported" in error
    assert len(error.strip().splitlines()) == 1


def processor_seconds(*command):
    before = os.times()
    # Threads that wait for each other spend time too, the more the busier a machine is.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=environment
    )
    after = os.times()
    spent = after.children_user + after.children_system
    return spent - before.children_user - before.children_system, done.stdout


@pytest.mark.model
def test_first_token_takes_at_most_three_times_the_transformers_import(tmp_path):
    embedded_model_path()  # warm
    # The table of what passes cost is measured once per machine, not here.
    costs = Costs(PASSES, {"redrafter": DRAFT, "lookup": DRAFT}, tree=0.5)
    costs.save(tmp_path / "costs.json")
    imported, _ = processor_seconds("-c", "from transformers import LlamaForCausalLM")
    first, out = processor_seconds(
        "-m", "specdec.cli", "generate", "--raw", "Once upon a time", "--max-new-tokens", "1",
        "--costs", str(tmp_path / "costs.json"),
    )  # fmt: skip
    assert out.strip()
    # Of the processor's time, for others may run beside it.
    assert first < 3 * imported
