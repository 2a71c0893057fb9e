"""Areas, lengths, places and outlines in every CRS, of images and of outputs.

The truth is measured here by itself: edges divided into pieces of a pixel, each a geodesic.
"""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from painted import blob_scene
from runs import job_over
from stubs import Bright, Stub

from geoseg.errors import ConfigError
from geoseg.globe import cut_at_seam, in_degrees, projected, turned
from geoseg.imagery.georef import ground_gsd_m
from geoseg.imagery.placing import Placing, check_target, choose_crs
from geoseg.imagery.source import describe_raster
from geoseg.jobs.pipeline import run_detect

SIZE = 200
TURNED = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +datum=WGS84"
PLACES = {
    "UTM north": ("EPSG:32633", 500_000, 5_500_000, 0.5),
    "UTM south": ("EPSG:32733", 300_000, 6_200_000, 0.5),
    "UTM at the antimeridian": ("EPSG:32701", 170_600, 8_119_000, 1.0),
    "Web Mercator at 70 north": ("EPSG:3857", 1_500_000, 11_000_000, 1.0),
    "Web Mercator south": ("EPSG:3857", -7_000_000, -7_000_000, 1.0),
    "US feet, New York": ("EPSG:2263", 1_000_000, 200_000, 1.0),
    "US feet, NAD27-like": ("EPSG:2225", 6_000_000, 2_000_000, 1.0),
    "degrees": ("EPSG:4326", 85.5, 27.6, 5e-6),
    "degrees at 60 north": ("EPSG:4326", 15.5, 60.6, 5e-6),
    "degrees across the antimeridian": ("EPSG:4326", 180 - 5e-4, -17, 5e-6),
    "degrees west of -180": ("EPSG:4326", -180 - 5e-4, -17, 5e-6),
    "grads": ("EPSG:4807", 2.5, 52, 5e-6),
    "Lambert on grads": ("EPSG:27572", 600_000, 2_400_000, 0.5),
    "a turned pole": (TURNED, 1.0, 1.0, 5e-6),
    "polar north": ("EPSG:3413", 100_000, -300_000, 0.5),
    "on the south pole": ("EPSG:3031", -50, 50, 0.5),
    "LAEA Europe": ("EPSG:3035", 4_500_000, 3_200_000, 0.5),
    "Mollweide": ("ESRI:54009", 5_000_000, 5_000_000, 0.5),
    "custom, no authority": ("+proj=aeqd +lat_0=27.6 +lon_0=85.5 +datum=WGS84", 1000, 1000, 0.5),
    "Krovak": ("EPSG:5514", -700_000, -1_000_000, 0.5),
    "axes to west and south": ("EPSG:2053", 100, 3_000_000, 0.5),
    "Pacific, across the antimeridian": ("EPSG:3832", 3_339_534.7, -1_900_000, 0.5),
}


def image_at(folder: Path, crs: str, x: float, y: float, px: float) -> Path:
    """Write two bright things, one with a hole, the second on the middle column."""
    pixels = np.zeros((1, SIZE, SIZE), np.uint8)
    pixels[0, 50:90, 60:100] = 200
    pixels[0, 120:150, 90:160] = 200
    pixels[0, 130:140, 100:120] = 0
    path = folder / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=SIZE, width=SIZE, dtype="uint8", crs=crs,
        transform=Affine(px, 0, x, 0, -px, y),
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def measured(shape, crs: pyproj.CRS, px: float) -> tuple[float, float]:
    """Return m2 and m of a polygon, its edges divided into pieces of a px."""
    base = in_degrees(crs)
    way = pyproj.Transformer.from_crs(crs, base, always_xy=True)
    area = length = 0.0
    for i, ring in enumerate([shape.exterior, *shape.interiors]):
        xy = shapely.get_coordinates(shapely.segmentize(ring, px))
        a, p = crs.get_geod().polygon_area_perimeter(*way.transform(*xy.T))
        area, length = area + abs(a) * (1 if i == 0 else -1), length + p
    return area, length


def found_in(path: Path, **changes) -> gpd.GeoDataFrame:
    wanted = {"tile_size": 128, "overlap": 32, "supertile_size": 224, "simplify": 0.0}
    return run_detect(job_over(path, **(wanted | changes)), Bright()).objects


