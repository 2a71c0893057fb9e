"""Counts per region: every object once, every region kept, areas on the ellipsoid."""

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.count import count, ellipsoid_area_m2, overlapping_pairs, polygonal

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
