from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine

from geoseg.errors import ConfigError, SourceError
from geoseg.imagery.georef import (
    WorkingGrid,
    geodesic_area_perimeter,
    ground_gsd_m,
    polygons_to_crs,
    reproject_polygons,
    working_grid,
)
from geoseg.imagery.source import describe_raster

WGS84 = pyproj.Geod(ellps="WGS84")


def north_up(x: float, y: float, res: float) -> Affine:
    return Affine(res, 0, x, 0, -res, y)


GSD = [
    # CRS, transform, expected metres, why
    (
        "EPSG:32633",
        north_up(500_000, 5_500_000, 0.1),
        0.1 / 0.9996,
        "scale at the central meridian",
    ),
    ("EPSG:3857", north_up(1_000_000, 8_399_737.9, 1.0), 0.501, "at 60 north: half a unit"),
    ("EPSG:2263", north_up(985_000, 195_000, 1.0), 0.3048, "US survey feet"),
    ("EPSG:4326", north_up(10, 0.00001, 1e-5), 1.109, "degrees on the equator: 1.113 x 1.106 m"),
    (
        "EPSG:32633",
        Affine.translation(500_000, 5_500_000) @ Affine.rotation(25) @ Affine.scale(0.1, -0.1),
        0.1 / 0.9996,
        "rotated",
    ),
    ("EPSG:32633", Affine(0.1, 0, 500_000, 0, 0.1, 5_500_000), 0.1 / 0.9996, "south-up"),
    (
        "EPSG:32633",
        Affine(0.2, 0.3, 500_000, 0, -0.05, 5_500_000),
        0.1 / 0.9996,
        "sheared, not square",
    ),
    ("EPSG:32660", north_up(720_000, 0, 10), 10.003, "beside the antimeridian"),
]


@pytest.mark.parametrize(("crs", "transform", "expected", "why"), GSD, ids=[g[3] for g in GSD])
def test_ground_gsd_is_metres_on_the_ground(crs, transform, expected, why):
    assert ground_gsd_m(crs, transform, 2, 2) == pytest.approx(expected, rel=2e-3), why


def test_ground_gsd_is_measured_at_the_centre():
    # 40 degrees high: the raster's top and centre differ much
    transform = north_up(0, 80, 0.01)
    centre = ground_gsd_m("EPSG:4326", transform, 1000, 4000)
    assert centre == pytest.approx(ground_gsd_m("EPSG:4326", north_up(5, 60, 0.01), 1, 1), rel=1e-3)


def test_ground_gsd_of_a_crs_off_the_earth_is_refused():
    with pytest.raises(SourceError, match=r"no relation to the earth|no ellipsoid"):
        ground_gsd_m('LOCAL_CS["site",UNIT["metre",1]]', Affine.scale(2), 9, 9)
    with pytest.raises(SourceError, match="not understood"):
        ground_gsd_m("EPSG:no", Affine.scale(2), 9, 9)


@pytest.fixture
def info(make_raster):
    raster = describe_raster(make_raster())
    return replace(raster, height=1000, width=2001, gsd_m=0.132)


@pytest.mark.parametrize("gsd_m", [None, 0.132, 0.1345, 0.1297])
def test_native_or_close_to_it_is_not_resampled(info, gsd_m):
    grid = working_grid(info, gsd_m)
    assert grid == WorkingGrid(info.transform, 1000, 2001, 1.0, 1.0, 0.132)
    assert grid.is_native


@pytest.mark.parametrize("gsd_m", [0.15, 0.5, 0.05, 1000.0])
def test_the_working_grid_covers_the_raster_exactly(info, gsd_m):
    grid = working_grid(info, gsd_m)
    assert grid.width == max(1, round(2001 * 0.132 / gsd_m))
    assert grid.scale_x == 2001 / grid.width
    corner, grid_corner = info.transform @ (2001, 1000), grid.transform @ (grid.width, grid.height)
    assert grid_corner == pytest.approx(corner, abs=1e-6)
    assert grid.transform @ (0, 0) == info.transform @ (0, 0)
    if gsd_m < 1:
        assert grid.gsd_m == pytest.approx(gsd_m, rel=1 / 200)
        assert not grid.is_native


@pytest.mark.parametrize("gsd_m", [0, -0.1, float("nan"), float("inf")])
def test_a_gsd_that_is_none_is_refused(info, gsd_m):
    with pytest.raises(ConfigError, match="--gsd is"):
        working_grid(info, gsd_m)


# --- polygons ----------------------------------------------------------------------------------


def test_polygons_to_crs_goes_through_the_whole_affine():
    transform = Affine(0.2, 0.3, 100, 0.1, -0.05, 200)
    square = shapely.box(1, 2, 3, 5)
    (moved,) = polygons_to_crs([square], transform)
    expected = [transform @ point for point in square.exterior.coords]
    assert np.allclose(shapely.get_coordinates(moved), expected)
    assert moved.area == pytest.approx(square.area * abs(transform.determinant))
    (back,) = polygons_to_crs([moved], ~transform)
    assert back.equals_exact(square, 1e-9)
    assert polygons_to_crs([], transform).shape == (0,)


