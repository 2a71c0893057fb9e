"""Labels in COCO's JSON: polygons or run lengths in px of an image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes

from geoseg.errors import LabelError
from geoseg.records import BoolArray, GeometryArray

_MOST_BYTES = 2_000_000_000
_MOST_MASK_PX = 400_000_000
"""Of one run-length mask that is decoded as a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class CocoLabels:
    """The annotations of one image."""

    polygons: GeometryArray
    """(n,) in px of the image, the corner of the first at (0, 0)."""
    classes: tuple[str, ...]
    """(n,) category names."""
    crowd: BoolArray
    """(n,) ``iscrowd``: many things in one outline, neither object nor background."""


def is_coco(path: Path) -> bool:
    """Tell COCO's JSON from GeoJSON by how it begins."""
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        table = file.read(1_000_000)
    return b'"FeatureCollection"' not in table and b'"features"' not in table


def read_coco(path: Path, image: str, size: tuple[int, int]) -> CocoLabels:
    """Read the annotations of one image.

    Parameters
    ----------
    path : Path
        A file as ``instances_train.json``.
    image : str
        Path of the image; its name, or its end, is looked for among the file names.
    size : (int, int)
        Width and height of the image, px, which must be the file's.

    Raises
    ------
    LabelError
        If the file is no such JSON, has no such image, or is about one of another size.
    """
    table = _read(path)
    entry = _find_image(path, table["images"], image)
    told = (entry.get("width", size[0]), entry.get("height", size[1]))
    if told != size:
        raise LabelError(
            f"{path} says that {entry.get('file_name')} has {told[0]} x {told[1]} px, but it has "
            f"{size[0]} x {size[1]}; give the image that was labelled"
        )
    names = {c.get("id"): str(c.get("name", c.get("id"))) for c in table["categories"]}
    polygons, classes, crowd = [], [], []
    for row in table["annotations"]:
        if row.get("image_id") != entry.get("id"):
            continue
        polygons.append(_outline(path, row))
        classes.append(names.get(row.get("category_id"), ""))
        crowd.append(bool(row.get("iscrowd", 0)))
    return CocoLabels(np.array(polygons, object), tuple(classes), np.array(crowd, bool))


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    if path.stat().st_size > _MOST_BYTES:
        raise LabelError(f"{path} has more than {_MOST_BYTES:,} bytes; split it by image")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    for key in ("images", "annotations", "categories"):
        rows = table.get(key) if isinstance(table, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LabelError(
                f"{path} has no list '{key}'; expected COCO's JSON with images, annotations and "
                "categories, or GeoJSON"
            )
    return dict(table)


def _find_image(path: Path, images: list[dict[str, Any]], image: str) -> dict[str, Any]:
    name = PurePosixPath(image.replace("\\", "/")).name
    found = [
        row
        for row in images
        if PurePosixPath(str(row.get("file_name", "")).replace("\\", "/")).name == name
    ]
    if len(found) != 1:
        known = ", ".join(str(row.get("file_name")) for row in images[:5])
        count = "no image" if not found else f"{len(found)} images"
        raise LabelError(f"{path} has {count} with the name {name}; it has {known or 'none'}")
    return found[0]


def _outline(path: Path, row: dict[str, Any]) -> shapely.Geometry:
    """Return one annotation as a (multi)polygon, empty where it has none."""
    parts = row.get("segmentation")
    try:
        if isinstance(parts, dict):
            return _from_runs(parts)
        rings = [np.asarray(part, float).reshape(-1, 2) for part in parts or ()]
        polygons = [shapely.Polygon(ring) for ring in rings if len(ring) >= 3]
        # several polygons are the parts of one object that something hides
        return shapely.union_all(shapely.make_valid(np.array(polygons, object)))
    except (ValueError, TypeError, KeyError, shapely.errors.GEOSException) as error:
        raise LabelError(
            f"{path}: the segmentation of annotation {row.get('id')} is neither polygons nor run "
            f"lengths ({error})"
        ) from error


def _from_runs(runs: dict[str, Any]) -> shapely.Geometry:
    """Return the outline of run lengths, which go down the columns and begin with background."""
    height, width = (int(v) for v in runs["size"])
    if not 0 < height * width <= _MOST_MASK_PX:
        raise ValueError(f"a mask of {width} x {height} px")
    counts = runs["counts"]
    lengths = np.asarray(_unpacked(counts) if isinstance(counts, str) else counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError("run lengths do not add up to the mask")
    values = np.arange(len(lengths)) % 2
    mask = np.repeat(values.astype(np.uint8), lengths).reshape(width, height).T
    rings = [shapely.geometry.shape(g) for g, v in shapes(mask, mask=mask.astype(bool)) if v]
    return shapely.union_all(np.array(rings, object))


def _unpacked(text: str) -> npt.NDArray[np.int64]:
    """Undo COCO's packing of run lengths (the format of pycocotools' ``maskApi``).

    Five bits a character from '0' on; from the third on, each as the difference to the one before
    the last.
    """
    runs: list[int] = []
    value = shift = 0
    for char in text.encode("ascii"):
        bits = char - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return np.array(runs, np.int64)
