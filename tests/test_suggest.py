"""Which ground to label next, the tasks in QGIS, and the labels that come back."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from painted import PaintedDetector, detect, square_tiles
from rasterio.windows import Window
from test_geopackage import SYSTEM_PYTHON, VALIDATOR, system_has
from unsure import SIDE, STEP, Unsure, paint

from geoseg.cli.main import main
from geoseg.errors import ConfigError, GeosegError, LabelError, SourceError
from geoseg.jobs.suggest import Suggestion, SuggestSettings, suggest
from geoseg.learning.chips import Augmentation, ChipSampler
from geoseg.learning.labels import load_site
from geoseg.objects.seams import bin_distances
from geoseg.objects.stitch import stitch_counted, tile_trials
from geoseg.objects.suggest import (
    Candidates,
    Survey,
    choose_squares,
    decision_risk,
    tile_disagreement,
    values_of,
)
from geoseg.outputs.tasks import collect_tasks
from geoseg.records import Fragments, Tile

PER_ROW = 16
CORNER = (500_000.0, 5_500_000.0)
"""Of the images of `make_raster`, whose pixels are 0.1 m."""


def square(col: int, row: int, cols: int, rows: int) -> shapely.Polygon:
    """Return a rectangle of px in the images' CRS."""
    x, y = CORNER[0] + col / 10, CORNER[1] - row / 10
    return shapely.box(x, y - rows / 10, x + cols / 10, y)


def roof(number: int) -> tuple[int, int]:
    """Return the middle of a roof, x and y in px."""
    row, col = divmod(number, PER_ROW)
    return 13 + STEP * col + SIDE // 2, 13 + STEP * row + SIDE // 2


def holds(task, number: int) -> bool:
    x, y = roof(number)
    return task.contains(shapely.Point(CORNER[0] + x / 10, CORNER[1] - y / 10))


def run(image: Path, output: Path, detector=None, **changes) -> Suggestion:
    settings = {"n": 4, "tile_m": 12.8, "overwrite": True} | changes
    given = SuggestSettings(images=(str(image),), output=output, **settings)
    return suggest(given, Unsure() if detector is None else detector)


# --- signals ---------------------------------------------------------------------------------


def two_tiles() -> list[Tile]:
    return [
        Tile((0, 0), core=Window(0, 0, 150, 100), window=Window(0, 0, 200, 100)),
        Tile((0, 1), core=Window(150, 0, 150, 100), window=Window(100, 0, 200, 100)),
    ]


def found_in(tiles, *rows) -> Fragments:
    """Make fragments of (tile, polygon, score)."""
    which, polygons, scores = zip(*rows, strict=True)
    return Fragments.from_polygons(
        polygons, scores=scores, labels=[0] * len(rows), tiles=which, tile_list=tiles
    )


def test_disagreement_counts_objects_on_which_two_tiles_differ():
    tiles, house = two_tiles(), shapely.box(140, 40, 160, 60)
    # one of two tiles shows it: they differ for sure, and it is one object
    alone = found_in(tiles, (0, house, 0.8))
    np.testing.assert_allclose(tile_disagreement(alone, tiles), [0.8 / 2])
    both = found_in(tiles, (0, house, 0.8), (1, house, 0.8))
    np.testing.assert_allclose(tile_disagreement(both, tiles), [0, 0], atol=1e-6)
    # alike in outline, not in score
    half = found_in(tiles, (0, house, 0.8), (1, house, 0.4))
    np.testing.assert_allclose(tile_disagreement(half, tiles), [0.2, 0.2], atol=1e-6)
    # half the ground in common: an IoU of a third
    moved = found_in(tiles, (0, house, 0.9), (1, shapely.box(150, 40, 170, 60), 0.9))
    np.testing.assert_allclose(tile_disagreement(moved, tiles), [0.3, 0.3], atol=0.01)
    # where only one tile looked nobody can disagree
    outside = found_in(tiles, (0, shapely.box(20, 40, 40, 60), 0.8))
    np.testing.assert_allclose(tile_disagreement(outside, tiles), [0])
    assert tile_disagreement(Fragments.empty(), tiles).shape == (0,)


