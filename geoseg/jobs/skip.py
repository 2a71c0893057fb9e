"""Leave out tiles in which a look at coarser pixels finds nothing (``--skip-empty``).

The network looks once at the whole supertile, at `FACTOR` times coarser pixels: that has a
sixteenth of its pixels. Only tiles whose windows meet something that it then holds for
an object, with however little confidence, are looked at properly. What it loses
`benchmarks/skip_empty.py` measures; off by default, because nobody has run that to its end yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geoseg.errors import ModelError
from geoseg.imagery.read import SupertilePixels
from geoseg.records import BoolArray, Tile

if TYPE_CHECKING:
    from geoseg.models.detector import Detector

FACTOR = 4
"""How much coarser the pixels of the first look are."""
SURE = 0.05
"""Score from which a tile is worth a proper look."""
REACH_PX = 16
"""Px by which a box of the first look is widened: it is as rough as its pixels."""

Glance = Callable[[npt.NDArray[Any], float], npt.NDArray[np.float32]]


def promising(
    detector: Detector, image: SupertilePixels, tiles: Sequence[Tile]
) -> tuple[list[Tile], int]:
    """Return the tiles that are worth a proper look, and how many with data are not.

    Parameters
    ----------
    detector : Detector
        One of geoseg's models.
    image : SupertilePixels
        Pixels of the supertile, as the detector takes them.
    tiles : sequence of Tile
        Of the supertile.

    Raises
    ------
    ModelError
        If the detector knows no first look.
    """
    left, top = image.window.col_off, image.window.row_off
    windows = np.array([tile.window.flatten() for tile in tiles], int) - [left, top, 0, 0]
    windows[:, 2:] += windows[:, :2]
    shown = np.array([image.valid[y0:y1, x0:x1].any() for x0, y0, x1, y1 in windows], bool)
    if not shown.any():
        return list(tiles), 0
    boxes = _glance_of(detector)(coarser(image.pixels, image.valid), SURE) * FACTOR
    boxes += np.array([-REACH_PX, -REACH_PX, REACH_PX, REACH_PX], np.float32)
    before_end = windows[:, None, :2] < boxes[None, :, 2:]
    after_start = boxes[None, :, :2] < windows[:, None, 2:]
    worth: BoolArray = np.any(np.all(before_end & after_start, axis=2), axis=1)
    kept = [tile for tile, w, s in zip(tiles, worth, shown, strict=True) if w or not s]
    return kept, int((shown & ~worth).sum())


def coarser(pixels: npt.NDArray[Any], valid: BoolArray) -> npt.NDArray[Any]:
    """Return the means (C, h / FACTOR, w / FACTOR) of the valid pixels; 0 where there are none."""
    count, height, width = pixels.shape
    rows, cols = -(-height // FACTOR), -(-width // FACTOR)
    room = ((0, rows * FACTOR - height), (0, cols * FACTOR - width))
    weights = np.pad(valid, room).reshape(rows, FACTOR, cols, FACTOR).sum((1, 3))
    out = np.zeros((count, rows, cols), pixels.dtype)
    for band, mean in zip(pixels, out, strict=True):
        filled = np.pad(np.nan_to_num(band, posinf=0.0, neginf=0.0), room)
        sums = filled.reshape(rows, FACTOR, cols, FACTOR).sum((1, 3), dtype=np.float64)
        # invalid pixels are 0 and add nothing
        means = sums / np.maximum(weights, 1)
        mean[:] = means if band.dtype.kind == "f" else np.rint(means)
    return out


def _glance_of(detector: Detector) -> Glance:
    make = getattr(detector, "make_glance", None)
    if make is None:
        raise ModelError(
            f"--skip-empty needs a first look at coarser pixels, which {type(detector).__name__} "
            "has not; leave --skip-empty out"
        )
    glance: Glance = make()
    return glance
