"""Dates as files: what each run has seen, the page of changes, several dates, the rendered town."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from pages import HOSTILE, Page
from painted import blob_scene
from rasterio.features import rasterize
from runs import NORTH_UP, TILES
from runs import UTM as PAINTED_UTM
from stubs import Stub
from test_report_browser import chromium, visit  # noqa: F401  # fixtures

from geoseg.cli.main import main
from geoseg.config import DetectSettings
from geoseg.errors import ConfigError
from geoseg.jobs.changes import compare_files, seen_by_run, valid_ground
from geoseg.jobs.pipeline import run_detect
from geoseg.scenes.dates import (
    DatedPainter,
    TownChange,
    houses_of,
    render_two_dates,
    scale_house,
    scenes_of,
)
from geoseg.scenes.noise import Rect

UTM = "EPSG:32645"


def table(boxes, prefix="a", **columns):
    names = [f"{prefix}{k}" for k in range(len(boxes))]
    shapes = [shapely.box(3e5 + x, 3e6, 3e5 + x + w, 3e6 + 10) for x, w in boxes]
    return gpd.GeoDataFrame({"uid": names} | columns, geometry=shapes, crs=UTM)


def save(path: Path, objects, coverage=None) -> Path:
    objects.to_file(path, layer="objects")
    if coverage is not None:
        coverage.to_file(path, layer="coverage")
    return path


def cover(*rows):
    """Return a coverage layer of (x0, x1, status, tiles_failed)."""
    shapes = [shapely.box(3e5 + x0, 3e6 - 50, 3e5 + x1, 3e6 + 50) for x0, x1, *_ in rows]
    columns = {"status": [r[2] for r in rows], "tiles_failed": [r[3] for r in rows]}
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=UTM)


# What was seen


def test_the_layer_coverage_tells_what_was_seen(tmp_path):
    whole = cover((-50, 500, "done", 0))
    before = save(tmp_path / "a.gpkg", table([(0, 10), (120, 10), (220, 10), (320, 10)]), whole)
    parts = cover(
        (-50, 100, "done", 0),
        (100, 200, "failed", 4),
        (200, 300, "done", 1),
        (300, 500, "empty", 0),
    )
    after = save(tmp_path / "b.gpkg", table([(0, 10)], "b"), parts)
    found = compare_files([before, after], tolerance_m=0)
    change = found.changes.set_index("before")["change"].to_dict()
    # a block with a failed tile counts as not seen: nobody knows which part of it
    assert change == {
        "a0": "kept",
        "a1": "not comparable",
        "a2": "not comparable",
        "a3": "gone",
    }
    assert not found.steps[0].notes
    # a file of one's own says more
    ground = tmp_path / "ground.gpkg"
    whole.to_file(ground)
    found = compare_files([before, after], tolerance_m=0, seen=[ground, ground])
    assert found.steps[0].counts["gone"] == 3
    with pytest.raises(ConfigError, match="1 files of what was imaged for 2 dates"):
        compare_files([before, after], seen=[ground])
    with pytest.raises(ConfigError, match="two or more"):
        compare_files([before])


def test_a_run_directory_tells_it_finer(make_raster, tmp_path):
    scene = blob_scene(5, size=520, count=110, large=1)
    valid = np.ones((520, 520), bool)
    valid[300:, 250:] = False
    image = make_raster(
        "painted.tif", scene.pixels, mask=valid, transform=NORTH_UP, crs=PAINTED_UTM
    )
    output = tmp_path / "o.gpkg"
    run_detect(DetectSettings(images=(str(image),), output=output, workers=1, **TILES), Stub())
    seen, how = seen_by_run(output)
    assert how == "o.geoseg-run"
    pixel = abs(NORTH_UP.a * NORTH_UP.e)
    assert seen.union_all().area == pytest.approx(valid.sum() * pixel, rel=0.02)
    traced = valid_ground(image).union_all()
    assert traced.area == pytest.approx(valid.sum() * pixel, rel=1e-6)
    # without the directory the layer tells of whole supertiles
    shutil.rmtree(tmp_path / "o.geoseg-run")
    coarse, how = seen_by_run(output)
    assert how == "its layer coverage"
    assert coarse.union_all().area > seen.union_all().area
    # an image takes from that what it does not show
    found = compare_files([output, output], images=[image, None])
    assert found.dates[0].seen.union_all().area == pytest.approx(traced.area, rel=1e-6)
    assert found.dates[0].how_seen == "its layer coverage, painted.tif"
    plain = tmp_path / "plain.geojson"
    table([(0, 5)]).to_crs(4326).to_file(plain)
    assert seen_by_run(plain) == (None, "")


# The verb


def test_three_dates(tmp_path, capsys):
    files = [
        save(tmp_path / "a.gpkg", table([(0, 10), (20, 10)], "a")),
        save(tmp_path / "b.gpkg", table([(0, 10), (40, 10)], "b")),
        save(tmp_path / "c.gpkg", table([(0, 14), (20, 10)], "c")),
    ]
    regions = tmp_path / "regions.geojson"
    shape = shapely.box(3e5 - 5, 3e6 - 5, 3e5 + 35, 3e6 + 15)
    gpd.GeoDataFrame({"name": ["west"]}, geometry=[shape], crs=UTM).to_crs(4326).to_file(regions)
    output = tmp_path / "out.gpkg"
    args = ["compare", *map(str, files), "--regions", str(regions), "--tolerance", "0"]
    page = tmp_path / "p.html"
    assert main([*args, "-o", str(output), "--report", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["things"] == 3
    assert [s["step"] for s in told["steps"]] == ["a to b", "b to c"]
    assert [(s["gone"], s["appeared"], s["grown"]) for s in told["steps"]] == [(1, 1, 0), (1, 0, 1)]
    assert told["steps"][0]["regions"][0]["gone"] == 1
    assert told["steps"][0]["outside"]["appeared"] == 1
    layers = {name for name, kind in pyogrio.list_layers(output) if kind is not None}
    assert {"changes", "regions", "tracks", "things"} <= layers
    things = gpd.read_file(output, layer="things").set_index("thing_id")
    assert things.loc["a1", "history"] == "appeared, gone, returned"
    assert gpd.read_file(output, layer="changes")["step"].tolist() == [1, 1, 1, 2, 2, 2]
    assert "in the last of 2 steps" in page.read_text()
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "a to b:" in out
    assert "3 things in 3 dates" in out
    assert "note: it is not known what was imaged" in out
    assert main(["compare", str(files[0])]) == 2


def test_other_formats_hold_the_changes(tmp_path, capsys):
    files = [save(tmp_path / "a.gpkg", table([(0, 10)])), save(tmp_path / "b.gpkg", table([], "b"))]
    for suffix in ("parquet", "geojson", "fgb"):
        output = tmp_path / f"c.{suffix}"
        assert main(["compare", *map(str, files), "-o", str(output)]) == 0
        read = gpd.read_parquet if suffix == "parquet" else gpd.read_file
        assert read(output)["change"].tolist() == ["gone"]
    capsys.readouterr()


def test_a_town_rendered_at_two_dates_from_files_to_the_page(tmp_path, capsys, visit):  # noqa: F811
    change = TownChange(gone=0.2, new=0.2, enlarged=0.1)
    town = render_two_dates(
        tmp_path, width_px=700, height_px=600, gsd_m=0.25, seed=6, density=1.5, change=change
    )
    files = []
    for date in (town.before, town.after):
        footprints = gpd.read_file(date.footprints).assign(**{"class": HOSTILE})
        files.append(save(date.image.parent / "objects.gpkg", footprints))
    regions = tmp_path / "regions.gpkg"
    x0, y0, x1, y1 = footprints.total_bounds
    halves = [shapely.box(x0, y0, (x0 + x1) / 2, y1), shapely.box((x0 + x1) / 2, y0, x1, y1)]
    gpd.GeoDataFrame({"name": [HOSTILE, "east"]}, geometry=halves, crs=UTM).to_file(regions)
    page = tmp_path / "changes.html"
    args = ["compare", *map(str, files), "--report", str(page), "--regions", str(regions)]
    args += ["--before-image", str(town.before.image), "--after-image", str(town.after.image)]
    assert main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shift_m"] == pytest.approx(change.shift_m, abs=0.01)
    truth = gpd.read_file(town.changes)["change"].value_counts()
    # what the edge cuts or one date does not show is no change
    for kind in ("gone", "appeared", "grown"):
        assert 0 < told[kind] <= truth[kind]
    assert told["not comparable"] > 0
    assert told["shrunk"] == told["split"] == told["merged"] == 0
    taken = Page(page.read_text())
    assert "window.hacked" not in "".join(taken.raw["script"][1:])
    data = taken.data
    assert {k["name"]: k["n"] for k in data["kinds"]}["gone"] == told["gone"]
    assert len(data["images"]) == 1
    opened = visit(page)
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("#pictures svg").count() > 4
    rows = opened.locator("#changes-table tbody tr")
    assert rows.count() == 2
    opened.locator("#pictures button").first.click()
    opened.wait_for_function("document.getElementById('map-picked').innerText.includes('area')")


# The rendered town


def test_both_images_show_what_their_footprints_say(tmp_path):
    town = render_two_dates(tmp_path, width_px=500, height_px=420, gsd_m=0.25, seed=5, density=1.5)
    scenes = scenes_of((500, 420), 0.25, 5, UTM, 1.5, hole=True, change=TownChange())
    for date, scene in zip((town.before, town.after), scenes, strict=True):
        with rasterio.open(date.image) as image:
            valid, transform = image.dataset_mask() > 0, image.transform
        footprints = gpd.read_file(date.footprints)
        drawn = rasterize(footprints.geometry, out_shape=valid.shape, transform=transform) > 0
        rect = Rect(*scene.origin_px, 500, 420)
        _, built = scene.painter.paint(rect)
        assert built.mean() > 0.05
        assert np.count_nonzero(drawn != (built & valid)) <= 1e-5 * built.size


def test_the_shares_are_as_wanted_and_dates_agree():
    change = TownChange(gone=0.1, new=0.3, enlarged=0.2, growth=2.0)
    first, second = scenes_of((2400, 2400), 0.2, 4, UTM, 1.6, hole=False, change=change)
    before, after = (houses_of(s).set_index("uid") for s in (first, second))
    n = len(before)
    assert n > 500
    shares = before["change"].value_counts() / n
    assert shares["gone"] == pytest.approx(0.1, abs=0.04)
    assert shares["grown"] == pytest.approx(0.2, abs=0.05)
    assert (after["change"] == "appeared").sum() / n == pytest.approx(0.3, abs=0.07)
    assert set(before["change"]) == {"kept", "gone", "grown"}
    assert set(after["change"]) == {"kept", "appeared", "grown"}
    both = before.index.intersection(after.index)
    ratio = after.loc[both].area / before.loc[both].area
    grown = before.loc[both, "change"] == "grown"
    assert ratio[grown].to_numpy() == pytest.approx(2.0)
    assert ratio[~grown].to_numpy() == pytest.approx(1.0)
    # the second image shows all of it shifted
    kept = both[~grown]
    moved = after.loc[kept].centroid.x - before.loc[kept].centroid.x
    assert moved.to_numpy() == pytest.approx(change.shift_m[0], abs=1e-6)


def test_another_flight_looks_different():
    rect = Rect(0, 0, 128, 128)
    same = TownChange(gone=0, new=0, enlarged=0)
    first, second = (
        DatedPainter(5, 0.2, 1.5, flight=f, change=same).paint(rect)[0] for f in (0, 1)
    )
    assert np.abs(first.astype(int) - second).mean() > 3


def test_a_scaled_house_keeps_its_middle_and_roof():
    scene, _ = scenes_of((800, 800), 0.2, 4, UTM, 1.6, hole=False, change=TownChange())
    town = scene.painter.town
    house = next(h for c in town.net.cells_in(scene.extent_m) for *_, h in town.standing(c))
    small = scale_house(house, 0.5)
    assert small.polygon.area == pytest.approx(house.polygon.area / 4)
    assert (small.frame.x, small.frame.y) == (house.frame.x, house.frame.y)
    assert small.eaves_m == house.eaves_m


def test_impossible_changes_are_refused():
    with pytest.raises(ConfigError, match="expected shares from 0"):
        TownChange(gone=0.8, enlarged=0.3)
    with pytest.raises(ConfigError, match="too small"):
        render_two_dates(Path("nowhere"), width_px=8)
