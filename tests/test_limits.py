"""What a raster may ask of the machine: refused before anything is allocated, in little memory."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from runs import environment

from geoseg.cli.main import main
from geoseg.errors import ConfigError, SourceError
from geoseg.imagery.check import check_image, check_truncation
from geoseg.imagery.georef import working_grid
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.limits import Limits, check_file, limits
from geoseg.imagery.read import read_window
from geoseg.imagery.source import describe_raster

UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)
SPARE_MB = 300
"""What looking at a bomb may take beyond an honest small file."""


def create(path: Path, width: int, height: int, bands: int = 1, **options) -> Path:
    """Write the header of a GeoTIFF, and no pixel."""
    profile = {"driver": "GTiff", "dtype": "uint8", "crs": UTM, "transform": NORTH_UP}
    profile |= {"width": width, "height": height, "count": bands, "sparse_ok": True}
    with rasterio.open(path, "w", **(profile | options)):
        pass
    return path


def packed(path: Path, width: int, height: int, bands: int = 1, **options) -> Path:
    """Write a GeoTIFF of one zstd block of zeros in the upper left corner."""
    options = {"compress": "zstd", "interleave": "pixel", "sparse_ok": False} | options
    profile = {"driver": "GTiff", "dtype": "uint8", "crs": UTM, "transform": NORTH_UP}
    profile |= {"width": width, "height": height, "count": bands}
    with rasterio.open(path, "w", **(profile | options)) as dst:
        dst.write(np.zeros((bands, 8, min(width, 8_000)), np.uint8),
                  window=Window(0, 0, min(width, 8_000), 8))  # fmt: skip
    return path


def tiff(path: Path, *directories: dict[int, tuple[int, int, int]], tail: int = 0) -> Path:
    """Write a TIFF by hand: directories of tag -> (type, count, value), and a hole at the end."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    for i, entries in enumerate(directories):
        data += struct.pack("<H", len(entries))
        for tag, (kind, count, value) in sorted(entries.items()):
            data += struct.pack("<HHII", tag, kind, count, value)
        following = len(data) + 4 if i + 1 < len(directories) else 0
        data += struct.pack("<I", following)
    with path.open("wb") as out:
        out.write(data)
        out.truncate(len(data) + tail)
    return path


PLAIN = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
         273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, 64), 279: (4, 1, 4096)}  # fmt: skip


