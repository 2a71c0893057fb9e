"""What was built, pulled down or enlarged between two flights.

    python compare_two_dates.py 2019.tif 2024.tif out

Both dates run through the same model; flights lie a metre or two off each other, and that common
shift is found and taken out before objects are matched one to one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geoseg
from geoseg.objects.compare import Comparison


def main(before: Path, after: Path, folder: Path) -> Comparison:
    """Write both dates and changes.gpkg, and return the comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    dates = [
        geoseg.detect(image, folder / f"{name}.gpkg")
        for name, image in (("before", before), ("after", after))
    ]
    found = geoseg.compare(*dates)
    east, north = found.shift_m
    print(
        f"the later image lies {east:+.2f} m east and {north:+.2f} m north ({found.matched} pairs)"
    )
    for change, n in found.counts.items():
        print(f"{change:10} {n}")

    # a model misses things on one date and sees them on the other: trust what both scores back
    new = found.changes[found.changes["change"] == "appeared"]
    scores = dates[1].set_index("uid")["score"]
    sure = new[new["after"].map(scores) > 0.9]
    print(f"{len(new)} appeared, {len(sure)} of them with a score above 0.9")
    found.changes.to_file(folder / "changes.gpkg", layer="changes")
    return found


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
