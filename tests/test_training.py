"""Chips are exact under their turns and zooms; training goes on as if it had never stopped."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
import torchvision
from affine import Affine
from pycocotools import mask as coco_mask
from rasterio.features import rasterize
from safetensors.torch import load_file
from scipy.ndimage import binary_erosion

from geoseg.cli.main import main
from geoseg.errors import ConfigError, GeosegError, LabelError, ModelError
from geoseg.jobs.training import QuickJob, read_log, write_quick_file
from geoseg.learning.chips import Augmentation, ChipSampler
from geoseg.learning.labels import Site, check_site, class_names, load_site, load_sites
from geoseg.learning.start import find_start, initial_model
from geoseg.learning.team import count_devices
from geoseg.learning.train import read_training_file, train, with_small_objects
from geoseg.models.card import ModelCard, save_model
from geoseg.models.maskrcnn import Architecture, build_maskrcnn
from geoseg.models.registry import load_model
from geoseg.scenes.town import TownFiles, render_town

CHIP = 96
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make small networks slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def site(name="a", weight=1.0, size=(260, 300), seed=0) -> Site:
    """A site with labels drawn white on black: the image tells where they are."""
    rng = np.random.default_rng(seed)
    height, width = size
    corners = rng.uniform(10, [width - 60, height - 60], (14, 2))
    sides = rng.uniform(12, 45, (14, 2))
    shapes = [
        shapely.affinity.rotate(shapely.box(*c, *(c + s)), rng.uniform(0, 90))
        for c, s in zip(corners, sides, strict=True)
    ]
    apart: list[shapely.Polygon] = []
    for shape in shapes:
        if not any(shape.distance(other) < 3 for other in apart):
            apart.append(shape)
    white = rasterize(apart, out_shape=size, dtype=np.uint8) * 255
    return Site(
        name=name,
        pixels=np.stack([white] * 3),
        valid=np.ones(size, bool),
        polygons=np.array(apart, object),
        labels=np.arange(len(apart)) % 2,
        aoi=shapely.box(0, 0, width, height),
        weight=weight,
    )


def sampler(*sites: Site, seed=3, **augmentation) -> ChipSampler:
    return ChipSampler(sites, CHIP, seed, Augmentation(**({"colour": 0.0} | augmentation)))


# --- chips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("any_turn", [0.0, 1.0])
def test_boxes_and_masks_lie_where_the_pixels_do(any_turn):
    chips = sampler(site(), any_turn=any_turn)
    seen = 0
    for number in range(40):
        pixels, target = chips.chip(number)
        assert pixels.shape == (3, CHIP, CHIP)
        masks = target["masks"].numpy().astype(bool)
        shown = pixels[0].numpy() > 0.5
        # every white pixel is on a mask; the edges are blurred by resampling
        union = masks.any(axis=0) if len(masks) else np.zeros_like(shown)
        inner = well_inside(shown)
        small = number_of_small(chips, number)
        if not small:
            assert not (inner & ~union).any()
            assert not (well_inside(union) & ~shown).any()
        for mask, box in zip(masks, target["boxes"].numpy(), strict=True):
            rows, cols = np.nonzero(mask)
            # pixels whose centres lie inside: at most half a pixel within the exact box
            assert (box[:2] <= [cols.min() + 0.5, rows.min() + 0.5]).all()
            assert (box[2:] >= [cols.max() + 0.5, rows.max() + 0.5]).all()
            seen += 1
    assert seen > 40


def well_inside(mask: np.ndarray) -> np.ndarray:
    return binary_erosion(mask, np.ones((3, 3)), iterations=2)


def number_of_small(chips: ChipSampler, number: int) -> int:
    """Count the objects of a chip that are cut too thin to be taught."""
    return sum(1 for _, _, side in analytic(chips, number) if side < 3)


def analytic(chips: ChipSampler, number: int):
    """Yield polygon in chip px, label and shorter side of what a chip shows, by matrices alone."""
    rng = np.random.default_rng((chips.seed, number))
    which = int(rng.choice(len(chips.sites), p=chips.shares))
    where = chips.sites[which]
    matrix = np.vstack([chips._similarity(where, rng), [0, 0, 1]])
    # a similarity: turned, zoomed, mirrored, never sheared
    product = matrix[:2, :2] @ matrix[:2, :2].T
    np.testing.assert_allclose(product, product[0, 0] * np.eye(2), atol=1e-12)
    a, b, xoff, d, e, yoff = np.linalg.inv(matrix)[:2].ravel()
    frame = shapely.box(0, 0, CHIP, CHIP)
    for polygon, label in zip(where.polygons, where.labels, strict=True):
        moved = shapely.affinity.affine_transform(polygon, [a, b, d, e, xoff, yoff])
        part = shapely.intersection(moved, frame)
        if not part.is_empty:
            x0, y0, x1, y1 = part.bounds
            yield part, label, min(x1 - x0, y1 - y0)


def test_targets_are_the_polygons_under_the_same_similarity():
    chips = sampler(site(), any_turn=1.0)
    compared = 0
    for number in range(30):
        _, target = chips.chip(number)
        expected = [(p, label) for p, label, side in analytic(chips, number) if side >= 3]
        assert len(target["boxes"]) == len(expected)
        boxes = target["boxes"].numpy()
        for polygon, label in expected:
            row = np.abs(boxes - polygon.bounds).max(axis=1).argmin()
            np.testing.assert_allclose(boxes[row], polygon.bounds, atol=1e-3)
            # 0 is the background
            assert target["labels"][row] == label + 1
            area = target["masks"][row].sum().item()
            assert abs(area - polygon.area) < 0.15 * polygon.length + 1
            compared += 1
    assert compared > 40


def test_a_chip_is_a_function_of_its_number():
    chips, again = sampler(site(), colour=1.0), sampler(site(), colour=1.0)
    order = [5, 0, 9]
    first = {n: chips.chip(n) for n in order}
    for n in reversed(order):
        pixels, target = again.chip(n)
        assert torch.equal(pixels, first[n][0])
        assert all(torch.equal(target[k], first[n][1][k]) for k in target)
    assert not torch.equal(first[5][0], first[0][0])
    assert not torch.equal(sampler(site(), seed=4, colour=1.0).chip(0)[0], first[0][0])


def test_sites_are_drawn_by_weight_not_by_size():
    small, large = site("small", 3.0, (120, 120)), site("large", 1.0, (900, 900), seed=1)
    chips = sampler(small, large)
    np.testing.assert_allclose(chips.shares, [0.75, 0.25])
    picks = [np.random.default_rng((3, n)).choice(2, p=chips.shares) for n in range(300)]
    assert 0.18 < np.mean(picks) < 0.32
    # black labels instead of white ones: the chips tell which site they are from
    dark = Site("dark", 0 * large.pixels, large.valid, large.polygons, large.labels, large.aoi, 1.0)
    mixed = sampler(small, dark)
    white = [n for n in range(60) if mixed.chip(n)[0].max() > 0]
    assert 30 <= len(white) < 60


def test_colours_vary_and_stay_in_range():
    chips = sampler(site(), colour=1.0)
    plain = sampler(site())
    for number in range(12):
        pixels, _ = chips.chip(number)
        assert pixels.dtype == torch.float32
        assert 0 <= pixels.min() <= pixels.max() <= 1
        assert not torch.equal(pixels, plain.chip(number)[0])


# --- sites -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> TownFiles:
    return render_town(
        tmp_path_factory.mktemp("town"), width_px=512, height_px=512, gsd_m=0.13, seed=4
    )


def site_table(town: TownFiles, **more) -> dict:
    return {
        "image": town.image.name,
        "labels": town.footprints.name,
        "aoi": town.aoi.name,
    } | more


def test_a_site_is_the_town(town):
    found = load_site(town.image.parent, site_table(town, weight=2), 0.13, ("building",))
    footprints = gpd.read_file(town.footprints)
    aoi = gpd.read_file(town.aoi)
    assert (found.name, found.weight) == ("town", 2.0)
    assert found.pixels.shape[1:] == found.valid.shape
    wanted = footprints.intersection(aoi.union_all()).area
    assert len(found.polygons) == (wanted > 0).sum()
    assert shapely.area(found.polygons).sum() * 0.13**2 == pytest.approx(wanted.sum(), rel=0.01)
    assert found.valid.sum() * 0.13**2 <= aoi.area.sum() * 1.01
    # at half the resolution: half the pixels a side, the same metres
    coarse = load_site(town.image.parent, site_table(town), 0.26, ("building",))
    assert shapely.area(coarse.polygons).sum() * 0.26**2 == pytest.approx(wanted.sum(), rel=0.01)


def test_a_part_of_an_aoi_is_counted_from_the_lower_left(town):
    whole = load_site(town.image.parent, site_table(town), 0.13, ("building",))
    north = load_site(
        town.image.parent, site_table(town, aoi_part=[0, 0.5, 1, 1]), 0.13, ("building",)
    )
    south = load_site(
        town.image.parent, site_table(town, aoi_part=[0, 0, 1, 0.5]), 0.13, ("building",)
    )
    assert north.aoi.area + south.aoi.area == pytest.approx(whole.aoi.area)
    # rows count downwards, so the north has the smaller ones; both read some border around
    assert north.aoi.bounds[1] == pytest.approx(whole.aoi.bounds[1])
    assert north.aoi.bounds[3] == pytest.approx(
        (whole.aoi.bounds[1] + whole.aoi.bounds[3]) / 2, abs=1
    )
    areas = [shapely.area(s.polygons).sum() for s in (north, south, whole)]
    assert areas[0] + areas[1] == pytest.approx(areas[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "none.gpkg"}, "none.gpkg does not exist; name a vector file"),
        ({"where": "class = 'boat'"}, "has no features where class = 'boat'"),
        ({"class_field": "class", "classes": ("tree",)}, r"classes \['building'\] that are not in"),
        ({"aoi": "far.gpkg"}, "the AOI in far.gpkg lies outside town.tif; check its CRS"),
        ({"aoi": "nocrs.gpkg"}, "has no CRS; assign one"),
        ({"image": "none.tif"}, "no such file"),
    ],
)
@pytest.mark.filterwarnings("ignore:.crs. was not provided")
def test_bad_sites(town, change, message):
    folder = town.image.parent
    far = gpd.GeoSeries([shapely.box(80, 20, 81, 21)], crs=4326)
    far.to_file(folder / "far.gpkg")
    far.set_crs(None, allow_override=True).to_file(folder / "nocrs.gpkg")
    footprints = gpd.read_file(town.footprints)
    footprints.assign(**{"class": "building"}).to_file(folder / "classed.gpkg")
    change = {"labels": "classed.gpkg"} | change
    classes = change.pop("classes", ("building",))
    with pytest.raises(GeosegError, match=message):
        load_site(folder, site_table(town, **change), 0.13, classes)


# --- training files --------------------------------------------------------------------------

GOOD = """
[train]
classes = ["building"]
gsd_m = 0.13
steps = 2
batch = 1
chip_px = 128
warmup = 1
checkpoint_every = 1
start = "nothing"
mixed_precision = false
architecture = { fpn_channels = 32, box_features = 64, mask_convs = 1 }