def jp2(path: Path, *, width: int, height: int, tile: tuple[int, int]) -> Path:
    """Write a small JPEG2000 file that claims other sizes."""
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", width=64, height=64, count=3, dtype="uint8", crs=UTM,
        transform=NORTH_UP,
    ) as dst:  # fmt: skip
        dst.write(np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    size, header = data.find(b"\xff\x51") + 6, data.find(b"ihdr") + 4
    struct.pack_into(">II", data, header, height, width)
    struct.pack_into(">IIII", data, size, width, height, 0, 0)
    struct.pack_into(">II", data, size + 16, *tile)
    path.write_bytes(data)
    return path


BOMBS = {
    "pixels": (
        lambda p: create(p / "a.tif", 1_000_000, 1_000_000, tiled=True, blockxsize=16_384,
                         blockysize=16_384, bigtiff="yes"),
        "1,000,000,000,000 in all; 250,000,000,000 pixels is the limit.*GEOSEG_MAX_PIXELS",
    ),
    "side": (
        lambda p: create(p / "a.tif", 20_000_000, 1, tiled=True, blockxsize=512, blockysize=512),
        "at most 10000000 px a side",
    ),
    "bands": (
        lambda p: create(p / "a.tif", 64, 64, 65_000, interleave="pixel"),
        "65,000 bands; 4,096 is the limit",
    ),
    "strip": (
        lambda p: packed(p / "a.tif", 60_000, 13_920, blockysize=13_920),
        "60000 x 13920 px, 835 MB unpacked.*128 MB is the limit.*GEOSEG_MAX_BLOCK_MB",
    ),
    "tile": (
        lambda p: packed(p / "a.tif", 16_384, 16_384, 3, tiled=True, blockxsize=16_384,
                         blockysize=16_384),
        "16384 x 16384 px, 805 MB unpacked",
    ),
    "ratio": (
        lambda p: packed(p / "a.tif", 8_000, 8_000, blockysize=8_000),
        "packs 64 MB into a block of .* bytes, 1 : .*10,000 is the limit",
    ),
    "blocks": (
        lambda p: tiff(p / "a.tif", PLAIN | {273: (4, 50_000_000, 8)}, tail=200_000_000),
        "50,000,000 blocks; 10,000,000 is the limit",
    ),
    "directories": (
        lambda p: tiff(p / "a.tif", *[PLAIN] * 1_030, tail=5_000),
        "than 1,024, which is the limit",
    ),
    "metadata": (
        lambda p: tiff(p / "a.tif", PLAIN | {42112: (2, 100_000_000, 8)}, tail=110_000_000),
        "100,000,000 bytes in its field 42112.*16 MB is the limit",
    ),
    "colour table": (
        lambda p: tiff(p / "a.tif", PLAIN | {320: (3, 50_000_000, 8)}, tail=110_000_000),
        "in its field 320",
    ),
    "control points": (
        lambda p: tiff(p / "a.tif", PLAIN | {33922: (12, 300_000, 8)}, tail=3_000_000),
        "50,000 ground control points; 20,000 is the limit",
    ),
    "jp2 tile": (
        lambda p: jp2(p / "a.jp2", width=100_000, height=100_000, tile=(100_000, 100_000)),
        "tiles of 100000 x 100000 px, for which every read needs 3,000 MB",
    ),
    "jp2 tiles": (
        lambda p: jp2(p / "a.jp2", width=65_535, height=64, tile=(1, 64)),
        "65,535 tiles of 3 bands; 16,666 is the limit",
    ),
}  # fmt: skip


def peak_mb(args: list[str], folder: Path) -> tuple[int, float, str]:
    """Run a verb in a process that cannot have more than 4 GB; return code, peak and stderr."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "from geoseg.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        # getrusage would count what the process was forked from
        "status = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
        "print('PEAK', int(status['VmHWM'].split()[0]) // 1024)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, env=environment(), capture_output=True,
        text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30)),
    )  # fmt: skip
    peak = float(done.stdout.rpartition("PEAK ")[2].split()[0])
    return done.returncode, peak, done.stdout + done.stderr


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_name_of_the_limit(tmp_path, name, capsys):
    make, message = BOMBS[name]
    path = make(tmp_path)
    with pytest.raises(SourceError, match=message):
        describe_raster(path)
    report = check_image(path)
    assert report.state == "unusable"
    assert main(["plan", str(path), "--no-probe"]) == 2
    said = capsys.readouterr().err
    assert "limit" in said or "at most" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", ["check", "plan", "detect"])
def test_bombs_take_little_memory(tmp_path, make_raster, verb):
    """All of them in one process, beside what an honest file takes."""
    paths = []
    for name, (make, _) in BOMBS.items():
        folder = tmp_path / "bombs" / name.replace(" ", "_")
        folder.mkdir(parents=True)
        paths.append(str(make(folder)))
    more = {"plan": ["--no-probe"], "detect": ["-o", "out.gpkg"]}.get(verb, [])
    honest = str(make_raster(crs=None))
    _, usual, _ = peak_mb([verb, honest, *more], tmp_path)
    code, peak, said = peak_mb([verb, *paths, *more], tmp_path)
    assert code == (1 if verb == "check" else 2), said
    assert peak < usual + SPARE_MB, f"{peak} MB, {usual} MB for an honest file"


@pytest.mark.parametrize("suffix", [".msk", ".ovr", ".msk.ovr"])
def test_masks_and_overviews_are_looked_at_too(make_raster, tmp_path, suffix):
    path = make_raster(width=4_000, height=4_000)
    packed(tmp_path / "bomb.tif", 60_000, 13_920, blockysize=13_920).rename(f"{path}{suffix}")
    with pytest.raises(SourceError, match=rf"{suffix} is stored in blocks of 60000 x 13920"):
        describe_raster(path)


def test_a_directory_behind_the_first_is_looked_at_too(tmp_path):
    bomb = PLAIN | {254: (4, 1, 4), 256: (4, 1, 60_000), 257: (4, 1, 60_000), 259: (3, 1, 8)}
    path = tiff(tmp_path / "a.tif", PLAIN, bomb | {278: (4, 1, 60_000)}, tail=5_000)
    with pytest.raises(SourceError, match="60000 x 60000 px, 3,600 MB"):
        check_file(path)


def test_notes_beside_an_image_are_bounded(make_raster):
    path = make_raster()
    with Path(f"{path}.aux.xml").open("wb") as out:
        out.truncate(17_000_000)
    with pytest.raises(SourceError, match=r"aux.xml has 17,000,000 bytes; 16 MB"):
        describe_raster(path)


def test_the_largest_raster_that_must_work_does(tmp_path, capsys):
    """160 gigapixels: described, planned, and read in its far corner."""
    path = create(tmp_path / "a.tif", 400_000, 400_000, 3, tiled=True, blockxsize=512,
                  blockysize=512, bigtiff="yes")  # fmt: skip
    info = describe_raster(path)
    assert (info.width, info.height) == (400_000, 400_000)
    grid = working_grid(info, None)
    pixels, valid = read_window(info, grid, Window(399_936, 399_936, 64, 64), (1, 2, 3))
    assert (pixels.shape, bool(valid.all())) == ((3, 64, 64), True)
    assert TileGrid(info.height, info.width, 768, 192, 3072).n_supertiles > 10_000
    assert check_image(path).state == "ok"
    # all of it is black, which is refused otherwise
    assert main(["plan", str(path), "--no-probe", "--force"]) == 0
    assert "400000" in capsys.readouterr().out.replace(",", "")


def test_many_blocks_within_the_limit_need_little_memory(tmp_path):
    """Nine million strips: 36 MB of list in the file, twice."""
    n = 9_000_000
    path = tiff(
        tmp_path / "a.tif",
        PLAIN | {257: (4, 1, n), 278: (4, 1, 1), 273: (4, n, 200), 279: (4, n, 200 + 4 * n)},
        tail=8 * n + 1_000,
    )
    report, peak, _ = peak_mb(["check", str(path)], tmp_path)
    assert report == 1
    assert peak < 450
    assert check_truncation(path).problem is None


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_blocks_of_other_formats_are_asked_too(tmp_path, driver, make_raster, monkeypatch):
    path = make_raster(f"a.{driver.lower()}", width=900, height=900, driver=driver)
    assert describe_raster(path).width == 900
    monkeypatch.setenv("GEOSEG_MAX_PIXELS", "800000")
    with pytest.raises(SourceError, match="810,000 in all; 800,000 pixels is the limit"):
        describe_raster(path)


def test_limits_can_be_raised_by_the_environment(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.tif", 16_384, 10_000, blockysize=10_000, compress="lzw")
    with pytest.raises(SourceError, match="GEOSEG_MAX_BLOCK_MB"):
        describe_raster(path)
    monkeypatch.setenv("GEOSEG_MAX_BLOCK_MB", "200")
    assert describe_raster(path).width == 16_384
    assert limits() == Limits(max_block_mb=200)


@pytest.mark.parametrize("text", ["-1", "0", "1e9", "many", "9" * 40, "\uff11", "1; rm -rf"])
def test_values_that_are_no_limits_are_refused(monkeypatch, text, make_raster):
    monkeypatch.setenv("GEOSEG_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match=r"GEOSEG_MAX_PIXELS is .*expected a whole number"):
        describe_raster(make_raster())


def test_empty_ground_that_packs_well_in_usual_blocks_is_no_bomb(tmp_path):
    path = packed(tmp_path / "a.tif", 20_000, 20_000, 3, tiled=True, blockxsize=2_048,
                  blockysize=2_048)  # fmt: skip
    assert describe_raster(path).width == 20_000


def test_what_is_no_image_or_cut_short_is_not_judged_here(tmp_path, make_raster):
    whole = make_raster(compress="deflate").read_bytes()
    for n in (0, 3, 8, 60, 150, len(whole) // 2):
        (tmp_path / "cut.tif").write_bytes(whole[:n])
        check_file(tmp_path / "cut.tif")
    check_file(tmp_path / "none.tif")
