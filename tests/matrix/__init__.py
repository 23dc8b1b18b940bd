"""The matrix: freeloc together with other libraries, on small real models: ``python -m tests.matrix``."""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path += [str(path) for path in (_TESTS, _TESTS / "support") if str(path) not in sys.path]  # as pytest does
