"""The raster of regions: faster, and never seen in a number."""

import geopandas as gpd
import numpy as np
import pytest
import shapely

from geoseg.errors import ConfigError
from geoseg.objects import lookup
from geoseg.objects.count import RULES, Encoded, RegionCounter, count
from geoseg.objects.lookup import Batch, RegionLookup
from geoseg.objects.regions import (
    ellipsoid_area_m2,
    ground_area_m2,
    pieces_of,
    shared_ground,
    take_apart,
)

UTM = 32645


def ragged(x, y, radius, rng, vertices=40):
    """A star-shaped region with an outline that runs in and out."""
    turn = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    far = radius * rng.uniform(0.5, 1.2, vertices)
    return shapely.Polygon(np.column_stack([x + far * np.cos(turn), y + far * np.sin(turn)]))


def scene(seed=5, n=6000):
    """Ragged regions that overlap, one with a hole, one in two parts; houses and long things."""
    rng = np.random.default_rng(seed)
    polygons = [ragged(*rng.uniform(0, 900, 2), rng.uniform(60, 300), rng) for _ in range(14)]
    polygons.append(shapely.box(200, 200, 700, 700).difference(shapely.box(300, 300, 600, 600)))
    polygons.append(shapely.MultiPolygon([shapely.box(0, 0, 90, 90), shapely.box(800, 0, 900, 50)]))
    polygons += [shapely.Polygon(), shapely.box(0, 900, 1000, 1000), shapely.box(0, 800, 1000, 900)]
    # on a lattice, so that many lie along edges and corners of regions
    at = rng.integers(-10, 105, (n, 2)) * 10.0
    size = np.where(rng.random(n) < 0.02, 300, 10)
    boxes = shapely.box(*at.T, at[:, 0] + size, at[:, 1] + 10)
    boxes[::17] = shapely.buffer(shapely.centroid(boxes[::17]), 7)
    boxes[5] = shapely.Polygon()
    regions = gpd.GeoDataFrame(
        {"name": [f"r{i}" for i in range(len(polygons))]}, geometry=polygons, crs=UTM
    )
    kinds = np.where(rng.random(n) < 0.3, "shed", "house")
    return gpd.GeoDataFrame({"class": kinds}, geometry=boxes, crs=UTM), regions


def encoded(objects, rows):
    part = objects.iloc[rows]
    codes = np.where(part["class"] == "shed", 1, 0)
    return Encoded(
        wkb=shapely.to_wkb(part.geometry.to_numpy()),
        bounds=shapely.bounds(part.geometry.to_numpy()),
        area_m2=part["area_m2"].to_numpy(np.float64),
        kinds=codes,
        classes=("house", "shed"),
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("around", [True, False])
def test_with_and_without_the_raster_every_number_is_the_same(monkeypatch, rule, around):
    objects, regions = scene()
    objects["area_m2"] = ground_area_m2(objects.geometry.to_numpy(), UTM)
    plain = count(objects, regions, rule=rule)
    monkeypatch.setattr(lookup, "RASTER_FROM", 0)
    bounds = tuple(objects.total_bounds) if around else None
    counter = RegionCounter(regions, UTM, rule=rule, around=bounds)
    for start in range(0, len(objects), 700):
        counter.add_encoded(encoded(objects, slice(start, start + 700)))
    got = counter.result()
    assert counter._find()[0]._raster is not None
    for name in plain.columns.drop("geometry"):
        np.testing.assert_array_equal(got[name].to_numpy(), plain[name].to_numpy(), err_msg=name)
    assert got.attrs == plain.attrs
    assert plain["count"].sum() > 1000


def test_the_raster_knows_most_objects_and_is_never_wrong(monkeypatch):
    monkeypatch.setattr(lookup, "RASTER_FROM", 0)
    objects, regions = scene()
    areas = regions.geometry.to_numpy()
    boxes = shapely.box(*shapely.bounds(objects.geometry.to_numpy()).T)
    finder = RegionLookup(areas)
    sets = finder._known.sets_of(shapely.bounds(boxes))
    sure = np.flatnonzero(sets >= 0)
    assert len(sure) > 0.4 * len(boxes)
    n = len(areas)
    for row in sure[::7]:
        members = finder._known.sets[sets[row]]
        inside = {int(m) for m in members if m < n}
        # wholly within these, away from all others
        assert inside == set(np.flatnonzero(shapely.covers(areas, boxes[row])).tolist())
        assert inside == set(np.flatnonzero(shapely.intersects(areas, boxes[row])).tolist())


def test_only_objects_at_an_outline_are_decoded(monkeypatch):
    monkeypatch.setattr(lookup, "RASTER_FROM", 0)
    regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1000, 1000)], crs=UTM)
    at = np.array([[500, 500], [995, 500], [2000, 2000]], float)
    boxes = shapely.box(*(at - 10).T, *(at + 10).T)
    batch = Batch(shapely.bounds(boxes), wkb=shapely.to_wkb(boxes))
    rows, owners, share = RegionLookup(regions.geometry.to_numpy()).shares(batch)
    assert rows.tolist() == [0, 1]
    assert owners.tolist() == [0, 0]
    assert share == pytest.approx([1, 0.75])
    assert [p is not None for p in batch._polygons] == [False, True, False]


