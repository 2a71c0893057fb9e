"""How fast a GPU can be at best: operations and bytes of a tile, and the time that they take.

``python benchmarks/gpu_floor.py [--tflops 790] [--tbytes 4.8] [--side 1024]`` counts on tensors
without values, so that it needs no GPU, and writes docs/benchmarks/gpu_floor.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import machine, table, write
from models import random_detector
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from geoseg.models.fixed import (
    find_fixed,
    masks_fixed,
    pack_atlas,
    propose_fixed,
)
from geoseg.models.gpu import FixedShapes, GpuOptions, _without_values
from geoseg.models.inference import _SURE_LOGIT
from geoseg.models.registry import load_model

MODELS = ("buildings", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
BATCH = 8
MASKS = 50
"""Detections of a tile that get a mask."""


@dataclass
class Work:
    """What a part of the network has to do for a batch."""

    flops: float = 0.0
    bytes: float = 0.0
    """Read and written by operations that multiply; what lies between them counts as fused."""
    other_bytes: float = 0.0
    """Read and written by the other operations, if each is a kernel of its own."""
    seconds: float = 0.0
    """Sum over the operations that multiply of the longer of computing and moving."""


class Counter(TorchDispatchMode):
    """Adds up the work of all operations."""

    def __init__(self, flops_s: float, bytes_s: float) -> None:
        super().__init__()
        self.flops_s, self.bytes_s = flops_s, bytes_s
        self.part = ""
        self.parts: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        work = self.parts[self.part]
        moved = sum(
            leaf.numel() * leaf.element_size()
            for leaf in tree_leaves((args, kwargs, out))
            if isinstance(leaf, Tensor)
        )
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            flops = float(count(*args, **(kwargs or {}), out_val=out))
            work.flops += flops
            work.bytes += moved
            work.seconds += max(flops / self.flops_s, moved / self.bytes_s)
        elif not func.is_view:
            work.other_bytes += moved
        return out


def count(name: str, side: int, flops_s: float, bytes_s: float) -> dict[str, Work]:
    """Count the work of one tile, by part of the network."""
    if name == "buildings":
        detector = load_model(name, device="cpu")
    else:
        detector = random_detector(name, "cpu", exact=False)
    engine = FixedShapes(detector, GpuOptions(batch=BATCH))
    model: Any = _without_values(detector.model, torch.bfloat16)
    outputs, card, size = detector._outputs.to("meta"), detector.card, (side, side)
    counter = Counter(flops_s, bytes_s)

    def of(part: str, do: Callable[[], Any]) -> Any:
        counter.part = part
        return do()

    # in inference mode convolutions are called by names that are not counted
    with counter, torch.no_grad():
        pixels = of("pixels", lambda: torch.empty((BATCH, 3, side, side), device="meta").bfloat16())
        body = of("backbone", lambda: model.backbone.body(pixels))
        if not isinstance(body, dict):
            body = {str(i): level for i, level in enumerate(body)}
        features = of("pyramid", lambda: model.backbone.fpn(body))
        maps = list(features.values())
        heads = of("proposals", lambda: model.rpn.head(maps))
        anchors = engine._anchors_of(model.rpn, pixels, maps, size)
        proposals = of(
            "proposals",
            lambda: propose_fixed(model.rpn, heads, anchors, size, card, _SURE_LOGIT),
        )
        levels = model.roi_heads.box_roi_pool.levels
        atlas = of("boxes", lambda: pack_atlas([features[k] for k in levels]))
        found = of(
            "boxes",
            lambda: find_fixed(model.roi_heads, atlas, proposals, outputs, size, card, 0.5),
        )
        of(
            "masks",
            lambda: masks_fixed(model.roi_heads, atlas, found, outputs, 0, BATCH * MASKS, 28),
        )
    del counter.parts["pixels"]
    for work in counter.parts.values():
        for field in ("flops", "bytes", "other_bytes", "seconds"):
            setattr(work, field, getattr(work, field) / BATCH)
    return dict(counter.parts)


def floors(side: int, flops_s: float, bytes_s: float) -> dict[str, dict[str, Work]]:
    return {name: count(name, side, flops_s, bytes_s) for name in MODELS}


def report(found: dict[str, dict[str, Work]], side: int, tflops: float, tbytes: float) -> str:
    rows, totals = [], []
    for name, parts in found.items():
        for part, work in parts.items():
            rows.append(
                (name, part, f"{work.flops / 1e9:.1f}", f"{work.bytes / 1e6:.0f}",
                 f"{work.other_bytes / 1e6:.0f}", f"{1e3 * work.seconds:.3f}")
            )  # fmt: skip
        flops, seconds, moved, other = (
            sum(getattr(work, field) for work in parts.values())
            for field in ("flops", "seconds", "bytes", "other_bytes")
        )
        unfused = seconds + other / (tbytes * 1e12)
        totals.append(
            (name, f"{flops / 1e9:.0f}", f"{(moved + other) / 1e9:.2f}",
             f"{1e3 * flops / (tflops * 1e12):.3f}", f"{1e3 * seconds:.3f}", f"{1 / seconds:,.0f}",
             f"{1e3 * unfused:.3f}", f"{1 / unfused:,.0f}")
        )  # fmt: skip
    return "\n".join(
        [
            f"# The floor of a GPU at {side} px",
            "",
            (
                f"Made by `python benchmarks/gpu_floor.py --tflops {tflops:g} --tbytes {tbytes:g} "
                f"--side {side}`. {machine()}."
            ),
            "",
            (
                f"Counted, not measured: a multiply-add is two operations, numbers are bfloat16, "
                f"{BATCH} tiles a batch, {MASKS} masks a tile, {tflops:g} TFLOP/s of dense "
                f"bfloat16 and {tbytes:g} TB/s (an H200). *Computing alone* divides operations by "
                "peak. *Floor* adds up, over the operations that multiply, the longer of computing "
                "and moving their inputs and outputs once; all others count as fused into them. "
                "*Unfused* adds the others as kernels of their own."
            ),
            "",
            table(
                ("model", "GFLOP a tile", "GB moved", "computing alone, ms", "floor, ms",
                 "tiles/s", "unfused, ms", "tiles/s unfused"),
                totals,
            ),
            "",
            table(
                ("model", "part", "GFLOP", "MB of products", "MB of others", "floor, ms"), rows
            ),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=790.0)
    parser.add_argument("--tbytes", type=float, default=4.8)
    parser.add_argument("--side", type=int, default=1024)
    args = parser.parse_args()
    found = floors(args.side, args.tflops * 1e12, args.tbytes * 1e12)
    figures = {
        "machine": machine(),
        "peak": {"tflops": args.tflops, "tbytes": args.tbytes},
        "models": {
            name: {part: vars(work) for part, work in parts.items()}
            for name, parts in found.items()
        },
    }
    write("gpu_floor", report(found, args.side, args.tflops, args.tbytes), figures)


if __name__ == "__main__":
    main()
