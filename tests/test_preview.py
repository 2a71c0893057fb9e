"""Pictures: the right pixels get the right colour, and other programs can read the PNG."""

import io
import struct
import zlib

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from geoseg.errors import OutputError
from geoseg.outputs.preview import FILL_ALPHA, draw_objects, shrink, write_png, write_preview
from geoseg.outputs.style import TRUTH_COLOUR, class_colours

# a PNG has no place on the ground, and rasterio says so
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

UTM = 32645
# 0.5 m pixels, north up, from (500000, 3000100)
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 3000100)
GREY = np.full((120, 160, 3), 100, np.uint8)


def ground(transform, *boxes_px, crs=UTM, **columns):
    """Return boxes given in px of the picture as a table on the ground."""
    shapes = [
        shapely.transform(shapely.box(*b), lambda xy: np.array([transform @ tuple(p) for p in xy]))
        for b in boxes_px
    ]
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=crs)


def blend(colour, alpha=FILL_ALPHA, base=100):
    return [round(base * (1 - alpha) + c * alpha) for c in colour]


def test_fill_outline_and_surroundings():
    objects = ground(NORTH_UP, (40, 20, 80, 60), **{"class": ["roof"]})
    got = draw_objects(GREY, NORTH_UP, UTM, objects)
    colour = class_colours(["roof"])["roof"]
    assert got[40, 60].tolist() == blend(colour)
    assert got[40, 37].tolist() == [100] * 3
    assert got[17, 60].tolist() == [100] * 3
    # an outline 1.8 px wide, centred on the edge at x = 40, covers 0.9 of the pixel each side:
    # in thirds of a pixel that is all three, or two
    edge = got[40, 38:42].astype(int)
    assert np.abs(edge[1] - colour).max() < 0.35 * 200
    assert np.abs(edge[2] - colour).max() < 0.35 * 200
    assert (edge[0] == 100).all()
    assert (GREY == 100).all()


def test_where_nothing_is_drawn_the_imagery_is_untouched():
    noise = np.random.default_rng(0).integers(0, 255, (600, 90, 3), dtype=np.uint8)
    objects = ground(NORTH_UP, (10, 300, 30, 320), (1000, 10, 1100, 20), (5, -50, 9, -40))
    got = draw_objects(noise, NORTH_UP, UTM, objects)
    changed = (got != noise).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max()) == (299, 320)
    assert (columns.min(), columns.max()) == (9, 30)
    empty = draw_objects(noise, NORTH_UP, UTM, objects.iloc[:0])
    assert (empty == noise).all()


def test_bands_join_without_a_seam():
    # the object crosses rows 256 and 512, where bands meet
    tall = np.full((700, 40, 3), 100, np.uint8)
    got = draw_objects(tall, NORTH_UP, UTM, ground(NORTH_UP, (10, 100, 30, 600)))
    assert (got[110:590] == got[110]).all()


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.5, 0, 500000, 0, 0.5, 3000000),
        Affine.translation(500000, 3000000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5),
    ],
    ids=["south-up", "rotated"],
)
def test_any_affine(transform):
    objects = ground(transform, (40, 20, 80, 60))
    plain = draw_objects(GREY, NORTH_UP, UTM, ground(NORTH_UP, (40, 20, 80, 60)))
    got = draw_objects(GREY, transform, UTM, objects)
    # equal up to rounding at the very edge of a sample
    assert (got != plain).any(axis=2).mean() < 0.01


def test_layers_in_another_crs_land_in_the_same_place():
    objects = ground(NORTH_UP, (40, 20, 80, 60))
    plain = draw_objects(GREY, NORTH_UP, UTM, objects)
    moved = draw_objects(GREY, NORTH_UP, UTM, objects.to_crs(4326))
    assert (moved != plain).any(axis=2).mean() < 0.01


def test_classes_and_truth_have_their_colours():
    objects = ground(NORTH_UP, (10, 20, 50, 60), (90, 20, 130, 60), **{"class": ["car", "roof"]})
    truth = ground(NORTH_UP, (60, 70, 80, 110))
    got = draw_objects(GREY, NORTH_UP, UTM, objects, truth=truth, width_px=4)
    colours = class_colours(["car", "roof"])
    assert got[40, 30].tolist() == blend(colours["car"])
    assert got[40, 110].tolist() == blend(colours["roof"])
    assert got[90, 60].tolist() == list(TRUTH_COLOUR)
    # truth is only outlined
    assert got[90, 70].tolist() == [100] * 3
    # a class keeps its colour when the other lies outside the picture
    apart = objects.set_geometry([objects.geometry[0], shapely.box(0, 0, 1, 1)])
    assert (
        draw_objects(GREY, NORTH_UP, UTM, apart)[:, :60]
        == draw_objects(GREY, NORTH_UP, UTM, objects)[:, :60]
    ).all()


