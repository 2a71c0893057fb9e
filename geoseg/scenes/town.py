"""Write a rendered town: image, true footprints, regions and area of interest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from affine import Affine
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from geoseg.errors import ConfigError, OutputError
from geoseg.imagery.source import create_raster, to_cog
from geoseg.records import BoolArray, DoubleArray, GeometryArray
from geoseg.scenes.areas import aoi_polygon, hole_ring, region_polygons
from geoseg.scenes.canvas import signed_distance
from geoseg.scenes.noise import Rect
from geoseg.scenes.paint import Painter

# Banepa, Nepal, where zone 45N is right; any other projected CRS gets the same numbers
_ORIGIN = (354_000.0, 3_057_000.0)
_WINDOW_PX = 1024
_BLOCK_PX = 512
_CHUNK_ROWS = 20_000
_SMALLEST_M2 = 0.1


@dataclass(frozen=True, slots=True)
class TownFiles:
    """Where the files of a scene are."""

    image: Path
    """Cloud optimized GeoTIFF, 3 bands uint8, internal mask."""
    footprints: Path
    """GeoPackage, layer ``footprints``: building_id, roof, area_m2."""
    regions: Path
    """GeoPackage, layer ``regions``: region."""
    aoi: Path
    """GeoPackage, layer ``aoi``."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Settings of a scene and what follows from them."""

    painter: Painter
    width_px: int
    height_px: int
    crs: str
    hole: DoubleArray | None
    origin_px: tuple[int, int] = (0, 0)
    """Column and row of the town's own frame at which the raster begins."""
    offset_m: tuple[float, float] = (0.0, 0.0)
    """East and north by which all lies off its true place."""

    @property
    def gsd_m(self) -> float:
        """Pixel size."""
        return self.painter.gsd_m

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height of the raster."""
        return self.width_px * self.gsd_m, self.height_px * self.gsd_m

    @property
    def transform(self) -> Affine:
        """Map from pixel edges to the CRS."""
        g, (x, y), (east, north) = self.gsd_m, self.origin_px, self.offset_m
        return Affine(g, 0, _ORIGIN[0] + x * g + east, 0, -g, _ORIGIN[1] - y * g + north)

    @property
    def extent_m(self) -> tuple[float, float, float, float]:
        """What the raster shows: x0, y0, x1, y1 in metres below the town's corner."""
        (x, y), (width, height) = self.origin_px, self.size_m
        x0, y0 = x * self.gsd_m, y * self.gsd_m
        return x0, y0, x0 + width, y0 + height

    def to_crs(self, shapes: GeometryArray) -> GeometryArray:
        """Map shapes from metres below the town's corner to the CRS, as the raster shows them."""
        corner = np.add(_ORIGIN, self.offset_m)
        out: GeometryArray = shapely.transform(shapes, lambda xy: xy * (1, -1) + corner)
        return out


def render_town(
    folder: Path,
    *,
    width_px: int = 4096,
    height_px: int = 4096,
    gsd_m: float = 0.13,
    seed: int = 1,
    crs: str = "EPSG:32645",
    density: float = 1.0,
    hole: bool = True,
) -> TownFiles:
    """Render a town seen from the air, of any size, with its true footprints.

    The scene is laid out block by block and painted window by window: memory does not grow with
    the image's height and hardly with its width. While it writes, it needs 3 bytes of free disk
    per pixel beside the image.

    Parameters
    ----------
    folder : Path
        Where the files go; made if it is missing. Files of an earlier call are replaced.
    width_px, height_px : int
        Size of the raster; at least 64 px a side.
    gsd_m : float
        Pixel size, 0.03 to 2 m.
    seed : int
        At least 0. The same seed gives the same files; four neighbouring seeds are four kinds of
        places.
    crs : str
        A projected CRS in metres.
    density : float
        How built-up the scene is, 0 to 3: 0 farmland, 1 a mix, 2 a city.
    hole : bool
        Leave a hole without data.

    Returns
    -------
    TownFiles
        The four files.

    Raises
    ------
    ConfigError
        If a setting is outside its range.
    OutputError
        If the folder cannot be made.
    """
    check_size(width_px, height_px, gsd_m)
    check_content(seed, crs, density)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error}") from error
    ring = hole_ring(width_px * gsd_m, height_px * gsd_m, seed) if hole else None
    scene = Scene(Painter(seed, gsd_m, density), width_px, height_px, crs, ring)
    files = TownFiles(
        folder / "town.tif",
        folder / "footprints.gpkg",
        folder / "regions.gpkg",
        folder / "aoi.gpkg",
    )
    write_image(scene, files.image)
    with fixed_date():
        write_footprints(scene, files.footprints)
        regions = region_polygons(scene.painter.town.net, *scene.size_m)
        names = [f"Ward {k + 1}" for k in range(len(regions))]
        write_layer(scene, files.regions, "regions", regions, {"region": names})
        aoi = np.array([aoi_polygon(*scene.size_m, seed)], object)
        write_layer(scene, files.aoi, "aoi", aoi, {"name": ["area of interest"]})
    return files


