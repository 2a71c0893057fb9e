"""What a run writes: several files of one set of objects, several files instead of one."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import pyogrio
import pytest
import shapely
from affine import Affine
from painted import blob_scene
from pycocotools.coco import COCO
from stubs import Stub

import geoseg
from geoseg.cli.main import main
from geoseg.config import DetectSettings, read_job
from geoseg.errors import ConfigError, OutputError
from geoseg.jobs.pipeline import run_detect

UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
TILES = {"tile_size": 256, "overlap": 64, "supertile_size": 448, "workers": 1}


@pytest.fixture
def image(make_raster) -> Path:
    return make_raster("painted.tif", blob_scene(1).pixels, transform=NORTH_UP, crs=UTM)


@pytest.fixture
def regions(tmp_path, image) -> Path:
    left, right, middle = 500_000, 500_200, 500_018
    table = gpd.GeoDataFrame(
        {"name": ["west: a/b", "east", "far"]},
        geometry=[
            shapely.box(left, 5_499_000, middle, 5_500_100),
            shapely.box(middle, 5_499_000, right, 5_500_100),
            shapely.box(600_000, 5_499_000, 600_010, 5_500_100),
        ],
        crs=UTM,
    )
    path = tmp_path / "regions.geojson"
    table.to_crs(4326).to_file(path)
    return path


def run(image, **settings):
    return run_detect(DetectSettings(images=(str(image),), **(TILES | settings)), Stub())


def sql(path, query):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_one_run_writes_all_that_was_asked_for(tmp_path, image, regions):
    also = tuple(
        tmp_path / name for name in ("o.parquet", "o.fgb", "o.geojson", "o.coco.json", "sub/o.gpkg")
    )
    (tmp_path / "sub").mkdir()
    settings = {"output": tmp_path / "o.gpkg", "also": also, "regions": regions}
    result = run(image, **settings)
    n = result.n_objects
    assert n > 20
    assert len(pyogrio.read_dataframe(tmp_path / "o.gpkg", layer="objects")) == n
    assert len(pyogrio.read_dataframe(tmp_path / "sub" / "o.gpkg", layer="regions")) == 3
    assert len(gpd.read_parquet(tmp_path / "o.parquet")) == n
    assert len(gpd.read_file(tmp_path / "o.fgb")) == n
    assert len(gpd.read_file(tmp_path / "o.geojson")) == n
    coco = COCO(str(tmp_path / "o.coco.json"))
    assert len(coco.anns) == n
    assert [c["name"] for c in coco.cats.values()] == list(Stub.classes)
    assert (coco.imgs[1]["width"], coco.imgs[1]["height"]) == blob_scene(1).pixels.shape[:0:-1]
    # formats of one layer have the counts beside
    for suffix in (".parquet", ".fgb", ".geojson"):
        assert (tmp_path / f"o_regions{suffix}").exists()
    assert not list(tmp_path.glob("*_regions.coco*"))
    # the same again has nothing to do; a lost twin is made again, from the same objects
    assert run(image, **settings).already_done
    before = (tmp_path / "o.parquet").read_bytes()
    (tmp_path / "o.fgb").unlink()
    again = run(image, **settings)
    assert not again.already_done
    assert (tmp_path / "o.fgb").exists()
    assert (tmp_path / "o.parquet").read_bytes() == before
    # another choice of twins finds the same objects without a join
    fewer = run(image, **(settings | {"also": also[:1]}))
    assert fewer.n_objects == n
    # what was changed by hand is not replaced unasked
    (tmp_path / "o.parquet").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"o\.parquet exists and was changed since"):
        run(image, **(settings | {"also": also[:1]}))


def test_a_run_split_by_region_adds_up_and_goes_on(tmp_path, image, regions):
    settings = {"output": tmp_path / "o.gpkg", "regions": regions, "split_by": "region"}
    settings["also"] = (tmp_path / "o.geojson",)
    result = run(image, **settings)
    index = pyogrio.read_dataframe(tmp_path / "o.gpkg", layer="files")
    inside = index[index["region"] > 0].sort_values("region")
    assert inside["objects"].tolist() == result.regions["count"].tolist()
    assert index["objects"].sum() == result.n_objects
    assert inside["file"].tolist()[:2] == ["o_gpkg/0001_west_a_b.gpkg", "o_gpkg/0002_east.gpkg"]
    layers = dict(pyogrio.list_layers(tmp_path / "o.gpkg"))
    assert set(layers) == {"files", "regions", "coverage", "layer_styles"}
    assert (tmp_path / "o_geojson" / "0002_east.geojson").exists()
    assert run(image, **settings).already_done
    # by a grid instead: its own folder is replaced
    grid = run(image, **(settings | {"split_by": "grid", "split_rows": 20, "overwrite": True}))
    index = pyogrio.read_dataframe(tmp_path / "o.gpkg", layer="files")
    assert index["objects"].sum() == grid.n_objects
    assert index["objects"].max() <= 20
    assert not list((tmp_path / "o_gpkg").glob("*east*"))


def test_a_geopackage_tells_of_its_run_without_secrets(tmp_path, make_raster, regions):
    folder = tmp_path / "user" / "private"
    folder.mkdir(parents=True)
    image = make_raster("painted.tif", blob_scene(1).pixels, transform=NORTH_UP, crs=UTM)
    moved = folder / "painted.tif"
    image.rename(moved)
    path = tmp_path / "o.gpkg"
    result = run(
        moved, output=path, regions=regions, run_dir=folder / "run", notify="curl -H token=s3cret"
    )
    rows = sql(path, "SELECT md_standard_uri, metadata FROM gpkg_metadata")
    kept = {uri.rpartition(":")[2]: text for uri, text in rows}
    assert {"run", "model-card", "credits"} < kept.keys()
    told = json.loads(kept["run"])
    assert told["geoseg"] == geoseg.__version__
    assert told["objects"] == result.n_objects
    assert told["settings"]["tile_size"] == 256
    assert told["images"][0]["name"] == "painted.tif"
    manifest = json.loads((folder / "run" / "run.json").read_text())
    assert {k: manifest[k] for k in told} == told
    assert json.loads(kept["model-card"])["classes"] == list(Stub.classes)
    assert "Found by geoseg" in kept["credits"]
    assert b"private" not in path.read_bytes()


def test_outputs_that_contradict_each_other_are_refused_before_any_work(tmp_path, image, regions):
    out = tmp_path / "o.gpkg"
    for wrong, message in (
        ({"also": (out,)}, "named twice"),
        ({"also": (tmp_path / "o.txt",)}, r"unknown suffix '.txt'"),
        ({"also": (tmp_path / "o.json",)}, r"\.coco\.json"),
        ({"split_by": "town"}, "expected region or grid"),
        ({"split_by": "region", "regions": None}, "needs regions"),
        ({"output": None, "split_by": "grid"}, "name one with --output"),
        ({"output": None, "also": (out,)}, "name that with --output"),
        ({"split_rows": 0}, "--split-rows is 0"),
        ({"also": (tmp_path / "a.fgb", tmp_path / "a_regions.fgb")}, "written twice"),
    ):
        with pytest.raises((ConfigError, OutputError), match=message):
            run(image, **({"output": out, "regions": regions} | wrong))
    (tmp_path / "o_gpkg").mkdir()
    (tmp_path / "o_gpkg" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"folder .*o_gpkg exists"):
        run(image, output=out, split_by="grid")
    assert {p.name for p in tmp_path.iterdir()} == {"o_gpkg", "regions.geojson", "painted.tif"}


def test_the_command_line_takes_one_output_and_more_with_also(tmp_path, capsys):
    twice = ["detect", "a.tif", "-o", str(tmp_path / "a.gpkg"), "-o", str(tmp_path / "b.gpkg")]
    assert main(twice) == 2
    assert "name further files with --also" in capsys.readouterr().err
    assert main(["detect", "a.tif"]) == 2
    assert "Missing option '-o'" in capsys.readouterr().err


def test_job_files_name_further_outputs_beside_themselves(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(
        '[detect]\nimages = "a.tif"\noutput = "o.gpkg"\nalso = ["o.fgb", "x/o.geojson"]\n'
    )
    settings = read_job(job)
    assert settings.outputs == tuple(tmp_path / p for p in ("o.gpkg", "o.fgb", "x/o.geojson"))
    job.write_text('[detect]\nimages = "a.tif"\noutput = "o.gpkg"\nalso = "o.fgb"\n')
    assert read_job(job).also == (tmp_path / "o.fgb",)
    job.write_text('[detect]\nimages = "a.tif"\noutput = "o.gpkg"\nalso = [1]\n')
    with pytest.raises(ConfigError, match="also = "):
        read_job(job)