def test_region_borders_and_labels():
    big = np.full((400, 400, 3), 100, np.uint8)
    regions = ground(
        NORTH_UP, (20, 20, 380, 200), (20, 200, 380, 380), name=["A", "B"], count=[3, 4]
    )
    regions.attrs["region_field"] = "name"
    none = ground(NORTH_UP)
    bare = draw_objects(big, NORTH_UP, UTM, none, regions=regions[["geometry"]])
    assert bare[100, 20].tolist() == [255] * 3
    assert bare[100, 100].tolist() == [100] * 3
    got = draw_objects(big, NORTH_UP, UTM, none, regions=regions)
    rows, columns = np.nonzero((got != bare).any(axis=2))
    # "A: 3" and "B: 4": two plates of 4 letters (6 dots each, 1 in front, 1 around) by 9 dots
    assert len(rows) == 2 * 27 * 9
    assert (got[rows, columns] == 255).any()
    upper = rows < 200
    assert rows[upper].mean() == pytest.approx(110, abs=6)
    assert (got[rows[upper].min() : rows[upper].max() + 1] != 255).any()


def test_odd_names_are_written_too():
    regions = ground(NORTH_UP, (5, 5, 150, 110), name=["Köln \N{SNOWMAN} 12/3"])
    regions.attrs["region_field"] = "name"
    got = draw_objects(GREY, NORTH_UP, UTM, ground(NORTH_UP), regions=regions)
    assert (got == 25).all(axis=2).sum() > 200


def test_shrink_averages_and_keeps_the_ground():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    small, transform = shrink(pixels, NORTH_UP, max_px=4)
    assert small.shape == (3, 4, 3)
    assert small[0, 0].tolist() == np.rint(pixels[:2, :2].mean(axis=(0, 1))).tolist()
    assert small[2, 3].tolist() == pixels[4, 6].tolist()
    assert transform @ (2, 1) == NORTH_UP @ (4, 2)
    same, transform = shrink(pixels, NORTH_UP, max_px=7)
    assert same is pixels
    assert transform == NORTH_UP


def test_png_comes_back_as_it_was(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    path = write_png(tmp_path / "x.png", pixels)
    with rasterio.open(path) as dataset:
        assert dataset.driver == "PNG"
        assert (dataset.read().transpose(1, 2, 0) == pixels).all()
    write_png(path, pixels[:5, :5])
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    stream = io.BytesIO(path.read_bytes())
    stream.read(8)
    while head := stream.read(8):
        size, kind = struct.unpack(">I4s", head)
        body = stream.read(size)
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(kind + body)


def test_write_preview_fits_the_size(tmp_path):
    big = np.full((300, 900, 3), 100, np.uint8)
    objects = ground(NORTH_UP, (300, 90, 600, 210))
    path = write_preview(big, NORTH_UP, f"EPSG:{UTM}", objects, tmp_path / "p.png", max_px=300)
    with rasterio.open(path) as dataset:
        assert (dataset.height, dataset.width) == (100, 300)
        assert dataset.read()[:, 50, 150].tolist() == blend(class_colours([""])[""])
        assert dataset.read()[:, 50, 90].tolist() == [100] * 3


def test_bad_input_is_refused(tmp_path):
    objects = ground(NORTH_UP, (40, 20, 80, 60))
    for pixels in (GREY[..., 0], GREY.astype(float), GREY[:0], GREY[..., :2]):
        with pytest.raises(OutputError, match=r"needs pixels \(H, W, 3\) of uint8"):
            draw_objects(pixels, NORTH_UP, UTM, objects)
    with pytest.raises(OutputError, match="no CRS"):
        draw_objects(GREY, NORTH_UP, UTM, objects.set_crs(None, allow_override=True))
    with pytest.raises(OutputError, match="cannot be written"):
        write_png(tmp_path / "no" / "x.png", GREY)


def test_missing_and_empty_geometry_is_passed_over():
    objects = gpd.GeoDataFrame(geometry=[None, shapely.Polygon()], crs=UTM)
    assert (draw_objects(GREY, NORTH_UP, UTM, objects) == GREY).all()