def test_what_degrees_are_is_said_by_pyproj():
    """A check of the check: grads become degrees, and a turned pole turns back."""
    lambert = pyproj.CRS("EPSG:27572")
    way = pyproj.Transformer.from_crs(lambert, in_degrees(lambert), always_xy=True)
    # the origin of Lambert zone II: the meridian of Paris, 52 grads
    assert way.transform(600_000, 2_200_000) == pytest.approx((0, 46.8), abs=1e-9)
    turned_pole = pyproj.CRS(TURNED)
    way = pyproj.Transformer.from_crs(turned_pole, in_degrees(turned_pole), always_xy=True)
    assert way.transform(0, 0) == pytest.approx((18, 90 - 39.25), abs=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_areas_and_lengths_are_those_on_the_ellipsoid(tmp_path, place):
    crs, x, y, px = PLACES[place]
    objects = found_in(image_at(tmp_path, crs, x, y, px))
    assert len(objects) == 2
    own = pyproj.CRS.from_user_input(crs)
    for shape, area, perimeter in zip(
        objects.geometry, objects["area_m2"], objects["perimeter_m"], strict=True
    ):
        assert shape.is_valid
        assert shape.exterior.is_ccw
        assert not any(ring.is_ccw for ring in shape.interiors)
        truth = measured(shape, own, px)
        # the worst of them all: 3.1e-6 and 6.3e-6
        assert area == pytest.approx(truth[0], rel=1e-5)
        assert perimeter == pytest.approx(truth[1], rel=1e-5)


def test_a_pixel_has_its_size_at_a_pole():
    """Its west and east ends look to the pole from two sides: azimuths say nothing there."""
    size = 200
    wkt = pyproj.CRS(3031).to_wkt()
    at_pole = ground_gsd_m(wkt, Affine(0.5, 0, -50, 0, -0.5, 50), size, size)
    beside = ground_gsd_m(wkt, Affine(0.5, 0, 950, 0, -0.5, 50), size, size)
    assert at_pole == pytest.approx(beside, rel=1e-4)
    s = np.sqrt(0.5)
    turned_45 = Affine(0.5 * s, 0.5 * s, 0, 0.5 * s, -0.5 * s, 0)
    assert ground_gsd_m(wkt, turned_45, 0, 0) == pytest.approx(at_pole, rel=1e-4)


TARGETS = ["EPSG:4326", "EPSG:3857", "EPSG:32632", "EPSG:2263", "EPSG:2180", "EPSG:3035",
           "EPSG:5514", "EPSG:4807", "+proj=moll", "EPSG:25833"]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_what_goes_to_another_crs_comes_back(tmp_path, target):
    path = image_at(tmp_path, *PLACES["UTM north"])
    here = found_in(path)
    there = found_in(path, dst_crs=target)
    assert there.crs == pyproj.CRS(target)
    assert there.is_valid.all()
    back = pyproj.Transformer.from_crs(there.crs, here.crs, always_xy=True)
    for a, b in zip(here.geometry, there.geometry, strict=True):
        assert b.exterior.is_ccw
        again = shapely.transform(b, lambda xy: np.column_stack(back.transform(*xy.T)))
        # 0.01 px of 0.5 m
        assert shapely.hausdorff_distance(a, again) < 0.005
    assert (here["area_m2"] == there["area_m2"]).all()
    assert (here["perimeter_m"] == there["perimeter_m"]).all()


@pytest.mark.parametrize("target", ["EPSG:4326", "EPSG:3857", "EPSG:3395"])
@pytest.mark.parametrize(
    "place", ["Pacific, across the antimeridian", "degrees across the antimeridian",
              "degrees west of -180"],
)  # fmt: skip
def test_outputs_end_at_the_antimeridian(tmp_path, place, target):
    path = image_at(tmp_path, *PLACES[place])
    objects = found_in(path, dst_crs=target)
    assert objects.geom_type.tolist().count("MultiPolygon") >= 1
    assert objects.is_valid.all()
    parts = objects.geometry.explode()
    width = (parts.bounds["maxx"] - parts.bounds["minx"]) * (
        1 if objects.crs.is_geographic else 1 / 111_000
    )
    assert width.max() < 0.01
    assert np.abs(objects.to_crs(4326).total_bounds[[0, 2]]) == pytest.approx(180, abs=1e-6)
    # the ground is that of the whole outline
    sums = [abs(sum(measured(p, objects.crs, 1e9)[0] for p in g.geoms if not p.is_empty))
            if g.geom_type == "MultiPolygon" else measured(g, objects.crs, 1e9)[0]
            for g in objects.geometry]  # fmt: skip
    assert sums == pytest.approx(objects["area_m2"].tolist(), rel=1e-3)


def test_alone_an_image_in_degrees_takes_its_objects_beyond_180(tmp_path):
    objects = found_in(image_at(tmp_path, *PLACES["degrees across the antimeridian"]))
    assert set(objects.geom_type) == {"Polygon"}
    assert objects.total_bounds[2] > 180


@pytest.mark.parametrize("steps", [
    {"simplify": 2.0}, {"regularize": True}, {"resolve_overlaps": True, "simplify": 1.0},
])  # fmt: skip
@pytest.mark.parametrize("target", ["EPSG:4326", "+proj=moll"])
def test_outlines_stay_valid_whatever_is_done_to_them(tmp_path, target, steps):
    scene = blob_scene(11, size=300, count=60, large=0)
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=2, height=300, width=300, dtype="uint16",
        crs="EPSG:32633", transform=Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000),
    ) as file:  # fmt: skip
        file.write(scene.pixels)
    objects = run_detect(job_over(path, dst_crs=target, **steps), Stub()).objects
    assert len(objects) > 40
    assert objects.is_valid.all()
    assert not objects.is_empty.any()
    assert np.isfinite(objects[["area_m2", "perimeter_m"]].to_numpy()).all()
    assert all(shape.exterior.is_ccw for shape in objects.geometry)


