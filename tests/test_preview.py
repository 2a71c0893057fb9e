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
from rasterio.windows import Window

from geoseg.errors import ConfigError, OutputError, RegionError, SourceError
from geoseg.outputs.lettering import ink_of
from geoseg.outputs.preview import (
    FILL_ALPHA,
    draw_instances,
    draw_objects,
    preview_image,
    shrink,
    write_png,
    write_preview,
)
from geoseg.outputs.style import TRUTH_COLOUR, class_colours
from geoseg.records import Instances

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


# Labels and legends


def test_scores_are_written_where_there_is_room():
    big = np.full((300, 300, 3), 100, np.uint8)
    objects = ground(NORTH_UP, (20, 20, 100, 90), (150, 20, 162, 30), score=[0.93, 0.5])
    bare = draw_objects(big, NORTH_UP, UTM, objects)
    said = draw_objects(big, NORTH_UP, UTM, objects, labels="auto")
    rows, columns = np.nonzero((said != bare).any(axis=2))
    # "93%" in the middle of the large one; the small one has no room
    ink = ink_of("93%", 1)
    assert len(rows) == ink.size
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(60, abs=1)
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(55, abs=1)
    assert (said[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1][ink] == 255).all()
    everything = draw_objects(big, NORTH_UP, UTM, objects, labels="all")
    assert ((everything != said).any(axis=2))[:, 140:175].any()
    # without scores and with one class there is nothing to say
    plain = draw_objects(big, NORTH_UP, UTM, objects.drop(columns="score"), labels="all")
    assert (plain == bare).all()


def test_labels_do_not_lie_on_each_other():
    big = np.full((300, 300, 3), 100, np.uint8)
    # the surer one of two that share a middle is labelled
    objects = ground(NORTH_UP, (50, 50, 150, 150), (52, 52, 148, 148), score=[0.6, 0.9])
    bare = draw_objects(big, NORTH_UP, UTM, objects)
    said = draw_objects(big, NORTH_UP, UTM, objects, labels="auto")
    assert (said != bare).any(axis=2).sum() == ink_of("90%", 1).size


def test_several_classes_get_names_and_a_legend():
    big = np.full((300, 400, 3), 100, np.uint8)
    objects = ground(
        NORTH_UP, (100, 20, 200, 120), (220, 20, 320, 120),
        **{"class": ["car", "house"], "score": [0.9, 0.8]},
    )  # fmt: skip
    got = draw_objects(big, NORTH_UP, UTM, objects, labels="auto")
    colours = class_colours(["car", "house"])
    # swatches in the corner, one below the other
    assert got[8, 8].tolist() == list(colours["car"])
    assert got[17, 8].tolist() == list(colours["house"])
    bare = draw_objects(big, NORTH_UP, UTM, objects)
    changed = (got != bare).any(axis=2)
    assert changed[60:80, 100:200].sum() == ink_of("car 90%", 1).size
    assert changed[60:80, 220:320].sum() == ink_of("house 80%", 1).size


def test_letters_can_be_told_apart():
    signs = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-.:_/%?,()+#&'="
    dots = {ink_of(sign, 1).tobytes() for sign in signs}
    assert len(dots) == len(signs)
    assert (ink_of("é", 1) == ink_of("e", 1)).all()
    assert (ink_of("\N{SNOWMAN}", 1) == ink_of("?", 1)).all()
    assert ink_of("ab", 3).shape == (27, 3 * ink_of("ab", 1).shape[1])


# From a file


@pytest.fixture
def file_of_objects(make_raster):
    """Return a function that writes imagery of some kind, and gives objects over it."""

    def make(name="image.tif", *, transform=NORTH_UP, **options):
        image = make_raster(name, transform=transform, crs=f"EPSG:{UTM}", **options)
        return image, ground(transform, (40, 20, 80, 60), score=[0.9])

    return make


def read_png(path):
    with rasterio.open(path) as dataset:
        return dataset.read().transpose(1, 2, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "uint16", "bands": 4},
        {"dtype": "float32", "bands": 1},
        {"bands": 1},
        {"transform": Affine.translation(500000, 3000000) @ Affine.rotation(30)
         @ Affine.scale(0.5, -0.5)},
    ],
    ids=["16 bit, 4 bands", "float, 1 band", "1 band", "rotated"],
)  # fmt: skip
def test_imagery_of_any_kind(file_of_objects, tmp_path, options):
    image, objects = file_of_objects(height=120, width=160, **options)
    # in another CRS, as it comes
    path = preview_image(
        image, objects.to_crs(4326), tmp_path / "p.png", window=Window(20, 10, 80, 60), max_px=80
    )
    got = read_png(path).astype(int)
    assert got.shape == (60, 80, 3)
    bare = read_png(
        preview_image(image, objects.iloc[:0], tmp_path / "b.png", window=Window(20, 10, 80, 60),
                      max_px=80)
    )  # fmt: skip
    changed = (got != bare).any(axis=2)
    rows, columns = np.nonzero(changed)
    # the object lies 20 px to the right and 10 below the corner of the window
    assert (rows.min(), rows.max()) == pytest.approx((10, 50), abs=2)
    assert (columns.min(), columns.max()) == pytest.approx((20, 60), abs=2)
    assert bare.std() > 10


