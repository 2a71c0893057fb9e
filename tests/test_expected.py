"""Expected counts: nine of ten intervals hold the truth."""

import math

import geopandas as gpd
import numpy as np
import pytest
import shapely

from geoseg.errors import ConfigError
from geoseg.objects.count import Calibration, count
from geoseg.objects.expected import interval_90
from geoseg.outputs.regions import calibration_from, read_calibration

UTM = 32645
CURVE = Calibration(
    scores=(0.3, 0.6, 0.9, 1.0),
    chance=(0.3, 0.6, 0.93, 0.99),
    sizes_m2=(20.0, 60.0, 200.0),
    missed=(0.4, 0.15, 0.02),
)


def found_in(rng, regions, things, calibration):
    """Throw things into regions and let a detector look that is as the calibration says.

    Found things get scores, and false finds come beside them, so that of the finds of each score
    the share that the calibration says is true.
    """

    def look():
        n = rng.poisson(things, regions)
        where = np.repeat(np.arange(regions), n)
        size = rng.uniform(15, 250, len(where))
        seen = rng.random(len(where)) > np.interp(size, calibration.sizes_m2, calibration.missed)
        score = rng.uniform(0.3, 1.0, len(where))
        return n, where[seen], score[seen], size[seen]

    n_true, *found = look()
    # false ones know nothing of the true: of another town, (1 - p) / p beside each of chance p
    _, *other = look()
    p = np.interp(other[1], calibration.scores, calibration.chance)
    beside = np.repeat(np.arange(len(p)), rng.poisson((1 - p) / p))
    return n_true, *(np.concatenate([a, b[beside]]) for a, b in zip(found, other, strict=True))


@pytest.mark.parametrize("things", [8, 40, 400])
def test_nine_of_ten_intervals_hold_the_truth(things):
    rng = np.random.default_rng(things)
    regions = 4000
    truth, where, score, size = found_in(rng, regions, things, CURVE)
    mean, variance = CURVE.expect(score, size)
    expected = np.bincount(where, weights=mean, minlength=regions)
    low, high = interval_90(expected, np.bincount(where, weights=variance, minlength=regions))
    assert expected.mean() == pytest.approx(truth.mean(), rel=0.02)
    inside = ((low <= truth) & (truth <= high)).mean()
    assert 0.87 <= inside <= 0.95


def test_spread_between_areas_widens_the_interval():
    rng = np.random.default_rng(2)
    truth = 1000
    # areas whose imagery is easier or harder than that of the calibration, by 10 % or so
    expected = truth * (1 + 0.1 * rng.standard_normal(4000))
    low, high = interval_90(expected, np.full(4000, 50.0), spread=0.1)
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.9, abs=0.02)
    narrow = interval_90(expected, np.full(4000, 50.0))
    assert ((narrow[0] <= truth) & (truth <= narrow[1])).mean() < 0.2


def test_areas_that_differ_much_leave_an_interval_that_says_something():
    rng = np.random.default_rng(3)
    spread, things = 0.6, 300.0
    log_sd = math.sqrt(math.log1p(spread**2))
    truth = things * rng.lognormal(-(log_sd**2) / 2, log_sd, 4000)
    low, high = interval_90(np.array([things]), np.array([60.0]), spread)
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.9, abs=0.02)
    # by hand: the median is 300 / sqrt(1.36), its logarithm's deviation sqrt(log 1.36)
    assert low[0] == pytest.approx(257.2 / 2.49 - 0.5, rel=0.01)
    assert high[0] == pytest.approx(257.2 * 2.49 + 0.5, rel=0.01)
    nothing = interval_90(np.zeros(1), np.zeros(1), spread)
    assert [float(b[0]) for b in nothing] == [0.0, 0.5]


