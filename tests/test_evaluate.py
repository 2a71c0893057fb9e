"""Precision, recall, F1 and AP against hand-made cases, a brute-force oracle and pycocotools."""

import json
import math
from itertools import permutations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.affinity

from geoseg.errors import ConfigError, RegionError
from geoseg.objects.evaluate import (
    AP_THRESHOLDS,
    average_precision,
    evaluate,
    local_crs,
    pool,
    threshold_curve,
)

UTM = 32645
X0, Y0 = 350000, 3050000


def box(x, y, width=10.0, height=10.0):
    return shapely.box(X0 + x, Y0 + y, X0 + x + width, Y0 + y + height)


def table(polygons, crs=UTM, **columns):
    return gpd.GeoDataFrame(columns, geometry=list(polygons), crs=crs)


def ten_buildings():
    """Ten true squares of 10 m in a row, 20 m apart, and nine objects.

    ======  =======================================  =========
    object  what it is                               IoU
    ======  =======================================  =========
    0-4     squares 0-4, exact                       1
    5       square 5 shifted by 2 m                  8/12 = .667
    6       square 6 shifted by 4 m                  6/14 = .429
    7       square 0 once more, lower score          taken
    8       nothing near                             0
    ======  =======================================  =========
    """
    truth = table(box(20 * i, 0) for i in range(10))
    polygons = [box(20 * i, 0) for i in range(5)]
    polygons += [box(102, 0), box(124, 0), box(0, 0), box(500, 500)]
    scores = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.99]
    return table(polygons, score=scores), truth


def test_ten_buildings_by_hand():
    objects, truth = ten_buildings()
    got = evaluate(objects, truth)
    assert (got.n_objects, got.n_truth, got.tp, got.fp, got.fn) == (9, 10, 6, 3, 4)
    assert got.precision == pytest.approx(6 / 9)
    assert got.recall == pytest.approx(6 / 10)
    assert got.f1 == pytest.approx(12 / 19)
    assert got.mean_iou == pytest.approx((5 + 8 / 12) / 6, rel=1e-5)
    assert got.count_error == pytest.approx(-0.1)
    assert got.matches["object"].tolist() == [0, 1, 2, 3, 4, 5]
    assert got.matches["truth"].tolist() == [0, 1, 2, 3, 4, 5]
    # ranked: miss, then six hits: best precision from recall 0 to 0.6 is 6/7 (61 of 101 points)
    assert got.ap50 == pytest.approx(61 / 101 * 6 / 7)
    # IoU .667 is a hit up to 0.65 (4 steps of 10); then five hits: 5/6 over 51 points
    assert got.ap == pytest.approx((4 * 61 / 101 * 6 / 7 + 6 * 51 / 101 * 5 / 6) / 10)
    # at IoU 0.4 the shifted one counts too
    assert evaluate(objects, truth, iou_threshold=0.4).tp == 7


def test_min_score_leaves_out_objects_but_not_from_ap():
    objects, truth = ten_buildings()
    got = evaluate(objects, truth, min_score=0.78)
    assert (got.n_objects, got.tp) == (5, 4)
    assert got.matches["object"].tolist() == [0, 1, 2, 3]
    assert got.ap50 == pytest.approx(61 / 101 * 6 / 7)


def test_a_better_score_takes_the_polygon_even_with_a_lower_iou():
    truth = table([box(0, 0)])
    objects = table([box(0, 0), box(2, 0)], score=[0.5, 0.9])
    got = evaluate(objects, truth)
    assert got.matches["object"].tolist() == [1]
    assert (got.tp, got.fp, got.fn) == (1, 1, 0)


def test_truth_and_objects_follow_the_same_rule_at_the_border():
    aoi = table([box(0, 0, 100, 100)])
    # 60 % inside: kept and clipped; 40 % inside: left out; outside: left out
    truth = table([box(94, 0), box(96, 20), box(200, 0), box(-5, 40)])
    # drawn only up to the border: the same as the clipped truth
    objects = table([box(94, 0, 6), box(200, 0), box(96, 60)], score=[0.9, 0.9, 0.9])
    got = evaluate(objects, truth, aoi=aoi)
    assert (got.n_truth, got.n_objects, got.tp) == (2, 1, 1)
    assert got.matches["iou"].to_numpy() == pytest.approx([1.0], abs=1e-3)
    assert got.matches["truth"].tolist() == [0]


def test_layers_in_different_crs_and_degrees_are_compared_on_the_ground():
    objects, truth = ten_buildings()
    plain = evaluate(objects, truth, aoi=table([box(-10, -10, 1000, 1000)]))
    mixed = evaluate(
        objects.to_crs(3857),
        truth.to_crs(4326),
        aoi=table([box(-10, -10, 1000, 1000)]).to_crs(4326),
    )
    assert mixed.matches["iou"].to_numpy() == pytest.approx(plain.matches["iou"], abs=1e-4)
    assert mixed.ap == pytest.approx(plain.ap)