def test_a_region_chooses_the_part(file_of_objects, tmp_path):
    image, objects = file_of_objects(height=120, width=160)
    regions = ground(NORTH_UP, (0, 0, 100, 100), (100, 0, 160, 60), name=["west", "east"])
    path = preview_image(
        image, objects, tmp_path / "p.png", regions=regions.to_crs(4326), region="east", max_px=60
    )
    # a twentieth more each way, clipped to the image
    assert read_png(path).shape[:2] == pytest.approx((60, 60), abs=3)
    with pytest.raises(RegionError, match="no region 'north'; expected one of west, east"):
        preview_image(image, objects, tmp_path / "p.png", regions=regions, region="north")
    with pytest.raises(RegionError, match="there are no regions with a field"):
        preview_image(image, objects, tmp_path / "p.png", region="north")
    with pytest.raises(ConfigError, match="give one of them"):
        preview_image(
            image, objects, tmp_path / "p.png", regions=regions, region="east",
            window=Window(0, 0, 5, 5),
        )  # fmt: skip


def test_a_window_off_the_image_is_refused(file_of_objects, tmp_path):
    image, objects = file_of_objects(height=120, width=160)
    with pytest.raises(SourceError, match="has 160 x 120 px"):
        preview_image(image, objects, tmp_path / "p.png", window=Window(200, 0, 10, 10))
    with pytest.raises(SourceError, match="holds no pixels"):
        preview_image(image, objects, tmp_path / "p.png", window=Window(0, 0, 0, 10))


def test_a_small_part_is_enlarged_and_measured(file_of_objects, tmp_path):
    image, objects = file_of_objects(height=120, width=160)
    path = preview_image(image, objects, tmp_path / "p.png", max_px=400)
    got = read_png(path)
    assert got.shape == (240, 320, 3)
    # px of 0.25 m: a bar of 20 m is at most a quarter of 80 m
    bar = (got[-12:] == 255).all(axis=2).sum(axis=1).max()
    assert bar == 80


# One tile


def instances(*boxes, scores, labels):
    n = len(boxes)
    return Instances(
        np.array(boxes, np.float32).reshape(n, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        np.ones((n, 28, 28), np.float32),
    )


def test_instances_of_a_tile():
    tile = np.full((3, 64, 96), 100, np.uint8)
    found = instances((8, 8, 40, 40), (50, 10, 90, 60), scores=[0.9, 0.8], labels=[1, 0])
    got = draw_instances(tile, found, ["car", "house"], labels="none")
    colours = class_colours(["car", "house"])
    assert got[24, 24].tolist() == blend(colours["house"])
    assert got[35, 70].tolist() == blend(colours["car"])
    assert got[60, 4].tolist() == [100] * 3
    large = draw_instances(tile, found, ["car", "house"], scale=4)
    assert large.shape == (256, 384, 3)
    plain = draw_instances(tile, found, ["car", "house"], scale=4, labels="none")
    written = (large != plain).any(axis=2)
    text = ink_of("house 90%", 2)
    assert written[:, :192].sum() == text.size
    boxed = draw_instances(tile, found, ["car", "house"], labels="none", boxes=True, scale=4)
    assert (boxed != plain).any()


def test_tiles_of_any_kind_and_nothing_found():
    grey = np.linspace(0, 4000, 64 * 64).reshape(1, 64, 64).astype(np.uint16)
    got = draw_instances(grey, Instances.empty(), ["house"])
    assert (got[..., 0] == got[..., 2]).all()
    assert (got.min(), got.max()) == (0, 255)
    with pytest.raises(OutputError, match=r"pixels \(C, H, W\)"):
        draw_instances(grey[0], Instances.empty(), ["house"])
    found = instances((8, 8, 40, 40), scores=[0.9], labels=[2])
    with pytest.raises(OutputError, match="label 2 has no class"):
        draw_instances(grey, found, ["car", "house"])
