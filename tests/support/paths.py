"""Where things are, for tests: the checkout, and data of other projects that is read there and
never copied.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SHARED_DATA = ROOT.parent / "shared" / "data"
