"""The objects of a run as COCO JSON: outlines in px of the source images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pyproj
import shapely
from affine import Affine
from rasterio.features import rasterize

from geoseg.errors import OutputError
from geoseg.outputs.objects_file import describe_objects, iter_objects
from geoseg.records import RasterInfo

DECIMALS = 2
"""Of a px, in outlines and boxes."""
_RLE_LIMIT = 2**32
"""Px of an image from which on run lengths do not fit into what pycocotools decodes them to."""


def write_coco(
    target: Path,
    source: Path,
    images: Sequence[RasterInfo],
    *,
    classes: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a file of objects as COCO JSON, as a stream.

    Outlines are in px of the image that the object was found in: the centre of the top left pixel
    is (0.5, 0.5). They are clipped to the image. An outline with holes, which COCO's polygons
    cannot have, becomes run lengths of pixels whose centres it holds; in images of 2 ** 32 px and
    more, whose run lengths no reader takes, polygons without holes that lie side by side; so does
    what holds no pixel's centre.

    Parameters
    ----------
    target : Path
        The file to make.
    source : Path
        A file of `ObjectsWriter`.
    images : sequence of RasterInfo
        The images of the run; those of one name are told apart by where the object lies.
    classes : sequence of str
        Categories, in order; those that only the objects have come after, sorted.
    about : mapping, optional
        Notes on the run, such as model, licence and credits.

    Raises
    ------
    OutputError
        If the objects name an image that was not given.
    """
    crs = describe_objects(source).crs
    categories = _categories(source, classes)
    frames = [_Frame(i + 1, info, crs) for i, info in enumerate(images)]
    notes = dict(about or {})
    licence = str(notes.get("licence", ""))
    head = {
        "info": {"description": "objects found by geoseg", **notes},
        "licenses": [{"id": 1, "name": licence, "url": ""}] if licence else [],
        "images": [frame.entry for frame in frames],
        "categories": [
            {"id": number, "name": name, "supercategory": ""} for name, number in categories.items()
        ],
    }
    with target.open("w", encoding="utf-8") as out:
        # the last brace is for the end
        out.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
        between = "\n"
        for part in iter_objects(source, 10_000):
            for row in _annotations(part, frames, categories):
                out.write(between + json.dumps(row, ensure_ascii=False))
                between = ",\n"
        out.write("\n]}\n")


