"""The morning page: gather, draw, write."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine

from geoseg.errors import GeosegError
from geoseg.imagery.georef import polygons_to_crs, reproject_polygons
from geoseg.imagery.grid import TileGrid
from geoseg.outputs.report import content
from geoseg.outputs.report.encode import OutlineEncoder
from geoseg.outputs.report.frame import Bounds, Frame, all_bounds
from geoseg.outputs.report.map import MapData, Problem, map_html
from geoseg.outputs.report.page import Html, Section, join, paragraph, write_page
from geoseg.outputs.report.pictures import Crop, crop, find_pictures, make_pyramids
from geoseg.outputs.report.run import RunFacts
from geoseg.outputs.report.statistics import Statistics, centre
from geoseg.outputs.tables import check_output, describe_objects, iter_objects

log = logging.getLogger(__name__)
_PROBLEMS = 5000


def write_report(path: str | Path, run: RunFacts, *, overwrite: bool = False) -> Path:
    """Write the page of a finished run.

    Parameters
    ----------
    path : str or Path
        Ends in .html.
    run : RunFacts
        What is known of the run.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written. Images that have gone are said to have, and left out.

    Raises
    ------
    OutputError
        If the objects cannot be read or the page not be written.
    """
    check_output(path, overwrite, suffixes=(".html", ".htm"))
    info = describe_objects(run.objects)
    found, missing = find_pictures(
        [(str(i.get("name", "")), str(i.get("fingerprint", ""))) for i in run.images],
        run.image_places,
    )
    homes = _homes(run, info.crs)
    frame = Frame.around(info.crs, all_bounds([info.bounds, *(b for _, b in homes)]))
    pyramids, unread = make_pyramids(list(found.values()), frame)
    run = replace(run, picture_notes=(*run.picture_notes, *_few(missing), *_few(unread)))
    steps = [float(i.get("working_gsd_m") or 0.2) for i in run.images]
    encoder = OutlineEncoder(frame, info.rows, float(np.median(steps)) if steps else 0.2)
    statistics = Statistics()
    for table in iter_objects(run.objects):
        encoder.add(table)
        statistics.add(table)
    drawn = MapData(
        frame=frame,
        pyramids=pyramids,
        regions=run.regions,
        region_names=[] if run.regions is None else content.region_names(run.regions),
        objects=encoder,
        problems=_problems(run, info.crs),
        homes=homes,
    )
    return write_page(
        path,
        title=f"{run.name}: {statistics.n_objects:,} objects",
        header=content.top(run, statistics),
        sections=_sections(run, statistics, drawn, _examples(run, statistics, found, frame)),
        data={"map": drawn.to_json()},
        footer=_footer(run),
        overwrite=overwrite,
    )


def _sections(
    run: RunFacts, statistics: Statistics, drawn: MapData, examples: Html
) -> list[Section]:
    shown = map_html(drawn, title="Map of imagery, regions and objects")
    if drawn.objects is not None and not drawn.objects.outlines:
        said = (
            "There are too many objects to draw each: the map shows how dense they are. The output "
            "holds all outlines."
        )
        shown = join([shown, paragraph(said, "remark")])
    return [
        Section("map-section", "Map", shown),
        Section("regions", "Regions", content.regions_section(run, statistics)),
        Section("sizes", "Scores and sizes", content.distributions(statistics)),
        Section("examples", "Worth a look", examples),
        Section("seams", "Seams between tiles", content.seams_section(run.seams), link="Seams"),
        Section("tiles", "Tiles", content.tiles_section(run)),
        Section("timing", "Time", content.timing_section(run)),
        Section("settings", "Images and settings", content.settings_section(run), link="Settings"),
        Section("credits", "Model and credits", content.credits_section(run), link="Credits"),
    ]


def _footer(run: RunFacts) -> Html:
    version = f" {run.version}" if run.version else ""
    key = str(run.manifest.get("key", ""))
    said = f"Made by geoseg{version}." + (f" Run {key[:12]}." if key else "")
    return paragraph(said + " This page is one file and asks the network for nothing.")


def _few(notes: list[str], most: int = 3) -> list[str]:
    """Return some of many like notes."""
    if len(notes) <= most:
        return notes
    return [*notes[:most], f"and {len(notes) - most:,} more images like that"]


def _homes(run: RunFacts, crs: pyproj.CRS) -> list[tuple[str, Bounds]]:
    """Return names of the images and where they lie, in the CRS of the objects."""
    out = []
    for image in run.images:
        shape = _placed(image, crs, _full(image))
        if shape is not None:
            left, bottom, right, top = shape.bounds
            out.append((str(image.get("name", "")), (left, bottom, right, top)))
    return out


def _full(image: Mapping[str, Any]) -> shapely.Geometry:
    height, width = image.get("grid_px", (0, 0))
    return shapely.box(0, 0, width, height)


def _placed(
    image: Mapping[str, Any], crs: pyproj.CRS, shape: shapely.Geometry
) -> shapely.Geometry | None:
    """Bring a shape in px of an image's working grid to a CRS; None where that is unknown."""
    values, wkt = image.get("grid_transform"), image.get("crs")
    if not values or not wkt or shape.is_empty:
        return None
    try:
        there = polygons_to_crs(
            [shapely.segmentize(shape, max(shape.length / 64, 1))], Affine(*values)
        )
        placed = reproject_polygons(there, str(wkt), crs.to_wkt())[0]
    except (GeosegError, pyproj.exceptions.ProjError):
        return None
    return placed if np.isfinite(shapely.bounds(placed)).all() else None


