"""Change between dates, on towns of which every change is known."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import shapely
import shapely.affinity

from geoseg.cli.main import main
from geoseg.errors import ConfigError, RegionError
from geoseg.objects.compare import KINDS, compare
from geoseg.objects.tracks import tracks

UTM = "EPSG:32645"


def town(seed: int = 0, count: int = 900) -> gpd.GeoDataFrame:
    """Tilted houses of 6 to 16 m a side on plots of 24 m, some plots empty."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count * 1.3)))
    plots = rng.permutation(side * side)[:count]
    houses = []
    for plot in plots:
        x, y = 24.0 * (plot % side) + 12, 24.0 * (plot // side) + 12
        w, h = rng.uniform(6, 16, 2)
        houses.append(
            shapely.affinity.rotate(
                shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), rng.uniform(0, 90)
            )
        )
    return gpd.GeoDataFrame(
        {"uid": [f"a{k}" for k in range(count)], "class": "house"},
        geometry=shapely.transform(np.array(houses, object), lambda xy: np.add(xy, (3e5, 3e6))),
        crs=UTM,
    )


def seen_again(houses: np.ndarray, rng: np.random.Generator, shift=(0.0, 0.0)) -> np.ndarray:
    """Draw outlines as another flight would: every corner a little elsewhere, all of them off."""
    moved = [
        shapely.Polygon(np.asarray(h.exterior.coords)[:-1] + rng.normal(0, 0.15, (4, 2)))
        for h in houses
    ]
    return shapely.transform(np.array(moved, object), lambda xy: np.add(xy, shift))


@pytest.fixture(scope="module")
def dates() -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame, dict[str, str]]:
    """Two dates of a town: a tenth gone, 15 % new, 5 % half as large again, 1.5 m off."""
    rng = np.random.default_rng(5)
    everything = town(count=1150)
    before, new = everything.iloc[:1000], everything.iloc[1000:]
    gone, grown = set(range(100)), set(range(100, 150))
    outlines, truth = [], {}
    for k, house in enumerate(before.geometry):
        uid = before["uid"].iloc[k]
        truth[uid] = "gone" if k in gone else "grown" if k in grown else "kept"
        if k not in gone:
            size = np.sqrt(1.5) if k in grown else 1.0
            outlines.append(shapely.affinity.scale(house, size, size))
    truth |= dict.fromkeys(new["uid"], "appeared")
    names = [uid for uid in before["uid"] if truth[uid] != "gone"]
    shift = (1.2, -0.9)
    again = seen_again(np.array([*outlines, *new.geometry], object), rng, shift)
    after = gpd.GeoDataFrame(
        {"uid": [f"b-{n}" for n in (*names, *new["uid"])], "class": "house"},
        geometry=again,
        crs=UTM,
    ).sample(frac=1, random_state=1, ignore_index=True)
    return before, after, truth


def test_a_town_at_two_dates(dates):
    before, after, truth = dates
    found = compare(before, after)
    assert np.abs(np.subtract(found.shift_m, (1.2, -0.9))).max() < 0.2
    assert found.matched > 400
    right = 0
    for row in found.changes.itertuples():
        name = row.before or row.after.removeprefix("b-")
        right += row.change == truth[name] and (not row.after or row.after == f"b-{name}" or
                                                not row.before)  # fmt: skip
    assert right >= 0.98 * len(truth)
    assert len(found.changes) == pytest.approx(len(truth), rel=0.01)
    assert sum(found.counts.values()) == len(found.changes)
    kept = found.changes[found.changes["change"] == "kept"]
    assert kept["iou"].median() > 0.85
    # a thing keeps the name of its first date
    assert (kept["thing_id"] == kept["before"]).all()
    # outlines of the second date are laid on the first
    truth_by = before.set_index("uid").geometry
    apart = kept.geometry.centroid.distance(
        gpd.GeoSeries(truth_by.loc[kept["before"]].to_numpy(), crs=UTM).centroid.set_axis(
            kept.index
        )
    )
    assert apart.median() < 0.2


def test_without_a_tolerance_the_shift_stays(dates):
    before, after, _ = dates
    found = compare(before, after, tolerance_m=0)
    assert found.shift_m == (0, 0)
    assert found.changes["iou"].median() < 0.8


def test_other_crs_and_web_mercator(dates):
    before, after, _ = dates
    expected = compare(before, after)
    for crs in (4326, 3857):
        found = compare(before.to_crs(crs), after.to_crs(32644))
        assert found.changes.crs == crs
        assert np.abs(np.subtract(found.shift_m, expected.shift_m)).max() < 0.1
        assert sum(abs(found.counts[k] - expected.counts[k]) for k in KINDS) <= 5


def table(polygons, prefix="a", **columns) -> gpd.GeoDataFrame:
    names = [f"{prefix}{k}" for k in range(len(polygons))]
    return gpd.GeoDataFrame({"uid": names, **columns}, geometry=polygons, crs=UTM)


def box(x, width, y=0.0, height=10.0):
    return shapely.box(x, y, x + width, y + height)


