"""The morning page: what it says, that nothing in data becomes markup, that it needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from click.testing import CliRunner
from pages import HOSTILE, NORTH, UTM, WEST, Page, make_objects, make_regions, read
from pages import make_facts as facts_maker

from geoseg.cli.main import cli
from geoseg.config import DetectSettings
from geoseg.errors import ConfigError, OutputError
from geoseg.imagery.source import describe_raster
from geoseg.jobs import report as jobs_report
from geoseg.jobs.pipeline import run_detect
from geoseg.jobs.report import report_run
from geoseg.outputs.report import (
    Column,
    Frame,
    OutlineEncoder,
    Section,
    encode,
    facts,
    headline,
    paragraph,
    pictures,
    table,
    write_page,
    write_report,
)
from geoseg.outputs.report.content import column_of
from geoseg.outputs.report.page import json_text
from geoseg.outputs.report.statistics import Statistics
from geoseg.outputs.tables import empty_objects


@pytest.fixture
def make_facts(tmp_path, make_raster):
    return facts_maker(tmp_path, make_raster)


# --- the frame of every page -----------------------------------------------------------------


def test_nothing_in_a_page_comes_from_elsewhere_and_only_its_own_script_runs(make_facts, tmp_path):
    text = write_report(tmp_path / "r.html", make_facts()).read_text()
    page = Page(text)
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, name in (("script", "script-src"), ("style", "style-src")):
        own = page.raw[kind][-1]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    for _, attrs in page.elements:
        for key in ("src", "href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:")), attrs
        assert "style" not in attrs, "the policy would not apply it"
        assert not [key for key in attrs if key.startswith("on")]
    types = [a.get("type") for a in page.named("script")]
    assert types == ["application/json", None]
    assert "http" not in re.sub(r"http-equiv|/www.w3.org/", "", "".join(page.raw["style"]))


def test_a_page_has_landmarks_headings_and_names(make_facts, tmp_path):
    page = read(write_report(tmp_path / "r.html", make_facts()))
    tags = [tag for tag, _ in page.elements]
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert tags.count(tag) == 1, tag
    html = page.named("html")[0]
    assert html["lang"] == "en"
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for link in page.named("a"):
        assert link["href"].removeprefix("#") in ids
    for section in page.named("section"):
        assert section["aria-labelledby"] in ids
    for tag, attrs in page.elements:
        if tag == "svg":
            assert attrs.get("aria-hidden") or attrs.get("aria-label"), attrs
    for cell in page.named("th"):
        assert cell["scope"] in ("col", "row")
    assert len(page.named("caption")) == len(page.named("table"))


def test_what_comes_from_data_is_never_markup(make_facts, tmp_path, make_raster):
    objects = make_objects(30, classes=(HOSTILE, "b"))
    regions = make_regions((HOSTILE, "b"))
    regions[HOSTILE] = HOSTILE
    run = make_facts(
        objects=objects,
        regions=regions,
        model={
            "name": HOSTILE,
            "licence": HOSTILE,
            "credits": [HOSTILE],
            "description": HOSTILE,
            "quality": {HOSTILE: HOSTILE},
        },
        notes=[HOSTILE],
        settings={"images": [HOSTILE], "output": HOSTILE, HOSTILE: HOSTILE},
        packages={HOSTILE: HOSTILE},
        supertiles={"done": 1, HOSTILE: 2},
        failed_tiles=[{"image": HOSTILE, "tile": [0, 0], "reason": HOSTILE}],
        seams={"verdict": HOSTILE, "enough": True, "overlap_px": 3, "objects": 2},
        geoseg=HOSTILE,
        key=HOSTILE,
    )
    run = replace(run, name=HOSTILE, when=HOSTILE, picture_notes=[HOSTILE])
    run.manifest["images"].append(dict(run.manifest["images"][0], name=HOSTILE))
    text = write_report(tmp_path / "r.html", run).read_text()
    page = Page(text)
    assert len(page.named("script")) == 2
    assert text.count("<script") == 2
    assert text.count("</script") == 2
    assert not page.named("img")
    assert not [a for _, a in page.elements if "onerror" in a]
    # it is there all the same, as text
    assert page.data["regions"][0]["name"] == HOSTILE
    assert sum(HOSTILE in t for t in page.texts) > 10


def test_json_in_a_script_cannot_end_it():
    value = {"</script>": ["<!--", "&amp;", "\u2028", float("inf"), None, 0.1]}
    text = json_text(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": ["<!--", "&amp;", "\u2028", None, None, 0.1]}


def test_other_pages_are_made_of_the_same_blocks(tmp_path):
    rows = [["a", 3, 0.5], ["b", None, float("nan")]]
    columns = [
        Column("kind"),
        Column("objects", numeric=True),
        Column("share", numeric=True, percent=True),
    ]
    body = table("Changes", columns, rows, key="changes", sortable=True, totals=[["all", 3, None]])
    page = read(
        write_page(
            tmp_path / "compare.html",
            title="2 dates",
            header=headline("3 changes", "before <after>"),
            sections=[Section("changes-section", "Changes", body), Section("none", "Nothing", paragraph("")), Section("facts", "Facts", facts([("a<", "b>")]))],
        )
    )  # fmt: skip
    assert {"3 changes", "before <after>", "a<", "b>", "50.0 %", "\u2013"} <= set(page.texts)
    assert [a.get("data-v") for a in page.named("td")][:2] == ["3", "0.5"]
    with pytest.raises(OutputError, match="exists"):
        write_page(tmp_path / "compare.html", title="", header=headline("", ""), sections=[])
    with pytest.raises(OutputError, match="html"):
        write_page(tmp_path / "compare.txt", title="", header=headline("", ""), sections=[])


# --- what the page of a run says -------------------------------------------------------------


def test_the_page_tells_the_counts_and_they_add_up(make_facts, tmp_path):
    regions = make_regions(("north", "south"))
    # a third of the ground is in no region
    regions.loc[1, "geometry"] = shapely.box(WEST, NORTH - 150, WEST + 200, NORTH - 100)
    run = make_facts(regions=regions)
    page = read(write_report(tmp_path / "r.html", run))
    counts = run.regions["count"].tolist()
    outside = run.regions.attrs["outside"]
    assert outside > 0
    assert "120 objects in 2 regions" in page.texts
    sums = f"{sum(counts)} in regions + {outside} outside = 120 objects."
    assert any(sums in text for text in page.texts)
    at = page.texts.index("outside all regions")
    assert page.texts[at + 1] == str(outside)
    assert page.texts[page.texts.index("all objects") + 1] == "120"
    assert [r["count"] for r in page.data["regions"]] == counts
    for said in ("roofs", "CC BY 4.0", "Ann, Bob", "1.2.3", "torch"):
        assert any(said in text for text in page.texts), said


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("count", [1, 2], ("objects", "", False)),
        ("count_roof", [1, 2], ("roof", "objects", False)),
        ("density_km2", [1.5], ("density", "per km²", False)),
        ("region_area_km2", [1.5], ("area of the region", "km²", False)),
        ("imaged_share", [0.5], ("imaged", "", True)),
        ("covered_share", [0.5], ("covered", "", True)),
        ("mean_area_m2", [0.5], ("mean area", "m²", False)),
        ("population", [7], ("population", "", False)),
    ],
)  # fmt: skip
def test_columns_are_called_by_words_and_units(name, values, expected):
    column = column_of(name, gpd.pd.Series(values))
    assert (column.title, column.unit, column.percent) == expected
    assert column.numeric


def test_failures_stand_at_the_top_and_on_the_map(make_facts, tmp_path):
    run = make_facts(
        supertiles={"done": 3, "failed": 1},
        failed_tiles=[{"image": "image.tif", "tile": [0, 1], "reason": "no memory"}],
        saturated_tiles=1,
        saturated_places=[{"image": "image.tif", "tile": [1, 1], "window": [96, 96, 128, 128]}],
    )
    block = shapely.box(WEST, NORTH - 100, WEST + 100, NORTH)
    coverage = gpd.GeoDataFrame(
        {"image": ["image.tif"], "row": [0], "col": [0], "status": ["failed"], "reason": ["corrupt block"], "quarters_capped": [2]},
        geometry=[block], crs=UTM,
    )  # fmt: skip
    page = read(write_report(tmp_path / "r.html", replace(run, coverage=coverage)))
    first = page.texts.index("Map")
    assert any("1 block of tiles and 1 single tile failed" in t for t in page.texts[:first])
    assert any("2 quarters of tiles" in t for t in page.texts[:first])
    assert {"no memory", "corrupt block"} <= set(page.texts)
    problems = page.data["problems"]
    assert [p["kind"] for p in problems] == ["failed", "failed", "saturated"]
    assert problems[0]["rings"][0][:2] in ([100, 100], [0, 0], [100, 0], [0, 100])
    # a window of 128 px of 0.5 m, 96 px in
    ring = np.array(problems[2]["rings"][0]).reshape(-1, 2)
    assert ring.min(axis=0) == pytest.approx([48, 48], abs=0.2)
    assert ring.max(axis=0) == pytest.approx([112, 112], abs=0.2)


def test_a_run_without_failures_says_so(make_facts, tmp_path):
    page = read(write_report(tmp_path / "r.html", make_facts()))
    assert any("No tile failed" in text for text in page.texts)


def test_the_seam_check_is_told_in_words(make_facts, tmp_path):
    bins = [{"from_px": 0, "to_px": 2, "trials": 100, "hits": 80, "share": 0.8},
            {"from_px": 128, "to_px": None, "trials": 300, "hits": 270, "share": 0.9}]  # fmt: skip
    seams = {
        "overlap_px": 64, "band_share": 0.4, "objects": 1000, "joined": 1, "incomplete": 2,
        "agreement": bins, "near": bins[0], "deep": bins[1], "trusted_margin_px": 8,
        "margin_is_lower_bound": False, "band_duplicate_rate": 0.02,
        "interior_duplicate_rate": 0.01, "rates_differ": True, "size_px": 90.5,
        "enough": False, "verdict": "raise --overlap from 64 to 112: because",
    }  # fmt: skip
    text = " ".join(read(write_report(tmp_path / "r.html", make_facts(seams=seams))).texts)
    for said in (
        "64 pixels wide (40.0 % of the ground",
        "A larger overlap would be better.",
        "Raise --overlap from 64 to 112",
        "(0 to 2 pixels) a tile shows 80.0 %",
        "trusted from 8 pixels off its edge",
        "2.0 % in the bands, 1.0 % elsewhere; more than chance",
        "1 object of 1,000 was seen whole by no tile",
        "shorter than 90 pixels",
    ):
        assert said in text, said


# --- objects in few bytes --------------------------------------------------------------------


def decode(coded: str) -> list[int]:
    out, value, shift = [], 0, 0
    for byte in base64.b64decode(coded):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            out.append(value)
            value = shift = 0
    return out


def outlines(data: dict) -> list[list[np.ndarray]]:
    steps = np.array([(v >> 1) ^ -(v & 1) for v in decode(data["xy"])]).reshape(-1, 2)
    points = np.cumsum(steps, axis=0) * data["step"]
    rings = np.split(points, np.cumsum(decode(data["sizes"]))[:-1])
    it = iter(rings)
    return [[next(it) for _ in range(n)] for n in decode(data["rings"])]


def test_outlines_come_back_as_they_were_to_a_fraction_of_a_pixel():
    hole = shapely.Polygon(
        shapely.box(0, -40, 40, 0).exterior, [shapely.box(10, -30, 20, -20).exterior]
    )
    two = shapely.MultiPolygon([shapely.box(60, -10, 70, 0), shapely.box(80, -10, 90, 0)])
    table_ = make_objects(3).set_geometry([hole, shapely.box(0, -99, 3, -90), two], crs=UTM)
    frame = Frame.around(pyproj.CRS(UTM), (0, -100, 100, 0))
    encoder = OutlineEncoder(frame, 3, 0.2)
    # however they come
    encoder.add(table_[:1])
    encoder.add(table_[1:])
    data = encoder.to_json()
    got = outlines(data)
    assert [len(rings) for rings in got] == [2, 1, 2]
    for rings, shape in zip(got, table_.geometry, strict=True):
        parts = [shapely.Polygon(r) for r in rings]
        area = (
            parts[0].area - parts[1].area
            if len(rings) == 2 and shape is hole
            else sum(p.area for p in parts)
        )
        # metres around the central meridian are 0.04 % longer than on the map
        assert area == pytest.approx(shape.area, rel=0.02)
        west, south, east, north = shape.bounds
        low, high = np.vstack(rings).min(axis=0), np.vstack(rings).max(axis=0)
        assert np.abs([low - [west, -north], high - [east, -south]]).max() < 0.3
    assert decode(data["score"]) == np.rint(table_["score"] * 1000).astype(int).tolist()
    assert decode(data["area"]) == np.rint(table_["area_m2"] * 10).astype(int).tolist()
    assert encoder.counts == {"house": 3}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**31, 2**53])
def test_numbers_of_any_size_come_back(value):
    coded = base64.b64encode(encode.leb128(np.array([value, 5, value]))).decode()
    assert decode(coded) == [value, 5, value]


def test_more_objects_than_a_page_can_hold_are_a_density(make_facts, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "MAX_OUTLINES", 100)
    page = read(write_report(tmp_path / "r.html", make_facts()))
    data = page.data["objects"]
    assert "xy" not in data
    assert sum(decode(data["grid"]["counts"])) == 120
    assert any("too many objects to draw each" in text for text in page.texts)


def test_statistics_do_not_depend_on_how_objects_come():
    objects = make_objects(500, classes=("a", "b", "c"))
    whole, parts = Statistics(), Statistics()
    whole.add(objects)
    for start in range(0, 500, 77):
        parts.add(objects[start : start + 77])
    for name, figures in whole.classes.items():
        other = parts.classes[name]
        assert (figures.n, figures.scores.tolist(), figures.areas.tolist()) == (
            other.n,
            other.scores.tolist(),
            other.areas.tolist(),
        )
        assert figures.scores.sum() == figures.n == figures.areas.sum()
    for kind, rows in whole.examples().items():
        assert rows["object_id"].tolist() == parts.examples()[kind]["object_id"].tolist()
    assert whole.examples()["unsure"]["object_id"].tolist() == [1, 2, 3, 4, 5, 6]
    assert whole.examples()["sure"]["object_id"].tolist() == [500, 499, 498, 497, 496, 495]
    median = np.median(objects[objects["class"] == "a"]["area_m2"])
    assert whole.classes["a"].median_area_m2() == pytest.approx(median, rel=0.2)


# --- imagery ---------------------------------------------------------------------------------


def test_imagery_keeps_within_its_budget_and_is_never_enlarged(make_raster):
    frame = Frame.around(pyproj.CRS(UTM), (WEST, NORTH - 300, WEST + 300, NORTH))
    place = Affine(0.5, 0, WEST, 0, -0.5, NORTH)
    rng = np.random.default_rng(0)
    # noise packs worse than any imagery
    noise = rng.integers(0, 255, (3, 700, 1300)).astype(np.uint8)
    path = make_raster("noise.tif", noise, transform=place)
    small, notes = pictures.make_pyramids([path], frame, 300_000)
    assert notes == []
    assert small[0].n_bytes <= 1.2 * 300_000
    assert small[0].width / small[0].levels[0].scale < 1300
    large, _ = pictures.make_pyramids([path], frame, 100_000_000)
    assert (large[0].width, large[0].height) == (1300, 700)
    assert [(v.scale, v.rows, v.columns) for v in large[0].levels] == [
        (1, 2, 3),
        (2, 1, 2),
        (4, 1, 1),
    ]
    assert large[0].place == pytest.approx(tuple(frame.transform @ place)[:6])


def test_what_is_not_imaged_is_cut_away(make_raster):
    valid = np.ones((600, 600), bool)
    valid[:, :300] = False
    path = make_raster("half.tif", height=600, width=600, mask=valid)
    frame = Frame.around(pyproj.CRS(UTM), (WEST, NORTH - 60, WEST + 60, NORTH))
    pyramid = pictures.make_pyramids([path], frame)[0][0]
    rings = [np.array(r).reshape(-1, 2) for r in pyramid.clip]
    assert len(rings) == 1
    assert rings[0].min(axis=0) == pytest.approx([300, 0], abs=2)
    whole = make_raster("whole.tif", height=60, width=60)
    assert pictures.make_pyramids([whole], frame)[0][0].clip is None


def test_images_in_another_crs_lie_where_they_belong(make_raster):
    path = make_raster(height=300, width=300)
    target = pyproj.CRS(3857)
    corners = gpd.GeoSeries([shapely.box(WEST, NORTH - 30, WEST + 30, NORTH)], crs=UTM).to_crs(
        target
    )
    frame = Frame.around(target, tuple(corners.total_bounds))
    pyramid = pictures.make_pyramids([path], frame)[0][0]
    a, b, c, d, e, f = pyramid.place
    assert (b, d) == (0, 0)
    assert [c, f] == pytest.approx([0, 0], abs=0.3)
    assert a * pyramid.width == pytest.approx(frame.width, rel=0.03)
    assert e * pyramid.height == pytest.approx(frame.height, rel=0.03)
    # ground metres, not the stretched ones of the projection
    assert frame.width == pytest.approx(30, rel=0.03)


def test_only_the_very_image_of_the_run_is_shown(make_facts, tmp_path, make_raster):
    run = make_facts()
    image = tmp_path / "image.tif"
    assert pictures.find_pictures([("image.tif", describe_raster(image).fingerprint)], [tmp_path])[
        0
    ] == {0: image}
    make_raster(
        height=400,
        width=400,
        pixels=np.zeros((3, 400, 400), np.uint8),
        transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH),
    )
    page = read(write_report(tmp_path / "r.html", run))
    assert any("image.tif has changed since the run" in t for t in page.texts)
    assert page.data["images"] == []
    image.unlink()
    page = read(write_report(tmp_path / "r.html", run, overwrite=True))
    assert any("image.tif is not where it was looked for" in t for t in page.texts)
    assert page.data["images"] == []
    assert page.data["objects"]["n"] == 120
    assert "no imagery" in page.texts


# --- odd runs --------------------------------------------------------------------------------


def test_a_run_that_found_nothing(make_facts, tmp_path):
    page = read(write_report(tmp_path / "r.html", make_facts(objects=empty_objects(UTM))))
    assert "0 objects in 2 regions" in page.texts
    assert page.data["objects"]["n"] == 0
    assert any("nothing to draw" in t for t in page.texts)


def test_a_run_without_regions(make_facts, tmp_path):
    page = read(write_report(tmp_path / "r.html", make_facts(counted=False)))
    assert "120 objects" in page.texts
    assert "Regions" not in page.texts
    assert page.data["regions"] == []


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (1, "float32"), (4, "uint16")])
def test_imagery_of_other_kinds(make_facts, tmp_path, make_raster, bands, dtype):
    image = make_raster(
        height=400,
        width=400,
        bands=bands,
        dtype=dtype,
        transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH),
    )
    page = read(write_report(tmp_path / "r.html", make_facts(images=[image])))
    assert [i["size"] for i in page.data["images"]] == [[400, 400]]
    assert len(page.named("image")) > 6


def test_several_images_in_mixed_crs_and_objects_in_degrees(make_facts, tmp_path, make_raster):
    one = make_raster(height=400, width=400, transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH))
    # turned by a few degrees and in another CRS
    there = gpd.GeoSeries([shapely.Point(WEST + 250, NORTH)], crs=UTM).to_crs(3857)[0]
    turned = Affine.translation(there.x, there.y) @ Affine.rotation(10) @ Affine.scale(0.7, -0.7)
    two = make_raster("two.tif", height=200, width=200, crs="EPSG:3857", transform=turned)
    objects = make_objects(60).to_crs(4326)
    regions = make_regions(crs=3857)
    run = make_facts(images=[one, two], objects=objects, regions=regions)
    page = read(write_report(tmp_path / "r.html", run))
    assert [i["name"] for i in page.data["images"]] == ["image.tif", "two.tif"]
    assert [h["name"] for h in page.data["homes"]] == ["image.tif", "two.tif"]
    # metres, though the objects are in degrees
    left, top, right, bottom = page.data["homes"][0]["box"]
    assert [right - left, bottom - top] == pytest.approx([200, 200], rel=0.01)
    ring = np.array(page.data["regions"][0]["rings"][0]).reshape(-1, 2)
    assert np.ptp(ring, axis=0) == pytest.approx([200, 100], rel=0.01)


def test_regions_that_go_around_the_world_do_no_harm(make_facts, tmp_path):
    world = gpd.GeoDataFrame(
        {"name": ["world"]}, geometry=[shapely.box(-180, -85, 180, 85)], crs=4326
    )
    page = read(write_report(tmp_path / "r.html", make_facts(regions=world)))
    ring = np.array(page.data["regions"][0]["rings"][0]).reshape(-1, 2)
    assert np.isfinite(ring).all()
    assert ring.min() < 0 < 200 < ring.max()


# --- from the command line -------------------------------------------------------------------


@pytest.fixture
def job(make_raster, tmp_path) -> DetectSettings:
    pixels = np.zeros((1, 200, 200), np.uint8)
    pixels[0, 20:50, 20:60] = 200
    pixels[0, 100:130, 150:170] = 200
    image = make_raster("bright.tif", pixels)
    regions = gpd.GeoDataFrame(
        {"name": ["west", "east"]},
        geometry=[
            shapely.box(WEST, NORTH - 20, WEST + 10, NORTH),
            shapely.box(WEST + 10, NORTH - 20, WEST + 20, NORTH),
        ],
        crs=UTM,
    )
    regions.to_file(tmp_path / "regions.geojson")
    return DetectSettings(
        images=(str(image),), output=tmp_path / "out.gpkg", detector="stubs:Bright", workers=1,
        regions=tmp_path / "regions.geojson", tile_size=128, overlap=32,
    )  # fmt: skip


def test_detect_ends_with_a_page(job, tmp_path):
    result = run_detect(job)
    assert result.report == tmp_path / "out.geoseg-run" / "report.html"
    page = read(result.report)
    assert "2 objects in 2 regions" in page.texts
    assert page.data["images"][0]["name"] == "bright.tif"
    # and again from the directory alone, wherever it went
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    (tmp_path / "out.geoseg-run").rename(moved)
    again = CliRunner().invoke(
        cli, ["report", str(moved), "-o", str(tmp_path / "again.html"), "--images", str(tmp_path)]
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.html").read_text() == result_text(page, tmp_path)


def result_text(page: Page, tmp_path: Path) -> str:
    return (tmp_path / "elsewhere" / "run" / "report.html").read_text()


def test_a_run_that_is_done_already_keeps_its_page(job):
    first = run_detect(job)
    mark = first.report.stat().st_mtime_ns
    second = run_detect(job)
    assert second.already_done
    assert second.report == first.report
    assert first.report.stat().st_mtime_ns == mark
    first.report.unlink()
    assert run_detect(job).report.is_file()


def test_no_report(job, tmp_path):
    result = run_detect(replace(job, report=False))
    assert result.report is None
    assert not (tmp_path / "out.geoseg-run" / "report.html").exists()
    # with or without a page it is the same run
    assert run_detect(job).already_done


def test_a_page_that_cannot_be_made_costs_nothing_but_a_warning(job, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(jobs_report, "write_report", fail)
    with caplog.at_level(logging.WARNING):
        result = run_detect(job)
    assert (result.exit_code, result.report, result.n_objects) == (0, None, 2)
    assert job.output.is_file()
    assert "the report could not be made (no room)" in caplog.text


def test_the_page_is_named_in_the_final_lines(job, tmp_path):
    args = [
        "detect",
        job.images[0],
        "-o",
        str(job.output),
        "--detector",
        "stubs:Bright",
        "-j",
        "1",
        "--tile-size",
        "128",
        "--overlap",
        "32",
    ]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    assert (
        done.output.strip().splitlines()[-1]
        == f"report: {tmp_path / 'out.geoseg-run' / 'report.html'}"
    )
    shown = CliRunner().invoke(cli, [*args, "--json", "--no-report", "--overwrite"])
    assert json.loads(shown.stdout)["report"] is None


def test_what_is_no_finished_run_is_refused(job, tmp_path):
    with pytest.raises(ConfigError, match="is no directory"):
        report_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no run \(no run.json\)"):
        report_run(tmp_path)
    run_dir = run_detect(job).run_dir
    manifest = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(manifest | {"state": "stopped"}))
    with pytest.raises(ConfigError, match="has not finished"):
        report_run(run_dir)


def test_a_page_does_not_replace_another_file_unless_told(job, tmp_path):
    run_dir = run_detect(job).run_dir
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        report_run(run_dir, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    report_run(run_dir, tmp_path / "mine.html", overwrite=True)
    assert "2 objects" in (tmp_path / "mine.html").read_text()


def test_a_run_made_before_there_were_pages_gets_one_from_its_output(job):
    result = run_detect(job)
    for name in ("regions.parquet", "coverage.parquet", "report.html"):
        (result.run_dir / name).unlink()
    manifest = json.loads((result.run_dir / "run.json").read_text())
    del manifest["imaged"], manifest["settings"]["report"]
    (result.run_dir / "run.json").write_text(json.dumps(manifest))
    page = read(report_run(result.run_dir))
    assert "2 objects in 2 regions" in page.texts
    assert "west" in page.texts
    assert page.data["images"][0]["name"] == "bright.tif"


def test_no_path_of_this_machine_is_in_the_page(job, tmp_path):
    text = run_detect(job).report.read_text()
    assert str(tmp_path) not in text
    assert tmp_path.name not in text
