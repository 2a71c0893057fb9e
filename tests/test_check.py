from __future__ import annotations

import numpy as np
import pytest
import rasterio

from geoseg.errors import SourceError
from geoseg.imagery.check import check_images, check_truncation
from geoseg.imagery.source import create_raster, to_cog

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