def _problems(run: RunFacts, crs: pyproj.CRS) -> list[Problem]:
    """Return where tiles failed or were full."""
    out = []
    if run.coverage is not None and "status" in run.coverage:
        lost = run.coverage[run.coverage["status"] == "failed"].to_crs(crs)
        out += [
            Problem("failed", f"{row['image']}: this block of tiles failed. {row['reason']}", shape)
            for shape, (_, row) in zip(lost.geometry, lost.iterrows(), strict=True)
        ]
    images = {str(i.get("name")): i for i in run.images}
    for tile in run.failed_tiles:
        image = images.get(str(tile["image"]))
        shape = None if image is None else _placed(image, crs, _tile_core(image, tile["tile"]))
        if shape is not None:
            out.append(Problem("failed", f"{tile['image']}: tile failed. {tile['reason']}", shape))
    for place in run.saturated_places:
        image, (x, y, w, h) = images.get(str(place["image"])), place["window"]
        shape = None if image is None else _placed(image, crs, shapely.box(x, y, x + w, y + h))
        if shape is not None:
            said = (
                f"{place['image']}: more objects than the detector reports at once; run again in "
                "quarters."
            )
            out.append(Problem("saturated", said, shape))
    return out[:_PROBLEMS]


def _tile_core(image: Mapping[str, Any], index: list[int]) -> shapely.Geometry:
    height, width = image["grid_px"]
    size = int(image["tile_size"])
    core = TileGrid(height, width, size, int(image["overlap"]), size).tile(*index).core
    return shapely.box(
        core.col_off, core.row_off, core.col_off + core.width, core.row_off + core.height
    )


def _examples(
    run: RunFacts, statistics: Statistics, found: Mapping[int, Path], frame: Frame
) -> Html:
    """Return the section of examples; an object that stands in two groups is cut out once."""
    examples = statistics.examples()
    names = [str(image.get("name", "")) for image in run.images]
    crops: dict[int, Crop] = {}
    places: dict[int, tuple[float, float, float]] = {}
    for rows in examples.values():
        for key, shape, image in zip(rows["object_id"], rows.geometry, rows["image"], strict=True):
            if int(key) in places:
                continue
            on_map = frame.place(np.array([shape]))[0]
            left, top, right, bottom = on_map.bounds
            places[int(key)] = (*centre(on_map), max(right - left, bottom - top, 5.0))
            cut = _crop(shape, frame.crs, [found[i] for i in found if names[i] == image])
            if cut is not None:
                crops[int(key)] = cut
    return content.examples_section(examples, crops, places, list(statistics.classes))


def _crop(shape: shapely.Geometry, crs: pyproj.CRS, paths: list[Path]) -> Crop | None:
    """Cut an object out of the first image that has it: two folders may hold one name."""
    for path in paths:
        try:
            return crop(path, shape, crs)
        except GeosegError as error:
            log.debug("no picture of an object: %s", error)
    return None
