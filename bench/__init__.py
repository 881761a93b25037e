"""What measures; README.md says which script makes which figure. From the repository's root: `python -m bench.ROOM.SCRIPT`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# `kernels` and `tests/support` are containers and no packages: what lies in them has no other way to be found where nothing is
# installed. Processes that are started from here get these as PYTHONPATH.
PATHS = [str(ROOT / folder) for folder in (".", "kernels", "tests/support")]
sys.path[:0] = [path for path in PATHS if path not in sys.path]
