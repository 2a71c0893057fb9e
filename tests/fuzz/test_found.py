"""What fuzzing has found, made by code as small as it gets; each was a crash, a hang or worse."""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz import tiff
from fuzz.kinds import RUN_ARGS
from fuzz.tiff import ASCII, DOUBLE, LONG, SHORT, Directory
from geoseg.cli.main import set_up_logging

SQUARE = [[15.0, 49.6524], [15.0001, 49.6524], [15.0001, 49.6526], [15.0, 49.6526], [15.0, 49.6524]]


def one_image(**changes: Any) -> Directory:
    """Return an image of 64 x 48 px, one strip, 8 bits; keywords are attributes to set."""
    found = Directory([], [bytes(64 * 48)])
    for tag, kind, values in (
        (256, LONG, [64]), (257, LONG, [48]), (258, SHORT, [8]), (259, SHORT, [1]), (262, SHORT, [1]),
        (273, LONG, [0]), (277, SHORT, [1]), (278, LONG, [48]), (279, LONG, [0]),
    ):  # fmt: skip
        found.put(tag, kind, values)
    tiff.georeference(found)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def geojson(path: Path, *geometries: Any, **properties: Any) -> None:
    features = [
        {"type": "Feature", "properties": {"name": "x"} | properties, "geometry": geometry}
        for geometry in geometries
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def copy(seeds: Path, folder: Path, *names: str) -> None:
    for name in names:
        shutil.copyfile(seeds / name, folder / Path(name).name)


def shapefile(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, *(f"vectors/regions.{s}" for s in ("shp", "shx", "dbf", "prj", "cpg")))


Make = Callable[[Path, Path], None]
FOUND: dict[str, tuple[Make, tuple[str, ...], int, str]] = {}
"""Name to what makes it, the command, the exit code and what stderr or stdout must say."""


def found(name: str, *command: str, code: int = 2, says: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        FOUND[name] = (make, command, code, says)
        return make

    return keep


# --- rasters ---------------------------------------------------------------------------------


@found(
    "crs of random bytes beside a png",
    "check",
    "a.png",
    code=1,
    says="a.png: the PNG file is broken",
)
def _(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, "rasters/plain.png")
    (folder / "plain.png").rename(folder / "a.png")
    text = (seeds / "rasters" / "plain.png.aux.xml").read_bytes()
    assert b"UTM zone 33N" in text
    (folder / "a.png.aux.xml").write_bytes(text.replace(b"UTM zone 33N", b"UTM zone \xb933N", 1))


@found(
    "words of gdal that are no utf-8",
    "check",
    "a.tif",
    code=1,
    says="a.tif: the GTiff file is broken",
)
def _(seeds: Path, folder: Path) -> None:
    image = one_image()
    image.put(34735, SHORT, [1, 1, 0, 1, 1026, 34737, 200, 0])
    image.put(34737, ASCII, b"\xff\xfe|\0")
    image.put(34736, DOUBLE, [])
    (folder / "a.tif").write_bytes(tiff.write([image]))


@found("a geokey with a count of its own", "check", "a.tif", code=1, says="a.tif")
def _(seeds: Path, folder: Path) -> None:
    image = one_image()
    image.put(34735, SHORT, [1, 1, 0, 2, 1024, 0, 44780, 1, 3072, 0, 1, 32633])
    (folder / "a.tif").write_bytes(tiff.write([image]))


@found(
    "a million px of blocks that are not there", "check", "--read", "a.tif", code=1,
    says="a.tif is (damaged|truncated|1000000)|blocks|a.tif",
)  # fmt: skip
def _(seeds: Path, folder: Path) -> None:
    image = one_image(blocks=[b"\0"] * 3)
    for tag in (273, 278, 279):
        image.entries.remove(image.get(tag))
    for tag, values in (
        (256, [1_000_000]),
        (259, [8]),
        (322, [32]),
        (323, [16]),
        (324, [0]),
        (325, [0]),
    ):
        image.put(tag, SHORT if tag == 259 else LONG, values)
    (folder / "a.tif").write_bytes(tiff.write([image]))


# --- job files -------------------------------------------------------------------------------


@found("lists in lists in a job", "run", "job.toml", says="job.toml is nested too deep")
def _(seeds: Path, folder: Path) -> None:
    (folder / "job.toml").write_text("[detect]\nimages = " + "[" * 3_000)


@found("a number of 5,000 digits in a job", "run", "job.toml", says="job.toml is not valid TOML")
def _(seeds: Path, folder: Path) -> None:
    (folder / "job.toml").write_text("[detect]\nworkers = " + "9" * 5_000)


@found("a folder as a job", "run", ".", says="cannot be read")
def _(seeds: Path, folder: Path) -> None:
    pass


# --- vector files ----------------------------------------------------------------------------


@found(
    "an empty part crashes geos",
    "count",
    "o.geojson",
    "r.geojson",
    "--rule",
    "intersects",
    code=0,
    says="r",
)
def _(seeds: Path, folder: Path) -> None:
    geojson(folder / "r.geojson", {"type": "MultiPolygon", "coordinates": [[], [SQUARE]]})
    copy(seeds, folder, "vectors/objects.gpkg")
    (folder / "objects.gpkg").rename(folder / "o.geojson")


@found(
    "a coordinate beyond all places",
    "count",
    "objects.gpkg",
    "r.geojson",
    says="which is no place on earth",
)
def _(seeds: Path, folder: Path) -> None:
    geojson(folder / "r.geojson", polygon([[0, 0], [1e300, 0], [1e300, 1e300], [0, 0]]))
    copy(seeds, folder, "vectors/objects.gpkg")


@found(
    "a ring that does not close",
    "count",
    "regions.shp",
    "--grid",
    "square:1",
    code=0,
    says="",
)
def _(seeds: Path, folder: Path) -> None:
    shapefile(seeds, folder)
    data = bytearray((folder / "regions.shp").read_bytes())
    # the last point of the first record
    size = 2 * struct.unpack_from(">i", data, 104)[0]
    struct.pack_into("<d", data, 108 + size - 16, 1.0)
    (folder / "regions.shp").write_bytes(data)


@found(
    "a name that is no utf-8",
    "count",
    "objects.gpkg",
    "regions.shp",
    "--json",
    code=0,
    says="qu\ufffdrter 0",
)
def _(seeds: Path, folder: Path) -> None:
    shapefile(seeds, folder)
    copy(seeds, folder, "vectors/objects.gpkg")
    data = (folder / "regions.dbf").read_bytes()
    (folder / "regions.dbf").write_bytes(data.replace(b"quarter 0", b"qu\x80rter 0"))


@found(
    "two fields of one name",
    "count",
    "objects.gpkg",
    "regions.shp",
    says="several fields called 'name'|count",
)
def _(seeds: Path, folder: Path) -> None:
    shapefile(seeds, folder)
    copy(seeds, folder, "vectors/objects.gpkg")
    data = (folder / "regions.dbf").read_bytes()
    (folder / "regions.dbf").write_bytes(data.replace(b"parent\0", b"name\0\0\0", 1))


@found(
    "a projection that nobody knows",
    "count",
    "objects.gpkg",
    "regions.shp",
    says="from which no way leads to a place",
)
def _(seeds: Path, folder: Path) -> None:
    shapefile(seeds, folder)
    copy(seeds, folder, "vectors/objects.gpkg")
    text = (folder / "regions.prj").read_text()
    (folder / "regions.prj").write_text(text.replace("Transverse_Mercator", "Transe_Mercator"))


@found(
    "a crs that gdal cannot write down",
    "count",
    "regions.shp",
    "--grid",
    "square:1",
    says="cannot be read as a vector layer",
)
def _(seeds: Path, folder: Path) -> None:
    shapefile(seeds, folder)
    data = (folder / "regions.prj").read_bytes()
    assert b'"D_WGS_1984",' in data
    (folder / "regions.prj").write_bytes(data.replace(b'"D_WGS_1984",', b'"D_WGS_1984"6\x9c,'))


@found(
    "a geometry of an unknown kind", "count", "objects.gpkg", "regions.gpkg", "--regions-crs",
    "EPSG:32633", code=0, says="6 regions have no area",
)  # fmt: skip
def _(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, "vectors/objects.gpkg", "vectors/regions.gpkg")
    base = sqlite3.connect(folder / "regions.gpkg")
    for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
        base.execute(f'DROP TRIGGER "{name}"')
    head = b"GP\0\1" + struct.pack("<I", 32633)
    base.execute("UPDATE regions SET geom = ?", (head + struct.pack("<BII", 1, 96, 1),))
    base.execute("UPDATE gpkg_geometry_columns SET srs_id = 0")
    base.commit()
    base.close()


@found(
    "lists in lists in a calibration",
    "count",
    "objects.gpkg",
    "regions.geojson",
    "--calibration",
    "c.json",
    says="c.json cannot be read",
)
def _(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, "vectors/objects.gpkg", "vectors/regions.geojson")
    (folder / "c.json").write_text("[" * 100_000)


@found(
    "a ragged calibration",
    "count",
    "objects.gpkg",
    "regions.geojson",
    "--calibration",
    "c.json",
    says="c.json: no calibration: scores is",
)
def _(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, "vectors/objects.gpkg", "vectors/regions.geojson")
    tree = {"scores": [0.1, [0.5], 1.0], "chance": [0, 1, 1], "sizes_m2": [1.0], "missed": [0.1]}
    (folder / "c.json").write_text(json.dumps(tree))


# --- models ----------------------------------------------------------------------------------


@found(
    "a zip of several disks",
    "convert",
    "m.pth",
    "--config",
    "config.yaml",
    "-o",
    "out.safetensors",
    says="m.pth is a broken torch file",
)
def _(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, "models/config.yaml")
    with zipfile.ZipFile(folder / "m.pth", "w") as archive:
        archive.writestr("data.pkl", b"x")
    data = bytearray((folder / "m.pth").read_bytes())
    # a locator of the 64-bit directory, in front of the end record, that counts two disks
    end = data.rindex(b"PK\5\6")
    data[end:end] = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 2)
    (folder / "m.pth").write_bytes(data)


@found(
    "a card of other kinds",
    "models",
    "show",
    "m.safetensors",
    says="m.json: min_score is 'high'; expected float",
)
def _(seeds: Path, folder: Path) -> None:
    card = json.loads((seeds / "models" / "model.json").read_text())
    (folder / "m.json").write_text(json.dumps(card | {"min_score": "high"}))
    (folder / "m.safetensors").write_bytes(b"")


@found(
    "lists in lists in a card", "models", "show", "m.safetensors", says="m.json is not valid JSON"
)
def _(seeds: Path, folder: Path) -> None:
    (folder / "m.json").write_text("[" * 100_000)
    (folder / "m.safetensors").write_bytes(b"")


# --- training files --------------------------------------------------------------------------

TRAIN = """
[train]
classes = ["thing", "other"]
gsd_m = 0.1

[[sites]]
image = "a.tif"
labels = "objects.gpkg"
aoi = "regions.geojson"
"""


def training(name: str, old: str, new: str, says: str) -> None:
    @found(name, "call:labels", "train.toml", says=says)
    def _(seeds: Path, folder: Path) -> None:
        copy(
            seeds, folder, "vectors/objects.gpkg", "vectors/regions.geojson", "rasters/stripes.tif"
        )
        (folder / "stripes.tif").rename(folder / "a.tif")
        assert old in TRAIN
        (folder / "train.toml").write_text(TRAIN.replace(old, new))


training("a site without an image", 'image = "a.tif"\n', "", "site 1 lacks image")
training(
    "a part of three numbers", "[[sites]]", "[[sites]]\naoi_part = [0.0, 0.5, 1.0]", "aoi_part is"
)
training("a part of words", "[[sites]]", '[[sites]]\naoi_part = ["a", 0, 1, 1]', "aoi_part is")
training("a site that is a number", "[[sites]]", "[x]", r"has no \[\[sites\]\]")
training(
    "a condition that is a table",
    "[[sites]]",
    "[[sites]]\nwhere = {a = 1}",
    "where is {'a': 1}; expected text",
)
training(
    "a condition that is no sql",
    "[[sites]]",
    "[[sites]]\nwhere = 'FROM'",
    "cannot be read as a vector layer where FROM",
)
training("a pixel size of words", "gsd_m = 0.1", 'gsd_m = ["x"]', "gsd_m is .*; expected float")
training(
    "a pixel size of 10**30", "gsd_m = 0.1", f"gsd_m = {10**30}", "gsd_m is 10+; expected float"
)
training(
    "a pixel size of a country", "gsd_m = 0.1", "gsd_m = 1e6", "gsd_m is 1000000.0; expected 0.001"
)
training(
    "a table of settings that is a number",
    "[train]",
    "train = 5\n[other]",
    "train is 5; expected a table",
)
training(
    "an image as labels", '"objects.gpkg"', '"a.tif"', "a.tif cannot be read as a vector layer"
)
training(
    "lists in lists in a training file",
    "[train]",
    f"x = {'[' * 3000}\n[train]",
    "is nested too deep",
)
training(
    "augmentation that is a list",
    "gsd_m = 0.1",
    "gsd_m = 0.1\naugmentation = [1]",
    r"augmentation is \[1\]",
)


# --- runs ------------------------------------------------------------------------------------


def run_with(name: str, *command: str, says: str, code: int = 2, **values: Any) -> None:
    @found(name, *command, code=code, says=says)
    def _(seeds: Path, folder: Path) -> None:
        shutil.copytree(seeds / "run", folder, dirs_exist_ok=True)
        path = folder / "out.geoseg-run" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


run_with(
    "seconds that are a number",
    "call:run",
    "out.geoseg-run",
    says="run.json cannot be read",
    seconds=5,
)
run_with("images that are numbers", "report", "out.geoseg-run", says="holds no run", images=[1])
run_with("an image without a size", "report", "out.geoseg-run", says="cannot be made", images=[{"name": "image.tif", "grid_px": "x", "crs": "EPSG:32633", "grid_transform": [1, 0, 0, 0, 1, 0]}])  # fmt: skip


@found("looking at an output leaves nothing", "call:run", "out.gpkg", code=0, says="")
def _(seeds: Path, folder: Path) -> None:
    shutil.copytree(seeds / "run", folder, dirs_exist_ok=True)


@found("a score that is text", "count", "s.geojson", "--grid", "square:1", says="holds text")
def _(seeds: Path, folder: Path) -> None:
    geojson(folder / "s.geojson", polygon(SQUARE), score="=1+1")


@found("a class that is none", "count", "s.geojson", "--grid", "square:100000", code=0, says="")
def _(seeds: Path, folder: Path) -> None:
    text = {"type": "FeatureCollection", "features": []}
    for name in (None, "house"):
        part = {"type": "Feature", "properties": {"class": name}, "geometry": polygon(SQUARE)}
        text["features"].append(part)
    (folder / "s.geojson").write_text(json.dumps(text), encoding="utf-8")


@found(
    "a region from here to the moon", "count", "objects.gpkg", "r.geojson",
    says="beyond all places",
)  # fmt: skip
def _(seeds: Path, folder: Path) -> None:
    copy(seeds, folder, "vectors/objects.gpkg")
    far = [[500_000, 5e6], [500_100, 5e6], [500_100, 8.58e9], [500_000, 8.58e9], [500_000, 5e6]]
    geojson(folder / "r.geojson", polygon(far))
    name = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    text = json.loads((folder / "r.geojson").read_text()) | {"crs": name}
    (folder / "r.geojson").write_text(json.dumps(text), encoding="utf-8")


@found("an overview of factor 0", "check", "a.tif", "--read", "--statistics", code=1, says="a.tif")
def _(seeds: Path, folder: Path) -> None:
    image, empty = one_image(), one_image()
    empty.put(254, LONG, [1])
    empty.put(256, SHORT, [4_000])
    (folder / "a.tif").write_bytes(tiff.write([image, empty]))


run_with(
    "outputs that are a list",
    *("detect", "image.tif", "-o", "out.gpkg", *RUN_ARGS, "--regions", "regions.geojson"),
    says="out.gpkg exists",
    outputs=[[1]],
)
run_with("settings that are a list", "call:run", "out.geoseg-run", says="is a list", settings=[1])


@found("lists in lists in a manifest", "report", "out.geoseg-run", says="holds no run")
def _(seeds: Path, folder: Path) -> None:
    shutil.copytree(seeds / "run", folder, dirs_exist_ok=True)
    (folder / "out.geoseg-run" / "run.json").write_text("[" * 100_000)


@pytest.mark.parametrize("name", FOUND)
def test_it_ends_in_a_message(name, seeds, server, torch_server, tmp_path):
    make, command, code, says = FOUND[name]
    folder = tmp_path / "case"
    folder.mkdir()
    make(seeds, folder)
    needs_torch = command[0] in ("call:labels", "convert", "models")
    ended = (torch_server if needs_torch else server).run(folder, [command])
    said = f"{ended.out}\n{ended.err}"
    assert not ended.findings, f"{ended.findings}\n{said}"
    assert ended.codes == (code,), said
    assert re.search(says, said), said


def test_what_nobody_can_catch_is_no_traceback(capsys, monkeypatch):
    """rasterio's own log fails over words of GDAL that are no UTF-8; Python would print that."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    set_up_logging()

    class Bad:
        def __del__(self) -> None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    Bad()
    gc.collect()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    logging.captureWarnings(capture=False)
    assert "Traceback" not in capsys.readouterr().err
    assert sys.unraisablehook.__module__ == "geoseg.cli.main"


def test_the_fixtures_are_sound_but_for_what_they_are_about(seeds, server, tmp_path):
    """Without their one fault the files above are fine: the messages are about the fault."""
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "a.tif").write_bytes(tiff.write([one_image()]))
    geojson(folder / "r.geojson", polygon(SQUARE))
    copy(
        seeds, folder, "vectors/objects.gpkg", "vectors/regions.geojson", "vectors/calibration.json"
    )
    shapefile(seeds, folder)
    counted = ("count", "objects.gpkg", "regions.geojson", "--calibration", "calibration.json")
    commands = [
        ("plan", "a.tif", "--no-probe", *RUN_ARGS), counted, ("count", "objects.gpkg", "r.geojson"),
        ("count", "objects.gpkg", "regions.shp"),
    ]  # fmt: skip
    ended = server.run(folder, commands)
    assert not ended.findings, ended
    assert ended.codes == (0, 0, 0, 0), ended.err
