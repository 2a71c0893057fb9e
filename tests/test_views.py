"""Looking at tiles from several sides: turned back exactly, joined by what they agree on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely

import geoseg
from geoseg.cli.main import main
from geoseg.errors import ConfigError
from geoseg.models.card import ModelCard
from geoseg.models.registry import load_model
from geoseg.models.views import _VIEWS, SIDES, Views, _as_it_was, _turned
from geoseg.objects.evaluate import evaluate
from geoseg.records import Instances
from geoseg.scenes.town import TownFiles, render_town


def instances(boxes, scores, masks=None, labels=None) -> Instances:
    n = len(boxes)
    return Instances(
        np.array(boxes, np.float32).reshape(n, 4),
        np.array(scores, np.float32),
        np.zeros(n, int) if labels is None else np.array(labels),
        np.ones((n, 4, 4), np.float32) if masks is None else np.asarray(masks, np.float32),
    )


class Script:
    """Answers view by view what it is told, as it would be seen in that view."""

    classes, bands = ("thing", "other"), ("red", "green", "blue")
    dtype, value_range = "uint8", (0.0, 255.0)
    gsd_m, tile_size, overlap, fingerprint, tiles_a_call = 0.1, 64, 16, "script", 1
    card = ModelCard("script", ("thing", "other"), 0.1, {}, nms_iou=0.5)

    def __init__(self, *answers: Instances) -> None:
        self.answers = list(answers)

    def __call__(self, tiles):
        (found,) = (self.answers.pop(0),)
        return [found for _ in tiles]


class Bright:
    """Finds the bright pixels as one object, and a mask that follows them."""

    classes, bands = ("thing",), ("red", "green", "blue")
    dtype, value_range = "uint8", (0.0, 255.0)
    gsd_m, tile_size, overlap, fingerprint, tiles_a_call = 0.1, 64, 16, "bright", 1
    card = ModelCard("bright", ("thing",), 0.1, {}, nms_iou=0.5)

    def __call__(self, tiles):
        found = []
        for tile in tiles:
            rows, cols = np.nonzero(tile[0] > 100)
            box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            cut = tile[0, box[1] : box[3], box[0] : box[2]] > 100
            side = 8
            ys = (np.arange(side) * cut.shape[0]) // side
            xs = (np.arange(side) * cut.shape[1]) // side
            found.append(instances([box], [0.8], [cut[np.ix_(ys, xs)]]))
        return found


def seen_from(side, found: Instances, height=64, width=64) -> Instances:
    """Show what is there as a view of the tile would have it (the inverse, worked by pixels)."""
    marks = []
    for box in found.boxes:
        canvas = np.zeros((height, width), bool)
        x0, y0, x1, y1 = box.astype(int)
        canvas[y0:y1, x0:x1] = True
        rows, cols = np.nonzero(_turned(canvas, side))
        marks.append([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
    return instances(marks, found.scores, [_turned(m, side) for m in found.masks], found.labels)


@pytest.mark.parametrize("side", _VIEWS)
def test_what_is_seen_in_a_view_comes_back_where_it_is(side):
    corner = np.zeros((1, 4, 4), np.float32)
    corner[0, 0, :3] = corner[0, 1, 0] = 1
    found = instances([[3, 10, 20, 50]], [0.7], corner)
    turned = seen_from(side, found, 64, 48)
    height, width = (48, 64) if side[0] else (64, 48)
    back = _as_it_was(turned, side, height, width)
    np.testing.assert_array_equal(back.boxes, found.boxes)
    np.testing.assert_array_equal(back.masks, found.masks)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_all_views_of_a_lopsided_thing_are_one_object(count):
    tile = np.zeros((1, 3, 64, 48), np.uint8)
    tile[:, :, 8:24, 6:14] = 200
    tile[:, :, 8:16, 14:30] = 200
    (one,) = Bright()(tile)
    (found,) = Views(Bright(), count, 0.5)(tile)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes, one.boxes, atol=1e-4)
    assert found.scores == pytest.approx([0.8])
    # nearest cells of an odd number differ by half a cell between views; most are the same
    assert np.abs(found.masks - one.masks).mean() < 0.1


def test_scores_are_the_mean_over_views_and_a_view_that_sees_nothing_counts_nothing():
    house, half = [0, 0, 40, 40], [0, 0, 20, 40]
    seen = [
        seen_from(_VIEWS[0], instances([house, half], [0.8, 0.9])),
        seen_from(_VIEWS[3], instances([house], [0.6])),
    ]
    (found,) = Views(Script(*seen), 2, 0.4)(np.zeros((1, 3, 64, 64), np.uint8))
    # the house by both, (0.8 + 0.6) / 2; its half by one alone, 0.9 / 2
    assert found.scores.tolist() == pytest.approx([0.7, 0.45])
    np.testing.assert_allclose(found.boxes, [house, half])
    seen = [
        seen_from(_VIEWS[0], instances([house, half], [0.8, 0.9])),
        seen_from(_VIEWS[3], instances([house], [0.6])),
    ]
    (found,) = Views(Script(*seen), 2, 0.5)(np.zeros((1, 3, 64, 64), np.uint8))
    assert found.scores.tolist() == pytest.approx([0.7])
    assert (found.best_below, found.n_below) == (pytest.approx(0.45), 1)


def test_boxes_and_masks_are_means_weighted_by_score():
    first, second = [10, 10, 40, 40], [14, 10, 44, 40]
    seen = [
        seen_from(_VIEWS[0], instances([first], [0.9], np.ones((1, 4, 4)))),
        seen_from(_VIEWS[3], instances([second], [0.3], np.full((1, 4, 4), 0.5))),
    ]
    (found,) = Views(Script(*seen), 2, 0.1)(np.zeros((1, 3, 64, 64), np.uint8))
    np.testing.assert_allclose(found.boxes, [[11, 10, 41, 40]])
    # in the middle: (0.9 * 1 + 0.3 * 0.5) / 1.2
    assert found.masks[0, 1, 1] == pytest.approx(0.875)


def test_classes_are_joined_apart_and_doubles_go_by_the_mean():
    box = [0, 0, 40, 40]
    seen = [
        seen_from(_VIEWS[0], instances([box, box], [0.9, 0.8], labels=[0, 1])),
        seen_from(_VIEWS[3], instances([box, [0, 0, 40, 22]], [0.9, 0.9], labels=[0, 0])),
    ]
    (found,) = Views(Script(*seen), 2, 0.1)(np.zeros((1, 3, 64, 64), np.uint8))
    assert sorted(zip(found.labels.tolist(), found.scores.tolist(), strict=True)) == [
        (0, pytest.approx(0.9)),
        (1, pytest.approx(0.4)),
    ]


def test_nothing_anywhere_is_nothing():
    nothing = Instances.empty()
    (found,) = Views(Script(nothing, nothing), 2, 0.1)(np.zeros((1, 3, 64, 64), np.uint8))
    assert len(found) == 0


def test_other_counts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--views is 3; expected 1, 2, 4, 8"):
        Views(Bright(), 3, 0.5)
    with pytest.raises(ConfigError, match="--views is 5"):
        geoseg.detect(tmp_path / "a.tif", views=5)
    with pytest.raises(ConfigError, match="--views goes with a model"):
        geoseg.detect(tmp_path / "a.tif", views=2, detector="a:b")


# --- the shipped model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> TownFiles:
    return render_town(
        tmp_path_factory.mktemp("town"), width_px=640, height_px=640, gsd_m=0.14, seed=4
    )


def test_a_turned_tile_gives_turned_objects(town):
    """With all eight views, that is so to rounding; with one the network's own bias shows."""
    import rasterio

    with rasterio.open(town.image) as src:
        tile = src.read()[None, :, :512, :512]
    detector = Views(load_model("buildings", device="cpu", min_score=0.1), 8, 0.5)
    (plain,), (mirrored,) = detector(tile), detector(np.ascontiguousarray(tile[..., ::-1]))
    assert len(plain) == len(mirrored) > 10
    back = _as_it_was(mirrored, (False, True, False), 512, 512)
    order = [np.lexsort(np.round(one.boxes[:, :2]).T) for one in (plain, back)]
    np.testing.assert_allclose(plain.boxes[order[0]], back.boxes[order[1]], atol=0.5)
    np.testing.assert_allclose(plain.scores[order[0]], back.scores[order[1]], atol=0.03)


