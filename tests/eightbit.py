"""A detector that says which pixels it wants, and stands no others: roofs are brighter than 140."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from geoseg.records import Instances


class EightBit:
    """Finds what is bright in 8 bits; surer of what is very bright."""

    classes = ("roof",)
    bands = ("red", "green", "blue")
    dtype = "uint8"
    value_range = (0, 255)
    gsd_m = 0.1
    tile_size, overlap = 128, 32
    min_score = 0.5
    fingerprint = "eightbit 1"

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        if tiles.dtype != np.uint8:
            raise TypeError(f"tiles are {tiles.dtype}")
        return [self.find(tile.mean(axis=0)) for tile in tiles]

    def find(self, grey: np.ndarray) -> Instances:
        pieces, n = ndimage.label(grey > 140)
        if n == 0:
            return Instances.empty()
        places = ndimage.find_objects(pieces)
        means = ndimage.mean(grey, pieces, np.arange(1, n + 1))
        return Instances(
            boxes=np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.float32),
            scores=np.where(means > 170, 0.9, 0.4).astype(np.float32),
            labels=np.zeros(n, np.int64),
            masks=[(pieces[at] == i + 1).astype(np.float32) for i, at in enumerate(places)],
        )


class AnyRange(EightBit):
    """The same without a word on what it wants, so that it gets what there is."""

    fingerprint = "eightbit any"
    dtype = value_range = None

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [self.find(tile.mean(axis=0)) for tile in tiles]


class Fractions(EightBit):
    """The same for values from 0 to 1."""

    fingerprint = "eightbit fractions"
    dtype = None
    value_range = (0, 1)

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        if tiles.dtype != np.float32 or tiles.min() < 0 or tiles.max() > 1:
            raise TypeError(f"tiles are {tiles.dtype}, up to {tiles.max()}")
        return [self.find(255 * tile.mean(axis=0)) for tile in tiles]


def make() -> EightBit:
    return EightBit()


def any_range() -> AnyRange:
    return AnyRange()
