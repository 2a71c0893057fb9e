"""Regions in regions: what a child has its parents have, once."""

import geopandas as gpd
import numpy as np
import pytest
import shapely

from geoseg.errors import RegionError
from geoseg.objects.count import RULES, count
from geoseg.objects.hierarchy import Hierarchy

UTM = 32645


def house(x, y, size=1.0):
    return shapely.box(x - size, y - size, x + size, y + size)


def places():
    """A country of two districts and a strip of its own; the west has two wards and a strip."""
    rows = [
        ("ward 2", 12, 10, shapely.box(50, 0, 80, 100)),
        ("country", 1, None, shapely.box(0, 0, 300, 100)),
        ("west", 10, 1, shapely.box(0, 0, 100, 100)),
        ("ward 1", 11, 10, shapely.box(0, 0, 50, 100)),
        ("east", 20, 1, shapely.box(100, 0, 200, 100)),
    ]
    names, ids, parents, shapes = zip(*rows, strict=True)
    return gpd.GeoDataFrame(
        {"name": names, "id": ids, "up": parents}, geometry=list(shapes), crs=UTM
    )


HOUSES = gpd.GeoDataFrame(
    {"class": ["a", "a", "b", "a", "b", "b", "a"]},
    geometry=[
        house(10, 50),  # ward 1
        house(20, 50),  # ward 1
        house(60, 50),  # ward 2
        house(90, 50),  # west alone
        house(150, 50),  # east
        house(250, 50),  # country alone
        house(400, 50),  # outside
    ],
    crs=UTM,
)


@pytest.mark.parametrize("rule", RULES)
def test_children_roll_up_and_every_level_adds_up(rule):
    result = count(HOUSES, places(), rule=rule, parent="up", id_field="id")
    assert result["count"].tolist() == [1, 6, 4, 2, 1]
    assert result["count_a"].tolist() == [0, 3, 3, 2, 0]
    assert result["level"].tolist() == [3, 1, 2, 3, 2]
    assert result.attrs["outside"] == 1
    # ground in children is ground of the parents, once (500 km from its middle UTM is 0.5 % off)
    covered = result["covered_share"] * result["region_area_km2"] * 1e6
    assert covered.to_numpy() == pytest.approx([4, 24, 16, 8, 4], rel=6e-3)
    assert result["mean_area_m2"].to_numpy() == pytest.approx([4] * 5, rel=6e-3)
    if rule == "intersects":
        return
    assert result["count_own"].tolist() == [1, 1, 1, 2, 1]
    levels = result.attrs["levels"]
    assert [(v["regions"], v["counted"], v["above"], v["outside"]) for v in levels] == [
        (1, 6, 0, 1),
        (2, 5, 1, 1),
        (2, 3, 3, 1),
    ]
    assert all(v["counted"] + v["above"] + v["outside"] == len(HOUSES) for v in levels)


def test_an_object_in_two_children_is_in_their_parent_once():
    across = gpd.GeoDataFrame(geometry=[house(50, 50), house(100, 50)], crs=UTM)
    met = count(across, places(), rule="intersects", parent="up")
    # the first meets both wards, the second both districts
    assert met["count"].tolist() == [1, 2, 2, 1, 1]
    shared = count(across, places(), rule="area", parent="up")
    assert shared["count"].to_numpy() == pytest.approx([0.5, 2, 1.5, 0.5, 0.5])
    assert shared["count_own"].to_numpy() == pytest.approx([0.5, 0, 0.5, 0.5, 0.5])


def test_a_child_that_reaches_out_of_its_parent_still_counts_there():
    regions = places()
    regions.loc[3, "geometry"] = shapely.box(-50, 0, 50, 100)
    out = gpd.GeoDataFrame(geometry=[house(-20, 50)], crs=UTM)
    assert count(out, regions, parent="up")["count"].tolist() == [0, 1, 1, 1, 0]


def test_a_parent_without_a_shape_has_the_area_of_its_children():
    regions = places()
    regions.loc[2, "geometry"] = shapely.Polygon()
    result = count(HOUSES, regions, parent="up", id_field="id")
    # what lay in the west alone is the country's own now
    assert result["count"].tolist() == [1, 6, 3, 2, 1]
    area = result["region_area_km2"]
    assert area[2] == pytest.approx(area[0] + area[3])
    assert result["density_km2"][2] == pytest.approx(3 / area[2])


def test_without_a_parent_field_nothing_is_new():
    result = count(HOUSES, places())
    assert {"level", "count_own"}.isdisjoint(result.columns)
    assert "levels" not in result.attrs


def test_random_trees_add_up_as_a_walk_up_says():
    rng = np.random.default_rng(4)
    for _ in range(20):
        n = 30
        parents = [
            None if i == 0 or rng.random() < 0.1 else f"p{rng.integers(i)}" for i in range(n)
        ]
        order = rng.permutation(n)
        tree = Hierarchy.from_ids([f"p{i}" for i in order], [parents[i] for i in order])
        values = rng.integers(0, 100, n)
        expected = np.zeros(n, int)
        for row in range(n):
            at = row
            while at >= 0:
                expected[at] += values[row]
                at = tree.parents[at]
        assert tree.roll_up(values).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("ids", "parents", "message"),
    [
        (["a", "b"], [None, "z"], r"1 regions name a parent that is not there \(b -> z\)"),
        (["a", "b"], ["b", "a"], "their own ancestors: .*a"),
        (["a", "b", "c", "d"], [None, "c", "b", "c"], "their own ancestors"),
        (["a"], ["a"], "their own ancestors: a, a"),
        (["a", "a", "b"], [None, None, "a"], r"ids of parents are there more than once \(a\)"),
    ],
)
def test_what_is_no_tree_is_refused(ids, parents, message):
    with pytest.raises(RegionError, match=message):
        Hierarchy.from_ids(ids, parents)


def test_ids_twice_are_fine_where_nobody_names_them():
    assert Hierarchy.from_ids(["a", "x", "x"], [None, "a", "a"]).levels.tolist() == [1, 2, 2]


def test_ids_of_other_types_are_the_same():
    # pandas reads a column of integers with a gap as floats
    tree = Hierarchy.from_ids([1, 2, 3], [np.nan, 1.0, 2.0])
    assert tree.levels.tolist() == [1, 2, 3]
    assert Hierarchy.from_ids(["1", "2"], [" ", 1]).parents.tolist() == [-1, 0]
    assert Hierarchy.from_ids([], []).depth == 0


def test_fields_that_are_not_there_are_named():
    with pytest.raises(RegionError, match="no 'above'; name one with --parent; they have: name"):
        count(HOUSES, places(), parent="above")
    with pytest.raises(RegionError, match="no 'code'; name one with --id"):
        count(HOUSES, places(), parent="up", id_field="code")
    nameless = places()[["up", "geometry"]]
    with pytest.raises(RegionError, match="no field that looks like an id"):
        count(HOUSES, nameless, parent="up")