class _Frame:
    """One image: its entry in the file, and the way from the objects' CRS to its px."""

    def __init__(self, number: int, info: RasterInfo, crs: pyproj.CRS) -> None:
        self.number = number
        self.name = Path(info.path).name
        self.width, self.height = info.width, info.height
        own = pyproj.CRS.from_wkt(info.crs_wkt)
        epsg = own.to_epsg(min_confidence=100)
        self.entry = {
            "id": number,
            "file_name": self.name,
            "width": info.width,
            "height": info.height,
            "geo": {
                "crs": f"EPSG:{epsg}" if epsg else info.crs_wkt,
                "transform": list(info.transform)[:6],
            },
        }
        self._to_own = (
            None if crs == own else pyproj.Transformer.from_crs(crs, own, always_xy=True).transform
        )
        self._to_px: Affine = ~info.transform

    def place(self, polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
        """Bring polygons to px of the image."""

        def to_px(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            x, y = xy.T if self._to_own is None else self._to_own(*xy.T)
            m = self._to_px
            return np.column_stack([m.a * x + m.b * y + m.c, m.d * x + m.e * y + m.f])

        return np.asarray(shapely.transform(polygons, to_px), dtype=object)

    def holds(self, polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
        """Tell which polygons, in px, lie with the middle of their bounds in the image."""
        left, top, right, bottom = shapely.bounds(polygons).T
        x, y = (left + right) / 2, (top + bottom) / 2
        inside = (x >= 0) & (x <= self.width) & (y >= 0) & (y <= self.height)
        return np.asarray(inside, dtype=bool)

    def clip(self, polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
        """Cut what reaches beyond the image; what lies outside wholly stays as it is."""
        left, top, right, bottom = shapely.bounds(polygons).T
        over = (left < 0) | (top < 0) | (right > self.width) | (bottom > self.height)
        if over.any():
            frame = shapely.box(0, 0, self.width, self.height)
            sound = shapely.make_valid(polygons[over])
            cut = [_polygonal(g) for g in shapely.intersection(sound, frame)]
            polygons[over] = [new or old for new, old in zip(cut, polygons[over], strict=True)]
        return polygons


def _polygonal(geometry: Any) -> Any:
    """Return the polygons in a geometry as one, or None."""
    parts = shapely.get_parts(shapely.get_parts([geometry]))
    parts = parts[(shapely.get_type_id(parts) == 3) & (shapely.area(parts) > 0)]
    if not len(parts):
        return None
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def _categories(source: Path, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of each class, from 1."""
    found: set[str] = set()
    with pq.ParquetFile(source, read_dictionary=["class"], pre_buffer=False) as file:
        for batch in file.iter_batches(1_000_000, columns=["class"]):
            found.update(batch["class"].unique().to_pylist())
    names = [*dict.fromkeys(classes), *sorted(found - set(classes))]
    return {name: i + 1 for i, name in enumerate(names)}


def _annotations(
    part: gpd.GeoDataFrame, frames: Sequence[_Frame], categories: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Return the entries of some objects, in their order."""
    polygons, owner = _place(part, frames)
    bounds, areas = shapely.bounds(polygons).round(DECIMALS), shapely.area(polygons).round(DECIMALS)
    segments = _segmentations(polygons, [frames[i] for i in owner])
    columns = ("object_id", "class", "score", "uid", "area_m2")
    rows = zip(*(part[name].tolist() for name in columns), strict=True)
    for i, (number, kind, score, uid, area_m2) in enumerate(rows):
        left, top, right, bottom = bounds[i].tolist()
        yield {
            "id": number,
            "image_id": frames[owner[i]].number,
            "category_id": categories[kind],
            "segmentation": next(segments),
            "area": float(areas[i]),
            "bbox": [left, top, round(right - left, DECIMALS), round(bottom - top, DECIMALS)],
            "iscrowd": 0,
            "score": score,
            "uid": uid,
            "area_m2": area_m2,
        }


def _place(
    part: gpd.GeoDataFrame, frames: Sequence[_Frame]
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64]]:
    """Return the polygons in px of their image, and the image of each."""
    given = part.geometry.to_numpy()
    names = part["image"].to_numpy()
    polygons = np.empty(len(part), object)
    owner = np.full(len(part), -1)
    for i, frame in enumerate(frames):
        rows = np.flatnonzero((names == frame.name) & (owner < 0))
        if not len(rows):
            continue
        placed = frame.place(given[rows])
        # the last image of a name takes what no other holds
        last = all(other.name != frame.name for other in frames[i + 1 :])
        mine = np.ones(len(rows), bool) if last else frame.holds(placed)
        polygons[rows[mine]] = frame.clip(placed[mine])
        owner[rows[mine]] = i
    if (owner < 0).any():
        name = names[np.argmax(owner < 0)]
        raise OutputError(
            f"an object was found in {name}, but COCO JSON was to be written for "
            f"{', '.join(frame.name for frame in frames) or 'no image'}; give all images of the run"
        )
    return polygons, owner


def _segmentations(
    polygons: npt.NDArray[np.object_], frames: Sequence[_Frame]
) -> Iterator[list[list[float]] | dict[str, Any]]:
    """Return each polygon as COCO has it."""
    parts, row = shapely.get_parts(polygons, return_index=True)
    holed = np.zeros(len(polygons), bool)
    holed[row[shapely.get_num_interior_rings(parts) > 0]] = True
    rings = shapely.get_exterior_ring(parts)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    ends = np.searchsorted(ring, np.arange(len(rings) + 1))
    flat = xy.round(DECIMALS).ravel().tolist()
    first = np.searchsorted(row, np.arange(len(polygons) + 1))
    for i, frame in enumerate(frames):
        if not holed[i]:
            # without the last point, which is the first
            yield [flat[2 * ends[k] : 2 * (ends[k + 1] - 1)] for k in range(first[i], first[i + 1])]
        else:
            yield _with_holes(polygons[i], frame)


def _with_holes(polygon: Any, frame: _Frame) -> list[list[float]] | dict[str, Any]:
    """Return a polygon that has holes as COCO has it."""
    size = frame.height, frame.width
    if frame.height * frame.width < _RLE_LIMIT:
        runs = run_lengths(polygon, *size)
        # so small that it holds no centre of a px: better some outline than no mask
        if runs != run_lengths(shapely.Point(-9, -9).buffer(1), *size):
            return runs
    return [
        np.round(part.exterior.coords[:-1], DECIMALS).ravel().tolist()
        for part in _without_holes(polygon)
    ]


def run_lengths(polygon: Any, height: int, width: int) -> dict[str, Any]:
    """Return the pixels whose centres a polygon holds as COCO's compressed run lengths.

    Only the surroundings of the polygon are drawn, whatever the size of the image.

    Parameters
    ----------
    polygon : shapely Polygon or MultiPolygon
        In px; what lies outside the image is left out.
    height, width : int
        Size of the image, px.

    Returns
    -------
    dict
        ``size`` [height, width] and ``counts``, a text: lengths of runs of 0 and 1 in turn, down
        the columns.

    Examples
    --------
    >>> run_lengths(shapely.box(1, 1, 3, 3), 4, 4)
    {'size': [4, 4], 'counts': '52203'}
    """
    left, top, right, bottom = shapely.bounds(polygon)
    x0, y0 = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    x1, y1 = min(int(np.ceil(right)), width), min(int(np.ceil(bottom)), height)
    counts = np.array([height * width])
    if x1 > x0 and y1 > y0:
        window = rasterize(
            [polygon], (y1 - y0, x1 - x0), transform=Affine.translation(x0, y0), dtype="uint8"
        )
        padded = np.zeros((x1 - x0, y1 - y0 + 2), np.int8)
        padded[:, 1:-1] = window.T
        steps = np.diff(padded, axis=1)
        starts, ends = (
            (x0 + col) * height + y0 + row for col, row in (np.nonzero(steps == s) for s in (1, -1))
        )
        # a run that ends with its column goes on at the top of the next
        whole = starts[1:] != ends[:-1]
        first, last = np.r_[True, whole], np.r_[whole, True]
        turns = np.stack([starts[first[: len(starts)]], ends[last[: len(ends)]]], axis=1).ravel()
        counts = np.diff(np.r_[0, turns, height * width])
        counts = counts[: len(counts) - (counts[-1] == 0)]
    return {"size": [height, width], "counts": _packed(counts.tolist())}


def _packed(counts: Sequence[int]) -> str:
    """Return counts in the text form of COCO.

    Each is written as its difference to the last but one (from the fourth on), five bits a
    character, lowest first; the sixth bit says that more follow, the fifth of the last is the
    sign.
    """
    text = []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return "".join(text)


def _without_holes(polygon: Any) -> list[Any]:
    """Cut polygons through their holes until none is left."""
    done, waiting = [], list(shapely.get_parts(polygon))
    while waiting:
        part = waiting.pop()
        if not part.interiors:
            done.append(part)
            continue
        left, top, right, bottom = part.bounds
        hole_left, _, hole_right, _ = part.interiors[0].bounds
        middle = (hole_left + hole_right) / 2
        for half in (
            shapely.box(left, top, middle, bottom),
            shapely.box(middle, top, right, bottom),
        ):
            piece = _polygonal(shapely.intersection(part, half))
            waiting += [] if piece is None else list(shapely.get_parts(piece))
    return done
