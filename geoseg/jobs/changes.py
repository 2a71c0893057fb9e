"""Compare files of two or more dates: what each run has seen, what changed, per region, written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyproj
import shapely
from affine import Affine
from rasterio.features import shapes as traced

from geoseg.errors import ConfigError, GeosegError
from geoseg.imagery.georef import polygons_to_crs, reproject_polygons
from geoseg.imagery.read import read_view
from geoseg.imagery.source import describe_raster
from geoseg.jobs.parts import finished_part
from geoseg.objects.compare import KINDS, Comparison, compare, count_changes
from geoseg.objects.tracks import Tracks, tracks
from geoseg.outputs.change_page import ChangeStep, write_change_page
from geoseg.outputs.regions import has_coverage
from geoseg.outputs.tables import read_vector, write_geopackage, write_table

SEEN_STATES = ("done", "empty")
"""Supertiles of the layer ``coverage`` on which objects would have been found."""
VALID_PX = 2000
"""Longest side at which an image's valid pixels are traced."""


@dataclass(frozen=True, slots=True, eq=False)
class DateFile:
    """The objects of one date and what is known of its imagery."""

    path: Path
    objects: gpd.GeoDataFrame
    seen: gpd.GeoSeries | None
    """Ground that was imaged and worked through; None: unknown."""
    how_seen: str
    """Where that is known from; empty: nowhere."""
    image: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What changed between two or more dates."""

    dates: tuple[DateFile, ...]
    steps: tuple[Comparison, ...]
    """One for each date after the first."""
    regions: tuple[gpd.GeoDataFrame, ...]
    """Per step, as `geoseg.objects.compare.count_changes` gives them; empty without regions."""
    tracks: Tracks | None
    """Where there are more than two dates."""

    @property
    def changes(self) -> gpd.GeoDataFrame:
        """All steps in one table; with ``step``, from 1, where there is more than one."""
        if len(self.steps) == 1:
            return self.steps[0].changes
        tables = [s.changes.assign(step=k + 1) for k, s in enumerate(self.steps)]
        return gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), crs=tables[0].crs)


def compare_files(
    paths: Sequence[Path],
    *,
    regions: Path | None = None,
    images: Sequence[Path | None] | None = None,
    seen: Sequence[Path] = (),
    **settings: Any,
) -> Changes:
    """Compare the objects of files, each date with the one before.

    Parameters
    ----------
    paths : sequence of Path
        Outputs of runs or any files of polygons, earliest date first.
    regions : Path, optional
        Polygons in which changes are counted.
    images : sequence of Path or None, optional
        Imagery of each date; where it has no pixels nothing was seen.
    seen : sequence of Path
        Polygons of what was imaged, one file for each date; otherwise each output's own run
        directory or layer ``coverage`` tells.
    **settings
        Fields of `geoseg.objects.compare.CompareSettings`.

    Raises
    ------
    ConfigError
        If there are fewer than two dates, or not as many images or files of ground.
    RegionError, SourceError
        If a file cannot be used.
    """
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} file of objects given; expected two or more dates")
    pictures = [None] * len(paths) if images is None else list(images)
    for what, given in (("images", pictures), ("files of what was imaged", seen)):
        if given and len(given) != len(paths):
            raise ConfigError(f"{len(given)} {what} for {len(paths)} dates; give one for each")
    areas = None if regions is None else read_vector(regions, what="regions")
    grounds: list[Path | None] = list(seen) or [None] * len(paths)
    dates = tuple(_read(*date) for date in zip(paths, pictures, grounds, strict=True))
    steps: tuple[Comparison, ...]
    followed: Tracks | None = None
    if len(dates) == 2:
        found = compare(
            dates[0].objects,
            dates[1].objects,
            seen_before=dates[0].seen,
            seen_after=dates[1].seen,
            **settings,
        )
        steps = (found,)
    else:
        followed = tracks([d.objects for d in dates], seen=[d.seen for d in dates], **settings)
        steps = followed.steps
    counted = () if areas is None else tuple(count_changes(s.changes, areas) for s in steps)
    return Changes(dates, steps, counted, followed)


def write_changes(path: Path, found: Changes, *, overwrite: bool = False) -> Path:
    """Write all layers into a GeoPackage, or the changes alone into another format."""
    if path.suffix.lower() != ".gpkg":
        return write_table(path, found.changes, layer="changes", overwrite=overwrite)
    layers = {"changes": found.changes}
    if found.regions:
        layers["regions"] = regions_of(found)
    if found.tracks is not None:
        layers["tracks"], layers["things"] = found.tracks.table, found.tracks.things
    metadata = {
        "dates": ", ".join(d.path.name for d in found.dates),
        "shifts_m": json.dumps([list(s.shift_m) for s in found.steps]),
        "notes": "; ".join(note for s in found.steps for note in s.notes),
    }
    return write_geopackage(path, layers, overwrite=overwrite, metadata=metadata)


def write_change_report(path: Path, found: Changes, *, overwrite: bool = False) -> Path:
    """Write the page of what changed; see `geoseg.outputs.change_page`."""
    steps = [
        ChangeStep(
            before=before.path.name,
            after=after.path.name,
            found=step,
            regions=found.regions[k] if found.regions else None,
            before_image=before.image,
            after_image=after.image,
        )
        for k, (step, (before, after)) in enumerate(
            zip(found.steps, pairwise(found.dates), strict=True)
        )
    ]
    known = [(f"imaged ground of {d.path.name}", d.how_seen or "not known") for d in found.dates]
    return write_change_page(path, steps, settings=known, overwrite=overwrite)


def regions_of(found: Changes) -> gpd.GeoDataFrame:
    """Return the regions with their counts; with ``step``, from 1, where there is more than one."""
    if len(found.regions) == 1:
        return found.regions[0]
    tables = [table.assign(step=k + 1) for k, table in enumerate(found.regions)]
    whole = gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), crs=tables[0].crs)
    whole.attrs = {"region_field": tables[0].attrs["region_field"]}
    return whole


def names_of_steps(found: Changes) -> list[str]:
    """Return 'before to after' of each step."""
    return [f"{a.path.stem} to {b.path.stem}" for a, b in pairwise(found.dates)]


def _read(path: Path, image: Path | None, ground: Path | None) -> DateFile:
    objects = read_vector(path, what="objects")
    if ground is not None:
        shapes, how = read_vector(ground, what="imaged ground").geometry, ground.name
    else:
        shapes, how = seen_by_run(path)
    if image is not None:
        valid = valid_ground(image)
        if shapes is None:
            shapes, how = valid, image.name
        else:
            common = shapely.intersection(shapes.union_all(), valid.to_crs(shapes.crs).union_all())
            shapes, how = gpd.GeoSeries([common], crs=shapes.crs), f"{how}, {image.name}"
    return DateFile(path, objects, shapes, how, image)


def seen_by_run(output: Path) -> tuple[gpd.GeoSeries | None, str]:
    """Return the ground that a run has seen: from its run directory, else its coverage layer.

    The run directory knows it to 16 px of the working grid, and without the tiles that failed;
    the layer only by supertiles, so one with a failed tile counts as not seen.
    """
    folder = output.with_name(f"{output.stem}.geoseg-run")
    try:
        shapes = _from_parts(folder, output)
    except (OSError, KeyError, ValueError, GeosegError):
        # no run directory, or one of another version: the layer is there too
        shapes = None
    if shapes is not None:
        return shapes, folder.name
    if output.suffix.lower() != ".gpkg" or not has_coverage(output):
        return None, ""
    coverage = read_vector(output, layer="coverage", what="coverage")
    good = coverage["status"].isin(SEEN_STATES) & (coverage["tiles_failed"] == 0)
    return coverage[good].geometry, "its layer coverage"


def _from_parts(folder: Path, output: Path) -> gpd.GeoSeries | None:
    """Return what the parts of a finished run have seen, in the CRS of its first image."""
    manifest = json.loads((folder / "run.json").read_text())
    written = {m["name"] for m in (manifest.get("outputs") or {}).get("files", []) if m}
    if manifest.get("state") != "finished" or output.name not in written:
        return None
    images = manifest["images"]
    target = images[0]["crs"]
    found: list[Any] = []
    for part in sorted((folder / "parts").iterdir()):
        summary = finished_part(part)
        if summary is None or summary.status == "failed" or not summary.imaged:
            continue
        image = images[summary.image]
        placed = polygons_to_crs(
            shapely.get_parts([shapely.from_wkt(summary.imaged)]),
            Affine(*image["grid_transform"]),
        )
        found += list(reproject_polygons(placed, image["crs"], target))
    shapes = gpd.GeoSeries(found, crs=target)
    aoi = manifest["settings"].get("aoi")
    if aoi is None:
        return shapes
    inside = read_vector(aoi, what="AOI").to_crs(target).union_all()
    return gpd.GeoSeries(shapely.intersection(shapes.to_numpy(), inside), crs=target)


def valid_ground(image: Path) -> gpd.GeoSeries:
    """Return where an image has pixels, traced at a small scale, in its CRS."""
    _, transform, valid = read_view(image, None, VALID_PX)
    crs = pyproj.CRS.from_wkt(describe_raster(image).crs_wkt)
    outlines = [
        shapely.geometry.shape(s)
        for s, _ in traced(valid.astype("uint8"), mask=valid, transform=transform)
    ]
    return gpd.GeoSeries(outlines, crs=crs)


__all__ = [
    "KINDS",
    "Changes",
    "DateFile",
    "compare_files",
    "names_of_steps",
    "regions_of",
    "seen_by_run",
    "valid_ground",
    "write_change_report",
    "write_changes",
]
