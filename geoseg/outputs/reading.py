"""Read the user's vector files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyogrio
import pyproj
import shapely

from geoseg.errors import GeosegError, RegionError
from geoseg.imagery.vector_files import DRIVERS, why_not_opened
from geoseg.outputs.broken import REFUSED, read_broken
from geoseg.outputs.publish import first_line

_PAM = "GDAL_PAM_ENABLED"


@contextmanager
def reading(path: str | Path, what: str = "vector") -> Iterator[None]:
    """Read a user's vector file: whatever is wrong with it is one error, and nothing is written.

    Broken files make libraries raise whatever comes to pass in them, such as GEOS's errors over a
    ring that does not close or an UnboundLocalError of pyogrio. And GDAL writes what it found in
    a GeoPackage to an ``.aux.xml`` file beside it, although it was only to read.

    Raises
    ------
    RegionError
        In place of anything but geoseg's own errors.
    """
    before = pyogrio.get_gdal_config_option(_PAM)
    pyogrio.set_gdal_config_options({_PAM: False})
    try:
        yield
    except GeosegError:
        raise
    except Exception as error:
        raise RegionError(
            f"{what} file {path} cannot be read as a vector layer ({first_line(error)}); "
            "give a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file"
        ) from error
    finally:
        pyogrio.set_gdal_config_options({_PAM: before})


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
        A GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file, known by its first bytes.
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
    with reading(path, what):
        table = _read_any(path, layer, what, where)
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
    if len(twice := table.columns[table.columns.duplicated()]):
        raise RegionError(
            f"{what} file {path} has several fields called '{twice[0]}'; rename all but one"
        )
    if "score" in table:
        numbers = pd.to_numeric(table["score"], errors="coerce")
        if (numbers.isna() & table["score"].notna()).any():
            raise RegionError(f"{what} file {path}: the field 'score' holds text; expected numbers")
    check_place(table.crs, f"{what} file {path}")
    kinds = shapely.get_type_id(table.geometry.to_numpy())
    if len(table) and not np.isin(kinds, (3, 6, 7)).any():
        found = ", ".join(sorted({str(k) for k in table.geom_type.dropna()})) or "no geometry"
        raise RegionError(f"{what} file {path} holds no polygons, only: {found}")
    return _with_valid_text(table)


def check_place(crs: pyproj.CRS, where: str) -> None:
    """Refuse a CRS from which no way leads to the earth, such as one of heights alone.

    Raises
    ------
    RegionError
        `where` says whose CRS it is.
    """
    try:
        pyproj.Transformer.from_crs(crs, crs.geodetic_crs or 4326, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise RegionError(
            f"{where} has the CRS '{crs.name}', from which no way leads to a place on the earth; "
            "set the right one, for example with: ogr2ogr -a_srs EPSG:CODE out.gpkg in.file"
        ) from error


def _with_valid_text(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Put a replacement character where text is no UTF-8: a Shapefile may call anything so."""
    for name in table.columns:
        if not isinstance(table[name].dtype, pd.StringDtype):
            continue
        try:
            pa.array(table[name]).validate(full=True)
        except pa.ArrowInvalid:
            raw = pa.array(table[name]).cast(pa.large_binary()).to_pylist()
            table[name] = [None if r is None else r.decode("utf-8", "replace") for r in raw]
    return table


def _read_any(path: Path, layer: str | None, what: str, where: str | None) -> gpd.GeoDataFrame:
    """Read a layer with the library that its format needs."""
    if path.suffix.lower() in {".parquet", ".geoparquet"}:
        if where is not None:
            raise RegionError(
                f"{what} file {path} is GeoParquet, which takes no condition; "
                "select the rows first, or give a GeoPackage"
            )
        return gpd.read_parquet(path)
    if reason := why_not_opened(path):
        raise RegionError(f"{what} file {path} {reason}")
    # GDAL would take what stands before a colon for a driver
    path = path.absolute()
    name = _choose_layer(path, layer, what)
    driver = pyogrio.read_info(path, layer=name)["driver"]
    if driver not in DRIVERS:
        raise RegionError(f"{what} file {path} is {driver}; expected one of {', '.join(DRIVERS)}")
    try:
        return pyogrio.read_dataframe(path, layer=name, where=where, use_arrow=True)
    except REFUSED:
        return read_broken(path, name, where, what)
    except Exception as error:
        if where is None:
            raise
        raise RegionError(
            f"{what} file {path} cannot be read where {where} ({first_line(error)}); "
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
