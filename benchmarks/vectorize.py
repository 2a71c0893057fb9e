"""Masks to polygons: traced as they leave the network, against pasted and traced by OpenCV.

    python benchmarks/vectorize.py [--runs 9]

300 detections of the shipped model in a rendered town, their 28 x 28 masks laid into one tile of
1,024 px: `geoseg.objects.vectorize`, and torchvision's `paste_masks_in_image` then
`cv2.findContours`, in pairs. OpenCV is optional: pip install opencv-python-headless. Writes
docs/benchmarks/vectorize.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch
from common import machine, table, write
from peers import NO_OPENCV, cv2
from rasterio.windows import Window
from torchvision.models.detection.roi_heads import paste_masks_in_image

from geoseg.models.registry import load_model
from geoseg.objects.vectorize import vectorize
from geoseg.records import Instances, Tile
from geoseg.scenes.town import render_town

SIDE = 1024
DETECTIONS = 300
MIN_SCORE = 0.05


def town_masks(side: int, wanted: int) -> Instances:
    """Return detections of the shipped model in a town, laid into one tile of `side` px."""
    found: list[Instances] = []
    detector = load_model(device="cpu", min_score=MIN_SCORE)
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as folder:
        town = render_town(Path(folder), width_px=2 * side, height_px=2 * side, hole=False)
        with rasterio.open(town.image) as file:
            for top in (0, side):
                for left in (0, side):
                    pixels = file.read(window=Window(left, top, side, side))
                    found += detector(pixels[None])
    boxes, scores, masks = (
        np.concatenate([getattr(f, name) for f in found]) for name in ("boxes", "scores", "masks")
    )
    best = np.argsort(-scores)[:wanted]
    return Instances(
        boxes=boxes[best],
        scores=scores[best],
        labels=np.zeros(len(best), np.int64),
        masks=masks[best],
    )


def traced(instances: Instances, side: int) -> int:
    """Return how many polygons geoseg makes of them."""
    window = Window(0, 0, side, side)
    tile = Tile((0, 0), window, window)
    return len(vectorize(instances, tile, tile_row=0, raster_shape=(side, side)))


def pasted(instances: Instances, side: int) -> int:
    """Return how many outlines OpenCV makes of the masks that torchvision pastes."""
    masks = torch.from_numpy(instances.masks)[:, None]
    images = paste_masks_in_image(masks, torch.from_numpy(instances.boxes), (side, side))
    count = 0
    for image in (images[:, 0] > 0.5).numpy().astype(np.uint8):
        outlines, _ = cv2.findContours(image, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        count += bool(outlines)
    return count


def seconds(work: Callable[[Instances, int], int], instances: Instances) -> tuple[float, float]:
    """Return seconds by the wall clock and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(instances, SIDE)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    if cv2 is None:
        print(NO_OPENCV)
        return
    instances = town_masks(SIDE, DETECTIONS)
    made = traced(instances, SIDE), pasted(instances, SIDE)
    pairs = [(seconds(traced, instances), seconds(pasted, instances)) for _ in range(runs)]
    rows, figures = [], {"detections": len(instances), "pairs": pairs}
    for i, name in enumerate(("wall clock", "CPU")):
        ours, theirs = (statistics.median(p[k][i] for p in pairs) for k in (0, 1))
        ratio = statistics.median(p[1][i] / p[0][i] for p in pairs)
        figures[f"ratio, {name}"] = round(ratio, 1)
        rows.append((name, f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", f"{ratio:.1f}"))
    head = ("seconds by", "geoseg, ms", "paste + findContours, ms", "ratio")
    text = (
        f"# Masks to polygons\n\n`python benchmarks/vectorize.py --runs {runs}` on {machine()}, "
        f"torch {torch.__version__}, OpenCV {cv2.__version__}, all cores; medians of {runs} paired "
        f"runs, {len(instances)} detections of the shipped model in one tile of {SIDE:,} px, which "
        f"gave {made[0]} and {made[1]} polygons.\n\n{table(head, rows)}"
    )
    write("vectorize", text, figures)


if __name__ == "__main__":
    main()
