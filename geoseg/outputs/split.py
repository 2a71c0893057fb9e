"""Results too large for one file: one file per region or per cell of a grid, and an index."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyproj
import shapely

from geoseg.errors import OutputError
from geoseg.objects.count import polygonal
from geoseg.outputs.formats import COCO_SUFFIX, OBJECT_SUFFIXES, check_output, stem_of, suffix_of
from geoseg.outputs.geopackage import write_geopackage
from geoseg.outputs.objects_file import (
    ObjectsWriter,
    describe_objects,
    iter_tables,
    open_objects,
    to_geometries,
)
from geoseg.outputs.publish import fsync, put, scratch
from geoseg.outputs.sorting import iter_sorted
from geoseg.outputs.tables import write_objects, write_table

SPLIT_ROWS = 1_000_000
"""Objects that a cell of the grid may hold before it is cut into four."""
INDEX = "index.csv"
"""The list of files in their own folder; also how we know a folder as ours."""
_COLUMNS = ("file", "name", "region", "objects", "bytes")
_NAME_BYTES = 80
_DEPTH = 16


@dataclass(frozen=True, slots=True)
class _Share:
    """What one file is to hold."""

    name: str
    """What people call it."""
    stem: str
    """Name of its file, without suffix."""
    region: int | None
    """Row of the region from 1, 0: outside of all; None: a cell."""
    geometry: Any
    """Outline in the CRS of the objects; None: the bounds of what it holds."""


def split_folder(path: Path) -> Path:
    """Return the folder that takes the files of a split output.

    Examples
    --------
    >>> split_folder(Path("out/town.gpkg")).as_posix(), split_folder(Path("a.coco.json")).name
    ('out/town_gpkg', 'a_coco')
    """
    return path.with_name(f"{stem_of(path)}_{suffix_of(path).split('.')[1]}")


def check_split(path: Path, overwrite: bool = False) -> Path:
    """Refuse a split output that could not be written; see `check_output`.

    Raises
    ------
    OutputError
        As `check_output`; or if the folder exists without ``overwrite``, or is not one of ours:
        nothing of somebody else's is ever removed.
    """
    path = check_output(path, overwrite, suffixes=OBJECT_SUFFIXES)
    folder = split_folder(path)
    if folder.exists():
        if not overwrite:
            raise OutputError(
                f"folder {folder} exists; give --overwrite to replace it, or another output name"
            )
        if not _is_ours(folder):
            raise OutputError(
                f"{folder} is to take the files of {path.name}, but holds other things; move it "
                "away, or give another output name"
            )
    return path


def write_split(
    path: str | Path,
    source: str | Path,
    by: str,
    *,
    regions: gpd.GeoDataFrame | None = None,
    rows: int = SPLIT_ROWS,
    others: Mapping[str, gpd.GeoDataFrame] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write objects to several files, each object to exactly one, and an index of them.

    The files lie in a folder beside the output, ``town_gpkg`` for ``town.gpkg``. The output
    itself is the index: a layer ``files`` with an outline, a name, a path and a count for each,
    in a GeoPackage beside the other layers. The folder has the same as ``index.csv``.

    Parameters
    ----------
    path : str or Path
        The index to make; its suffix is also that of the files. See `write_objects`.
    source : str or Path
        A file of `ObjectsWriter`.
    by : str
        ``region``: the file of the region that holds the object's representative point, of
        several the first; what lies in none goes to ``outside``. ``grid``: the file of its cell;
        cells are squares, cut into four while they hold more than ``rows``.
    regions : GeoDataFrame, optional
        For ``region``; ``attrs['region_field']`` names the field with their names, if there.
    rows : int
        For ``grid``.
    others : mapping of str to GeoDataFrame, optional
        More layers of the index; only a GeoPackage has room for them.
    overwrite : bool
        Whether an existing output and its folder may be replaced.
    **options
        As for `write_objects`.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    OutputError
        As `write_objects` and `check_split`; or if objects were lost or doubled, which would be
        a defect: nothing is published then.

    Notes
    -----
    Memory is that of a bucket of objects (see `iter_sorted`) and some 30 bytes an object. The
    scratch folder needs as much disk as the objects.
    """
    path, source = check_split(Path(path), overwrite), Path(source).expanduser().absolute()
    info = describe_objects(source)
    if by == "region" and regions is not None:
        keys, share_of = _by_region(source, info.crs, regions)
        wanted = range(1, len(regions) + 1)
    elif by == "grid":
        keys, share_of = _by_cell(source, rows)
        wanted = range(0)
    else:
        raise OutputError(
            f"cannot split by '{by}'{'' if by != 'region' else ' without regions'}; "
            "expected region, with a layer of regions, or grid"
        )
    with scratch(path) as temporary:
        made = temporary.parent / "files"
        made.mkdir()
        entries = _write_files(path, source, keys, share_of, made, options)
        if sum(entry["objects"] for entry in entries.values()) != info.rows:
            raise OutputError(
                f"{info.rows} objects became {sum(e['objects'] for e in entries.values())} in the "
                f"files for {path.name}; nothing was published, please report this"
            )
        for key in wanted:
            entries.setdefault(key, _entry(share_of(key), 0, None))
        index = _index([entries[key] for key in sorted(entries)], info.crs)
        _write_csv(made / INDEX, index)
        _exchange(made, split_folder(path), made.with_name("old"), overwrite=overwrite)
    _write_index(path, index, others or {}, overwrite=overwrite, options=options)
    return path


