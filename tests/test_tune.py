"""Thresholds and calibrations chosen on labelled areas; cards that carry them into runs."""

import json
import re
import shutil

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.affinity
import torch
from safetensors.torch import load_file, save_file
from shapely import box
from test_calibrate import area_of_town
from test_evaluate import UTM, X0, Y0

import geoseg
from geoseg.cli.main import main
from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, LabelError, ModelError
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.plan import plan_run
from geoseg.jobs.tune import _detector, tune
from geoseg.jobs.validation import Bench, load_areas
from geoseg.learning.labels import part_of
from geoseg.models.card import ModelCard, read_card
from geoseg.models.registry import find_model
from geoseg.objects.calibrate import fit_calibration
from geoseg.objects.evaluate import evaluate
from geoseg.objects.tune import (
    Goal,
    calibration_of_areas,
    choose_area,
    choose_score,
    curve_of_runs,
    f1_interval,
    foretell,
    in_parts,
    smoothed,
    tally,
)
from geoseg.outputs.regions import calibration_in, holding_calibration
from geoseg.scenes.town import render_town

STEPS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
CURVE = {
    "scores": [0.2, 0.9], "chance": [0.4, 0.95], "sizes_m2": [20, 200], "missed": [0.4, 0.1],
    "min_score": 0.5,
}  # fmt: skip


def curve(**columns):
    """Return a curve over `STEPS`; what is not given is of no matter."""
    n = len(next(iter(columns.values())))
    table = pd.DataFrame({"min_score": STEPS[:n], "n_objects": 100, "tp": 50})
    for name in ("precision", "recall", "f1", "count_error"):
        table[name] = 0.5
    return table.assign(**columns)


# -- choosing, with numbers worked out by hand --------------------------------------------------


def test_the_best_f1_is_a_flat_stretch_and_no_peak():
    f1 = [0.60, 0.70, 0.70, 0.70, 0.60, 0.78, 0.50]
    # (0.5 * 0.7 + 0.7 + 0.5 * 0.7) / 2 = 0.70 at 0.4; (0.5 * 0.6 + 0.78 + 0.5 * 0.5) / 2 = 0.665
    assert smoothed(np.array(f1)).round(3)[[2, 5]].tolist() == [0.7, 0.665]
    assert choose_score(curve(f1=f1), Goal()) == 0.4


def test_of_a_flat_stretch_the_middle_is_taken():
    # smoothed: 0.65 beside the flat, 0.70 from 0.4 to 0.6
    assert choose_score(curve(f1=[0.5, 0.7, 0.7, 0.7, 0.7, 0.7, 0.5]), Goal()) == 0.5


@pytest.mark.parametrize(
    ("errors", "f1", "expected"),
    [
        # from +0.2 at 0.3 to -0.1 at 0.4: 0 at two thirds of the way
        ([0.6, 0.2, -0.1, -0.3], [0.5, 0.6, 0.6, 0.5], 0.367),
        # exactly right twice: the better F1
        ([0.3, 0.0, 0.0, -0.3], [0.5, 0.6, 0.7, 0.5], 0.4),
        # never: the least, and of two equals the better F1
        ([0.6, 0.3, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], 0.4),
        # always too few
        ([-0.1, -0.2, -0.3, -0.4], [0.5, 0.6, 0.7, 0.8], 0.2),
    ],
)
def test_the_unbiased_count(errors, f1, expected):
    assert choose_score(curve(count_error=errors, f1=f1), Goal("count")) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ([0.5, 0.7, 0.9, 0.95, 0.97], 0.4),
        # a spike at 0.3: (0.92 + 0.80) / 2 is not enough
        ([0.5, 0.92, 0.80, 0.91, 0.95], 0.5),
        # nothing but spikes: better than none
        ([0.5, 0.92, 0.80, 0.85, 0.85], 0.3),
        # above the highest score there is nothing, and no precision
        ([0.5, 0.7, 0.8, 0.9, np.nan], 0.5),
    ],
)
def test_the_highest_recall_at_a_precision(precision, expected):
    table = curve(precision=precision, recall=[0.9, 0.8, 0.7, 0.6, 0.1])
    assert choose_score(table, Goal("precision", 0.9)) == expected