def test_tiles_are_not_asked_about_what_lies_at_their_edge():
    tiles = two_tiles()
    near = found_in(tiles, (0, shapely.box(105, 40, 120, 60), 0.8))
    np.testing.assert_allclose(tile_disagreement(near, tiles), [0])
    np.testing.assert_allclose(tile_disagreement(near, tiles, trust_px=4), [0.4])


def test_trials_one_by_one_are_those_of_the_seam_report(scene):
    tiles = square_tiles(*scene.shape, 128, 64)
    found = detect(scene, tiles, PaintedDetector(28, disturb=True))
    _, counts = stitch_counted(found, tiles)
    trials = tile_trials(found, tiles)
    assert sum(counts.trials) > 100
    assert bin_distances(trials.distance) == counts.trials
    hit = trials.iou >= 0.5
    assert bin_distances(trials.distance[hit]) == counts.hits
    # partners are of another tile, of the same class, and where the fragment is
    rows, partners = trials.rows[hit], trials.partners[hit]
    assert (found.tiles[rows] != found.tiles[partners]).all()
    assert (found.labels[rows] == found.labels[partners]).all()
    assert shapely.intersects(found.polygons[rows], found.polygons[partners]).all()
    assert ((trials.partners == -1) == (trials.iou == 0)).all()


def test_risk_is_highest_at_the_threshold_whatever_that_is():
    for threshold in (0.3, 0.5, 0.9):
        scores = np.linspace(0, 1, 101)
        risk = decision_risk(scores, threshold)
        assert scores[risk.argmax()] == pytest.approx(threshold)
        assert risk.max() == pytest.approx(0.5)
        assert (risk[[0, -1]] == 0).all()
    assert decision_risk(np.array([0.0, 1.0]), 1.0).tolist() == [0.0, 0.5]
    assert decision_risk(np.array([0.0, 1.0]), 0.0).tolist() == [0.5, 0.0]


def test_a_survey_adds_up_and_its_squares_cover_the_image():
    survey = Survey.lay(200, 330, 64)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (3, 200, 330)).astype(np.uint8)
    valid = rng.random((200, 330)) < 0.9
    for top in (0, 90):
        for left in (0, 170):
            part = np.s_[top : (90, 200)[top > 0], left : (170, 330)[left > 0]]
            survey.add_pixels(pixels[:, part[0], part[1]], valid[part], top, left)
    assert survey.sums["valid"].sum() == valid.sum()
    assert survey.sums["first"].sum() == pixels[0][valid].sum()
    points = rng.uniform(0, [330, 200], (50, 2))
    survey.add_points(points, n=np.ones(50), uncertainty=np.ones(50))
    squares = survey.candidates()
    ground = shapely.union_all(squares.polygons)
    assert ground.equals(shapely.box(0, 0, 330, 200))
    for box, n in zip(squares.bounds, squares.n_objects, strict=True):
        inside = (points >= box[:2]) & (points < box[2:])
        assert n == inside.all(axis=1).sum()
    # an image smaller than a square is one square
    small = Survey.lay(40, 30, 64)
    small.add_pixels(pixels[:, :40, :30], np.ones((40, 30), bool), 0, 0)
    assert len(small.candidates()) >= 1
    with pytest.raises(ConfigError, match="larger --tile-m"):
        Survey.lay(200, 330, 2)


def fake_candidates(index, features, uncertainty) -> Candidates:
    index = np.asarray(index)
    n = len(index)
    corner = index[:, ::-1] * 50.0
    bounds = np.concatenate([corner, corner + 100], axis=1)
    return Candidates(
        index, bounds, shapely.box(*bounds.T), np.ones(n, int),
        np.asarray(uncertainty, float), np.zeros(n), np.asarray(features, float),
    )  # fmt: skip