def _write_files(
    path: Path,
    source: Path,
    keys: npt.NDArray[np.int64],
    share_of: Callable[[int], _Share],
    made: Path,
    options: Mapping[str, Any],
) -> dict[int, dict[str, Any]]:
    """Write the file of each key into a folder; return the rows of the index by key."""
    entries = {}
    for key, part in _parts(source, keys, made.parent):
        share, held = share_of(key), describe_objects(part)
        file = write_objects(made / f"{share.stem}{suffix_of(path)}", part, **options)
        bounds = shapely.box(*held.bounds) if held.bounds else None
        entries[key] = _entry(share, held.rows, bounds) | {
            "file": f"{split_folder(path).name}/{file.name}",
            "bytes": file.stat().st_size,
        }
    return entries


def _entry(share: _Share, objects: int, bounds: Any) -> dict[str, Any]:
    """Return a row of the index."""
    return {
        "file": None,
        "name": share.name,
        "region": share.region,
        "objects": objects,
        "bytes": 0,
        "geometry": bounds if share.geometry is None else share.geometry,
    }


def _by_region(
    source: Path, crs: pyproj.CRS, regions: gpd.GeoDataFrame
) -> tuple[npt.NDArray[np.int64], Callable[[int], _Share]]:
    """Return the region of each object, from 1, or 0; and what is to be known of each."""
    shapes, _ = polygonal(regions.geometry.array)
    shapely.prepare(shapes)
    field = regions.attrs.get("region_field")
    names = [str(v) for v in (regions[field] if field else range(1, len(regions) + 1))]
    outlines = gpd.GeoSeries(shapes, crs=regions.crs).to_crs(crs).to_numpy()
    digits = max(4, len(str(len(regions))))
    found = [np.zeros(0, np.int64)]
    for polygons in _geometries_of(source):
        points = gpd.GeoSeries(shapely.point_on_surface(polygons), crs=crs).to_crs(regions.crs)
        region, row = shapely.STRtree(points.to_numpy()).query(shapes, predicate="intersects")
        lowest = np.full(len(points), len(shapes), np.int64)
        np.minimum.at(lowest, row, region)
        found.append(np.where(lowest < len(shapes), lowest + 1, 0))

    def share(key: int) -> _Share:
        if key == 0:
            return _Share("outside", f"{0:0{digits}}_outside", 0, None)
        name = names[key - 1]
        return _Share(
            name, "_".join([f"{key:0{digits}}", *safe_name(name)]), key, outlines[key - 1]
        )

    return np.concatenate(found), share


def _by_cell(source: Path, rows: int) -> tuple[npt.NDArray[np.int64], Callable[[int], _Share]]:
    """Return the cell of each object, and what is to be known of each."""
    info = describe_objects(source)
    left, bottom, right, top = info.bounds or (0.0, 0.0, 0.0, 0.0)
    side = max(right - left, top - bottom) or 1.0
    codes = [np.zeros(0, np.int64)]
    for polygons in _geometries_of(source):
        bounds = np.nan_to_num(shapely.bounds(polygons))
        x = (bounds[:, 0] + bounds[:, 2]) / 2 - left
        # as quadkeys go: from the top
        y = top - (bounds[:, 1] + bounds[:, 3]) / 2
        cols, lines = (
            np.clip((v / side * 2**_DEPTH).astype(np.int64), 0, 2**_DEPTH - 1) for v in (x, y)
        )
        codes.append(_interleaved(cols) | _interleaved(lines) << 1)
    code = np.concatenate(codes)
    cells = list(_cells(np.sort(code), rows))
    starts = np.array([start for start, _ in cells] or [0])
    keys = np.searchsorted(starts, code, side="right") - 1

    def share(key: int) -> _Share:
        start, depth = cells[key]
        digits = [(start >> 2 * (_DEPTH - 1 - i)) & 3 for i in range(depth)]
        quadkey = "".join(map(str, digits))
        x, y, size = left, top, side
        for digit in digits:
            size /= 2
            x, y = x + size * (digit & 1), y - size * (digit >> 1)
        return _Share(quadkey or "all", f"q{quadkey}", None, shapely.box(x, y - size, x + size, y))

    return keys, share