def test_a_long_edge_keeps_its_course():
    """Straight for 80 km in UTM, an edge along a parallel leaves the chord in degrees by 200 m."""
    placing = Placing(
        Affine(10, 0, 500_000, 0, -10, 6_700_000),
        pyproj.CRS(32633).to_wkt(),
        pyproj.CRS(4326).to_wkt(),
    )
    long = placing.in_image_crs([shapely.box(0, 0, 8000, 100)])
    moved = placing.to_output(long)
    back = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
    dense = shapely.segmentize(moved, 1e-3)
    again = shapely.transform(dense, lambda xy: np.column_stack(back.transform(*xy.T)))
    # 0.01 px of 10 m
    assert shapely.hausdorff_distance(again[0], long[0]) < 0.1 * 1.05
    bare = shapely.transform(
        long, lambda xy: np.column_stack(back.transform(*xy.T, direction="INVERSE"))
    )
    chord = shapely.transform(
        shapely.segmentize(bare, 1e-3), lambda xy: np.column_stack(back.transform(*xy.T))
    )
    assert shapely.hausdorff_distance(chord[0], long[0]) > 100


@pytest.mark.parametrize("south", [False, True])
def test_a_polygon_over_a_pole_holds_the_pole(tmp_path, south):
    crs = pyproj.CRS(3031 if south else 3413)
    cap = shapely.Point(3000, -2000).buffer(10_000)
    annulus = cap.difference(shapely.Point(0, 0).buffer(1000))
    beside = shapely.box(20_000, 20_000, 21_000, 21_000)
    corner = shapely.box(0, 0, 5000, 5000)
    table = gpd.GeoDataFrame(geometry=[cap, annulus, beside, corner], crs=crs)
    table.to_parquet(tmp_path / "caps.parquet")
    from geoseg.outputs.tables import write_table

    back = gpd.read_file(write_table(tmp_path / "caps.geojson", table, layer="caps"))
    assert back.is_valid.all()
    lat = -90 if south else 90
    inside = [shape.distance(shapely.Point(-100, lat)) == 0 for shape in back.geometry]
    assert inside == [True, False, False, False]
    # in the cylinder that keeps areas, edges are straight and the pole is a line
    equal = pyproj.Transformer.from_crs(4326, "+proj=cea +datum=WGS84", always_xy=True)
    plane = shapely.transform(
        shapely.segmentize(back.geometry.to_numpy(), 0.05),
        lambda xy: np.column_stack(equal.transform(*xy.T)),
    )
    laea = f"+proj=laea +lat_0={lat} +lon_0=0 +datum=WGS84"
    dense = gpd.GeoSeries(shapely.segmentize(table.geometry.to_numpy(), 10), crs=crs)
    truth = shapely.area(dense.to_crs(laea).to_numpy())
    assert shapely.area(plane) == pytest.approx(truth, rel=1e-3)


