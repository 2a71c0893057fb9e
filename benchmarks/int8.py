"""Whether 8-bit integers would do: what they cost in accuracy, and save in time, on a CPU.

    python benchmarks/int8.py [../shared/data/buildings]

Time: oneDNN's convolution of the shipped model's commonest shapes in bfloat16 and in int8, and what
it takes to turn a bfloat16 map into int8 first, which a network has to do wherever a norm stands
between two convolutions. Accuracy, where the data is at hand: the shipped model with the weights
(a scale per output) and the inputs (a scale per map) of its layers rounded to 8 bits, all of them
and all but the backbone's; the last layers stay as they are. Areas and figures as in
benchmarks/model_quality.py, at the card's threshold. Writes docs/benchmarks/int8.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import torch
from common import machine, table, write
from model_quality import areas
from torch import Tensor, nn

import geoseg
from geoseg.models.inference import MaskRCNNDetector
from geoseg.models.registry import load_model
from geoseg.objects.evaluate import evaluate, pool

SHAPES = ((1, 128, 192), (1, 128, 96), (64, 256, 14))
"""Maps, channels, side: two levels of the pyramid, and a mask head's cells."""
ROUNDS = 15
LAST = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits")


def rounded(x: Tensor, *, by_row: bool = False) -> Tensor:
    """Return values rounded to 255 steps of one scale, or of one a row."""
    most = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True) if by_row else x.abs().amax()
    scale = most.clamp_min(1e-12) / 127
    return (x / scale).round() * scale


def quantized(which: str) -> MaskRCNNDetector:
    """Return the shipped model, its layers' weights and inputs rounded: 'none', 'heads', 'all'."""
    detector = load_model("buildings", device="cpu", exact=True, min_score=0.15)
    for name, layer in detector.model.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or any(last in name for last in LAST):
            continue
        if which == "none" or (which == "heads" and "backbone.body" in name):
            continue
        layer.weight.data = rounded(layer.weight.data, by_row=True)
        layer.register_forward_pre_hook(lambda _, given: (rounded(given[0]), *given[1:]))
    return detector


def accuracy(data: Path) -> list[tuple[object, ...]]:
    """Return a row for each choice of layers."""
    buildings = gpd.read_file(data / "buildings.geojson")
    rows: list[tuple[object, ...]] = []
    for which in ("none", "heads", "all"):
        detector, found = quantized(which), []
        for image, aoi in areas(data).values():
            with tempfile.TemporaryDirectory() as folder:
                aoi.to_file(Path(folder) / "aoi.geojson")
                objects = geoseg.detect(
                    data / "ortho" / image, detector=detector, aoi=Path(folder) / "aoi.geojson",
                    min_score=0.15, workers=1,
                )  # fmt: skip
            truth = buildings[buildings["image"] == image]
            found.append(evaluate(objects, truth, aoi=aoi, min_score=detector.card.min_score))
        *validation, quarter = found
        figures = (f"{v:.3f}" for e in (pool(validation), quarter) for v in (e.f1, e.ap50, e.ap))
        rows.append((which, *figures))
        print(rows[-1], flush=True)
    return rows


def convolutions(n: int, channels: int, side: int) -> tuple[Callable[[], Tensor], ...]:
    """Return a 3 x 3 convolution in bfloat16, in int8, and the step from the one to the other."""
    ones, bias = [1, 1], torch.zeros(channels)
    x = torch.randn(n, channels, side, side)
    weight = torch.randn(channels, channels, 3, 3) * 0.03
    layout: Any = {"memory_format": torch.channels_last}
    low, low_bias = x.bfloat16().contiguous(**layout), bias.bfloat16()
    dnn, quantum = torch.ops.mkldnn, torch.ops.onednn
    packed = dnn._reorder_convolution_weight(
        weight.bfloat16().contiguous(**layout), ones, ones, ones, 1, list(x.shape)
    )
    scale = float(x.abs().max()) / 127
    small = (x / scale + 128).round().clamp(0, 255).to(torch.uint8).contiguous(**layout)
    scales, zeros = weight.abs().amax((1, 2, 3)) / 127, torch.zeros(channels, dtype=torch.int32)
    whole = (weight / scales[:, None, None, None]).round().to(torch.int8)
    ready = quantum.qconv_prepack(whole, scales, scale, 128, ones, ones, ones, 1, list(x.shape))
    return (
        lambda: dnn._convolution_pointwise(
            low, packed, low_bias, ones, ones, ones, 1, "relu", [], ""
        ),
        lambda: quantum.qconv2d_pointwise(
            small, scale, 128, ready, scales, zeros, bias, ones, ones, ones, 1,
            0.05, 128, torch.uint8, "relu", [], "",
        ),
        lambda: (low * (127 / low.abs().amax()) + 128).to(torch.uint8),
    )  # fmt: skip


def times() -> list[tuple[object, ...]]:
    """Return a row a shape: milliseconds, medians of rounds in turn, on one thread."""
    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = []
    for n, channels, side in SHAPES:
        ways = convolutions(n, channels, side)
        took: list[list[float]] = [[] for _ in ways]
        for turn in range(ROUNDS + 1):
            for way, seconds in zip(ways, took, strict=True):
                begun = time.perf_counter()
                way()
                if turn:
                    seconds.append((time.perf_counter() - begun) * 1e3)
        rows.append(
            (f"{n} x {channels} x {side} x {side}", *(f"{statistics.median(s):.2f}" for s in took))
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="also measure accuracy on it")
    options = parser.parse_args()
    seconds = times()
    quality = [] if options.data is None else accuracy(options.data)
    areas_of = ("validation AOIs", "quarter")
    head = ("8 bits in", *(f"{k}, {a}" for a in areas_of for k in ("F1", "AP50", "AP")))
    parts = [
        "# 8-bit integers on a CPU",
        (
            f"`python benchmarks/int8.py{' DATA' if quality else ''}` on {machine()}, torch "
            f"{torch.__version__}, one thread; medians of {ROUNDS} rounds in turn, milliseconds."
        ),
        table(("3 x 3 convolution", "bfloat16", "int8", "bfloat16 to int8"), seconds),
    ]
    if quality:
        parts.append(table(head, quality))
    write("int8", "\n\n".join(parts), {"ms": seconds, "quality": quality})


if __name__ == "__main__":
    main()