def test_expected_counts_are_columns_and_add_up():
    boxes = [shapely.box(x, 0, x + 100, 100) for x in (0, 100)]
    regions = gpd.GeoDataFrame({"name": ["a", "b"]}, geometry=boxes, crs=UTM)
    at = [(10, 10), (50, 50), (150, 50), (500, 50)]
    objects = gpd.GeoDataFrame(
        {
            "class": ["x", "y", "x", "y"],
            "score": [0.6, 0.9, 1.0, 0.3],
            "area_m2": [60.0, 20, 200, 60],
        },
        geometry=[shapely.box(x, y, x + 5, y + 5) for x, y in at],
        crs=UTM,
    )
    assert "expected" not in count(objects, regions).columns
    result = count(objects, regions, calibration=CURVE)
    first = 0.6 / 0.85 + 0.93 / 0.6
    assert result["expected"].to_numpy() == pytest.approx([first, 0.99 / 0.98], abs=1e-5)
    variance = (0.6 * 0.4 + 0.6 * 0.15) / 0.85**2 + (0.93 * 0.07 + 0.93 * 0.4) / 0.6**2
    relative = variance / first**2
    median, factor = (
        first / (1 + relative) ** 0.5,
        math.exp(1.6448536 * math.log1p(relative) ** 0.5),
    )
    assert result["expected_high"][0] == pytest.approx(median * factor + 0.5, abs=1e-5)
    assert result["expected_low"][0] == pytest.approx(median / factor - 0.5, abs=1e-5)
    # by class, each by its own curve
    other = Calibration((0.5,), (0.5,), (50.0,), (0.5,))
    mixed = count(objects, regions, calibration={"x": CURVE, "y": other})
    assert mixed["expected"][0] == pytest.approx(0.6 / 0.85 + 1.0, abs=1e-5)
    with pytest.raises(ConfigError, match="no calibration for the class 'y', only for x"):
        count(objects, regions, calibration={"x": CURVE})


def test_half_an_object_is_half_expected():
    regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 10, 10)], crs=UTM)
    objects = gpd.GeoDataFrame(
        {"score": [0.9], "area_m2": [60.0]}, geometry=[shapely.box(5, 0, 15, 10)], crs=UTM
    )
    result = count(objects, regions, rule="area", calibration=CURVE)
    assert result["expected"][0] == pytest.approx(0.5 * 0.93 / 0.85, abs=1e-5)


def test_objects_without_scores_are_refused():
    regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 10, 10)], crs=UTM)
    objects = gpd.GeoDataFrame(geometry=[shapely.box(1, 1, 2, 2)], crs=UTM)
    with pytest.raises(ConfigError, match="objects have no score"):
        count(objects, regions, calibration=CURVE)
    with pytest.raises(ConfigError, match="not all of them"):
        count(objects.assign(score=np.nan), regions, calibration=CURVE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": (0.6, 0.3, 0.9, 1.0)}, "scores must ascend"),
        ({"scores": (0.3, 0.6)}, "scores has 2 values and chance 4"),
        ({"chance": (0.3, 0.6, 0.93, 1.2)}, "chance must lie in"),
        ({"missed": (0.4, 0.15, 0.99)}, r"missed must lie in \[0, 0.95\]"),
        ({"sizes_m2": (-1.0, 60.0, 200.0)}, "sizes_m2 must be above 0"),
        ({"spread": -1.0}, "spread is -1"),
        ({"nonsense": 1}, "no calibration .*nonsense.*expected scores"),
    ],
)
def test_a_calibration_that_is_none_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        Calibration.from_dict(CURVE.to_dict() | changed)


def test_a_calibration_comes_from_a_card_or_a_file_of_its_own(tmp_path):
    import json

    plain = json.loads(json.dumps(CURVE.to_dict()))
    assert calibration_from(plain, "x") == CURVE
    assert calibration_from({"name": "m", "quality": {"calibration": plain}}, "x") == CURVE
    assert calibration_from({"calibration": {"roof": plain}}, "x") == {"roof": CURVE}
    assert calibration_from({"name": "m", "quality": {"AP": 0.5}}, "x") is None
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"quality": {"calibration": plain}}))
    assert read_calibration(path) == CURVE
    path.write_text('{"quality": {}}')
    with pytest.raises(ConfigError, match="holds no calibration"):
        read_calibration(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_calibration(tmp_path / "nope.json")
