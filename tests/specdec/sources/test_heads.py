"""Drafters from the hub: which of their files are fetched."""

from fnmatch import fnmatch

import pytest

from specdec.sources.heads import fetched_head

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("published", "fetched"),
    [
        (("model.safetensors", "pytorch_model.bin"), {"model.safetensors"}),
        (("medusa_lm_head.safetensors", "medusa_lm_head.pt"), {"medusa_lm_head.safetensors"}),
        ((*SHARDS, "model.safetensors.index.json", "a.bin"), {*SHARDS, "model.safetensors.index.json"}),
        (("pytorch_model.bin", "train.py"), {"pytorch_model.bin"}),
        (("medusa_lm_head.pt",), {"medusa_lm_head.pt"}),
    ],
)  # fmt: skip
def test_weights_are_fetched_once_and_safetensors_first(published, fetched, tmp_path, monkeypatch):
    def download(name, *, allow_patterns):
        assert name == "nobody/head"
        for file in ("config.json", *published):
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetched_head("nobody/head", weights=False) == tmp_path
    assert {file.suffix for file in tmp_path.iterdir()} == {".json"}
    fetched_head("nobody/head", weights=True)
    assert {file.name for file in tmp_path.iterdir()} == fetched | {"config.json"}
