"""A run opened again: tables as they were written, a look at it that is escaped and small."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from stubs import Bright

import geoseg
from geoseg.errors import ConfigError, OutputError
from geoseg.runs import MAX_DRAWN, SHOWN_ROWS, Run

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a finished run: six bright squares, two regions, all kinds of output."""
    import rasterio
    from affine import Affine

    folder = tmp_path_factory.mktemp("made")
    pixels = np.full((3, 200, 300), 20, np.uint8)
    for i in range(6):
        pixels[:, 40:70, 20 + 45 * i : 45 + 45 * i] = 200
    with rasterio.open(
        folder / "image.tif", "w", driver="GTiff", width=300, height=200, count=3, dtype="uint8",
        crs="EPSG:32633", transform=Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000),
    ) as image:  # fmt: skip
        image.write(pixels)
    halves = [shapely.box(500_000 + x, 5_499_980, 500_015 + x, 5_500_000) for x in (0, 15)]
    regions = gpd.GeoDataFrame({"name": [EVIL, "east"]}, geometry=halves, crs=32633)
    regions.to_file(folder / "regions.gpkg")
    for suffix in (".gpkg", ".fgb"):
        geoseg.detect(
            folder / "image.tif",
            folder / f"found{suffix}",
            detector=Bright(),
            regions=folder / "regions.gpkg",
            run_dir=folder / f"found{suffix}-run",
            tile_size=128,
            overlap=48,
            workers=1,
        )
    (folder / "found.gpkg-run").rename(folder / "found.geoseg-run")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "made"))


