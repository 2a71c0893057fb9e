"""Vector files: read the user's, write ours so that nobody ever sees half of one.

The objects of a run may be millions, more than memory holds. They go as a stream into one
GeoParquet file (:class:`ObjectsWriter`), and from there as a stream into whatever the user wants
(:func:`write_objects`) or to whoever counts them (:func:`iter_objects`).

A GeoPackage is a SQLite database, and its ``-journal``, ``-wal`` and ``-shm`` files are part of
it: a new file renamed over an old one beside a stale journal is destroyed when next opened. So
the old file is first brought to rest and proven unlocked, and only then replaced.

GDAL and Python each bring their own SQLite, and locks do not work between two copies in one
process. Everywhere below one of them has closed the file before the other opens it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError

from geoseg.errors import OutputError, RegionError
from geoseg.outputs.style import default_styles

DRIVERS = {
    ".gpkg": "GPKG",
    ".parquet": "Parquet",
    ".fgb": "FlatGeobuf",
    ".geojson": "GeoJSON",
}
"""What we write, by suffix."""
COUNT_SUFFIXES = (*DRIVERS, ".csv")
"""What counts per region are written as."""
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
_FORMAT_OPTIONS: dict[str, dict[str, str]] = {".geojson": {"RFC7946": "YES"}}
_BBOX_TYPE = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
_POLYGON_TYPES = {3: "Polygon", 6: "MultiPolygon"}
SIDECARS = ("-journal", "-wal", "-shm")
LOCK_WAIT_S = 5.0
_OGR_ERRORS = (DataSourceError, DataLayerError)
_WRITE_ERRORS = (
    *(*_OGR_ERRORS, FieldError, FeatureError),
    *(OSError, sqlite3.Error, pa.ArrowException),
)
_UNREADABLE = (*_OGR_ERRORS, OSError, ValueError)
_MULTI = {"Polygon": "MultiPolygon", "LineString": "MultiLineString", "Point": "MultiPoint"}


def read_vector(
    path: str | Path,
    *,
    layer: str | None = None,
    what: str = "regions",
    where: str | None = None,
) -> gpd.GeoDataFrame:
    """Read polygons that a user gives us; the only place that reads vector files.

    Parameters
    ----------
    path : str or Path
        A vector file of any kind that GDAL reads, or GeoParquet.
    layer : str, optional
        Layer of the file; by default the only one with polygons, or the one called ``what``.
    what : str
        What the polygons are for: 'regions', 'AOI', 'truth', 'objects'; for messages.
    where : str, optional
        Keep only rows for which this holds: the WHERE clause of SQL, as in ``ogr2ogr -where``.

    Returns
    -------
    GeoDataFrame
        All wanted rows, with a CRS and at least one polygon.

    Raises
    ------
    RegionError
        If the file is missing or unreadable, the layer is not clear, or there are no features,
        no polygons or no CRS; or ``where`` is no SQL, or the format has none (GeoParquet).
    """
    path = Path(path)
    if not path.exists():
        raise RegionError(f"{what} file {path} does not exist; check the path")
    try:
        table = _read_any(path, layer, what, where)
    except _UNREADABLE as error:
        raise RegionError(
            f"{what} file {path} cannot be read as a vector layer ({_first_line(error)}); "
            "give a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file"
        ) from error
    if not isinstance(table, gpd.GeoDataFrame) or "geometry" not in table:
        raise RegionError(f"{what} file {path} has no geometry; expected polygons")
    if len(table) == 0 and what != "objects":
        which = "" if where is None else f" where {where}"
        raise RegionError(
            f"{what} file {path} holds no features{which}; expected at least one polygon"
        )
    if table.crs is None or table.crs.name.lower().startswith("undefined"):
        raise RegionError(
            f"{what} file {path} has no CRS, so it is unknown where on earth its polygons lie; "
            "set one, for example with: ogr2ogr -a_srs EPSG:CODE out.gpkg in.file"
        )
    kinds = shapely.get_type_id(table.geometry.to_numpy())
    if len(table) and not np.isin(kinds, (3, 6, 7)).any():
        found = ", ".join(sorted({str(k) for k in table.geom_type.dropna()})) or "no geometry"
        raise RegionError(f"{what} file {path} holds no polygons, only: {found}")
    return table


def empty_objects(crs: pyproj.CRS | str | int) -> gpd.GeoDataFrame:
    """Return an ``objects`` table without rows but with every column and type."""
    columns = {name: pd.Series([], dtype=kind) for name, kind in OBJECT_DTYPES.items()}
    return gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries([], crs=crs), crs=crs)


def check_output(
    path: str | Path, overwrite: bool = False, *, suffixes: Collection[str] = tuple(DRIVERS)
) -> Path:
    """Refuse an output that could not be written, before anything is computed.

    Parameters
    ----------
    path : str or Path
        Where the output is to go.
    overwrite : bool
        Whether an existing file may be replaced.
    suffixes : collection of str
        What the name may end in, in lower case; by default the formats of tables.

    Returns
    -------
    Path
        The path, made absolute.

    Raises
    ------
    OutputError
        If the suffix is unknown, the folder is missing or not writable, or the file exists
        without ``overwrite``.
    """
    path = Path(path).expanduser().absolute()
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"output {path.name} has the unknown suffix '{path.suffix}'; "
            f"expected {'one of ' if len(suffixes) > 1 else ''}{', '.join(suffixes)}"
        )
    if not path.parent.is_dir():
        raise OutputError(f"output folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {path.parent} is not writable; choose another")
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; give a file name")
    if path.exists() and not overwrite:
        raise OutputError(f"output {path} exists; give --overwrite to replace it, or another name")
    left = [] if path.exists() or path.suffix.lower() != ".gpkg" else _sidecars(path)
    if left:
        raise OutputError(
            f"{left[0].name} lies in {path.parent} without its database; it would corrupt a new "
            f"{path.name}: move it away, or choose another name"
        )
    return path


def write_table(
    path: str | Path, table: gpd.GeoDataFrame, *, layer: str = "objects", overwrite: bool = False
) -> Path:
    """Write one table in the format that the suffix names.

    Parameters
    ----------
    path : str or Path
        Ends in .gpkg, .parquet (GeoParquet 1.1 with bbox, zstd), .fgb or .geojson (in
        EPSG:4326, as the format wants).
    table : GeoDataFrame
        With a CRS; may be empty.
    layer : str
        Layer name where the format has one; ``objects`` get their fixed column types.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As :func:`check_output`; or if writing fails, the old file then being as it was.
    """
    path = check_output(path, overwrite)
    if path.suffix.lower() == ".gpkg":
        return write_geopackage(path, {layer: table}, overwrite=overwrite)
    table = _prepare(layer, table)
    with _scratch(path) as temporary:
        if path.suffix.lower() == ".parquet":
            table.to_parquet(
                temporary, schema_version="1.1.0", write_covering_bbox=True, compression="zstd"
            )
        elif path.suffix.lower() == ".geojson":
            _write_layer(temporary, layer, table.to_crs(4326), **_FORMAT_OPTIONS[".geojson"])
        else:
            _write_layer(temporary, layer, table)
        _put(temporary, path, overwrite=overwrite)
    return path


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
                f"{self.path} cannot be written ({_first_line(error)}); choose another place"
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
                _fsync(self._private)
                self._private.replace(self.path)
                _fsync(self.path.parent)
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
        polygons = _geometries(group)
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
            f"writing {self.path} failed ({_first_line(error)}); {free_mb:,.0f} MB are free there"
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
    file, info = _open_objects(path)
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
    file, info = _open_objects(path)
    with file:
        start = 0
        for table in _iter_tables(file, rows):
            part = objects_from_arrow(table, info.crs)
            part.index = pd.RangeIndex(start, start + len(part))
            start += len(part)
            yield part


def objects_to_arrow(table: gpd.GeoDataFrame) -> pa.Table:
    """Return objects as :class:`ObjectsWriter` takes them; columns that it does not know go."""
    fixed = _fix_types(table)
    columns: dict[str, Any] = {
        name: pa.array(fixed[name], type=OBJECT_SCHEMA.field(name).type) for name in OBJECT_DTYPES
    }
    columns["geometry"] = pa.array(shapely.to_wkb(table.geometry.to_numpy()), type=pa.binary())
    return pa.table(columns, schema=OBJECT_SCHEMA)


def objects_from_arrow(table: pa.Table, crs: pyproj.CRS | str | int) -> gpd.GeoDataFrame:
    """Return the objects of an Arrow table as :func:`empty_objects` has them."""
    fields = table.select(list(OBJECT_DTYPES)).to_pandas().astype(OBJECT_DTYPES)
    return gpd.GeoDataFrame(fields, geometry=_geometries(table), crs=crs)


def write_objects(
    path: str | Path,
    source: str | Path,
    others: Mapping[str, gpd.GeoDataFrame] | None = None,
    *,
    overwrite: bool = False,
    styles: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the objects of a run for the user, without ever holding them all.

    The file is the one that :func:`write_geopackage` or :func:`write_table` would make of the
    whole table, and is published in the same way.

    Parameters
    ----------
    path : str or Path
        Ends in .gpkg, .parquet, .fgb or .geojson, as for :func:`write_table`.
    source : str or Path
        A file of :class:`ObjectsWriter`.
    others : mapping of str to GeoDataFrame, optional
        More layers, after ``objects``; only a GeoPackage has room for them.
    overwrite : bool
        Whether an existing file may be replaced.
    styles : mapping of str to str, optional
        As for :func:`write_geopackage`.
    metadata : mapping, optional
        As for :func:`write_geopackage`; other formats have no place for it.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As :func:`write_geopackage`; if the source is missing or no file of objects; or if there
        are other layers for a format with one layer.

    Notes
    -----
    What still grows with the objects are GDAL's spatial indices. Peak memory measured for 1, 4
    and 10 million outlines of 16 vertices: 330, 460 and 740 MB to .gpkg (the environment variable
    ``OGR_GPKG_MAX_RAM_USAGE_RTREE``, in bytes, bounds it at the price of time); 440, 650 and
    1,230 MB to .fgb; 400 MB for a million to .geojson.
    """
    path, source = check_output(path, overwrite), Path(source).expanduser().absolute()
    suffix = path.suffix.lower()
    if suffix == ".gpkg":
        layers: dict[str, gpd.GeoDataFrame | Path] = {"objects": source, **(others or {})}
        return _write_database(path, layers, styles=styles, overwrite=overwrite, metadata=metadata)
    if others:
        raise OutputError(
            f"{path.name} has room for one layer, not for {', '.join(others)} beside objects; "
            "write a .gpkg, or those to files of their own"
        )
    with _scratch(path) as temporary:
        if suffix == ".parquet":
            describe_objects(source)
            shutil.copyfile(source, temporary)
        else:
            _stream_layer(temporary, "objects", source, **_FORMAT_OPTIONS.get(suffix, {}))
        _put(temporary, path, overwrite=overwrite)
    return path


