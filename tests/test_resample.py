from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.imagery.resample import axis_kernel, resample


def resample_all(pixels, height, width, valid=None):
    valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
    rows = axis_kernel(0, height, pixels.shape[1], height)
    cols = axis_kernel(0, width, pixels.shape[2], width)
    return resample(
        pixels[:, rows.start : rows.stop, cols.start : cols.stop],
        valid[rows.start : rows.stop, cols.start : cols.stop],
        rows,
        cols,
    )


@given(st.integers(1, 200), st.integers(1, 200))
def test_weights_sum_to_one_and_taps_stay_inside(source, grid):
    kernel = axis_kernel(0, grid, source, grid)
    assert np.allclose(kernel.weights.sum(axis=1), 1)
    assert kernel.taps.min() == kernel.start >= 0
    assert kernel.taps.max() + 1 == kernel.stop <= source
    assert (kernel.weights >= 0).all()


@given(st.integers(1, 300), st.integers(2, 300), st.data())
def test_a_grid_pixel_has_the_same_taps_in_every_window(source, grid, data):
    start = data.draw(st.integers(0, grid - 1))
    stop = data.draw(st.integers(start + 1, grid))
    whole, part = axis_kernel(0, grid, source, grid), axis_kernel(start, stop, source, grid)
    assert np.array_equal(whole.taps[start:stop], part.taps)
    assert np.array_equal(whole.weights[start:stop], part.weights)


@pytest.mark.parametrize("length", [37, 100, 88, 50, 200, 263])
def test_a_ramp_stays_where_it_is(length):
    # the taps of a triangle wander by up to 0.07 px with the phase, as Pillow's do, but not in the
    # mean: a shift of the whole by a hundredth of a pixel would show
    x = np.arange(100) + 0.5
    ramp = np.broadcast_to(x, (1, 5, 100)).astype(np.float32)
    out, _ = resample_all(ramp, 5, length)
    expected = (np.arange(length) + 0.5) * 100 / length
    inside = slice(length // 20 + 1, -(length // 20) - 1)
    off = out[0, 2, inside] - expected[inside]
    assert abs(off).max() < 0.08
    assert abs(off.mean()) < 0.005


@pytest.mark.parametrize("shape", [(31, 44), (90, 71), (60, 160)])
def test_values_are_those_of_pillow(shape):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(5).uniform(0, 255, (1, 60, 80)).astype(np.float32)
    out, _ = resample_all(pixels, *shape)
    expected = image.fromarray(pixels[0]).resize(shape[::-1], image.Resampling.BILINEAR)
    assert np.allclose(out[0], np.asarray(expected), atol=0.01)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_a_flat_image_stays_flat_and_keeps_its_dtype(dtype):
    value = {"uint8": 255, "uint16": 65_535, "int16": -32_768, "int32": 2**31 - 1}.get(dtype, 0.1)
    out, valid = resample_all(np.full((2, 40, 40), value, dtype), 33, 71)
    assert out.dtype == dtype
    assert valid.all()
    assert np.allclose(out, value, rtol=1e-6, atol=0)


def test_invalid_pixels_do_not_bleed_into_valid_ones():
    valid = np.ones((40, 40), bool)
    valid[:, :20] = False
    pixels = np.where(valid, 200, 0).astype(np.uint8)[None]
    out, out_valid = resample_all(pixels, 27, 27, valid)
    assert set(np.unique(out[0])) == {0, 200}
    assert np.array_equal(out[0] == 200, out_valid)
    # 20 of 40 columns are 13.5 of 27: the pixel in the middle holds half of each
    assert out_valid.sum(axis=1).tolist() == [14] * 27


def test_pixels_far_from_invalid_ones_do_not_feel_them():
    pixels = np.random.default_rng(2).integers(0, 255, (3, 60, 60), np.uint8)
    valid = np.ones((60, 60), bool)
    valid[:10, :10] = False
    plain, _ = resample_all(pixels, 43, 43)
    holed, _ = resample_all(np.where(valid, pixels, 0), 43, 43, valid)
    assert np.array_equal(plain[:, 10:, 10:], holed[:, 10:, 10:])
