"""Bad input: exit code 2 and one clear line, before any model is loaded; outputs stay untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from painted import blob_scene

from geoseg.cli.main import main

# layers without a CRS are written on purpose
pytestmark = pytest.mark.filterwarnings("ignore:.crs. was not provided")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, make_raster, monkeypatch) -> Path:
    """A folder with good and bad input; commands run inside it."""
    rng = np.random.default_rng(1)
    make_raster("good.tif", rng.integers(1, 255, (3, 90, 120), dtype=np.uint8))
    make_raster("two.tif", rng.integers(1, 255, (2, 90, 120), dtype=np.uint8))
    make_raster("nocrs.tif", bands=3, crs=None)
    long = make_raster("long.tif", rng.integers(1, 255, (3, 400, 400), dtype=np.uint8))
    (tmp_path / "cut.tif").write_bytes(long.read_bytes()[: long.stat().st_size * 6 // 10])
    long.unlink()
    (tmp_path / "text.tif").write_text("this is not a raster\n")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no images here\n")
    areas = gpd.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(14, 49, 16, 50)], crs=4326)
    areas.to_file(tmp_path / "regions.gpkg")
    areas.set_crs(None, allow_override=True).to_file(tmp_path / "regions_nocrs.gpkg")
    areas.set_geometry(areas.representative_point()).to_file(tmp_path / "points.gpkg")
    pyogrio.write_dataframe(areas.iloc[:0], tmp_path / "none.gpkg", geometry_type="Polygon")
    (tmp_path / "old.gpkg").write_bytes(b"what an earlier run wrote")
    jobs = {
        "unknown_key": '[detect]\nimages = ["good.tif"]\noutput = "o.gpkg"\ntile_sise = 512\n',
        "wrong_type": '[detect]\nimages = ["good.tif"]\noutput = "o.gpkg"\ntile_size = "512"\n',
        "wrong_table": '[detection]\nimages = ["good.tif"]\n',
        "no_toml": "images = good.tif\n",
        "no_output": '[detect]\nimages = ["good.tif"]\n',
        "old_output": '[detect]\nimages = ["good.tif"]\noutput = "old.gpkg"\n',
    }
    for name, text in jobs.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# arguments of `geoseg detect` after `-o new.gpkg`, and what the line must say
BAD = {
    "missing file": ("nowhere.tif", "no such file"),
    "missing among good ones": ("good.tif nowhere.tif", "nowhere.tif: no such file"),
    "not a raster": ("text.tif", "is not a raster"),
    "empty file": ("empty.tif", "the file is empty"),
    "no CRS": ("nocrs.tif", "has no CRS; name it with --src-crs"),
    "truncated": ("cut.tif", "cut.tif is truncated"),
    "folder without images": ("folder", "the folder holds no raster"),
    "pattern without images": ("none*.tif", "the pattern matches no raster"),
    "wrong band": ("good.tif --bidx 1,2,9", "--bidx asks for band 9; choose from 1 to 3"),
    "wrong number of bands": ("good.tif --bidx 1", "--bidx names 1 band(s) but 3 are needed"),
    "bands left out": ("good.tif --bidx 1,,3", "expected band numbers such as 1,2,3, or names"),
    "a band without such a name": ("good.tif --bidx 1,2,violet", "has no band 'violet'; it has"),
    "too few bands": ("two.tif", "has 2 band(s) but 3 are needed"),
    "overlap as large as the tile": ("good.tif --tile-size 256 --overlap 256", "--overlap is 256"),
    "overlap larger than the model's tile": ("good.tif --overlap 5000", "--overlap is 5000"),
    "tile too small": ("good.tif --tile-size 5", "--tile-size is 5; expected 32 to 8192"),
    "supertile smaller than a tile": ("good.tif --supertile-size 64", "--supertile-size is 64"),
    "score out of range": ("good.tif --min-score 1.5", "--min-score is 1.5; expected 0 to 1"),
    "no worker": ("good.tif --workers 0", "--workers is 0"),
    "output exists": ("good.tif -o old.gpkg", "exists; give --overwrite"),
    "output's folder missing": ("good.tif -o not/there.gpkg", "does not exist; create it first"),
    "output is a folder": ("good.tif -o folder.gpkg", "is a folder; give a file name"),
    "output of no known kind": ("good.tif -o out.shp", "unknown suffix '.shp'"),
    "unknown model": ("good.tif --model houses", "unknown model 'houses'"),
    "missing model file": ("good.tif --model no.safetensors", "no.safetensors does not exist"),
    "detector without a factory": ("good.tif --detector stubs", "expected package.module:factory"),
    "no such detector module": ("good.tif --detector nomodule:make", "cannot import nomodule"),
    "no such factory": ("good.tif --detector stubs:nothing", "has no callable 'nothing'"),
    "factory that raises": ("good.tif --detector stubs:broken", "the factory raised RuntimeError"),
    "factory of something else": ("good.tif --detector stubs:no_detector", "returned str"),
    "regions missing": ("good.tif --regions no.gpkg", "regions file no.gpkg does not exist"),
    "regions without CRS": ("good.tif --regions regions_nocrs.gpkg", "has no CRS"),
    "regions that are a text": ("good.tif --regions folder/notes.txt", "cannot be read"),
    "regions that are points": ("good.tif --regions points.gpkg", "holds no polygons"),
    "regions without a row": ("good.tif --regions none.gpkg", "holds no features"),
    "AOI missing": ("good.tif --aoi no.gpkg", "AOI file no.gpkg does not exist"),
    "AOI without CRS": ("good.tif --aoi regions_nocrs.gpkg", "has no CRS"),
    "gsd of no number": ("good.tif --gsd fine", "expected native or metres per pixel"),
    "gsd of nothing": ("good.tif --gsd 0", "--gsd is 0.0; expected 0.001 to 1000"),
    "gsd below nothing": ("good.tif --gsd -1", "--gsd is -1.0"),
    "gsd of not a number": ("good.tif --gsd nan", "--gsd is nan"),
    "no such CRS": ("good.tif --dst-crs EPSG:999999", "is no CRS that PROJ knows"),
    "run directory is a file": ("good.tif --run-dir text.tif", "is a file; name a directory"),
    "run directory of something else": ("good.tif --run-dir folder", "holds no run"),
    "no such option": ("good.tif --tilesize 5", "No such option"),
    "no such device": ("good.tif --device tpu", "'tpu' is not one of"),
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_refused(capfd, place: Path, args: list[str], message: str) -> None:
    before = files(place)
    code = main(args)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("geoseg: error: "), err
    assert len(err.splitlines()) == 1, err
    assert message in err
    assert files(place) == before, "a run that fails leaves everything as it was"


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, place, capfd):
    args, message = BAD[case]
    if "folder.gpkg" in args:
        (place / "folder.gpkg").mkdir()
    words = args.split()
    if "-o" not in words:
        words += ["-o", "new.gpkg"]
    check_refused(capfd, place, ["detect", *words], message)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("unknown_key", "unknown key 'tile_sise' in [detect]; did you mean 'tile_size'?"),
        ("wrong_type", "tile_size = '512' in [detect]; expected int"),
        ("wrong_table", "unknown table [detection]; expected [detect]"),
        ("no_toml", "is not valid TOML"),
        ("no_output", "names no output"),
        ("old_output", "exists; give --overwrite"),
        ("missing", "does not exist; name a job file"),
    ],
)
def test_bad_job_files(job, message, place, capfd):
    check_refused(capfd, place, ["run", f"{job}.toml"], message)


def test_what_all_bad_images_have_is_said_at_once(place, capfd):
    main(["detect", "nocrs.tif", "text.tif", "good.tif", "-o", "o.gpkg"])
    assert "(and 1 more images)" in capfd.readouterr().err


# --- nothing heavy is imported for a mistake -------------------------------------------------

NO_TORCH = """
import importlib.abc
import sys


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "timm", "dask"):
            raise AssertionError(f"{name} is imported")


