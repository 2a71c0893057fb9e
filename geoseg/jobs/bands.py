"""Where in a finished run two or more tiles looked, for tables of any CRS."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine

from geoseg.errors import ConfigError
from geoseg.imagery.georef import polygons_to_pixels
from geoseg.imagery.grid import TileGrid
from geoseg.jobs.ledger import RunDirectory
from geoseg.objects.seams import in_bands
from geoseg.records import BoolArray


def rows_in_bands(run_dir: Path, table: gpd.GeoDataFrame) -> BoolArray:
    """Say which rows of a table lie where two or more tiles of a run looked.

    Parameters
    ----------
    run_dir : Path
        Directory of a finished run.
    table : GeoDataFrame
        (n) polygons with a CRS.

    Returns
    -------
    ndarray of bool
        (n,), by the representative point, in any image of the run.

    Raises
    ------
    ConfigError
        If the directory holds no finished run of this version.
    """
    manifest = RunDirectory(run_dir).read_manifest() or {}
    images = manifest.get("images", [])
    if not images or "grid_transform" not in images[0]:
        raise ConfigError(
            f"{run_dir} holds no finished run that says where its tiles lay; expected the "
            ".geoseg-run directory that geoseg detect leaves beside its output"
        )
    out = np.zeros(len(table), bool)
    points = table.geometry.representative_point().to_numpy()
    for image in images:
        height, width = image["grid_px"]
        grid = TileGrid(height, width, image["tile_size"], image["overlap"], image["tile_size"])
        placed = polygons_to_pixels(
            points, table.crs.to_wkt(), image["crs"], Affine(*image["grid_transform"])
        )
        out |= in_bands(shapely.get_coordinates(placed), *grid.window_spans())
    return out
