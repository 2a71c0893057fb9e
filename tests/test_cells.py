"""Grids on request: equal on the ground, the same for every image, no gap and no overlap."""

import geopandas as gpd
import numpy as np
import pytest
import shapely

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.cells import GridSpec, make_grid, no_cells
from geoseg.objects.count import count, ellipsoid_area_m2, overlapping_pairs

UTM = 32645
TOWN = shapely.box(330000, 3070000, 334000, 3073000)


@pytest.mark.parametrize(
    ("text", "area_m2"), [("hexagon:500", np.sqrt(3) / 2 * 500**2), ("square:400", 400**2)]
)
@pytest.mark.parametrize(
    ("area", "crs"),
    [
        (TOWN, UTM),
        (shapely.box(-0.05, 60.0, 0.05, 60.04), 4326),
        (shapely.box(2_000_000, 8_000_000, 2_010_000, 8_010_000), 3857),
        (shapely.box(1_200_000, 1_000_000, 1_204_000, 1_004_000), 3413),
    ],
)
def test_cells_are_equal_on_the_ground_and_cover_the_area_once(text, area_m2, area, crs):
    cells = make_grid(text, area, crs)
    assert cells.crs == crs
    shapes = cells.geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    assert ellipsoid_area_m2(shapes, crs) == pytest.approx(area_m2, rel=1e-5)
    assert overlapping_pairs(shapes) == []
    assert shapely.difference(area, shapely.union_all(shapes)).area < 1e-6 * area.area
    assert cells["region"].is_unique
    # none that the area does not touch
    assert shapely.distance(shapes, area).max() <= 1e-3 * np.sqrt(area.area)


@pytest.mark.parametrize("text", ["hexagon:500", "square:400"])
def test_neighbouring_images_get_the_same_cells(text):
    west = make_grid(text, TOWN, UTM).set_index("region")
    # another year, another CRS, half a town further east
    moved = shapely.box(332000, 3069000, 336000, 3072000)
    other = gpd.GeoSeries([moved], crs=UTM).to_crs(3857)
    east = make_grid(text, other, 3857).to_crs(UTM).set_index("region")
    common = west.index.intersection(east.index)
    assert 0.2 < len(common) / len(west) < 0.8
    apart = west.geometry[common].hausdorff_distance(east.geometry[common])
    assert apart.max() < 1e-3
    # and what lies in both places has one name
    middles = gpd.GeoDataFrame({"name": west.index}, geometry=west.centroid.to_numpy(), crs=UTM)
    both = gpd.sjoin(middles, east.reset_index())
    assert len(both) >= len(common)
    assert (both["name"] == both["region"]).all()


@pytest.mark.parametrize("text", ["hexagon:100", "square:100"])
def test_neighbours_share_their_corners_to_the_last_bit(text):
    cells = make_grid(text, shapely.box(330000, 3070000, 331000, 3071000), UTM)
    corners = np.concatenate([shapely.get_coordinates(c)[:-1] for c in cells.geometry])
    different = np.unique(corners, axis=0)
    near = np.unique(corners.round(3), axis=0)
    assert len(different) == len(near)
    # so that a point on an edge is in a cell
    edges = shapely.get_coordinates(shapely.boundary(cells.geometry.iloc[len(cells) // 2]))
    middle = (edges[:-1] + edges[1:]) / 2
    points = gpd.GeoDataFrame(geometry=shapely.buffer(shapely.points(middle), 0.5), crs=UTM)
    assert count(points, cells).attrs["outside"] == 0


def test_a_hexagon_is_as_wide_as_was_said_and_has_six_neighbours():
    cells = make_grid("hexagon:500", TOWN, UTM)
    middle = cells.geometry.iloc[np.argmin(shapely.distance(cells.centroid, TOWN.centroid))]
    near = cells[cells.geometry.intersects(middle)]
    assert len(near) == 7
    apart = shapely.distance(near.centroid, middle.centroid)
    assert np.sort(apart)[1:] == pytest.approx(500, rel=2e-3)


def test_cells_where_nothing_was_imaged_are_left_out():
    seen = gpd.GeoSeries(
        [
            shapely.box(330000, 3070000, 330900, 3070900),
            shapely.box(335000, 3070000, 335900, 3070900),
        ],
        crs=UTM,
    )
    cells = make_grid("square:300", seen, UTM)
    objects = gpd.GeoDataFrame(geometry=[shapely.box(330100, 3070100, 330110, 3070110)], crs=UTM)
    counted = count(objects, cells, imaged=seen)
    assert (counted["imaged_share"] > 0).all()
    assert (counted["imaged_share"] < 1).any()
    assert counted["count"].sum() == 1
    assert len(cells) < 40


def test_a_zone_s_name_is_that_of_the_military_grid():
    assert make_grid("square:1000", TOWN, UTM)["region"].str.startswith("45R-s1000-").all()
    # on the border of two zones the middle decides
    assert (
        make_grid("hexagon:50", shapely.box(5.99, 50, 6.002, 50.001), 4326)["region"][0][:3]
        == "31U"
    )
    assert make_grid("square:500", shapely.box(0, 0, 1000, 1000), 3413)["region"][0][0] == "N"
    assert make_grid("square:500", shapely.box(0, 0, 1000, 1000), 3031)["region"][0][0] == "S"


def test_a_crs_of_the_user_s_makes_one_grid_for_a_country():
    lonlat = shapely.box(10, 50, 10.02, 50.01)
    cells = make_grid("square:1000:EPSG:3035", lonlat, 4326)
    back = cells.to_crs(3035).geometry.bounds
    assert np.abs(back / 1000 - (back / 1000).round()).max().max() < 1e-6
    assert cells["region"][0].startswith("EPSG3035-s1000-")
    for bad, message in (("EPSG:4326", "no projected CRS in metres"), ("nope", "none that PROJ")):
        with pytest.raises(ConfigError, match=message):
            make_grid(f"square:1000:{bad}", lonlat, 4326)


@pytest.mark.parametrize("text", ["hexagon", "hexagon:0", "circle:5", "square:-3", "square:x", "5"])
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(ConfigError, match="expected"):
        GridSpec.parse(text)


def test_too_many_cells_are_refused_before_they_are_made():
    with pytest.raises(ConfigError, match=r"expected at most 1,000,000: give \d+ m or more"):
        make_grid("square:1", shapely.box(300000, 3000000, 400000, 3100000), UTM)
    with pytest.raises(RegionError, match="nothing was imaged"):
        make_grid("square:100", shapely.Polygon(), UTM)
    assert len(no_cells(UTM)) == 0
    assert no_cells(UTM).crs == UTM
