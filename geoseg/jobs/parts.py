"""Parts: the finished result of one supertile, one GeoParquet file, published by a rename.

A part holds the supertile's final objects, the fragments that wait for the pass across seams,
and what happened there. It is finished if it exists under its key.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from rasterio.windows import Window

from geoseg.errors import OutputError
from geoseg.objects.seams import SeamCounts
from geoseg.records import Fragments, Objects, Tile

_GEO = json.dumps(
    {
        "version": "1.1.0",
        "primary_column": "geometry",
        # null: pixels of the working grid, no place on the earth
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": [], "crs": None}},
    }
).encode()


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What happened in one supertile; travels back to the driver and into the part."""

    image: int
    """Index of the image in the run."""
    index: tuple[int, int]
    """(row, col) of the supertile."""
    status: str
    """'done', 'empty' (no object), 'nodata', 'outside' (of the AOI) or 'failed' (as a whole)."""
    tiles: int = 0
    """Tiles of the supertile."""
    tiles_run: int = 0
    """Tiles that the detector saw."""
    saturated: tuple[tuple[int, int], ...] = ()
    """Tiles that reached a cap of the detector and were looked at again in quarters."""
    capped: int = 0
    """Smallest quarters that reached the cap even so, and may lack objects."""
    objects: int = 0
    """Objects that are final here; those at seams come later."""
    fragments: int = 0
    """Detections, before stitching."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Per stage: read, detect, vectorize, stitch."""
    peak_mb: float = 0.0
    """Largest resident memory of the worker so far."""
    imaged: str = ""
    """WKT of the valid area inside the core, grid px, on a coarse raster; empty: none."""
    reason: str = ""
    """Why it failed."""
    seams: SeamCounts = field(default_factory=SeamCounts)
    """How tiles agreed where two of them looked, of what is settled here."""
    tiles_failed: tuple[tuple[int, int, str], ...] = ()
    """(row, col, why) of tiles that were left out, one by one; the others are kept."""
    best_below: float = 0.0
    """Best score below the threshold; 0: none, or the detector does not tell."""
    n_below: int = 0
    """Boxes with a score below the threshold, from `geoseg.records.WORTH_TELLING` on."""
    tiles_skipped: int = 0
    """Tiles with pixels that a look at coarser ones found empty (``--skip-empty``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a part file holds."""

    summary: PartSummary
    settled: Objects
    """Final objects, grid px."""
    waiting: Fragments
    """Fragments that other supertiles may have seen too."""
    tiles: tuple[Tile, ...]
    """What ``waiting.tiles`` indexes, and others that looked there: tiles, or quarters of them."""


def tiles_around(fragments: Fragments, tiles: Sequence[Tile]) -> tuple[Fragments, tuple[Tile, ...]]:
    """Leave out the tiles that saw nothing of the ground of any fragment; renumber the others."""
    if len(fragments) == 0:
        return fragments, ()
    windows = np.array([tile.window.flatten() for tile in tiles], np.float64)
    windows[:, 2:] += windows[:, :2]
    tree = shapely.STRtree(shapely.box(*windows.T))
    near = np.unique(tree.query(shapely.box(*shapely.bounds(fragments.polygons).T))[1])
    kept = np.union1d(near, fragments.tiles)
    return (
        replace(fragments, tiles=np.searchsorted(kept, fragments.tiles)),
        tuple(tiles[i] for i in kept),
    )


