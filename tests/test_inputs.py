"""Every kind of input, run through the command line; the table of docs/inputs.md comes from here.

``GEOSEG_WRITE_INPUTS=1 pytest tests/test_inputs.py`` (``make docs``) writes the table anew.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import cases_kinds
import inputs_page
import numpy as np
import pytest
from affine import Affine
from cases import Case, Outcome, Unavailable, check, compare, run_case

from geoseg.imagery import read
from geoseg.jobs import plan

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    # what other programs write is not always what pyproj can say in PROJ's words
    pytest.mark.filterwarnings("ignore:You will likely lose important projection:UserWarning"),
]

CASES = inputs_page.all_cases()
IDS = [case.name for case in CASES]
WRITE = os.environ.get("GEOSEG_WRITE_INPUTS") == "1"


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory):
    """Return a function that runs a case once; None where it cannot be made here."""

    @cache
    def run(name: str) -> Outcome | None:
        case = CASES[IDS.index(name)]
        folder = tmp_path_factory.mktemp("case")
        try:
            return run_case(case, folder)
        except Unavailable:
            return None

    return run


def test_names_are_unique_and_there_are_enough():
    assert len(set(IDS)) == len(IDS)
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_an_input_ends_as_its_case_says(case, outcome_of):
    outcome = outcome_of(case.name)
    if outcome is None:
        pytest.skip("this machine cannot make the input")
    check(case, outcome)
    if case.exit_code == 0 and outcome.made.truth is not None:
        compare(outcome.made, outcome.objects)


def test_the_page_is_what_the_runs_say(outcome_of):
    outcomes = {case.name: outcome_of(case.name) for case in CASES}
    page = inputs_page.PAGE.read_text(encoding="utf-8")
    new = inputs_page.with_table(page, CASES, outcomes)
    if WRITE:
        inputs_page.PAGE.write_text(new, encoding="utf-8")
    else:
        assert page == new, "docs/inputs.md is old: make docs writes it anew"


# --- the comparison sees what is wrong ------------------------------------------------------------


def _moved(x: float, y: float):
    def break_it(monkeypatch):
        good = plan.describe_raster

        def describe(path):
            info = good(path)
            return replace(info, transform=info.transform * Affine.translation(x, y))

        monkeypatch.setattr(plan, "describe_raster", describe)

    return break_it


def _rows_for_columns(monkeypatch):
    """Take the transform's rows for columns: x from rows, y from columns."""
    good = plan.describe_raster

    def describe(path):
        info = good(path)
        a, b, c, d, e, f = info.transform[:6]
        return replace(info, transform=Affine(b, a, c, e, d, f))

    monkeypatch.setattr(plan, "describe_raster", describe)


def _pixels_turned(monkeypatch):
    """Read (column, row) where (row, column) was asked for."""
    good = read.RasterReader._source_block

    def block(self, y0, y1, x0, x1):
        height, width = self._src.height, self._src.width
        pixels, valid = good(self, 0, height, 0, width)
        side = max(height, width)
        square = np.zeros((len(pixels), side, side), pixels.dtype)
        square[:, :height, :width] = pixels
        usable = np.zeros((side, side), bool)
        usable[:height, :width] = valid
        return (
            square.transpose(0, 2, 1)[:, y0:y1, x0:x1].copy(),
            usable.T[y0:y1, x0:x1].copy(),
        )

    monkeypatch.setattr(read.RasterReader, "_source_block", block)


def _mask_ignored(monkeypatch):
    """Take every pixel as it is stored."""

    def block(self, y0, y1, x0, x1):
        window = read.Window(x0, y0, x1 - x0, y1 - y0)
        pixels, valid = read._stored(self._src, self._info, self._bands, window=window)
        return pixels.astype(self._dtype), np.ones_like(valid)

    monkeypatch.setattr(read.RasterReader, "_source_block", block)


EVERYWHERE = ("tiff", "jpeg-world", "grey-uint16", "south-up", "rotated", "crs-us-feet",
              "crs-degrees", "crs-web-mercator", "crs-antimeridian-degrees", "palette")  # fmt: skip
HIDING = ("alpha", "alpha-jpeg", "mask-jpeg", "msk", "msk-per-band", "nodata-255", "nodata-uint16",
          "nodata-aux", "nodata-values", "nodata-and-mask", "nan", "inf", "palette-png")  # fmt: skip
ERRORS = [
    *[
        pytest.param(name, _moved(x, y), id=f"{name}-{x}-{y}")
        for name in EVERYWHERE
        for x, y in ((0.5, 0), (0, -0.5), (0.5, 0.5))
    ],
    *[pytest.param(name, _rows_for_columns, id=f"{name}-axes") for name in EVERYWHERE],
    *[pytest.param(name, _pixels_turned, id=f"{name}-turned") for name in EVERYWHERE],
    *[pytest.param(name, _mask_ignored, id=f"{name}-unmasked") for name in HIDING],
]


@pytest.mark.parametrize(("name", "break_it"), ERRORS)
def test_the_comparison_turns_red_when_geoseg_errs(name, break_it, tmp_path, monkeypatch):
    case: Case = next(c for c in cases_kinds.CASES if c.name == name)
    break_it(monkeypatch)
    outcome = run_case(case, tmp_path)
    # what geoseg refuses is no quiet error, but then the test of it must change too
    assert outcome.exit_code == 0, outcome.err
    with pytest.raises(AssertionError):
        compare(outcome.made, outcome.objects)
