"""Small objects as one switch: the arithmetic, what a run makes of it, and the sizes of labels."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from runs import manifest_of
from scipy import ndimage

import geoseg
from geoseg.cli.main import main
from geoseg.config import DetectSettings, read_job
from geoseg.errors import ConfigError, LabelError, ModelError
from geoseg.jobs.estimate import estimate_run
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.plan import plan_run
from geoseg.learning.small import LARGE_SHARE, size_of_labels, training_for
from geoseg.models.card import ModelCard
from geoseg.models.registry import load_model
from geoseg.models.small import LIMITS, anchors_for, settings_for
from geoseg.records import Instances

SHED_M, PIXEL_M = 3.0, 0.1
UTM_WKT = pyproj.CRS.from_epsg(32633).to_wkt()


class Nearsighted:
    """Finds bright squares, but like a network none of less than 25 px a side."""

    classes = ("shed",)
    gsd_m = 0.14
    tile_size = 256
    overlap = 64
    object_size_m = SHED_M
    fingerprint = "nearsighted"

    def __call__(self, tiles):
        return [self.find(tile[0] > 150) for tile in tiles]

    def find(self, bright):
        places = ndimage.find_objects(ndimage.label(bright)[0])
        boxes = np.array(
            [(c.start, r.start, c.stop, r.stop) for r, c in places if
             min(c.stop - c.start, r.stop - r.start) >= 25], np.float32,
        ).reshape(-1, 4)  # fmt: skip
        n = len(boxes)
        return Instances(
            boxes, np.full(n, 0.9, np.float32), np.zeros(n, np.int64),
            np.ones((n, 28, 28), np.float32),
        )  # fmt: skip


def make():
    return Nearsighted()


@pytest.fixture
def sheds(make_raster):
    """64 sheds of 3 m, 8 m apart, in pixels of 10 cm."""
    pixels = np.full((3, 660, 660), 60, np.uint8)
    for row in range(8):
        for col in range(8):
            y, x = 20 + 80 * row, 20 + 80 * col
            pixels[:, y : y + 30, x : x + 30] = 220
    return make_raster("sheds.tif", pixels)


@pytest.fixture(autouse=True)
def detectors_of_the_tests(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


# size, image, model -> pixel, held by, tile, overlap; by hand
ARITHMETIC = [
    # 3 / 28 = 0.10714; 0.14 / that = 1.30667; x 768 = 1003.5 -> 1024; x 192 = 250.9 -> 256
    (3.0, 0.07, 0.14, 3 / 28, "", 1024, 256),
    # 1 / 28 = 0.0357 is below 0.14 / 1.35 = 0.1037; 768 x 1.35 = 1036.8 -> 1056; 259.2 -> 288
    (1.0, 0.07, 0.14, 0.14 / 1.35, "model", 1056, 288),
    # an image of 0.36 m is enlarged 3 times at most: 0.12, 1.16667 times finer: 896, 224
    (2.0, 0.36, 0.14, 0.12, "image", 896, 224),
    # 10 / 28 = 0.357: coarser than the model, so nothing changes
    (10.0, 0.07, 0.14, 0.14, "enough", 768, 192),
    # 1.03 times finer is not worth resampling for
    (0.14 / 1.03 * 28, 0.07, 0.14, 0.14, "enough", 768, 192),
    # the image of 1 m is too coarse for either: a third of a metre is still coarser than the model
    (2.0, 1.0, 0.14, 0.14, "image", 768, 192),
    # a model without a pixel of its own takes the image's: 0.3 -> 0.1, 3 times finer; 2304 -> 2048
    (2.0, 0.3, None, 0.1, "image", 2048, 576),
    (2.8, 0.05, None, 0.05, "enough", 768, 192),
]


@pytest.mark.parametrize(("size", "image", "model", "gsd", "held", "tile", "overlap"), ARITHMETIC)
def test_pixel_tile_and_overlap_follow_from_the_size(size, image, model, gsd, held, tile, overlap):
    s = settings_for(size, image_gsd_m=image, model_gsd_m=model)
    assert (s.gsd_m, s.held_by, s.tile_size, s.overlap) == (
        pytest.approx(gsd), held, tile, overlap,
    )  # fmt: skip
    base = image if model is None else model
    # the overlap holds on the ground what it held before
    assert s.overlap * s.gsd_m >= 192 * base - 1e-6
    assert s.object_px == pytest.approx(size / gsd)
    assert s.min_area_m2 == pytest.approx((size / 2) ** 2)


def test_limits_follow_from_the_ground_of_a_tile():
    s = settings_for(1.0, image_gsd_m=0.07, model_gsd_m=0.14)
    # 1056 px x 0.1037 m = 109.51 m; its 11,993 m2 hold an object of 1 m2 per 4 m2: 2,000 at most
    assert (s.max_detections, s.proposals, s.rpn_pre_nms) == (2000, 3000, 6000)
    s = settings_for(2.5, image_gsd_m=0.07, model_gsd_m=0.14)
    # 11,993 / (4 x 6.25) = 479.7 -> 480; x 1.5 = 720; x 2 = 1,440
    assert (s.max_detections, s.proposals, s.rpn_pre_nms) == (480, 720, 1440)
    # a quarter of an object's 2.5 / 0.1037 = 24.1 px
    assert s.rpn_min_size == s.min_side_px == pytest.approx(2.5 / 0.14 * 1.35 / 4)
    wide = {"max_detections": 900, "proposals": 5000, "rpn_pre_nms": 12000, "rpn_nms_iou": 0.8,
            "min_side_px": 9.0}  # fmt: skip
    s = settings_for(2.5, image_gsd_m=0.07, model_gsd_m=0.14, card=wide)
    assert {name: s.limits[name] for name in wide} == wide
    assert set(s.limits) == set(LIMITS) <= set(ModelCard.__dataclass_fields__)


@pytest.mark.parametrize(("px", "finest"), [(64, 16), (24, 16), (23.9, 8), (12, 8), (6, 4), (2, 4)])
def test_the_finest_anchor_is_at_most_two_thirds_of_an_object(px, finest):
    assert anchors_for(px) == tuple(finest * 2.0**level for level in range(5))


def test_given_settings_win_and_the_rest_follows_from_them():
    s = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=0.14, gsd_m=0.07)
    # 2 times finer: 1536 and 384; as many pixels as 2 x 2
    assert (s.gsd_m, s.held_by, s.tile_size, s.overlap, s.cost) == (0.07, "given", 1536, 384, 4.0)
    s = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=0.14, tile_size=512)
    assert (s.tile_size, s.overlap) == (512, 170)
    s = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=0.14, overlap=64)
    assert (s.tile_size, s.overlap) == (1024, 64)
    s = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=0.14, overlap=1500)
    assert (s.tile_size, s.overlap) == (3008, 1500)
    # coarser than without: then it costs less, and tiles do not shrink
    s = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=0.14, gsd_m=0.28)
    assert (s.tile_size, s.overlap, s.cost) == (768, 192, 0.25)


def test_the_switch_finds_what_was_too_small(sheds):
    without = geoseg.detect(sheds, detector=make(), workers=1)
    found = geoseg.detect(sheds, detector=make(), workers=1, small_objects=SHED_M)
    assert len(without) == 0
    assert len(found) == 64
    assert found["area_m2"].to_numpy() == pytest.approx(9.0, rel=0.1)
    # the size that the detector declares
    assert len(geoseg.detect(sheds, detector=make(), workers=1, small_objects=True)) == 64
    (note,) = [n for n in found.attrs["notes"] if "--small-objects" in n]
    assert "0.107 m" in note
    assert "28 px an object" in note
    assert "objects a tile" not in note


def settings(image, **more):
    return DetectSettings(images=(str(image),), detector="test_small_objects:make", **more)


def test_a_run_is_keyed_by_what_was_chosen(sheds, tmp_path):
    plain, small = (plan_run(settings(sheds, small_objects=s)) for s in (None, 3.0))
    assert plain.images[0].small is None
    assert plain.key != small.key
    assert small.images[0].grid.gsd_m == pytest.approx(3 / 28, rel=1e-3)
    # 256 x 1.30667 = 334.5 -> 352, 64 -> 96
    assert (small.images[0].tiles.tile_size, small.images[0].tiles.overlap) == (352, 96)
    assert (plain.settings.min_area, small.settings.min_area) == (0.0, 2.25)
    # the parts hold the same whether the numbers come from the switch or not
    by_hand = settings(sheds, gsd=small.images[0].small.gsd_m, tile_size=352, overlap=96)
    assert plan_run(by_hand).key == small.key
    output = tmp_path / "sheds.gpkg"
    run_detect(settings(sheds, small_objects=3.0, output=output, workers=1))
    manifest = manifest_of(output)
    assert manifest["settings"]["small_objects"] == 3.0
    assert manifest["settings"]["min_area"] == 2.25
    assert manifest["images"][0]["small_objects"]["tile_size"] == 352
    # the same run directory is no place for another size
    with pytest.raises(ConfigError, match="other images, model or settings"):
        run_detect(settings(sheds, small_objects=1.0, output=output, workers=1))


def test_a_models_limits_reach_the_network_and_the_key(sheds):
    job = DetectSettings(images=(str(sheds),), small_objects=1.0)
    plan = plan_run(job)
    chosen = plan.images[0].small
    assert dict(plan.detector.limits) == chosen.limits
    assert chosen.max_detections == 2000
    given = replace(job, small_objects=None, gsd=chosen.gsd_m, tile_size=1056, overlap=288)
    # the same grid and tiles, but the network's own limits
    other = plan_run(given)
    assert other.images[0].tiles == plan.images[0].tiles
    assert other.key != plan.key
    loaded, known = plan.detector.load(), load_model(device="cpu", min_score=0.65)
    assert {name: getattr(loaded.card, name) for name in LIMITS} == chosen.limits
    assert loaded.fingerprint != known.fingerprint
    assert loaded.card.architecture == known.card.architecture


def test_explicit_options_win_in_a_run(sheds):
    image = plan_run(
        settings(sheds, small_objects=3.0, gsd="native", tile_size=200, overlap=40, min_area=1.5)
    )
    (planned,) = image.images
    assert planned.grid.scale_x == 1.0
    assert (planned.tiles.tile_size, planned.tiles.overlap) == (200, 40)
    assert image.settings.min_area == planned.small.min_area_m2 == 1.5
    assert planned.small.held_by == "given"


def test_images_of_different_pixels_are_planned_each_for_itself(sheds, make_raster):
    coarse = make_raster(
        "coarse.tif", height=200, width=200, transform=Affine(0.36, 0, 5e5, 0, -0.36, 5.5e6)
    )
    job = DetectSettings(
        images=(str(sheds), str(coarse)), detector="test_small_objects:make", small_objects=2.0
    )
    rough, fine = (image.small for image in plan_run(job).images)
    assert (fine.held_by, rough.held_by) == ("model", "image")
    assert fine.gsd_m < rough.gsd_m


def test_plan_tells_what_the_run_would_take(sheds, capsys):
    estimate = estimate_run(settings(sheds, small_objects=3.0), probe=False)
    assert any("the network sees 1.8 times as many" in note for note in estimate.notes)
    assert estimate.images[0].working_gsd_m == pytest.approx(3 / 28, rel=1e-3)
    # without metres: the size on the shipped model's card
    assert main(["plan", str(sheds), "--no-probe", "--json", "--small-objects"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("--small-objects 3 m" in note and "objects a tile" in note for note in notes)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", "0.05 to 1000 metres"),
        # click takes this for an option
        ("-3", "-3"),
        ("nan", "0.05 to 1000 metres"),
        ("inf", "0.05 to 1000 metres"),
        ("3m", "behind the images"),
    ],
)
def test_nonsense_is_refused(sheds, capsys, value, says):
    assert main(["plan", str(sheds), "--no-probe", f"--small-objects={value}"]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_says_no_size_is_asked_in_vain(sheds, tmp_path, capsys):
    args = ["plan", str(sheds), "--no-probe", "--detector", "stubs:make", "--small-objects"]
    assert main(args) == 2
    assert "give the size in metres: --small-objects 3" in capsys.readouterr().err
    with pytest.raises(ModelError, match="object_size_m is -1"):
        ModelCard("x", ("y",), 0.1, {}, object_size_m=-1.0)


@pytest.mark.parametrize(("text", "means"), [("3", 3), ("true", "model"), ("false", None),
                                             ('"model"', "model"), ("2.5", 2.5)])  # fmt: skip
def test_a_job_file_has_the_switch(tmp_path, text, means):
    job = tmp_path / "job.toml"
    job.write_text(f'[detect]\nimages = ["a.tif"]\nsmall_objects = {text}\n')
    assert read_job(job).small_objects == means


@pytest.mark.parametrize("text", ["0", '"labels"', "[3]", "-1.0"])
def test_a_job_file_with_nonsense_is_refused(tmp_path, text):
    job = tmp_path / "job.toml"
    job.write_text(f'[detect]\nimages = ["a.tif"]\nsmall_objects = {text}\n')
    with pytest.raises(ConfigError, match=r"small.objects"):
        read_job(job)


def squares(sides_m):
    """Return squares of sides on the ground, on the central meridian, where 1 m is 0.9996."""
    k = 0.9996
    return [
        shapely.box(5e5 + 50 * i, 5.5e6, 5e5 + 50 * i + k * s, 5.5e6 + k * s)
        for i, s in enumerate(sides_m)
    ]


def test_the_size_of_labels_is_that_of_the_smallest_tenth_on_the_ground():
    # of twenty the second smallest: two are a tenth
    sides = [2.0, 3.0, *[10.0] * 18]
    assert size_of_labels(squares(sides), UTM_WKT) == pytest.approx(3.0, rel=1e-4)
    assert size_of_labels(squares(sides), UTM_WKT, share=0.05) == pytest.approx(2.0, rel=1e-4)
    assert size_of_labels(squares(sides), UTM_WKT, share=LARGE_SHARE) == pytest.approx(10, rel=1e-4)
    # a site of one label weighs as much as one of nineteen: the half of all is 2 m
    sites = ["a", *["b"] * 19]
    assert size_of_labels(squares(sides), UTM_WKT, sites=sites, share=0.5) == pytest.approx(2.0)
    # a long shape is as large as the square of its area
    wall = shapely.box(5e5, 5.5e6, 5e5 + 1.0, 5.5e6 + 16.0)
    assert size_of_labels([wall], UTM_WKT) == pytest.approx(sqrt(16) / 0.9996, rel=1e-4)
    # no matter in which CRS
    mercator = pyproj.Transformer.from_crs(32633, 3857, always_xy=True)
    moved = [shapely.transform(p, mercator.transform, interleaved=False) for p in squares(sides)]
    wkt = pyproj.CRS.from_epsg(3857).to_wkt()
    assert size_of_labels(moved, wkt) == pytest.approx(3.0, rel=1e-3)


def test_labels_without_area_have_no_size():
    with pytest.raises(LabelError, match="no label has an area"):
        size_of_labels([], UTM_WKT)


def test_a_training_for_small_objects():
    # 3 / 28 = 0.107 m; chips of 50 m are 466 px, in steps of 32 480
    chosen = training_for(3.0, [0.07, 0.15])
    assert (chosen.gsd_m, chosen.chip_px) == (pytest.approx(3 / 28), 480)
    assert chosen.anchor_sizes_px == (16.0, 32.0, 64.0, 128.0, 256.0)
    assert chosen.card["object_size_m"] == 3.0
    # images of 0.6 m allow 0.2 m: 15 px an object, and anchors from 8 px
    coarse = training_for(3.0, [0.6], largest_m=60.0)
    assert (coarse.gsd_m, coarse.chip_px) == (pytest.approx(0.2), 384)
    assert coarse.anchor_sizes_px == (8.0, 16.0, 32.0, 64.0, 128.0)
    # 60 m are 300 px, in steps of 32 320; a tile is three times that
    assert (coarse.card["tile_size"], coarse.card["overlap"]) == (960, 320)
    # weights of a model of 0.14 m begin no finer than 0.1037
    assert training_for(1.0, [0.07], start_gsd_m=0.14).gsd_m == pytest.approx(0.14 / 1.35)
    given = training_for(1.0, [0.07], gsd_m=0.05, chip_px=448)
    assert (given.gsd_m, given.chip_px) == (0.05, 448)
    # what is trained so needs no finer grid later
    later = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=chosen.gsd_m, card=chosen.card)
    assert (later.enlarged, later.tile_size) == (1.0, chosen.card["tile_size"])
    fields = ModelCard.__dataclass_fields__
    assert set(chosen.card) <= set(fields)
    for size, images in ((0.0, [0.1]), (3.0, []), (3.0, [0.0])):
        with pytest.raises(ConfigError, match=r"\[train\] small_objects"):
            training_for(size, images)
