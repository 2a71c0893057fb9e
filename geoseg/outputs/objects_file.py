"""The objects of a run as one GeoParquet file, written and read as a stream.

The objects may be millions, more than memory holds. They go as a stream into one file
(:class:`ObjectsWriter`), and from there as a stream to whoever wants them
(:func:`iter_objects`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from geoseg.errors import OutputError
from geoseg.outputs.publish import first_line, fsync

OBJECT_DTYPES: dict[str, str] = {
    "object_id": "int64",
    "uid": "str",
    "class": "str",
    "score": "float64",
    "area_m2": "float64",
    "perimeter_m": "float64",
    "n_parts": "int32",
    "touches_edge": "bool",
    "image": "str",
}
"""The columns of the ``objects`` layer, in order, before the geometry."""
_ARROW_TYPES = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
}
OBJECT_SCHEMA: pa.Schema = pa.schema(
    [(name, _ARROW_TYPES[kind]) for name, kind in OBJECT_DTYPES.items()]
    + [("geometry", pa.binary())]
)
"""The same columns for Arrow; ``geometry`` is WKB."""
GROUP_ROWS = 50_000
"""Rows of a row group, and of the batches that GDAL gets: appending below 20,000 is slow."""
_BBOX_TYPE = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
_POLYGON_TYPES = {3: "Polygon", 6: "MultiPolygon"}


def empty_objects(crs: pyproj.CRS | str | int) -> gpd.GeoDataFrame:
    """Return an ``objects`` table without rows but with every column and type."""
    columns = {name: pd.Series([], dtype=kind) for name, kind in OBJECT_DTYPES.items()}
    return gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries([], crs=crs), crs=crs)


class ObjectsWriter:
    """Write the objects of a run as one GeoParquet 1.1 file, a table at a time.

    The file has a private name until it is complete; leaving the ``with`` block normally puts it
    in place (of an older one, too), leaving it by an exception removes it. The same rows give the
    same bytes, however they were cut into tables.

    Parameters
    ----------
    path : str or Path
        The file to make.
    crs : pyproj.CRS or str or int
        CRS of the geometry.

    Raises
    ------
    OutputError
        If the file cannot be written, or a table is not as :data:`OBJECT_SCHEMA` says.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with ObjectsWriter(Path(folder) / "objects.parquet", 32645) as writer:
    ...         writer.write(objects_to_arrow(empty_objects(32645)))
    ...     writer.rows
    0
    """

    def __init__(self, path: str | Path, crs: pyproj.CRS | str | int) -> None:
        self.path = Path(path).expanduser().absolute()
        self.crs = pyproj.CRS.from_user_input(crs)
        # always the same name: what a killed process leaves, the next one writes over
        self._private = self.path.with_name(f".{self.path.name}.partial")
        self._geo = _geo_metadata(self.crs)
        self._pending: list[pa.Table] = []
        self._n_pending = 0
        self._written = 0
        self._kinds: set[str] = set()
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._file: pq.ParquetWriter

    @property
    def rows(self) -> int:
        """Rows given so far."""
        return self._written + self._n_pending

    def __enter__(self) -> Self:
        """Open the file under its private name."""
        schema = OBJECT_SCHEMA.append(pa.field("bbox", _BBOX_TYPE))
        try:
            self._file = pq.ParquetWriter(
                self._private,
                schema,
                compression="zstd",
                # every outline and every uid is another one: a dictionary of them is a waste
                use_dictionary=["class", "image"],
            )
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({first_line(error)}); choose another place"
            ) from error
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows, in order.

        Parameters
        ----------
        table : pyarrow.Table
            The columns of :data:`OBJECT_SCHEMA`, in any order; ``geometry`` holds the WKB of
            Polygons and MultiPolygons.

        Raises
        ------
        OutputError
            If columns, types or geometry are others, or the disk is full.
        """
        self._pending.append(_as_objects(table))
        self._n_pending += len(table)
        if self._n_pending >= GROUP_ROWS:
            self._flush(whole_groups=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the complete file in place, or remove it."""
        try:
            if kind is None:
                self._flush(whole_groups=False)
                self._close()
                fsync(self._private)
                self._private.replace(self.path)
                fsync(self.path.parent)
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            # also where it is incomplete, so that nothing holds the file that is removed
            with contextlib.suppress(OSError):
                self._file.close()
            self._private.unlink(missing_ok=True)

    def _flush(self, *, whole_groups: bool) -> None:
        """Write what waits as row groups; the last one, only at the end, may be smaller."""
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        end = len(table) // GROUP_ROWS * GROUP_ROWS if whole_groups else len(table)
        try:
            for start in range(0, end, GROUP_ROWS):
                self._write_group(table.slice(start, min(GROUP_ROWS, end - start)))
        except OSError as error:
            raise self._failed(error) from error
        self._written += end
        self._n_pending = len(table) - end
        self._pending = [table.slice(end)] if self._n_pending else []

    def _write_group(self, group: pa.Table) -> None:
        """Write one row group with the bounds of its rows."""
        polygons = to_geometries(group)
        kinds = np.unique(shapely.get_type_id(polygons))
        if not np.isin(kinds, list(_POLYGON_TYPES)).all():
            raise OutputError(
                f"objects for {self.path.name} have geometry that is no polygon (or none); "
                "expected Polygon and MultiPolygon only"
            )
        self._kinds |= {_POLYGON_TYPES[int(kind)] for kind in kinds}
        bounds = shapely.bounds(polygons)
        self._bounds[:2] = np.fmin(self._bounds[:2], np.fmin.reduce(bounds[:, :2]))
        self._bounds[2:] = np.fmax(self._bounds[2:], np.fmax.reduce(bounds[:, 2:]))
        bbox = pa.StructArray.from_arrays(
            [pa.array(column) for column in bounds.T], fields=list(_BBOX_TYPE)
        )
        # pages end where chunks end: one chunk, so that the caller's do not show in the bytes
        table = group.combine_chunks().append_column("bbox", bbox)
        self._file.write_table(table, row_group_size=len(table))

    def _close(self) -> None:
        """Write the footer, with what is only known now."""
        column = self._geo["columns"]["geometry"]
        column["geometry_types"] = sorted(self._kinds)
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        self._file.add_key_value_metadata({"geo": json.dumps(self._geo)})
        self._file.close()

    def _failed(self, error: OSError) -> OutputError:
        """Return the error to raise for one of the disk's."""
        free_mb = shutil.disk_usage(self.path.parent).free / 1e6
        return OutputError(
            f"writing {self.path} failed ({first_line(error)}); {free_mb:,.0f} MB are free there"
        )


@dataclass(frozen=True, slots=True)
class ObjectsInfo:
    """What a file of :class:`ObjectsWriter` says of itself."""

    rows: int
    """How many objects it holds."""
    crs: pyproj.CRS
    """CRS of the geometry."""
    bounds: tuple[float, float, float, float] | None
    """(left, bottom, right, top) of all objects, in the CRS; None without objects."""
    geometry_types: tuple[str, ...]
    """Polygon, MultiPolygon, both or none."""


def describe_objects(path: str | Path) -> ObjectsInfo:
    """Tell what a file of :class:`ObjectsWriter` holds; reads only its footer.

    Raises
    ------
    OutputError
        If the file is missing or is no such file.
    """
    file, info = open_objects(path)
    file.close()
    return info


def iter_objects(path: str | Path | BinaryIO, rows: int = GROUP_ROWS) -> Iterator[gpd.GeoDataFrame]:
    """Read a file of :class:`ObjectsWriter` back in order, a part at a time.

    Parameters
    ----------
    path : str or Path or binary file
        The file.
    rows : int
        Rows of a part at most; memory is that of a part and of a row group.

    Yields
    ------
    GeoDataFrame
        The columns and types of :func:`empty_objects`; the index goes on from part to part. A
        file without objects yields nothing.

    Raises
    ------
    OutputError
        If the file is missing or is no such file.
    """
    file, info = open_objects(path)
    with file:
        start = 0
        for table in iter_tables(file, rows):
            part = objects_from_arrow(table, info.crs)
            part.index = pd.RangeIndex(start, start + len(part))
            start += len(part)
            yield part


def objects_to_arrow(table: gpd.GeoDataFrame) -> pa.Table:
    """Return objects as :class:`ObjectsWriter` takes them; columns that it does not know go."""
    fixed = fix_types(table)
    columns: dict[str, Any] = {
        name: pa.array(fixed[name], type=OBJECT_SCHEMA.field(name).type) for name in OBJECT_DTYPES
    }
    columns["geometry"] = pa.array(shapely.to_wkb(table.geometry.to_numpy()), type=pa.binary())
    return pa.table(columns, schema=OBJECT_SCHEMA)


def objects_from_arrow(table: pa.Table, crs: pyproj.CRS | str | int) -> gpd.GeoDataFrame:
    """Return the objects of an Arrow table as :func:`empty_objects` has them."""
    fields = table.select(list(OBJECT_DTYPES)).to_pandas().astype(OBJECT_DTYPES)
    return gpd.GeoDataFrame(fields, geometry=to_geometries(table), crs=crs)


def fix_types(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the objects with each known column in its fixed type."""
    kinds = {name: kind for name, kind in OBJECT_DTYPES.items() if name in table.columns}
    # six decimals are all that float32 carries: 0.9, not 0.8999999761581421
    short = [n for n, k in kinds.items() if k == "float64" and table[n].dtype == np.float32]
    return table.astype(kinds).round(dict.fromkeys(short, 6))


def _geo_metadata(crs: pyproj.CRS) -> dict[str, Any]:
    """Return what GeoParquet says of its columns, as geopandas would for an empty table."""
    buffer = BytesIO()
    empty_objects(crs).to_parquet(buffer, schema_version="1.1.0", write_covering_bbox=True)
    geo: dict[str, Any] = json.loads(pq.read_schema(buffer).metadata[b"geo"])
    # it would change the bytes with every version
    geo.pop("creator", None)
    return geo


def _as_objects(table: pa.Table) -> pa.Table:
    """Return the table in the order and types of the objects; refuse what is not them."""
    names = set(table.column_names)
    missing = [name for name in OBJECT_SCHEMA.names if name not in names]
    extra = sorted(names - set(OBJECT_SCHEMA.names))
    if missing or extra:
        wrong = [f"{what} {', '.join(n)}" for what, n in (("no", missing), ("also", extra)) if n]
        raise OutputError(
            f"a table of objects has {' and '.join(wrong)}; "
            f"expected the columns {', '.join(OBJECT_SCHEMA.names)}"
        )
    try:
        return table.select(OBJECT_SCHEMA.names).cast(OBJECT_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise OutputError(
            f"a table of objects has other types ({first_line(error)}); expected "
            + ", ".join(f"{field.name} {field.type}" for field in OBJECT_SCHEMA)
        ) from error


def to_geometries(table: pa.Table) -> npt.NDArray[np.object_]:
    """Return the geometry of each row, (n,)."""
    wkb = table["geometry"].to_numpy()
    return np.asarray(shapely.from_wkb(wkb), dtype=object)


def open_objects(path: str | Path | BinaryIO) -> tuple[pq.ParquetFile, ObjectsInfo]:
    """Open a file of objects; return also what it says of itself."""
    try:
        # buffered ahead, the whole file would be in memory at its end
        file = pq.ParquetFile(path, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"objects file {path} cannot be read ({first_line(error)}); run the job again"
        ) from error
    # not in the schema: what is added at the end of writing is only in the footer
    geo = (file.metadata.metadata or {}).get(b"geo")
    if geo is None or not set(OBJECT_SCHEMA.names) <= set(file.schema_arrow.names):
        file.close()
        raise OutputError(
            f"{path} is no file of objects; expected GeoParquet with the columns "
            + ", ".join(OBJECT_SCHEMA.names)
        )
    column = json.loads(geo)["columns"]["geometry"]
    return file, ObjectsInfo(
        rows=int(file.metadata.num_rows),
        crs=pyproj.CRS.from_json_dict(column["crs"]),
        bounds=tuple(column["bbox"]) if "bbox" in column else None,
        geometry_types=tuple(column["geometry_types"]),
    )


def iter_tables(file: pq.ParquetFile, rows: int = GROUP_ROWS) -> Iterator[pa.Table]:
    """Read the columns of the objects in order, at most so many rows at a time."""
    for batch in file.iter_batches(rows, columns=OBJECT_SCHEMA.names):
        yield pa.Table.from_batches([batch]).cast(OBJECT_SCHEMA)