def test_squares_are_spread_over_ground_and_over_kinds_of_ground():
    index = [(0, 2 * k) for k in range(12)]
    # ten squares of one kind, a little better than two of another
    kinds = [[0.0] * 7] * 10 + [[5.0] * 7] * 2
    c = fake_candidates(index, kinds, [10 - 0.1 * k for k in range(10)] + [7, 6])
    centres = c.bounds[:, :2] + 50
    chosen = choose_squares([c], values_of([c]), [centres], 100, 3)
    rows = [row for _, row in chosen]
    assert rows[0] == 0
    # neither the neighbour (1) nor more of the same (2, 3)
    assert rows[1] == 10
    assert 1 not in rows
    # all that fit, and no more
    everything = choose_squares([c], values_of([c]), [centres], 100, 99)
    assert sorted(row for _, row in everything) == list(range(12))


def test_overlapping_squares_are_never_chosen_together():
    index = [(r, k) for r in range(6) for k in range(6)]
    c = fake_candidates(index, np.zeros((36, 7)), np.arange(36))
    chosen = choose_squares([c], values_of([c]), [c.bounds[:, :2] + 50], 100, 99)
    boxes = c.polygons[[row for _, row in chosen]]
    shared = shapely.area(shapely.intersection(boxes[:, None], boxes[None, :]))
    assert (shared[~np.eye(len(boxes), dtype=bool)] == 0).all()
    # the same ground on two sheets counts once
    twice = choose_squares([c, c], values_of([c, c]), [c.bounds[:, :2] + 50] * 2, 100, 99)
    assert len(twice) == len(chosen)


# --- the whole way ---------------------------------------------------------------------------


def test_where_the_model_is_unsure_is_suggested_first(tmp_path, make_raster):
    image = make_raster("town.tif", paint(unsure=(3 * PER_ROW + 12, 3 * PER_ROW + 13)))
    found = run(image, tmp_path / "t.gpkg")
    first = found.tasks.iloc[0]
    assert holds(first.geometry, 3 * PER_ROW + 12)
    assert first["uncertainty"] > 3 * found.tasks["uncertainty"].iloc[-1]
    assert found.tasks["disagreement"].max() == pytest.approx(0, abs=0.05)
    assert found.tasks["rank"].tolist() == [1, 2, 3, 4]
    assert found.tasks["value"].iloc[0] == found.tasks["value"].max()


def test_where_tiles_disagree_is_suggested_first(tmp_path, make_raster):
    image = make_raster("town.tif", paint(shy=(10 * PER_ROW + 5, 12 * PER_ROW + 5)))
    found = run(image, tmp_path / "t.gpkg")
    first = found.tasks.iloc[0]
    assert holds(first.geometry, 10 * PER_ROW + 5)
    assert first["disagreement"] > 0.3
    assert found.tasks["disagreement"].iloc[-1] == pytest.approx(0, abs=0.02)


def test_labelled_ground_and_what_lies_outside_the_aoi_are_left_out(tmp_path, make_raster):
    image = make_raster("town.tif", paint(unsure=tuple(range(0, 256, 3))))
    aoi, labelled = tmp_path / "aoi.geojson", tmp_path / "labelled.gpkg"
    area, taken = square(0, 0, 640, 400), square(100, 100, 250, 250)
    gpd.GeoDataFrame(geometry=[area], crs="EPSG:32633").to_crs(4326).to_file(aoi)
    gpd.GeoDataFrame(geometry=[taken], crs="EPSG:32633").to_file(labelled)
    found = run(image, tmp_path / "t.gpkg", n=99, aoi=aoi, labelled=(labelled,))
    ground = shapely.union_all(found.tasks.geometry.to_numpy())
    assert shapely.area(shapely.intersection(ground, taken)) < 1e-3
    assert shapely.area(shapely.difference(ground, area)) < 0.1
    assert len(found.tasks) > 4
    # and what is left when all is labelled
    gpd.GeoDataFrame(geometry=[area], crs="EPSG:32633").to_file(labelled)
    with pytest.raises(ConfigError, match="no ground is left to suggest"):
        run(image, tmp_path / "t.gpkg", aoi=aoi, labelled=(labelled,))


