"""The demo on a small town: files, numbers that add up, and objects that match the truth."""

from __future__ import annotations

import geopandas as gpd
import pyogrio
import pytest

from geoseg.cli.main import main
from geoseg.cli.result import show_demo
from geoseg.errors import OutputError
from geoseg.jobs.demo import render, run_demo
from geoseg.models.registry import shipped_models


@pytest.mark.skipif("buildings" not in shipped_models(), reason="no model is shipped")
def test_demo(tmp_path, capsys):
    seen = []
    result = run_demo(
        tmp_path, size_px=1024, seed=3, workers=1, progress=lambda *args: seen.append(args)
    )
    town, objects = result.town, result.run.objects
    for path in (town.image, town.footprints, town.regions, town.aoi, result.picture):
        assert path.parent == tmp_path
        assert path.stat().st_size > 0
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    written = pyogrio.read_info(tmp_path / "objects.gpkg", layer="objects")
    assert written["features"] == len(objects) > 15
    aoi = gpd.read_file(town.aoi).union_all()
    footprints = gpd.read_file(town.footprints)
    truth = footprints.representative_point().within(aoi).sum()
    assert 0 < truth < len(footprints)
    assert result.counts["count"].sum() + result.outside[0] == len(objects)
    assert result.counts["truth"].sum() + result.outside[1] == truth
    assert result.quality.f1 > 0.6, result.quality
    assert seen[-1][:2] == (1, 1)
    show_demo(result)
    shown = capsys.readouterr().out
    assert f"F1 {result.quality.f1:.3f}" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["all", str(len(objects)), str(truth)] in lines
    assert ["picture:", str(result.picture)] in lines


def test_a_town_is_not_overwritten_unasked(tmp_path, capsys):
    folder = tmp_path / "town"
    assert main(["demo", str(folder), "--size", "256", "--render-only"]) == 0
    assert capsys.readouterr().out.split() == [
        str(folder / name) for name in ("town.tif", "footprints.gpkg", "regions.gpkg", "aoi.gpkg")
    ]
    before = (folder / "town.tif").read_bytes()
    with pytest.raises(OutputError, match="holds a town already; give --overwrite"):
        render(folder, size_px=256, seed=2, overwrite=False)
    assert main(["demo", str(folder), "--size", "256", "--seed", "2"]) == 2
    assert (folder / "town.tif").read_bytes() == before
    render(folder, size_px=256, seed=2, overwrite=True)
    assert (folder / "town.tif").read_bytes() != before
