"""GeoPackages: layers written beside the target, checked, styled, and put in its place.

Version 1.3 of the standard, which GDAL since 3.6 and QGIS since 3.22 know wholly. Beside the
layers a file holds styles (``layer_styles``, as QGIS reads them), the data dictionary (the schema
extension) and documents on the run (the metadata extension).

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
from geoseg.outputs.fields import DESCRIPTIONS, describe_fields
from geoseg.outputs.formats import check_output
from geoseg.outputs.layers import prepare, stream_layer, write_layer
from geoseg.outputs.objects_file import describe_objects
from geoseg.outputs.publish import fsync, publish_database, scratch
from geoseg.outputs.style import Style, default_styles

_SCHEMA_EXTENSION = "http://www.geopackage.org/spec121/#extension_schema"
_METADATA_EXTENSION = "http://www.geopackage.org/spec120/#extension_metadata"
_DOCUMENT_URI = "urn:x-geoseg:{}"
_MOST_DOCUMENT = 50_000_000
"""Characters of a document that is still read."""


def write_geopackage(
    path: str | Path,
    layers: Mapping[str, gpd.GeoDataFrame],
    *,
    styles: Mapping[str, str | Style] | None = None,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
    documents: Mapping[str, Any] | None = None,
    pixels: bool = False,
) -> Path:
    """Write layers beside the target, check them, and only then put them in its place.

    Parameters
    ----------
    path : str or Path
        Target, ends in .gpkg.
    layers : mapping of str to GeoDataFrame
        At least one; each with a CRS; may be empty. Columns of ``objects`` get fixed types.
    styles : mapping of str to Style or str, optional
        Style, or QML, by layer; by default ours for the layers that we know. Empty: no styles.
    overwrite : bool
        Whether an existing file may be replaced.
    metadata : mapping, optional
        Short notes, which GDAL and QGIS show; values that are not text as JSON.
    documents : mapping, optional
        Longer ones by name, such as ``run`` and ``model-card``: each a row of ``gpkg_metadata``
        whose ``md_standard_uri`` is ``urn:x-geoseg:`` and the name. Texts as they are, all else
        as JSON.
    pixels : bool
        Tables without a CRS are in px of an image, and are written so.

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
        check_output(path, overwrite),
        {name: prepare(name, table, pixels=pixels) for name, table in layers.items()},
        styles=styles,
        overwrite=overwrite,
        metadata=metadata,
        documents=documents,
    )


def write_database(
    path: Path,
    layers: Mapping[str, gpd.GeoDataFrame | Path],
    *,
    styles: Mapping[str, str | Style] | None = None,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
    documents: Mapping[str, Any] | None = None,
) -> Path:
    """Write prepared layers, each from a table or from a file of objects; check, publish."""
    if not layers:
        raise OutputError(f"no layer to write to {path}; give at least one")
    expected = {name: _n_rows(table) for name, table in layers.items()}
    if styles is None:
        styles = default_styles({name: _for_style(table) for name, table in layers.items()})
    notes = {k: _as_text(v) for k, v in (metadata or {}).items()}
    with scratch(path) as temporary:
        for i, (name, table) in enumerate(layers.items()):
            options: dict[str, Any] = {}
            if i == 0:
                options["dataset_options"] = {"VERSION": "1.3"}
            if notes and i == 0:
                options["dataset_metadata"] = notes
            if isinstance(table, Path):
                stream_layer(temporary, name, table, **options)
            else:
                write_layer(temporary, name, table, **options)
        _finish(temporary, expected, styles, documents or {})
        fsync(temporary)
        publish_database(temporary, path, overwrite=overwrite)
    return path


