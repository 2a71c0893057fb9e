"""Every kind of input, run through the command line; the table of docs/inputs.md comes from here.

``GEOSEG_WRITE_INPUTS=1 pytest tests/test_inputs.py`` (``make docs``) writes the table anew.
"""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from dataclasses import replace
from functools import cache

import cases_kinds
import inputs_page
import numpy as np
import painted_kinds
import pytest
from affine import Affine
from cases import Case, Outcome, Unavailable, check, compare, run_case

from geoseg.cli.main import main
from geoseg.imagery import read
from geoseg.imagery.georef import working_grid
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.source import describe_raster
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


@pytest.mark.slow
def test_objects_in_the_corner_of_a_huge_raster_come_back(tmp_path):
    outcome = run_case(cases_kinds.HUGE, tmp_path)
    check(cases_kinds.HUGE, outcome)
    compare(outcome.made, outcome.objects)


def test_a_huge_raster_is_described_and_read_in_a_corner_at_once(tmp_path):
    made = cases_kinds.huge(tmp_path)
    begun = time.process_time()
    info = describe_raster(tmp_path / "image.tif")
    side = cases_kinds.SIDE
    grid = TileGrid(info.height, info.width, 2048, 64, 8192)
    assert (info.height, info.width, grid.n_tiles > 40_000) == (side, side, True)
    window = read.Window(side - 300, side - 350, 300, 350)
    tracemalloc.start()
    pixels, valid = read.read_window(info, working_grid(info, None), window, (1,))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert valid.all()
    expected = cases_kinds.levels(painted_kinds.shares(painted_kinds.ids(), 1), "uint8")
    np.testing.assert_array_equal(pixels, expected)
    assert peak_bytes < 20e6
    assert time.process_time() - begun < 5
    assert len(made.truth) == 11


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("palette", "none"),
        ("palette-png", "nodata 4"),  # as GDAL has it: one entry is transparent
        ("bits-4", "none"),
        ("png-world", "none"),
        ("msk-per-band", "per band"),
        ("nodata-aux", "nodata 251 252 253"),
        ("nodata-values", "nodata 255 255 254"),
    ],
)
def test_check_knows_what_detect_reads(name, mask, tmp_path, capsys):
    case = next(c for c in CASES if c.name == name)
    image = case.make(tmp_path).args[1]
    bands = ("--bidx", "1,1,1") if name == "bits-4" else ()
    code = main(["check", str(tmp_path / image), "--json", "--statistics", *bands])
    said = json.loads(capsys.readouterr().out)[0]
    assert (code, said["problems"]) == (0, [])
    assert said["facts"]["mask"] == mask


@pytest.mark.parametrize("name", ["palette", "palette-png", "msk-per-band", "nodata-aux"])
def test_a_picture_and_a_coarser_grid_show_what_detect_reads(name, tmp_path):
    case = next(c for c in CASES if c.name == name)
    path = tmp_path / case.make(tmp_path).args[1]
    info = describe_raster(path)
    whole = read.Window(0, 0, info.width, info.height)
    pixels, valid = read.read_window(info, working_grid(info, None), whole, (1, 2, 3))
    rgb, _, seen = read.read_overview(path, 10_000)
    np.testing.assert_array_equal(np.moveaxis(rgb, -1, 0), pixels)
    np.testing.assert_array_equal(seen, valid)
    half = working_grid(info, 2 * info.gsd_m)
    coarse, usable = read.read_window(
        info, half, read.Window(0, 0, half.width, half.height), (1, 2, 3)
    )
    # colours and what is no data are averaged, never indices
    inner = usable & (coarse > 0).all(axis=0)
    assert abs(coarse[:, inner].mean() - pixels[:, valid].mean()) < 3
    assert abs(usable.mean() - valid.mean()) < 0.05


# --- the comparison sees what is wrong ------------------------------------------------------------


def _moved(x: float, y: float):
    def break_it(monkeypatch):
        good = plan.describe_raster

        def describe(path, **how):
            info = good(path, **how)
            return replace(info, transform=info.transform * Affine.translation(x, y))

        monkeypatch.setattr(plan, "describe_raster", describe)

    return break_it


def _rows_for_columns(monkeypatch):
    """Take the transform's rows for columns: x from rows, y from columns."""
    good = plan.describe_raster

    def describe(path, **how):
        info = good(path, **how)
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
