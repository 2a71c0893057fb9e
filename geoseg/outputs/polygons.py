"""Objects from any file, a part at a time and without decoding their outlines, to be counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely

from geoseg.errors import RegionError
from geoseg.imagery.vector_files import why_not_opened
from geoseg.objects.count import Encoded, RegionCounter
from geoseg.outputs.reading import check_place, reading
from geoseg.outputs.tables import GROUP_ROWS, read_vector

_BOX = ("xmin", "ymin", "xmax", "ymax")
_STREAMED = {".gpkg": "GPKG", ".fgb": "FlatGeobuf"}
_FIELDS = ("class", "score", "area_m2")


@dataclass(frozen=True, slots=True, eq=False)
class PolygonFile:
    """A file of objects: what is known of it before its rows are read."""

    path: Path
    crs: pyproj.CRS
    rows: int
    """As the file itself says: what was counted is compared with it."""
    bounds: tuple[float, float, float, float] | None
    """(left, bottom, right, top) of all objects; None without objects."""
    layer: str | None = None
    """Of a format with layers."""
    geometry: str = "geometry"
    """Column of the geometry."""
    box: str | None = None
    """Column of the bounds, where the file has them in double precision."""
    fields: tuple[str, ...] = ()
    """Which of class, score and area_m2 there are."""
    table: gpd.GeoDataFrame | None = field(default=None, repr=False)
    """All rows, of a format that is not read in parts."""

    def count_into(self, counter: RegionCounter) -> None:
        """Hand all objects to a counter that has the CRS of this file.

        Raises
        ------
        RegionError
            If the file does not hold as many objects as it says.
        """
        before = counter.objects
        if self.table is not None:
            counter.add(self.table)
        else:
            # the next part is read while this one is counted
            parts = map(self._encoded, self._batches())
            with ThreadPoolExecutor(1) as reader:
                ahead = reader.submit(next, parts, None)
                while (part := self._result(ahead)) is not None:
                    ahead = reader.submit(next, parts, None)
                    counter.add_encoded(part)
        if counter.objects - before != self.rows:
            raise RegionError(
                f"{self.path} says that it has {self.rows} objects but gave "
                f"{counter.objects - before}; it may be damaged, or was changed meanwhile"
            )

    def _result(self, part: Future[Encoded | None]) -> Encoded | None:
        """Wait for a part that is read in a thread."""
        with reading(self.path, "objects"):
            return part.result()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Read the columns that counting needs, a part at a time."""
        if self.layer is not None:
            with pyogrio.open_arrow(
                self.path,
                layer=self.layer,
                columns=list(self.fields),
                batch_size=GROUP_ROWS,
                use_pyarrow=True,
            ) as (_, reader):
                yield from reader
            return
        columns = [*self.fields, self.geometry, *([self.box] if self.box else [])]
        # buffered ahead, the whole file would be in memory at its end
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            yield from file.iter_batches(GROUP_ROWS, columns=columns)

    def _encoded(self, batch: pa.RecordBatch) -> Encoded:
        """Return a part as a counter takes it."""
        wkb = batch[self.geometry].to_numpy(zero_copy_only=False)
        if self.box is None:
            bounds = shapely.bounds(shapely.from_wkb(wkb))
        else:
            box = batch[self.box]
            bounds = np.column_stack([_numbers(pc.struct_field(box, [n])) for n in _BOX])
        kinds, classes = None, ()
        if "class" in self.fields:
            named = pc.fill_null(batch["class"].cast(pa.string()), "None").dictionary_encode()
            kinds = named.indices.to_numpy().astype(np.int64)
            classes = tuple(named.dictionary.to_pylist())
        nothing = np.full(len(wkb), np.nan)
        return Encoded(
            wkb=wkb,
            bounds=bounds,
            area_m2=_numbers(batch["area_m2"]) if "area_m2" in self.fields else nothing,
            kinds=kinds,
            classes=classes,
            scores=_numbers(batch["score"]) if "score" in self.fields else None,
        )


