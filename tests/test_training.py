"""Chips are exact under their turns and zooms; training goes on as if it had never stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from rasterio.features import rasterize
from safetensors.torch import load_file
from scipy.ndimage import binary_erosion

from geoseg.errors import ConfigError, GeosegError, ModelError
from geoseg.learning.labels import Augmentation, ChipSampler, Site, load_site
from geoseg.learning.train import read_training_file, train
from geoseg.models.registry import load_model
from geoseg.scenes.town import TownFiles, render_town

CHIP = 96


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
        ({"aoi": "far.gpkg"}, "none of .* labels lies in its AOI"),
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
        ("gsd_m = 0.13", "", "missing 1 required positional argument: 'gsd_m'"),
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
