"""Calibrations fitted to simulated detectors whose chances are known, and judged on fresh areas."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from test_evaluate import UTM, X0, Y0

from geoseg.cli.main import main
from geoseg.errors import ConfigError
from geoseg.objects.calibrate import fit_calibration, reliability
from geoseg.objects.evaluate import evaluate
from geoseg.objects.expected import interval_90


def chance_of(score):
    """Probability that an object of a score is true, in the simulation."""
    return np.clip(1.4 * score - 0.4, 0.05, 0.98)


def missed_of(area):
    """Probability that a thing of a size is missed, in the simulation."""
    return np.interp(np.log(area), np.log([10, 100, 400]), [0.6, 0.15, 0.05])


def area_of_town(rng, n=80, factor=1.0):
    """Return objects and truth of one area; ``factor`` makes the detector see more or less."""
    side = np.sqrt(np.exp(rng.uniform(np.log(10), np.log(400), n)))
    x, y = X0 + 60.0 * (np.arange(n) % 20), Y0 + 60.0 * (np.arange(n) // 20)
    true = shapely.box(x, y, x + side, y + side)
    found = rng.random(n) < np.clip(factor * (1 - missed_of(side**2)), 0, 1)
    # scores of true and of false objects follow from those of all and their chance to be true
    pool = rng.uniform(0.4, 1.0, 4000)
    is_true = rng.random(4000) < chance_of(pool)
    scores = rng.choice(pool[is_true], found.sum())
    n_false = rng.poisson(found.sum() * (~is_true).sum() / is_true.sum())
    fx = X0 + 60.0 * rng.integers(0, 20, n_false)
    fy = Y0 - 60.0 * (1 + np.arange(n_false))
    # false things are as large as true ones: a score says as much of either
    fs = rng.choice(side[found], n_false)
    false = shapely.box(fx, fy, fx + fs, fy + fs)
    objects = gpd.GeoDataFrame(
        {"score": np.concatenate([scores, rng.choice(pool[~is_true], n_false)])},
        geometry=np.concatenate([true[found], false]),
        crs=UTM,
    )
    return objects, gpd.GeoDataFrame(geometry=true, crs=UTM)


def judged(rng, n_areas, **how):
    return [evaluate(*area_of_town(rng, **how), min_score=0.4) for _ in range(n_areas)]


def test_both_curves_are_found_again():
    fitted = fit_calibration(judged(np.random.default_rng(1), 30))
    scores = np.linspace(0.5, 0.95, 10)
    assert np.interp(scores, fitted.scores, fitted.chance) == pytest.approx(
        chance_of(scores), abs=0.07
    )
    sizes = np.array([12, 30, 80, 200, 350])
    assert np.interp(sizes, fitted.sizes_m2, fitted.missed) == pytest.approx(
        missed_of(sizes), abs=0.07
    )
    assert fitted.min_score == 0.4
    assert fitted.spread < 0.08


def hold(fitted, areas):
    """Return the share of areas whose true number lies in the interval, and the mean of ratios."""
    inside, ratio = [], []
    for area in areas:
        kept = area.ranking
        mean, variance = fitted.expect(kept["score"].to_numpy(), kept["area_m2"].to_numpy())
        low, high = interval_90(mean.sum(), variance.sum(), fitted.spread)
        inside.append(low <= area.n_truth <= high)
        ratio.append(mean.sum() / area.n_truth)
    return np.mean(inside), np.mean(ratio)


def test_the_interval_holds_on_areas_that_were_not_seen():
    rng = np.random.default_rng(2)
    fitted = fit_calibration(judged(rng, 25))
    inside, ratio = hold(fitted, judged(rng, 80, n=50))
    assert 0.84 <= inside <= 0.97
    assert ratio == pytest.approx(1, abs=0.05)


def test_areas_that_differ_widen_the_interval():
    rng = np.random.default_rng(3)
    areas = [
        evaluate(*area_of_town(rng, factor=f), min_score=0.4) for f in rng.normal(0.85, 0.15, 70)
    ]
    fitted = fit_calibration(areas[:25])
    assert 0.08 < fitted.spread < 0.35
    inside, _ = hold(fitted, areas[25:])
    assert inside >= 0.8
    assert inside > hold(replace(fitted, spread=0.0), areas[25:])[0]


def test_a_plain_count_would_be_wrong_where_the_expected_one_is_right():
    rng = np.random.default_rng(4)
    fitted = fit_calibration(judged(rng, 25))
    # large things alone: next to none is missed, so the false ones are too many
    objects, truth = area_of_town(rng, n=600)
    large = objects[objects.area > 150], truth[truth.area > 150]
    area = evaluate(*large, min_score=0.4)
    mean, _ = fitted.expect(area.ranking["score"].to_numpy(), area.ranking["area_m2"].to_numpy())
    assert area.n_objects > 1.2 * area.n_truth
    assert mean.sum() == pytest.approx(area.n_truth, rel=0.1)


def test_a_file_of_labels_gives_what_count_takes(tmp_path):
    rng = np.random.default_rng(9)
    towns = [area_of_town(rng) for _ in range(6)]
    far = [
        tuple(t.assign(geometry=t.translate(0, -9000.0 * i)) for t in town)
        for i, town in enumerate(towns)
    ]
    objects, truth = (pd.concat(tables, ignore_index=True) for tables in zip(*far, strict=True))
    areas = gpd.GeoDataFrame(
        {"name": [f"area {i}" for i in range(6)]},
        geometry=[
            shapely.box(X0 - 50, Y0 - 9000 * i - 8000, X0 + 1300, Y0 - 9000 * i + 900)
            for i in range(6)
        ],
        crs=UTM,
    )
    paths = {}
    for name, table in (("objects", objects), ("truth", truth), ("areas", areas)):
        paths[name] = str(tmp_path / f"{name}.gpkg")
        table.to_file(paths[name], layer=name)
    curve = str(tmp_path / "calibration.json")
    args = ["evaluate", paths["objects"], paths["truth"], "--aoi", paths["areas"]]
    assert main([*args, "--min-score", "0.4", "--calibration", curve]) == 0
    counted = str(tmp_path / "counts.gpkg")
    args = ["count", paths["objects"], paths["areas"], "--calibration", curve, "-o", counted]
    assert main(args) == 0
    regions = gpd.read_file(counted, layer="regions")
    inside = regions["expected_low"].le(80) & regions["expected_high"].ge(80)
    # the areas themselves, so nearly all of them
    assert inside.sum() >= 5
    assert regions["expected"].sum() == pytest.approx(480, rel=0.03)


def test_reliability_shows_what_the_curve_is_fitted_to():
    areas = judged(np.random.default_rng(5), 20)
    table = reliability(areas, bins=8)
    assert table["n"].sum() == sum(len(a.ranking) for a in areas)
    assert table["score"].is_monotonic_increasing
    assert table["true"].to_numpy() == pytest.approx(chance_of(table["score"]), abs=0.12)


def test_too_few_labels_are_refused():
    with pytest.raises(ConfigError, match="label more"):
        fit_calibration(judged(np.random.default_rng(6), 1, n=20))


def test_one_area_cannot_tell_how_areas_differ():
    assert fit_calibration(judged(np.random.default_rng(7), 1)).spread == 0


def test_scores_are_needed():
    objects, truth = area_of_town(np.random.default_rng(8))
    with pytest.raises(ConfigError, match="column 'score'"):
        fit_calibration([evaluate(objects.drop(columns="score"), truth)])
