"""Counts per region: every object once, every region kept, areas on the ellipsoid."""

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.count import (
    RULES,
    RegionCounter,
    count,
    ellipsoid_area_m2,
    overlapping_pairs,
    polygonal,
)

UTM = 32645
BOW_TIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])


def square(x, y, size=2.0):
    return shapely.box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def objects_at(*points, size=2.0, crs=UTM, **columns):
    return gpd.GeoDataFrame(columns, geometry=[square(x, y, size) for x, y in points], crs=crs)


def regions_of(*polygons, crs=UTM, **columns):
    columns.setdefault("name", [f"r{i}" for i in range(len(polygons))])
    return gpd.GeoDataFrame(columns, geometry=list(polygons), crs=crs)


GRID = regions_of(shapely.box(0, 0, 10, 10), shapely.box(10, 0, 20, 10), shapely.box(20, 0, 30, 10))


def test_point_rule_counts_each_object_once_and_keeps_empty_regions():
    # the third lies mostly in region 1, the last outside all
    result = count(objects_at((5, 5), (6, 5), (10.5, 5), (50, 50)), GRID)
    assert result["count"].tolist() == [2, 1, 0]
    assert result["count"].dtype == np.int64
    assert result["name"].tolist() == ["r0", "r1", "r2"]
    assert result.attrs["outside"] == 1
    assert result.attrs["total"] == 4
    assert result.attrs["region_field"] == "name"
    assert result["imaged_share"].isna().all()
    assert result.crs == UTM


def test_a_point_on_a_shared_edge_goes_to_the_lowest_row():
    on_edge = objects_at((10, 5))
    assert count(on_edge, GRID)["count"].tolist() == [1, 0, 0]
    assert count(on_edge, GRID.iloc[::-1])["count"].tolist() == [0, 1, 0]


def test_overlapping_regions_count_an_object_once_and_say_so():
    regions = regions_of(shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10))
    objects = objects_at((7, 5), (12, 5))
    for rule in ("point", "area"):
        result = count(objects, regions, rule=rule)
        assert result["count"].tolist() == [1, 1]
        assert result.attrs["overlapping"] == [(0, 1)]
        assert result.attrs["shared"] == 0
    result = count(objects, regions, rule="intersects")
    assert result["count"].tolist() == [1, 2]
    assert result.attrs["shared"] == 1


def test_touching_regions_do_not_overlap():
    assert count(objects_at((5, 5)), GRID).attrs["overlapping"] == []


def test_area_rule_gives_shares():
    # a 2 m square at x = 9.5: 1.5 of its 2 m in region 0; one at x = 0: half outside
    result = count(objects_at((9.5, 5), (0, 5)), GRID, rule="area")
    assert result["count"].to_numpy() == pytest.approx([0.75 + 0.5, 0.25, 0])
    assert result.attrs["outside"] == pytest.approx(0.5)


def test_intersects_rule_counts_in_each_region_met():
    result = count(objects_at((10, 5), (25, 5), (90, 5)), GRID, rule="intersects")
    assert result["count"].tolist() == [1, 1, 1]
    assert result.attrs["outside"] == 1


def test_classes_get_a_column_each_only_when_there_are_several():
    objects = objects_at((5, 5), (15, 5), (16, 5), **{"class": ["car", "roof", "roof"]})
    result = count(objects, GRID)
    assert result["count_car"].tolist() == [1, 0, 0]
    assert result["count_roof"].tolist() == [0, 2, 0]
    one = objects_at((5, 5), **{"class": ["roof"]})
    assert "count_roof" not in count(one, GRID).columns
    wanted = count(one, GRID, classes=["car", "roof"])
    assert wanted["count_car"].tolist() == [0, 0, 0]


def test_empty_objects_give_zeros():
    empty = gpd.GeoDataFrame({"class": []}, geometry=[], crs=UTM)
    for rule in ("point", "area", "intersects"):
        result = count(empty, GRID, rule=rule)
        assert result["count"].tolist() == [0, 0, 0]
        assert result["density_km2"].tolist() == [0, 0, 0]
        assert result.attrs["outside"] == 0