def write_part(path: Path, part: Part, *, durable: bool = True) -> None:
    """Write a part to a private name, flush it to the disk and publish it by a rename.

    Not ``durable``: without waiting for the disk, for what can be made again at once.

    Raises
    ------
    OutputError
        If the disk is full, or the folder gone or not writable.
    """
    settled, waiting = part.settled, part.waiting
    n, m = len(settled), len(waiting)
    none = np.zeros(m, np.int64)
    columns: dict[str, Any] = {
        "settled": np.repeat([True, False], [n, m]),
        "score": np.concatenate([settled.scores, waiting.scores]).astype(np.float32),
        "label": np.concatenate([settled.labels, waiting.labels]).astype(np.int64),
        "n_parts": np.concatenate([settled.n_parts, none]).astype(np.int64),
        "complete": np.concatenate([settled.complete, ~waiting.cut]).astype(bool),
        "at_edge": np.concatenate([settled.touches_edge, waiting.at_edge]).astype(bool),
        "tile": np.concatenate([np.zeros(n, np.int64), waiting.tiles]),
        "geometry": shapely.to_wkb(np.concatenate([settled.polygons, waiting.polygons])),
    }
    table = pa.table(columns).replace_schema_metadata(
        {
            b"geo": _GEO,
            b"geoseg": json.dumps(asdict(part.summary)).encode(),
            b"key": path.stem.encode(),
            b"tiles": json.dumps([_tile_to_json(tile) for tile in part.tiles]).encode(),
        }
    )
    private = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with private.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        private.replace(path)
    except OSError as error:
        private.unlink(missing_ok=True)
        raise disk_error(path.parent.parent, error) from error


def disk_error(folder: Path, error: OSError) -> OutputError:
    """Return the error for a folder in which nothing can be written: no matter of one tile."""
    try:
        free = f"; {shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"
    except OSError:
        free = ""
    return OutputError(
        f"writing in {folder} failed ({error.strerror or error}){free}. Make room; what is "
        "finished is kept: the same command goes on from there"
    )


def _tile_to_json(tile: Tile) -> list[list[int]]:
    return [
        list(tile.index),
        [int(v) for v in tile.core.flatten()],
        [int(v) for v in tile.window.flatten()],
    ]


def _tile_from_json(values: list[list[int]]) -> Tile:
    index, core, window = values
    return Tile((index[0], index[1]), Window(*core), Window(*window))


def read_summary(path: Path) -> PartSummary:
    """Read what happened, without the geometries."""
    return _summary_from_json(pq.read_schema(path).metadata[b"geoseg"])


def _summary_from_json(text: bytes) -> PartSummary:
    values = json.loads(text)
    values["index"] = tuple(values["index"])
    values["saturated"] = tuple(tuple(tile) for tile in values["saturated"])
    values["seams"] = SeamCounts.from_dict(values["seams"])
    lost = values.get("tiles_failed", ())
    values["tiles_failed"] = tuple((int(r), int(c), str(why)) for r, c, why in lost)
    return PartSummary(**values)


def finished_part(path: Path) -> PartSummary | None:
    """Return the summary of a part that needs no more work, or None.

    A part with tiles left out is tried again as a whole by the next run. One that cannot be read
    (a power cut on a file system that loses what was flushed) is none, nor is one that was written
    under another name: a name says what a part was made of.
    """
    try:
        metadata = pq.read_schema(path).metadata
        if metadata[b"key"] != path.stem.encode():
            return None
        summary = _summary_from_json(metadata[b"geoseg"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return None if summary.tiles_failed else summary


def read_part(path: Path) -> Part:
    """Read a part."""
    table = pq.read_table(path)
    column = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    polygons = np.asarray(shapely.from_wkb(column["geometry"]), dtype=object)
    done = column["settled"].astype(bool)
    wait = ~done
    return Part(
        summary=read_summary(path),
        settled=Objects(
            polygons=polygons[done],
            scores=column["score"][done],
            labels=column["label"][done],
            n_parts=column["n_parts"][done],
            complete=column["complete"][done],
            touches_edge=column["at_edge"][done],
        ),
        waiting=Fragments(
            polygons=polygons[wait],
            scores=column["score"][wait],
            labels=column["label"][wait],
            tiles=column["tile"][wait].astype(np.int64),
            cut=~column["complete"][wait],
            at_edge=column["at_edge"][wait],
        ),
        tiles=tuple(map(_tile_from_json, json.loads(table.schema.metadata[b"tiles"]))),
    )