[card]
name = "town"
licence = "CC0"

[[sites]]
"""


def write_training_file(folder: Path, town: TownFiles, text: str = GOOD) -> Path:
    path = folder / "train.toml"
    lines = [f"{k} = {json.dumps(str(town.image.parent / v))}" for k, v in site_table(town).items()]
    path.write_text(text + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 2", "step = 3", "unexpected keyword argument 'step'"),
        ("steps = 2", "steps = 0", "steps is 0; expected at least 1"),
        ('classes = ["building"]', "classes = []", "classes is empty"),
        ('classes = ["building"]', "", "classes is empty"),
        ("gsd_m = 0.13", "", "lacks gsd_m; give metres per pixel, or small_objects"),
        ("gsd_m = 0.13", 'small_objects = "huge"', "expected a size in metres or 'labels'"),
        ("[[sites]]", "[[places]]", r"has no \[\[sites\]\]"),
        ("[train]", "[train", "is not valid TOML"),
        ("fpn_channels", "fpn", r"architecture has unknown keys \['fpn'\]"),
    ],
)
def test_bad_training_files(town, tmp_path, old, new, message):
    path = write_training_file(tmp_path, town, GOOD.replace(old, new, 1))
    with pytest.raises(GeosegError, match=message):
        read_training_file(path)
    with pytest.raises(ConfigError, match="does not exist; name a training file"):
        read_training_file(tmp_path / "none.toml")


def test_stopped_and_resumed_is_the_same_as_not_stopped(town, tmp_path, caplog):
    path = write_training_file(tmp_path, town)
    caplog.set_level(logging.INFO)
    whole = train(path, tmp_path / "whole", "cpu")
    train(path, tmp_path / "parts", "cpu", max_steps=1)
    before = load_file(tmp_path / "parts" / "model.safetensors")
    parts = train(path, tmp_path / "parts", "cpu")
    assert any("going on from step 1" in record.message for record in caplog.records)
    one, two = load_file(whole), load_file(parts)
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(before[name], two[name]) for name in two)
    assert all(torch.isfinite(v).all() for v in two.values() if v.is_floating_point())
    # what was trained loads as a detector, with its card
    detector = load_model(parts, device="cpu", min_score=0.0)
    assert (detector.card.name, detector.card.licence) == ("town", "CC0")
    assert detector.card.training["sites"] == [str(town.image)]
    assert len(detector(np.zeros((1, 3, 128, 128), np.uint8))) == 1
    # nothing left to do: the model is written again from the checkpoint
    again = load_file(train(path, tmp_path / "parts", "cpu"))
    assert all(torch.equal(again[name], two[name]) for name in two)


def test_trained_batch_norms_keep_what_they_saw(town, tmp_path):
    norms = 'mask_convs = 1, fpn_norm = "batch" }'
    path = write_training_file(tmp_path, town, GOOD.replace("mask_convs = 1 }", norms))
    made = load_file(train(path, tmp_path / "run", "cpu"))
    last = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    seen = [name for name in made if "fpn" in name and name.endswith("running_mean")]
    assert len(seen) == 8
    for name in seen:
        assert made[name].abs().sum() > 0
        torch.testing.assert_close(made[name].float(), last[name], atol=1e-3, rtol=1e-3)


def test_goes_on_from_a_model(town, tmp_path):
    first = train(write_training_file(tmp_path, town), tmp_path / "first", "cpu", max_steps=1)
    # a path is relative to the training file
    text = GOOD.replace('start = "nothing"', 'start = "first/model.safetensors"')
    begun = train(write_training_file(tmp_path, town, text), tmp_path / "next", "cpu", max_steps=0)
    one, two = load_file(first), load_file(begun)
    assert all(torch.equal(one[name], two[name]) for name in one)
    for start, message in (("buildings", "does not fit the architecture"), ("palms", "unknown")):
        bad = GOOD.replace('start = "nothing"', f'start = "{start}"')
        with pytest.raises(ModelError, match=message):
            train(write_training_file(tmp_path, town, bad), tmp_path / start, "cpu")


# --- labels as users have them ----------------------------------------------------------------


def grid_site(folder: Path, size: int = 200) -> tuple[Path, gpd.GeoDataFrame]:
    """An image of 0.5 m pixels in UTM, and four squares of 10 m on it, two of each class."""
    path = folder / "field.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", crs=32633,
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_500_000),
    ) as dst:  # fmt: skip
        dst.write(np.random.default_rng(1).integers(1, 255, (3, size, size)).astype(np.uint8))
    squares = [
        shapely.box(500_000 + x, 5_500_000 - y - 10, 500_000 + x + 10, 5_500_000 - y)
        for x, y in ((10, 10), (40, 10), (10, 40), (40, 40))
    ]
    frame = gpd.GeoDataFrame({"kind": ["hut", "hut", "barn", "barn"]}, geometry=squares, crs=32633)
    return path, frame


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.fgb"])
@pytest.mark.parametrize("crs", [32633, 4326, 3035])
def test_labels_of_any_format_and_crs_lie_on_the_same_pixels(tmp_path, name, crs):
    image, frame = grid_site(tmp_path)
    if (name, crs) == ("a.geojson", 3035):
        pytest.skip("GeoJSON is longitude and latitude")
    frame.to_crs(crs).to_file(tmp_path / name)
    table = {"image": image.name, "labels": name, "aoi": "image", "class_field": "kind"}
    found = load_site(tmp_path, table, 0.5, ("barn", "hut"))
    # FlatGeobuf keeps an order of its own
    order = np.lexsort(shapely.bounds(found.polygons)[:, :2].round().T)
    assert found.labels[order].tolist() == [1, 1, 0, 0]
    assert found.report.classes == {"barn": 2, "hut": 2}
    wanted = [[20, 20, 40, 40], [80, 20, 100, 40], [20, 80, 40, 100], [80, 80, 100, 100]]
    np.testing.assert_allclose(shapely.bounds(found.polygons[order]), wanted, atol=0.02)
    assert found.report.problems() == ()


def test_every_bad_label_is_counted_and_none_is_taught(tmp_path):
    image, frame = grid_site(tmp_path)
    x, y = 500_000, 5_500_000
    bowtie = shapely.Polygon(
        [(x + 60, y - 60), (x + 70, y - 70), (x + 70, y - 60), (x + 60, y - 70)]
    )
    rows = [
        ("hut", bowtie),
        ("hut", None),
        ("hut", shapely.Point(x + 5, y - 5)),
        ("hut", shapely.LineString([(x, y), (x + 9, y - 9)])),
        ("hut", shapely.box(x + 500, y - 20, x + 510, y - 10)),
        ("hut", shapely.box(x + 92, y - 20, x + 98, y - 10)),
        ("  ", shapely.box(x + 60, y - 30, x + 70, y - 20)),
        (None, shapely.box(x + 60, y - 50, x + 70, y - 40)),
        ("hut", shapely.box(x + 20, y - 90, x + 21, y - 80)),
    ]
    more = gpd.GeoDataFrame(
        {"kind": [k for k, _ in rows]}, geometry=[g for _, g in rows], crs=32633
    )
    gpd.pd.concat([frame, more]).to_file(tmp_path / "bad.gpkg")
    aoi = gpd.GeoSeries([shapely.box(x, y - 100, x + 80, y)], crs=32633)
    aoi.to_file(tmp_path / "aoi.gpkg")
    table = {
        "image": image.name, "labels": "bad.gpkg", "aoi": "aoi.gpkg", "class_field": "kind",
    }  # fmt: skip
    found = load_site(tmp_path, table, 0.5, ("barn", "hut"))
    report = found.report
    assert (report.read, report.used) == (13, 6)
    assert (report.repaired, report.empty, report.not_areas) == (1, 1, 2)
    assert (report.outside_image, report.outside_aoi) == (1, 1)
    assert (report.unclassed, report.thin) == (2, 1)
    lost = report.empty + report.not_areas + report.outside_image + report.outside_aoi
    assert report.used + lost + report.unclassed == report.read
    said = "\n".join(report.problems())
    for words in ("without geometry", "points or lines", "crossing rings", "empty class"):
        assert words in said
    # what is of no class is neither object nor background
    assert not found.valid[45:55, 125:135].any()
    assert found.valid[45:55, 105:115].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.set_crs(4326, allow_override=True), "in the CRS of the image: assign that"),
        (
            lambda f: f.to_crs(4326).set_crs(32633, allow_override=True),
            "as longitude and latitude: assign EPSG:4326",
        ),
        (
            lambda f: f.set_geometry(shapely.transform(f.geometry, lambda xy: xy[:, ::-1])),
            "with x and y exchanged",
        ),
        (lambda f: f.set_geometry(f.translate(9_000)), "give the labels of this image"),
    ],
)
def test_labels_in_a_wrong_crs_are_told_the_right_one(tmp_path, change, message):
    image, frame = grid_site(tmp_path)
    moved = change(frame)
    moved.to_file(tmp_path / "moved.gpkg")
    table = {"image": image.name, "labels": "moved.gpkg", "aoi": "image"}
    with pytest.raises(LabelError, match=message):
        load_site(tmp_path, table, 0.5, ("thing",))


def test_words_for_an_aoi(tmp_path):
    image, frame = grid_site(tmp_path)
    frame.to_file(tmp_path / "a.gpkg")
    table = {"image": image.name, "labels": "a.gpkg"}
    whole = load_site(tmp_path, table | {"aoi": "image"}, 0.5, ("thing",))
    around = load_site(tmp_path, table | {"aoi": "labels"}, 0.5, ("thing",))
    assert whole.aoi.bounds == (0, 0, 200, 200)
    np.testing.assert_allclose(around.aoi.bounds, (20, 20, 100, 100), atol=1e-6)
    with pytest.raises(LabelError, match=r"lacks aoi; .* 'image' if all of the image is labelled"):
        check_site(table, "site 1")


def test_several_images_share_a_layer_of_labels(tmp_path):
    image, frame = grid_site(tmp_path)
    (tmp_path / "sheets").mkdir()
    with rasterio.open(image) as src:
        for col in (0, 50, 150):
            window = rasterio.windows.Window(col, 0, 50, 200)
            profile = src.profile | {"width": 50, "transform": src.window_transform(window)}
            with rasterio.open(tmp_path / "sheets" / f"{col}.tif", "w", **profile) as dst:
                dst.write(src.read(window=window))
    frame.to_file(tmp_path / "a.gpkg")
    table = {"image": "sheets", "labels": "a.gpkg", "aoi": "image", "weight": 3}
    found = load_sites(tmp_path, table, 0.5, ("thing",))
    # the third sheet has no labels
    assert [s.name for s in found] == ["0", "50"]
    assert sum(s.weight for s in found) == pytest.approx(3)
    assert [s.report.used for s in found] == [2, 2]


def coco_file(path: Path, **change) -> Path:
    """The four squares in px, one as a polygon of two parts, one as run lengths, one a crowd."""
    mask = np.zeros((200, 200), np.uint8, order="F")
    mask[20:40, 80:100] = 1
    packed = coco_mask.encode(mask)
    plain = {"size": [200, 200], "counts": coco_runs(mask)}
    square = [20, 20, 40, 20, 40, 40, 20, 40]
    rows = [
        {"segmentation": [square, [50, 20, 60, 20, 60, 40, 50, 40]], "category_id": 7},
        {"segmentation": packed | {"counts": packed["counts"].decode()}, "category_id": 9},
        {"segmentation": plain, "category_id": 9, "iscrowd": 1},
        {"segmentation": [[20, 80, 40, 80, 40, 100, 20, 100]], "category_id": 9, "image_id": 2},
    ]
    table = {
        "images": [
            {"id": 1, "file_name": "some/where/field.tif", "width": 200, "height": 200},
            {"id": 2, "file_name": "other.tif", "width": 10, "height": 10},
        ],
        "categories": [{"id": 7, "name": "barn"}, {"id": 9, "name": "hut"}],
        "annotations": [{"id": i, "image_id": 1, **row} for i, row in enumerate(rows)],
    } | change
    path.write_text(json.dumps(table))
    return path


def coco_runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def test_coco_labels_as_polygons_and_run_lengths(tmp_path):
    image, _ = grid_site(tmp_path)
    coco_file(tmp_path / "instances.json")
    table = {"image": image.name, "labels": "instances.json"}
    assert class_names(tmp_path, table) == ("barn", "hut")
    found = load_site(tmp_path, table, 0.5, ("barn", "hut"))
    # the crowd lies on the hut: its ground is nobody's
    assert found.labels.tolist() == [0]
    assert (found.report.read, found.report.crowds) == (3, 1)
    assert shapely.area(found.polygons[0]) == pytest.approx(600)
    assert not found.valid[22:38, 82:98].any()
    rows = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    rows[2]["iscrowd"] = 0
    coco_file(tmp_path / "instances.json", annotations=rows)
    found = load_site(tmp_path, table, 0.25, ("barn", "hut"))
    # at half the pixel, twice the px; packed and plain run lengths are one shape
    np.testing.assert_allclose(
        shapely.bounds(found.polygons[1:]), [[160, 40, 200, 80]] * 2, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "has no image with the name field.tif"),
        ({"annotations": None}, "has no list 'annotations'"),
        (
            {"images": [{"id": 1, "file_name": "field.tif", "width": 99, "height": 200}]},
            "says that field.tif has 99 x 200 px, but it has 200 x 200",
        ),
        (
            {"annotations": [{"image_id": 1, "segmentation": {"size": [9, 9], "counts": [1]}}]},
            "neither polygons nor run lengths",
        ),
    ],
)
def test_bad_coco_labels(tmp_path, change, message):
    image, _ = grid_site(tmp_path)
    coco_file(tmp_path / "bad.json", **change)
    with pytest.raises(LabelError, match=message):
        load_site(tmp_path, {"image": image.name, "labels": "bad.json"}, 0.5, ("barn", "hut"))


def test_the_size_of_small_objects_sets_pixel_chips_anchors_and_card(tmp_path):
    """Squares of 10 m: 28 px of them would be 0.36 m, and the image has 0.5 m."""
    image, frame = grid_site(tmp_path)
    frame.to_file(tmp_path / "a.gpkg")
    site_lines = f'image = "{image.name}"\nlabels = "a.gpkg"\naoi = "image"\n'
    path = tmp_path / "train.toml"
    head = '[train]\nclasses = ["thing"]\nstart = "nothing"\nsmall_objects = '
    path.write_text(f'{head}"labels"\n[card]\noverlap = 224\n[[sites]]\n{site_lines}')
    job = with_small_objects(read_training_file(path))
    assert job.settings.gsd_m == pytest.approx(10 / 28, rel=1e-3)
    assert job.settings.architecture.anchor_sizes_px[0] == 16
    assert job.card["object_size_m"] == pytest.approx(10, rel=1e-3)
    assert job.card["overlap"] == 224, "what the file says itself wins"
    path.write_text(f"{head}2.0\ngsd_m = 0.25\n[[sites]]\n{site_lines}")
    job = with_small_objects(read_training_file(path))
    assert job.settings.gsd_m == 0.25
    # 8 px an object: the finest anchor is at most two thirds of that
    assert job.settings.architecture.anchor_sizes_px[0] == 4
    path.write_text(f"{head}2.0\n[[sites]]\n{site_lines}".replace('"nothing"', '"buildings"'))
    job = with_small_objects(read_training_file(path))
    assert job.settings.architecture is None, "its weights know their own anchors"


# --- where weights come from ------------------------------------------------------------------


def test_outputs_of_known_classes_are_kept_and_new_ones_start_as_their_mean(tmp_path):
    small = {"fpn_channels": 32, "box_features": 64, "mask_convs": 1}
    architecture = Architecture(**small)
    torch.manual_seed(5)
    network = build_maskrcnn(architecture, 3)
    card = ModelCard("old", ("car", "house", "tree"), 0.1, architecture.to_dict())
    save_model(tmp_path / "old.safetensors", network, card)
    start = find_start("old.safetensors", tmp_path, None)
    assert start.architecture == architecture
    made = initial_model(start, ("palm", "tree"), (), 1)
    before, after = network.state_dict(), made.state_dict()
    for layer, width in (("box_predictor.cls_score", 1), ("box_predictor.bbox_pred", 4)):
        old = before[f"roi_heads.{layer}.weight"].reshape(4, width, -1)
        new = after[f"roi_heads.{layer}.weight"].reshape(3, width, -1)
        torch.testing.assert_close(new[0], old[0])
        torch.testing.assert_close(new[1], old[1:].mean(0))
        torch.testing.assert_close(new[2], old[3])
    masks = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    torch.testing.assert_close(after[masks][2], before[masks][3])
    shared = "backbone.fpn.inner_blocks.0.0.weight"
    assert torch.equal(after[shared], before[shared])


def test_weights_of_coco_start_a_model_of_other_classes(tmp_path, town):
    """torchvision's network with its 91 outputs, of which 80 are classes; random weights."""
    torch.manual_seed(2)
    network = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91
    )
    torch.save(network.state_dict(), tmp_path / "coco.pth")
    start = find_start("maskrcnn_resnet50_fpn@coco.pth", tmp_path, None)
    assert start.mean == pytest.approx((0.485, 0.456, 0.406))
    made = initial_model(start, ("bird", "roof"), ("conv1.", "layer1."), 1)
    new = made.state_dict()["roi_heads.box_predictor.cls_score.weight"]
    old = network.state_dict()["roi_heads.box_predictor.cls_score.weight"]
    # COCO's bird is the 16th of its 91 numbers
    torch.testing.assert_close(new[1], old[16])
    assert new.shape[0] == 3
    frozen = {n for n, p in made.backbone.body.named_parameters() if not p.requires_grad}
    assert any(n.startswith("layer1.") for n in frozen)
    assert not any(n.startswith("layer2.") for n in frozen)
    # it knows no pixel size, but its own anchors: the size of small objects leaves them alone
    text = GOOD.replace('"nothing"', '"maskrcnn_resnet50_fpn@coco.pth"')
    lines = [n for n in text.splitlines() if not n.startswith("architecture")]
    small = "\n".join(lines).replace("gsd_m = 0.13", "small_objects = 2.0")
    job = with_small_objects(read_training_file(write_training_file(tmp_path, town, small + "\n")))
    assert job.settings.architecture is None
    assert job.settings.gsd_m > 0


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Run the command; return exit code, stdout and stderr."""
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# --- a whole training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def village(tmp_path_factory) -> TownFiles:
    """Some sixty houses: enough to spare a fifth for validation."""
    return render_town(
        tmp_path_factory.mktemp("village"), width_px=768, height_px=768, gsd_m=0.14, seed=4
    )


def test_one_command_trains_judges_and_can_be_gone_on_with(village, tmp_path, capsys):
    town = village
    run = tmp_path / "huts"
    given = [
        "train", "--image", str(town.image), "--labels", str(town.footprints), "--aoi",
        str(town.aoi), "--class-name", "hut", "--steps", "4", "-o", str(run), "--device", "cpu",
    ]  # fmt: skip
    code, out, err = call(capsys, *given)
    assert code == 0, err
    model = run / "model.safetensors"
    assert out.splitlines()[-1] == str(model)
    assert "validation: F1" in err
    file = read_training_file(run / "train.toml")
    # what is judged is not learnt from
    taught, kept = file.sites[0]["aoi_part"], file.validation[0]["aoi_part"]
    assert taught[2] == kept[0] or taught[1] == kept[3]
    card = load_model(model, device="cpu").card
    assert card.classes == ("hut",)
    judged = card.quality["validation"]
    assert 0.5 < judged["f1"] <= 1, "it starts from a model that knows houses"
    assert card.min_score == judged["min_score"]
    log = read_log(run / "log.jsonl")
    best = max(r["validation"]["f1"] for r in log if "validation" in r)
    assert judged["f1"] == pytest.approx(best)
    assert (run / "curves.png").stat().st_size > 10_000
    reports = json.loads((run / "labels.json").read_text())
    assert reports[0]["used"] > 5
    assert call(capsys, *given)[0] == 0
    code, _, err = call(capsys, *given, "--gsd", "0.2")
    assert code == 2
    assert "says something else than this command" in err


def test_of_several_images_the_last_are_kept_to_judge_by(tmp_path):
    image, _ = grid_site(tmp_path)
    (tmp_path / "sheets").mkdir()
    with rasterio.open(image) as src:
        for number, col in enumerate((0, 50, 100)):
            window = rasterio.windows.Window(col, 0, 50, 200)
            profile = src.profile | {"width": 50, "transform": src.window_transform(window)}
            with rasterio.open(tmp_path / "sheets" / f"{number}.tif", "w", **profile) as dst:
                dst.write(src.read(window=window))
    many = [
        shapely.box(500_000 + x, 5_500_000 - y - 4, 500_000 + x + 4, 5_500_000 - y)
        for x in (2, 10, 30, 40, 55, 65)
        for y in (10, 30, 50, 70, 90)
    ]
    gpd.GeoSeries(many, crs=32633).to_file(tmp_path / "a.gpkg")
    quick = QuickJob(str(tmp_path / "sheets"), str(tmp_path / "a.gpkg"), "image", steps=1)
    file = read_training_file(write_quick_file(quick, tmp_path / "run"))
    names = [[Path(s["image"]).stem for s in tables] for tables in (file.sites, file.validation)]
    assert names == [["0", "1"], ["2"]]
    # too few to spare any
    gpd.GeoSeries(many[:12], crs=32633).to_file(tmp_path / "few.gpkg")
    quick = QuickJob(str(tmp_path / "sheets"), str(tmp_path / "few.gpkg"), "image", steps=1)
    file = read_training_file(write_quick_file(quick, tmp_path / "few"))
    assert file.validation == ()


def test_check_tells_of_labels_and_trains_nothing(town, tmp_path, capsys):
    path = write_training_file(tmp_path, town)
    code, out, err = call(capsys, "train", path, "-o", tmp_path / "run", "--check")
    assert code == 0, err
    assert "labels used (building" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give a training file, or --image and --labels"),
        (["--image", "a.tif"], "give a training file, or --image and --labels"),
        (["--image", "none.tif", "--labels", "b.gpkg", "--aoi", "image"], "none.tif"),
        (["train.toml", "--gsd", "0.1"], "--gsd goes without a training file"),
    ],
)
def test_bad_commands(tmp_path, capsys, given, message):
    code, _, err = call(capsys, "train", *given, "-o", tmp_path / "run")
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err


def test_killed_and_gone_on_with_is_the_same_as_never_killed(town, tmp_path):
    text = GOOD.replace("steps = 2", "steps = 6").replace(
        "batch = 1", "batch = 1\nvalidate_every = 3"
    )
    sites = "\n".join(
        f"{k} = {json.dumps(str(town.image.parent / v))}" for k, v in site_table(town).items()
    )
    path = tmp_path / "train.toml"
    path.write_text(f"{text}{sites}\n\n[[validation]]\n{sites}\n")
    command = [sys.executable, "-m", "geoseg.cli.main", "train", str(path), "--device", "cpu", "-o"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True)
    victim = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    until((tmp_path / "killed/checkpoint.pt").is_file, victim)
    victim.kill()
    victim.wait()
    taken = torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)["step"]
    subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert taken < 6, "it was killed on its way"
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    ends = [
        torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "killed")
    ]
    assert all(torch.equal(ends[0]["model"][k], ends[1]["model"][k]) for k in ends[0]["model"])


def until(condition, process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait for something that a process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end
        time.sleep(0.01)


def test_as_many_gpus_as_share_a_batch_evenly(monkeypatch):
    for there, batch, used in ((0, 4, 1), (1, 4, 1), (3, 4, 2), (4, 4, 4), (8, 6, 6)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        assert count_devices("cuda", batch) == used
    assert count_devices("cpu", 4) == 1


def test_two_processes_hold_the_same_weights(town, tmp_path, capsys):
    text = GOOD.replace("batch = 1", "batch = 2")
    path = write_training_file(tmp_path, town, text)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "geoseg.cli.main", "train", str(path), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--devices", "2", "-o", str(tmp_path / "two")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = load_file(tmp_path / "two" / "model.safetensors")
    one = load_file(train(path, tmp_path / "one", "cpu"))
    # the same chips, drawn and averaged differently in the heads: near, not equal
    moved = [
        float((two[k].float() - one[k].float()).abs().max()) for k in one if k.endswith("weight")
    ]
    assert 0 < max(moved) < 0.02
    odd = write_training_file(tmp_path, town, GOOD)
    code, _, err = call(capsys, "train", odd, "--devices", "2", "-o", tmp_path / "x")
    assert code == 2
    assert "batch is 1; expected a multiple of 2" in err
