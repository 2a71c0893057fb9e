"""The page of a run in a real browser, from disk: no error, no request, and all can be used."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from pages import HOSTILE, NORTH, UTM, WEST, make_facts, make_objects, make_regions

from geoseg.outputs.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NAMES = ["north", "centre", "south"]


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Return a function that opens a file; whatever it logs or asks for fails the test."""
    contexts, told = [], []

    def go(path: Path, **options):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append("dialog"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith("data:") or request.url == path.as_uri()
                else told.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_function("document.getElementById('map').dataset.view")
        return page

    yield go
    for context in contexts:
        context.close()
    assert told == []


@pytest.fixture
def page_file(tmp_path, make_raster) -> Path:
    make = make_facts(tmp_path, make_raster)
    run = make(
        400, regions=make_regions(NAMES), objects=make_objects(400, classes=("house", "shed"))
    )
    return write_report(tmp_path / "report.html", run)


def view(page) -> tuple[float, float, float]:
    # drawing waits for the next frame
    page.wait_for_timeout(80)
    x, y, scale = page.locator("#map").get_attribute("data-view").split(" ")
    return float(x), float(y), float(scale)


def on_screen(page, x: float, y: float) -> tuple[float, float]:
    """Return where a place of the map, in metres, is on the screen."""
    page.locator("#map").scroll_into_view_if_needed()
    cx, cy, scale = view(page)
    box = page.locator("#map").bounding_box()
    return box["x"] + box["width"] / 2 + (x - cx) * scale, box["y"] + box["height"] / 2 + (
        y - cy
    ) * scale


def first_column(page, table: str) -> list[str]:
    return page.locator(f"#{table} tbody tr:visible th").all_inner_texts()


def test_it_opens_from_disk_quickly_and_draws_the_imagery(visit, page_file):
    begun = time.perf_counter()
    page = visit(page_file)
    seconds = (
        page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
    )
    assert seconds < 2
    assert time.perf_counter() - begun < 20
    assert page.locator("#map").get_attribute("data-drawn") == "400"
    page.wait_for_timeout(200)
    colours = page.evaluate(
        """() => {const c = document.getElementById("map-canvas");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        const seen = new Set(); for (let i = 0; i < d.length; i += 4) seen.add(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]);
        return seen.size}"""
    )
    # random pixels under lines and labels: no empty canvas
    assert colours > 5000


def test_a_click_on_a_region_shows_its_counts(visit, page_file):
    page = visit(page_file)
    counted = page.evaluate("JSON.parse(document.getElementById('map-data').textContent).regions")
    page.locator("input[data-layer=objects]").uncheck()
    for region in counted:
        left, top = np.array(region["rings"][0]).reshape(-1, 2).mean(axis=0)
        page.mouse.click(*on_screen(page, left, top))
        picked = page.locator("#map-picked")
        assert picked.locator("h3").inner_text() == region["name"]
        assert picked.locator(".big").inner_text() == f"{region['count']:.0f} objects"
        assert "density" in picked.inner_text()
        assert page.locator("#regions-table tr.selected th").inner_text() == region["name"]


def test_a_click_on_an_object_shows_class_score_and_area(visit, page_file, tmp_path):
    page = visit(page_file)
    objects = gpd.read_parquet(tmp_path / "objects.parquet")
    # one that no other one meets
    alone = [i for i in range(len(objects)) if objects.intersects(objects.geometry[i]).sum() == 1]
    row = objects.iloc[max(alone, key=lambda i: objects.area_m2[i])]
    x, y = row.geometry.centroid.x - WEST, NORTH - row.geometry.centroid.y
    page.mouse.click(*on_screen(page, x, y))
    text = page.locator("#map-picked").inner_text()
    assert row["class"] in text
    assert f"{row['score']:.3f}" in text
    assert f"{row['area_m2']:.1f} m²" in text
    assert str(row["object_id"]) in text


def test_the_map_pans_and_zooms_with_the_mouse(visit, page_file):
    page = visit(page_file)
    page.locator("#map-in").click()
    page.locator("#map-in").click()
    x, y, scale = view(page)
    a, b = on_screen(page, x, y)
    page.mouse.move(a, b)
    page.mouse.down()
    page.mouse.move(a + 60, b + 40, steps=4)
    page.mouse.up()
    new_x, new_y, _ = view(page)
    assert (new_x, new_y) == pytest.approx((x - 60 / scale, y - 40 / scale), abs=5 / scale)
    # a drag selects nothing
    assert "Click a region" in page.locator("#map-picked").inner_text()
    box = page.locator("#map").bounding_box()
    corner = box["x"] + 100, box["y"] + 100
    cx, cy, scale = view(page)
    under = cx + (100 - box["width"] / 2) / scale, cy + (100 - box["height"] / 2) / scale
    page.mouse.move(*corner)
    page.mouse.wheel(0, -200)
    cx, cy, bigger = view(page)
    assert bigger > scale * 1.2
    # what was under the mouse still is
    still = cx + (100 - box["width"] / 2) / bigger, cy + (100 - box["height"] / 2) / bigger
    assert still == pytest.approx(under, abs=0.5)
    page.locator("#map-home").click()
    assert view(page)[:2] == pytest.approx((100, 100), abs=1)


def test_the_map_pans_and_zooms_with_fingers(visit, page_file):
    page = visit(page_file, has_touch=True, viewport={"width": 390, "height": 800})
    x, y, scale = view(page)
    a, b = on_screen(page, x, y)
    client = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        client.send(
            "Input.dispatchTouchEvent",
            {
                "type": kind,
                "touchPoints": [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)],
            },
        )

    touch("touchStart", (a - 20, b), (a + 20, b))
    for spread in (30, 45, 60, 80):
        touch("touchMove", (a - spread, b), (a + spread, b))
    touch("touchEnd")
    assert view(page)[2] > scale * 2
    x, y, scale = view(page)
    touch("touchStart", (a, b))
    for step in (10, 20, 30):
        touch("touchMove", (a - step, b - step))
    touch("touchEnd")
    new_x, new_y, _ = view(page)
    assert new_x > x
    assert new_y > y


