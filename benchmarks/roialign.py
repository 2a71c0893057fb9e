"""ROIAlign as a sparse product against torchvision's operator, on one CPU thread, in pairs.

python benchmarks/roialign.py
"""

from __future__ import annotations

import statistics
import time

import torch
from torchvision.ops import MultiScaleRoIAlign

from geoseg.models.maskrcnn import LEVELS
from geoseg.models.roialign import PyramidRoIAlign

RUNS = 7


def seconds(pool: MultiScaleRoIAlign, features: dict, boxes: list, sizes: list) -> tuple:
    """Return the seconds of one forward and one backward pass."""
    begun = time.perf_counter()
    out = pool(features, boxes, sizes)
    middle = time.perf_counter()
    out.backward(torch.ones_like(out))
    return middle - begun, time.perf_counter() - middle


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = [(384, 384)] * 4
    features = {
        name: torch.randn(4, 128, 96 >> i, 96 >> i)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for i, name in enumerate(LEVELS)
    }
    corner = [torch.rand(128, 2) * 300 for _ in sizes]
    boxes = [torch.cat([c, c + 20 + torch.rand(128, 2) * 60], 1) for c in corner]
    print("512 boxes, 128 channels, 4 chips of 384 px; medians of", RUNS, "paired runs")
    # 0 samples: as many as feature cells an output cell spans, Detectron2's default
    for cells, samples in ((7, 2), (14, 2), (7, 0), (14, 0)):
        theirs = MultiScaleRoIAlign(list(LEVELS), cells, samples)
        ours = PyramidRoIAlign(LEVELS, cells, samples)
        rows = [
            (seconds(theirs, features, boxes, sizes), seconds(ours, features, boxes, sizes))
            for _ in range(RUNS + 1)
        ][1:]
        for i, name in enumerate(("forward", "backward")):
            ratio = statistics.median(a[i] / b[i] for a, b in rows)
            ms = [statistics.median(r[k][i] for r in rows) * 1e3 for k in (0, 1)]
            print(
                f"{cells:2} x {cells:<2} samples {samples} {name:8}  torchvision {ms[0]:6.1f} ms  "
                f"sparse {ms[1]:6.1f} ms  ratio {ratio:.1f}"
            )


if __name__ == "__main__":
    main()