def test_ground_without_data_is_not_suggested(tmp_path, make_raster):
    mask = np.ones((640, 640), bool)
    mask[:, 300:] = False
    image = make_raster("town.tif", paint(), mask=mask)
    found = run(image, tmp_path / "t.gpkg", n=99)
    for task in found.tasks.geometry:
        # at least half of each shows something
        assert task.intersection(square(0, 0, 300, 640)).area >= 0.5 * 12.8**2 - 0.01


def test_the_same_squares_every_time_and_earlier_tasks_are_not_asked_again(tmp_path, make_raster):
    image = make_raster("town.tif", paint(unsure=tuple(range(0, 256, 5)), shy=(100, 117, 200)))
    first, again = (run(image, tmp_path / f"{k}.gpkg") for k in "ab")
    assert first.tasks.equals(again.tasks)
    assert first.objects.equals(again.objects)
    done = set_status(tmp_path / "a.gpkg", ["done", "todo", "skip", "done"])
    second = run(image, tmp_path / "c.gpkg", labelled=(done,))
    ground = shapely.union_all(second.tasks.geometry.to_numpy())
    shared = shapely.area(shapely.intersection(first.tasks.geometry.to_numpy(), ground))
    assert (shared[[0, 2, 3]] < 1e-3).all()
    # what nobody has looked at yet comes up again
    assert shared[1] > 100


