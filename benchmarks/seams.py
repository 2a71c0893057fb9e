"""Painted scenes with known truth through geoseg.stitch and through SAHI, side by side.

python benchmarks/seams.py            (some minutes; docs/benchmarks/seams.md)
python benchmarks/seams.py --seeds 1  (shorter)

SAHI is optional: pip install sahi.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cached_property

import common
import numpy as np
import painted
import shapely

import geoseg
from geoseg.records import Fragments, GeometryArray, IntArray, Objects, Tile

GRIDS = ((512, 128), (320, 48), (256, 64))
MASKS = {"28 x 28": 28, "full": None}
METHODS = ("geoseg", "SAHI GREEDYNMM IOS 0.5", "SAHI NMS IoU 0.5")
FIRST_SEED = 100
"""Other seeds than the tests'."""


class Truth:
    """What is painted, outlined once; without holes for who cannot say holes."""

    def __init__(self, scene: painted.Scene, *, holes: bool = True) -> None:
        self.scene = scene
        self.holes = holes

    @cached_property
    def _outlines(self) -> tuple[GeometryArray, IntArray]:
        polygons, labels = self.scene.truth()
        if not self.holes:
            filled = [
                shapely.polygons(shapely.get_exterior_ring(shapely.get_parts(p))) for p in polygons
            ]
            polygons = np.array([shapely.union_all(parts) for parts in filled], object)
        return polygons, labels

    def truth(self) -> tuple[GeometryArray, IntArray]:
        """Return outlines and class indices, as `painted.judge` asks for them."""
        return self._outlines


def scenes(seeds: int) -> Iterator[tuple[str, painted.Scene]]:
    """Yield blobs, then bars, rings and U shapes, of each seed."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        yield "blobs", painted.blob_scene(seed)
        yield "bars, rings, U", painted.shape_scene(seed)


def solve(method: str, fragments: Fragments, tiles: list[Tile], shape: tuple[int, int]) -> Objects:
    """Return what a method makes of the detections."""
    if method == "geoseg":
        return geoseg.stitch(fragments, tiles)
    kind = method.split()[1]
    return common.sahi_objects(
        common.sahi_postprocess(kind)(common.sahi_predictions(fragments, tiles, shape))
    )


def measure(seeds: int, methods: tuple[str, ...]) -> list[dict[str, object]]:
    """Return a row of figures per scene, grid, mask, disturbance and method."""
    rows: list[dict[str, object]] = []
    for number, (kind, scene) in enumerate(scenes(seeds)):
        truth = {"geoseg": Truth(scene), "SAHI": Truth(scene, holes=False)}
        for size, overlap in GRIDS:
            tiles = painted.square_tiles(*scene.shape, size, overlap)
            for disturb in (False, True):
                for mask, cells in MASKS.items():
                    detector = painted.PaintedDetector(cells, disturb=disturb, seed=number)
                    fragments = painted.detect(scene, tiles, detector)
                    for method in methods:
                        found = solve(method, fragments, tiles, scene.shape)
                        verdict = painted.judge(truth[method.split()[0]], found)
                        rows.append(
                            {
                                "scene": kind,
                                "detections": "disturbed" if disturb else "exact",
                                "masks": mask,
                                "grid": f"{size}/{overlap}",
                                "method": method,
                                "truth": verdict.truth,
                                "missed": verdict.missed,
                                "extra": verdict.extra,
                                "wrong_class": verdict.wrong_class,
                                "worst_iou": verdict.worst_iou,
                            }
                        )
        print(f"scene {number + 1} of {2 * seeds} done")
    return rows


def summed(rows: list[dict[str, object]], keys: tuple[str, ...]) -> list[list[object]]:
    """Add up the rows that agree in ``keys``; of the IoU the lowest scene counts."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    out = []
    for group, members in groups.items():
        truth, missed, extra, wrong = (
            sum(m[k] for m in members) for k in ("truth", "missed", "extra", "wrong_class")
        )
        share = f"{100 * (missed + extra) / truth:.2f} %"
        iou = f"{min(m['worst_iou'] for m in members):.2f}"
        out.append([*group, truth, missed, extra, share, wrong, iou])
    return out


HEAD = ("objects", "missed", "extra", "missed + extra", "wrong class", "IoU, worst 1 %")


def report(rows: list[dict[str, object]], seeds: int) -> str:
    """Return the page."""
    setting = (
        f"Painted scenes of 1,100 px a side with known truth, {seeds} seeds of each kind: hundreds "
        "of blobs of 5 to 45 px with six of 150 to 420 px; bars, rings and U shapes of several "
        "hundred px among blobs; three classes, gaps of 2 px. All methods get the same outlines "
        "of the same detections; classes are kept apart. *Exact*: the detector shows what its "
        "window shows. *Disturbed*: box sides off by up to 1.5 px per tile, cut fragments short by "
        "up to 20 % (at most 10 px) at the cut, half of the slivers under 12 px inflated, one "
        "larger object in ten reported twice. A match has IoU of at least 0.5; the IoU given is "
        "the 1 % quantile of the worst scene. SAHI's polygons know no holes, so holes are filled "
        "in the truth it is held against."
    )
    command = f"`python benchmarks/seams.py --seeds {seeds}`"
    parts = [
        "# Objects at seams",
        setting,
        f"{common.machine()}. {common.sahi_in_words()} {command}",
        common.table(("detections", "method", *HEAD), summed(rows, ("detections", "method"))),
        "## By tile, overlap and masks",
        common.table(
            ("detections", "masks", "tile/overlap", "method", *HEAD),
            summed(rows, ("detections", "masks", "grid", "method")),
        ),
        "## By kind of scene",
        common.table(
            ("scene", "detections", "method", *HEAD),
            summed(rows, ("scene", "detections", "method")),
        ),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    rows = measure(seeds, METHODS if common.SAHI_VERSION else METHODS[:1])
    figures = {"machine": common.machine(), "sahi": common.SAHI_VERSION, "rows": rows}
    common.write("seams", report(rows, seeds), figures)


if __name__ == "__main__":
    main()