def test_a_precision_out_of_reach_says_what_the_best_is():
    table = curve(precision=[0.5, 0.72, 0.81, 0.6], recall=[0.9, 0.8, 0.35, 0.2])
    with pytest.raises(ConfigError, match=r"of 0.9 for 'roof': the best is 0.810, at score 0.4 wi"):
        choose_score(table, Goal("precision", 0.9), "roof")


def test_nothing_found_and_nothing_right_are_told():
    with pytest.raises(ConfigError, match="nothing was found in the labelled areas"):
        choose_score(curve(n_objects=[0, 0]), Goal())
    with pytest.raises(ConfigError, match="nothing that was found matches a label"):
        choose_score(curve(tp=[0, 0]), Goal())


def test_small_objects_are_left_out_only_where_that_pays():
    # 0.3 % is no reason
    assert choose_area({0.0: 0.700, 5.0: 0.703, 20.0: 0.66}) == 0
    # of 8 and 12, which are as good, the smaller
    assert choose_area({0.0: 0.700, 5.0: 0.71, 8.0: 0.729, 12.0: 0.730, 20.0: 0.66}) == 8


def test_the_interval_of_f1_is_that_of_a_binomial():
    # F1 = 2 p / (1 + p) with p = 80 / 120: slope 0.72, standard deviation of p 0.0430
    low, high = f1_interval(80, 20, 20)
    assert low == pytest.approx(0.8 - 1.645 * 0.72 * 0.0430, abs=0.006)
    assert high == pytest.approx(0.8 + 1.645 * 0.72 * 0.0430, abs=0.006)
    assert f1_interval(80, 20, 20) == (low, high)
    assert np.isnan(f1_interval(0, 0, 0)).all()


@pytest.mark.parametrize(("kind", "precision"), [("recall", 0), ("precision", 0), ("precision", 2)])
def test_goals_that_are_none(kind, precision):
    with pytest.raises(ConfigError, match=f"{'goal' if kind == 'recall' else 'precision'} is"):
        Goal(kind, precision)


# -- figures of several runs, classes and parts ------------------------------------------------


def square(x, side=10.0):
    return box(X0 + x, Y0, X0 + x + side, Y0 + side)


def table(places, scores=None, kinds=None):
    columns = {} if scores is None else {"score": scores}
    columns |= {} if kinds is None else {"class": kinds}
    return gpd.GeoDataFrame(columns, geometry=[square(x) for x in places], crs=UTM)


def test_curves_add_up_areas_class_by_class():
    truth = table([0, 20, 40], kinds=["roof", "roof", "boat"])
    objects = table([0, 100, 40], [0.9, 0.6, 0.7], ["roof", "roof", "boat"])
    runs = {
        t: [evaluate(objects[objects["score"] >= t], truth, min_score=t, by_class=True)] * 2
        for t in (0.5, 0.8)
    }
    roofs = curve_of_runs(runs, "roof")
    # two areas alike: at 0.5 one of two right, at 0.8 the one; 2 true ones each
    assert roofs["n_objects"].tolist() == [4, 2]
    assert roofs["precision"].tolist() == [0.5, 1.0]
    assert roofs["recall"].tolist() == [0.5, 0.5]
    assert roofs["count_error"].tolist() == [0.0, -0.5]
    assert tally(runs[0.8], "boat")["n_objects"] == 0


