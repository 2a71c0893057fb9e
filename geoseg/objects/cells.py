"""Regions made on request: hexagons or squares of one size on the ground.

The cells of a zone of the earth are always the same ones: zones are those of the Military Grid
Reference System (6 degrees by 8, such as 45R), each with its own equal-area projection and origin.
So images of one zone, taken years apart by anyone, get cells with the same names in the same
places. Cells of different zones do not meet in a pattern; a survey that spans several gives one
projected CRS for all.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.regions import CRSLike, polygonal
from geoseg.records import DoubleArray, IntArray

SHAPES = ("hexagon", "square")
MOST_CELLS = 1_000_000
"""More regions than this are refused: they would be more than anyone looks at."""
_BANDS = "CDEFGHJKLMNPQRSTUVWX"
_FALSE = 1_000_000.0
# ^ easting and northing of a zone's centre, m: so that no cell of the zone has a negative number


@dataclass(frozen=True, slots=True)
class GridSpec:
    """What cells are wanted.

    Examples
    --------
    >>> GridSpec.parse("hexagon:500")
    GridSpec(shape='hexagon', size_m=500.0, crs=None)
    """

    shape: str
    """'hexagon' or 'square'."""
    size_m: float
    """From side to opposite side, metres: what a hexagon's neighbours' centres are apart."""
    crs: str | None = None
    """Projected CRS in metres whose axes and origin the cells follow; None: that of the zone."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"grid of '{self.shape}'; expected {' or '.join(SHAPES)}")
        if not 1 <= self.size_m <= 1e6:
            raise ConfigError(f"grid of {self.size_m:g} m; expected 1 to 1,000,000 m")

    @classmethod
    def parse(cls, text: str) -> GridSpec:
        """Read 'hexagon:500', 'square:1000' or 'square:1000:EPSG:3035'.

        Raises
        ------
        ConfigError
            If it is nothing of the kind.
        """
        match = re.fullmatch(r"\s*([A-Za-z]+):([0-9.]+)\s*m?(?::(.+))?", text)
        try:
            if match is None:
                raise ValueError
            return cls(match[1].lower(), float(match[2]), match[3])
        except ValueError as error:
            raise ConfigError(
                f"grid is '{text}'; expected hexagon:METRES or square:METRES, such as hexagon:500 "
                "(or with a projected CRS: square:1000:EPSG:3035)"
            ) from error


def make_grid(
    spec: GridSpec | str, area: gpd.GeoSeries | BaseGeometry, crs: CRSLike
) -> gpd.GeoDataFrame:
    """Make the cells that an area touches.

    Parameters
    ----------
    spec : GridSpec or str
        Shape and size, such as 'hexagon:500'.
    area : GeoSeries or geometry
        What was imaged, polygons in ``crs``; cells that lie wholly outside are left out.
    crs : pyproj.CRS or str or int
        CRS of the area and of the cells to be returned.

    Returns
    -------
    GeoDataFrame
        (n) cells in ``crs``, north to south and west to east: ``region`` (the cell's name, the
        same for every image of the zone), ``grid_col``, ``grid_row`` (from the zone's origin).
        Neighbours share their corners to the last bit.

    Raises
    ------
    ConfigError
        If the specification is wrong or there would be more than a million cells.
    RegionError
        If the area is empty.
    """
    spec = GridSpec.parse(spec) if isinstance(spec, str) else spec
    here = pyproj.CRS.from_user_input(crs)
    given = [area] if isinstance(area, BaseGeometry) else area.geometry.array
    parts = polygonal(given)[0]
    parts = parts[~shapely.is_empty(parts)]
    if not len(parts):
        raise RegionError("nothing was imaged, so there is no place for a grid")
    zone, plane = _plane_of(spec, parts, here)
    there = pyproj.Transformer.from_crs(here, plane, always_xy=True)
    # some vertices between, for an edge that is straight here is bent there
    size = float(np.max(np.ptp(shapely.total_bounds(parts).reshape(2, 2), axis=0)))
    dense = shapely.segmentize(parts, max(size / 64, 1e-12))
    wanted = shapely.transform(
        dense, lambda xy: np.column_stack(there.transform(xy[:, 0], xy[:, 1]))
    )
    bounds = shapely.total_bounds(wanted)
    if not np.isfinite(bounds).all():
        raise ConfigError(
            f"the imaged area has no place in {plane.name}; give the grid another CRS, such as "
            f"{spec.shape}:{spec.size_m:g}:EPSG:CODE"
        )
    _check_number(spec, bounds)
    lattice = _hexagons if spec.shape == "hexagon" else _squares
    cols, rows, corners = lattice(bounds, spec.size_m)
    cells = shapely.polygons(corners)
    keep = np.unique(shapely.STRtree(cells).query(wanted, predicate="intersects")[1])
    back = shapely.transform(
        cells[keep],
        lambda xy: np.column_stack(there.transform(xy[:, 0], xy[:, 1], direction="INVERSE")),
    )
    name = f"{zone}-{spec.shape[0]}{spec.size_m:g}"
    cols, rows = cols[keep], rows[keep]
    names = [f"{name}-{c}-{r}" for c, r in zip(cols.tolist(), rows.tolist(), strict=True)]
    return gpd.GeoDataFrame(
        {"region": names, "grid_col": cols, "grid_row": rows}, geometry=back, crs=here
    )