def test_a_run_with_views_is_a_run_of_its_own_and_says_so(town, tmp_path, capsys):
    given = ["detect", str(town.image), "-o", str(tmp_path / "a.gpkg"), "-j", "1"]
    assert main([*given, "--views", "2"]) == 0
    capsys.readouterr()
    truth, aoi = gpd.read_file(town.footprints), gpd.read_file(town.aoi)
    result = evaluate(gpd.read_file(tmp_path / "a.gpkg", layer="objects"), truth, aoi=aoi)
    assert result.f1 > 0.8
    manifest = geoseg.open_run(tmp_path / "a.gpkg").manifest
    assert manifest["views"] == 2
    # another number of views never goes on with those parts
    assert main([*given, "--views", "1"]) == 2
    assert "other" in capsys.readouterr().err


def test_a_card_asks_for_its_views(town, tmp_path, monkeypatch):
    from geoseg.models.card import read_card
    from geoseg.models.registry import find_model

    source = find_model("buildings")
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(Path(source).read_bytes())
    card = ModelCard.from_dict({**asdict(read_card(source)), "views": 2}, "mine")
    copy.with_suffix(".json").write_text(card.to_json())
    counts = []
    own = Views.__init__
    monkeypatch.setattr(Views, "__init__", lambda s, d, n, m: counts.append(n) or own(s, d, n, m))
    aoi = gpd.read_file(town.aoi)
    small = shapely.buffer(shapely.centroid(aoi.union_all()), 12)
    gpd.GeoSeries([small], crs=aoi.crs).to_file(tmp_path / "aoi.gpkg")
    for views in (None, 4):
        geoseg.detect(town.image, model=copy, aoi=tmp_path / "aoi.gpkg", workers=1, views=views)
    assert counts == [2, 4]
    with pytest.raises(geoseg.errors.ModelError, match="views is 3; expected 1, 2, 4, 8"):
        ModelCard.from_dict({**asdict(card), "views": 3}, "mine")


def test_sides_are_different(town):
    tile = np.arange(2 * 12).reshape(1, 1, 4, 6)
    for count, sides in SIDES.items():
        shown = {_turned(tile, _VIEWS[i]).tobytes() for i in sides}
        assert len(sides) == count == len(shown)
