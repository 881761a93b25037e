"""Whoever runs a release that was not tested is told so, once."""

import pytest

import specdec
from specdec.sources import releases
from tiny import tiny_model


@pytest.fixture(autouse=True)
def not_warned_yet():
    releases.warn_of_newer_release.cache_clear()
    yield
    releases.warn_of_newer_release.cache_clear()


@pytest.mark.parametrize("release", ["5.24.1", "5.25.0.dev0", "6.0.0"])
def test_untested_transformers_release_warns_once_per_process(release, monkeypatch, recwarn):
    monkeypatch.setattr(releases, "NEWEST_TESTED", "5.24.0")
    # By its name in that module: the library replaces itself in sys.modules.
    monkeypatch.setattr(releases.transformers, "__version__", release)
    for _ in range(2):
        specdec.load_target(tiny_model("llama"))
    said = [w for w in recwarn if "newest release tested" in str(w.message)]
    assert [
        f"expected at most 5.24.0, the newest release tested, got {release}" in str(w.message)
        for w in said
    ] == [True]
    assert said[0].filename == __file__


@pytest.mark.parametrize("release", ["5.17.0", "5.23.0", "5.24.0"])
def test_tested_transformers_release_does_not_warn(release, monkeypatch, recwarn):
    monkeypatch.setattr(releases, "NEWEST_TESTED", "5.24.0")
    monkeypatch.setattr(releases.transformers, "__version__", release)
    specdec.load_target(tiny_model("llama"))
    assert not [w for w in recwarn if "newest release tested" in str(w.message)]
