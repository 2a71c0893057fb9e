"""Detectors that break the protocol, raise or meddle: a failed tile with its reason, or a refusal."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import rubbish
from runs import NORTH_UP, UTM, job_over

from geoseg.cli.main import main
from geoseg.errors import ModelError, TileError, TooManyErrorsError
from geoseg.jobs.guard import shown, undisturbed
from geoseg.jobs.pipeline import run_detect
from geoseg.models.detector import check_detector, load_detector
from geoseg.records import Instances

FINE = {"box-no-area": 0, "mask-bool": 2, "mask-1-cell": 2, "nothing": 0}
"""Kinds that are no breach, and how many objects they give in two tiles."""
REASONS = {
    "none": "returned NoneType for 1 tiles",
    "tuple": "returned tuple",
    "generator": "returned generator",
    "too-few": "returned list of 0 for 1",
    "too-many": "returned list of 2 for 1",
    "of-none": "expected geoseg.Instances, got NoneType",
    "duck": "expected geoseg.Instances, got Duck",
    "nan-box": "not finite",
    "score-over-1": r"leaves \[0, 1\]",
    "score-text": "scores holds <U3 values",
    "scores-bool": "scores holds bool values",
    "scores-complex": "scores holds complex128 values",
    "labels-2d": "labels is ndarray of shape",
    "boxes-list": "boxes is list",
    "saturated-text": "saturated is str",
    "label-too-large": "label 7 is out of range; the detector names 1 classes",
    "changed-nan": "not finite",
    "changed-shorter": "scores has 0 rows but boxes has 1",
    "box-turned": "x1 < x0",
    "box-outside": "outside its tile of 128 x 128 px",
    "box-far": "outside its tile",
    "box-huge": "reaches out of it",
    "mask-nan": "not finite",
    "mask-over-1": r"masks leave \[0, 1\]",
    "mask-logits": r"masks leave \[0, 1\]",
    "mask-text": "masks hold",
    "mask-huge": "more than 1024 cells a side",
    "mask-missing": "masks has 0 rows",
    "value-error": r"raised ValueError\('with\\nlines and \\x1b\[31mcolour'\)",
    "memory-error": "raised MemoryError",
    "recursion": "raised RecursionError",
    "no-pickle": "raised NoPickleError",
    "shy": r"raised ShyError \(which cannot be shown\)",
    "system-exit": r"raised SystemExit\(0\)",
    "keyboard": "raised KeyboardInterrupt",
    "generator-exit": "raised GeneratorExit",
    "base": "raised BaseException",
}
SIZES = {"tile_size": 128, "overlap": 32, "supertile_size": 224, "report": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a raster of two tiles."""
    import rasterio

    path = tmp_path_factory.mktemp("rubbish") / "small.tif"
    pixels = np.random.default_rng(1).integers(1, 200, (3, 100, 200)).astype("uint8")
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=100, width=200, dtype="uint8", crs=UTM,
        transform=NORTH_UP,
    ) as dst:  # fmt: skip
        dst.write(pixels)
    return path


@pytest.mark.parametrize("kind", [k for k in rubbish.KINDS if k not in (*FINE, "meddles")])
def test_what_breaks_the_protocol_costs_its_tiles_and_says_why(small, kind):
    found = run_detect(job_over(small, **SIZES), rubbish.Rubbish(kind))
    assert (found.exit_code, found.n_objects, found.tiles_failed) == (3, 0, 2)
    (reason,) = found.coverage["reason"]
    assert reason.isprintable()
    assert re.search(REASONS.get(kind, "detect"), reason), reason


@pytest.mark.parametrize(("kind", "n"), FINE.items())
def test_what_is_odd_but_no_breach_is_taken(small, kind, n):
    found = run_detect(job_over(small, **SIZES), rubbish.Rubbish(kind))
    assert (found.exit_code, found.n_objects) == (0, n)


def test_too_much_rubbish_ends_the_run_where_that_is_wanted(small):
    with pytest.raises(TooManyErrorsError, match="2 tiles"):
        run_detect(job_over(small, max_errors=1, **SIZES), rubbish.Rubbish("none"))
    with pytest.raises(TileError, match="returned NoneType"):
        run_detect(job_over(small, on_error="fail", **SIZES), rubbish.Rubbish("none"))