def town(rng, n, factor=1.0):
    """Return objects, truth and AOI of a town; what is false there stands between the houses."""
    objects, truth = area_of_town(rng, n=n, factor=factor)
    low = objects.geometry.bounds["miny"].to_numpy()
    row = np.round((Y0 - low) / 60)
    # rows of houses are 60 m apart, and no house is longer than 20 m
    up = np.where(low < Y0, Y0 + 30 + 60 * (row % (n // 20)) - low, 0)
    moved = [shapely.affinity.translate(g, 0, u) for g, u in zip(objects.geometry, up, strict=True)]
    aoi = gpd.GeoDataFrame(geometry=[box(X0 - 5, Y0 - 5, X0 + 1200, Y0 + 3 * n)], crs=UTM)
    return objects.set_geometry(gpd.GeoSeries(moved, crs=UTM)), truth, aoi


def judged_parts(rng, n=300, factor=1.0):
    objects, truth, aoi = town(rng, n, factor)
    return in_parts(evaluate(objects, truth, aoi=aoi, min_score=0.4), objects, truth, aoi)


def test_parts_of_an_area_add_up_to_it():
    objects, truth, aoi = town(np.random.default_rng(3), 200)
    whole = evaluate(objects, truth, aoi=aoi, min_score=0.5)
    assert 0 < whole.fp < whole.tp
    parts = in_parts(whole, objects, truth, aoi)
    assert 5 < len(parts) <= 15
    for name in ("n_objects", "n_truth", "tp", "fp", "fn"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name
    assert max(part.n_truth for part in parts) <= 40


def test_foretold_counts_hold_as_often_as_they_say():
    # towns in which the detector sees up to a fifth more or less than in the middle
    rng = np.random.default_rng(4)
    factors = np.linspace(0.75, 1.1, 6)
    groups = {f"town {i}": judged_parts(rng, 200, factor) for i, factor in enumerate(factors)}
    rows = foretell(groups)
    assert list(dict.fromkeys(rows["area"])) == list(groups)
    assert set(rows["left_out"]) == {"area"}
    assert rows["inside"].mean() >= 0.85
    # and it is no interval that holds everything
    width = (rows["high"] - rows["low"]).sum() / rows["n_truth"].sum()
    assert width < 1.5
    one = foretell({"town": judged_parts(rng)})
    assert len(one) > 3
    assert set(one["left_out"]) == {"part"}
    assert one["inside"].mean() >= 0.8


def test_a_spread_between_few_areas_is_widened():
    rng = np.random.default_rng(5)
    groups = {f"town {i}": judged_parts(rng, 300, factor) for i, factor in enumerate((0.7, 1.0))}
    parts = [part for one in groups.values() for part in one]
    names = [name for name, one in groups.items() for _ in one]
    plain = fit_calibration(parts, names).spread
    assert plain > 0.1
    # Student's quantile with one degree of freedom over the normal one: 6.314 / 1.645
    assert calibration_of_areas(groups).spread == pytest.approx(3.838 * plain, rel=1e-3)
    # parts of one place are more alike than places: apart, they hide the spread
    assert fit_calibration(parts).spread < plain


def test_a_part_of_an_area_counts_from_below():
    assert part_of(box(0, 0, 100, 40), [0, 0, 1, 0.25]).bounds == (0, 30, 100, 40)


# -- cards ---------------------------------------------------------------------------------------


def card(**changes):
    given = {"name": "m", "classes": ("roof", "boat"), "gsd_m": 0.1, "architecture": {}}
    return ModelCard(**given, **changes)


def test_a_card_keeps_thresholds_and_calibration(tmp_path):
    tuned = card(class_scores={"roof": 0.4}, min_area_m2=6.0, calibration={"roof": CURVE})
    (tmp_path / "m.json").write_text(tuned.to_json())
    back = read_card(tmp_path / "m.safetensors")
    assert (back.class_scores, back.min_area_m2) == ({"roof": 0.4}, 6.0)
    assert back.calibration["roof"]["scores"] == [0.2, 0.9]
    plain = json.loads(card().to_json())
    for name in ("class_scores", "min_area_m2", "calibration"):
        del plain[name]
    assert ModelCard.from_dict(plain, "an old card") == card()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_scores": {"tree": 0.5}}, "class_scores names 'tree'; expected some of roof, boat"),
        ({"class_scores": {"roof": 1.5}}, r"class_scores must lie in \[0, 1\]"),
        ({"class_scores": {"roof": "high"}}, "class_scores of 'roof' is no number"),
        ({"class_scores": [0.5]}, "class_scores is"),
        ({"min_area_m2": -1}, "min_area_m2 is -1; expected 0 to"),
        ({"calibration": "good"}, "calibration is 'good'"),
    ],
)
def test_cards_with_wrong_thresholds_are_refused(changes, message):
    values = json.loads(card().to_json()) | changes
    with pytest.raises(ModelError, match=message):
        ModelCard.from_dict(values, "card.json")


@pytest.mark.parametrize(
    ("scores", "area", "why"),
    [
        ({"roof": 0.5}, 0.0, ""),
        ({"roof": 0.6}, 0.0, "objects were made at score 0.6, but the calibration of m holds at"),
        ({"roof": 0.5}, 9.0, "objects under 9 m2 were left out, but the calibration of m holds"),
        ({"roof": 0.5, "boat": 0.5}, 0.0, "the calibration of m knows no class 'boat'"),
    ],
)
def test_a_calibration_holds_where_it_was_measured(scores, area, why):
    about = {"name": "m", "calibration": {"roof": CURVE}}
    found, said = holding_calibration(about, scores, area)
    assert (found is None) == bool(why)
    assert said.startswith(why)
    assert bool(said) == bool(why)


# -- a real model on rendered towns --------------------------------------------------------------


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """Return two small towns: image, footprints and AOI of each."""
    folder = tmp_path_factory.mktemp("towns")
    made = [
        render_town(folder / str(seed), width_px=760, height_px=760, gsd_m=0.14, seed=seed,
                    density=2, hole=False)
        for seed in (5, 9)
    ]  # fmt: skip
    for town in made:
        whole = gpd.read_file(town.footprints).total_bounds
        gpd.GeoDataFrame(geometry=[box(*whole)], crs="EPSG:32645").to_file(town.aoi)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a copy of the shipped model with a card of its own."""
    path = tmp_path_factory.mktemp("model") / "mine.safetensors"
    shutil.copyfile(find_model("buildings"), path)
    shutil.copyfile(find_model("buildings").with_suffix(".json"), path.with_suffix(".json"))
    return path


def tables(towns):
    return [{"image": str(t.image), "labels": str(t.footprints), "aoi": str(t.aoi)} for t in towns]


def test_what_is_kept_gives_the_objects_of_a_run(towns, model):
    (area,) = load_areas(tables(towns[:1]), towns[0].image.parent, ("building",))
    bench = Bench([area], _detector(model, read_card(model), 0.6, 0.1, "cpu", 1))
    bench.objects(0.1)
    before = len(bench.detector._kept)
    (kept,) = bench.objects(0.55)
    assert len(bench.detector._kept) == before > 0
    real = geoseg.detect(area.image, model=model, min_score=0.55, workers=1, device="cpu")
    inside = real[real.representative_point().within(area.around.union_all())]
    assert len(kept) == len(inside) > 10
    # the same outlines, but for the rounding of the network in batches of another size
    common = kept.geometry.to_numpy(), inside.geometry.to_numpy()
    rows, others = shapely.STRtree(common[1]).query(common[0], predicate="intersects")
    both = shapely.area(shapely.intersection(common[0][rows], common[1][others]))
    iou = both / (shapely.area(common[0])[rows] + shapely.area(common[1])[others] - both)
    assert (iou > 0.9).sum() >= 0.97 * len(kept)
    # cutting the low run's objects off at the threshold is something else
    (low,) = bench.objects(0.1)
    assert len(low) > len(kept)


@pytest.fixture(scope="module")
def tuned(towns, model, tmp_path_factory):
    """Tune by the command line, into a copy; return the copy and what was printed as JSON."""
    folder = tmp_path_factory.mktemp("tuned")
    path, said = folder / "tuned.safetensors", folder / "said.json"
    args = ["tune", model]
    for town in towns:
        args += ["--image", town.image, "--labels", town.footprints, "--aoi", town.aoi]
    args += ["--calibrate", "-o", path, "--curves", folder / "curves.png", "--json"]
    with pytest.MonkeyPatch.context() as patched:
        lines = []
        patched.setattr("geoseg.cli.tune.show_json", lines.append)
        assert main([*map(str, args), "--lowest", "0.25"]) == 0
    said.write_text(json.dumps(lines[0]))
    return path, lines[0]


def test_tuning_writes_a_card_that_runs_use(towns, tuned, tmp_path):
    path, said = tuned
    new, old = read_card(path), read_card(find_model("buildings"))
    assert new.min_score == said["min_score"] == said["scores"]["building"]
    assert path.read_bytes() == find_model("buildings").read_bytes()
    assert (new.licence, new.architecture, new.training) == (
        old.licence, old.architecture, old.training,
    )  # fmt: skip
    told = new.quality["tuned"]
    assert told["command"].startswith("geoseg tune mine.safetensors --image town.tif")
    assert told["areas"]["together"]["f1"] == pytest.approx(said["areas"][-1]["f1"], abs=1e-3)
    assert new.quality["validation_areas"] == old.quality["validation_areas"]
    # a run with the tuned card is what was chosen, and its manifest says so
    assert said["f1_of_a_run_with_the_card"] == pytest.approx(said["areas"][-1]["f1"], abs=0.01)
    output = tmp_path / "o.gpkg"
    run_detect(DetectSettings((str(towns[0].image),), output, str(path), workers=1))
    manifest = json.loads((tmp_path / "o.geoseg-run" / "run.json").read_text())
    assert manifest["scores"] == {"building": new.min_score}
    assert manifest["min_area_m2"] == new.min_area_m2
    assert manifest["model"]["calibration"]["min_score"] == new.min_score


def test_tuning_says_how_areas_do_that_had_no_part(tuned):
    _, said = tuned
    assert [row["area"] for row in said["held_out"]] == ["town 1", "town 2"]
    for row in said["held_out"]:
        assert 0 < row["f1"] <= 1
    low, high = said["f1_90"]
    assert low < said["areas"][-1]["f1"] < high
    rows = said["thresholds"]["all"]
    assert [row["min_score"] for row in rows][:2] == [0.25, 0.3]
    counts = [row["n_objects"] for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert said["foretold"]
    assert set(said["share_inside"]) <= {"area", "part"}
    assert sorted(path.rpartition("/")[2] for path in said["written"]) == [
        "curves.png", "curves_reliability.png", "tuned.json",
    ]  # fmt: skip


def test_counts_get_an_interval_from_the_card(towns, tuned, tmp_path, capsys):
    path, _ = tuned
    town = towns[0]
    run = {"workers": 1, "regions": town.regions, "model": str(path)}
    result = run_detect(DetectSettings((str(town.image),), tmp_path / "o.gpkg", **run))
    assert (result.regions["expected_low"] <= result.regions["expected"]).all()
    found, why = calibration_in(tmp_path / "o.gpkg")
    assert found is not None
    assert why == ""
    capsys.readouterr()
    assert main(["count", str(tmp_path / "o.gpkg"), str(town.regions), "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)["regions"]
    assert err == ""
    assert [r["count"] for r in rows] == result.regions["count"].tolist()
    assert [r["expected"] for r in rows] == pytest.approx(result.regions["expected"].tolist())
    # at another threshold the calibration says nothing, and that is said
    other = tmp_path / "p.gpkg"
    result = run_detect(DetectSettings((str(town.image),), other, min_score=0.31, **run))
    assert "expected" not in result.regions
    said = "objects were made at score 0.31, but the calibration of buildings holds at"
    assert any(note.startswith(said) for note in result.notes)
    assert main(["count", str(other), str(town.regions), "--json"]) == 0
    out, err = capsys.readouterr()
    assert said in err
    assert "expected" not in json.loads(out)["regions"][0]


def test_writing_into_the_card_of_the_model_itself(towns, model, tmp_path, capsys):
    path = tmp_path / "own.safetensors"
    shutil.copyfile(model, path)
    values = json.loads(model.with_suffix(".json").read_text())
    values["quality"] = {"calibration": CURVE, "other": 1}
    path.with_suffix(".json").write_text(json.dumps(values))
    site = "\n".join(f'{k} = "{v}"' for k, v in tables(towns[:1])[0].items())
    sites = tmp_path / "sites.toml"
    sites.write_text(f'[[validation]]\n{site}\nname = "west"\naoi_part = [0.0, 0.0, 0.6, 1.0]\n')
    args = ["tune", path, "--sites", sites, "--lowest", "0.6", "--goal", "count", "--write"]
    assert main(list(map(str, [*args, "--views", "2"]))) == 0
    out, _ = capsys.readouterr()
    assert "chosen: unbiased count" in out
    assert "west" in out
    new = json.loads(path.with_suffix(".json").read_text())
    changed = {k for k in new if new[k] != values.get(k)}
    assert {"quality", "min_score", "views"} <= changed
    assert changed <= {
        "quality", "min_score", "min_area_m2", "class_scores", "calibration", "nms_iou", "views",
    }  # fmt: skip
    # the runs to come look from as many sides as the thresholds were chosen for
    assert new["views"] == 2
    assert "--views 2" in new["quality"]["tuned"]["command"]
    # the calibration of the old threshold is gone, all else is there
    assert set(new["quality"]) == {"other", "tuned"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "own.json", "own.safetensors", "sites.toml",
    ]  # fmt: skip


# -- thresholds by class -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory, model):
    """Return the shipped model as one of two classes: each building is a roof, or a house.

    The rows of its last layers stand twice, the second time with a bias: every box is both, and
    the second scores e times as much as the first.
    """
    path = tmp_path_factory.mktemp("two") / "two.safetensors"
    weights = load_file(model)
    for name, rows in (
        ("roi_heads.box_predictor.cls_score", [0, 1, 1]),
        ("roi_heads.box_predictor.bbox_pred", [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]),
        ("roi_heads.mask_predictor.mask_fcn_logits", [0, 1, 1]),
    ):
        for part in ("weight", "bias"):
            weights[f"{name}.{part}"] = weights[f"{name}.{part}"][torch.tensor(rows)].clone()
    weights["roi_heads.box_predictor.cls_score.bias"][2] += 1.0
    save_file(weights, path)
    values = json.loads(model.with_suffix(".json").read_text())
    values |= {"classes": ["roof", "house"], "name": "two"}
    path.with_suffix(".json").write_text(json.dumps(values))
    return path


def with_card(path, folder, **changes):
    """Return a copy of a model with another card."""
    copy = folder / path.name
    if not copy.exists():
        copy.symlink_to(path)
    values = json.loads(path.with_suffix(".json").read_text()) | changes
    copy.with_suffix(".json").write_text(json.dumps(values))
    return copy


def test_thresholds_by_class_change_what_is_found(towns, two_classes, tmp_path):
    run = {"workers": 1, "device": "cpu"}
    image = str(towns[0].image)
    counts = {}
    for name, changes in {
        "none": {"min_score": 0.2},
        "both": {"min_score": 0.5, "class_scores": {"roof": 0.2, "house": 0.65}},
        "roof": {"min_score": 0.65, "class_scores": {"roof": 0.2}},
    }.items():
        path = with_card(two_classes, tmp_path, **changes)
        found = geoseg.detect(image, model=path, **run)
        counts[name] = found["class"].value_counts().to_dict()
        if name == "both":
            assert found.loc[found["class"] == "house", "score"].min() >= 0.65
            assert found.loc[found["class"] == "roof", "score"].min() < 0.5
    assert 0 < counts["both"]["house"] < counts["none"]["house"]
    assert counts["both"]["roof"] == counts["none"]["roof"] > 5
    # what is not named takes min_score
    assert counts["roof"] == counts["both"]
    # the user's own threshold is for all
    path = with_card(two_classes, tmp_path, class_scores={"roof": 0.2, "house": 0.65})
    given = geoseg.detect(image, model=path, min_score=0.2, **run)
    assert given["class"].value_counts().to_dict() == counts["none"]


def test_a_resumed_run_never_mixes_thresholds(towns, two_classes, tmp_path):
    settings = DetectSettings((str(towns[0].image),), model=str(tmp_path / two_classes.name))
    keys = set()
    for changes in (
        {"min_score": 0.2},
        {"class_scores": {"roof": 0.2, "house": 0.6}},
        {"class_scores": {"roof": 0.2, "house": 0.7}},
        {"min_score": 0.2, "nms_iou": 0.5},
    ):
        with_card(two_classes, tmp_path, **changes)
        keys.add(plan_run(settings).key)
    assert len(keys) == 4
    with_card(two_classes, tmp_path, min_area_m2=12.0)
    assert plan_run(settings).settings.min_area == 12
    with_card(two_classes, tmp_path, calibration={"scores": [2]})
    with pytest.raises(ConfigError, match="the card of two: no calibration"):
        plan_run(settings)


def test_each_class_gets_its_own_threshold(towns, two_classes, tmp_path):
    labels = gpd.read_file(towns[0].footprints)
    # everything is a roof, and every third thing a house too
    both = pd.concat([labels.assign(kind="roof"), labels.iloc[::3].assign(kind="house")])
    both[["kind", "geometry"]].to_file(tmp_path / "both.gpkg")
    (given,) = tables(towns[:1])
    given |= {"labels": str(tmp_path / "both.gpkg"), "class_field": "kind"}
    areas = load_areas([given], tmp_path, ("roof", "house"))
    found = tune(two_classes, areas, lowest=0.1, goal=Goal("count"))
    assert set(found.curves) == {"roof", "house"}
    assert found.scores["house"] > found.scores["roof"]
    assert found.card.class_scores == found.scores
    assert found.card.min_score == found.scores["roof"]
    # a run with the card is the two runs of one class each
    assert found.verified == pytest.approx(found.areas["f1"].iloc[-1], abs=0.02)


# -- what can be wrong -----------------------------------------------------------------------------


def test_errors_say_what_to_do(towns, model, tmp_path, capsys):
    town = towns[0]
    far = gpd.GeoDataFrame(geometry=[box(0, 0, 9, 9)], crs="EPSG:32645")
    far.to_file(tmp_path / "far.gpkg")
    corner = gpd.GeoSeries([box(*gpd.read_file(town.aoi).total_bounds)], crs="EPSG:32645")
    corner.buffer(-30).to_file(tmp_path / "small.gpkg")
    (tmp_path / "empty.toml").write_text("[train]\nsteps = 1\n")
    (tmp_path / "odd.toml").write_text('[[validation]]\nimage = "a.tif"\n')
    area = ["--image", town.image, "--labels", town.footprints, "--aoi", town.aoi]
    only = ["--image", town.image, "--labels", town.footprints, "--aoi"]
    for args, message in (
        (["maskrcnn_resnet50_fpn", *area], "is no .safetensors file, so it has no card to tune"),
        ([model, *area[:-1], tmp_path / "small.gpkg", "--calibrate"], "needs 30 true things"),
        (["mine.safetensors", *area], "model file mine.safetensors does not exist"),
        ([model], "Name labelled areas: with --sites FILE"),
        ([model, "--image", town.image], "There are 1 --image, 0 --labels and 0 --aoi"),
        ([model, *only, tmp_path / "no.gpkg"], "no.gpkg does not exist; name a vector file"),
        ([model, *only, tmp_path / "far.gpkg"], "the AOI in .*far.gpkg lies outside town.tif"),
        ([model, "--image", tmp_path / "no.tif", *area[2:]], "no.tif: no such file"),
        ([model, *area, "--class-field", "kind"], "has no field 'kind'"),
        ([model, "--sites", tmp_path / "none.toml"], "none.toml does not exist"),
        ([model, "--sites", tmp_path / "empty.toml"], r"has no \[\[validation\]\] table"),
        ([model, "--sites", tmp_path / "odd.toml"], "lacks labels"),
        ([model, *area, "--nms", "0.5,x"], "--nms is 0.5,x; expected values above 0"),
        ([model, *area, "-o", tmp_path / "m.pt"], "expected a name ending in .safetensors"),
        ([model, *area, "-o", model], "is the model itself; give --write"),
        ([model, *area, "--curves", tmp_path / "c.gif"], "unknown suffix '.gif'"),
        (["buildings", *area, "--write"], "buildings is a shipped model, .* give -o"),
        ([find_model("buildings"), *area, "--write"], "is a shipped model"),
    ):
        assert main(["tune", *map(str, args)]) == 2, message
        said = capsys.readouterr().err
        assert re.search(message, said), said
        assert "Traceback" not in said


def test_an_area_without_labels_is_refused(towns, tmp_path):
    labels = gpd.read_file(towns[0].footprints)
    labels.translate(0, 5000).to_file(tmp_path / "moved.gpkg")
    (given,) = tables(towns[:1])
    with pytest.raises(
        LabelError, match=r"none of .* labels lies on the image; they lie at .*; give the labels of"
    ):
        load_areas([given | {"labels": str(tmp_path / "moved.gpkg")}], tmp_path, ("building",))
    two = [given, given | {"class_field": "class"}]
    with pytest.raises(LabelError, match="name it in all, or in none"):
        load_areas(two, tmp_path, ("roof", "house"))


def test_a_precision_out_of_reach_ends_with_two(towns, model, tmp_path, capsys):
    """Labels that lie beside the houses are hardly ever met."""
    labels = gpd.read_file(towns[0].footprints)
    labels["geometry"] = labels.translate(1.7, 0)
    labels.to_file(tmp_path / "beside.gpkg")
    args = ["tune", model, "--image", towns[0].image, "--labels", tmp_path / "beside.gpkg"]
    args += ["--aoi", towns[0].aoi, "--precision", "0.99", "--lowest", "0.8"]
    assert main(list(map(str, args))) == 2
    assert "no threshold gives a precision of 0.99: the best is 0." in capsys.readouterr().err
