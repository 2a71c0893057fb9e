"""Random numbers that belong to a place: the same pixel gets the same value in every window."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg.records import DoubleArray, FloatArray

UintArray = npt.NDArray[np.uint32]


class Rect(NamedTuple):
    """A pixel rectangle of the raster; may reach outside it."""

    x0: int
    """First column."""
    y0: int
    """First row."""
    width: int
    """Columns."""
    height: int
    """Rows."""

    def columns_m(self, gsd_m: float) -> DoubleArray:
        """Return x of the pixel centres, metres, shape (1, width)."""
        index = np.arange(self.x0, self.x0 + self.width, dtype=np.float64)
        return ((index + 0.5) * gsd_m)[None, :]

    def rows_m(self, gsd_m: float) -> DoubleArray:
        """Return y of the pixel centres, metres downwards, shape (height, 1)."""
        index = np.arange(self.y0, self.y0 + self.height, dtype=np.float64)
        return ((index + 0.5) * gsd_m)[:, None]


def _scramble(h: UintArray) -> UintArray:
    """Mix the bits of 32-bit integers (constants of C. Wellons' lowbias32 hash)."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> np.uint32(15))
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def _as_uint(values: npt.ArrayLike) -> UintArray:
    """Wrap integers of any sign to 32 bits."""
    out: UintArray = (np.atleast_1d(np.asarray(values, np.int64)) & 0xFFFFFFFF).astype(np.uint32)
    return out


def hash_pairs(ix: npt.ArrayLike, iy: npt.ArrayLike, key: int) -> UintArray:
    """Hash integer pairs, broadcast against each other, to 32 bits."""
    rows = _scramble(_as_uint(iy) ^ _scramble(_as_uint(key)))
    return _scramble(_as_uint(ix) * np.uint32(0x9E3779B1) + rows)


def uniform(ix: npt.ArrayLike, iy: npt.ArrayLike, key: int) -> FloatArray:
    """Hash integer pairs to floats in [0, 1)."""
    # 24 bits: what a float32 holds exactly
    bits = hash_pairs(ix, iy, key) >> np.uint32(8)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def _axis(centres_m: DoubleArray, scale_m: float) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Return lattice index and smooth weight of the next lattice point along one axis."""
    f = centres_m.ravel() / scale_m
    i = np.floor(f).astype(np.int64)
    t = f - i
    return i, (t * t * (3 - 2 * t)).astype(np.float32)


def field(rect: Rect, gsd_m: float, scale_m: float, key: int) -> FloatArray:
    """Return smooth value noise over a rectangle of pixels.

    Parameters
    ----------
    rect : Rect
        Pixels of the raster frame.
    gsd_m, scale_m : float
        Pixel size and distance of the lattice points, metres.
    key : int
        Which of the many fields.

    Returns
    -------
    ndarray
        (height, width) float32 in [0, 1); a pixel's value does not depend on the rectangle.
    """
    ix, tx = _axis(rect.columns_m(gsd_m), scale_m)
    iy, ty = _axis(rect.rows_m(gsd_m), scale_m)
    lattice = uniform(
        np.arange(ix[0], ix[-1] + 2)[None, :], np.arange(iy[0], iy[-1] + 2)[:, None], key
    )
    ix -= ix[0]
    iy -= iy[0]
    rows = lattice[iy] + (lattice[iy + 1] - lattice[iy]) * ty[:, None]
    step = np.diff(rows, axis=1)
    out: FloatArray = np.take(rows, ix, axis=1)
    slope = np.take(step, ix, axis=1)
    slope *= tx[None, :]
    out += slope
    return out


def layered(rect: Rect, gsd_m: float, scales_m: tuple[float, ...], key: int) -> FloatArray:
    """Return the mean of fields of several scales, spread back to about [0, 1]."""
    total = field(rect, gsd_m, scales_m[0], key)
    for k, scale_m in enumerate(scales_m[1:], 1):
        total += field(rect, gsd_m, scale_m, key + 7919 * k)
    total /= len(scales_m)
    # a mean of n fields is sqrt(n) times narrower than one
    total -= 0.5
    total *= np.float32(len(scales_m) ** 0.5)
    total += 0.5
    return total


def grain(rect: Rect, key: int) -> FloatArray:
    """Return independent values per pixel, about normal, mean 0, deviation 1."""
    columns = np.arange(rect.x0, rect.x0 + rect.width)[None, :]
    bits = hash_pairs(columns, np.arange(rect.y0, rect.y0 + rect.height)[:, None], key)
    # the sum of four uniform bytes is close enough to a bell for sensor noise
    total = np.zeros(bits.shape, np.float32)
    for shift in (0, 8, 16, 24):
        total += ((bits >> np.uint32(shift)) & np.uint32(255)).astype(np.float32)
    total -= 510.0
    total *= np.float32(1 / 147.8)
    return total


def field_at(x_m: float, y_m: float, scale_m: float, key: int) -> float:
    """Return the value of :func:`field` at one point."""
    fx, fy = x_m / scale_m, y_m / scale_m
    ix, iy = int(np.floor(fx)), int(np.floor(fy))
    tx, ty = fx - ix, fy - iy
    tx, ty = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty)
    v = uniform([[ix, ix + 1]], [[iy], [iy + 1]], key).astype(float)
    top, bottom = v[0] + 0.0, v[1]
    left = top[0] * (1 - ty) + bottom[0] * ty
    right = top[1] * (1 - ty) + bottom[1] * ty
    return float(left * (1 - tx) + right * tx)
