"""Layers that GEOS refuses to read: rings that are not closed, and curves."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from shapely.errors import GEOSException

from geoseg.errors import RegionError

REFUSED = (GEOSException, NotImplementedError)
"""What shapely raises for geometries that it cannot make."""


def read_broken(path: Path, layer: str, where: str | None, what: str) -> gpd.GeoDataFrame:
    """Read a layer some of whose geometries shapely refuses; rings that are not closed are closed.

    Parameters
    ----------
    path, layer, where, what
        As for :func:`geoseg.outputs.reading.read_vector`.

    Returns
    -------
    GeoDataFrame
        All rows; None where a geometry cannot be made at all.

    Raises
    ------
    RegionError
        If the layer holds curves: they would lose their area in silence.
    """
    meta, _, geometry, columns = pyogrio.raw.read(path, layer=layer, where=where)
    wkb = np.asarray(geometry, dtype=object)
    curved = sum(_is_curve(data) for data in wkb if data is not None)
    if curved:
        raise RegionError(
            f"{what} file {path} holds {curved} curved geometries, which are not read; make their "
            f"arcs straight: ogr2ogr -nlt CONVERT_TO_LINEAR straight.gpkg {path}"
        )
    try:
        shapes = shapely.from_wkb(wkb, on_invalid="fix")
    except ValueError:
        # shapely before 2.1 cannot close rings
        shapes = shapely.from_wkb(wkb, on_invalid="ignore")
    fields = pd.DataFrame(dict(zip(meta["fields"], columns, strict=True)))
    return gpd.GeoDataFrame(fields, geometry=shapes, crs=meta["crs"])


def _is_curve(wkb: bytes) -> bool:
    """Say whether WKB begins with a kind of curve: 8 to 12, 1008 with Z, and so on."""
    kind = int.from_bytes(wkb[1:5], "little" if wkb[0] == 1 else "big") & 0x0FFFFFFF
    return 8 <= kind % 1000 <= 12