class Tags(HTMLParser):
    """Collects tags and text; an unclosed or unescaped tag shows."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def shown(run: Run) -> Tags:
    tags = Tags()
    tags.feed(run._repr_html_())
    tags.close()
    assert tags.open == []
    return tags


@pytest.mark.parametrize("name", ["found.gpkg", "found.geoseg-run"])
def test_output_and_run_directory_open_the_same(folder, name):
    run = geoseg.open_run(folder / name)
    assert (run.path, run.output) == (folder / "found.geoseg-run", folder / "found.gpkg")
    assert (run.state, run.n_objects, len(run.objects)) == ("finished", 6, 6)
    written = gpd.read_file(folder / "found.gpkg", layer="objects")
    assert run.objects.crs.to_epsg() == 32633
    assert run.objects["uid"].tolist() == written["uid"].tolist()
    assert shapely.equals_exact(run.objects.geometry, written.geometry, 1e-9).all()
    assert run.regions["count"].tolist() == [3, 3]
    assert run.coverage["status"].tolist() == ["done"]
    assert run.manifest["geoseg"] == geoseg.__version__
    assert repr(run).endswith("found.geoseg-run: finished, 6 objects>")


def test_what_is_left_when_the_run_directory_is_deleted(folder):
    shutil.rmtree(folder / "found.geoseg-run")
    run = geoseg.open_run(folder / "found.gpkg")
    assert (run.path, run.manifest, run.state) == (None, {}, "finished")
    assert (run.n_objects, run.regions["count"].sum(), len(run.coverage)) == (6, 6, 1)
    assert "6" in shown(run).texts


def test_an_output_without_layers(folder):
    run = geoseg.open_run(folder / "found.fgb-run")
    assert run.output == folder / "found.fgb"
    assert (len(run.objects), run.regions["count"].sum()) == (6, 6)
    with pytest.raises(OutputError, match=r"found.fgb has no layers; only a GeoPackage"):
        _ = run.coverage
    # a run directory of another output is not taken for this one's
    shutil.copytree(folder / "found.geoseg-run", folder / "other.geoseg-run")
    shutil.copy(folder / "found.fgb", folder / "other.fgb")
    alone = geoseg.open_run(folder / "other.fgb")
    assert alone.path is None
    assert len(alone.objects) == 6
    assert alone.regions is None


def test_an_output_that_lies_elsewhere(folder, tmp_path):
    away = tmp_path / "away.gpkg"
    (folder / "found.gpkg").rename(away)
    run = geoseg.open_run(folder / "found.geoseg-run")
    assert len(run.objects) == 6
    with pytest.raises(OutputError, match=r"found.gpkg is not beside .*output=FILE"):
        _ = run.regions
    assert "region" not in shown(run).texts
    assert len(geoseg.open_run(folder / "found.geoseg-run", output=away).regions) == 2
    with pytest.raises(OutputError, match="does not exist"):
        geoseg.open_run(folder / "found.geoseg-run", output=tmp_path / "no.gpkg")


def test_a_run_that_counted_in_none(folder):
    settings = {"output": "found.gpkg"}
    run = change_manifest(folder, settings=settings)
    # cells made on request are regions, too: the layer decides
    assert len(run.regions) == 2
    (folder / "found.gpkg").unlink()
    assert change_manifest(folder, settings=settings).regions is None
    with pytest.raises(OutputError, match=r"regions: found.gpkg is not beside"):
        _ = change_manifest(folder, settings=settings | {"grid": "square:500"}).regions


def test_no_run_and_a_spoilt_manifest(folder):
    with pytest.raises(OutputError, match=r"neither a run directory .* nor an output"):
        geoseg.open_run(folder)
    manifest = folder / "found.geoseg-run" / "run.json"
    for text in ("{", "[1]"):
        manifest.write_text(text)
        with pytest.raises(OutputError, match="run the same command again"):
            geoseg.open_run(folder / "found.gpkg")


def change_manifest(folder: Path, **values) -> Run:
    manifest = folder / "found.geoseg-run" / "run.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))
    return geoseg.open_run(folder / "found.geoseg-run")


def test_a_run_that_has_not_finished_shows_no_objects_of_an_earlier_one(folder):
    (folder / "found.gpkg").unlink()
    run = change_manifest(folder, state="stopped", reason="--until 07:00")
    with pytest.raises(OutputError, match=r"the run is stopped \(--until 07:00\); run the same"):
        _ = run.objects
    assert "stopped: --until 07:00" in shown(run).texts
    assert repr(run).endswith(": stopped>")
    run = change_manifest(folder, state="finished")
    (folder / "found.geoseg-run" / "objects.parquet").unlink()
    with pytest.raises(OutputError, match=r"objects.parquet was removed"):
        _ = run.objects


def test_the_notebook_view_is_escaped_and_small(folder):
    run = change_manifest(
        folder,
        notes=[EVIL] * 40,
        images=[{"name": f"{EVIL}{i}.tif"} for i in range(500)],
        model={"name": EVIL * 50},
        failed_tiles=[{}] * 7,
    )
    view = shown(run)
    assert view.seen <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert view.texts.count(EVIL) == SHOWN_ROWS + 1  # the notes, and a region of that name
    assert "7" in view.texts
    assert len(run._repr_html_()) < 12_000


def test_the_notebook_view_says_each_class_and_cuts_long_lists(folder):
    table = gpd.read_parquet(folder / "found.geoseg-run" / "objects.parquet")
    table["class"] = ["b", "a", "b", "a", "b", "<c>"]
    table.to_parquet(folder / "found.geoseg-run" / "objects.parquet")
    regions = gpd.read_file(folder / "found.gpkg", layer="regions")
    many = pd.concat([regions] * 10, ignore_index=True)
    many.to_file(folder / "found.gpkg", layer="regions")
    texts = shown(geoseg.open_run(folder / "found.gpkg")).texts
    assert "6 (b 3, a 2, <c> 1)" in texts
    assert "and 8 more" in texts


# The map


def test_explore_draws_all_objects_in_degrees_and_escapes(folder, tmp_path):
    pytest.importorskip("folium")
    run = geoseg.open_run(folder / "found.gpkg")
    run.objects["class"] = [EVIL, "b", "b", "b", "b", "b"]
    run.objects["score"] = [0.95, 0.95, 0.85, 0.4, 0.55, 0.75]
    page = run.explore(tiles=None)
    names = [getattr(layer, "layer_name", "") for layer in page._children.values()]
    assert [n for n in names if n.startswith(("regions", "score"))] == [
        "regions (2)", "score from 0.9 (2)", "score from 0.8 (1)", "score from 0.7 (1)",
        "score from 0.5 (1)", "score from 0.0 (1)",
    ]  # fmt: skip
    page.save(tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert EVIL not in text
    layers = [layer for layer in page._children.values() if hasattr(layer, "data")]
    objects = [f for layer in layers[1:] for f in layer.data["features"]]
    assert sorted(f["properties"]["object"] for f in objects) == [1, 2, 3, 4, 5, 6]
    for feature in objects:
        (x, y), *_ = feature["geometry"]["coordinates"][0]
        assert 14.9 < x < 15.1
        assert 49 < y < 50
    by_class = run.explore(by="class", tiles=None)
    names = [getattr(layer, "layer_name", "") for layer in by_class._children.values()]
    assert "b (5)" in names
    by_class.save(tmp_path / "map.html")
    assert EVIL not in (tmp_path / "map.html").read_text(encoding="utf-8")


def test_explore_of_nothing_and_of_no_regions(folder):
    pytest.importorskip("folium")
    run = geoseg.open_run(folder / "found.gpkg")
    assert run.explore(run.objects.iloc[:0]).get_bounds() is not None
    alone = Run(None, None, {})
    alone.__dict__.update(objects=run.objects, regions=None)
    assert "score from" in " ".join(
        str(getattr(layer, "layer_name", "")) for layer in alone.explore()._children.values()
    )


def test_explore_refuses_more_than_a_browser_draws(folder):
    run = geoseg.open_run(folder / "found.gpkg")
    many = run.objects.iloc[np.zeros(MAX_DRAWN + 1, int)]
    with pytest.raises(
        ConfigError, match=r"20,001 objects are more than the 20,000 .*objects\.cx\["
    ):
        run.explore(many)
    with pytest.raises(ConfigError, match="6 objects are more than the 5"):
        run.explore(max_objects=5)
    with pytest.raises(ConfigError, match="expected 'score' or 'class'"):
        run.explore(by="size")


def test_explore_without_folium_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "folium":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install folium \(or 'geoseg\[notebook\]'\)"):
        geoseg.open_run(folder / "found.gpkg").explore()


def test_opening_a_run_loads_no_network_and_no_map():
    code = (
        "import sys, geoseg; geoseg.open_run\n"
        "assert not {'torch', 'dask', 'folium', 'matplotlib'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