def _interleaved(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return numbers of 16 bits with a zero before each bit."""
    spread = values
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        spread = (spread | spread << shift) & mask
    return spread


def _cells(
    code: npt.NDArray[np.int64], rows: int, start: int = 0, depth: int = 0
) -> Iterator[tuple[int, int]]:
    """Return first code and depth of the cells that hold something, given sorted codes."""
    if not len(code):
        return
    if len(code) <= rows or depth == _DEPTH:
        yield start, depth
        return
    quarter = 4 ** (_DEPTH - depth - 1)
    ends = np.searchsorted(code, start + quarter * np.arange(5))
    for i in range(4):
        yield from _cells(code[ends[i] : ends[i + 1]], rows, start + i * quarter, depth + 1)


def _geometries_of(source: Path) -> Iterator[npt.NDArray[np.object_]]:
    """Read the polygons of all objects, some at a time."""
    file, _ = open_objects(source)
    with file:
        for table in iter_tables(file):
            yield to_geometries(table)


def _parts(source: Path, keys: npt.NDArray[np.int64], root: Path) -> Iterator[tuple[int, Path]]:
    """Write the objects of each key to a file, one after the other in the same place."""
    crs, part = describe_objects(source).crs, root / "part.parquet"
    rest = iter_sorted(source, keys, root)
    waiting = pa.table({})
    for key, count in zip(*np.unique(keys, return_counts=True), strict=True):
        with ObjectsWriter(part, crs) as writer:
            missing = int(count)
            while missing:
                waiting = waiting if len(waiting) else next(rest)
                writer.write(waiting.slice(0, missing))
                taken = min(missing, len(waiting))
                missing, waiting = missing - taken, waiting.slice(taken)
        yield int(key), part


def safe_name(text: str) -> list[str]:
    """Return a text as part of a file name that every system takes; nothing where none is left.

    Letters, marks and digits of any script stay, all else becomes ``_``: separators, dots, and
    what turns the direction of writing or cannot be seen.

    Examples
    --------
    >>> safe_name("../Ward 7: north"), safe_name("काठमाडौं"), safe_name("..")
    (['Ward_7_north'], ['काठमाडौं'], [])
    """
    known = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text))
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c == "-" else " " for c in known)
    short = "_".join(kept.split()).encode()[:_NAME_BYTES].decode(errors="ignore").strip("_-")
    return [short] if short else []


def _index(entries: Sequence[Mapping[str, Any]], crs: pyproj.CRS) -> gpd.GeoDataFrame:
    """Return the index as a table."""
    columns: dict[str, Any] = {name: [e[name] for e in entries] for name in _COLUMNS}
    table = gpd.GeoDataFrame(columns, geometry=[e["geometry"] for e in entries], crs=crs)
    kinds = {"file": "str", "name": "str", "objects": "int64", "bytes": "int64"}
    table = table.astype({"region": "Int64"} | {k: v for k, v in kinds.items() if k != "file"})
    return table.drop(columns="region") if table["region"].isna().all() else table


def _write_csv(path: Path, index: gpd.GeoDataFrame) -> None:
    """Write the index as a plain table."""
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        rows = index.drop(columns="geometry")
        writer.writerow(rows.columns)
        writer.writerows(rows.astype(object).where(rows.notna(), "").to_numpy().tolist())


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder is one of split files: an empty one, or with our index."""
    if not folder.is_dir():
        return False
    index = folder / INDEX
    if not index.exists():
        return not any(folder.iterdir())
    with index.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline().startswith("file,name,")


def _exchange(made: Path, folder: Path, old: Path, *, overwrite: bool) -> None:
    """Put the new files in place of the old ones."""
    if folder.exists():
        if not overwrite or not _is_ours(folder):
            raise OutputError(f"folder {folder} appeared while it was being made; not replaced")
        folder.rename(old)
    made.rename(folder)
    fsync(folder.parent)


def _write_index(
    path: Path,
    index: gpd.GeoDataFrame,
    others: Mapping[str, gpd.GeoDataFrame],
    *,
    overwrite: bool,
    options: Mapping[str, Any],
) -> None:
    """Write the index in the format of the output."""
    suffix = suffix_of(path)
    if suffix == ".gpkg":
        about = {k: options[k] for k in ("metadata", "documents") if k in options}
        write_geopackage(path, {"files": index, **others}, overwrite=overwrite, **about)
    elif suffix == COCO_SUFFIX:
        rows = json.loads(index.drop(columns="geometry").to_json(orient="records"))
        with scratch(path) as temporary:
            temporary.write_text(json.dumps({"files": rows}, indent=1), encoding="utf-8")
            put(temporary, path, overwrite=overwrite)
    else:
        write_table(path, index, layer="files", overwrite=overwrite)