def test_geojson_is_that_of_the_rfc(tmp_path):
    path = image_at(tmp_path, *PLACES["Pacific, across the antimeridian"])
    out = tmp_path / "o.geojson"
    found_in(path, output=out, dst_crs="EPSG:3857", report=False)
    text = json.loads(out.read_text(encoding="utf-8"))
    assert "crs" not in text
    shapes = [feature["geometry"] for feature in text["features"]]
    assert {shape["type"] for shape in shapes} == {"Polygon", "MultiPolygon"}
    for shape in shapes:
        several = shape["type"] == "MultiPolygon"
        for shell, *holes in shape["coordinates"] if several else [shape["coordinates"]]:
            assert shapely.LinearRing(shell).is_ccw
            assert not any(shapely.LinearRing(hole).is_ccw for hole in holes)
            lon = np.array(shell)[:, 0]
            assert np.abs(lon).max() <= 180
            assert np.ptp(lon) < 1e-3
            assert np.array_equal(np.round(shell, 7), shell)


def test_a_crs_may_be_a_file(tmp_path):
    path = tmp_path / "out.prj"
    path.write_text(pyproj.CRS(32632).to_wkt("WKT1_ESRI"), encoding="utf-8")
    assert choose_crs(str(path)).equals(pyproj.CRS(32632), ignore_axis_order=True)
    path.write_text("no CRS", encoding="utf-8")
    with pytest.raises(ConfigError, match="no CRS that PROJ knows"):
        choose_crs(str(path))
    path.write_text(" " * 70_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="too large for a CRS"):
        choose_crs(str(path))


def test_what_is_known_of_a_datum_is_told(tmp_path):
    info = describe_raster(image_at(tmp_path, *PLACES["UTM north"]))
    assert check_target([info], pyproj.CRS(4326)) == ()
    assert check_target([info, info], pyproj.CRS(25833)) == ()
    (note,) = check_target([info], pyproj.CRS(4267))
    assert "no datum shift from WGS 84 / UTM zone 33N to NAD27" in note
    (note,) = check_target([info], pyproj.CRS("+proj=longlat +ellps=bessel"))
    assert "no datum shift" in note


def test_an_image_with_heights_in_its_crs_gives_outlines_without(tmp_path):
    path = image_at(tmp_path, "EPSG:32633+5773", 500_000, 5_500_000, 0.5)
    objects = found_in(path)
    assert objects.crs == pyproj.CRS(32633)
    assert objects["area_m2"].tolist() == pytest.approx([400.2, 475.4], abs=0.2)


def test_rings_are_turned_and_nothing_else():
    given = np.array([
        shapely.Polygon([(0, 0), (0, 9), (9, 9), (9, 0)], [[(1, 1), (2, 1), (2, 2)]]),
        shapely.box(0, 0, 1, 1), shapely.Polygon(),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1, ccw=False), shapely.box(2, 2, 3, 3)]),
    ], dtype=object)  # fmt: skip
    out = turned(given)
    assert out[1] is given[1]
    assert shapely.equals(out, given)[[0, 1, 3]].all()
    for shape in shapely.get_parts(out[[0, 1, 3]]):
        assert shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)
    assert len(turned(np.zeros(0, object))) == 0


def test_cutting_keeps_the_ground():
    rng = np.random.default_rng(3)
    middles = np.c_[rng.uniform(150, 210, 200), rng.uniform(-60, 60, 200)]
    shapes = shapely.buffer(shapely.points(middles), rng.uniform(1, 25, 200), quad_segs=4)
    wrapped = shapely.transform(shapes, lambda xy: np.c_[(xy[:, 0] + 180) % 360 - 180, xy[:, 1]])
    cut = cut_at_seam(wrapped)
    assert shapely.is_valid(cut).all()
    assert shapely.area(cut) == pytest.approx(shapely.area(shapes), rel=1e-9)
    bounds = shapely.bounds(cut)
    assert bounds[:, 0].min() == -180
    assert bounds[:, 2].max() == 180
    # halves meet again where the map does not end
    pacific = projected(cut, pyproj.CRS(4326), pyproj.CRS(3832), 1e-6)
    assert set(shapely.get_type_id(pacific)) == {3}