def rotated_squares(crs, x, y, seed, n=40):
    """Return n true rectangles, objects shifted by up to 2 m, and their exact IoU."""
    rng = np.random.default_rng(seed)
    corners = np.column_stack([x + 25.0 * np.arange(n), y + rng.uniform(0, 500, n)])
    sizes, turns = rng.uniform(5, 18, (n, 2)), rng.uniform(0, 90, n)
    true = [
        shapely.affinity.rotate(shapely.box(*c, *(c + s)), a)
        for c, s, a in zip(corners, sizes, turns, strict=True)
    ]
    shifts = rng.uniform(-2, 2, (n, 2))
    found = [shapely.affinity.translate(p, *d) for p, d in zip(true, shifts, strict=True)]
    common = shapely.area(shapely.intersection(true, found))
    iou = common / (shapely.area(true) + shapely.area(found) - common)
    area = shapely.box(x - 50, y - 50, x + 25 * n / 2 - 5, y + 600)
    return (
        table(true, crs),
        table(found, crs, score=rng.uniform(0.3, 1, n)),
        table([area], crs),
        iou,
    )


def test_sites_on_three_continents_are_pooled_in_one_call():
    # Nepal, the Philippines, Tanzania and Peru: up to 11,600 km from the centre of the map
    sites = [
        rotated_squares(crs, x, y, seed)
        for seed, (crs, x, y) in enumerate(
            [
                (32645, 350e3, 3050e3),
                (32651, 550e3, 1500e3),
                (32737, 520e3, 9300e3),
                (32718, 400e3, 8500e3),
            ]
        )
    ]
    truth, objects, aoi = (
        gpd.GeoDataFrame(pd.concat([s[i].to_crs(4326) for s in sites], ignore_index=True))
        for i in range(3)
    )
    exact = np.concatenate([s[3] for s in sites])
    got = evaluate(objects, truth, iou_threshold=0.05)
    own = got.matches[got.matches["object"] == got.matches["truth"]]
    assert len(own) == len(exact)
    assert np.abs(own["iou"].to_numpy() - exact[own["object"]]).max() < 1e-6
    together = evaluate(objects, truth, aoi=aoi)
    apart = pool([evaluate(o, t, aoi=a) for t, o, a, _ in sites])
    assert 0 < together.n_truth < len(truth)
    for name in ("n_objects", "n_truth", "tp", "fp", "fn"):
        assert getattr(together, name) == getattr(apart, name)
    for name in ("mean_iou", "ap50", "ap"):
        assert getattr(together, name) == pytest.approx(getattr(apart, name), abs=1e-6)


def test_local_crs_holds_across_the_antimeridian():
    lonlat = gpd.GeoSeries.from_xy([179.999, -179.999], [-17, -17], crs=4326)
    a, b = lonlat.to_crs(local_crs(gpd.GeoDataFrame(geometry=lonlat)))
    assert a.distance(b) == pytest.approx(213, abs=1)


