"""Objects and regions of many kinds, for tests of what is written."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geoseg.outputs.tables import (
    OBJECT_DTYPES,
    ObjectsWriter,
    empty_objects,
    objects_to_arrow,
)

UTM = 32645
ODD_CLASSES = (
    'it\'s "quoted"',
    "Robert'); DROP TABLE objects;--",
    "<script>alert(1)</script>",
    "roof & <b>yard</b> 🏠",
    "कुटी\u202e",
    "",
    " ",
    "x" * 300,
)


def objects_at(x, y, crs=UTM, *, size=10.0, classes=("building",), holes=True, many=True):
    """Objects at places of a CRS: every third has a hole, every seventh two parts."""
    at = np.arange(len(x))
    polygons = shapely.box(x, y, x + size, y + size * (1 + at % 4) / 4)
    if holes:
        inner = shapely.box(x + 0.3 * size, y + 0.05 * size, x + 0.5 * size, y + 0.15 * size)
        polygons = np.where(at % 3 == 0, shapely.difference(polygons, inner), polygons)
    if many:
        for i in range(0, len(at), 7):
            beside = shapely.box(x[i] + 1.2 * size, y[i], x[i] + 1.4 * size, y[i] + 0.2 * size)
            polygons[i] = shapely.MultiPolygon([*shapely.get_parts(polygons[i]), beside])
    table = gpd.GeoDataFrame(
        {
            "object_id": at + 1,
            "uid": [f"{i:016x}" for i in at * 7919],
            "class": np.array(classes, object)[at % len(classes)],
            "score": 0.5 + at / (2 * len(at)),
            "area_m2": 100.0 + at,
            "perimeter_m": 40.0 + at,
            "n_parts": np.ones(len(at)),
            "touches_edge": at % 5 == 0,
            "image": "a.tif",
        },
        geometry=polygons,
        crs=crs,
    )
    return table.astype(OBJECT_DTYPES)


def town(n=200, crs=UTM, **options):
    """Objects in rows of twenty, in a projected CRS unless another size is given."""
    at = np.arange(n)
    left, bottom, step = options.pop("at", (500_000.0, 3_000_000.0, 30.0))
    return objects_at(
        left + step * (at % 20), bottom + step * (at // 20), crs, size=step / 3, **options
    )


def file_of(path, table):
    """Write a table as a file of objects."""
    with ObjectsWriter(path, table.crs) as writer:
        if len(table):
            writer.write(objects_to_arrow(table))
    return path


def nothing(crs=UTM):
    """No objects."""
    return empty_objects(crs)


def wards(n=4, crs=UTM, names=None):
    """Strips of 150 m over the town, beside each other, with counts."""
    x = 499_990.0 + 150 * np.arange(n)
    table = gpd.GeoDataFrame(
        {
            "ward": pd.Series(names or [f"ward {i}" for i in range(n)], dtype="str"),
            "count": np.arange(n) * 10,
            "density_km2": np.arange(n) * 123.4,
            "mine": np.linspace(0, 1, n),
        },
        geometry=shapely.box(x, 2_999_000.0, x + 150, 3_001_000.0),
        crs=crs,
    )
    table.attrs["region_field"] = "ward"
    return table
