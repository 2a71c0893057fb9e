from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import NORTH_UP
from rasterio.windows import Window

from geoseg.errors import SourceError, TileError
from geoseg.imagery import read
from geoseg.imagery.georef import working_grid
from geoseg.imagery.grid import TileGrid
from geoseg.imagery.read import (
    cut_tiles,
    open_reader,
    read_overview,
    read_supertile,
    read_view,
    read_window,
)
from geoseg.imagery.source import describe_raster, to_cog

RGB = (1, 2, 3)


def whole(grid) -> Window:
    return Window(0, 0, grid.width, grid.height)


# --- native ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_native_windows_are_the_stored_pixels(make_raster, dtype):
    path = make_raster(dtype=dtype)
    info = describe_raster(path)
    pixels, valid = read_window(info, working_grid(info, None), Window(5, 7, 30, 20), (3, 1))
    with rasterio.open(path) as src:
        assert np.array_equal(pixels, src.read([3, 1])[:, 7:27, 5:35])
    assert pixels.dtype == dtype
    assert valid.all()


def test_what_reaches_past_the_raster_is_invalid_and_zero(make_raster):
    info = describe_raster(make_raster())
    grid = working_grid(info, None)
    pixels, valid = read_window(info, grid, Window(-3, 50, 100, 20), RGB)
    inside = np.zeros((20, 100), bool)
    inside[:10, 3:83] = True
    assert np.array_equal(valid, inside)
    assert (pixels[:, ~inside] == 0).all()
    assert (pixels[:, inside] > 0).all()
    pixels, valid = read_window(info, grid, Window(500, 500, 9, 9), RGB)
    assert not valid.any()
    assert not pixels.any()


def test_float64_is_read_as_float32(make_raster):
    stored = np.full((3, 9, 9), 0.25)
    stored[:, 0, 0] = -1.7976931348623157e308
    stored[:, 0, 1] = 1e200
    info = describe_raster(make_raster(pixels=stored, nodata=-1.7976931348623157e308))
    pixels, valid = read_window(info, working_grid(info, None), Window(0, 0, 9, 9), RGB)
    assert pixels.dtype == np.float32
    assert np.argwhere(~valid).tolist() == [[0, 0], [0, 1]]
    assert set(np.unique(pixels)) == {0, 0.25}


# --- validity ----------------------------------------------------------------------------------

HOLE = np.zeros((60, 80), bool)
HOLE[10:20, 30:50] = True


def image(dtype: str, inside: float, bands: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(4).integers(1, 200, (bands, 60, 80)).astype(dtype)
    pixels[:, HOLE] = inside
    return pixels


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels, np.where(HOLE, 0, 255).astype(pixels.dtype)[None]])


