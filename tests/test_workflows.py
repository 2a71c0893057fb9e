"""The ready jobs: each can be read as it stands, and runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import openpyxl
import pyogrio
import pytest
import rasterio
from rasterio.windows import Window

from geoseg.cli.main import main
from geoseg.config import read_job
from geoseg.learning.train import read_training_file
from geoseg.scenes.town import render_town

WORKFLOWS = Path(__file__).parents[1] / "workflows"


def test_training_file():
    job = read_training_file(WORKFLOWS / "train_buildings.toml")
    assert job.settings.classes == ("building",)
    # the validation quarter stays out of the training
    assert job.sites[0]["aoi_part"] == [0.0, 0.25, 1.0, 1.0]


@pytest.fixture
def jobs(tmp_path) -> Path:
    """A folder of the ready jobs; their files lie where they expect the demo."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    for job in ("overnight.toml", "count_by_region.toml"):
        shutil.copy(WORKFLOWS / job, folder)
    render_town(tmp_path / "demo", width_px=800, height_px=800, seed=5)
    return folder


def test_overnight_is_a_folder_of_images(jobs, tmp_path, capsys):
    job = jobs / "overnight.toml"
    assert read_job(job).images == (str(jobs / "../demo/*.tif"),)
    cut_in_two(tmp_path / "demo" / "town.tif")
    assert main(["run", str(job)]) == 0
    output = tmp_path / "demo" / "overnight.gpkg"
    layers = {name for name, _ in pyogrio.list_layers(output)}
    assert {"objects", "regions", "coverage"} <= layers
    objects = pyogrio.read_dataframe(output, layer="objects")
    assert set(objects["image"]) == {"east.tif", "west.tif"}
    regions = pyogrio.read_dataframe(output, layer="regions")
    assert 0 < regions["count"].sum() <= len(objects)
    assert "overnight.gpkg" in capsys.readouterr().out
    page = tmp_path / "demo" / "overnight.geoseg-run" / "report.html"
    assert f"{len(objects):,} objects in" in page.read_text("utf-8")
    sheet = openpyxl.load_workbook(tmp_path / "demo" / "counts.xlsx").worksheets[0]
    assert sheet.max_row > len(regions)
    # a second run does not touch what is there
    before = output.stat().st_mtime_ns
    assert main(["run", str(job)]) == 0
    assert output.stat().st_mtime_ns == before


def cut_in_two(path: Path) -> None:
    """Put a western and an eastern half in the place of an image."""
    with rasterio.open(path) as image:
        middle = image.width // 2
        for name, left in (("west", 0), ("east", middle)):
            window = Window(left, 0, middle, image.height)
            shape = {"width": middle, "height": image.height}
            profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": image.crs, **shape}
            place = image.window_transform(window)
            with rasterio.open(
                path.with_name(f"{name}.tif"), "w", **profile, transform=place
            ) as half:
                half.write(image.read((1, 2, 3), window=window))
    path.unlink()


def test_count_by_region(jobs, tmp_path, capsys):
    job, demo = jobs / "count_by_region.toml", tmp_path / "demo"
    # what was found long ago, with geoseg or without
    found = pyogrio.read_dataframe(demo / "footprints.gpkg")
    pyogrio.write_dataframe(found, demo / "objects.gpkg", layer="objects")
    assert main(["run", str(job), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    counted = pyogrio.read_dataframe(demo / "counts.gpkg", layer="regions")
    assert [r["count"] for r in said["regions"]] == counted["count"].tolist()
    assert counted["count"].sum() + said["outside"] == len(found)
    # nobody's counts are replaced unasked
    assert main(["run", str(job)]) == 2
    assert "counts.gpkg" in capsys.readouterr().err
    assert main(["run", str(job), "--overwrite"]) == 0
    # it is what the verb says, also where the rule is another one
    job.write_text(job.read_text().replace('"point"', '"intersects"'))
    assert main(["run", str(job), "--overwrite", "--json"]) == 0
    by_job = capsys.readouterr().out.partition("{")[2]
    paths = [str(demo / "objects.gpkg"), str(demo / "regions.gpkg")]
    assert main(["count", *paths, "--rule", "intersects", "--json"]) == 0
    assert by_job == capsys.readouterr().out.partition("{")[2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[count]\nobjects = 'o.gpkg'", "no regions to count in; name a file of polygons"),
        ("[count]\nregoins = 'r.gpkg'", "unknown key 'regoins' in [count]; did you mean 'regions'"),
        ("[count]\nobjects = 3", "objects = 3 in [count]; expected Path"),
        ("[count]\nobjects = 'o'\nregions = 'r'\nrule = 1", "rule = 1 in [count]; expected str"),
        ("[count]\n[detect]", "has both a [detect] and a [count] table; expected one"),
        ("", "has no [detect] or [count] table"),
        ("[counting]", "unknown table [counting]; expected [detect] or [count]"),
        ("[detect]\noutput = 'o.gpkg'", "names no images; add images = ... to [detect]"),
    ],
)
def test_jobs_that_are_wrong(text, says, tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(text)
    assert main(["run", str(job)]) == 2
    assert says in capsys.readouterr().err


def test_a_rule_that_is_none(jobs, tmp_path, capsys):
    job = jobs / "count_by_region.toml"
    shutil.copy(tmp_path / "demo" / "footprints.gpkg", tmp_path / "demo" / "objects.gpkg")
    job.write_text(job.read_text().replace('"point"', '"centroid"'))
    assert main(["run", str(job)]) == 2
    assert "rule is 'centroid'; expected point, area or intersects" in capsys.readouterr().err
