"""Vector files: read the user's, write ours so that nobody ever sees half of one.

The formats behind these names: `objects_file` (the run's own file, a stream), `geopackage`,
`layers` (all else that GDAL writes), `reading`, `publish` (nothing is ever half replaced).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd

from geoseg.errors import OutputError
from geoseg.outputs.coco import write_coco
from geoseg.outputs.formats import (
    COCO_SUFFIX,
    DRIVERS,
    OBJECT_SUFFIXES,
    check_output,
    suffix_of,
)
from geoseg.outputs.geopackage import write_database, write_geopackage
from geoseg.outputs.layers import prepare, stream_layer, write_layer
from geoseg.outputs.objects_file import (
    GROUP_ROWS,
    OBJECT_DTYPES,
    OBJECT_SCHEMA,
    ObjectsInfo,
    ObjectsWriter,
    describe_objects,
    empty_objects,
    iter_objects,
    objects_from_arrow,
    objects_to_arrow,
)
from geoseg.outputs.publish import put, scratch
from geoseg.outputs.reading import read_vector
from geoseg.outputs.sorting import write_geoparquet
from geoseg.outputs.style import Style
from geoseg.records import RasterInfo

__all__ = [
    "DRIVERS",
    "GROUP_ROWS",
    "OBJECT_DTYPES",
    "OBJECT_SCHEMA",
    "OBJECT_SUFFIXES",
    "ObjectsInfo",
    "ObjectsWriter",
    "check_output",
    "describe_objects",
    "empty_objects",
    "iter_objects",
    "objects_from_arrow",
    "objects_to_arrow",
    "read_vector",
    "write_geopackage",
    "write_objects",
    "write_table",
]

_OPTIONS: dict[str, dict[str, Any]] = {".geojson": {"RFC7946": "YES"}}


def write_table(
    path: str | Path,
    table: gpd.GeoDataFrame,
    *,
    layer: str = "objects",
    overwrite: bool = False,
    pixels: bool = False,
) -> Path:
    """Write one table in the format that the suffix names.

    Parameters
    ----------
    path : str or Path
        Ends in .gpkg, .parquet (GeoParquet 1.1 with bbox, zstd), .fgb or .geojson (RFC 7946: in
        EPSG:4326, cut at the antimeridian).
    table : GeoDataFrame
        With a CRS; may be empty.
    layer : str
        Layer name where the format has one; ``objects`` get their fixed column types.
    overwrite : bool
        Whether an existing file may be replaced.
    pixels : bool
        A table without a CRS is in px of an image, and is written so: no program will take it
        for a place on earth. GeoJSON, which is always in degrees, refuses it all the same.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As :func:`check_output`; if there is no CRS; or if writing fails, the old file then being
        as it was.
    """
    path = check_output(path, overwrite)
    suffix = suffix_of(path)
    if suffix == ".gpkg":
        return write_geopackage(path, {layer: table}, overwrite=overwrite, pixels=pixels)
    table = prepare(layer, table, pixels=pixels and suffix != ".geojson")
    with scratch(path) as temporary:
        if suffix == ".parquet":
            table.to_parquet(
                temporary, schema_version="1.1.0", write_covering_bbox=True, compression="zstd"
            )
        else:
            write_layer(temporary, layer, table, driver=DRIVERS[suffix], **_OPTIONS.get(suffix, {}))
        put(temporary, path, overwrite=overwrite)
    return path


def write_objects(
    path: str | Path,
    source: str | Path,
    others: Mapping[str, gpd.GeoDataFrame] | None = None,
    *,
    overwrite: bool = False,
    styles: Mapping[str, str | Style] | None = None,
    metadata: Mapping[str, Any] | None = None,
    documents: Mapping[str, Any] | None = None,
    images: Sequence[RasterInfo] = (),
    classes: Sequence[str] = (),
) -> Path:
    """Write the objects of a run for the user, without ever holding them all.

    A GeoPackage, FlatGeobuf or GeoJSON file is the one that :func:`write_geopackage` or
    :func:`write_table` would make of the whole table; GeoParquet has the rows in Hilbert order.
    All are published in the same way.

    Parameters
    ----------
    path : str or Path
        Ends in .gpkg, .parquet, .fgb or .geojson, as for :func:`write_table`, or in .coco.json.
    source : str or Path
        A file of :class:`ObjectsWriter`.
    others : mapping of str to GeoDataFrame, optional
        More layers, after ``objects``; only a GeoPackage has room for them.
    overwrite : bool
        Whether an existing file may be replaced.
    styles, metadata, documents : mapping, optional
        As for :func:`write_geopackage`. COCO JSON keeps the metadata as its ``info``; other
        formats have no place for any of them.
    images, classes : sequence, optional
        For COCO JSON: see :func:`geoseg.outputs.coco.write_coco`.

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
    path = check_output(path, overwrite, suffixes=OBJECT_SUFFIXES)
    source = Path(source).expanduser().absolute()
    suffix = suffix_of(path)
    if suffix == ".gpkg":
        layers: dict[str, gpd.GeoDataFrame | Path] = {"objects": source}
        layers |= {name: prepare(name, table) for name, table in (others or {}).items()}
        return write_database(
            path, layers, styles=styles, overwrite=overwrite, metadata=metadata, documents=documents
        )
    if others:
        raise OutputError(
            f"{path.name} has room for one layer, not for {', '.join(others)} beside objects; "
            "write a .gpkg, or those to files of their own"
        )
    with scratch(path) as temporary:
        if suffix == ".parquet":
            write_geoparquet(temporary, source)
        elif suffix == COCO_SUFFIX:
            write_coco(temporary, source, images, classes=classes, about=metadata)
        else:
            options = _OPTIONS.get(suffix, {})
            stream_layer(temporary, "objects", source, driver=DRIVERS[suffix], **options)
        put(temporary, path, overwrite=overwrite)
    return path