SOURCES = {
    "nodata 0": {"pixels": image("uint8", 0), "nodata": 0},
    "nodata 65535": {"pixels": image("uint16", 65_535), "nodata": 65_535},
    "nodata -9999": {"pixels": image("int16", -9999), "nodata": -9999},
    "nodata float": {"pixels": image("float32", -3.4e38), "nodata": -3.4e38},
    "nodata nan": {"pixels": image("float32", np.nan), "nodata": np.nan},
    "undeclared nan": {"pixels": image("float32", np.nan)},
    "undeclared inf": {"pixels": image("float32", -np.inf)},
    "internal mask": {"pixels": image("uint8", 9), "mask": ~HOLE},
    "mask beside": {"pixels": image("uint8", 9), "mask": ~HOLE, "external_mask": True},
    "alpha": {"pixels": with_alpha(image("uint8", 9)), "alpha": 4},
    "alpha and nodata": {"pixels": with_alpha(image("uint8", 9)), "alpha": 4, "nodata": 250},
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("gsd", [None, 0.134, 0.061])
def test_every_source_of_validity_is_honoured(make_raster, name, gsd):
    info = describe_raster(make_raster(**SOURCES[name]))
    grid = working_grid(info, gsd)
    pixels, valid = read_window(info, grid, whole(grid), RGB)
    # the centre of a grid pixel decides, but for those within a pixel of the hole's edge
    rows = (np.arange(grid.height) + 0.5) * grid.scale_y
    cols = (np.arange(grid.width) + 0.5) * grid.scale_x
    near = np.max(np.broadcast_arrays(abs(rows[:, None] - 15) - 5, abs(cols[None] - 40) - 10), 0)
    assert not valid[near < -0.6].any()
    assert valid[near > 0.6].all()
    assert (~valid).mean() == pytest.approx(HOLE.mean(), rel=0.15)
    assert (pixels[:, ~valid] == 0).all()
    assert np.isfinite(pixels).all()
    assert pixels[:, valid].min() >= 1
    assert pixels[:, valid].max() < 200


def test_one_black_band_is_a_colour_but_one_band_of_minus_9999_is_not(make_raster):
    pixels = np.full((3, 60, 80), 90, np.uint8)
    pixels[0, 5, 5] = 0
    info = describe_raster(make_raster("a.tif", pixels, nodata=0))
    assert read_window(info, working_grid(info, None), Window(5, 5, 1, 1), RGB)[1].all()
    pixels = pixels.astype(np.float32)
    pixels[0, 5, 5] = -9999
    info = describe_raster(make_raster("b.tif", pixels, nodata=-9999))
    assert not read_window(info, working_grid(info, None), Window(5, 5, 1, 1), RGB)[1].any()


def test_a_band_that_is_read_is_no_mask(make_raster):
    info = describe_raster(make_raster(**SOURCES["alpha"]))
    grid = working_grid(info, None)
    assert not read_window(info, grid, whole(grid), (1, 2, 3))[1].all()
    assert read_window(info, grid, whole(grid), (4, 1, 2))[1].all()


# --- resampled ---------------------------------------------------------------------------------

GSDS = [0.15, 0.13, 0.132 * 0.13 / 0.074, 0.2, 0.061, 0.45, 1.1]


def windows(grid, n: int = 12):
    rng = np.random.default_rng(9)
    for _ in range(n):
        height, width = rng.integers(1, grid.height + 1), rng.integers(1, grid.width + 1)
        yield Window(
            int(rng.integers(-5, grid.width - width + 6)),
            int(rng.integers(-5, grid.height - height + 6)),
            int(width),
            int(height),
        )


@pytest.mark.parametrize("gsd", GSDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_grid_pixel_has_one_value_whatever_window_it_is_read_in(
    make_raster, gsd, dtype, monkeypatch
):
    mask = np.random.default_rng(1).random((330, 410)) > 0.02
    mask[100:150] = False
    mask[200:] = True
    path = make_raster(
        height=330, width=410, dtype=dtype, mask=mask, overviews=(2, 4, 8), tiled=True,
        blockxsize=64, blockysize=64, transform=Affine(0.132, 0, 5e5, 0, -0.132, 55e5),
    )  # fmt: skip
    info = describe_raster(path)
    grid = working_grid(info, gsd)
    pixels, valid = read_window(info, grid, whole(grid), RGB)
    assert valid.any()
    # strips of a few rows must not show either
    monkeypatch.setattr("geoseg.imagery.read._STRIP_PX", 3000)
    with open_reader(info, grid, RGB) as reader:
        for window in windows(grid):
            part, part_valid = reader.read(window)
            y, x = window.row_off, window.col_off
            y1, x1 = min(y + window.height, grid.height), min(x + window.width, grid.width)
            own = (slice(max(-y, 0), y1 - y), slice(max(-x, 0), x1 - x))
            there = (slice(max(y, 0), y1), slice(max(x, 0), x1))
            assert np.array_equal(part[:, *own], pixels[:, *there])
            assert np.array_equal(part_valid[own], valid[there])


def painted(height: int, width: int) -> np.ndarray:
    """Two discs and a bar of known place on grey."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.full((3, height, width), 60, np.uint8)
    pixels[:, (x - 100) ** 2 + (y - 60) ** 2 < 20**2] = 200
    pixels[:, (x - 300) ** 2 + (y - 150) ** 2 < 30**2] = 200
    return pixels


@pytest.mark.parametrize("gsd", [None, 0.12, 0.25, 0.42, 0.9, 0.07])
@pytest.mark.parametrize("overviews", [(), (2, 4)])
@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.1, 0, 5e5, 0, -0.1, 55e5),
        Affine(0.1, 0, 5e5, 0, 0.1, 55e5),
        Affine.translation(5e5, 55e5) @ Affine.rotation(25) @ Affine.scale(0.1, -0.1),
    ],
    ids=["north-up", "south-up", "rotated"],
)
def test_things_stay_where_they_are(make_raster, gsd, overviews, transform):
    info = describe_raster(
        make_raster(pixels=painted(241, 403), transform=transform, overviews=overviews)
    )
    grid = working_grid(info, gsd)
    pixels, _ = read_window(info, grid, whole(grid), RGB)
    weight = (pixels[0].astype(float) - 60) / 140
    y, x = np.mgrid[: grid.height, : grid.width] + 0.5
    for col, row, radius in ((100, 60, 20), (300, 150, 30)):
        near = np.hypot(x * grid.scale_x - col, y * grid.scale_y - row) < radius + 15
        share = weight * near
        centre = (x * share).sum() / share.sum(), (y * share).sum() / share.sum()
        # half a pixel, of the raster or of the grid, would be ten times too much; GDAL averages an
        # overview of an odd size with borders rounded to whole pixels
        found, wanted = grid.transform @ centre, info.transform @ (col, row)
        assert (
            np.hypot(found[0] - wanted[0], found[1] - wanted[1])
            < max(0.05, 0.02 * grid.scale_x) * 0.1
        )
        area = share.sum() * abs(grid.transform.determinant)
        assert area == pytest.approx(np.pi * (radius * 0.1) ** 2, rel=0.01)


def test_overviews_are_used_only_where_enough_reduction_is_left(make_raster):
    path = make_raster(height=256, width=256, overviews=(2, 4))
    info = describe_raster(path)

    def source_height(factor: float) -> int:
        with open_reader(info, working_grid(info, info.gsd_m * factor), RGB) as reader:
            return reader._src.height

    assert [source_height(f) for f in (1, 2, 3.9, 4.01, 7.5, 8.1)] == [256, 256, 256, 128, 128, 64]


@pytest.mark.parametrize("external_mask", [False, True])
def test_a_mask_without_overviews_is_honoured(make_raster, external_mask):
    mask = np.ones((256, 256), bool)
    mask[:100] = False
    path = make_raster(height=256, width=256, overviews=(2, 4))
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not external_mask),
        rasterio.open(path, "r+") as dst,
    ):
        dst.write_mask(mask)
    info = describe_raster(path)
    grid = working_grid(info, info.gsd_m * 4)
    _, valid = read_window(info, grid, whole(grid), RGB)
    assert np.array_equal(valid, np.repeat((np.arange(64) >= 25)[:, None], 64, axis=1))


def test_a_cog_reads_as_its_source(make_raster, tmp_path):
    path = make_raster(height=700, width=900)
    to_cog(path, tmp_path / "cog.tif", blocksize=128)
    a, b = describe_raster(path), describe_raster(tmp_path / "cog.tif")
    for gsd in (None, 0.137):
        grid = working_grid(a, gsd)
        one, two = (read_window(i, grid, Window(50, 60, 300, 200), RGB) for i in (a, b))
        assert np.array_equal(one[0], two[0])


def test_a_pixel_of_one_by_one_can_be_read(make_raster):
    info = describe_raster(make_raster(height=1, width=1))
    for gsd in (None, 0.05, 1.0):
        grid = working_grid(info, gsd)
        pixels, valid = read_window(info, grid, whole(grid), RGB)
        assert valid.all()
        assert len(np.unique(pixels[0])) == 1


# --- supertiles --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "gsd"), [((60, 80), None), ((330, 410), 0.13), ((20, 300), None)])
def test_tiles_of_supertiles_are_the_windows_of_the_raster(make_raster, size, gsd):
    info = describe_raster(make_raster(height=size[0], width=size[1]))
    grid = working_grid(info, gsd)
    tiling = TileGrid(grid.height, grid.width, 64, 16, 130)
    seen = np.zeros((grid.height, grid.width), int)
    for supertile in tiling.supertiles():
        read = read_supertile(info, grid, supertile, RGB)
        assert read.window == supertile.window
        batch = cut_tiles(read.pixels, read.valid, supertile, supertile.tiles)
        assert batch.pixels.shape == (len(supertile.tiles), 3, 64, 64)
        for tile, pixels, valid in zip(supertile.tiles, batch.pixels, batch.valid, strict=True):
            expected, expected_valid = read_window(info, grid, tile.window, RGB)
            assert np.array_equal(pixels, expected)
            assert np.array_equal(valid, expected_valid)
            core = tile.core
            rows = slice(core.row_off, core.row_off + core.height)
            seen[rows, core.col_off : core.col_off + core.width] += 1
    assert (seen == 1).all()


def test_tiles_own_their_pixels(make_raster):
    info = describe_raster(make_raster())
    grid = working_grid(info, None)
    supertile = TileGrid(60, 80, 32, 8, 64).supertile(0, 0)
    read = read_supertile(info, grid, supertile, RGB)
    batch = cut_tiles(read.pixels, read.valid, supertile, supertile.tiles[:2])
    before = read.pixels.copy()
    batch.pixels[:] = 0
    assert np.array_equal(read.pixels, before)


def test_a_damaged_block_names_its_place(make_raster):
    path = make_raster(height=512, width=512, compress="deflate", tiled=True)
    path.write_bytes(path.read_bytes()[:-2000])
    info = describe_raster(path)
    grid = working_grid(info, None)
    assert read_window(info, grid, Window(0, 0, 99, 99), RGB)[1].all()
    with pytest.raises(TileError, match=r"rows 400-512, cols 300-512 of image.tif: .*geoseg check"):
        read_window(info, grid, Window(300, 400, 212, 112), RGB)


# --- pictures ----------------------------------------------------------------------------------


def test_read_overview_keeps_a_small_uint8_image_as_it_is(make_raster):
    path = make_raster()
    rgb, transform, valid = read_overview(path, 100)
    with rasterio.open(path) as src:
        assert np.array_equal(np.moveaxis(rgb, -1, 0), src.read())
        assert transform == src.transform
    assert valid.all()


@pytest.mark.parametrize("name", ["alpha", "internal mask", "nodata -9999", "undeclared nan"])
def test_read_overview_shrinks_stretches_and_masks(make_raster, name):
    path = make_raster(**SOURCES[name])
    info = describe_raster(path)
    rgb, transform, valid = read_overview(path, 40)
    assert rgb.shape == (30, 40, 3)
    assert rgb.dtype == np.uint8
    assert transform @ (40, 30) == pytest.approx(info.transform @ (80, 60))
    assert not valid[6:9, 16:24].any()
    assert valid.mean() > 0.9
    assert (rgb[~valid] == 0).all()
    if name not in {"alpha", "internal mask"}:
        assert rgb.max() == 255


def test_read_overview_shows_one_band_as_grey(make_raster):
    rgb, _, _ = read_overview(make_raster(bands=1, dtype="uint16"), 50)
    assert (rgb[..., 0] == rgb[..., 2]).all()
    assert rgb.std() > 10


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        # (left, top, right, bottom) in px of a raster of 80 x 60
        ((10, 20, 30, 50), (10, 20, 30, 50)),
        # half a pixel more on each side: whole pixels
        ((9.5, 19.5, 30.5, 50.5), (9, 19, 31, 51)),
        # what lies off the raster is left out
        ((-100, 40, 20, 500), (0, 40, 20, 60)),
        ((-9, -9, 999, 999), (0, 0, 80, 60)),
    ],
)
def test_read_view_reads_the_part_and_knows_where_it_lies(make_raster, bounds, expected):
    path = make_raster()
    pixels, transform, valid = read_view(path, on_ground(*bounds), 1000)
    left, top, right, bottom = expected
    with rasterio.open(path) as src:
        stored = np.moveaxis(src.read(), 0, -1)
    assert (pixels == stored[top:bottom, left:right]).all()
    assert valid.all()
    assert transform.almost_equals(NORTH_UP @ Affine.translation(left, top), 1e-6)


def on_ground(left, top, right, bottom):
    (x0, y1), (x1, y0) = NORTH_UP @ (left, top), NORTH_UP @ (right, bottom)
    return x0, y0, x1, y1


def test_read_view_shrinks_the_part(make_raster):
    pixels = np.zeros((3, 120, 160), np.uint8)
    pixels[:, 40:80, 40:120] = 200
    mask = np.ones((120, 160), bool)
    mask[60:, :] = False
    path = make_raster(pixels=pixels, mask=mask)
    rgb, transform, valid = read_view(path, on_ground(40, 40, 120, 80), 20)
    assert rgb.shape == (10, 20, 3)
    assert (rgb[:5] == 200).all()
    assert (rgb[5:] == 0).all()
    assert valid[:5].all()
    assert not valid[5:].any()
    # four px of the raster in one of the picture
    assert transform.almost_equals(NORTH_UP @ Affine.translation(40, 40) @ Affine.scale(4), 1e-6)


def test_read_view_encloses_the_bounds_on_a_rotated_raster(make_raster):
    turned = NORTH_UP @ Affine.rotation(30)
    path = make_raster(transform=turned, height=100, width=100)
    corners = np.array([turned @ (c, r) for c, r in ((40, 40), (40, 50), (50, 40), (50, 50))])
    bounds = (*corners.min(axis=0), *corners.max(axis=0))
    pixels, transform, _ = read_view(path, bounds, 1000)
    height, width = pixels.shape[:2]
    assert 18 <= height <= 20
    assert 18 <= width <= 20
    for x in bounds[::2]:
        for y in bounds[1::2]:
            col, row = ~transform @ (x, y)
            assert -1e-3 <= col <= width + 1e-3
            assert -1e-3 <= row <= height + 1e-3


@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        ((0, 0, 1, 1), r"lie off image.tif, which covers 500000,5499994,500008,5500000"),
        ((500_005, 5_499_996, 500_001, 5_499_999), "hold no area"),
        ((500_000, float("nan"), 500_001, 5_499_999), "hold no area"),
        ((float("-inf"), 0, float("inf"), 1), "hold no area"),
    ],
)
def test_read_view_refuses_bounds_that_show_nothing(make_raster, bounds, match):
    with pytest.raises(SourceError, match=match):
        read_view(make_raster(), bounds, 100)


def test_a_raster_that_changed_bands_is_a_tile_error(make_raster):
    info = replace(describe_raster(make_raster()), bands=9)
    with pytest.raises(TileError, match="cannot read"):
        read_window(info, working_grid(info, None), Window(0, 0, 9, 9), (9,))


@pytest.mark.parametrize("dtype", ["int64", "uint64", "uint8", "int16"])
def test_the_largest_value_of_a_type_is_met_as_nodata(dtype):
    largest = np.iinfo(dtype).max
    pixels = np.array([[[1, largest]]], dtype)
    assert read._present(pixels, (float(largest),)).tolist() == [[True, False]]


@pytest.mark.parametrize("text", ["-3.40282e+38", "-3.4028235e+38", "-3.40282346600000016e+38"])
def test_the_lowest_float_is_nodata_in_whatever_digits_it_is_declared(text):
    pixels = np.array([[[-3.4e38, np.finfo(np.float32).min, -1e30, 0.5]]], np.float32)
    assert read._present(pixels, (float(text),)).tolist() == [[True, False, True, True]]


def test_an_index_past_the_palette_is_no_data(make_raster):
    pixels = np.array([[[0, 1], [2, 255]]], np.uint8).repeat(4, 1).repeat(4, 2)
    path = make_raster("palette.png", pixels, driver="PNG", colors=None)
    info = replace(describe_raster(path), palette=((1, 2, 3, 255), (4, 5, 6, 255), (9, 9, 9, 0)))
    info = replace(info, bands=3, colors=("red", "green", "blue"))
    grid = working_grid(info, None)
    rgb, valid = read.read_window(info, grid, Window(0, 0, 8, 8), (3, 2, 1))
    assert rgb[:, 0, 0].tolist() == [3, 2, 1]
    assert rgb[:, 0, 7].tolist() == [6, 5, 4]
    assert not valid[4:].any()
    assert not rgb[:, 4:].any()
    assert valid[:4].all()