def write_counts(path: str | Path, regions: gpd.GeoDataFrame, *, overwrite: bool = False) -> Path:
    """Write regions with their counts, as a layer ``regions`` or as a plain table.

    Parameters
    ----------
    path : str or Path
        Ends in .csv (the fields without the geometry, UTF-8), or as for :func:`write_table`.
    regions : GeoDataFrame
        From :func:`geoseg.objects.count.count`; its ``attrs`` tell rule, total and outside.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As :func:`write_table`.
    """
    path = check_output(path, overwrite, suffixes=COUNT_SUFFIXES)
    notes = {name: regions.attrs.get(name) for name in ("rule", "total", "outside")}
    if path.suffix.lower() == ".gpkg":
        return write_geopackage(path, {"regions": regions}, overwrite=overwrite, metadata=notes)
    if path.suffix.lower() != ".csv":
        return write_table(path, regions, layer="regions", overwrite=overwrite)
    table = pd.DataFrame(regions.drop(columns=regions.geometry.name))
    with _scratch(path) as temporary:
        table.to_csv(temporary, index=False, encoding="utf-8")
        _put(temporary, path, overwrite=overwrite)
    return path


def write_geopackage(
    path: str | Path,
    layers: Mapping[str, gpd.GeoDataFrame],
    *,
    styles: Mapping[str, str] | None = None,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write layers beside the target, check them, and only then put them in its place.

    Parameters
    ----------
    path : str or Path
        Target, ends in .gpkg.
    layers : mapping of str to GeoDataFrame
        At least one; each with a CRS; may be empty. Columns of ``objects`` get fixed types.
    styles : mapping of str to str, optional
        QML by layer; by default ours for objects, regions and coverage. Empty: no styles.
    overwrite : bool
        Whether an existing file may be replaced.
    metadata : mapping, optional
        Kept in the file (table ``gpkg_metadata``); values that are not text as JSON.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As :func:`check_output`; if a layer has no CRS, writing fails or counts differ (the old
        file is untouched); or if the old file is locked or has a journal that cannot be
        settled (the new file is kept beside it, and the message says where).
    """
    return _write_database(
        check_output(path, overwrite), layers, styles=styles, overwrite=overwrite, metadata=metadata
    )


def _write_database(
    path: Path,
    layers: Mapping[str, gpd.GeoDataFrame | Path],
    *,
    styles: Mapping[str, str] | None,
    overwrite: bool,
    metadata: Mapping[str, Any] | None,
) -> Path:
    """Write layers, each from a table or from a file of objects, check and publish them."""
    tables = {n: t if isinstance(t, Path) else _prepare(n, t) for n, t in layers.items()}
    if not tables:
        raise OutputError(f"no layer to write to {path}; give at least one")
    expected = {name: _n_rows(table) for name, table in tables.items()}
    if styles is None:
        styles = default_styles({name: _for_style(table) for name, table in tables.items()})
    notes = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    with _scratch(path) as temporary:
        for i, (name, table) in enumerate(tables.items()):
            options: dict[str, Any] = {"dataset_metadata": notes} if notes and i == 0 else {}
            if isinstance(table, Path):
                _stream_layer(temporary, name, table, **options)
            else:
                _write_layer(temporary, name, table, **options)
        _finish(temporary, expected, styles)
        _fsync(temporary)
        _publish(temporary, path, overwrite=overwrite)
    return path


def _n_rows(table: gpd.GeoDataFrame | Path) -> int:
    """Return how many rows a layer is to get."""
    if not isinstance(table, Path):
        return len(table)
    return describe_objects(table).rows


def _for_style(table: gpd.GeoDataFrame | Path) -> gpd.GeoDataFrame:
    """Return a table from which a style can be made: of many objects only their classes."""
    if not isinstance(table, Path):
        return table
    found: dict[str, None] = {}
    with pq.ParquetFile(table, read_dictionary=["class"], pre_buffer=False) as file:
        for batch in file.iter_batches(1_000_000, columns=["class"]):
            found |= dict.fromkeys(pc.unique(batch["class"]).to_pylist())
    return gpd.GeoDataFrame({"class": list(found)})


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
            f"a table of objects has other types ({_first_line(error)}); expected "
            + ", ".join(f"{field.name} {field.type}" for field in OBJECT_SCHEMA)
        ) from error


def _geometries(table: pa.Table) -> npt.NDArray[np.object_]:
    """Return the geometry of each row, (n,)."""
    wkb = table["geometry"].to_numpy()
    return np.asarray(shapely.from_wkb(wkb), dtype=object)


def _open_objects(path: str | Path | BinaryIO) -> tuple[pq.ParquetFile, ObjectsInfo]:
    """Open a file of objects; return also what it says of itself."""
    try:
        # buffered ahead, the whole file would be in memory at its end
        file = pq.ParquetFile(path, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"objects file {path} cannot be read ({_first_line(error)}); run the job again"
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


def _iter_tables(file: pq.ParquetFile, rows: int) -> Iterator[pa.Table]:
    """Read the columns of the objects in order, at most so many rows at a time."""
    for batch in file.iter_batches(rows, columns=OBJECT_SCHEMA.names):
        yield pa.Table.from_batches([batch]).cast(OBJECT_SCHEMA)


def _read_any(path: Path, layer: str | None, what: str, where: str | None) -> gpd.GeoDataFrame:
    """Read a layer with the library that its format needs."""
    if path.suffix.lower() in {".parquet", ".geoparquet"}:
        if where is not None:
            raise RegionError(
                f"{what} file {path} is GeoParquet, which takes no condition; "
                "select the rows first, or give a GeoPackage"
            )
        return gpd.read_parquet(path)
    name = _choose_layer(path, layer, what)
    if pyogrio.read_info(path, layer=name)["driver"] == "OGR_VRT":
        # whatever its suffix says: it would read files and addresses that the user never named
        raise RegionError(f"{what} file {path} is a virtual file (VRT); give the file it refers to")
    try:
        return pyogrio.read_dataframe(path, layer=name, where=where, use_arrow=True)
    except _UNREADABLE as error:
        if where is None:
            raise
        raise RegionError(
            f"{what} file {path} cannot be read where {where} ({_first_line(error)}); "
            "expected a condition on its fields, such as: name = 'north' AND size > 10"
        ) from error


def _choose_layer(path: Path, layer: str | None, what: str) -> str:
    """Return the layer to read; refuse to guess between several."""
    kinds = {str(name): str(kind) for name, kind in pyogrio.list_layers(path)}
    listed = ", ".join(kinds)
    if layer is not None:
        if layer not in kinds:
            raise RegionError(f"{what} file {path} has no layer '{layer}'; it has: {listed}")
        return layer
    # None: a table without geometry, such as layer_styles
    spatial = [name for name, kind in kinds.items() if kind != "None"] or list(kinds)
    if what in spatial:
        return what
    if len(spatial) > 1:
        raise RegionError(
            f"{what} file {path} has several layers ({listed}); say which one, "
            "or save that one to a file of its own"
        )
    if not spatial:
        raise RegionError(f"{what} file {path} has no layers; expected polygons")
    return spatial[0]


def _prepare(name: str, table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the table as it is to be written: fixed types, field names that SQLite tells apart."""
    if table.crs is None:
        raise OutputError(
            f"layer '{name}' has no CRS, so no program could place it; set it before writing"
        )
    attrs = table.attrs
    if name == "objects":
        table = _fix_types(table)
    seen: set[str] = set()
    new_names = []
    for column in table.columns:
        unique, n = str(column), 2
        while unique.casefold() in seen:
            unique, n = f"{column}_{n}", n + 1
        seen.add(unique.casefold())
        new_names.append(unique)
    table = table.set_axis(new_names, axis=1).reset_index(drop=True)
    table.attrs = attrs
    return table


def _fix_types(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the objects with each known column in its fixed type."""
    kinds = {name: kind for name, kind in OBJECT_DTYPES.items() if name in table.columns}
    # six decimals are all that float32 carries: 0.9, not 0.8999999761581421
    short = [n for n, k in kinds.items() if k == "float64" and table[n].dtype == np.float32]
    return table.astype(kinds).round(dict.fromkeys(short, 6))


def _geometry_type(table: gpd.GeoDataFrame) -> str:
    """Return the one type that holds all geometries; Polygon where there are none."""
    kinds = set(table.geom_type.dropna())
    if not kinds:
        return "Polygon"
    single = {k.removeprefix("Multi") for k in kinds}
    if len(single) > 1 or not single <= set(_MULTI):
        return "Unknown"
    kind = single.pop()
    return kind if kinds == {kind} else _MULTI[kind]


def _stream_layer(path: Path, name: str, source: Path, **options: object) -> None:
    """Write one layer with GDAL from a file of objects, in one go and one transaction."""
    file, info = _open_objects(source)
    multi = "MultiPolygon" in info.geometry_types
    target = pyproj.CRS.from_epsg(4326) if path.suffix.lower() == ".geojson" else info.crs
    failed: list[BaseException] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in _iter_tables(file, GROUP_ROWS):
                yield from _for_gdal(table, info.crs, target, multi=multi).to_batches()
        except BaseException as error:
            # GDAL knows only that there was one
            failed.append(error)
            raise

    driver = DRIVERS[path.suffix.lower()]
    with file:
        try:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(OBJECT_SCHEMA, batches()),
                path,
                layer=name,
                driver=driver,
                geometry_name="geometry",
                geometry_type="MultiPolygon" if multi else "Polygon",
                crs=_for_proj(target),
                **(options | _own_columns(driver, set(OBJECT_SCHEMA.names))),
            )
        finally:
            if failed:
                raise failed[0]


def _for_gdal(table: pa.Table, crs: pyproj.CRS, target: pyproj.CRS, *, multi: bool) -> pa.Table:
    """Return the table with the geometry that the layer is to have."""
    if crs == target and not multi:
        return table
    polygons = gpd.GeoSeries(_geometries(table), crs=crs).to_crs(target).to_numpy()
    if multi:
        single = shapely.get_type_id(polygons) == 3
        polygons[single] = shapely.multipolygons(polygons[single, None], axis=1)
    wkb = pa.array(shapely.to_wkb(polygons), type=pa.binary())
    return table.set_column(table.schema.get_field_index("geometry"), "geometry", wkb)


def _for_proj(crs: pyproj.CRS) -> str:
    """Return the CRS in the words that pyogrio uses for tables."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(crs.to_wkt("WKT1_GDAL"))


def _write_layer(path: Path, name: str, table: gpd.GeoDataFrame, **options: object) -> None:
    """Write one layer with GDAL; a GeoPackage keeps the layers that it has."""
    kind = _geometry_type(table)
    names = {str(c).casefold() for c in table.columns}
    driver = DRIVERS[path.suffix.lower()]
    options |= _own_columns(driver, names)
    pyogrio.write_dataframe(
        table,
        path,
        layer=name,
        driver=driver,
        use_arrow=True,
        geometry_type=kind,
        promote_to_multi=kind.startswith("Multi"),
        **options,
    )


def _own_columns(driver: str, names: set[str]) -> dict[str, str]:
    """Return the options that name GDAL's own columns: a field of the user's may be called so."""
    if driver != "GPKG":
        return {}
    return {"FID": _free("fid", names), "GEOMETRY_NAME": _free("geom", names)}


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with underscores until it is free."""
    while name in taken:
        name += "_"
    return name


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Give a place for the file on the target's own disk; whatever is left there is removed.

    A folder, not a file: journals and index files that a dying writer leaves go with it.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write in {path.parent} ({error}); choose another") from error
    try:
        yield folder / path.name
    except _WRITE_ERRORS as error:
        free_mb = shutil.disk_usage(path.parent).free / 1e6
        raise OutputError(
            f"writing {path} failed ({_first_line(error)}); {free_mb:,.0f} MB are free there; "
            "an earlier file of that name is as it was"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(new: Path, target: Path, *, overwrite: bool) -> None:
    """Put a finished file, which is no database, in place of the target."""
    _fsync(new)
    if target.exists() and not overwrite:
        raise OutputError(f"output {target} appeared while it was being made; not replaced")
    new.replace(target)
    _fsync(target.parent)


def _finish(path: Path, n_rows: Mapping[str, int], qml: Mapping[str, str]) -> None:
    """Check the rows that arrived and add the styles; GDAL has closed the file."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for name, expected in n_rows.items():
            quoted = name.replace('"', '""')
            # names of tables cannot be bound as values
            got = database.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0]  # noqa: S608
            if got != expected:
                raise OutputError(
                    f"layer '{name}' was written with {got} rows instead of {expected}; "
                    "nothing was published: run again, and report it if it happens again"
                )
        if qml:
            _add_styles(database, qml)


def _add_styles(database: sqlite3.Connection, qml: Mapping[str, str]) -> None:
    """Write the table from which QGIS takes a layer's style when it opens it."""
    database.execute(
        "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
        "f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), "
        "f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
        "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
    )
    geometry = dict(database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns"))
    database.executemany(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
        "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner, ui) "
        "VALUES ('', '', ?, ?, ?, ?, '', 1, 'written by geoseg', '', NULL)",
        [(name, geometry[name], name, text) for name, text in qml.items() if name in geometry],
    )
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, srs_id) "
        "VALUES ('layer_styles', 'attributes', 'layer_styles', 'QGIS styles', 0)"
    )
    database.execute(
        "INSERT INTO gpkg_ogr_contents SELECT 'layer_styles', count(*) FROM layer_styles"
    )


