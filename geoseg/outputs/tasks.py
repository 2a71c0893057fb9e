"""Squares of ground to label next, for QGIS and as COCO, and back as labels for training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from affine import Affine
from rasterio.windows import Window

from geoseg.errors import ConfigError, LabelError
from geoseg.imagery.georef import polygons_to_crs, reproject_polygons, working_grid
from geoseg.imagery.read import read_window
from geoseg.imagery.source import create_raster
from geoseg.objects.regions import polygonal
from geoseg.outputs.coco import write_coco
from geoseg.outputs.fields import describe_fields
from geoseg.outputs.formats import check_output
from geoseg.outputs.geopackage import write_geopackage
from geoseg.outputs.objects_file import ObjectsWriter, fix_types, objects_to_arrow
from geoseg.outputs.publish import put, scratch
from geoseg.outputs.reading import read_vector
from geoseg.outputs.style import JUDGED_COLOURS, TASK_COLOURS, style_judged, style_tasks
from geoseg.outputs.tables import write_table
from geoseg.records import RasterInfo

_OBJECT_HEADINGS = {
    "verdict": "Verdict",
    "task": "Task",
    "class": "Class",
    "score": "Score",
    "area_m2": "Area (m²)",
    "image": "Image",
}
_TOUCH_M2, _TOUCH_SHARE = 0.5, 0.05
"""An outline that reaches into a finished square by less than this and than this share of itself is
none of its labels."""


def write_tasks(
    path: Path,
    tasks: gpd.GeoDataFrame,
    objects: gpd.GeoDataFrame,
    *,
    classes: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write squares and outlines to correct as a GeoPackage that QGIS opens ready to work in.

    Parameters
    ----------
    path : Path
        Ends in .gpkg.
    tasks : GeoDataFrame
        Layer ``tasks``: rank, status and what made each square worth it.
    objects : GeoDataFrame
        Layer ``objects``: verdict, task, class, score.
    classes : sequence of str
        What the field ``class`` may be.
    metadata : mapping, optional
        Notes for the file.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    # a layer of multipolygons takes whatever QGIS's tools make of an outline
    if len(objects):
        many = shapely.multipolygons(objects.geometry.to_numpy()[:, None], axis=1)
        objects = objects.set_geometry(gpd.GeoSeries(many, objects.index, crs=objects.crs))
    headings = {f.name: f.heading for f in describe_fields("tasks", map(str, tasks.columns))}
    styles = {
        "tasks": replace(style_tasks(), aliases=headings),
        "objects": replace(style_judged(classes), aliases=_OBJECT_HEADINGS),
    }
    return write_geopackage(
        path,
        {"tasks": tasks, "objects": objects},
        styles=styles,
        overwrite=overwrite,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class Collected:
    """What became of corrected tasks."""

    labels: Path
    """File of the labels."""
    aoi: Path
    """File of the area in which they are complete."""
    n_tasks: int
    """Squares that were done."""
    n_labels: int
    """Outlines in them."""
    n_rejected: int
    """Outlines that were thrown out, in all squares."""
    n_left: int
    """Squares that are not done."""
    images: tuple[str, ...]
    """File names of the images in which the squares lie."""

    def sites(self) -> str:
        """Return what a training file needs to use them: one table per image, TOML."""
        tables = []
        for image in self.images:
            condition = "image = '" + image.replace("'", "''") + "'"
            lines = {
                "name": Path(image).stem,
                "image": image,
                "labels": str(self.labels),
                "where": condition,
                "aoi": str(self.aoi),
                "aoi_where": condition,
                "class_field": "class",
            }
            # JSON's texts are TOML's, too
            rows = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in lines.items()]
            tables.append("\n".join(["[[sites]]", *rows]))
        return "\n\n".join(tables)


def read_labelled(path: Path) -> gpd.GeoDataFrame:
    """Read ground that is labelled already: any polygons, or the finished squares of a task file.

    Returns
    -------
    GeoDataFrame
        May be empty: a task file in which nothing is finished.

    Raises
    ------
    RegionError
        As `read_vector`.
    """
    table = read_vector(path, what="tasks")
    if {"rank", "status"} <= set(table.columns):
        table = table[_texts(table, "status").isin(["done", "skip"])]
    return table


def collect_tasks(path: Path, output: Path, *, overwrite: bool = False) -> Collected:
    """Turn corrected tasks into labels and the area where they are complete.

    Counted are all outlines that reach into a square of status ``done``, unless their verdict is
    ``reject``: an outline that was left as it was found has been seen and is accepted. Outlines
    drawn anew count whatever their fields; without a class they get the only one there is.

    Parameters
    ----------
    path : Path
        File of `write_tasks`, after somebody worked on it.
    output : Path
        Labels; the area goes beside it, named ``*_aoi``.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    Collected
        The two files and how many of what.

    Raises
    ------
    LabelError
        If the file holds no tasks, none is done, a verdict or status is unknown, an outline cannot
        be used, or no label is left.
    RegionError, OutputError
        If a file cannot be read or written.
    """
    output = check_output(output, overwrite)
    area_path = check_output(output.with_name(f"{output.stem}_aoi{output.suffix}"), overwrite)
    if path.absolute() in (output, area_path):
        raise ConfigError(f"the labels would replace {path.name}; give them another name")
    tasks, objects = _read_tasks(path)
    done = tasks[_texts(tasks, "status") == "done"]
    if not len(done):
        raise LabelError(
            f"{path}: none of {len(tasks)} tasks has the status 'done'; set it for each square "
            "in which every object is outlined"
        )
    labels = _labels_of(path, objects, done)
    if not len(labels):
        raise LabelError(
            f"{path}: no outline is left in the {len(done)} tasks that are done; a model learns "
            "from ground without objects only beside ground with some: finish more squares"
        )
    area = done[["rank", "image", "geometry"]].reset_index(drop=True)
    write_table(output, labels, layer="labels", overwrite=overwrite)
    write_table(area_path, area, layer="aoi", overwrite=overwrite)
    return Collected(
        labels=output,
        aoi=area_path,
        n_tasks=len(done),
        n_labels=len(labels),
        n_rejected=int((_texts(objects, "verdict") == "reject").sum()),
        n_left=len(tasks) - len(done),
        images=tuple(sorted(area["image"].astype(str).unique())),
    )


def _read_tasks(path: Path) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Read both layers of a task file, in one CRS, and check what users filled in."""
    tasks = read_vector(path, layer="tasks", what="tasks")
    objects = read_vector(path, layer="objects", what="objects")
    for name, table, fields in (
        ("tasks", tasks, ("status", "rank", "image")),
        ("objects", objects, ("verdict", "class")),
    ):
        for field in fields:
            if field not in table.columns:
                raise LabelError(
                    f"{path}: layer '{name}' has no field '{field}'; expected a file that geoseg "
                    "suggest wrote"
                )
    _check_words(path, "status", _texts(tasks, "status"), tuple(TASK_COLOURS))
    _check_words(path, "verdict", _texts(objects, "verdict"), ("", *JUDGED_COLOURS))
    return _with_images(path, tasks), objects.to_crs(tasks.crs)