def test_no_regions_leave_all_objects_outside():
    result = count(objects_at((5, 5)), GRID.iloc[:0])
    assert len(result) == 0
    assert result.attrs["outside"] == 1


def test_regions_in_another_crs_are_reprojected_and_come_back_as_they_were():
    lonlat = regions_of(shapely.box(85.50, 27.60, 85.52, 27.65), crs=4326)
    centre = gpd.GeoSeries([shapely.Point(85.51, 27.625)], crs=4326).to_crs(UTM)[0]
    result = count(objects_at((centre.x, centre.y)), lonlat)
    assert result["count"].tolist() == [1]
    assert result.crs == 4326
    assert result.geometry.iloc[0].equals(lonlat.geometry.iloc[0])


def test_a_long_straight_edge_keeps_its_course_when_reprojected():
    # the edge is the parallel of 60 N over 3 degrees; its chord in UTM lies 1.9 km off in the middle
    region = regions_of(shapely.box(13.5, 59.5, 16.5, 60), crs=4326)
    at = gpd.GeoSeries.from_xy([15, 15], [59.999, 60.001], crs=4326).to_crs(32633)
    result = count(objects_at(*[(p.x, p.y) for p in at], crs=32633), region)
    assert result["count"].tolist() == [1]


@pytest.mark.parametrize("broken", ["objects", "regions"])
def test_missing_crs_is_refused(broken):
    objects = objects_at((5, 5), crs=None if broken == "objects" else UTM)
    regions = GRID.set_crs(None, allow_override=True) if broken == "regions" else GRID
    with pytest.raises(RegionError, match=f"the {broken} have no CRS"):
        count(objects, regions)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="point, area, intersects"):
        count(objects_at((5, 5)), GRID, rule="within")
    with pytest.raises(RegionError, match="no field 'ward'; they have: name"):
        count(objects_at((5, 5)), GRID, region_field="ward")


def test_invalid_and_empty_regions_are_repaired_and_reported():
    regions = regions_of(BOW_TIE, None, shapely.Point(1, 1), shapely.box(20, 0, 30, 10))
    result = count(objects_at((5, 8), (1, 5), (8, 5), (25, 5), size=0.5), regions)
    # the bow tie is two triangles, left and right; above its crossing lies nothing
    assert result["count"].tolist() == [2, 0, 0, 1]
    assert result.attrs["repaired"] == 1
    assert result.attrs["empty"] == 2
    assert result.attrs["outside"] == 1
    assert np.isnan(result["density_km2"].iloc[1])


def test_fields_of_the_user_survive_even_with_our_names():
    regions = GRID.assign(Count=[7, 8, 9], density_km2=1.0, density_km2_given=2.0)
    result = count(objects_at((5, 5)), regions)
    assert result["Count_given"].tolist() == [7, 8, 9]
    assert result["density_km2_given"].tolist() == [2.0] * 3
    assert result["density_km2_given_"].tolist() == [1.0] * 3
    folded = [c.casefold() for c in result.columns]
    assert len(set(folded)) == len(folded)
    assert result["count"].tolist() == [1, 0, 0]
    again = count(objects_at((5, 5)), result)
    assert again["count"].tolist() == [1, 0, 0]


def test_index_of_the_regions_is_kept_even_if_it_repeats():
    regions = GRID.set_axis(["a", "b", "a"])
    result = count(objects_at((25, 5)), regions)
    assert result.index.tolist() == ["a", "b", "a"]
    assert result["count"].tolist() == [0, 0, 1]


def test_areas_are_measured_on_the_ellipsoid():
    # FACTS: a box of 1e-3 degrees at 50 N holds 7,974 m2
    box = shapely.box(10, 50, 10.001, 50.001)
    assert ellipsoid_area_m2(np.array([box]), 4326)[0] == pytest.approx(7974, abs=1)
    mercator = gpd.GeoSeries([box], crs=4326).to_crs(3857)
    assert ellipsoid_area_m2(mercator.to_numpy(), 3857)[0] == pytest.approx(7974, abs=1)
    result = count(objects_at((5, 5)), regions_of(box, crs=4326))
    assert result["region_area_km2"].iloc[0] == pytest.approx(0.007974, abs=1e-6)


