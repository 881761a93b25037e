"""What the pins hold, and what `make pins` leaves of what was resolved."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from specdec.sources.releases import NEWEST_TESTED

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [Requirement(line) for line in LINES if line and not line.startswith("#")]


def pinned(name):
    return [pin for pin in PINS if pin.name == name and (not pin.marker or pin.marker.evaluate())]


def test_every_pin_is_one_public_version():
    for pin in PINS:
        [spec] = pin.specifier
        assert spec.operator == "=="
        assert Version(spec.version).local is None, pin
        assert canonicalize_name(pin.name) == pin.name


def test_the_pinned_transformers_is_the_newest_tested():
    [pin] = pinned("transformers")
    assert str(pin.specifier) == f"=={NEWEST_TESTED}"


def needed(requirement, found):
    """Walk what is installed; what a CUDA build of torch brings along is none of ours."""
    name = canonicalize_name(requirement.name)
    for extra in requirement.extras or {""}:
        if (name, extra) in found or re.match("(nvidia|cuda)-", name):
            continue
        found.add((name, extra))
        try:
            others = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # needed to build only
            continue
        for other in others:
            if other.marker is None or other.marker.evaluate({"extra": extra}):
                needed(other, found)


@pytest.mark.parametrize(
    "wanted",
    [
        "specdec-kernels[bench,dev,docs]",
        "hatchling",
        "editables",
        "tilelens",
        "anytree",
        "ml-dtypes",
    ],
)
def test_every_installed_package_is_pinned(wanted):
    found = set()
    if wanted == "tilelens":  # without what it declares
        found.add((wanted, ""))
    else:
        needed(Requirement(wanted), found)
    names = {name for name, _ in found} - {"specdec-kernels"}
    assert names
    assert [name for name in sorted(names) if len(pinned(name)) != 1] == []


def test_resolved_versions_become_pins():
    from bench.releases.pins import pins

    resolved = [
        "colorama==0.4.6 ; sys_platform == 'win32'",
        "numpy==2.4.6 ; python_full_version < '3.12'",
        "numpy==2.5.1 ; python_full_version >= '3.12'",
        "nvidia-cublas==13.1.1.3 ; sys_platform == 'linux'",
        "cuda-bindings==13.5.0",
        "torch==2.13.0+cpu",
        "torchaudio==2.13.0+cpu",
    ]
    assert pins(resolved, "# by hand\ntorch==2.13.0\n") == [
        "colorama==0.4.6",
        "numpy==2.4.6 ; python_full_version < '3.12'",
        "numpy==2.5.1 ; python_full_version >= '3.12'",
        "torchaudio==2.13.0",
    ]