def _as_text(value: Any) -> str:
    """Return a text as it is and all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


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
        columns = [name for name in file.schema_arrow.names if name not in ("bbox", "geometry")]
    return gpd.GeoDataFrame({"class": list(found)}).reindex(columns=columns)


def _finish(
    path: Path,
    n_rows: Mapping[str, int],
    styles: Mapping[str, str | Style],
    documents: Mapping[str, Any],
) -> None:
    """Check the rows that arrived and add all that GDAL does not write; it has closed the file."""
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
            if name in DESCRIPTIONS:
                database.execute(
                    "UPDATE gpkg_contents SET description = ? WHERE table_name = ?",
                    (DESCRIPTIONS[name], name),
                )
        _add_dictionary(database, n_rows)
        if documents:
            _add_documents(database, documents)
        if styles:
            _add_styles(database, styles)


def _add_dictionary(database: sqlite3.Connection, layers: Mapping[str, int]) -> None:
    """Write the data dictionary: what GDAL calls alternative names and comments of fields."""
    rows = []
    for layer in layers:
        columns = [
            r[0] for r in database.execute("SELECT name FROM pragma_table_info(?)", (layer,))
        ]
        taken: set[str] = set()
        for f in describe_fields(layer, columns):
            # unique within a layer, as the standard wants it
            heading = f.heading if f.heading not in taken else f"{f.heading} [{f.name}]"
            taken.add(heading)
            unit = f" Unit: {f.unit}." if f.unit else ""
            rows.append((layer, f.name, heading, heading, f.description + unit))
    if not rows:
        return
    database.execute(
        "CREATE TABLE IF NOT EXISTS gpkg_data_columns ("
        "table_name TEXT NOT NULL, column_name TEXT NOT NULL, "
        "name TEXT, title TEXT, description TEXT, mime_type TEXT, constraint_name TEXT, "
        "CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name), "
        "CONSTRAINT gdc_tn UNIQUE (table_name, name))"
    )
    database.execute(
        "CREATE TABLE IF NOT EXISTS gpkg_data_column_constraints ("
        "constraint_name TEXT NOT NULL, "
        "constraint_type TEXT NOT NULL, value TEXT, min NUMERIC, min_is_inclusive BOOLEAN, "
        "max NUMERIC, max_is_inclusive BOOLEAN, description TEXT, "
        "CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value))"
    )
    tables = ("gpkg_data_columns", "gpkg_data_column_constraints")
    _register(database, "gpkg_schema", _SCHEMA_EXTENSION, tables)
    database.executemany(
        "INSERT INTO gpkg_data_columns (table_name, column_name, name, title, description) "
        "VALUES (?, ?, ?, ?, ?)",
        rows,
    )


def _add_documents(database: sqlite3.Connection, documents: Mapping[str, Any]) -> None:
    """Write the documents on the run, as metadata of the whole file."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS gpkg_metadata (id INTEGER CONSTRAINT m_pk PRIMARY KEY ASC "
        "NOT NULL, md_scope TEXT NOT NULL DEFAULT 'dataset', md_standard_uri TEXT NOT NULL, "
        "mime_type TEXT NOT NULL DEFAULT 'text/xml', metadata TEXT NOT NULL DEFAULT '')"
    )
    database.execute(
        "CREATE TABLE IF NOT EXISTS gpkg_metadata_reference (reference_scope TEXT NOT NULL, "
        "table_name TEXT, column_name TEXT, row_id_value INTEGER, timestamp DATETIME NOT NULL "
        "DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')), md_file_id INTEGER NOT NULL, "
        "md_parent_id INTEGER, "
        "CONSTRAINT crmr_mfi_fk FOREIGN KEY (md_file_id) REFERENCES gpkg_metadata(id), "
        "CONSTRAINT crmr_mpi_fk FOREIGN KEY (md_parent_id) REFERENCES gpkg_metadata(id))"
    )
    tables = ("gpkg_metadata", "gpkg_metadata_reference")
    _register(database, "gpkg_metadata", _METADATA_EXTENSION, tables)
    for name, document in documents.items():
        plain = isinstance(document, str)
        text = document if plain else json.dumps(document, indent=1, ensure_ascii=False)
        cursor = database.execute(
            "INSERT INTO gpkg_metadata (md_scope, md_standard_uri, mime_type, metadata) "
            "VALUES ('dataset', ?, ?, ?)",
            (_DOCUMENT_URI.format(name), "text/plain" if plain else "application/json", text),
        )
        database.execute(
            "INSERT INTO gpkg_metadata_reference (reference_scope, md_file_id) "
            "VALUES ('geopackage', ?)",
            (cursor.lastrowid,),
        )


def read_documents(path: Path) -> dict[str, Any]:
    """Return the documents on the run that a GeoPackage holds, by name.

    Returns
    -------
    dict
        Texts, or what JSON holds; empty where there are none, or the file is no database that
        can be read: somebody's metadata are no reason not to work with the objects.
    """
    if path.suffix.lower() != ".gpkg" or not path.is_file():
        return {}
    prefix = _DOCUMENT_URI.format("")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    found: dict[str, Any] = {}
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            rows = database.execute(
                "SELECT md_standard_uri, mime_type, metadata FROM gpkg_metadata "
                "WHERE length(metadata) < ?",
                (_MOST_DOCUMENT,),
            ).fetchall()
        for name, kind, text in rows:
            if str(name).startswith(prefix):
                plain = kind != "application/json"
                found[str(name).removeprefix(prefix)] = text if plain else json.loads(text)
    except (sqlite3.Error, ValueError, RecursionError):
        return {}
    return found


def _register(
    database: sqlite3.Connection, name: str, definition: str, tables: tuple[str, ...]
) -> None:
    """Name tables of an extension in the list of extensions, once."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS gpkg_extensions (table_name TEXT, column_name TEXT, "
        "extension_name TEXT NOT NULL, definition TEXT NOT NULL, scope TEXT NOT NULL, "
        "CONSTRAINT ge_tce UNIQUE (table_name, column_name, extension_name))"
    )
    known = {r[0] for r in database.execute("SELECT table_name FROM gpkg_extensions")}
    database.executemany(
        "INSERT INTO gpkg_extensions VALUES (?, NULL, ?, ?, 'read-write')",
        [(table, name, definition) for table in tables if table not in known],
    )


def _add_styles(database: sqlite3.Connection, styles: Mapping[str, str | Style]) -> None:
    """Write the table from which QGIS takes a layer's style when it opens it."""
    database.execute(
        "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
        "f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), "
        "f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
        "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
    )
    geometry = dict(database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns"))
    rows = []
    for name, style in styles.items():
        if name in geometry:
            texts = (style, "") if isinstance(style, str) else (style.to_qml(), style.to_sld(name))
            rows.append((name, geometry[name], name[:30], *texts))
    database.executemany(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
        "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner, ui) "
        "VALUES ('', '', ?, ?, ?, ?, ?, 1, 'written by geoseg', '', NULL)",
        rows,
    )
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, srs_id) "
        "VALUES ('layer_styles', 'attributes', 'layer_styles', 'QGIS styles', 0)"
    )
    database.execute(
        "INSERT INTO gpkg_ogr_contents SELECT 'layer_styles', count(*) FROM layer_styles"
    )