def _with_images(path: Path, tasks: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give squares that a user drew the image, where there is only one."""
    images = _texts(tasks, "image")
    known = sorted(set(images) - {""})
    if (images == "").any() and len(known) != 1:
        raise LabelError(
            f"{path}: {int((images == '').sum())} tasks name no image; write the file name of the "
            f"image they lie on into the field 'image': {', '.join(known) or 'none is named'}"
        )
    return tasks.assign(image=images.where(images != "", known[0] if known else ""))


def _texts(table: gpd.GeoDataFrame, field: str) -> pd.Series:
    """Return a field as text, '' where it is NULL."""
    texts = ["" if pd.isna(value) else str(value).strip() for value in table[field]]
    return pd.Series(texts, table.index, dtype=object)


def _check_words(path: Path, field: str, words: pd.Series, known: Sequence[str]) -> None:
    unknown = sorted(set(words) - set(known))
    if unknown:
        told = ", ".join(word or "(empty)" for word in known)
        raise LabelError(
            f"{path}: {int((words == unknown[0]).sum())} rows have the {field} '{unknown[0]}'; "
            f"expected one of {told}"
        )


def _labels_of(path: Path, objects: gpd.GeoDataFrame, done: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the outlines that count, one row for each image in whose finished squares it lies."""
    verdict = _texts(objects, "verdict")
    kept = objects[(verdict != "reject") & ~(objects.geometry.isna() | objects.geometry.is_empty)]
    polygons, _ = polygonal(kept.geometry.array)
    classes = _classes_of(path, objects, kept)
    local = done.estimate_utm_crs() if len(done) else done.crs
    squares = done.to_crs(local).geometry.to_numpy()
    placed = gpd.GeoSeries(polygons, crs=done.crs).to_crs(local).to_numpy()
    a, b = shapely.STRtree(squares).query(placed, predicate="intersects")
    shared = shapely.area(shapely.intersection(placed[a], squares[b]))
    enough = shared >= np.minimum(_TOUCH_M2, _TOUCH_SHARE * shapely.area(placed[a]))
    enough &= shared > 0
    image = done["image"].astype(str).to_numpy()
    pairs = pd.DataFrame({"row": a[enough], "image": image[b[enough]]}).drop_duplicates()
    pairs = pairs.sort_values(["image", "row"], kind="stable")
    rows = pairs["row"].to_numpy()
    # what was drawn anew has no score
    origin = np.where(kept["score"].isna(), "drawn", "found") if "score" in kept else "drawn"
    table = {
        "class": classes[rows],
        "origin": np.broadcast_to(origin, len(kept))[rows],
        "verdict": verdict.loc[kept.index].to_numpy()[rows],
        "image": pairs["image"].to_numpy(),
    }
    return gpd.GeoDataFrame(table, geometry=polygons[rows], crs=done.crs)


def _classes_of(
    path: Path, objects: gpd.GeoDataFrame, kept: gpd.GeoDataFrame
) -> npt.NDArray[np.object_]:
    """Return the class of each outline; that of a drawn one may be left out where there is one."""
    classes = np.array(_texts(kept, "class").tolist(), object)
    known = sorted(set(_texts(objects, "class")) - {""})
    empty = classes == ""
    if empty.any():
        if len(known) != 1:
            raise LabelError(
                f"{path}: {int(empty.sum())} outlines have no class; expected one of "
                f"{', '.join(known) or 'the classes of your model'}"
            )
        classes[empty] = known[0]
    return classes


# -- crops ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Chip:
    """The crop of an image that shows one task."""

    rank: int
    """Of the task."""
    info: RasterInfo
    """Of the crop: its file name, size and place."""
    window: Window
    """Of the crop in its image, px of the raster."""
    source: RasterInfo
    """Of the image."""


def make_chip(rank: int, source: RasterInfo, window: Window) -> Chip:
    """Describe the crop of an image."""
    left, top = int(window.col_off), int(window.row_off)
    info = dataclasses.replace(
        source,
        path=f"{Path(source.path).stem}_task{rank:03d}.tif",
        transform=source.transform @ Affine.translation(left, top),
        width=int(window.width),
        height=int(window.height),
    )
    return Chip(rank, info, window, source)


def write_chip(folder: Path, chip: Chip, bands: Sequence[int]) -> Path:
    """Write a crop as GeoTIFF: the image's own pixels, and its mask where it has one.

    Raises
    ------
    TileError, OutputError
        If the image cannot be read or the crop not be written.
    """
    grid = working_grid(chip.source, None)
    pixels, valid = read_window(chip.source, grid, chip.window, bands)
    path = folder / chip.info.path
    with create_raster(
        path,
        height=chip.info.height,
        width=chip.info.width,
        bands=len(bands),
        dtype=pixels.dtype.name,
        crs=chip.info.crs_wkt,
        transform=chip.info.transform,
    ) as target:
        target.write(pixels)
        if not valid.all():
            target.write_mask(valid)
    return path


def write_tasks_coco(
    path: Path,
    chips: Sequence[Chip],
    objects: gpd.GeoDataFrame,
    *,
    classes: Sequence[str],
    overwrite: bool = False,
) -> Path:
    """Write COCO JSON: an image per task, and outlines in its px, cut at its edges.

    Parameters
    ----------
    path : Path
        Ends in .json.
    chips : sequence of Chip
        One per task, in their order.
    objects : GeoDataFrame
        With ``class``, ``score``, ``area_m2`` and ``verdict``; what is rejected is left out.
    classes : sequence of str
        Categories, in order.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    kept = objects[_texts(objects, "verdict") != "reject"]
    parts = [_inside(chip, kept) for chip in chips]
    table = pd.concat(parts, ignore_index=True) if parts else kept
    with scratch(path) as temporary:
        source = temporary.with_name("objects.parquet")
        with ObjectsWriter(source, objects.crs) as writer:
            if len(table):
                table = table.assign(object_id=np.arange(1, len(table) + 1))
                writer.write(objects_to_arrow(table))
        infos = [chip.info for chip in chips]
        about = {"description": "tasks of geoseg suggest"}
        write_coco(temporary, source, infos, classes=classes, about=about)
        put(temporary, path, overwrite=overwrite)
    return path


def _inside(chip: Chip, objects: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the outlines that reach into a crop, as rows of an objects file."""
    crop = shapely.box(0, 0, chip.info.width, chip.info.height)
    (frame,) = reproject_polygons(
        polygons_to_crs([crop], chip.info.transform), chip.info.crs_wkt, objects.crs.to_wkt()
    )
    rows = objects[shapely.area(shapely.intersection(objects.geometry.to_numpy(), frame)) > 0]
    uids = [
        hashlib.sha256(f"{chip.info.path}|{shapely.to_wkb(g, hex=True)}".encode()).hexdigest()[:16]
        for g in rows.geometry
    ]
    table = {
        "object_id": np.arange(1, len(rows) + 1),
        "uid": uids,
        "class": rows["class"].to_numpy(),
        "score": rows["score"].to_numpy(),
        "area_m2": rows["area_m2"].to_numpy(),
        "perimeter_m": rows["perimeter_m"].to_numpy(),
        "n_parts": rows["n_parts"].to_numpy(),
        "touches_edge": rows["touches_edge"].to_numpy(),
        "image": chip.info.path,
    }
    return fix_types(gpd.GeoDataFrame(table, geometry=rows.geometry.to_numpy(), crs=objects.crs))