def test_arrays_that_a_detector_uses_again_are_copied(small):
    """While the masks of one supertile are traced, the network already writes those of the next."""
    detector = rubbish.Rubbish("reused")
    seen = []

    class Reusing(rubbish.Rubbish):
        def __call__(self, tiles):
            found = detector(tiles[:1])
            seen.append(found[0])
            return found * len(tiles)

    from geoseg.jobs.supertile import _call

    class Tiles:
        index = (0, 0)

    kept = _call(Reusing("reused"), np.full((1, 3, 64, 64), 100, np.uint8), [Tiles()])
    before = kept[0].boxes.copy()
    detector.kept[:] = np.nan
    assert not np.shares_memory(kept[0].boxes, seen[0].boxes)
    assert np.array_equal(kept[0].boxes, before)
    assert run_detect(job_over(small, **SIZES), rubbish.Rubbish("writes-tiles")).exit_code == 0


def test_a_detector_that_meddles_changes_nothing_of_the_run(small, tmp_path, monkeypatch, capsys):
    """It prints, moves to another directory, makes warnings errors and recursion short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUBBISH", "meddles")
    monkeypatch.setenv("LC_ALL", os.environ.get("LC_ALL", "C.UTF-8"))
    sizes = ["--tile-size", "128", "--overlap", "32", "-j", "1"]
    args = ["detect", str(small), "-o", "here.gpkg", "--detector", "rubbish:make", *sizes, "--json"]
    before = warnings.filters[:]
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["objects"] == 2
    assert "DETECTOR WROTE THIS" in err
    assert (tmp_path / "here.gpkg").exists()
    assert Path.cwd() == tmp_path
    assert warnings.filters == before


def test_undisturbed_puts_back_what_belongs_to_the_process(tmp_path, monkeypatch, capsys):
    import locale
    import sys

    monkeypatch.chdir(tmp_path)
    before = (Path.cwd(), locale.setlocale(locale.LC_ALL), sys.getrecursionlimit())
    odd = np.geterr()
    filters = warnings.filters[:]

    def meddle() -> None:
        with undisturbed():
            print("for people")
            os.chdir("/")
            locale.setlocale(locale.LC_ALL, "C")
            sys.setrecursionlimit(5_000)
            warnings.simplefilter("error")
            np.seterr(all="raise")
            raise SystemExit

    with pytest.raises(SystemExit):
        meddle()
    assert (Path.cwd(), locale.setlocale(locale.LC_ALL), sys.getrecursionlimit()) == before
    assert warnings.filters == filters
    assert np.geterr() == odd
    assert capsys.readouterr() == ("", "for people\n")


def test_errors_are_shown_in_one_printable_line():
    assert shown(ValueError("a\nb\x1b[31m")) == r"ValueError('a\nb\x1b[31m')"
    assert shown(rubbish.ShyError()) == "ShyError (which cannot be shown)"
    assert len(shown(ValueError("x" * 10_000))) < 600


@pytest.mark.parametrize("kind", rubbish.CLASSES)
def test_classes_without_usable_names_are_refused(monkeypatch, kind):
    monkeypatch.setenv("RUBBISH", kind)
    with pytest.raises(ModelError, match=r"rubbish:make_classes: .*class"):
        load_detector("rubbish:make_classes")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gsd_m", float("nan")), ("gsd_m", "0.1"), ("gsd_m", -1), ("tile_size", 10**12),
        ("tile_size", 768.0), ("tile_size", True), ("overlap", -1), ("min_score", 2),
        ("min_score", float("nan")), ("bands", 3), ("bands", ()), ("bands", (1, 2, 3)),
    ],
)  # fmt: skip
def test_attributes_out_of_range_are_refused(name, value):
    detector = rubbish.Rubbish("mask-bool")
    setattr(detector, name, value)
    with pytest.raises(ModelError, match=f"roofs: {name} is"):
        check_detector(detector, "roofs")


def test_modules_that_raise_when_imported_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("exits", "raise SystemExit(0)"), ("typo", "def :"), ("fails", "1 / 0")):
        (tmp_path / f"{name}_at_import.py").write_text(text)
        with pytest.raises(ModelError, match=f"importing {name}_at_import raised"):
            load_detector(f"{name}_at_import:make")


def test_records_refuse_columns_that_are_no_arrays_of_numbers():
    good = rubbish.one()
    assert len(good) == 1
    assert len(Instances.empty()) == 0
    with pytest.raises(TileError, match="boxes is list"):
        Instances([], [], [], [])
    for kind in ("score-text", "labels-2d", "mask-nan", "box-turned"):
        with pytest.raises(TileError):
            rubbish.KINDS[kind](1)
