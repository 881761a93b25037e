"""The default model travels in parts and arrives as it was, or is refused."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bench.gpu.archive import split
from bench.gpu.model import decode, encode, model_folder, pack, store


def quantised(bits, offset, shape=(6, 64), seed=0):
    """What a GGUF file's blocks of 32 dequantise to."""
    random = np.random.default_rng(seed)
    blocks = np.prod(shape) // 32
    numbers = random.integers(0, 2**bits, (blocks, 32))
    numbers[:, 0], numbers[:, 1] = 0, 2**bits - 1
    if not offset:
        numbers = numbers - 2 ** (bits - 1)
        numbers[:, 0] = numbers[:, 0].clip(-127)
    scales = random.normal(size=(blocks, 1)).astype("f2").astype("f4") / 8
    scales = np.abs(scales) + np.float32(2**-10)
    values = numbers.clip(-127, 127).astype("f4") * scales.astype("f2").astype("f4")
    if offset:
        values = values + random.normal(size=(blocks, 1)).astype("f2").astype("f4")
    return values.reshape(shape)


WEIGHTS = {
    "four_bits": quantised(4, True),
    "eight_bits": quantised(8, False),
    "constant": np.zeros((2, 32), "f4"),
    "odd": np.arange(5, dtype="f4") / 7,
    "any": np.random.default_rng(1).normal(size=(2, 32)).astype("f4"),
}
WAYS = {"four_bits": "nibbles", "eight_bits": "bytes", "constant": "nibbles", "odd": "floats", "any": "floats"}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    save_file(WEIGHTS, made / "model.safetensors", metadata={"format": "pt"})
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_text("{1}")
    (made / "manifest.json").write_text("of float32 files")
    return made


@pytest.fixture
def parts(folder, tmp_path):
    files = []
    content = pack(folder)
    for at, part in enumerate(split(content, "m", len(content) // 3 + 1100)):
        files.append(tmp_path / f"part-{at}")
        files[-1].write_bytes(part)
    assert len(files) == 3
    return files


@pytest.mark.parametrize("name", WEIGHTS)
def test_packed_numbers_are_restored_bit_for_bit(name):
    packed = encode(name, WEIGHTS[name])
    assert WAYS[name] in packed
    found = decode(packed).reshape(WEIGHTS[name].shape)
    assert found.dtype == np.float32 and np.array_equal(found, WEIGHTS[name])


def test_model_parts_are_stored_separately_and_joined(parts, folder, tmp_path):
    aside = tmp_path / "aside"
    for at, missing in ((2, "1, 2 of 3"), (0, "2 of 3")):
        with pytest.raises(ValueError, match=f"model: part {missing} is missing"):
            store([parts[at]], aside)
    assert store([parts[1]], aside) == aside == store([], aside)
    found = model_folder(aside)
    assert sorted(path.name for path in found.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    assert (found / "tokenizer.json").read_text() == "{1}"
    weights = load_file(found / "model.safetensors")
    assert weights.keys() == WEIGHTS.keys()
    assert all(np.array_equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    for part in aside.glob("*of*"):
        part.unlink()
    assert model_folder(aside) == found  # once is enough
    assert store([folder], aside) == folder and model_folder(folder) == folder


def test_damaged_missing_or_foreign_parts_are_rejected(parts, tmp_path):
    aside = tmp_path / "aside"
    with pytest.raises(ValueError, match="model: none was given"):
        store([], aside)
    whole = parts[0].read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"x", b"no part", b'{"part": 1}\n'):
        parts[0].write_bytes(damaged)
        with pytest.raises(ValueError, match="model: expected an undamaged part .*part-0"):
            store([parts[0]], aside)
    parts[0].write_bytes(whole)
    head, _, content = whole.partition(b"\n")
    other = json.loads(head) | {"sha256": hashlib.sha256(content[::-1]).hexdigest()}
    parts[0].write_bytes(json.dumps(other).encode() + b"\n" + content[::-1])
    store(parts, aside)
    with pytest.raises(ValueError, match="parts that do not fit together"):
        model_folder(aside)
    assert not list(aside.glob("model*/"))


def test_model_has_at_most_three_parts():
    with pytest.raises(ValueError, match="limit: expected room for a third of 9000 bytes"):
        split(bytes(9000), "m", 3000)
    assert len(split(bytes(9000), "m", 1024 + 4500)) == 2
