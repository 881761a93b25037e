"""A process in which kernels are compiled, not interpreted."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def compile_in_another_process(*command):
    """Run a script where kernels are compiled, not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