@pytest.mark.parametrize(("n_objects", "n_truth"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_found_or_nothing_there(n_objects, n_truth):
    objects = table([box(20 * i, 0) for i in range(n_objects)], score=[0.5] * n_objects)
    truth = table([box(20 * i, 0) for i in range(n_truth)])
    got = evaluate(objects, truth, aoi=table([box(-5, -5, 100, 100)]))
    assert (got.tp, got.fp, got.fn) == (0, n_objects, n_truth)
    assert math.isnan(got.precision) == (n_objects == 0)
    assert math.isnan(got.recall) == (n_truth == 0)
    assert math.isnan(got.mean_iou)
    assert math.isnan(got.ap) if n_truth == 0 else got.ap == 0
    figures = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert figures["n_truth"] == n_truth
    assert figures["mean_iou"] is None
    assert "matches" not in figures


def test_without_scores_there_is_no_ap():
    objects, truth = ten_buildings()
    got = evaluate(objects.drop(columns="score"), truth)
    assert got.tp == 6
    assert math.isnan(got.ap50)


def test_classes_are_compared_only_when_asked():
    truth = table([box(0, 0), box(20, 0)], **{"class": ["roof", "car"]})
    objects = table([box(0, 0), box(20, 0)], score=[0.9, 0.8], **{"class": ["roof", "roof"]})
    assert evaluate(objects, truth).tp == 2
    aware = evaluate(objects, truth, by_class=True)
    assert aware.tp == 1
    # roof: the first ranked is right; car: nothing
    assert aware.ap50 == pytest.approx((1 + 0) / 2)
    with pytest.raises(ConfigError, match="'class' in the truth"):
        evaluate(objects, truth.drop(columns="class"), by_class=True)


def test_bad_input_is_refused():
    objects, truth = ten_buildings()
    with pytest.raises(ConfigError, match="iou_threshold is 0"):
        evaluate(objects, truth, iou_threshold=0)
    with pytest.raises(RegionError, match="truth layer has no CRS"):
        evaluate(objects, truth.set_crs(None, allow_override=True))
    with pytest.raises(ConfigError, match="score"):
        threshold_curve(objects.drop(columns="score"), truth)


def test_threshold_curve_equals_evaluating_each_threshold():
    objects, truth = random_case(7)
    curve = threshold_curve(objects, truth, thresholds=[0.0, 0.3, 0.6, 0.9, 1.1])
    for row in curve.itertuples():
        one = evaluate(objects, truth, min_score=row.min_score)
        alone = evaluate(objects[objects["score"] >= row.min_score], truth)
        for name in ("n_objects", "precision", "recall", "f1", "count_error"):
            assert getattr(row, name) == pytest.approx(getattr(one, name), nan_ok=True)
            assert getattr(row, name) == pytest.approx(getattr(alone, name), nan_ok=True)
    assert len(threshold_curve(objects, truth)) == 19


def test_pool_is_the_evaluation_of_all_sites_together():
    objects, truth = random_case(3)
    far = [frame.set_geometry(frame.translate(100000, 0)) for frame in (objects, truth)]
    far[0]["score"] = far[0]["score"] * 0.7
    both = evaluate(
        pd.concat([objects, far[0]], ignore_index=True),
        pd.concat([truth, far[1]], ignore_index=True),
    )
    pooled = pool([evaluate(objects, truth), evaluate(*far)])
    for name in ("n_objects", "n_truth", "tp", "fp", "fn", "f1", "mean_iou", "ap50", "ap"):
        assert getattr(pooled, name) == pytest.approx(getattr(both, name), abs=1e-6), name
    assert set(pooled.matches["site"]) == {0, 1}
    with pytest.raises(ConfigError, match="one iou_threshold"):
        pool([evaluate(objects, truth), evaluate(objects, truth, min_score=0.5)])
    with pytest.raises(ConfigError, match="0 evaluations"):
        pool([])


def test_bands_and_interiors_by_hand():
    # truth: squares 0-9, of which 0-4 lie in a band; objects: see ten_buildings
    objects, truth = ten_buildings()
    objects.loc[9, "geometry"] = box(60, 0, 6, 6)  # a piece of square 3, left over
    objects.loc[9, "score"] = 0.5
    truth_band = np.arange(10) < 5
    object_band = (
        shapely.get_coordinates(shapely.point_on_surface(objects.geometry))[:, 0] < X0 + 95
    )
    got = evaluate(objects, truth, in_band=(object_band, truth_band))
    # five squares found, square 0 once more and the piece of square 3
    assert got.bands.to_dict() == {
        "n_objects": 7,
        "matched_objects": 5,
        "n_truth": 5,
        "found_truth": 5,
        "duplicates": 2,
        "precision": 5 / 7,
        "recall": 1.0,
        "f1": pytest.approx(10 / 12),
        "duplicate_rate": 2 / 7,
    }
    # square 5 found, 6 off by too much (on a free square: no duplicate), one far away
    figures = got.interiors
    assert (figures.n_objects, figures.matched_objects, figures.duplicates) == (3, 1, 0)
    assert (figures.n_truth, figures.found_truth) == (5, 1)
    assert figures.f1 == pytest.approx(2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5))
    assert json.loads(json.dumps(got.to_dict()))["bands"]["duplicates"] == 2


def test_bands_change_nothing_else_and_need_not_be_asked_for():
    objects, truth = random_case(5)
    plain = evaluate(objects, truth, min_score=0.3)
    split = evaluate(objects, truth, min_score=0.3, in_band=(objects.index < 9, truth.index < 9))
    assert plain.bands is None
    assert plain.interiors is None
    assert {"bands", "interiors"}.isdisjoint(plain.to_dict())
    figures = split.to_dict()
    assert {k: v for k, v in figures.items() if k not in ("bands", "interiors")} == plain.to_dict()
    both = split.bands + split.interiors
    assert both.n_objects == plain.n_objects
    assert both.n_truth == plain.n_truth
    assert both.matched_objects == both.found_truth == plain.tp
    assert (both.precision, both.recall) == (plain.precision, plain.recall)
    assert both.f1 == pytest.approx(plain.f1)
    assert 0 < both.duplicates <= plain.fp


def test_bands_follow_the_rows_through_an_aoi_and_an_index_of_its_own():
    objects, truth = ten_buildings()
    aoi = table([box(-5, -5, 80, 100)])  # squares 0 to 3
    objects = objects.set_index(np.arange(9) * 10 + 3)
    got = evaluate(objects, truth, aoi=aoi, in_band=(np.ones(9, bool), np.arange(10) < 2))
    assert (got.bands.n_objects, got.bands.matched_objects, got.bands.duplicates) == (5, 4, 1)
    assert (got.bands.n_truth, got.interiors.n_truth, got.interiors.found_truth) == (2, 2, 2)
    assert math.isnan(got.interiors.precision)
    assert math.isnan(got.interiors.f1)
    assert got.interiors.to_dict()["f1"] is None


def test_bands_are_pooled_where_all_have_them():
    objects, truth = random_case(3)
    in_band = (np.arange(len(objects)) % 2 == 0, np.arange(len(truth)) % 2 == 0)
    one = evaluate(objects, truth, in_band=in_band)
    pooled = pool([one, one])
    assert pooled.bands == one.bands + one.bands
    assert pooled.interiors.n_objects == 2 * one.interiors.n_objects
    assert pool([one, evaluate(objects, truth)]).bands is None


def test_bands_of_another_length_are_refused():
    objects, truth = ten_buildings()
    with pytest.raises(ConfigError, match="in_band has 9 and 9 entries but there are 9 objects"):
        evaluate(objects, truth, in_band=(np.ones(9, bool), np.ones(9, bool)))


def random_case(seed, n=25):
    """Crowded squares, some jittered, some doubled, some made up, with many distinct scores."""
    rng = np.random.default_rng(seed)
    truth = [box(*rng.uniform(0, 90, 2), *rng.uniform(6, 14, 2)) for _ in range(n)]
    found = []
    for polygon in truth:
        for _ in range(rng.integers(0, 3)):
            dx, dy = rng.normal(0, 1.2, 2)
            found.append(shapely.transform(polygon, lambda xy, d=(dx, dy): xy + d))
    found += [box(*rng.uniform(0, 90, 2)) for _ in range(5)]
    scores = rng.permutation(len(found)) / len(found)
    return table(found, score=scores), table(truth)


def oracle(objects, truth, threshold):
    """COCO's matching by loops over the planar polygons; returns hits by falling score."""
    free, hits = set(range(len(truth))), []
    for row in np.argsort(-objects["score"].to_numpy(), kind="stable"):
        shape = objects.geometry[row]
        best, partner = threshold, None
        for column in sorted(free):
            other = truth.geometry[column]
            iou = shape.intersection(other).area / shape.union(other).area
            if iou >= best and (partner is None or iou > best):
                best, partner = iou, column
        hits.append(partner is not None)
        free.discard(partner)
    return np.array(hits)


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_the_oracle(seed):
    objects, truth = random_case(seed)
    got = evaluate(objects, truth)
    for step in AP_THRESHOLDS:
        expected = oracle(objects, truth, step)
        assert got.ranking[f"hit_{round(100 * step)}"].tolist() == expected.tolist()
    assert got.ap50 == average_precision(oracle(objects, truth, 0.5), len(truth))


def test_average_precision_by_its_definition():
    """Over all orders of three hits and two misses: the maximum at or beyond each recall."""
    for hits in set(permutations([True, True, True, False, False])):
        points = [(sum(hits[: k + 1]) / 4, sum(hits[: k + 1]) / (k + 1)) for k in range(5)]
        expected = np.mean(
            [max((p for r, p in points if r >= t), default=0) for t in np.linspace(0, 1, 101)]
        )
        assert average_precision(np.array(hits), 4) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_pycocotools(seed, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    objects, truth = random_case(seed)

    def xywh(polygon):
        x0, y0, x1, y1 = polygon.bounds
        return [x0 - X0 + 50, y0 - Y0 + 50, x1 - x0, y1 - y0]

    reference = coco.COCO()
    reference.dataset = {
        "info": {},
        "images": [{"id": 1, "width": 300, "height": 300}],
        "categories": [{"id": 1, "name": "building"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": xywh(p),
                "area": p.area,
                "iscrowd": 0,
            }
            for i, p in enumerate(truth.geometry)
        ],
    }
    reference.createIndex()
    found = reference.loadRes(
        [
            {"image_id": 1, "category_id": 1, "bbox": xywh(p), "score": s}
            for p, s in zip(objects.geometry, objects["score"], strict=True)
        ]
    )
    # boxes are exact for axis-parallel squares, where COCO's masks would be rounded to pixels
    run = cocoeval.COCOeval(reference, found, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    capsys.readouterr()
    got = evaluate(objects, truth)
    assert got.ap == pytest.approx(run.stats[0], abs=1e-6)
    assert got.ap50 == pytest.approx(run.stats[1], abs=1e-6)