def test_holes_are_subtracted_whatever_the_ring_direction():
    shell, hole = shapely.box(10, 50, 10.01, 50.01), shapely.box(10.002, 50.002, 10.004, 50.004)
    holed = shapely.Polygon(shell.exterior.coords, [hole.exterior.coords])
    reverse = shapely.Polygon(shell.exterior.coords, [list(hole.exterior.coords)[::-1]])
    geod = pyproj.Geod(ellps="WGS84")
    expected = abs(geod.geometry_area_perimeter(shell)[0]) - abs(
        geod.geometry_area_perimeter(hole)[0]
    )
    got = ellipsoid_area_m2(np.array([holed, reverse]), 4326)
    assert got == pytest.approx([expected, expected], rel=1e-9)


def test_density_is_count_over_area():
    utm_box = regions_of(shapely.box(500000, 3000000, 501000, 3001000))
    result = count(objects_at((500500, 3000500), (500600, 3000500)), utm_box)
    # scale 0.9996 on the central meridian: the ground is 1.0008 km2
    assert result["region_area_km2"].iloc[0] == pytest.approx(1 / 0.9996**2, rel=1e-4)
    assert result["density_km2"].iloc[0] == pytest.approx(2 * 0.9996**2, rel=1e-4)


def test_imaged_share():
    imaged = gpd.GeoDataFrame(
        geometry=[shapely.box(0, 0, 15, 10), shapely.box(0, 0, 5, 9)], crs=UTM
    )
    shares = [1, 0.5, 0]
    for given_area in (imaged, imaged.geometry, imaged.union_all(), imaged.to_crs(4326)):
        result = count(objects_at((5, 5)), GRID, imaged=given_area)
        assert result["imaged_share"].to_numpy() == pytest.approx(shares, abs=1e-6)
    with pytest.raises(RegionError, match="imaged area has no CRS"):
        count(objects_at((5, 5)), GRID, imaged=imaged.set_crs(None, allow_override=True))


def test_polygonal_keeps_only_area():
    mixed = shapely.GeometryCollection(
        [shapely.Point(0, 0), shapely.MultiPolygon([square(0, 0), square(9, 9)])]
    )
    got, repaired = polygonal([mixed, None, shapely.LineString([(0, 0), (1, 1)]), square(0, 0)])
    assert shapely.area(got).tolist() == [8, 0, 0, 4]
    assert repaired == 0


boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes, max_size=12), st.lists(boxes, min_size=1, max_size=6))
def test_property_counts_and_outside_make_all_objects(things, zones):
    """Against a loop over regions and objects that knows nothing of trees."""
    objects = gpd.GeoDataFrame(
        geometry=[shapely.box(x, y, x + w, y + h) for x, y, w, h in things], crs=UTM
    )
    regions = regions_of(*[shapely.box(x, y, x + w, y + h) for x, y, w, h in zones])
    expected = [0] * len(zones)
    for thing in objects.geometry:
        for row, zone in enumerate(regions.geometry):
            if zone.intersects(thing.representative_point()):
                expected[row] += 1
                break
    result = count(objects, regions)
    assert result["count"].tolist() == expected
    assert result["count"].sum() + result.attrs["outside"] == len(things)
    shares = count(objects, regions, rule="area")
    assert shares["count"].sum() + shares.attrs["outside"] == pytest.approx(len(things))
    covered = sum(
        t.intersection(regions.geometry.union_all()).area / t.area for t in objects.geometry
    )
    assert shares["count"].sum() == pytest.approx(covered)
    pairs = [
        (i, j)
        for i in range(len(zones))
        for j in range(i + 1, len(zones))
        if regions.geometry[i].intersection(regions.geometry[j]).area > 0
    ]
    assert overlapping_pairs(regions.geometry.to_numpy()) == pairs


# ---------------------------------------------------------------- table by table


