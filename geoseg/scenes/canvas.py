"""A window of the scene while it is painted: colour, height and light per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.records import BoolArray, DoubleArray, FloatArray
from geoseg.scenes.noise import Rect


def ramp(values: FloatArray, low: float, high: float) -> FloatArray:
    """Map ``low`` to 0 and ``high`` to 1 with a smooth step between."""
    t = (values - np.float32(low)) * np.float32(1 / (high - low))
    np.clip(t, 0, 1, out=t)
    out: FloatArray = t * t * (3 - 2 * t)
    return out


def bands(colour: npt.ArrayLike) -> FloatArray:
    """Return a colour as (3, 1, 1), colours per pixel, (3, h, w), as they are."""
    out: FloatArray = np.asarray(colour, np.float32)
    return out if out.ndim == 3 else out[:, None, None]


def mix(base: FloatArray, other: npt.ArrayLike, share: FloatArray) -> FloatArray:
    """Blend colours, (3, h, w) or (3, 1, 1), by a share per pixel, (h, w)."""
    out: FloatArray = (bands(other) - base) * share
    out += base
    return out


def signed_distance(
    ring: DoubleArray, x_m: DoubleArray, y_m: DoubleArray
) -> tuple[FloatArray, BoolArray]:
    """Return the distance of pixel centres to a polygon's outline, and which are inside.

    Parameters
    ----------
    ring : ndarray
        (n, 2) vertices, metres, open.
    x_m, y_m : ndarray
        (1, w) and (h, 1) pixel centres, metres.

    Returns
    -------
    distance : ndarray
        (h, w) float32 metres, negative inside.
    inside : ndarray
        (h, w) bool, by the even-odd rule on exact coordinates.
    """
    origin = ring[0]
    local = ring - origin
    xs, ys = x_m - origin[0], y_m - origin[1]
    x32, y32 = xs.astype(np.float32), ys.astype(np.float32)
    best = np.full((len(ys), xs.shape[1]), np.inf, np.float32)
    inside = np.zeros(best.shape, bool)
    # one scratch array: fresh memory for every side costs more than the arithmetic
    d2 = np.empty_like(best)
    for (ax, ay), (bx, by) in zip(local, np.roll(local, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        length2 = ex * ex + ey * ey
        if length2 == 0.0:
            continue
        px, py = x32 - np.float32(ax), y32 - np.float32(ay)
        t = px * np.float32(ex / length2) + py * np.float32(ey / length2)
        np.clip(t, 0, 1, out=t)
        np.multiply(t, np.float32(-ex), out=d2)
        d2 += px
        d2 *= d2
        t *= np.float32(-ey)
        t += py
        t *= t
        d2 += t
        np.minimum(best, d2, out=best)
        if ey != 0.0:
            crosses = (ay <= ys) != (by <= ys)
            inside ^= crosses & (xs < ax + (ys - ay) * (ex / ey))
    distance = np.sqrt(best)
    np.negative(distance, out=distance, where=inside)
    return distance, inside


def _part(
    values: FloatArray | np.float32 | float, there: tuple[slice, slice]
) -> FloatArray | np.float32:
    """Return a part of a patch, or the one value that holds everywhere."""
    return values[there] if isinstance(values, np.ndarray) else np.float32(values)


@dataclass(slots=True, eq=False)
class Canvas:
    """Pixels of one window and a margin around it."""

    rect: Rect
    """Where it lies in the raster."""
    gsd_m: float
    """Pixel size."""
    sun: tuple[float, float, float]
    """Unit vector to the sun."""
    colour: FloatArray
    """(3, H, W) colour under even light, 0 to 1."""
    height: FloatArray
    """(H, W) metres above the ground."""
    light: FloatArray
    """(H, W) direct light relative to flat ground."""
    built: BoolArray
    """(H, W) pixel centre lies in a footprint."""

    @classmethod
    def blank(cls, rect: Rect, gsd_m: float, sun: tuple[float, float, float]) -> Canvas:
        """Return an empty canvas, flat and evenly lit."""
        shape = (rect.height, rect.width)
        return cls(
            rect,
            gsd_m,
            sun,
            np.zeros((3, *shape), np.float32),
            np.zeros(shape, np.float32),
            np.ones(shape, np.float32),
            np.zeros(shape, bool),
        )

    def cover(self, x0: float, y0: float, x1: float, y1: float) -> Rect | None:
        """Return the pixels that a box (metres) touches, or None if none is on the canvas.

        The rectangle is not clipped: an object is always computed whole, so that it comes out
        the same in every window.
        """
        g = self.gsd_m
        left, top = int(np.floor(x0 / g)) - 2, int(np.floor(y0 / g)) - 2
        right, bottom = int(np.ceil(x1 / g)) + 2, int(np.ceil(y1 / g)) + 2
        r = self.rect
        if right <= r.x0 or bottom <= r.y0 or left >= r.x0 + r.width or top >= r.y0 + r.height:
            return None
        return Rect(left, top, right - left, bottom - top)

    def cover_ring(self, ring: DoubleArray, margin_m: float = 0.0) -> Rect | None:
        """Return the pixels of a ring's bounding box, as :meth:`cover`."""
        (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
        return self.cover(x0 - margin_m, y0 - margin_m, x1 + margin_m, y1 + margin_m)

    def blend(
        self,
        rect: Rect,
        alpha: FloatArray,
        colour: npt.ArrayLike,
        *,
        light: FloatArray | np.float32 | float = 1.0,
        height: FloatArray | np.float32 | float | None = None,
    ) -> None:
        """Paint a patch.

        Parameters
        ----------
        rect : Rect
            Pixels of the patch, may reach over the canvas.
        alpha : ndarray
            (h, w) how much of each pixel it covers, 0 to 1.
        colour : array-like
            (3, h, w), (3, 1, 1) or (3,).
        light : float or ndarray
            Direct light on it, scalar or (h, w).
        height : float or ndarray, optional
            Metres above the ground; None leaves the height as it is.
        """
        here, there = self.overlap(rect)
        a = alpha[there]
        tint = bands(colour)
        if tint.shape[1:] != (1, 1):
            tint = tint[:, there[0], there[1]]
        target = self.colour[:, here[0], here[1]]
        step = tint - target
        step *= a
        target += step
        lit = self.light[here]
        lit += a * (_part(light, there) - lit)
        if height is not None:
            top = self.height[here]
            top += a * (_part(height, there) - top)

    def overlap(self, rect: Rect) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the common pixels of canvas and patch, as slices of each."""
        r = self.rect
        x0, y0 = max(rect.x0, r.x0), max(rect.y0, r.y0)
        x1 = max(x0, min(rect.x0 + rect.width, r.x0 + r.width))
        y1 = max(y0, min(rect.y0 + rect.height, r.y0 + r.height))
        return (
            (slice(y0 - r.y0, y1 - r.y0), slice(x0 - r.x0, x1 - r.x0)),
            (slice(y0 - rect.y0, y1 - rect.y0), slice(x0 - rect.x0, x1 - rect.x0)),
        )

    def relief_light(self, height_m: FloatArray, strength: float = 1.0) -> FloatArray:
        """Return the direct light on a surface given by heights, (h, w), flat ground being 1."""
        slope_y, slope_x = np.gradient(height_m, np.float32(self.gsd_m / strength))
        sx, sy, sz = (np.float32(c) for c in self.sun)
        lit: FloatArray = (sz - slope_x * sx - slope_y * sy) / (
            sz * np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
        )
        return np.clip(lit, 0.25, 1.5)

    def plane_light(self, slope_x: float, slope_y: float) -> float:
        """Return the direct light on a plane that rises by the given slopes."""
        sx, sy, sz = self.sun
        lit = (sz - slope_x * sx - slope_y * sy) / (sz * np.sqrt(1 + slope_x**2 + slope_y**2))
        return float(np.clip(lit, 0.25, 1.6))
