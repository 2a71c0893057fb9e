"""An evaluation taken apart: hand-made cases with their numbers."""

import math

import geopandas as gpd
import pandas as pd
import pyogrio
import pytest
import rasterio
from test_evaluate import UTM, box, table, ten_buildings

from geoseg.errors import ConfigError
from geoseg.objects.breakdown import (
    NOTHING,
    by_class,
    by_region,
    by_size,
    confusion,
    count_errors,
    verdicts,
)
from geoseg.objects.evaluate import evaluate, pool
from geoseg.outputs.curves import write_curves
from geoseg.outputs.tables import write_geopackage


def sizes():
    """Two sheds of 16 m2, two houses of 100 m2, a hall of 1,600 m2; one shed and the hall are found.

    ========  =============================================
    object    what it is
    ========  =============================================
    0         the first shed, exact
    1         the hall, exact
    2         a false house of 100 m2
    3         the first house, of which it shows 64 m2 (IoU .64)
    ========  =============================================
    """
    truth = table([box(0, 0, 4, 4), box(20, 0, 4, 4), box(40, 0), box(60, 0), box(100, 0, 40, 40)])
    objects = [box(0, 0, 4, 4), box(100, 0, 40, 40), box(0, 200), box(40, 0, 8, 8)]
    return table(objects, score=[0.9, 0.8, 0.7, 0.6]), truth


def test_sizes_by_hand():
    objects, truth = sizes()
    found = by_size(evaluate(objects, truth), (30, 90, 1000))
    assert found["from_m2"].tolist() == [0, 30, 90, 1000]
    assert found["to_m2"].tolist() == [30, 90, 1000, math.inf]
    assert found["n_truth"].tolist() == [2, 0, 2, 1]
    assert found["n_objects"].tolist() == [1, 1, 1, 1]
    # the house is found, by an object that itself counts as smaller
    assert found["recall"].iloc[[0, 2, 3]].tolist() == [0.5, 0.5, 1.0]
    assert math.isnan(found["recall"].iloc[1])
    assert found["precision"].tolist() == [1, 1, 0, 1]
    assert found["count_error"].iloc[[0, 2, 3]].tolist() == [-0.5, -0.5, 0.0]


def test_sizes_leave_out_what_the_score_does_and_all_that_does_not_occur():
    objects, truth = sizes()
    found = by_size(evaluate(objects, truth, min_score=0.75))
    assert found["from_m2"].tolist() == [0, 100, 1000]
    assert found["n_objects"].tolist() == [1, 0, 1]
    assert found["recall"].tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize("borders", [(), (0, 10), (30, 30), (100, 30), (30, math.nan)])
def test_sizes_that_do_not_ascend_are_refused(borders):
    with pytest.raises(ConfigError, match="expected areas in m2"):
        by_size(evaluate(*sizes()), borders)


def classes():
    """Two boats and two cars; one boat is called a car, one car is found, a false car, a boat lost."""
    truth = table([box(20 * i, 0) for i in range(4)])
    truth["class"] = ["boat", "boat", "car", "car"]
    objects = table([box(0, 0), box(40, 0), box(0, 100)], score=[0.9, 0.8, 0.7])
    objects["class"] = ["car", "car", "car"]
    return objects, truth


def test_confusion_by_hand():
    table = confusion(evaluate(*classes()))
    assert table.index.tolist() == table.columns.tolist() == ["boat", "car", NOTHING]
    assert table.loc["boat"].tolist() == [0, 1, 1]
    assert table.loc["car"].tolist() == [0, 1, 1]
    assert table.loc[NOTHING].tolist() == [0, 1, 0]
    # of each side everything is somewhere
    assert table.loc[["boat", "car"]].to_numpy().sum() == 4
    assert table[["boat", "car"]].to_numpy().sum() == 3


def test_confusion_needs_classes_that_may_differ():
    with pytest.raises(ConfigError, match="without by_class"):
        confusion(evaluate(*classes(), by_class=True))


def test_classes_by_hand():
    found = by_class(evaluate(*classes(), by_class=True)).set_index("class")
    assert found.loc["boat", "n_objects"] == 0
    assert found.loc["boat", "recall"] == 0
    assert found.loc["boat", "f1"] == 0
    assert math.isnan(found.loc["boat", "precision"])
    assert found.loc["car", ["n_truth", "n_objects"]].tolist() == [2, 3]
    assert found.loc["car", "precision"] == pytest.approx(1 / 3)
    assert found.loc["car", "recall"] == 0.5
    assert found.loc["car", "f1"] == pytest.approx(2 / 5)
    # ranked second, so precision 1/2 up to a recall of 1/2: 51 of the 101 points
    assert found.loc["car", "ap50"] == pytest.approx(51 / 101 / 2)
    assert found.loc["car", "count_error"] == 0.5


