"""Size and speed of every model that has a name, on one CPU thread (and a GPU, if there is one).

    python benchmarks/models.py [--repeats 3] [--names maskrcnn_resnet50_fpn ...]

Weights that would have to be downloaded are random ones instead: the time is the same, but for the
number of detections, which is set to 50 a tile (the boxes do not matter). Prints a Markdown table
and writes docs/benchmarks/models.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from common import machine, table, write

from geoseg.models.inference import MaskRCNNDetector
from geoseg.models.known import KNOWN
from geoseg.models.maskrcnn import Architecture, build_maskrcnn, count_weights
from geoseg.models.registry import find_card, load_model, shipped_models

SIDE = 768
DETECTIONS = 50
TIMM = ("maskrcnn:tf_efficientnet_lite0", "maskrcnn:resnet50")


def picture(rng: np.random.Generator) -> np.ndarray:
    """Return (1, 3, SIDE, SIDE) uint8 with structure at several scales."""
    out = np.zeros((3, SIDE, SIDE))
    for cell in (4, 16, 64):
        small = rng.normal(0, 40, (3, SIDE // cell, SIDE // cell))
        out += small.repeat(cell, 1).repeat(cell, 2)
    return np.clip(out + 128, 0, 255).astype(np.uint8)[None]


def random_detector(name: str, device: str, *, exact: bool) -> MaskRCNNDetector:
    """Return a network of random weights with `DETECTIONS` objects a tile."""
    card = replace(find_card(name), max_detections=DETECTIONS)
    torch.manual_seed(0)
    model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
    with torch.no_grad():
        # every proposal is an object of some class
        model.roi_heads.box_predictor.cls_score.bias[0] = -100
    how = "auto" if exact else "fast"
    return MaskRCNNDetector(model, card, device=device, min_score=0.0, exact=exact, precision=how)


def seconds(detector: MaskRCNNDetector, tile: np.ndarray, repeats: int) -> float:
    """Return the median seconds of a tile, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        begun = time.process_time() if detector.device.type == "cpu" else time.perf_counter()
        detector(tile)
        ended = time.process_time() if detector.device.type == "cpu" else time.perf_counter()
        times.append(ended - begun)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--names", nargs="*", default=[*shipped_models(), *KNOWN, *TIMM])
    options = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    tile = picture(np.random.default_rng(0))
    rows, figures = [], {}
    for name in options.names:
        card = find_card(name)
        millions = count_weights(Architecture.from_dict(card.architecture), card.n_outputs) / 1e6
        row: list[object] = [name, f"{millions:.1f}"]
        row += ["-" if card.gsd_m is None else f"{card.gsd_m:g}", len(card.classes)]
        figures[name] = {"million_weights": round(millions, 1)}
        for device in devices:
            for exact in (False, True):
                if name in shipped_models():
                    made = load_model(name, device=device, exact=exact)
                else:
                    made = random_detector(name, device, exact=exact)
                each = seconds(made, tile, options.repeats) / (SIDE * SIDE / 1e6)
                figures[name][f"s_per_mp_{device}{'_exact' if exact else ''}"] = round(each, 3)
                row.append(f"{each:.2f}")
                del made
        rows.append(row)
        print(row, flush=True)
    head = ["model", "weights, M", "GSD, m", "classes"]
    head += [f"s/Mpx {d}{e}" for d in devices for e in ("", ", exact")]
    text = (
        "# Models: size and speed\n\n`python benchmarks/models.py` on "
        f"{machine()}, torch {torch.__version__}, one thread (CPU time), tiles of {SIDE} px; "
        f"random weights and {DETECTIONS} detections a tile for all but the shipped model.\n\n"
        f"{table(head, rows)}"
    )
    write("models", text, figures)


if __name__ == "__main__":
    main()