def open_polygons(path: str | Path, *, layer: str | None = None) -> PolygonFile:
    """Open objects for counting; GeoParquet, GeoPackage and FlatGeobuf are read in parts.

    Parameters
    ----------
    path : str or Path
        The objects of a run, or any file of polygons.
    layer : str, optional
        Layer of the file; by default ``objects``, or the only one with polygons.

    Returns
    -------
    PolygonFile

    Raises
    ------
    RegionError
        As :func:`geoseg.outputs.tables.read_vector`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    found = None
    if path.is_file():
        if suffix in {".parquet", ".geoparquet"}:
            found = _open_parquet(path)
        elif suffix in _STREAMED:
            found = _open_layer(path, layer)
    if found is not None:
        check_place(found.crs, f"objects file {path}")
        return found
    # whatever is wrong with it, it says so
    table = read_vector(path, layer=layer, what="objects")
    bounds = table.total_bounds
    return PolygonFile(
        path,
        table.crs,
        len(table),
        tuple(bounds.tolist()) if np.isfinite(bounds).all() else None,
        table=table,
    )


def _open_parquet(path: Path) -> PolygonFile | None:
    """Return what GeoParquet says of itself; None where it must be read as a whole."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            geo = json.loads((file.metadata.metadata or {})[b"geo"])
        name = geo["primary_column"]
        about = geo["columns"][name]
        # without the key it is lon and lat, null says that nobody knows
        crs = pyproj.CRS.from_user_input(about.get("crs", "OGC:CRS84"))
    except Exception:  # noqa: BLE001  # read as a whole, it says what is wrong with it
        return None
    if about.get("encoding") != "WKB" or (rows and "bbox" not in about):
        return None
    box = about.get("covering", {}).get("bbox", {}).get("xmin", [None])[0]
    kind = schema.field(box).type if box in schema.names else None
    # rounded to single precision, bounds may be within the object
    exact = kind is not None and kind == pa.struct([(n, pa.float64()) for n in _BOX])
    fields = _usable(schema)
    bounds = about.get("bbox") if rows else None
    if bounds is not None:
        # of three dimensions, two
        half = len(bounds) // 2
        bounds = (*bounds[:2], *bounds[half : half + 2])
    return PolygonFile(
        path, crs, rows, bounds, geometry=name, box=box if exact else None, fields=fields
    )


def _layer_of_objects(path: Path) -> str | None:
    """Return the layer to count; None where there are several and none is called so."""
    kinds = {str(name): str(kind) for name, kind in pyogrio.list_layers(path)}
    spatial = [name for name, kind in kinds.items() if kind != "None"]
    if "objects" in spatial:
        return "objects"
    return spatial[0] if len(spatial) == 1 else None


def _open_layer(path: Path, layer: str | None) -> PolygonFile | None:
    """Return what a layer says of itself; None where it must be read as a whole."""
    if why_not_opened(path):
        # who reads it as a whole says what is wrong
        return None
    try:
        with reading(path):
            layer = layer or _layer_of_objects(path)
            if layer is None:
                return None
            info = pyogrio.read_info(path, layer=layer, force_feature_count=True,
                                     force_total_bounds=True)  # fmt: skip
            crs = pyproj.CRS.from_user_input(info["crs"])
            with pyogrio.open_arrow(path, layer=layer, use_pyarrow=True) as (meta, reader):
                schema, geometry = reader.schema, meta["geometry_name"] or "wkb_geometry"
    except RegionError:
        return None
    if info["driver"] not in _STREAMED.values():
        # a virtual file, whatever its suffix says
        return None
    if "olygon" not in str(info["geometry_type"]) or crs.name.lower().startswith("undefined"):
        return None
    bounds = info["total_bounds"]
    known = bounds is not None and np.isfinite(bounds).all()
    return PolygonFile(
        path,
        crs,
        int(info["features"]),
        tuple(bounds) if known and info["features"] else None,
        layer=layer,
        geometry=geometry,
        fields=_usable(schema),
    )


def _usable(schema: pa.Schema) -> tuple[str, ...]:
    """Return which fields are there as counting needs them."""
    found = []
    for name in _FIELDS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        if number or name == "class":
            found.append(name)
    return tuple(found)


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
