"""How often the limit on proposals leaves likely objects out, by what counts as likely.

    python benchmarks/saturation.py ../shared/data/buildings [--tiles 120]

Tiles spread evenly over all orthomosaics of the data set, at the shipped model's pixel size. The
figures tell what `SURE_OBJECT` in geoseg/models/inference.py costs: each such tile is looked at
again in quarters.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, table, write

from geoseg.config import DetectSettings
from geoseg.imagery.read import read_window
from geoseg.jobs.plan import plan_run
from geoseg.models import inference
from geoseg.models.registry import load_model

OBJECTNESS = (0.5, 0.8, 0.9, 0.95, 0.99)


def sample(data: Path, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield image names and the pixels of tiles of which at least half is imaged."""
    images = sorted(str(path) for path in (data / "ortho").glob("*.tif"))
    plan = plan_run(DetectSettings(images=tuple(images)))
    places = [
        (image, row, col)
        for image in plan.images
        for row in range(image.tiles.shape[0])
        for col in range(image.tiles.shape[1])
    ]
    for at in np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int):
        image, row, col = places[at]
        window = image.tiles.tile(row, col).window
        pixels, valid = read_window(image.info, image.grid, window, image.bands)
        if valid.mean() >= 0.5:
            yield Path(image.info.path).name, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiles", type=int, default=120)
    options = parser.parse_args()
    plain = inference.propose
    seen: list[list[bool]] = []

    def at_each(*args: Any) -> Any:
        cuts = []
        for value in OBJECTNESS:
            inference._SURE_LOGIT = float(np.log(value / (1 - value)))
            found, cut = plain(*args)
            cuts.append(cut[0])
        seen.append(cuts)
        return found, cut

    inference.propose = at_each
    detector = load_model("buildings", device="cpu")
    names = []
    for name, pixels in sample(options.data, options.tiles):
        detector(pixels[None])
        names.append(name)
    cut = np.array(seen)
    rows = [
        [name, names.count(name), *cut[np.array(names) == name].sum(0)]
        for name in sorted(set(names))
    ]
    rows.append(["all", len(names), *cut.sum(0)])
    text = (
        "# Tiles in which the limit on proposals leaves likely objects out\n\n"
        "`python benchmarks/saturation.py DATA`: the shipped model on tiles spread evenly over "
        "the data set's orthomosaics; objectness from which a proposal left out counts.\n\n"
        + table(["image", "tiles", *(f">= {v}" for v in OBJECTNESS)], rows)
        + f"\n\n{machine()}\n"
    )
    write("saturation", text, {"objectness": OBJECTNESS, "tiles": len(names),
                               "left_out": cut.sum(0).tolist()})  # fmt: skip


if __name__ == "__main__":
    main()