def two_halves() -> gpd.GeoDataFrame:
    west, east = box(-5, -50, 100, 200), box(95, -50, 150, 200)
    away = box(5000, 5000)
    return gpd.GeoDataFrame(
        {"name": ["west", "east", "away"]}, geometry=[west, east, away], crs=UTM
    )


def test_errors_that_cancel_in_the_total_show_per_region():
    # ten buildings: five and five. Objects: west 5 and a second one on square 0; east 2
    objects, truth = ten_buildings()
    result = evaluate(objects, truth)
    assert (result.n_objects, result.n_truth) == (9, 10)
    found = by_region(objects, truth, two_halves(), result)
    assert found["name"].tolist() == ["west", "east"]
    assert found["n_objects"].tolist() == [6, 2]
    assert found["n_truth"].tolist() == [5, 5]
    assert found["error"].tolist() == [1, -3]
    errors = count_errors(found)
    assert errors["regions"] == 2
    assert errors["bias"] == -1
    assert errors["mae"] == 2
    assert errors["rmse"] == pytest.approx(math.sqrt(5))
    assert errors["mae_share"] == pytest.approx(4 / 10)


def test_no_region_holds_any():
    objects, truth = ten_buildings()
    found = by_region(objects, truth, two_halves().iloc[2:], evaluate(objects, truth))
    assert len(found) == 0
    assert count_errors(found)["regions"] == 0
    assert math.isnan(count_errors(found)["mae"])


def test_regions_count_what_was_evaluated():
    objects, truth = ten_buildings()
    aoi = table([box(-5, -5, 55, 30)])
    result = evaluate(objects, truth, aoi=aoi, min_score=0.7)
    found = by_region(objects, truth, two_halves(), result)
    assert found["n_objects"].tolist() == [3]
    assert found["n_truth"].tolist() == [3]


def test_verdicts_are_layers_that_hold_everything_once(tmp_path):
    objects, truth = classes()
    layers = verdicts(objects, truth, evaluate(objects, truth))
    assert {name: len(t) for name, t in layers.items()} == {"right": 2, "false": 1, "missed": 2}
    assert layers["right"]["truth_class"].tolist() == ["boat", "car"]
    assert layers["right"]["iou"].tolist() == [1, 1]
    assert layers["false"].geometry.iloc[0].equals(box(0, 100))
    assert sorted(layers["missed"].index) == [1, 3]
    path = write_geopackage(tmp_path / "judged.gpkg", layers)
    styles = pyogrio.read_dataframe(path, layer="layer_styles", read_geometry=False)
    assert sorted(styles["f_table_name"]) == ["false", "missed", "right"]
    assert styles["styleQML"].str.contains("verdict").all()


def test_parts_of_a_pooled_evaluation_are_those_of_the_sites_together():
    objects, truth = sizes()
    far = objects.assign(geometry=objects.translate(0, 9000))
    far_truth = truth.assign(geometry=truth.translate(0, 9000))
    pooled = pool([evaluate(objects, truth), evaluate(far, far_truth)])
    once, twice = by_size(evaluate(objects, truth)), by_size(pooled)
    pd.testing.assert_frame_equal(
        once.drop(columns=["n_truth", "n_objects"]), twice.drop(columns=["n_truth", "n_objects"])
    )
    assert twice["n_truth"].tolist() == [2 * n for n in once["n_truth"]]


def test_areas_are_those_on_the_ground():
    truth = gpd.GeoDataFrame(geometry=[box(0, 0)], crs=UTM).to_crs(3857)
    result = evaluate(gpd.GeoDataFrame({"score": [1.0]}, geometry=[box(0, 0)], crs=UTM), truth)
    # Mercator's would be 30 % larger here; UTM's scale is off by some 0.1 %
    assert result.truth["area_m2"].tolist() == pytest.approx([100], rel=2e-3)


def test_curves_are_a_picture(tmp_path):
    objects, truth = ten_buildings()
    path = write_curves(tmp_path / "curves.png", evaluate(objects, truth, min_score=0.7))
    with rasterio.open(path) as picture:
        pixels = picture.read()[:3].astype(int)
    # both lines and the marked threshold are there
    blue = (pixels[2] - pixels[0] > 100).sum()
    orange = (pixels[0] - pixels[2] > 150).sum()
    assert blue > 500
    assert orange > 500


def test_curves_need_scores(tmp_path):
    objects, truth = ten_buildings()
    with pytest.raises(ConfigError, match="score"):
        write_curves(tmp_path / "c.png", evaluate(objects.drop(columns="score"), truth))