def test_a_block_that_cannot_be_looked_at_is_left_out_and_said(tmp_path, make_raster, capsys):
    pixels = paint(unsure=(20,))
    pixels[2, 600, 600] = 7
    image = make_raster("town.tif", pixels)
    with pytest.raises(SourceError, match=r"nothing could be looked at: town\.tif"):
        run(image, tmp_path / "t.gpkg")
    # beside one that can: exit code 3
    sound = make_raster("sound.tif", paint(), transform=rasterio.Affine(
        0.1, 0, 500_100, 0, -0.1, 5_500_000))  # fmt: skip
    output = tmp_path / "both.gpkg"
    args = ["suggest", str(image), str(sound), "--detector", "unsure:make", "-o", str(output)]
    assert main([*args, "--tile-m", "12.8", "-n", "3", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert len(told["skipped"]) == 1
    assert {task["image"] for task in told["tasks"]} == {"sound.tif"}


def test_where_nothing_is_found_squares_are_spread_by_the_ground_alone(tmp_path, make_raster):
    pixels = np.full((3, 640, 640), 40, np.uint8)
    pixels[:, 320:, 320:] = 90
    image = make_raster("bare.tif", pixels)
    found = run(image, tmp_path / "t.gpkg", n=2, coco=tmp_path / "t.json")
    assert len(found.objects) == 0
    assert (found.tasks["value"] == 0).all()
    # one of each kind of ground
    bright = square(320, 320, 320, 320)
    assert sorted(task.intersects(bright) for task in found.tasks.geometry) == [False, True]
    # what is drawn in the empty layer comes back
    tasks, objects = (gpd.read_file(tmp_path / "t.gpkg", layer=n) for n in ("tasks", "objects"))
    assert len(objects) == 0
    assert {"verdict", "class", "task", "score"} < set(objects.columns)
    tasks["status"] = "done"
    x, y = tasks.geometry.iloc[0].centroid.coords[0]
    # a thing of 0.09 m2
    drawn = gpd.GeoDataFrame(
        {"verdict": [None], "class": ["roof"]},
        geometry=[shapely.box(x, y, x + 0.3, y + 0.3)],
        crs=tasks.crs,
    )
    tasks.to_file(tmp_path / "e.gpkg", layer="tasks")
    drawn.to_file(tmp_path / "e.gpkg", layer="objects", mode="a")
    assert collect_tasks(tmp_path / "e.gpkg", tmp_path / "l.gpkg").n_labels == 1


# --- for QGIS --------------------------------------------------------------------------------


def sql(path, query):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def set_status(path: Path, status: list[str]) -> Path:
    """Set the status of tasks as a user does in QGIS: in place."""
    tasks = gpd.read_file(path, layer="tasks")
    with closing(sqlite3.connect(path)) as database, database:
        # QGIS has its own functions for the index, which an update of a text does not call
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type='trigger'")
        for (name,) in triggers.fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        for rank, value in zip(tasks["rank"].tolist(), status, strict=True):
            database.execute("UPDATE tasks SET status = ? WHERE rank = ?", (value, rank))
    return path


@pytest.fixture
def tasks_file(tmp_path, make_raster) -> Path:
    image = make_raster("town.tif", paint(unsure=tuple(range(0, 256, 7))))
    output = tmp_path / "tasks.gpkg"
    run(image, output, n=3)
    return output


def test_the_file_holds_squares_and_outlines_to_correct(tasks_file):
    tasks, objects = (gpd.read_file(tasks_file, layer=name) for name in ("tasks", "objects"))
    assert list(tasks.columns) == [
        "rank", "status", "value", "uncertainty", "disagreement", "n_objects", "image", "geometry",
    ]  # fmt: skip
    assert (tasks["status"] == "todo").all()
    assert set(objects["task"]) <= {1, 2, 3}
    # every roof that meets a square is there, once
    assert not objects.geometry.duplicated().any()
    roofs = [square(13 + STEP * c, 13 + STEP * r, SIDE, SIDE) for r in range(16) for c in range(16)]
    ground = shapely.union_all(tasks.geometry.to_numpy())
    assert len(objects) == sum(r.intersects(ground) for r in roofs)
    # a guess below the threshold waits to be confirmed
    strong = objects["score"] >= 0.5
    assert objects.loc[strong, "verdict"].isna().all()
    assert (objects.loc[~strong, "verdict"] == "reject").all()


def test_outlines_below_the_threshold_come_as_rejected(tmp_path, make_raster):
    pixels = paint()
    pixels[1][pixels[1] == 250] = 100
    image = make_raster("town.tif", pixels)
    found = run(image, tmp_path / "t.gpkg")
    assert (found.objects["verdict"] == "reject").all()
    assert len(found.objects) > 10
    assert (found.tasks["n_objects"] == 0).all()


def test_styles_have_lists_to_choose_from(tasks_file):
    rows = dict(sql(tasks_file, "SELECT f_table_name, styleQML FROM layer_styles"))
    assert set(rows) == {"tasks", "objects"}
    for name, field, values in (
        ("tasks", "status", ["todo", "done", "skip"]),
        ("objects", "verdict", ["accept", "edit", "reject"]),
        ("objects", "class", ["roof"]),
    ):
        root = ElementTree.fromstring(rows[name])
        assert "Forms" in root.get("styleCategories")
        (widget,) = (
            f.find("editWidget") for f in root.iter("field") if f.get("name") == field
        )  # fmt: skip
        assert widget.get("type") == "ValueMap"
        listed = [o.get("value") for o in widget.iter("Option") if o.get("type") == "QString"]
        assert [v for v in listed if not v.startswith("{")] == values


@pytest.mark.skipif(
    not system_has(VALIDATOR.partition(".")[0]),
    reason="GDAL's validate_gpkg.py is not installed (Debian: python3-gdal)",
)
def test_the_validator_finds_nothing(tasks_file):
    done = subprocess.run(
        [SYSTEM_PYTHON, "-m", VALIDATOR, "--extra", "--warning-as-error", str(tasks_file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


QGIS = """
import json, os, sys
from qgis.core import (
    NULL, QgsApplication, QgsExpressionContextUtils, QgsGeometry, QgsVectorLayer, QgsVectorLayerUtils
)
application = QgsApplication([], False)
application.initQgis()
path, said = sys.argv[1], {}
for name in ("tasks", "objects"):
    layer = QgsVectorLayer(f"{path}|layername={name}", name, "ogr")
    fields = [f.name() for f in layer.fields()]
    said[name] = {
        "field": layer.renderer().classAttribute(),
        "lists": {f: [list(c) for c in layer.editorWidgetSetup(i).config()["map"]]
                  for i, f in enumerate(fields) if layer.editorWidgetSetup(i).type() == "ValueMap"},
        "titles": {f: layer.attributeDisplayName(i) for i, f in enumerate(fields)},
        "editable": layer.startEditing(),
    }
    if name == "tasks":
        first = next(f for f in layer.getFeatures() if f["rank"] == 1)
        layer.changeAttributeValue(first.id(), fields.index("status"), "done")
        middle = first.geometry().centroid().asPoint()
    else:
        shape = QgsGeometry.fromWkt(
            f"MultiPolygon((({middle.x()} {middle.y()}, {middle.x() + 2} {middle.y()}, "
            f"{middle.x()} {middle.y() + 2}, {middle.x()} {middle.y()})))")
        context = layer.createExpressionContext()
        drawn = QgsVectorLayerUtils.createFeature(layer, shape, {}, context)
        said["drawn"] = [drawn["verdict"], drawn["class"]]
        layer.addFeature(drawn)
        ours = [f for f in layer.getFeatures() if f["task"] == 1 and f["score"] != NULL]
        layer.changeAttributeValue(ours[0].id(), fields.index("verdict"), "reject")
        said["of_task"] = len(ours)
    said[name]["saved"] = layer.commitChanges()
print("SAID" + json.dumps(said), flush=True)
# QGIS does not survive its own end with layers about
os._exit(0)
"""


@pytest.mark.skipif(not system_has("qgis"), reason="PyQGIS is not installed (Debian: python3-qgis)")
def test_a_user_of_qgis_corrects_and_the_labels_come_back(tasks_file, tmp_path):
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", QGIS, str(tasks_file)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "PYTHONPATH": ""},
    )
    said = json.loads(done.stdout.split("SAID")[1])
    assert (said["tasks"]["field"], said["objects"]["field"]) == ("status", "verdict")
    assert [c[0] for c in said["tasks"]["lists"]["status"]] == ["todo", "done", "skip"]
    assert [c[0] for c in said["objects"]["lists"]["verdict"]] == [
        "(as found)", "accept", "edit", "reject",
    ]  # fmt: skip
    assert said["tasks"]["titles"]["n_objects"] == "Objects"
    assert said["drawn"] == ["accept", "roof"]
    for name in ("tasks", "objects"):
        assert said[name]["editable"] is True
        assert said[name]["saved"] is True
    found = collect_tasks(tasks_file, tmp_path / "labels.gpkg")
    assert (found.n_tasks, found.n_rejected) == (1, 1)
    labels = gpd.read_file(found.labels)
    assert (labels["origin"] == "drawn").sum() == 1
    # neighbours' outlines that reach into the square count, too
    assert found.n_labels >= said["of_task"] - 1 + 1


# --- back into training ----------------------------------------------------------------------


def corrected(path: Path, change) -> Path:
    """Rewrite a task file as a user's edits leave it."""
    tasks, objects = (gpd.read_file(path, layer=name) for name in ("tasks", "objects"))
    tasks, objects = change(tasks, objects)
    edited = path.with_name("edited.gpkg")
    tasks.to_file(edited, layer="tasks")
    objects.to_file(edited, layer="objects", mode="a")
    return edited


def edits(tasks, objects):
    """Finish two squares: reject one outline, move one, draw one, leave the others."""
    tasks.loc[tasks["rank"] <= 2, "status"] = "done"
    ours = objects.index[objects["task"] == 1]
    objects.loc[ours[0], "verdict"] = "reject"
    objects.loc[ours[1], "verdict"] = "edit"
    objects.loc[[ours[1]], "geometry"] = objects.loc[[ours[1]]].translate(0.3, 0.3)
    objects.loc[ours[2], "verdict"] = "accept"
    x, y = tasks.geometry.iloc[0].centroid.coords[0]
    new = gpd.GeoDataFrame(
        {"verdict": [None], "class": [None]}, geometry=[shapely.box(x, y, x + 1, y + 1)],
        crs=objects.crs,
    )  # fmt: skip
    return tasks, gpd.GeoDataFrame(pd.concat([objects, new], ignore_index=True), crs=objects.crs)


def test_corrections_go_into_a_training_site(tasks_file, tmp_path):
    before = gpd.read_file(tasks_file, layer="objects")
    edited = corrected(tasks_file, edits)
    found = collect_tasks(edited, tmp_path / "labels.gpkg")
    assert (found.n_tasks, found.n_left, found.n_rejected) == (2, 1, 1)
    assert found.aoi.name == "labels_aoi.gpkg"
    labels, aoi = gpd.read_file(found.labels), gpd.read_file(found.aoi)
    ours = before.index[before["task"] == 1]
    wkb = set(shapely.to_wkb(shapely.normalize(labels.geometry.to_numpy())))

    def kept(row) -> bool:
        return shapely.to_wkb(shapely.normalize(before.geometry[row])) in wkb

    # rejected, moved, accepted, left as found
    assert [kept(row) for row in ours[:4]] == [False, False, True, True]
    assert (labels["verdict"] == "edit").sum() == 1
    assert (labels["origin"] == "drawn").sum() == 1
    assert set(labels["class"]) == {"roof"}
    squares = gpd.read_file(edited, layer="tasks")
    done = shapely.union_all(squares.geometry[squares["status"] == "done"].to_numpy())
    assert shapely.union_all(aoi.geometry.to_numpy()).equals(done)
    assert labels.geometry.intersects(done).all()

    site = load_site(
        tmp_path,
        {"image": "town.tif", "labels": found.labels.name, "aoi": found.aoi.name,
         "class_field": "class"},
        0.1,
        ("roof",),
    )  # fmt: skip
    assert len(site.polygons) == found.n_labels
    # pixels and labels lie on one another, but for what was moved, drawn and rejected
    pixels, target = ChipSampler(
        [site], 96, 1, Augmentation(scale=(1, 1), any_turn=0, colour=0)
    ).chip(0)
    assert pixels.shape == (3, 96, 96)
    assert len(target["boxes"]) > 0
    bright = sum(
        float(pixels[0][mask.bool()].mean() > 0.7) for mask in target["masks"] if mask.any()
    )
    assert bright >= 0.6 * len(target["masks"])


def test_the_printed_sites_are_read_by_a_training_file(tasks_file, tmp_path, capsys):
    from geoseg.learning.train import read_training_file

    edited = corrected(tasks_file, edits)
    args = ["suggest", "--collect", str(edited), "-o", str(tmp_path / "labels.gpkg")]
    assert main(args) == 0
    told = capsys.readouterr().out
    sites = told[told.index("[[sites]]") :]
    (tmp_path / "train.toml").write_text(
        f'[train]\nclasses = ["roof"]\ngsd_m = 0.1\n\n{sites}', encoding="utf-8"
    )
    job = read_training_file(tmp_path / "train.toml")
    site = load_site(tmp_path, job.sites[0], 0.1, ("roof",))
    assert len(site.polygons) > 3
    assert main(args) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, o: (t, o), "none of 3 tasks has the status 'done'"),
        (
            lambda t, o: (t.assign(status="done"), o.assign(verdict="yes")),
            "rows have the verdict 'yes'; expected one of",
        ),
        (lambda t, o: (t.assign(status="finished"), o), "rows have the status 'finished'"),
        (
            lambda t, o: (t.assign(status="done"), o.assign(verdict="reject")),
            "no outline is left in the 3 tasks",
        ),
        (
            lambda t, o: (t.assign(status="done"), o.drop(columns="verdict")),
            "layer 'objects' has no field 'verdict'",
        ),
        (
            lambda t, o: (t.assign(status="done"), o.assign(**{"class": None})),
            "outlines have no class",
        ),
        (lambda t, o: (t.assign(status="done", image=None), o), "3 tasks name no image"),
    ],
)  # fmt: skip
def test_what_cannot_be_collected_is_said(tasks_file, tmp_path, change, message):
    edited = corrected(tasks_file, change)
    with pytest.raises(LabelError, match=message) as failure:
        collect_tasks(edited, tmp_path / "labels.gpkg")
    assert failure.value.exit_code == 2
    assert not (tmp_path / "labels.gpkg").exists()


def test_labels_never_replace_the_tasks(tasks_file):
    with pytest.raises(GeosegError, match="would replace"):
        collect_tasks(tasks_file, tasks_file, overwrite=True)


# --- COCO and crops --------------------------------------------------------------------------


def test_coco_and_crops_show_the_same_roofs(tmp_path, make_raster):
    image = make_raster("town.tif", paint(unsure=tuple(range(0, 256, 7))))
    found = run(image, tmp_path / "t.gpkg", coco=tmp_path / "t.json", chips=tmp_path / "chips", n=3)
    assert [p.name for p in found.written] == ["t.gpkg", "t.json", "chips"]
    told = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in told["categories"]] == ["roof"]
    assert len(told["images"]) == 3
    for entry in told["images"]:
        with rasterio.open(tmp_path / "chips" / entry["file_name"]) as chip:
            assert (chip.width, chip.height) == (entry["width"], entry["height"]) == (128, 128)
            pixels = chip.read(1)
            task = found.tasks.geometry.iloc[entry["id"] - 1]
            np.testing.assert_allclose(chip.bounds, task.bounds, atol=1e-6)
        boxes = [a["bbox"] for a in told["annotations"] if a["image_id"] == entry["id"]]
        drawn = np.zeros_like(pixels, bool)
        for x, y, w, h in boxes:
            drawn[round(y) : round(y + h), round(x) : round(x + w)] = True
        # roofs are squares: boxes are roofs, to half a px
        assert (drawn != (pixels > 100)).mean() < 0.02


