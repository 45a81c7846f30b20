"""The tests' plain implementation, which a benchmark run as a script does not see: `from plain import plain`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
plain = import_module("tests.reference")