def changes(before, after, **options):
    found = compare(table(before), table(after, "b"), tolerance_m=0, **options).changes
    return sorted(zip(found["change"], found["before"], found["after"], strict=True))


def test_what_becomes_of_one_thing():
    assert changes([box(0, 10)], [box(0, 10)]) == [("kept", "a0", "b0")]
    assert changes([box(0, 10)], [box(0, 14)]) == [("grown", "a0", "b0")]
    assert changes([box(0, 14)], [box(0, 10)]) == [("shrunk", "a0", "b0")]
    assert changes([box(0, 10)], [box(0, 14)], growth=0.5) == [("kept", "a0", "b0")]
    assert changes([box(0, 10)], []) == [("gone", "a0", "")]
    assert changes([], [box(0, 10)]) == [("appeared", "", "b0")]
    assert changes([], []) == []


def test_splits_and_mergers():
    halves = [box(0, 9.5), box(10, 9.5)]
    assert changes([box(0, 20)], halves) == [("split", "a0", "b0,b1")]
    assert changes(halves, [box(0, 20)]) == [("merged", "a0,a1", "b0")]
    # a shed on the ground of what was torn down is no piece of it
    assert changes([box(0, 30, height=30)], [box(2, 4, 2, 4)]) == [
        ("appeared", "", "b0"),
        ("gone", "a0", ""),
    ]
    # nor are neighbours that touch one thing
    assert changes([box(0, 10), box(10, 10)], [box(0, 10), box(10, 10)]) == [
        ("kept", "a0", "b0"),
        ("kept", "a1", "b1"),
    ]


def test_classes():
    before = table([box(0, 10)], **{"class": ["house"]})
    after = table([box(0, 10)], "b", **{"class": ["tree"]})
    apart = compare(before, after, tolerance_m=0)
    assert apart.counts == dict.fromkeys(KINDS, 0) | {"gone": 1, "appeared": 1}
    assert compare(before, after, tolerance_m=0, by_class=False).counts["kept"] == 1


def test_things_are_followed_through_three_dates():
    first = table([box(0, 10), box(20, 10)], "a")
    second = table([box(0, 10), box(20, 4.8), box(25, 5)], "b")
    third = table([box(0, 16), box(40, 10)], "c")
    found = tracks([first, second, third], tolerance_m=0).table
    history = {
        thing: [(r.date, r.uid, r.change) for r in rows.itertuples()]
        for thing, rows in found.groupby("thing_id")
    }
    assert history == {
        "a0": [(0, "a0", "appeared"), (1, "b0", "kept"), (2, "c0", "grown")],
        # the larger piece inherits the name
        "a1": [(0, "a1", "appeared"), (1, "b2", "split"), (2, "", "gone")],
        "b1": [(1, "b1", "split"), (2, "", "gone")],
        "c1": [(2, "c1", "appeared")],
    }


def test_the_verb_writes_a_styled_layer_and_counts_per_region(dates, tmp_path, capsys):
    before, after, _ = dates
    before.to_file(tmp_path / "a.gpkg")
    after.to_file(tmp_path / "b.gpkg")
    x0, y0, x1, y1 = before.total_bounds
    middle = (x0 + x1) / 2
    halves = [shapely.box(x0 - 50, y0 - 50, middle, y1 + 50),
              shapely.box(middle, y0 - 50, x1 + 50, y1 + 50)]  # fmt: skip
    gpd.GeoDataFrame({"name": ["west", "east"]}, geometry=halves, crs=UTM).to_file(
        tmp_path / "regions.gpkg"
    )
    files = [str(tmp_path / name) for name in ("a.gpkg", "b.gpkg")]
    args = ["compare", *files, "--regions", str(tmp_path / "regions.gpkg")]
    assert main([*args, "-o", str(tmp_path / "c.gpkg"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = compare(before, after)
    assert {k: told[k] for k in KINDS} == expected.counts
    for kind in KINDS:
        assert sum(region[kind] for region in told["regions"]) == told[kind]
    layer = gpd.read_file(tmp_path / "c.gpkg", layer="changes")
    assert len(layer) == len(expected.changes)
    assert layer.crs == UTM
    styles = gpd.read_file(tmp_path / "c.gpkg", layer="layer_styles")
    assert "appeared" in styles.set_index("f_table_name").loc["changes", "styleQML"]
    assert main(args) == 0
    assert "m east and" in capsys.readouterr().out
    assert main(["compare", *files, "-o", str(tmp_path / "c.gpkg")]) == 2


def test_mistakes_are_said(dates):
    before, after, _ = dates
    with pytest.raises(RegionError, match="'after' have no CRS"):
        compare(before, after.set_crs(None, allow_override=True))
    with pytest.raises(ConfigError, match="tolerance_m is -1"):
        compare(before, after, tolerance_m=-1)
    with pytest.raises(ConfigError, match="growth is 0"):
        compare(before, after, growth=0)
    with pytest.raises(ConfigError, match="expected two or more"):
        tracks([before])