def test_the_map_is_used_with_the_keyboard_alone(visit, page_file):
    page = visit(page_file)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "map":
            break
    assert page.evaluate("document.activeElement.id") == "map"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert page.locator(".cross").is_visible()
    before = view(page)
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    after = view(page)
    assert after[2] > before[2]
    assert after[0] > before[0]
    assert after[1] > before[1]
    page.keyboard.press("0")
    assert view(page) == pytest.approx(before, rel=1e-6)
    seen = []
    for _ in NAMES:
        page.keyboard.press("n")
        seen.append(page.locator("#map-picked h3").last.inner_text())
    assert seen == NAMES
    page.keyboard.press("Enter")
    assert page.locator("#map-picked h3").last.inner_text() == "south"


def test_the_table_sorts_and_filters(visit, tmp_path, make_raster):
    names = [f"region {i}" for i in (10, 9, 2, 1, 30, 4, 5, 6)]
    run = make_facts(tmp_path, make_raster)(regions=make_regions(names))
    page = visit(write_report(tmp_path / "report.html", run))
    counts = run.regions["count"].tolist()
    heading = page.locator("#regions-table thead th")
    button = heading.nth(1).locator("button")
    button.click()
    assert heading.nth(1).get_attribute("aria-sort") == "descending"
    shown = [int(t) for t in page.locator("#regions-table tbody td:nth-child(2)").all_inner_texts()]
    assert shown == sorted(counts, reverse=True)
    button.click()
    assert heading.nth(1).get_attribute("aria-sort") == "ascending"
    shown = [int(t) for t in page.locator("#regions-table tbody td:nth-child(2)").all_inner_texts()]
    assert shown == sorted(counts)
    # names by their numbers; by keyboard
    heading.first.locator("button").focus()
    page.keyboard.press("Enter")
    assert first_column(page, "regions-table") == sorted(names, key=lambda n: int(n.split()[1]))
    field = page.get_by_label("Filter").first
    field.fill("ION 1")
    assert first_column(page, "regions-table") == ["region 1", "region 10"]
    assert page.get_by_text("2 of 8 rows").is_visible()
    field.fill("")
    assert len(first_column(page, "regions-table")) == 8
    # the totals stay at the foot
    assert page.locator("#regions-table tfoot th").all_inner_texts() == [
        "outside all regions",
        "all objects",
    ]


def test_a_region_of_the_table_leads_to_the_map(visit, page_file):
    page = visit(page_file)
    page.locator("#regions-table button.place").nth(2).click()
    page.wait_for_timeout(700)
    assert page.locator("#map-picked h3").inner_text() == "south"
    _, y, _ = view(page)
    assert y == pytest.approx(200 * 5 / 6, abs=2)
    box = page.locator("#map").bounding_box()
    assert box["y"] > -box["height"] / 2
    assert box["y"] < 900 - box["height"] / 2


