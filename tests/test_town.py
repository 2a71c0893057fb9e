"""The rendered town: the same everywhere, and true to its footprints."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from geoseg.errors import ConfigError
from geoseg.scenes.layout import split_land
from geoseg.scenes.noise import Rect, field, field_at
from geoseg.scenes.paint import Painter
from geoseg.scenes.town import TownFiles, render_town

WIDTH, HEIGHT, GSD = 700, 520, 0.2


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> TownFiles:
    return render_town(
        tmp_path_factory.mktemp("town"),
        width_px=WIDTH,
        height_px=HEIGHT,
        gsd_m=GSD,
        seed=5,
        density=1.5,
    )


def read(files: TownFiles):
    with rasterio.open(files.image) as image:
        return image.read(), image.dataset_mask() > 0, image.transform, image.crs


def test_same_seed_gives_the_same_bytes(town, tmp_path):
    again = render_town(tmp_path, width_px=WIDTH, height_px=HEIGHT, gsd_m=GSD, seed=5, density=1.5)
    for name in ("image", "footprints", "regions", "aoi"):
        assert getattr(again, name).read_bytes() == getattr(town, name).read_bytes(), name


def test_a_window_does_not_depend_on_its_neighbours():
    whole, built = Painter(3, 0.15, 1.4).paint(Rect(100, 40, 420, 300))
    painter = Painter(3, 0.15, 1.4)
    # odd sizes, and in another order than the rows of the whole
    for x, y, width, height in [(277, 40, 243, 300), (100, 151, 177, 189), (100, 40, 177, 111)]:
        part, part_built = painter.paint(Rect(x, y, width, height))
        rows, columns = slice(y - 40, y - 40 + height), slice(x - 100, x - 100 + width)
        np.testing.assert_array_equal(part, whole[:, rows, columns])
        np.testing.assert_array_equal(part_built, built[rows, columns])


def test_seeds_differ():
    rect = Rect(0, 0, 96, 96)
    first, second = (Painter(seed, 0.13).paint(rect)[0].astype(int) for seed in (1, 2))
    assert np.abs(first - second).mean() > 5


def test_footprints_are_where_the_pixels_show_buildings(town):
    _, valid, transform, _ = read(town)
    footprints = gpd.read_file(town.footprints, layer="footprints")
    drawn = rasterize(footprints.geometry, out_shape=(HEIGHT, WIDTH), transform=transform) > 0
    _, built = Painter(5, GSD, 1.5).paint(Rect(0, 0, WIDTH, HEIGHT))
    assert built.mean() > 0.1
    # pixel centres that lie on an outline to the last digit may fall either way
    assert np.count_nonzero(drawn != (built & valid)) <= 1e-5 * built.size


def test_roofs_look_unlike_the_ground(town):
    pixels, valid, transform, _ = read(town)
    footprints = gpd.read_file(town.footprints)
    drawn = rasterize(footprints.geometry, out_shape=(HEIGHT, WIDTH), transform=transform) > 0
    roofs, ground = pixels[:, drawn].mean(axis=1), pixels[:, valid & ~drawn].mean(axis=1)
    assert np.abs(roofs - ground).max() > 8
    # texture and noise: no surface is flat colour
    assert all(pixels[band][valid].std() > 15 for band in range(3))


def test_footprint_table_is_clean(town):
    _, _, transform, crs = read(town)
    footprints = gpd.read_file(town.footprints, layer="footprints")
    assert list(footprints.columns) == ["building_id", "roof", "area_m2", "geometry"]
    assert footprints.crs == crs
    assert footprints["building_id"].tolist() == list(range(1, len(footprints) + 1))
    assert set(footprints["roof"]) <= {"flat", "gable", "hip", "l_shaped", "shed"}
    assert footprints.geometry.is_valid.all()
    assert (footprints.geom_type == "Polygon").all()
    np.testing.assert_allclose(footprints["area_m2"], footprints.area, atol=0.006)
    extent = shapely.box(*rasterio.transform.array_bounds(HEIGHT, WIDTH, transform))
    assert extent.buffer(1e-6).contains(footprints.union_all())
    # houses may share walls, not floors
    assert footprints.area.sum() - footprints.union_all().area < 0.01


def test_hole_is_invalid_and_empty(town):
    pixels, valid, transform, _ = read(town)
    assert 0.001 < (~valid).mean() < 0.1
    # JPEG rings a little at the hole's edge
    assert pixels[:, ~valid].mean() < 20
    footprints = gpd.read_file(town.footprints)
    drawn = rasterize(footprints.geometry, out_shape=(HEIGHT, WIDTH), transform=transform) > 0
    assert not (drawn & ~valid).any()


def test_without_hole_all_pixels_are_valid(tmp_path):
    files = render_town(tmp_path, width_px=80, height_px=64, hole=False)
    assert read(files)[1].all()


def test_image_is_a_cog_with_overviews(tmp_path):
    files = render_town(tmp_path, width_px=1100, height_px=600, gsd_m=0.5, density=0.3)
    with rasterio.open(files.image) as image:
        assert image.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert image.compression.name == "jpeg"
        assert image.block_shapes[0] == (512, 512)
        assert image.overviews(1)
        assert image.mask_flag_enums[0] == [rasterio.enums.MaskFlags.per_dataset]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "aoi.gpkg",
        "footprints.gpkg",
        "regions.gpkg",
        "town.tif",
    ]


@pytest.mark.parametrize(
    ("width_px", "height_px"),
    [
        (300, 200),  # few blocks: straight borders
        (2000, 1800),  # borders along streets
    ],
)
def test_regions_partition_the_extent(width_px, height_px):
    from geoseg.scenes.areas import aoi_polygon, region_polygons

    width_m, height_m = width_px * 0.25, height_px * 0.25
    regions = region_polygons(Painter(2, 0.25).town.net, width_m, height_m)
    assert len(regions) == 9
    assert shapely.is_valid(regions).all()
    extent = shapely.box(0, 0, width_m, height_m)
    assert shapely.area(regions).sum() == pytest.approx(extent.area, rel=1e-9)
    assert shapely.union_all(regions).symmetric_difference(extent).area < 1e-6 * extent.area
    assert extent.contains(aoi_polygon(width_m, height_m, 2))


def test_regions_file(town):
    regions = gpd.read_file(town.regions, layer="regions")
    assert regions["region"].tolist() == [f"Ward {k}" for k in range(1, 10)]
    assert len(gpd.read_file(town.aoi, layer="aoi")) == 1


@pytest.mark.parametrize("density", [0.0, 2.0])
def test_density_decides_how_much_is_built(density):
    town = Painter(7, 0.13, density).town
    built = sum(h.polygon.area for b in town.blocks_in((0, 0, 300, 300)) for h in b.houses)
    assert (built < 9_000) if density == 0 else (built > 40_000)


def test_sizes_and_roofs_vary():
    town = Painter(1, 0.13).town
    houses = [h for b in town.blocks_in((0, 0, 530, 530)) for h in b.houses]
    areas = np.array([h.polygon.area for h in houses])
    assert areas.min() < 15
    assert areas.max() > 200
    assert {h.roof for h in houses} == {"flat", "gable", "hip", "l_shaped", "shed"}


def test_split_land_keeps_the_land():
    land = shapely.Polygon([(0, 0), (70, 5), (66, 60), (-4, 52)])
    pieces = split_land(land, (40, 90), np.random.default_rng(4))
    assert len(pieces) > 20
    assert sum(p.area for p in pieces) == pytest.approx(land.area)
    assert shapely.union_all(pieces).symmetric_difference(land).area < 1e-6


def test_noise_at_a_point_is_the_field_there():
    window = field(Rect(-7, 3, 20, 10), 0.5, 3.0, 9)
    # column 4, row 6 of the window: pixel (-3, 9)
    assert field_at(-2.5 * 0.5, 9.5 * 0.5, 3.0, 9) == pytest.approx(window[6, 4], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width_px": 10}, "at least 64 px"),
        ({"gsd_m": 0.0}, "gsd_m is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"density": float("nan")}, "density is nan"),
        ({"crs": "EPSG:4326"}, "not a projected CRS"),
        ({"crs": "nowhere"}, "not known"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        render_town(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
