"""A detector that is a rule: roofs are what is redder, or bluer, than anything else in a town.

No network and no weights: a pixel belongs to a roof where one colour leads the other two by a
margin, and a roof is a connected piece of such pixels of at least some square metres. Painted sheet
metal and tarpaulins are found so; grey, white and thatched roofs are not, and a red field would be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geoseg import Instances

LEADING_BAND = {"red roof": 0, "blue roof": 2}
"""Class name to the band, of red, green and blue, that leads the two others."""

Piece = tuple[tuple[int, int, int, int], float, int, npt.NDArray[np.float32]]
"""Box (x0, y0, x1, y1), score, label and mask of one roof."""


class ColouredRoofs:
    """Finds red and blue roofs by their colour.

    Parameters
    ----------
    margin : float
        How far a colour must lead the other two, as a share of full scale, in (0, 1).
    sure_margin : float
        Mean lead at which a roof's score is 1; above `margin`.
    min_area_m2 : float
        Smaller pieces are cars, tanks and solar panels; at least 0.
    gsd_m : float
        Metres per pixel on the ground to work at; makes `min_area_m2` mean what it says.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    The score is 0.5 for a mean lead of `margin`, 1 from `sure_margin` on, and linear between:
    it ranks roofs by how coloured they are, and is no probability.
    """

    classes = tuple(LEADING_BAND)
    bands = ("red", "green", "blue")
    tile_size = 1024
    overlap = 256
    min_score = 0.5

    def __init__(
        self,
        *,
        margin: float = 0.1,
        sure_margin: float = 0.2,
        min_area_m2: float = 8.0,
        gsd_m: float = 0.13,
    ) -> None:
        if not 0 < margin < sure_margin < 1:
            raise ValueError(
                f"margin is {margin} and sure_margin {sure_margin}; expected "
                "0 < margin < sure_margin < 1"
            )
        if min_area_m2 < 0 or gsd_m <= 0:
            raise ValueError(
                f"min_area_m2 is {min_area_m2} and gsd_m {gsd_m}; expected at least 0 and above 0"
            )
        self.margin = margin
        self.sure_margin = sure_margin
        self.min_area_m2 = min_area_m2
        self.gsd_m = gsd_m

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find roofs in tiles.

        Parameters
        ----------
        tiles : ndarray (N, 3, H, W)
            Red, green and blue in an unsigned integer type, at full scale.

        Returns
        -------
        list of Instances
            Masks at full resolution: one cell a pixel, 0 or 1.

        Raises
        ------
        TypeError
            If the pixels are not unsigned integers.
        """
        if tiles.dtype.kind != "u":
            raise TypeError(f"pixels are {tiles.dtype}; expected uint8 or uint16 with full range")
        full = np.iinfo(tiles.dtype).max
        return [self._find(tile.astype(np.float32) / np.float32(full)) for tile in tiles]

    def _find(self, tile: npt.NDArray[np.float32]) -> Instances:
        pieces = [
            piece
            for label, band in enumerate(LEADING_BAND.values())
            for piece in self._pieces(tile, band, label)
        ]
        if not pieces:
            return Instances.empty()
        boxes, scores, labels, masks = zip(*pieces, strict=True)
        return Instances(
            boxes=np.array(boxes, np.float32),
            scores=np.array(scores, np.float32),
            labels=np.array(labels, np.int64),
            masks=list(masks),
        )

    def _pieces(self, tile: npt.NDArray[np.float32], band: int, label: int) -> list[Piece]:
        """Return the pieces of one class in a tile (3, H, W) of 0 to 1."""
        lead = tile[band] - np.delete(tile, band, axis=0).max(axis=0)
        # threads of pixels go; the tile's edge eats nothing, or seams would show as gaps
        core = ndimage.binary_erosion(lead >= self.margin, np.ones((3, 3)), border_value=1)
        roofs = ndimage.binary_dilation(core, np.ones((3, 3)))
        numbers, count = ndimage.label(roofs)
        rows = np.arange(1, count + 1)
        areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        leads = ndimage.mean(lead, numbers, rows)
        places = ndimage.find_objects(numbers)
        out: list[Piece] = []
        for row in np.flatnonzero(areas * self.gsd_m**2 >= self.min_area_m2).tolist():
            y, x = places[row]
            # tanks and solar panels stand on the roof: it has no holes
            mask = ndimage.binary_fill_holes(numbers[y, x] == row + 1)
            score = 0.5 + 0.5 * (leads[row] - self.margin) / (self.sure_margin - self.margin)
            box = (x.start, y.start, x.stop, y.stop)
            out.append((box, float(np.clip(score, 0.5, 1)), label, mask.astype(np.float32)))
        return out


def make() -> ColouredRoofs:
    """Make the rule with its defaults, for ``--detector detectors.coloured_roofs:make``."""
    return ColouredRoofs()