def test_an_example_leads_to_the_map(visit, page_file):
    page = visit(page_file)
    page.locator("button[data-object='1']").first.click()
    page.wait_for_timeout(700)
    assert "score\n0.500" in page.locator("#map-picked").inner_text()


def luminance(page, selector: str, what: str) -> float:
    colour = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{what}")
    values = [float(v) / 255 for v in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(visit, page_file, scheme):
    page = visit(page_file, color_scheme=scheme)
    ground = {s: luminance(page, s, "backgroundColor") for s in ("body", "section", ".picked")}
    assert (ground["section"] > 0.5) == (scheme == "light")
    for text, on in (
        ("h1", "body"),
        (".lead", "body"),
        ("section p", "section"),
        ("caption", "section"),
        ("section .remark", "section"),
        (".hint", ".picked"),
        ("summary", "section"),
    ):
        low, high = sorted([luminance(page, text, "color"), ground[on]])
        # WCAG 2.2, 1.4.3
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, on)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(visit, page_file, width):
    page = visit(page_file, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints_without_what_one_cannot_click(visit, page_file):
    page = visit(page_file)
    page.emulate_media(media="print")
    for selector in ("nav", ".zoom", ".layers", ".tools", "#map-keys"):
        assert not page.locator(selector).first.is_visible(), selector
    for selector in ("h1", "#map-canvas", "#regions-table", ".crops svg", ".legend"):
        assert page.locator(selector).first.is_visible(), selector
    page.emulate_media(media="screen")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 12


def test_names_that_are_markup_run_nothing(visit, tmp_path, make_raster):
    make = make_facts(tmp_path, make_raster)
    run = make(
        40, objects=make_objects(40, classes=(HOSTILE,)), regions=make_regions((HOSTILE, "b"))
    )
    page = visit(write_report(tmp_path / "report.html", run))
    page.mouse.click(*on_screen(page, 100, 50))
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#map-picked h3").last.inner_text() == HOSTILE
    assert page.locator("img").count() == 0


def test_layers_go_and_come(visit, page_file):
    page = visit(page_file)
    pixels = "document.getElementById('map-canvas').toDataURL().length"
    page.wait_for_timeout(200)
    whole = page.evaluate(pixels)
    for layer in ("images", "regions", "objects"):
        page.locator(f"input[data-layer={layer}]").uncheck()
        page.wait_for_timeout(100)
        assert page.evaluate(pixels) != whole
        page.locator(f"input[data-layer={layer}]").check()
        page.wait_for_timeout(100)
        assert page.evaluate(pixels) == whole
    page.locator("#map-colour").select_option("count")
    assert page.locator("#map-ramp-title").inner_text() == "objects in the region"
    page.locator("#map-colour").select_option("none")
    assert not page.locator("#map-ramp").is_visible()


def test_without_objects_regions_and_imagery_it_still_opens(visit, tmp_path, make_raster):
    make = make_facts(tmp_path, make_raster)
    run = make(counted=False, objects=make_objects(1)[:0])
    (tmp_path / "image.tif").unlink()
    page = visit(write_report(tmp_path / "report.html", run))
    assert page.locator("h1").inner_text() == "0 objects"
    page.mouse.click(*on_screen(page, 100, 50))
    assert page.locator("#map-picked").inner_text() == "Nothing here."


def test_many_objects_are_drawn_at_a_pace_that_one_can_pan_at(visit, tmp_path, make_raster):
    n = 40_000
    objects = make_objects(1).iloc[np.zeros(n, int)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    x, y = WEST + rng.uniform(0, 199, n), NORTH - rng.uniform(0, 199, n)
    objects = objects.assign(object_id=np.arange(1, n + 1)).set_geometry(
        shapely.box(x, y - 1, x + 1, y), crs=UTM
    )
    image = make_raster(height=400, width=400, transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH))
    run = make_facts(tmp_path, make_raster)(objects=objects, images=[image])
    page = visit(write_report(tmp_path / "report.html", run))
    assert page.locator("#map").get_attribute("data-drawn") == str(n)
    page.wait_for_timeout(300)
    # a density: one cannot see as many outlines
    page.locator("#map-in").click()
    view(page)
    assert float(page.locator("#map").get_attribute("data-ms")) < 400
    for _ in range(4):
        page.locator("#map-in").click()
    view(page)
    drawn = int(page.locator("#map").get_attribute("data-drawn"))
    assert 0 < drawn < n / 4
