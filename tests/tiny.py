"""`tests/support/tiny.py`, for who knows it here: one module, wherever it is imported from."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

support = Path(__file__).parent / "support"
if str(support) not in sys.path:
    sys.path.append(str(support))
spec = spec_from_file_location(__name__, support / Path(__file__).name)
sys.modules[__name__] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[__name__])
