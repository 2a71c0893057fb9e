"""One painted scene for rasters of every kind, and detectors that read it back.

Eleven objects of three colours on dark ground, some cut by tile seams, one at the raster's corner.
A detector takes what is brighter than a level half way between ground and objects; a value that is
no number is bright too, so that NaN which reaches it shows as an object. The colour of an object
is its brightest band, so bands in another order show as well.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy import ndimage

from geoseg.records import Instances

WIDTH, HEIGHT = 300, 350
COLORS = ("red", "green", "blue")

GROUND, PALE, STRONG = 0.12, 0.55, 0.95
"""Shares of the range: ground, an object in the bands that are not its own, and in its own."""

LEVEL = 0.4

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""What JPEG keeps at full resolution (ITU-R BT.601)."""

_BOXES = (
    (0, 0, 30, 22),
    (60, 20, 25, 40),
    (120, 10, 70, 30),
    (220, 40, 41, 19),
    (20, 90, 50, 90),
    (104, 88, 28, 28),
    (170, 100, 21, 61),
    (235, 120, 36, 36),
    (110, 210, 97, 41),
    (25, 245, 33, 52),
    (225, 280, 52, 37),
)
"""x, y, width, height in px: no two alike, none symmetric to another."""

_ROUND = (1, 5, 7, 9)
"""Rows of `_BOXES` that are painted as ellipses."""


def ids(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return (height, width) int: 0 for ground, 1 to 11 for the objects; a corner of the scene."""
    out = np.zeros((HEIGHT, WIDTH), np.int32)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for row, (left, top, w, h) in enumerate(_BOXES):
        inside = (left < x) & (x < left + w) & (top < y) & (y < top + h)
        if row in _ROUND:
            u, v = (x - left - w / 2) / (w / 2), (y - top - h / 2) / (h / 2)
            inside = u * u + v * v <= 1
        out[inside] = row + 1
    return out[:height, :width]


def color_of(number: np.ndarray) -> np.ndarray:
    """Return the index into `COLORS` of objects by their number."""
    return (number - 1) % 3


def shares(scene: np.ndarray, bands: int) -> np.ndarray:
    """Return (bands, h, w) float: the brightness of a scene as a share of the range.

    One band shows all objects alike; of three, each shows its colour strongest.
    """
    if bands == 1:
        return np.where(scene > 0, 0.8, GROUND)[None]
    own = color_of(scene)[None] == np.arange(bands)[:, None, None]
    return np.where(scene > 0, np.where(own, STRONG, PALE), GROUND)


class Levels:
    """Finds what is brighter than a level, piece by piece."""

    classes = ("bright", *COLORS)

    def __init__(self, level: float | None = None, bands: tuple[str, ...] | None = None):
        self.level = level
        if bands is not None:
            self.bands = bands

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [self.find(tile) for tile in tiles]

    def find(self, tile: np.ndarray) -> Instances:
        """Find the pieces of one tile (C, H, W)."""
        level = self.level
        if level is None:
            whole = tile.dtype.kind in "iu"
            level = LEVEL * (float(np.iinfo(tile.dtype).max) if whole else 1.0)
        pixels = tile.astype(np.float64)
        weights = _LUMA if len(tile) == 3 else np.full(len(tile), 1 / len(tile))
        bright = ~(np.tensordot(weights, pixels, 1) <= level)
        pieces, count = ndimage.label(bright, np.ones((3, 3)))
        if count == 0:
            return Instances.empty()
        where = ndimage.find_objects(pieces)
        rows = np.arange(1, count + 1)
        if len(tile) == 3:
            means = [ndimage.mean(band, pieces, rows) for band in pixels]
            grey = np.ptp(means, axis=0) < 0.05 * np.max(means, axis=0)
            labels = np.where(grey, 0, 1 + np.argmax(np.nan_to_num(means), axis=0))
        else:
            labels = np.zeros(count, np.int64)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in where]
        return Instances(
            boxes=np.array(boxes, np.float32),
            scores=np.full(count, 0.9, np.float32),
            labels=labels.astype(np.int64),
            masks=[
                (pieces[box] == row).astype(np.float32)
                for row, box in zip(rows, where, strict=True)
            ],
        )


make = partial(Levels)
"""Reads all bands that are not alpha, whatever their number; level by the type of the pixels."""

make_grey = partial(Levels, bands=("grey",))
make_rgb = partial(Levels, bands=COLORS)
make_12bit = partial(Levels, level=LEVEL * 4095, bands=COLORS)
make_signed = partial(Levels, level=2000.0, bands=COLORS)
"""For int16 painted from -25,000 to 26,000."""