sys.meta_path.insert(0, Refuse())
from geoseg.cli.main import main

for line in sys.stdin.read().splitlines():
    print(main(line.split()), flush=True)
"""


def test_no_torch_before_the_input_is_good(place):
    # every case that names no detector or device, in one process that cannot import torch
    (place / "folder.gpkg").mkdir()
    lines = []
    for args, _ in BAD.values():
        if "--detector" not in args:
            lines.append(f"detect {args}" + ("" if "-o " in args else " -o new.gpkg"))
    lines.append("--help")
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH],
        input="\n".join(lines),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=place,
        check=False,
        capture_output=True,
        text=True,
    )
    errors = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert codes == ["2"] * (len(lines) - 1) + ["0"]
    assert all(line.startswith("geoseg: error: ") for line in errors), done.stderr
    assert len(errors) == len(lines) - 1


# --- good input ------------------------------------------------------------------------------


@pytest.fixture
def painted(make_raster) -> Path:
    return make_raster("painted.tif", blob_scene(2, size=300, count=40, large=0).pixels)


OWN = ["--detector", "stubs:make", "--tile-size", "128", "--overlap", "32", "-j", "1"]


def test_detect_prints_numbers_that_add_up(painted, tmp_path, capfd):
    output = tmp_path / "o.gpkg"
    assert main(["detect", str(painted), "-o", str(output), *OWN, "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert told["objects"] == pyogrio.read_info(output, layer="objects")["features"] > 20
    assert told["supertiles"] == {"done": 1}
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert "supertile done" in events
    assert events[-1] == "finished"
    assert main(["detect", str(painted), "-o", str(output), *OWN, "--overwrite"]) == 0
    out, _ = capfd.readouterr()
    assert f"{told['objects']} objects in " in out
    assert f"seams: {told['seams']['verdict']}" in out


def test_evaluate_tells_bands_from_interiors_of_a_run(painted, tmp_path, capfd):
    output = tmp_path / "o.gpkg"
    assert main(["detect", str(painted), "-o", str(output), *OWN]) == 0
    capfd.readouterr()
    # the objects themselves for truth: all is found, in both places
    args = ["evaluate", str(output), str(output), "--layer", "objects"]
    run_dir = ["--run-dir", str(tmp_path / "o.geoseg-run")]
    assert main([*args, *run_dir, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    bands, interiors = told["bands"], told["interiors"]
    assert bands["n_truth"] > 0 < interiors["n_truth"]
    assert bands["n_truth"] + interiors["n_truth"] == told["n_truth"]
    assert bands["f1"] == interiors["f1"] == 1
    assert main([*args, *run_dir]) == 0
    assert "where two or more tiles looked (bands)" in capfd.readouterr().out
    assert main([*args, "--run-dir", str(tmp_path)]) == 2
    assert "no finished run" in capfd.readouterr().err


def test_run_a_job_file(painted, tmp_path, capfd, monkeypatch):
    job = tmp_path / "job.toml"
    job.write_text(
        '[detect]\nimages = "painted.tif"\noutput = "o.gpkg"\ndetector = "stubs:make"\n'
        "tile-size = 128\noverlap = 32\nworkers = 1\nmin_score = 0\ngsd = 'native'\nbidx = [1, 2]\n"
    )
    # relative paths are relative to the job file
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["run", str(job)]) == 0
    first = pyogrio.read_dataframe(tmp_path / "o.gpkg", layer="objects")
    assert len(first) > 20
    # again: finished before, and the output is the run's own
    assert main(["run", str(job)]) == 0
    assert "nothing was left to do" in capfd.readouterr().out
    assert main(["run", str(job), "--overwrite"]) == 0
    again = pyogrio.read_dataframe(tmp_path / "o.gpkg", layer="objects")
    assert again["uid"].tolist() == first["uid"].tolist()


def test_failed_supertiles_end_with_exit_code_3(painted, tmp_path, capfd, monkeypatch):
    output = tmp_path / "o.gpkg"
    monkeypatch.setenv("STUB_POISON", "5")
    args = ["detect", str(painted), "-o", str(output), *OWN, "--supertile-size", "128"]
    assert main(args) == 3
    out, _ = capfd.readouterr()
    assert "the same command tries their supertiles again" in out
    monkeypatch.delenv("STUB_POISON")
    assert main([*args, "--overwrite"]) == 0
