"""Find buildings, count them per region, look at the result.

    python detect_and_count.py ortho.tif districts.gpkg out

Run it again after an interruption: it goes on, and what is finished is not done again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas as gpd

import geoseg


def main(image: Path, regions: Path, folder: Path) -> gpd.GeoDataFrame:
    """Write buildings.gpkg and counts.csv, and return the counts."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "buildings.gpkg"
    buildings = geoseg.detect(image, output, regions=regions)
    print(
        f"{len(buildings)} buildings, half of them larger than {buildings.area_m2.median():.0f} m2"
    )

    # the run as it lies on the disk, today or in a year
    run = geoseg.open_run(output)
    print(run.manifest["seams"]["verdict"])

    # by area: a building on a border is shared; the counts still add up to all buildings
    counts = geoseg.count(buildings, gpd.read_file(regions), rule="area")
    outside = counts.attrs["outside"]
    assert abs(counts["count"].sum() + outside - len(buildings)) < 1e-6
    counts = counts.sort_values("density_km2", ascending=False)
    counts.drop(columns="geometry").to_csv(folder / "counts.csv", index=False)
    print(counts.drop(columns="geometry").head().to_string(index=False))
    return counts


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
