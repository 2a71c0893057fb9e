"""Bring the objects of a run into another order without ever holding them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely

from geoseg.outputs.objects_file import (
    GROUP_ROWS,
    OBJECT_SCHEMA,
    ObjectsWriter,
    iter_tables,
    open_objects,
)

BUCKET_ROWS = 100_000
"""Rows that are sorted in memory at once: some 50 MB."""
_MAX_BUCKETS = 400
"""Files that are open at once."""
_RANK = pa.field("rank", pa.int64())


def hilbert_keys(source: Path) -> npt.NDArray[np.uint32]:
    """Return the place of each object on a Hilbert curve over their common bounds, (n,).

    What is near on the curve is near on the ground, so that a reader of a window needs few row
    groups. Reads only the bounds, and holds 4 bytes an object.
    """
    file, info = open_objects(source)
    keys = [np.zeros(0, np.uint32)]
    with file:
        if info.bounds is None:
            return np.zeros(info.rows, np.uint32)
        for batch in file.iter_batches(200_000, columns=["bbox"]):
            boxes = batch.column(0)
            left, bottom, right, top = (
                boxes.field(i).to_numpy(zero_copy_only=False) for i in range(4)
            )
            x, y = np.nan_to_num((left + right) / 2), np.nan_to_num((bottom + top) / 2)
            points = gpd.GeoSeries(shapely.points(x, y))
            keys.append(points.hilbert_distance(total_bounds=info.bounds).to_numpy(np.uint32))
    return np.concatenate(keys)


def iter_sorted(
    source: Path, keys: npt.NDArray[np.unsignedinteger | np.signedinteger], scratch: Path
) -> Iterator[pa.Table]:
    """Read a file of objects in the order of their keys; equal ones as they come in the file.

    Parameters
    ----------
    source : Path
        A file of `ObjectsWriter`.
    keys : ndarray
        (n,) integers, one per row of the file.
    scratch : Path
        Folder for what does not fit in memory: at most as much as the file holds, unpacked.

    Yields
    ------
    pyarrow.Table
        Up to `GROUP_ROWS` rows.
    """
    file, _ = open_objects(source)
    rank = np.empty(len(keys), np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    rows = max(BUCKET_ROWS, -(-len(keys) // _MAX_BUCKETS))
    with file:
        if len(keys) <= rows:
            tables = list(iter_tables(file, GROUP_ROWS))
            if tables:
                yield from _slices(pa.concat_tables(tables), rank)
            return
        n_buckets = -(-len(keys) // rows)
        paths = [scratch / f"bucket-{i}.arrow" for i in range(n_buckets)]
        _scatter(iter_tables(file, GROUP_ROWS), rank, rows, paths)
    for path in paths:
        with pa.OSFile(str(path)) as stream:
            table = pa.ipc.open_stream(stream).read_all()
        path.unlink()
        yield from _slices(table.select(OBJECT_SCHEMA.names), table["rank"].to_numpy())


def _scatter(
    tables: Iterator[pa.Table], rank: npt.NDArray[np.int64], rows: int, paths: list[Path]
) -> None:
    """Write each row, with its rank, to the file of the bucket that it falls into."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    schema = OBJECT_SCHEMA.append(_RANK)
    sinks = [pa.OSFile(str(path), "wb") for path in paths]
    try:
        writers = [pa.ipc.new_stream(sink, schema, options=options) for sink in sinks]
        start = 0
        for table in tables:
            part = rank[start : start + len(table)]
            start += len(table)
            ranked = table.append_column(_RANK, pa.array(part))
            order = np.argsort(part)
            ends = np.searchsorted(part[order] // rows, np.arange(len(paths) + 1))
            for writer, first, last in zip(writers, ends[:-1], ends[1:], strict=True):
                if last > first:
                    writer.write_table(ranked.take(pa.array(order[first:last])))
        for writer in writers:
            writer.close()
    finally:
        for sink in sinks:
            sink.close()


def _slices(table: pa.Table, rank: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """Cut a table, in the order of the ranks, into parts."""
    ordered = table.take(pa.array(np.argsort(rank)))
    for start in range(0, len(ordered), GROUP_ROWS):
        yield ordered.slice(start, GROUP_ROWS)


def write_geoparquet(target: Path, source: Path) -> None:
    """Write a file of objects as GeoParquet 1.1 in Hilbert order, with bounds of rows and groups.

    Parameters
    ----------
    target : Path
        A new file, in a folder of its own: what is sorted lies there meanwhile.
    source : Path
        A file of `ObjectsWriter`.
    """
    file, info = open_objects(source)
    file.close()
    with ObjectsWriter(target, info.crs) as writer:
        for table in iter_sorted(source, hilbert_keys(source), target.parent):
            writer.write(table)