def town(n=400, seed=3):
    """Overlapping triangles of two classes around and in regions that overlap."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 120, (n, 1, 2)) + rng.uniform(-6, 6, (n, 3, 2))
    objects = gpd.GeoDataFrame(
        {"class": np.where(rng.random(n) < 0.3, "tree", "roof")},
        geometry=shapely.polygons(corners),
        crs=UTM,
    )
    boxes = [shapely.box(x, y, x + 45, y + 37) for x in (0, 40, 71) for y in (0, 30, 80)]
    return objects, regions_of(*boxes, BOW_TIE, None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1, 7, 150, 1000])
def test_counting_in_parts_gives_the_same_numbers_to_the_last_bit(rule, size):
    objects, regions = town()
    imaged = shapely.box(0, 0, 60, 200)
    whole = count(objects, regions, rule=rule, imaged=imaged)
    counter = RegionCounter(regions, UTM, rule=rule, around=tuple(objects.total_bounds))
    for start in range(0, len(objects), size):
        counter.add(objects.iloc[start : start + size])
    got = counter.result(imaged)
    assert got.columns.tolist() == whole.columns.tolist()
    for name in got.columns.drop("geometry"):
        assert got[name].dtype == whole[name].dtype
        np.testing.assert_array_equal(got[name].to_numpy(), whole[name].to_numpy())
    assert got.attrs == whole.attrs
    assert {"count_tree", "count_roof"} <= set(got.columns)
    assert got.attrs["outside"] > 0
    # to ask does not end the counting
    counter.add(objects)
    assert counter.result()["count"].tolist() == (2 * whole["count"]).tolist()


def test_classes_are_those_seen_in_any_part_or_given():
    roof, tree = (objects_at((5, 5), **{"class": [kind]}) for kind in ("roof", "tree"))
    counter = RegionCounter(GRID, UTM)
    assert "count_roof" not in counter.result().columns
    counter.add(roof)
    assert "count_roof" not in counter.result().columns
    counter.add(tree)
    assert counter.result()[["count_roof", "count_tree"]].iloc[0].tolist() == [1, 1]
    # nothing found at all: the columns are still those of the model
    empty = RegionCounter(GRID, UTM, classes=["roof", "tree"]).result()
    assert empty[["count", "count_roof", "count_tree"]].to_numpy().tolist() == [[0, 0, 0]] * 3
    assert empty.attrs["total"] == empty.attrs["outside"] == 0


def test_a_part_in_another_crs_is_brought_to_the_first():
    counter = RegionCounter(GRID, UTM)
    counter.add(objects_at((5, 5), (15, 5)))
    counter.add(objects_at((5, 5), (25, 5)).to_crs(4326))
    assert counter.result()["count"].tolist() == [2, 1, 1]
    with pytest.raises(RegionError, match="the objects have no CRS"):
        counter.add(objects_at((5, 5), crs=None))


def test_objects_beyond_the_bounds_that_were_told_are_refused():
    world = regions_of(shapely.box(-180, -90, 180, 90), crs=4326)
    counter = RegionCounter(world, UTM, around=(0, 0, 1000, 1000))
    counter.add(objects_at((500, 500)))
    with pytest.raises(ConfigError, match="give bounds that hold all objects"):
        counter.add(objects_at((500, 1500)))
    assert counter.result()["count"].tolist() == [1]


# ---------------------------------------------------------------- regions far larger than the town

EARTH_KM2 = 510_065_622
WORLD = shapely.box(-180, -90, 180, 90)


def village(x, y, crs, n=5):
    return objects_at(*[(x + 30 * i, y + 20 * i) for i in range(n)], size=10, crs=crs)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "region",
    [WORLD, shapely.box(68, 6, 98, 36), shapely.box(-180, 0, 180, 90), shapely.box(0, 0, 360, 90)],
)
def test_regions_as_large_as_the_earth_or_a_country_count_all(rule, region):
    objects = village(330000, 3070000, UTM)
    result = count(objects, regions_of(region, crs=4326), rule=rule)
    assert result["count"].tolist() == [5]
    assert result.attrs["outside"] == 0
    assert result.geometry.iloc[0].equals(region)
    area_km2 = ellipsoid_area_m2(np.array([region]), 4326)[0] / 1e6
    assert result["density_km2"].iloc[0] == pytest.approx(5 / area_km2)


def test_a_region_on_the_other_side_of_the_earth_counts_nothing():
    objects = village(330000, 3070000, UTM)
    far = regions_of(shapely.box(-100, -40, -90, -20), shapely.box(-180, -90, 80, 90), crs=4326)
    assert count(objects, far)["count"].tolist() == [0, 0]


def test_the_edge_of_a_large_region_still_runs_where_it_did():
    # the meridian of 85.3 E cuts the village; the region reaches far beyond
    at = gpd.GeoSeries.from_xy([85.2999, 85.3001], [27.7, 27.7], crs=4326).to_crs(UTM)
    objects = objects_at(*[(p.x, p.y) for p in at])
    regions = regions_of(
        shapely.box(-180, -90, 85.3, 90), shapely.box(85.3, -90, 180, 90), crs=4326
    )
    assert count(objects, regions)["count"].tolist() == [1, 1]
    assert count(objects, regions.iloc[1:])["count"].tolist() == [1]


@pytest.mark.parametrize(
    ("x", "y", "crs"),
    [
        (829000, 8000000, 32760),  # across the antimeridian
        (-60, -60, 3413),  # around the north pole
        (-60, -60, 3031),  # around the south pole
        (86.9, 27.9, 4326),
    ],
)
def test_the_whole_earth_holds_objects_wherever_they_are(x, y, crs):
    size = 1e-4 if crs == 4326 else 10
    objects = objects_at(
        *[(x + 4 * size * i, y + 3 * size * i) for i in range(5)], size=size, crs=crs
    )
    halves = regions_of(shapely.box(-180, -90, 0, 90), shapely.box(0, -90, 180, 90), crs=4326)
    assert count(objects, regions_of(WORLD, crs=4326))["count"].tolist() == [5]
    assert count(objects, halves)["count"].sum() == 5


def test_degrees_that_are_metres_are_told():
    metres = regions_of(shapely.box(330000, 3070000, 331000, 3071000), crs=4326)
    with pytest.raises(RegionError, match="no place on earth: check that their CRS"):
        count(village(330000, 3070000, UTM), metres)


def test_without_objects_the_whole_earth_is_an_empty_region():
    none = village(330000, 3070000, UTM).iloc[:0]
    result = count(none, regions_of(WORLD, crs=4326), imaged=shapely.box(0, 0, 1000, 1000))
    assert result["count"].tolist() == [0]
    assert 0 < result["imaged_share"].iloc[0] < 1e-8


def test_the_share_imaged_is_of_the_whole_region_even_beyond_the_objects():
    objects = village(330000, 3070000, UTM)
    # images of 20 km a side, of which the objects take a corner
    imaged = shapely.box(330000, 3070000, 350000, 3090000)
    inside = gpd.GeoSeries([shapely.box(332000, 3080000, 334000, 3082000)], crs=UTM).to_crs(4326)[0]
    country = shapely.box(68, 6, 98, 36)
    result = count(objects, regions_of(inside, country, WORLD, crs=4326), imaged=imaged)
    km2 = ellipsoid_area_m2(np.array([imaged]), UTM)[0] / 1e6
    area = result["region_area_km2"]
    expected = [1, km2 / area[1], km2 / area[2]]
    assert result["imaged_share"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert area[2] == pytest.approx(EARTH_KM2, rel=1e-5)


def test_areas_of_more_than_half_the_earth():
    # a band between parallels has 2 pi R^2 (sin - sin) on the sphere of the same area
    boxes = np.array([shapely.box(-180, -60, 180, 75), shapely.box(-100, -80, 100, 80), WORLD])
    sphere = [
        EARTH_KM2 * (np.sin(np.radians(75)) + np.sin(np.radians(60))) / 2,
        EARTH_KM2 * np.sin(np.radians(80)) * 200 / 360,
        EARTH_KM2,
    ]
    assert ellipsoid_area_m2(boxes, 4326) / 1e6 == pytest.approx(sphere, rel=3e-3)
    # small, though its longitudes run from -180 to 180
    seam = np.array([shapely.box(800000, 8000000, 850000, 8050000)])
    assert ellipsoid_area_m2(seam, 32760)[0] == pytest.approx(2.5e9, rel=0.01)
