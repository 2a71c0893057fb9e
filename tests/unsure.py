"""A detector that is unsure, or of two minds, where the pixels tell it to be.

Band 1 above 100 is a roof, band 2 its score (of 255); where band 3 is above 100 a tile shows the
roof only in its own left half, so that overlapping tiles disagree.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from geoseg.records import Instances

SIDE, STEP = 14, 40
"""Side of a roof, and from one to the next, px."""


class Unsure:
    """Finds the roofs of `paint`; fails where a pixel of band 3 is 7."""

    classes = ("roof",)
    bands = ("red", "green", "blue")
    tile_size, overlap, min_score = 128, 32, 0.5
    fingerprint = "unsure"

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [self.find(tile) for tile in tiles]

    def find(self, tile: np.ndarray) -> Instances:
        if (tile[2] == 7).any():
            raise ValueError("a tile that it cannot stand")
        pieces, _ = ndimage.label(tile[0] > 100)
        boxes, scores, masks = [], [], []
        for i, (y, x) in enumerate(ndimage.find_objects(pieces), 1):
            mask = pieces[y, x] == i
            shy = tile[2][y, x][mask].max() > 100
            if shy and (x.start + x.stop) / 2 > tile.shape[2] / 2:
                continue
            boxes.append((x.start, y.start, x.stop, y.stop))
            scores.append(tile[1][y, x][mask].max() / 255)
            masks.append(mask.astype(np.float32))
        if not boxes:
            return Instances.empty()
        return Instances(
            np.array(boxes, np.float32),
            np.array(scores, np.float32),
            np.zeros(len(boxes), np.int64),
            masks,
        )


def make() -> Unsure:
    return Unsure()


def paint(
    size: int = 640, *, unsure: tuple[int, ...] = (), shy: tuple[int, ...] = ()
) -> np.ndarray:
    """Return pixels (3, size, size): roofs in rows, sure of themselves but for those named.

    Roofs count from 0, row by row, ``size // STEP`` a row.
    """
    pixels = np.zeros((3, size, size), np.uint8)
    pixels[0] = 40
    per_row = size // STEP
    for i in range(per_row * per_row):
        y, x = (13 + STEP * k for k in divmod(i, per_row))
        place = np.s_[y : y + SIDE, x : x + SIDE]
        pixels[0][place] = 220
        pixels[1][place] = 128 if i in unsure else 250
        pixels[2][place] = 200 if i in shy else 0
    return pixels