def test_an_object_without_area_is_nowhere_however_it_comes(monkeypatch):
    monkeypatch.setattr(lookup, "RASTER_FROM", 0)
    regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1000, 1000)], crs=UTM)
    flat = shapely.Polygon([(500, 500), (510, 500), (520, 500)])
    things = np.array([flat, shapely.box(400, 400, 410, 410), shapely.Polygon()])
    counter = RegionCounter(regions, UTM)
    area = np.array([np.nan, 100.0, np.nan])
    counter.add_encoded(Encoded(shapely.to_wkb(things), shapely.bounds(things), area, None))
    result = counter.result()
    assert result["count"].tolist() == [1]
    assert result.attrs["outside"] == 2
    plain = count(gpd.GeoDataFrame(geometry=things, crs=UTM), regions)
    assert plain["count"].tolist() == [1]
    assert plain.attrs["outside"] == 2


def test_encoded_objects_beyond_the_bounds_are_refused_and_leave_no_trace():
    regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=UTM)
    counter = RegionCounter(regions, UTM, around=(0, 0, 100, 100))
    far = np.array([shapely.box(500, 500, 501, 501)])
    with pytest.raises(ConfigError, match="give bounds that hold all objects"):
        counter.add_encoded(Encoded(shapely.to_wkb(far), shapely.bounds(far), np.ones(1), None))
    assert counter.result().attrs["total"] == 0


# ---------------------------------------------------------------- geometry of regions


def test_pieces_of_a_large_region_make_the_region():
    rng = np.random.default_rng(3)
    large = ragged(0, 0, 1000, rng, vertices=3000)
    holed = large.difference(shapely.buffer(shapely.Point(0, 0), 100, quad_segs=200))
    small = shapely.box(0, 0, 5, 5)
    pieces, rows = pieces_of(np.array([holed, small]), vertices=100)
    assert shapely.get_num_coordinates(pieces).max() <= 100
    areas = np.bincount(rows, weights=shapely.area(pieces))
    assert areas == pytest.approx([holed.area, 25])
    assert shapely.union_all(pieces[rows == 0]).symmetric_difference(holed).area < 1e-6
    assert pieces[rows == 1].tolist() == [small]


def test_a_region_of_many_vertices_counts_as_one_of_few():
    # a square whose edges have a thousand vertices each, cut into pieces, and the plain one
    square = shapely.box(0, 0, 100, 100)
    fine = shapely.segmentize(square, 0.1)
    objects, _ = scene(n=2000)
    results = [
        count(objects, gpd.GeoDataFrame(geometry=[r], crs=UTM), rule="area") for r in (square, fine)
    ]
    assert results[0]["count"].tolist() == pytest.approx(results[1]["count"].tolist(), rel=1e-9)
    assert results[0]["covered_share"].iloc[0] == pytest.approx(
        results[1]["covered_share"].iloc[0], rel=1e-6
    )


def test_small_polygons_are_measured_as_geod_does_anywhere():
    # in UTM, in degrees, across the antimeridian, near the pole, with a hole
    holed = shapely.box(500000, 6000000, 500040, 6000030).difference(
        shapely.box(500010, 6000010, 500020, 6000020)
    )
    degrees = shapely.box(85.3, 27.7, 85.3002, 27.7001)
    seam = shapely.box(829000, 8000000, 829030, 8000020)
    polar = shapely.box(-60, -60, -30, -40)
    for polygon, crs in ((holed, 32633), (degrees, 4326), (seam, 32760), (polar, 3413)):
        one = np.array([polygon], dtype=object)
        assert ground_area_m2(one, crs) == pytest.approx(ellipsoid_area_m2(one, crs), rel=1e-5)
    assert ground_area_m2(np.array([shapely.Polygon(), holed]), 32633)[0] == 0
    assert ground_area_m2(np.zeros(0, object), 32633).tolist() == []


def test_take_apart_leaves_each_place_to_the_lowest_row():
    big = shapely.box(0, 0, 10, 10)
    towns = [shapely.box(1, 1, 3, 3), shapely.box(2, 2, 4, 4)]
    apart = take_apart(np.array([*towns, big]))
    assert shapely.area(apart).tolist() == pytest.approx([4, 3, 93])
    assert shapely.union_all(apart).equals(big)


def test_shared_ground_is_a_share_of_the_ground_not_of_the_sum():
    # two of 2 x 1 that share a half, and one far away: 1 of 5 squares
    boxes = [shapely.box(0, 0, 200, 100), shapely.box(100, 0, 300, 100)]
    far = shapely.box(1000, 0, 1200, 100)
    assert shared_ground(np.array([*boxes, far]), UTM) == pytest.approx(0.2, rel=1e-4)
    assert shared_ground(np.array([boxes[0], far]), UTM) == 0
