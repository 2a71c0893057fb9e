"""What a user may give to geoseg, and how it ends: the contract of the fixtures.

A module ``cases_*.py`` lists `Case`s; a test runs each with `run_case` and compares with `check`;
the table of docs/inputs.md is made of what the runs printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from geoseg.cli.main import main


@dataclass(frozen=True, slots=True)
class Made:
    """What a case wrote into its folder: a command, and what it must find."""

    args: tuple[str, ...]
    """Arguments of ``geoseg``; paths relative to the folder."""
    output: str | None = None
    """File of objects that the command writes, relative to the folder."""
    truth: gpd.GeoDataFrame | None = None
    """The objects that must come back, in any CRS, with their ``class``; None: not compared."""
    pixel: tuple[float, float, float, float, float, float] | None = None
    """a, b, c, d, e, f of the map from px to the truth's CRS; wanted beside ``truth``."""


class Unavailable(Exception):  # noqa: N818  # no error: the case is left out
    """Raised by ``Case.make`` where this machine cannot make the input: a codec is missing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of input: how it is made and how it must end."""

    name: str
    """Short and unique, such as 'tiff-jpeg-ycbcr'."""
    group: str
    """Heading in the table: 'Formats', 'Pixels', 'Validity', 'Where it lies', 'Hostile', ..."""
    what: str
    """The input in a few words, for the table."""
    make: Callable[[Path], Made]
    """Writes the input into an empty folder."""
    exit_code: int = 0
    message: str = ""
    """Regular expression that stderr must match; '' : nothing is demanded."""
    result: str = ""
    """What comes out, in a few words, for the table, where no message says it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended."""

    exit_code: int
    out: str
    err: str
    objects: gpd.GeoDataFrame | None
    strays: tuple[str, ...]
    """Files that appeared or changed in the folder beside the output and its run directory."""
    made: Made | None = None
    """What the case wrote."""


def run_case(case: Case, folder: Path) -> Outcome:
    """Make the input of a case in an empty folder and run its command there, in this process."""
    made = case.make(folder)
    before = _files(folder)
    out, err = io.StringIO(), io.StringIO()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(made.args))
    finally:
        os.chdir(here)
    after = _files(folder)
    stem = made.output.rpartition(".")[0] if made.output else None
    strays = tuple(
        sorted(
            name
            for name, content in after.items()
            if before.get(name) != content
            and not (stem and (name == made.output or name.startswith(f"{stem}.geoseg-run/")))
        )
    )
    written = made.output is not None and (folder / made.output).exists()
    objects = gpd.read_file(folder / made.output, layer="objects") if written else None
    return Outcome(code, out.getvalue(), err.getvalue(), objects, strays, made)


def check(case: Case, outcome: Outcome) -> None:
    """Compare an outcome with what its case says; truth is the business of the caller."""
    said = f"{case.name}: exit code {outcome.exit_code}\n{outcome.err}"
    assert outcome.exit_code == case.exit_code, said
    assert re.search(case.message, outcome.err), said
    assert "Traceback" not in outcome.err, said
    assert "internal error" not in outcome.err, said
    assert not outcome.strays, f"{said}\nwritten: {outcome.strays}"


CENTROID_PX = 0.5
MEAN_SHIFT_PX = 0.1
"""Of all objects together: half a pixel off shows at once, whatever its direction."""
AREA_SHARE = 0.02


def compare(made: Made, objects: gpd.GeoDataFrame) -> None:
    """Assert that objects are those painted: how many, where, how large, of which class.

    Every step here is apart from geoseg: numpy maps the ground to px, pyproj measures.
    """
    truth = made.truth
    found = objects if objects.crs == truth.crs else objects.to_crs(truth.crs)
    assert len(found) == len(truth), f"{len(found)} objects, painted are {len(truth)}"
    if not len(truth):
        return
    there, here = (_to_pixels(table.geometry.to_numpy(), made.pixel) for table in (truth, found))
    shifts = _centres(here)[:, None] - _centres(there)[None]
    nearest = np.hypot(*np.moveaxis(shifts, -1, 0)).argmin(axis=0)
    shifts = shifts[nearest, np.arange(len(truth))]
    far = np.hypot(*shifts.T).max()
    assert len(set(nearest)) == len(truth), "two painted objects are nearest to one that was found"
    assert far <= CENTROID_PX, f"an object lies {far:.2f} px off"
    mean = np.abs(shifts.mean(axis=0)).max()
    assert mean <= MEAN_SHIFT_PX, f"all objects lie {mean:.2f} px off"
    change = np.abs(shapely.area(here[nearest]) / shapely.area(there) - 1).max()
    assert change <= AREA_SHARE, f"an area is {change:.1%} off"
    if "class" in truth:
        named = found["class"].to_numpy()[nearest]
        assert (named == truth["class"].to_numpy()).all(), f"classes {named.tolist()}"
    on_earth = np.abs(objects["area_m2"].to_numpy()[nearest] / _square_metres(truth) - 1).max()
    assert on_earth <= AREA_SHARE, f"an area_m2 is {on_earth:.1%} off"


def _to_pixels(polygons: np.ndarray, pixel: tuple[float, ...]) -> np.ndarray:
    """Bring polygons from the ground to px."""
    a, b, c, d, e, f = pixel
    back = np.linalg.inv(np.array([[a, b], [d, e]]))
    return shapely.transform(polygons, lambda xy: (xy - [c, f]) @ back.T)


def _centres(polygons: np.ndarray) -> np.ndarray:
    """Return (n, 2) centroids."""
    return shapely.get_coordinates(shapely.centroid(polygons))


def _square_metres(truth: gpd.GeoDataFrame) -> np.ndarray:
    """Measure on the ellipsoid of the truth's own datum."""
    crs = pyproj.CRS(truth.crs)
    lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    geod = crs.get_geod()
    rings = [polygon.exterior.coords.xy for polygon in truth.geometry]
    return np.array([abs(geod.polygon_area_perimeter(*lonlat.transform(*r))[0]) for r in rings])


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }
