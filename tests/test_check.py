from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoseg.cli.main import main
from geoseg.errors import SourceError
from geoseg.imagery import check
from geoseg.imagery.check import Expectation, Loss, check_image, check_images, check_truncation
from geoseg.imagery.source import create_raster, describe_raster, to_cog

TIFFS = [
    {},  # striped
    {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
    {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band"},
    {"compress": "jpeg", "photometric": "ycbcr", "tiled": True, "blockxsize": 64, "blockysize": 64},
    {"bigtiff": "yes", "compress": "zstd"},
    {"endianness": "big", "compress": "lzw"},
]


def blocks_that_read(path, shape):
    """Count the blocks that GDAL can read, the slow way."""
    with rasterio.open(path) as src:
        good = total = 0
        for band in [1] if src.interleaving.value == "PIXEL" else src.indexes:
            for _, window in src.block_windows(band):
                total += 1
                try:
                    src.read(band, window=window)
                    good += 1
                except rasterio.errors.RasterioIOError:
                    pass
    return good, total


@pytest.mark.parametrize("options", TIFFS)
@pytest.mark.parametrize("kept", [0.999, 0.6])
def test_lost_blocks_are_those_that_gdal_cannot_read(make_raster, options, kept):
    path = make_raster(height=512, width=512, **options)
    whole = check_truncation(path)
    assert (whole.lost, whole.lost_elsewhere, whole.problem) == (0, 0, None)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    report = check_truncation(path)
    good, total = blocks_that_read(path, (512, 512))
    assert report.blocks == total
    assert report.lost == total - good > 0
    assert report.needed_bytes <= len(data)
    assert report.problem is not None


def test_the_message_names_the_share_and_what_to_do(make_raster):
    path = make_raster("ortho.tif", np.zeros((100, 100), np.uint8), blockysize=1)
    data = path.read_bytes()
    path.write_bytes(data[:-3050])
    (problem,) = check_images([path])
    assert isinstance(problem, SourceError)
    assert str(problem) == (
        "ortho.tif is truncated: 31 % of its blocks lie past the end of the file "
        "(3,050 bytes are missing); copy it again"
    )


def test_one_missing_byte_is_found(make_raster):
    path = make_raster(height=512, width=512)
    path.write_bytes(path.read_bytes()[:-1])
    assert check_truncation(path).lost == 1
    assert "1 % of its blocks" in check_truncation(path).problem


def test_lost_masks_and_overviews_are_found(make_raster, tmp_path):
    # in a plain TIFF the overviews come last
    path = make_raster(height=512, width=512, overviews=(2, 4), tiled=True, compress="deflate")
    path.write_bytes(path.read_bytes()[:-50])
    report = check_truncation(path)
    assert report.lost == 0
    assert report.lost_elsewhere > 0
    assert "mask or overviews" in report.problem
    mask = np.random.default_rng(1).random((512, 512)) > 0.5
    beside = make_raster("beside.tif", height=512, width=512, mask=mask, external_mask=True)
    sidecar = tmp_path / "beside.tif.msk"
    assert check_images([beside]) == []
    sidecar.write_bytes(sidecar.read_bytes()[:-50])
    assert "beside.tif.msk is truncated" in str(check_images([beside])[0])


def test_a_truncated_cog_keeps_its_overviews(make_raster, tmp_path):
    to_cog(make_raster(height=1024, width=1024), tmp_path / "cog.tif", blocksize=128)
    data = (tmp_path / "cog.tif").read_bytes()
    (tmp_path / "cog.tif").write_bytes(data[: len(data) // 2])
    report = check_truncation(tmp_path / "cog.tif")
    assert 0.3 < report.share_lost < 0.9
    assert report.lost_elsewhere == 0


def test_sparse_blocks_are_no_loss(tmp_path, make_raster):
    with rasterio.open(make_raster()) as src:
        crs, transform = src.crs, src.transform
    path = tmp_path / "sparse.tif"
    shape = {"height": 4096, "width": 4096, "bands": 3, "dtype": "uint8"}
    with create_raster(path, crs=crs, transform=transform, **shape) as dst:
        dst.write(np.ones((3, 10, 10), np.uint8), window=rasterio.windows.Window(0, 0, 10, 10))
    report = check_truncation(path)
    assert (report.blocks, report.lost, report.problem) == (1, 0, None)


@pytest.mark.parametrize("size", [0, 3, 5, 8, 60, 200])
def test_a_file_cut_in_its_header_is_found(make_raster, size):
    path = make_raster(height=512, width=512)
    path.write_bytes(path.read_bytes()[:size])
    (problem,) = check_images([path])
    assert "truncated" in str(problem) or "not a raster" in str(problem) or "empty" in str(problem)


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_a_cut_png_or_jpeg_is_found(make_raster, driver):
    path = make_raster(driver=driver)
    assert check_truncation(path).problem is None
    path.write_bytes(path.read_bytes()[:-40])
    assert "its end is missing" in check_truncation(path).problem


def test_hostile_directories_neither_loop_nor_fill_the_memory(make_raster):
    path = make_raster()
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    after = first + 2 + 12 * entries
    loop = data.copy()
    loop[after : after + 4] = first.to_bytes(4, "little")  # the next directory is this one
    path.write_bytes(loop)
    assert check_truncation(path).problem is None
    many = data.copy()
    for at in range(first + 2, after, 12):
        if int.from_bytes(many[at : at + 2], "little") in (273, 279):
            many[at + 4 : at + 8] = b"\xff\xff\xff\xff"  # four billion strips
    path.write_bytes(many)
    assert check_truncation(path).header_lost


def test_check_images_reports_every_bad_file_and_no_good_one(make_raster, tmp_path):
    good, lost = make_raster("good.tif"), make_raster("lost.tif", crs=None)
    problems = check_images([lost, good, tmp_path / "none.tif"])
    assert ["has no CRS" in str(problems[0]), "no such file" in str(problems[1])] == [True, True]
    assert len(problems) == 2


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        check_truncation(tmp_path / "none.tif")


# Whole reports


EXPECTED = Expectation("roofs", gsd_m=0.1, bands=3)


def test_a_good_image_is_described(make_raster):
    path = make_raster(
        "good.tif", height=256, width=300, tiled=True, blockxsize=64, blockysize=128,
        compress="deflate", overviews=(2, 4), nodata=0,
    )  # fmt: skip
    report = check_image(path, EXPECTED)
    facts = report.facts
    assert (report.state, report.problems, report.notes, report.loss) == ("ok", (), (), None)
    assert (facts.width, facts.height, facts.bands, facts.dtype) == (300, 256, 3, "uint8")
    assert (facts.crs, facts.mask, facts.codec) == ("EPSG:32633", "nodata 0", "DEFLATE")
    assert (facts.block_shape, facts.overviews) == ((128, 64), (2, 4))
    assert facts.gsd_m == pytest.approx(0.1, rel=1e-3)
    assert facts.bounds == pytest.approx((500_000, 5_500_000 - 25.6, 500_030, 5_500_000))
    assert facts.file_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, "none"),
        ({"mask": np.eye(60, 80) == 0}, "internal"),
        ({"mask": np.eye(60, 80) == 0, "external_mask": True}, ".msk"),
        ({"bands": 4, "alpha": 4}, "alpha"),
        ({"nodata": 7}, "nodata 7"),
    ],
)
def test_the_kind_of_mask(make_raster, options, mask):
    assert check_image(make_raster(**options)).facts.mask == mask


def test_where_the_lost_part_lies(make_raster):
    # 10 strips of 10 rows; half of the bytes of the strip at rows 60-70 and all after it are gone
    path = make_raster(pixels=np.ones((100, 50), np.uint8), blockysize=10)
    offset = path.stat().st_size - 100 * 50
    path.write_bytes(path.read_bytes()[: offset + 65 * 50])
    report = check_image(path)
    assert report.state == "damaged"
    assert "40 % of its blocks" in report.problems[0]
    assert report.loss == Loss(
        0.4, 4, (60, 100), (0, 50), (500_000.0, 5_499_990.0, 500_005.0, 5_499_994.0)
    )


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_the_lost_window_of_tiles(make_raster, interleave):
    path = make_raster(
        height=200, width=300, tiled=True, blockxsize=64, blockysize=64, interleave=interleave
    )
    # the last tile: rows 192-200, columns 256-300
    path.write_bytes(path.read_bytes()[:-1])
    assert check_truncation(path).lost_window == (192, 200, 256, 300)


def test_truncation_is_found_at_once_without_reading_pixels(tmp_path, make_raster):
    # 4 GB that are not there, in 65,536 blocks
    path = make_raster(height=64, width=64, tiled=True, blockxsize=16, blockysize=16)
    with rasterio.open(
        path, "w", driver="GTiff", height=65_536, width=65_536, count=1, dtype="uint8",
        tiled=True, blockxsize=256, blockysize=256, bigtiff="yes", sparse_ok="no",
        crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6),
    ):  # fmt: skip
        pass
    whole = check_truncation(path)
    os.truncate(path, 3_000_000_000)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        report = check_truncation(path)
        seconds.append(time.perf_counter() - begun)
    assert (whole.blocks, whole.lost) == (65_536, 0)
    assert report.share_lost == pytest.approx(1 - 3e9 / 2**32, abs=1e-3)
    assert min(seconds) < 0.05


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"transform": Affine(0.3, 0, 5e5, 0, -0.3, 55e5)}, "3.0 times as coarse as model roofs"),
        ({"transform": Affine(0.02, 0, 5e5, 0, -0.02, 55e5)}, "5.0 times as fine as model roofs"),
        ({"dtype": "uint16"}, "pixels are uint16; model roofs knows 0 to 255"),
        ({"dtype": "float32"}, "pixels are float32, whose range no header tells"),
        ({"bands": 4}, "band 4 is not said to be alpha"),
        ({"compress": "jpeg", "nodata": 0}, "does not keep nodata 0 exactly"),
        ({"bands": 4, "alpha": 4}, "band 4 is tagged as alpha but holds an image"),
    ],
)
def test_what_may_spoil_the_result(make_raster, caplog, options, note):
    report = check_image(make_raster(**options), EXPECTED)
    assert report.state == "ok"
    assert sum(note in n for n in report.notes) == 1, report.notes
    assert caplog.records == []


def test_a_huge_striped_file_without_overviews(tmp_path):
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "sparse_ok": True}
    transform = Affine(0.1, 0, 5e5, 0, -0.1, 55e5)
    with rasterio.open(
        path, "w", width=20_000, height=6_000, crs="EPSG:32633", transform=transform, **profile
    ):
        pass
    assert any("-of COG" in note for note in check_image(path).notes)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"crs": None}, "has no CRS"),
        ({"bands": 1}, "has 1 band(s) but 3 are needed"),
        ({"transform": None}, "no transform"),
    ],
)
def test_what_detect_would_refuse(make_raster, options, problem):
    report = check_image(make_raster(**options), EXPECTED)
    assert (report.state, report.facts.width) == ("unusable", 80)
    assert problem in " ".join(report.problems)


def test_bands_can_be_chosen(make_raster):
    path = make_raster(bands=1)
    assert check_image(path, EXPECTED, bidx=(1, 1, 1)).state == "ok"
    assert "asks for band 2" in check_image(path, EXPECTED, bidx=(1, 1, 2)).problems[0]


def test_statistics_of_all_pixels(make_raster):
    pixels = np.full((2, 100, 100), 50, np.uint8)
    pixels[0, :10] = 0
    pixels[0, 10:15] = 255
    mask = np.ones((100, 100), bool)
    mask[:5] = False
    report = check_image(make_raster(pixels=pixels, mask=mask), statistics=True)
    first, second = report.statistics
    assert report.statistics_from == "all pixels"
    assert (first.min, first.max, first.invalid) == (0, 255, 0.05)
    assert (first.low, first.high) == pytest.approx((5 / 95, 5 / 95), abs=1e-6)
    assert first.mean == pytest.approx((5 * 255 + 85 * 50) / 95, abs=1e-3)
    assert (second.min, second.max, second.low, second.high) == (50, 50, 0, 0)


def test_statistics_of_floats_leave_out_what_is_no_number(make_raster):
    pixels = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(1, 100, 100)
    pixels[0, 0] = np.nan
    (band,) = check_image(make_raster(pixels=pixels), statistics=True).statistics
    assert (band.max, band.invalid, band.low, band.high) == (1, 0.01, None, None)


def test_statistics_come_from_an_overview_or_a_sample(make_raster, monkeypatch):
    pixels = np.tile(np.arange(2048) // 16, (1, 1500, 1)).astype(np.uint8)
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    small = make_raster("small.tif", pixels, overviews=(2, 4), **options)
    report = check_image(small, statistics=True)
    assert report.statistics_from == "overview 4"
    assert report.statistics[0].mean == pytest.approx(63.5, abs=0.2)
    monkeypatch.setattr(check, "_SAMPLE_VALUES", 200_000)
    report = check_image(make_raster("plain.tif", pixels, **options), statistics=True)
    n, of, total, blocks = report.statistics_from.split()
    assert (of, int(total), blocks) == ("of", 24 * 32, "blocks")
    assert 30 <= int(n) <= 48
    assert report.statistics[0].mean == pytest.approx(63.5, abs=3)


def test_values_that_show_nothing(make_raster):
    black = np.zeros((3, 60, 80), np.uint8)
    report = check_image(make_raster("black.tif", black), EXPECTED, statistics=True)
    assert any("100% of the valid pixels hold the smallest value" in n for n in report.notes)
    report = check_image(make_raster("none.tif", black, nodata=0), EXPECTED, statistics=True)
    assert any("no valid pixel" in n for n in report.notes)
    bright = np.full((3, 60, 80), 4000, np.uint16)
    report = check_image(make_raster("bright.tif", bright), EXPECTED, statistics=True)
    assert any("one value only (4000 4000 4000)" in n for n in report.notes)
    deep = np.linspace(0, 4000, 3 * 60 * 80).reshape(3, 60, 80).astype(np.uint16)
    report = check_image(make_raster("deep.tif", deep), EXPECTED, statistics=True)
    assert any(
        re.search(r"scaled: 79\S* to 39\d\d\S* become 25.5 to 229.5", n) for n in report.notes
    ), report.notes
    path = make_raster("raw.tif", deep)
    report = check_image(path, EXPECTED, statistics=True, scale="none")
    assert any("values reach 4000" in n for n in report.notes)


def test_reading_finds_bytes_that_changed(make_raster):
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = make_raster(height=256, width=256, overviews=(2,), **options)
    seen = []
    report = check_image(path, read=True, progress=lambda *counts: seen.append(counts))
    assert (report.state, report.blocks_read) == ("ok", 16 + 4)
    assert seen[-1] == (20, 20)
    with rasterio.open(path) as src:
        at = int(src.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[at + 20 : at + 60] = bytes(40)
    path.write_bytes(data)
    assert check_image(path).state == "ok"
    report = check_image(path, read=True)
    assert report.state == "damaged"
    assert "1 of 16 blocks do not decode, rows 64-128, cols 128-192" in report.problems[0]
    assert (report.loss.share, report.loss.rows) == (1 / 16, (64, 128))


def test_where_pixels_are_valid(make_raster):
    mask = np.zeros((1200, 1600), bool)
    mask[600:, 800:] = True
    pixels = np.where(mask, 9, 0).astype(np.uint8)[None]
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    for name, more in (
        ("nodata.tif", {"nodata": 0}),
        ("mask.tif", {"mask": mask}),
        ("overviews.tif", {"nodata": 0, "overviews": (2, 4)}),
    ):
        seen = check.map_validity(
            describe_raster(make_raster(name, pixels, **options, **more)), (1,)
        )
        rows, cols = seen.shape
        assert seen.mean() == pytest.approx(0.25, abs=0.02)
        assert seen[rows * 3 // 4, cols * 3 // 4]
        assert not seen[:, : cols // 2 - 1].any()
    assert check.map_validity(describe_raster(make_raster("all.tif", pixels)), (1,)).all()


# The verb


def run(capsys, *arguments):
    code = main(["check", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return code, said.out, said.err


def test_every_file_is_reported_whatever_ails_the_others(capsys, make_raster, tmp_path):
    make_raster("a.tif")
    make_raster("b.tif", crs=None)
    cut = make_raster("c.tif", height=512, width=512)
    cut.write_bytes(cut.read_bytes()[:-1000])
    (tmp_path / "d.tif").write_bytes(b"")
    (tmp_path / "e.csv").write_text("no raster", encoding="utf-8")
    (tmp_path / "vrt.tif").write_text("<VRTDataset/>", encoding="utf-8")
    args = [tmp_path, tmp_path / "e.csv", tmp_path / "none.tif", "/vsicurl/x.tif", "y" * 5000]
    code, out, err = run(capsys, *args)
    assert (code, err) == (1, "")
    assert "9 file(s): 1 ok, 1 damaged, 7 unusable" in out
    for text in ("has no CRS", "the file is empty", "is not a raster", "is a VRT", "no such file"):
        assert text in out, text
    assert "lost of c.tif:" in out
    code, out, _ = run(capsys, *args, "--json", "--statistics", "--read")
    reports = {Path(r["path"]).name: r for r in json.loads(out)}
    assert code == 1
    assert len(reports) == 9
    assert [reports[f"{n}.tif"]["state"] for n in "abc"] == ["ok", "unusable", "damaged"]
    assert len(reports["a.tif"]["statistics"]) == 3


def test_only_good_files_are_0(capsys, make_raster):
    code, out, _ = run(capsys, make_raster("a.tif"), make_raster("b.tif"), "--statistics")
    assert code == 0
    assert "2 file(s): 2 ok, 0 damaged, 0 unusable" in out
    assert "all pixels" in out


def test_names_that_mean_harm_stay_text(capsys, make_raster, tmp_path):
    make_raster("a.tif").rename(tmp_path / "a\x1b[31m\nred.tif")
    make_raster("b.tif").rename(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.tif"))
    code, out, _ = run(capsys, tmp_path)
    assert code == 1
    assert "\x1b" not in out
    assert "a\\x1b[31m\\nred.tif" in out
    assert "not valid UTF-8; rename it" in out
    assert "2 file(s): 1 ok, 0 damaged, 1 unusable" in out
    code, out, _ = run(capsys, tmp_path, "--json")
    assert [r["state"] for r in json.loads(out)] == ["ok", "unusable"]


def test_the_bounds_of_a_rotated_raster_hold_all_corners(make_raster):
    turned = Affine.translation(5e5, 55e5) @ Affine.rotation(30) @ Affine.scale(1, -1)
    left, bottom, right, top = check_image(make_raster(transform=turned)).facts.bounds
    assert right - left == pytest.approx(80 * np.cos(np.pi / 6) + 60 * np.sin(np.pi / 6))
    assert top - bottom == pytest.approx(80 * np.sin(np.pi / 6) + 60 * np.cos(np.pi / 6))


def test_an_unknown_model_is_the_users_mistake(capsys, make_raster):
    code, _, err = run(capsys, make_raster(), "--model", "nope")
    assert code == 2
    assert "unknown model 'nope'" in err


ODD = Path(__file__).parents[2] / "shared" / "data" / "odd"


@pytest.mark.skipif(not ODD.is_dir(), reason="needs the odd files beside the repository")
def test_odd_files_from_elsewhere(capsys):
    code, out, _ = run(capsys, *sorted(ODD.iterdir()), "--statistics", "--json")
    reports = json.loads(out)
    assert code == 1
    assert len(reports) == len(list(ODD.iterdir()))
    assert {r["state"] for r in reports if "truncated" in r["path"]} == {"damaged"}
