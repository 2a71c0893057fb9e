"""GeoPackages: layers written beside the target, checked, styled, and put in its place.

GDAL and Python each bring their own SQLite, and locks do not work between two copies in one
process. Everywhere below one of them has closed the file before the other opens it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geoseg.errors import OutputError
from geoseg.outputs.formats import check_output
from geoseg.outputs.layers import prepare, stream_layer, write_layer
from geoseg.outputs.objects_file import describe_objects
from geoseg.outputs.publish import fsync, publish_database, scratch
from geoseg.outputs.style import default_styles


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
    return write_database(
        check_output(path, overwrite), layers, styles=styles, overwrite=overwrite, metadata=metadata
    )


def write_database(
    path: Path,
    layers: Mapping[str, gpd.GeoDataFrame | Path],
    *,
    styles: Mapping[str, str] | None,
    overwrite: bool,
    metadata: Mapping[str, Any] | None,
) -> Path:
    """Write layers, each from a table or from a file of objects, check and publish them."""
    tables = {n: t if isinstance(t, Path) else prepare(n, t) for n, t in layers.items()}
    if not tables:
        raise OutputError(f"no layer to write to {path}; give at least one")
    expected = {name: _n_rows(table) for name, table in tables.items()}
    if styles is None:
        styles = default_styles({name: _for_style(table) for name, table in tables.items()})
    notes = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    with scratch(path) as temporary:
        for i, (name, table) in enumerate(tables.items()):
            options: dict[str, Any] = {"dataset_metadata": notes} if notes and i == 0 else {}
            if isinstance(table, Path):
                stream_layer(temporary, name, table, **options)
            else:
                write_layer(temporary, name, table, **options)
        _finish(temporary, expected, styles)
        fsync(temporary)
        publish_database(temporary, path, overwrite=overwrite)
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
