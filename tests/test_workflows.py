"""The ready jobs: each can be read as it stands, and the overnight job runs."""

from __future__ import annotations

from pathlib import Path

import pyogrio

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


def test_overnight(tmp_path, capsys):
    folder = tmp_path / "jobs"
    folder.mkdir()
    job = folder / "overnight.toml"
    job.write_text((WORKFLOWS / "overnight.toml").read_text())
    assert read_job(job).images == (str(folder / "../demo/town.tif"),)
    render_town(tmp_path / "demo", width_px=800, height_px=800, seed=5)
    assert main(["run", str(job)]) == 0
    layers = {name for name, _ in pyogrio.list_layers(tmp_path / "demo/overnight.gpkg")}
    assert {"objects", "regions", "coverage"} <= layers
    assert "overnight.gpkg" in capsys.readouterr().out
    # a second run does not touch what is there
    before = (tmp_path / "demo/overnight.gpkg").stat().st_mtime_ns
    assert main(["run", str(job)]) == 0
    assert (tmp_path / "demo/overnight.gpkg").stat().st_mtime_ns == before
