"""Resolve all that `make demo` and `make test` install, for every Python and platform at once, into constraints.txt.

    make pins

What stands above the line in constraints.txt was decided by hand and stays; transformers is the newest release tested. Everything
else is the newest that goes with these. A package that needs other versions for some Pythons gets several lines.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import ROOT
from specdec.sources.releases import NEWEST_TESTED

CONSTRAINTS = ROOT / "constraints.txt"
LINE = """\
# Written by `make pins`: all that these and ours need, build requirements too. What the CUDA builds of torch bring along
# (nvidia-*, cuda-*) is left out: they say which versions, and a CPU build has none of it.
"""
OLDEST_PYTHON = "3.11"
# For editable installs, and what the Makefile installs beside a package whose own requirements are not wanted.
BESIDE = ("editables", "anytree", "ml-dtypes", "z3-solver")
LEFT_OUT = re.compile(r"(nvidia|cuda)-")


def main() -> None:
    by_hand = CONSTRAINTS.read_text(encoding="utf-8").split(LINE)[0]
    fixed = f"{by_hand}\ntransformers=={NEWEST_TESTED}\n"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    resolved = resolve([*build["requires"], *BESIDE], fixed)
    CONSTRAINTS.write_text(
        by_hand + LINE + "".join(f"{pin}\n" for pin in pins(resolved, by_hand)), encoding="utf-8"
    )


def resolve(requirements: list[str], constraints: str) -> list[str]:
    """Return `name==version` or `name==version ; marker` for all that the project and these requirements need."""
    with TemporaryDirectory() as folder:
        fixed, beside = Path(folder, "fixed.txt"), Path(folder, "beside.in")
        fixed.write_text(constraints, encoding="utf-8")
        beside.write_text("\n".join(requirements), encoding="utf-8")
        command = [
            sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", str(beside),
            "--extra=bench", "--extra=dev", "--extra=docs", "--universal",
            f"--python-version={OLDEST_PYTHON}", "--fork-strategy=fewest", f"--constraint={fixed}",
            "--only-binary=:all:", "--no-annotate", "--no-header", "--quiet",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()


def pins(resolved: list[str], by_hand: str) -> list[str]:
    """Bring what was resolved into the form of constraints: no builds, and markers only where versions differ."""
    split = [[part.strip() for part in line.partition(" ;")[::2]] for line in resolved]
    names = Counter(pin.split("==")[0] for pin, _ in split)
    lines = []
    for pin, marker in split:
        name, version = pin.split("==")
        if LEFT_OUT.match(name) or f"\n{name}==" in by_hand:
            continue
        public = f"{name}=={version.split('+')[0]}"  # a pin with a build's name would be found on few machines
        lines.append(f"{public} ; {marker}" if marker and names[name] > 1 else public)
    return lines


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    main()
