"""The stitcher alone: your own tiles and detections in, whole objects out. Loads no torch.

    python stitch_only.py town/footprints.gpkg town/town.tif

Stands in for a pipeline of yours that already has a polygon per object and tile: every footprint is
cut along the windows of tiles, as a detector would see it, and put together again.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import geopandas as gpd
import rasterio
import shapely
from rasterio.windows import Window

import geoseg

TILE, OVERLAP = 256, 64


def axis(length: int) -> list[tuple[int, int, int]]:
    """Return window start, core start and core stop of the tiles along one axis, px."""
    last = max(0, length - TILE)
    starts = [*range(0, last, TILE - OVERLAP), last]
    meet = [(a + TILE + b) // 2 for a, b in pairwise(starts)]
    return list(zip(starts, [0, *meet], [*meet, length], strict=True))


def main(footprints: Path, image: Path) -> gpd.GeoDataFrame:
    """Cut footprints by tiles, stitch the pieces, and return the objects on the ground."""
    with rasterio.open(image) as raster:
        height, width, transform, crs = raster.height, raster.width, raster.transform, raster.crs
    tiles = [
        geoseg.Tile((i, j), core=Window(c0, r0, c1 - c0, r1 - r0), window=Window(x, y, TILE, TILE))
        for i, (y, r0, r1) in enumerate(axis(height))
        for j, (x, c0, c1) in enumerate(axis(width))
    ]

    # from the ground to px: this is where your detector's polygons come in
    to_px = (~transform).to_shapely()
    shapes = gpd.read_file(footprints).to_crs(crs).affine_transform(to_px).to_numpy()
    polygons, tile_of_each = [], []
    for number, tile in enumerate(tiles):
        w = tile.window
        window = shapely.box(w.col_off, w.row_off, w.col_off + w.width, w.row_off + w.height)
        seen = shapely.intersection(shapes, window)
        seen = seen[shapely.area(seen) > 16]
        polygons += seen.tolist()
        tile_of_each += [number] * len(seen)

    found = geoseg.Fragments.from_polygons(
        polygons,
        scores=[0.9] * len(polygons),
        labels=[0] * len(polygons),
        tiles=tile_of_each,
        tile_list=tiles,
        raster_shape=(height, width),
    )
    objects = geoseg.stitch(found, tiles)
    joined = (objects.n_parts > 1).sum()
    print(f"{len(shapes)} footprints, seen as {len(found)} pieces in {len(tiles)} tiles")
    print(f"{len(objects)} objects, {joined} of them put together from pieces")
    ground = gpd.GeoSeries(objects.polygons, crs=crs).affine_transform(transform.to_shapely())
    return gpd.GeoDataFrame({"n_parts": objects.n_parts}, geometry=ground)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
