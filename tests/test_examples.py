"""The examples of docs/examples run, on a rendered town, and give what the town holds."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.features import geometry_mask

import geoseg
from geoseg.scenes.town import TownFiles, render_town

MARKED = re.compile(r"^<!-- run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> TownFiles:
    return render_town(tmp_path_factory.mktemp("town"), width_px=700, height_px=700, seed=9)


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    """In this process: starting others takes longer than such a small town."""
    monkeypatch.setattr(geoseg, "detect", partial(geoseg.detect, workers=1), raising=False)


@pytest.fixture
def example(request, monkeypatch) -> ModuleType:
    """The module that a test names with ``indirect``."""
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)
    spec.loader.exec_module(module)
    return module


def test_each_example_is_listed_and_run():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    run = Path(__file__).read_text(encoding="utf-8")
    for file in EXAMPLES.iterdir():
        if file.suffix in (".py", ".ipynb"):
            assert f"[{file.name}]({file.name})" in listed
            assert f'"{file.stem}' in run


@pytest.mark.parametrize("example", ["detect_and_count"], indirect=True)
def test_detect_and_count(example, town, tmp_path, capsys):
    counts = example.main(town.image, town.regions, tmp_path / "out")
    found = gpd.read_file(tmp_path / "out" / "buildings.gpkg", layer="objects")
    assert len(found) > 15
    assert counts["count"].sum() + counts.attrs["outside"] == pytest.approx(len(found))
    written = pd.read_csv(tmp_path / "out" / "counts.csv")
    assert written["count"].tolist() == pytest.approx(counts["count"].tolist())
    assert f"{len(found)} buildings" in capsys.readouterr().out
    # again: it goes on, nothing is done twice
    before = (tmp_path / "out" / "buildings.gpkg").stat().st_mtime_ns
    example.main(town.image, town.regions, tmp_path / "out")
    assert (tmp_path / "out" / "buildings.gpkg").stat().st_mtime_ns == before


@pytest.mark.parametrize("example", ["compare_two_dates"], indirect=True)
def test_compare_two_dates(example, town, tmp_path, capsys):
    after = tmp_path / "after.tif"
    gone = flown_again(town, after, east_m=1.5, north_m=-0.5, without=4)
    found = example.main(town.image, after, tmp_path / "out")
    assert found.shift_m == pytest.approx((1.5, -0.5), abs=0.2)
    counts = found.counts
    assert counts["kept"] > 15
    assert 1 <= counts["gone"] <= len(gone) + 2
    places = found.changes[found.changes["change"] == "gone"].representative_point()
    assert sum(places.within(gone.union_all().buffer(2))) >= counts["gone"] - 1
    assert len(gpd.read_file(tmp_path / "out" / "changes.gpkg")) == len(found.changes)
    assert "+1.5" in capsys.readouterr().out


def flown_again(town, path, *, east_m, north_m, without) -> gpd.GeoDataFrame:
    """Write the town's image a little off its place, the largest houses painted over."""
    with rasterio.open(town.image) as image:
        pixels, profile, transform = image.read(), image.profile, image.transform
    houses = gpd.read_file(town.footprints, layer=0)
    inside = houses[houses.within(gpd.read_file(town.aoi).union_all().buffer(-15))]
    gone = inside.loc[inside.area.sort_values().index[-without:]]
    covered = geometry_mask(gone.buffer(1.5), pixels.shape[1:], transform, invert=True)
    ground = np.median(pixels[:, ~covered], axis=1).astype(np.uint8)
    pixels[:, covered] = ground[:, None]
    profile.update(transform=Affine.translation(east_m, north_m) @ transform)
    for name in ("photometric", "compress", "tiled", "blockxsize", "blockysize", "interleave"):
        profile.pop(name, None)
    with rasterio.open(path, "w", **profile) as out:
        out.write(pixels)
    return gone


@pytest.mark.parametrize("example", ["own_detector"], indirect=True)
def test_own_detector(example, town, tmp_path):
    roofs = example.main(town.image, tmp_path / "roofs.gpkg")
    assert len(roofs) >= 3
    assert set(roofs["class"]) == {"red roof"}
    houses = gpd.read_file(town.footprints).union_all()
    hits = roofs.representative_point().within(houses)
    assert hits.mean() > 0.8


@pytest.mark.parametrize("example", ["stitch_only"], indirect=True)
def test_stitch_only(example, town, capsys):
    objects = example.main(town.footprints, town.image)
    truth = gpd.read_file(town.footprints)
    assert abs(len(objects) - len(truth)) <= 0.02 * len(truth)
    assert objects.area.sum() == pytest.approx(truth.to_crs(objects.crs).area.sum(), rel=0.02)
    assert (objects["n_parts"] > 1).any()
    assert "put together" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("example", ["fine_tune"], indirect=True)
def test_fine_tune(example, town, tmp_path, capsys):
    files = (town.image, town.footprints, town.aoi)
    quality = example.main(*files, tmp_path / "out", steps=2, chip_px=128)
    assert quality["before"] > 0.6
    # two gentle steps change little: this is about the way, not about how far it leads
    assert quality["after"] == pytest.approx(quality["before"], abs=0.1)
    model = capsys.readouterr().out.split("--model ")[-1].strip()
    assert Path(model).is_file()


# Blocks of the pages that are marked <!-- run -->

PAGES = {
    page.name: blocks
    for page in sorted(EXAMPLES.parent.glob("*.md"))
    if (blocks := MARKED.findall(page.read_text(encoding="utf-8")))
}


@pytest.fixture(scope="module")
def place(town, tmp_path_factory) -> Path:
    """A folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("place")
    copies = {"ortho.tif": town.image, "districts.gpkg": town.regions, "wards.gpkg": town.regions,
              "labels.gpkg": town.footprints, "labelled_area.gpkg": town.aoi}  # fmt: skip
    for name, source in copies.items():
        shutil.copy(source, folder / name)
    earlier = geoseg.detect(town.image, workers=1)
    for name in ("2019.gpkg", "low.gpkg"):
        earlier.to_file(folder / name, layer="objects")
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_marked_blocks_of_pages_run(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    space: dict = {}
    for block in PAGES[name]:
        exec(compile(block, name, "exec"), space)
    if name == "howto-python.md":
        assert len(space["changes"]) == len(space["buildings"]) > 15
        assert set(space["changes"]["change"]) == {"kept"}
        assert space["quality"].f1 > 0.6
        assert (place / "part.html").stat().st_size > 10_000
    else:
        assert "min_score" in capsys.readouterr().out


def test_the_pages_have_marked_blocks():
    assert {"howto-python.md", "howto-threshold.md"} <= set(PAGES)


# The notebook


def test_notebook_first_look(town, tmp_path, monkeypatch):
    pytest.importorskip("folium")
    notebook = json.loads((EXAMPLES / "first_look.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(names) == len(set(names))
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            # stored without outputs: they would go stale and bloat the history
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            shown.append(run_cell("".join(cell["source"]), space))
    assert len(space["buildings"]) > 15
    views = [view for view in shown if view]
    assert any("<th" in view and "finished" in view for view in views)
    assert any("leaflet" in view for view in views)
    assert space["result"].f1 > 0.6


def run_cell(source: str, space: dict) -> str:
    """Run a cell as a notebook does: the value of its last expression is shown, in HTML if it can."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), space)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)
    html = getattr(value, "_repr_html_", None)
    return html() if html else repr(value)