# --- the command -----------------------------------------------------------------------------


def test_the_command_writes_prints_and_refuses(tmp_path, make_raster, capsys):
    image = make_raster("town.tif", paint(unsure=(40,)))
    output = tmp_path / "tasks.gpkg"
    args = ["suggest", str(image), "--detector", "unsure:make", "-o", str(output)]
    assert main([*args, "-n", "2", "--tile-m", "12.8"]) == 0
    told = capsys.readouterr().out
    assert "2 of 81 squares of 13 m" in told
    assert main([*args, "-n", "2"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "t.gpkg"], "no images named"),
        (["town.tif", "-o", "t.json"], "unknown suffix"),
        (["town.tif", "-o", "t.gpkg", "-n", "0"], "-n"),
        (["town.tif", "-o", "t.gpkg", "--tile-m", "0.1"], "--tile-m"),
        (["town.tif", "-o", "t.gpkg", "--tile-m", "0.001"], "expected 0.01 to 100000"),
        (["town.tif", "-o", "t.gpkg", "--labelled", "no.gpkg"], "does not exist"),
        (["town.tif", "-o", "t.gpkg", "--aoi", "no.gpkg"], "does not exist"),
        (["--collect", "no.gpkg", "-o", "l.gpkg"], "does not exist"),
        (["town.tif", "--collect", "t.gpkg", "-o", "l.gpkg"], "leave images out"),
        (["--collect", "t.gpkg", "-o", "l.gpkg", "-n", "3"], "leave -n out"),
        (["no.tif", "-o", "t.gpkg"], "no.tif"),
    ],
)
def test_usage_errors_are_one_line_and_2(tmp_path, make_raster, capsys, monkeypatch, args, message):
    make_raster("town.tif", paint(256))
    monkeypatch.chdir(tmp_path)
    more = ["--detector", "unsure:make"] if "town.tif" in args and "--collect" not in args else []
    assert main(["suggest", *args, *more]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said.partition("error:")[2].strip()