def _publish(new: Path, target: Path, *, overwrite: bool) -> None:
    """Put the finished file in place of the target, or keep it beside and say why."""
    try:
        if target.exists():
            if not overwrite:
                raise OutputError(f"{target} appeared while it was being made")
            _replace_database(new, target)
        else:
            _refuse_sidecars(target)
            new.replace(target)
    except (OutputError, OSError, sqlite3.Error) as error:
        kept = _name_beside(target)
        new.replace(kept)
        _fsync(target.parent)
        reason = _first_line(error)
        raise OutputError(
            f"{target} was not replaced: {reason}. The new file is complete and lies at {kept}; "
            "close programs that have the old one open, then rename it"
        ) from error
    _fsync(target.parent)


def _replace_database(new: Path, target: Path) -> None:
    """Bring the old database to rest, prove that nobody uses it, and replace it."""
    if not _is_database(target):
        _refuse_sidecars(target)
        new.replace(target)
        return
    database = sqlite3.connect(target, timeout=LOCK_WAIT_S, isolation_level=None)
    with contextlib.closing(database):
        # the first rolls a hot journal back and folds a write-ahead log in; both fail if locked
        mode = database.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        if mode != "delete":
            raise OutputError(f"it is in journal mode '{mode}', which cannot be ended")
        database.execute("BEGIN EXCLUSIVE")
        if os.name == "posix":
            # the lock is held over the exchange; closing then lets go of the old, nameless file
            _refuse_sidecars(target)
            new.replace(target)
            return
        database.execute("ROLLBACK")
    _refuse_sidecars(target)
    new.replace(target)


def _is_database(path: Path) -> bool:
    """Tell whether the file starts as SQLite files do."""
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _sidecars(path: Path) -> list[Path]:
    """Return the SQLite files that lie beside a database."""
    return [s for s in (Path(f"{path}{suffix}") for suffix in SIDECARS) if s.exists()]


def _refuse_sidecars(path: Path) -> None:
    """Never put a new database beside the journal of another: SQLite would apply it."""
    left = _sidecars(path)
    if left:
        raise OutputError(f"{left[0].name} lies beside it and would corrupt the new file")


def _name_beside(path: Path) -> Path:
    """Return a free name with the time in it, UTC."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, n = path.with_name(f"{path.stem}.{stamp}{path.suffix}"), 1
    while name.exists() or _sidecars(name):
        name, n = path.with_name(f"{path.stem}.{stamp}-{n}{path.suffix}"), n + 1
    return name


def _fsync(path: Path) -> None:
    """Ask the disk to keep a file, or the names in a folder (where the system can)."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message of one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
