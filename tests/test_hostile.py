"""Each hostile input ends as its case says."""

from __future__ import annotations

import pytest
from cases import check, run_case
from cases_hostile import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_input_ends_as_its_case_says(case, tmp_path):
    outcome = run_case(case, tmp_path)
    check(case, outcome)
    assert "\x1b" not in outcome.err
