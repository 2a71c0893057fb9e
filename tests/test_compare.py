"""Change between dates, on towns of which every change is known."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import shapely
import shapely.affinity
from two_dates import Verdict, judge, moved_back, redrawn, two_dates

from geoseg.cli.main import main
from geoseg.errors import ConfigError, RegionError
from geoseg.objects.compare import KINDS, compare, one_to_one
from geoseg.objects.tracks import tracks
from geoseg.scenes.dates import TownChange

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


def test_the_best_pairs_first_then_the_rest():
    # b0 suits both early ones; a0 suits it better, and a1 still gets b1
    before = [box(0, 10), box(6, 10)]
    after = [box(1, 10), box(9, 12)]
    assert changes(before, after) == [("kept", "a0", "b0"), ("kept", "a1", "b1")]
    value = np.array([0.9, 0.8, 0.8, 0.3])
    chosen = one_to_one(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), value)
    assert chosen.tolist() == [True, False, False, True]


def test_a_small_thing_on_a_large_ones_ground_is_no_piece():
    # the house stands; a water tank came to stand on its roof's outline
    assert changes([box(0, 12)], [box(0, 11), box(11, 0.9, height=1)]) == [
        ("appeared", "", "b1"),
        ("kept", "a0", "b0"),
    ]


def test_small_things_that_do_not_overlap_themselves():
    before, after = [box(0, 0.8, height=0.8)], [box(0.7, 0.8, height=0.8)]
    assert changes(before, after) == [("kept", "a0", "b0")]
    assert [c for c, *_ in changes(before, after, slack_m=0.5)] == ["appeared", "gone"]
    # of another size it is another thing
    assert [c for c, *_ in changes(before, [box(0.7, 1.6, height=1.6)])] == ["appeared", "gone"]


def test_no_shift_where_the_dates_have_too_little_in_common(dates):
    before, after, _ = dates
    strangers = after.set_geometry(
        shapely.transform(
            after.geometry.to_numpy(),
            lambda xy: xy + np.random.default_rng(2).uniform(-12, 12, xy.shape[1])[None] * 3,
        ),
        crs=UTM,
    )
    # far away there are no pairs at all
    far = strangers.set_geometry(strangers.translate(1e5, 0), crs=UTM)
    found = compare(before, far)
    assert (found.shift_m, found.matched) == ((0.0, 0.0), 0)
    assert "no common shift: no two objects" in found.notes[0]
    # two towns that never met: every house somewhere else
    rng = np.random.default_rng(3)
    other = town(seed=9, count=900)
    scattered = other.set_geometry(
        [shapely.affinity.translate(g, *rng.uniform(-12, 12, 2)) for g in other.geometry],
        crs=UTM,
    )
    found = compare(before, scattered)
    assert found.matched == 0
    assert "too little in common" in found.notes[0]
    # three houses are too few to vote
    found = compare(before[:3], before[:3])
    assert found.matched == 0
    assert found.counts["kept"] == 3


def test_what_was_not_imaged_is_no_change():
    before = table([box(0, 10), box(30, 10), box(60, 10), box(96, 10)])
    after = table([box(0, 10), box(45, 10), box(97, 8)], "b")
    seen_before = shapely.box(-20, -20, 100, 20)
    seen_after = gpd.GeoSeries([shapely.box(-20, -20, 62, 20), shapely.box(90, -20, 140, 20)],
                               crs=UTM)  # fmt: skip
    found = compare(
        before, after, tolerance_m=0, seen_before=seen_before, seen_after=seen_after
    ).changes
    told = {(r.before, r.after): (r.change, r.note) for r in found.itertuples()}
    assert told == {
        ("a0", "b0"): ("kept", ""),
        ("a1", ""): ("gone", ""),
        # the second date ends inside of it
        ("a2", ""): ("not comparable", "not imaged after"),
        ("", "b1"): ("appeared", ""),
        # there at both dates; its size says nothing, the first image cuts it
        ("a3", "b2"): ("kept", "cut by the edge of the imagery"),
    }
    # with nothing known it all counts, and that is said
    found = compare(before, after, tolerance_m=0)
    assert found.counts["not comparable"] == 0
    assert any("not known what was imaged" in note for note in found.notes)


def test_the_ground_seen_moves_with_its_image():
    before = town(count=200)
    ground = shapely.box(*before.total_bounds).buffer(2.5, join_style="mitre")
    shift = (3.0, -2.0)
    after = before.set_geometry(before.translate(*shift), crs=UTM)
    moved = shapely.transform(ground, lambda xy: xy + np.array(shift))
    found = compare(before, after, seen_before=ground, seen_after=moved)
    assert found.shift_m == shift
    assert found.counts["kept"] == 200
    assert not found.changes["note"].any()


def test_objects_at_the_edge_of_their_image():
    before = table([box(0, 10), box(30, 10)], touches_edge=[True, False])
    after = table([box(50, 10)], "b", touches_edge=[True])
    found = compare(before, after, tolerance_m=0)
    assert found.counts == dict.fromkeys(KINDS, 0) | {"gone": 1, "not comparable": 2}


def test_weak_objects_confirm_but_do_not_stand_alone():
    before = table([box(0, 10), box(30, 10), box(60, 10)], score=[0.9, 0.4, 0.9])
    after = table([box(0, 10), box(30, 10), box(90, 10)], "b", score=[0.4, 0.4, 0.4])
    found = compare(before, after, tolerance_m=0, min_score=0.6)
    assert found.counts == dict.fromkeys(KINDS, 0) | {"kept": 1, "gone": 1}
    assert found.changes["note"].tolist() == ["confirmed by a weak object", ""]
    assert found.changes["score_before"].tolist() == [0.9, 0.9]
    # outlines of weak objects are no measure, and they are no pieces
    after = table([box(0, 14), box(60, 5), box(65, 5)], "b", score=[0.4, 0.4, 0.4])
    found = compare(before, after, tolerance_m=0, min_score=0.6)
    assert found.counts == dict.fromkeys(KINDS, 0) | {"kept": 2}


def test_growth_must_stand_out_of_how_outlines_differ(dates):
    before, after, _ = dates
    found = compare(before, after)
    assert 0.03 < found.outline_m < 0.15
    # outlines that jump about by half a metre make no growth
    rng = np.random.default_rng(4)
    shaky = [
        before.set_geometry(before.buffer(rng.normal(0, 0.4, len(before)), join_style="mitre"))
        for _ in range(2)
    ]
    found = compare(*shaky)
    assert found.outline_m == pytest.approx(0.4 * np.sqrt(2), rel=0.15)
    assert found.counts["grown"] + found.counts["shrunk"] < 0.02 * len(before)
    naive = compare(*shaky, outline_m=0.0)
    assert naive.counts["grown"] + naive.counts["shrunk"] > 0.2 * len(before)
    # larger all over is said, not corrected: it might be true
    larger = compare(before, before.set_geometry(before.buffer(0.5, join_style="mitre")))
    assert larger.area_ratio > 1.1
    assert "larger in the median" in larger.notes[-1]


def test_names_that_both_dates_use_for_different_things():
    before, after = table([box(0, 10)], "x"), table([box(50, 10)], "x")
    found = compare(before, after, tolerance_m=0).changes
    assert found["thing_id"].tolist() == ["x0", "x0@2"]
    nameless = compare(before.drop(columns="uid"), after.drop(columns="uid"), tolerance_m=0).changes
    assert nameless["thing_id"].tolist() == ["before-1", "after-1"]
    twice = table([box(0, 10), box(20, 10)]).assign(uid="same")
    found = compare(twice, twice, tolerance_m=0).changes
    assert found["thing_id"].tolist() == ["same", "same~2"]


def test_a_thing_that_one_date_missed_keeps_its_name():
    ground = shapely.box(-50, -50, 200, 50)
    west = shapely.box(-50, -50, 35, 50)
    first = table([box(0, 10), box(20, 10), box(60, 10)], "a")
    # misses a1; has not seen a2
    second = table([box(0, 10)], "b")
    third = table([box(0, 10), box(20, 10), box(60, 14)], "c")
    found = tracks([first, second, third], seen=[ground, west, ground], tolerance_m=0, edge_m=0)
    rows = {
        thing: [(r.date, r.uid, r.change) for r in own.itertuples()]
        for thing, own in found.table.groupby("thing_id")
    }
    assert rows == {
        "a0": [(0, "a0", "appeared"), (1, "b0", "kept"), (2, "c0", "kept")],
        "a1": [(0, "a1", "appeared"), (1, "", "gone"), (2, "c1", "returned")],
        "a2": [(0, "a2", "appeared"), (1, "", "not comparable"), (2, "c2", "grown")],
    }
    things = found.things.set_index("thing_id")
    assert things["dates"].tolist() == [3, 2, 2]
    assert things.loc["a1", "history"] == "appeared, gone, returned"
    assert things.loc["a2"].geometry.area == pytest.approx(140)
    assert [s.counts["kept"] for s in found.steps] == [1, 1]


def test_what_merged_lives_on_in_the_largest():
    first = table([box(0, 9.5), box(10, 12)], "a")
    second = table([box(0, 22)], "b")
    found = tracks([first, second], tolerance_m=0).table
    last = found[found["date"] == 1]
    told = sorted(zip(last["thing_id"], last["uid"], last["change"], last["parent"], strict=True))
    assert told == [("a0", "", "merged", "a1"), ("a1", "b0", "merged", "")]


def test_every_date_is_laid_on_the_first():
    first = town(count=300)
    later = [
        first.assign(uid=[f"{k}-{u}" for u in first["uid"]]).set_geometry(
            first.translate(1.4 * k, -0.6 * k), crs=UTM
        )
        for k in (1, 2, 3)
    ]
    found = tracks([first, *later])
    assert set(found.table["thing_id"]) == set(first["uid"])
    assert (found.table["date"].value_counts() == 300).all()
    # each is against the first date, where all things are kept
    assert found.steps[-1].shift_m == pytest.approx((4.2, -1.8), abs=0.01)
    last = found.table[found.table["date"] == 3].set_index("thing_id").loc[first["uid"]]
    apart = shapely.distance(
        shapely.centroid(last.geometry.to_numpy()), shapely.centroid(first.geometry.to_numpy())
    )
    assert apart.max() < 0.01


def test_a_rendered_town_at_two_dates():
    """A tenth gone, 15 % new, 5 % grown by half, 1.5 m off: 98 % right, the shift within 0.2 m."""
    before, after, truth, seen = two_dates(3)
    change = TownChange()
    assert np.hypot(*change.shift_m) == pytest.approx(1.5)
    both = seen[0] & moved_back(seen[1], change)
    verdicts = []
    for draw in range(1, 4):
        rng = np.random.default_rng(draw)
        dates = redrawn(before, rng, "a"), redrawn(after, rng, "b")
        found = compare(*dates, seen_before=seen[0], seen_after=seen[1])
        assert np.hypot(*np.subtract(found.shift_m, change.shift_m)) < 0.2
        verdicts.append(judge(found, truth, both))
        # what one date does not show is not comparable, not gone
        assert found.counts["not comparable"] > 20
    total = Verdict(sum(v.table for v in verdicts))
    assert total.houses > 3 * 900
    assert total.all_right >= 0.98, total.table
    assert total.found("gone", "appeared", "grown") >= 0.98, total.table
    assert total.true("gone", "appeared", "grown", "shrunk", "split", "merged") >= 0.98, total.table
    # of true outlines nothing is wrong
    found = compare(before, after, seen_before=seen[0], seen_after=seen[1])
    assert found.shift_m == change.shift_m
    assert judge(found, truth, both).all_right == 1


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