def check_size(width_px: int, height_px: int, gsd_m: float) -> None:
    """Refuse sizes outside their range."""
    if min(width_px, height_px) < 64:
        raise ConfigError(
            f"a town of {width_px} x {height_px} px is too small; give at least 64 px a side"
        )
    if not 0.03 <= gsd_m <= 2.0:
        raise ConfigError(f"gsd_m is {gsd_m}; expected 0.03 to 2 metres per pixel")


def check_content(seed: int, crs: str, density: float) -> None:
    """Refuse what the scene cannot be made of or lie in."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected a whole number of at least 0")
    if not (math.isfinite(density) and 0.0 <= density <= 3.0):
        raise ConfigError(f"density is {density}; expected 0 (farmland) to 3 (a city)")
    try:
        parsed = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise ConfigError(f"crs {crs!r} is not known; give for example 'EPSG:32645'") from error
    if not parsed.is_projected or any(a.unit_name != "metre" for a in parsed.axis_info[:2]):
        raise ConfigError(
            f"crs {crs!r} is not a projected CRS in metres; give for example 'EPSG:32645'"
        )


def write_image(scene: Scene, path: Path) -> None:
    """Paint the scene into a tiled GeoTIFF, then turn it into a COG."""
    raw = path.with_name("." + path.name + ".part")
    path.unlink(missing_ok=True)
    try:
        # a small block cache: the default is a share of the machine's memory
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_CACHEMAX=128),
            create_raster(
                raw,
                height=scene.height_px,
                width=scene.width_px,
                bands=3,
                dtype="uint8",
                crs=scene.crs,
                transform=scene.transform,
                photometric="RGB",
                compress="none",
            ) as dataset,
        ):
            _paint_windows(scene, dataset)
        to_cog(raw, path, compress="JPEG", quality=90)
    finally:
        raw.unlink(missing_ok=True)


def _paint_windows(scene: Scene, dataset: DatasetWriter) -> None:
    """Paint and write one window after the other."""
    for y in range(0, scene.height_px, _WINDOW_PX):
        for x in range(0, scene.width_px, _WINDOW_PX):
            width = min(_WINDOW_PX, scene.width_px - x)
            height = min(_WINDOW_PX, scene.height_px - y)
            rect = Rect(x + scene.origin_px[0], y + scene.origin_px[1], width, height)
            pixels, _ = scene.painter.paint(rect)
            window = Window(x, y, width, height)
            if scene.hole is not None:
                valid = valid_pixels(rect, scene.gsd_m, scene.hole)
                pixels[:, ~valid] = 0
                dataset.write_mask(valid, window=window)
            dataset.write(pixels, window=window)


def valid_pixels(rect: Rect, gsd_m: float, hole: DoubleArray) -> BoolArray:
    """Return which pixels of a window lie outside the hole.

    Parameters
    ----------
    rect : Rect
        The window, raster frame.
    gsd_m : float
        Pixel size, metres.
    hole : ndarray
        (n, 2) outline, metres from the raster's corner, y downwards.

    Returns
    -------
    ndarray
        (height, width) bool; a pixel is in the hole if its centre is.
    """
    x, y = rect.columns_m(gsd_m), rect.rows_m(gsd_m)
    (x0, y0), (x1, y1) = hole.min(axis=0), hole.max(axis=0)
    valid = np.ones((rect.height, rect.width), bool)
    near_x = np.flatnonzero((x.ravel() >= x0) & (x.ravel() <= x1))
    near_y = np.flatnonzero((y.ravel() >= y0) & (y.ravel() <= y1))
    if len(near_x) and len(near_y):
        here = np.s_[near_y[0] : near_y[-1] + 1, near_x[0] : near_x[-1] + 1]
        _, inside = signed_distance(hole, x[:, here[1]], y[here[0]])
        valid[here] = ~inside
    return valid


def _footprints(scene: Scene) -> Iterator[tuple[GeometryArray, list[str]]]:
    """Yield the visible footprints block by block, metres, with the shapes of their roofs."""
    extent = shapely.box(*scene.extent_m)
    seen = extent if scene.hole is None else extent - shapely.Polygon(scene.hole)
    town = scene.painter.town
    for cell in town.net.cells_in(scene.extent_m):
        houses = town.block(cell).houses
        if not houses:
            continue
        whole: GeometryArray = np.array([house.polygon for house in houses], object)
        shapely.prepare(seen)
        inside = shapely.contains_properly(seen, whole)
        visible = np.where(inside, whole, shapely.intersection(whole, seen))
        parts, owner = shapely.get_parts(visible, return_index=True)
        keep = (shapely.area(parts) > _SMALLEST_M2) & (shapely.get_dimensions(parts) == 2)
        if keep.any():
            yield parts[keep], [houses[k].roof for k in owner[keep].tolist()]


def write_footprints(scene: Scene, path: Path) -> None:
    """Write the footprints in chunks of bounded size."""
    shapes: list[GeometryArray] = []
    roofs: list[str] = []
    written = 0
    path.unlink(missing_ok=True)

    def flush() -> None:
        """Append what has gathered; the first call makes the layer, empty or not."""
        nonlocal written
        gathered: GeometryArray = np.concatenate(shapes) if shapes else np.zeros(0, object)
        columns = {
            "building_id": np.arange(written + 1, written + 1 + len(gathered), dtype=np.int64),
            "roof": np.array(roofs, object),
            "area_m2": np.round(shapely.area(gathered), 2),
        }
        write_layer(scene, path, "footprints", gathered, columns, append=written > 0)
        written += len(gathered)
        shapes.clear()
        roofs.clear()

    for parts, kinds in _footprints(scene):
        shapes.append(parts)
        roofs.extend(kinds)
        if len(roofs) >= _CHUNK_ROWS:
            flush()
    if roofs or not written:
        flush()


def write_layer(
    scene: Scene,
    path: Path,
    layer: str,
    shapes: GeometryArray,
    columns: Mapping[str, Any],
    *,
    append: bool = False,
) -> None:
    """Write shapes (metres below the town's corner) to a GeoPackage."""
    if not append:
        path.unlink(missing_ok=True)
    kind = "Polygon"
    if (shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON).any():
        kind = "MultiPolygon"
        shapes = np.array([_as_multi(shape) for shape in shapes], object)
    frame = gpd.GeoDataFrame(dict(columns), geometry=scene.to_crs(shapes), crs=scene.crs)
    pyogrio.write_dataframe(
        frame, path, layer=layer, driver="GPKG", append=append, geometry_type=kind
    )


def _as_multi(shape: shapely.Geometry) -> shapely.Geometry:
    """Return a polygon as a multipolygon of one."""
    return shapely.multipolygons([shape]) if shape.geom_type == "Polygon" else shape


@contextmanager
def fixed_date() -> Iterator[None]:
    """Let GeoPackages carry a fixed date, so that the same seed gives the same bytes."""
    option = "OGR_CURRENT_DATE"
    before = pyogrio.get_gdal_config_option(option)
    pyogrio.set_gdal_config_options({option: "2000-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({option: before})