def no_cells(crs: CRSLike) -> gpd.GeoDataFrame:
    """Return a grid without cells, for where nothing was imaged."""
    nothing = {"region": np.zeros(0, object), "grid_col": np.zeros(0, np.int64)}
    return gpd.GeoDataFrame(
        nothing | {"grid_row": np.zeros(0, np.int64)}, geometry=[], crs=pyproj.CRS(crs)
    )


def _plane_of(spec: GridSpec, parts: DoubleArray, here: pyproj.CRS) -> tuple[str, pyproj.CRS]:
    """Return the name of the zone and the plane in which its cells are regular."""
    if spec.crs is not None:
        try:
            plane = pyproj.CRS.from_user_input(spec.crs)
        except pyproj.exceptions.CRSError as error:
            raise ConfigError(
                f"grid's CRS '{spec.crs}' is none that PROJ knows; expected something like "
                "EPSG:3035"
            ) from error
        if not plane.is_projected or plane.axis_info[0].unit_conversion_factor != 1:
            raise ConfigError(f"grid's CRS {plane.name} is no projected CRS in metres")
        return re.sub(r"[^A-Za-z0-9]", "", spec.crs), plane
    left, bottom, right, top = shapely.total_bounds(parts)
    transformer = pyproj.Transformer.from_crs(here, 4326, always_xy=True)
    lon, lat = transformer.transform((left + right) / 2, (bottom + top) / 2)
    if not (math.isfinite(lon) and math.isfinite(lat)):
        raise RegionError(f"the imaged area has no place on earth by {here.name}")
    return _zone_at(lon, lat)


def _zone_at(lon: float, lat: float) -> tuple[str, pyproj.CRS]:
    """Return the zone that holds a place, and its equal-area plane.

    Five degrees from the centre, which is the farthest corner of a zone, shapes are off by 0.2 %.
    """
    if not -80 <= lat < 84:
        name, lon_0, lat_0 = ("N", 0, 90) if lat > 0 else ("S", 0, -90)
    else:
        number = int((lon + 180) // 6) % 60
        band = min(int((lat + 80) // 8), len(_BANDS) - 1)
        name = f"{number + 1:02d}{_BANDS[band]}"
        lon_0, lat_0 = number * 6 - 177, band * 8 - 76
    proj = (
        f"+proj=laea +lat_0={lat_0} +lon_0={lon_0} +x_0={_FALSE:.0f} +y_0={_FALSE:.0f} "
        "+datum=WGS84 +units=m +no_defs"
    )
    return name, pyproj.CRS.from_proj4(proj)


def _check_number(spec: GridSpec, bounds: DoubleArray) -> None:
    """Refuse a grid that nobody could look at, before it is made."""
    width, height = bounds[2] - bounds[0], bounds[3] - bounds[1]
    n = (width / spec.size_m + 2) * (height / spec.size_m + 2)
    if n > MOST_CELLS:
        least = math.ceil(math.sqrt(width * height / MOST_CELLS) * 1.1)
        raise ConfigError(
            f"{spec.shape}:{spec.size_m:g} makes {n:,.0f} cells over {width / 1000:,.0f} x "
            f"{height / 1000:,.0f} km; expected at most {MOST_CELLS:,}: give {least} m or more"
        )


def _squares(bounds: DoubleArray, size: float) -> tuple[IntArray, IntArray, DoubleArray]:
    """Return columns, rows and (n, 5, 2) corners of squares over bounds."""
    left, bottom, right, top = bounds
    cols = np.arange(math.floor(left / size), math.floor(right / size) + 1)
    rows = np.arange(math.floor(bottom / size), math.floor(top / size) + 1)[::-1]
    row, col = (a.ravel() for a in np.meshgrid(rows, cols, indexing="ij"))
    x = np.stack([col, col + 1, col + 1, col, col], axis=1) * size
    y = np.stack([row, row, row + 1, row + 1, row], axis=1) * size
    return col, row, np.stack([x, y], axis=2)


def _hexagons(bounds: DoubleArray, size: float) -> tuple[IntArray, IntArray, DoubleArray]:
    """Return columns, rows and (n, 7, 2) corners of hexagons, points up, over bounds.

    Corners are whole steps of a lattice of half a width by half a side, so that neighbours have
    the very same numbers. Odd rows stand half a width to the right.
    """
    half, step = size / 2, size / math.sqrt(3) / 2
    left, bottom, right, top = bounds
    # rows are 3 steps apart and 4 steps high, columns 2 halves wide
    rows = np.arange(math.floor(bottom / step / 3) - 2, math.ceil(top / step / 3) + 2)[::-1]
    cols = np.arange(math.floor(left / size) - 1, math.ceil(right / size) + 1)
    row, col = (a.ravel() for a in np.meshgrid(rows, cols, indexing="ij"))
    x = (2 * col + row % 2)[:, None] + np.array([1, 2, 2, 1, 0, 0, 1])
    y = (3 * row)[:, None] + np.array([0, 1, 3, 4, 3, 1, 0])
    return col, row, np.stack([x * half, y * step], axis=2)
