"""The choice of prepacked weights: measured once per machine, kept on disk, independent of the number of rows."""

import copy
import json

import pytest
import torch

from specdec.load import load_target
from specdec.model import product_times
from specdec.model.product_times import is_faster_prepacked, measure, read_times, times_file
from specdec.session import Session
from specdec_kernels.decoder_layer import PlainProduct, PrepackedProduct, can_prepack
from tiny import library_greedy, random_prompt, tiny_model

pytestmark = pytest.mark.skipif(
    not can_prepack(torch.float32), reason="torch has no such operators here"
)
SHAPE, OTHER = (700, 300), (300, 700)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Times as they are given, in a folder of the test; what was asked for is noted."""
    asked = []
    times = {SHAPE: [1.0, 2.0], OTHER: [2.0, 1.0]}

    def fake(shape, dtype):
        asked.append(shape)
        return times.get(shape, [1.0, 1.0])

    monkeypatch.setattr(product_times, "measure", fake)
    monkeypatch.setattr(product_times, "cache_folder", lambda: tmp_path)
    product_times._is_faster.cache_clear()
    yield asked
    product_times._is_faster.cache_clear()


def test_decision_is_measured_once_and_kept_on_disk(measured):
    for _ in range(2):
        assert not is_faster_prepacked(SHAPE, torch.float32)
        assert is_faster_prepacked(OTHER, torch.float32)
        product_times._is_faster.cache_clear()  # another process
    assert measured == [SHAPE, OTHER]
    assert read_times(times_file(torch.float32)) == {"700x300": [1.0, 2.0], "300x700": [2.0, 1.0]}


def test_equal_times_and_small_weights_are_prepacked(measured):
    assert is_faster_prepacked((1000, 1000), torch.float32)
    assert is_faster_prepacked((8, 8), torch.float32)
    assert measured == [(1000, 1000)]


def test_file_names_machine_threads_torch_and_dtype(measured):
    threads = torch.get_num_threads()
    names = {times_file(dtype).name for dtype in (torch.float32, torch.bfloat16)}
    torch.set_num_threads(threads + 1)
    try:
        names.add(times_file(torch.float32).name)
    finally:
        torch.set_num_threads(threads)
    assert len(names) == 3
    assert all(torch.__version__ in name and "/" not in name for name in names)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"700x300": [1]}', b'{"700x300": "fast"}', b'{"700x300": [1, 2]}']
)  # fmt: skip
def test_damaged_file_is_measured_again(content, measured):
    file = times_file(torch.float32)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert not is_faster_prepacked(SHAPE, torch.float32)
    assert measured == [SHAPE]
    assert json.loads(file.read_text())["700x300"] == [1.0, 2.0]


def test_folder_that_cannot_be_written_changes_nothing(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(product_times, "cache_folder", lambda: tmp_path / "file")
    assert not is_faster_prepacked(SHAPE, torch.float32)


def test_dtype_without_operators_is_not_measured(measured):
    assert not is_faster_prepacked(SHAPE, torch.float64)
    assert not measured


def test_times_are_positive_and_of_both_kinds():
    plain, prepacked = measure((96, 64), torch.float32)
    assert plain > 0 and prepacked > 0


def test_layers_are_prepacked_per_weight_shape(monkeypatch):
    """Products of the feed-forward part stay plain, those of attention are prepacked, and the text is the library's."""
    monkeypatch.setattr(product_times, "MIN_BYTES", 0)
    decision = {}

    def decide(shape, dtype):
        return decision.setdefault(shape, 64 not in shape)

    for module in ("lean_layers", "cpu_linear"):
        monkeypatch.setattr(f"specdec.model.{module}.is_faster_prepacked", decide)
    model = copy.deepcopy(tiny_model("llama", seed=3, dtype=torch.float32))
    target = load_target(model, prepack=True)
    layer = target.lean.layers[0]
    assert isinstance(layer.qkv, PrepackedProduct) and isinstance(layer.output, PrepackedProduct)
    assert all(isinstance(p, PlainProduct) for p in (layer.gate, layer.up, layer.down))
    prompt = random_prompt(9, 2)
    written = Session(target, "lookup").generate([prompt], max_new_tokens=12).tokens[0]
    assert written == library_greedy(model, prompt, 12)


def test_measuring_does_not_change_the_callers_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    measure((96, 64), torch.float32)
    assert torch.equal(torch.rand(3), expected)
