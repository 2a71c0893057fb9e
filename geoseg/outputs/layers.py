"""Write one layer with GDAL, from a table or from a file of objects."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyogrio
import pyproj
import shapely
from pyproj.exceptions import CRSError

from geoseg.errors import OutputError
from geoseg.outputs.geojson import to_rfc7946
from geoseg.outputs.objects_file import (
    GROUP_ROWS,
    OBJECT_SCHEMA,
    fix_types,
    iter_tables,
    open_objects,
    to_geometries,
)

_MULTI = {"Polygon": "MultiPolygon", "LineString": "MultiLineString", "Point": "MultiPoint"}


def prepare(name: str, table: gpd.GeoDataFrame, *, pixels: bool = False) -> gpd.GeoDataFrame:
    """Return the table as it is to be written: fixed types, field names that SQLite tells apart."""
    if table.crs is None and not pixels:
        raise OutputError(
            f"layer '{name}' has no CRS, so no program could place it; set it before writing"
        )
    attrs = table.attrs
    if name == "objects":
        table = fix_types(table)
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


def stream_layer(
    path: Path, name: str, source: Path, *, driver: str = "GPKG", **options: object
) -> None:
    """Write one layer with GDAL from a file of objects, in one go and one transaction."""
    file, info = open_objects(source)
    degrees = driver == "GeoJSON"
    multi = "MultiPolygon" in info.geometry_types and not degrees
    failed: list[BaseException] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in iter_tables(file, GROUP_ROWS):
                ready = table
                if degrees:
                    ready = _with(table, to_rfc7946(to_geometries(table), info.crs))
                elif multi:
                    ready = _with(table, _as_multi(to_geometries(table)))
                yield from ready.to_batches()
        except BaseException as error:
            # GDAL knows only that there was one
            failed.append(error)
            raise

    with file:
        try:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(OBJECT_SCHEMA, batches()),
                path,
                layer=name,
                driver=driver,
                geometry_name="geometry",
                geometry_type="Unknown" if degrees else "MultiPolygon" if multi else "Polygon",
                crs="EPSG:4326" if degrees else _for_proj(info.crs),
                **(options | _own_columns(driver, set(OBJECT_SCHEMA.names))),
            )
        finally:
            if failed:
                raise failed[0]


def _with(table: pa.Table, polygons: npt.NDArray[np.object_]) -> pa.Table:
    """Return the table with other geometry."""
    wkb = pa.array(shapely.to_wkb(polygons), type=pa.binary())
    return table.set_column(table.schema.get_field_index("geometry"), "geometry", wkb)


def _as_multi(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return all as MultiPolygons: a layer holds one kind."""
    single = shapely.get_type_id(polygons) == 3
    polygons[single] = shapely.multipolygons(polygons[single, None], axis=1)
    return polygons


def _for_proj(crs: pyproj.CRS) -> str:
    """Return the CRS in the words that pyogrio uses for tables; in newer ones if those lack it."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else _old_words(crs) or str(crs.to_wkt())


def _old_words(crs: pyproj.CRS) -> str | None:
    """Return the CRS as WKT 1, in which some, such as those of turned poles, cannot be told."""
    try:
        return str(crs.to_wkt("WKT1_GDAL"))
    except CRSError:
        return None


def write_layer(
    path: Path, name: str, table: gpd.GeoDataFrame, *, driver: str = "GPKG", **options: object
) -> None:
    """Write one layer with GDAL; a GeoPackage keeps the layers that it has."""
    if driver == "GeoJSON":
        table = table.set_geometry(
            gpd.GeoSeries(to_rfc7946(table.geometry.to_numpy(), table.crs), table.index, crs=4326)
        )
    kind = "Unknown" if driver == "GeoJSON" else _geometry_type(table)
    names = {str(c).casefold() for c in table.columns}
    options |= _own_columns(driver, names)
    if table.crs is None and driver == "GPKG":
        # of the standard: an undefined plane
        options["SRID"] = "-1"
    if table.crs is not None and table.crs.to_epsg() is None and _old_words(table.crs) is None:
        _write_in_new_words(path, name, table, kind, driver=driver, **options)
        return
    with warnings.catch_warnings():
        # px of an image have no CRS, and are meant to have none
        warnings.filterwarnings("ignore", message="'crs' was not provided")
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


def _write_in_new_words(
    path: Path, name: str, table: gpd.GeoDataFrame, kind: str, **options: object
) -> None:
    """Write one layer in a CRS that pyogrio would not tell of a table."""
    if kind.startswith("Multi"):
        polygons = _as_multi(table.geometry.to_numpy().copy())
        table = table.set_geometry(gpd.GeoSeries(polygons, table.index, crs=table.crs))
    pyogrio.write_arrow(
        pa.table(table.to_arrow(index=False, geometry_encoding="WKB")),
        path,
        layer=name,
        geometry_name=table.geometry.name,
        geometry_type=kind,
        crs=_for_proj(table.crs),
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
