"""Write the table of docs/inputs.md from the tests: ``python docs/make_inputs.py``.

It runs every case of tests/cases_*.py, some minutes on two cores; pytest compares the page.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["GEOSEG_WRITE_INPUTS"] = "1"
    tests = Path(__file__).parents[1] / "tests" / "test_inputs.py"
    sys.exit(pytest.main([str(tests), "-q", "-k", "ends_as_its_case_says or the_page"]))
