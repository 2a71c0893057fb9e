"""A detector of your own: here a rule for red roofs, in place of a network.

    python own_detector.py ortho.tif roofs.gpkg

geoseg reads the raster at 13 cm, shows it tile by tile, joins what the tile edges cut and writes
polygons. The detector sees only tiles. docs/detectors.md says all that it may return.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
from scipy import ndimage

import geoseg


class RedRoofs:
    """Finds pieces in which red leads green and blue."""

    classes = ("red roof",)
    bands = ("red", "green", "blue")
    gsd_m = 0.13
    tile_size, overlap = 512, 128
    fingerprint = "red roofs, lead 25, 12 m2"
    """Changes when results may: a run that goes on relies on it."""

    def __call__(self, tiles: np.ndarray) -> list[geoseg.Instances]:
        """Find roofs in tiles (N, 3, H, W)."""
        return [self.find(tile.astype(np.int16)) for tile in tiles]

    def find(self, tile: np.ndarray) -> geoseg.Instances:
        """Find roofs in one tile: each connected piece of at least 12 m2 is one."""
        lead = tile[0] - np.maximum(tile[1], tile[2])
        pieces, _ = ndimage.label(ndimage.binary_opening(lead > 25, iterations=2))
        boxes, scores, masks = [], [], []
        for number, (y, x) in enumerate(ndimage.find_objects(pieces), 1):
            mask = pieces[y, x] == number
            if mask.sum() * self.gsd_m**2 >= 12:
                boxes.append((x.start, y.start, x.stop, y.stop))
                scores.append(min(1.0, lead[y, x][mask].mean() / 80))
                masks.append(mask.astype(np.float32))
        if not boxes:
            return geoseg.Instances.empty()
        return geoseg.Instances(
            boxes=np.array(boxes, np.float32),
            scores=np.array(scores, np.float32),
            labels=np.zeros(len(boxes), np.int64),
            masks=masks,
        )


def main(image: Path, output: Path) -> gpd.GeoDataFrame:
    """Find red roofs and return them."""
    roofs = geoseg.detect(image, output, detector=RedRoofs(), regularize=True, workers=1)
    print(f"{len(roofs)} red roofs, {roofs['area_m2'].sum():.0f} m2")
    return roofs


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