def test_reproject_polygons_keeps_x_first():
    (there,) = reproject_polygons([shapely.box(15, 49, 15.1, 49.1)], "EPSG:4326", "EPSG:32633")
    assert there.bounds[0] == pytest.approx(500_000, abs=5)
    (back,) = reproject_polygons([there], "EPSG:32633", "EPSG:4326")
    assert back.equals_exact(shapely.box(15, 49, 15.1, 49.1), 1e-8)
    with pytest.raises(SourceError, match="have no place in"):
        reproject_polygons([shapely.box(0, 0, 1, 200)], "EPSG:4326", "EPSG:3857")


def blobs(x: float, y: float, size: float, n: int = 30, seed: int = 3) -> list[shapely.Polygon]:
    """Irregular polygons of 20 to 30 vertices, each with a hole."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(20, 30)))
        radius = size * rng.uniform(0.6, 1, len(angle))
        centre = np.array([x, y]) + rng.uniform(-20, 20, 2) * size
        ring = np.column_stack([np.cos(angle), np.sin(angle)]) * radius[:, None]
        out.append(shapely.Polygon(ring + centre, [ring[::-1] * 0.3 + centre]))
    return out


PLACES = [
    # CRS, x, y, radius in CRS units
    ("EPSG:32633", 480_000, 5_500_000, 10),
    ("EPSG:32633", 480_000, 5_500_000, 600),
    ("EPSG:32633", 480_000, 5_500_000, 20_000),
    ("EPSG:3857", 1_000_000, 8_399_737, 10),
    ("EPSG:2263", 985_000, 195_000, 30),
    ("EPSG:4326", 85.5, 27.6, 1e-4),
    ("EPSG:32660", 833_978, 10, 10),
    ("EPSG:3031", 100_000, 300, 10),
]


@pytest.mark.parametrize(("crs", "x", "y", "radius"), PLACES)
def test_areas_and_perimeters_are_those_of_the_geodesics(crs, x, y, radius):
    polygons = blobs(x, y, radius)
    lonlat = reproject_polygons(polygons, crs, pyproj.CRS(crs).geodetic_crs.to_wkt())
    geod = pyproj.CRS(crs).get_geod()
    expected = []
    for polygon in lonlat:
        rings = [polygon.exterior, *polygon.interiors]
        parts = [geod.polygon_area_perimeter(*ring.coords.xy) for ring in rings]
        expected.append((abs(parts[0][0]) - abs(parts[1][0]), parts[0][1] + parts[1][1]))
    area, perimeter = geodesic_area_perimeter(polygons, crs)
    assert np.allclose(area, [e[0] for e in expected], rtol=2e-6, atol=1e-4)
    assert np.allclose(perimeter, [e[1] for e in expected], rtol=1e-9)


def test_the_antimeridian_is_no_border():
    across = shapely.box(179.999, 10, 180.001, 10.002)
    wrapped = shapely.Polygon(
        [(179.999, 10), (-179.999, 10), (-179.999, 10.002), (179.999, 10.002)]
    )
    inland = shapely.box(20.999, 10, 21.001, 10.002)
    area, perimeter = geodesic_area_perimeter([across, wrapped, inland], "EPSG:4326")
    assert area[:2] == pytest.approx([area[2]] * 2, rel=1e-9)
    assert perimeter[:2] == pytest.approx([perimeter[2]] * 2, rel=1e-9)


def test_a_thousandth_of_a_degree_at_50_north_is_7974_square_metres():
    area, perimeter = geodesic_area_perimeter([shapely.box(10, 50, 10.001, 50.001)], "EPSG:4326")
    assert area[0] == pytest.approx(7974, abs=1)
    assert perimeter[0] == pytest.approx(2 * (71.7 + 111.23), abs=0.1)


def test_multipolygons_and_empty_ones_are_measured_too():
    a, b = shapely.box(0, 0, 10, 10), shapely.box(50, 50, 60, 70)
    a, b = polygons_to_crs([a, b], Affine.translation(500_000, 5_000_000))
    area, perimeter = geodesic_area_perimeter(
        [shapely.MultiPolygon([a, b]), shapely.Polygon(), a], "EPSG:32633"
    )
    assert area == pytest.approx([300 / 0.9996**2, 0, 100 / 0.9996**2], rel=1e-6)
    assert perimeter == pytest.approx([100 / 0.9996, 0, 40 / 0.9996], rel=1e-6)
    area, perimeter = geodesic_area_perimeter([], "EPSG:32633")
    assert area.shape == perimeter.shape == (0,)


def test_polygons_off_the_earth_are_refused():
    with pytest.raises(SourceError, match="do not lie on the earth"):
        geodesic_area_perimeter([shapely.box(0, 0, 1e12, 1e12)], "EPSG:32633")


def test_areas_of_many_objects_are_quick():
    polygons = blobs(480_000, 5_500_000, 10, n=200) * 25
    start = time.perf_counter()
    geodesic_area_perimeter(polygons, "EPSG:32633")
    # 0.1 s on a slow core; the bound only tells a loop over vertices from a vectorized call
    assert time.perf_counter() - start < 3


def test_a_small_file_is_not_enlarged_without_end(info):
    assert working_grid(info, info.gsd_m / 999).height == 999 * info.height
    with pytest.raises(ConfigError, match=r"would enlarge pixels of .* 2,000 times; at most 1000"):
        working_grid(info, info.gsd_m / 2000)
