"""Tiles and square kilometres per second on a GPU, from a JPEG COG to a GeoPackage.

``python benchmarks/gpu_throughput.py`` measures the shipped model, v1 and v2 at 1,024 px tiles in
one run each: end to end, the network alone on tiles in memory (the ceiling), and torchvision's own
eager loop ``model([image])`` with its pasting on the same weights, thresholds and tiles. Where
there is a GPU it writes docs/benchmarks/gpu_throughput; without one it runs small, on the CPU, to
show that it works, and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from common import machine, table, write
from gpu_floor import MODELS, count
from models import random_detector
from rasterio.shutil import copy as copy_raster

from geoseg.config import DetectSettings
from geoseg.jobs.pipeline import run_detect
from geoseg.models.gpu import FixedShapes, GpuOptions
from geoseg.models.registry import load_model
from geoseg.scenes.town import render_town

TFLOPS, TBYTES = 790.0, 4.8
GSD_M = 0.14
OVERLAP = 128


class Busy:
    """Samples how busy the GPU is, as its driver tells; None where it does not."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self.samples.append(torch.cuda.utilization())
            except (RuntimeError, ModuleNotFoundError):
                return

    def __enter__(self) -> Busy:
        if torch.cuda.is_available():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    @property
    def share(self) -> float | None:
        """Return the mean share of time; None where nothing was told."""
        return statistics.mean(self.samples) / 100 if self.samples else None


def write_cog(folder: Path, side: int) -> Path:
    """Render a town and write it as a Cloud Optimized GeoTIFF with JPEG."""
    town = render_town(
        folder / "town", width_px=side, height_px=side, gsd_m=GSD_M, seed=3, hole=False
    )
    path = folder / "town-cog.tif"
    copy_raster(town.image, path, driver="COG", compress="JPEG", quality=85, blocksize=512)
    return path


def read_tiles(path: Path, tile: int, most: int) -> np.ndarray:
    with rasterio.open(path) as src:
        pixels = src.read([1, 2, 3])
    step = tile - OVERLAP
    places = [
        (y, x)
        for y in range(0, pixels.shape[1] - tile + 1, step)
        for x in range(0, pixels.shape[2] - tile + 1, step)
    ]
    return np.stack([pixels[:, y : y + tile, x : x + tile] for y, x in places[:most]])


def make(name: str, device: str, options: GpuOptions) -> Any:
    """Return a detector in fixed shapes."""
    if name == "buildings":
        detector = load_model(name, device=device, exact=False)
    else:
        detector = random_detector(name, device, exact=False)
    if options.batch is not None:
        detector.batch = options.batch
    detector._fixed = FixedShapes(detector, options)
    return detector


def seconds_a_tile(work: Any, n: int, repeats: int) -> float:
    """Return the median seconds a tile, after one run that warms up."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) / n)
    return statistics.median(times[1:])


@torch.inference_mode()
def eager_loop(detector: Any, tiles: np.ndarray) -> int:
    """Run torchvision's forward tile by tile, masks pasted and brought to the host."""
    model, card = detector.model, detector.card
    side = tiles.shape[2]
    model.transform.min_size, model.transform.max_size = (side,), side
    model.transform.image_mean, model.transform.image_std = list(card.mean), list(card.std)
    heads, rpn = model.roi_heads, model.rpn
    heads.score_thresh, heads.nms_thresh = detector.min_score, card.nms_iou
    heads.detections_per_img = card.max_detections
    for limits in (rpn._pre_nms_top_n, rpn._post_nms_top_n):
        wanted = card.rpn_pre_nms if limits is rpn._pre_nms_top_n else card.proposals
        limits.update(training=wanted, testing=wanted)
    found = 0
    for tile in tiles:
        image = torch.from_numpy(tile).to(detector.device).float() / 255
        result = model([image])[0]
        found += len((result["masks"] > 0.5).cpu().numpy())
        for column in ("boxes", "scores", "labels"):
            result[column].cpu()
    return found


def end_to_end(detector: Any, cog: Path, folder: Path, tile: int) -> dict[str, Any]:
    """Run a whole job in this process."""
    detector.tile_size = tile
    with Busy() as busy:
        result = run_detect(
            DetectSettings(
                images=(str(cog),), output=folder / "out.gpkg", workers=1, tile_size=tile,
                overlap=OVERLAP, gsd="native", report=False, overwrite=True,
                supertile_size=8192 if torch.cuda.is_available() else None,
            ),
            detector=detector,
        )  # fmt: skip
    with rasterio.open(cog) as src:
        km2 = src.width * src.height * GSD_M**2 / 1e6
    tiles = int(result.coverage["tiles_run"].sum())
    return {
        "tiles": tiles,
        "seconds": round(result.seconds, 2),
        "tiles_s": tiles / result.seconds,
        "km2_h": 3600 * km2 / result.seconds,
        "objects": result.n_objects,
        "busy": busy.share,
    }


def measure(name: str, cog: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one model in all ways."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiles = read_tiles(cog, args.tile, args.tiles)
    ways = {"bfloat16": GpuOptions(batch=args.batch)}
    if device == "cuda":
        ways |= {
            "bfloat16, graphs": GpuOptions(graphs=True, batch=args.batch),
            "float32": GpuOptions("float32", batch=args.batch),
        }
    ceilings, found = {}, {}
    for way, options in ways.items():
        detector = make(name, device, options)
        ceilings[way] = seconds_a_tile(lambda d=detector: d(tiles), len(tiles), args.repeats)
        found[way] = sum(map(len, detector(tiles)))
        batch = detector.batch
        del detector
    best = min(ceilings, key=lambda way: ceilings[way])
    detector = make(name, device, replace(ways[best], batch=batch))
    whole = end_to_end(detector, cog, folder, args.tile)
    eager = seconds_a_tile(lambda: eager_loop(detector, tiles), len(tiles), args.repeats)
    parts = count(name, args.tile, TFLOPS * 1e12, TBYTES * 1e12)
    return {
        "model": name,
        "batch": batch,
        "network_ms": {way: 1e3 * s for way, s in ceilings.items()},
        "found": found,
        "best": best,
        "eager_ms": 1e3 * eager,
        "floor_ms": 1e3 * sum(work.seconds for work in parts.values()),
        **whole,
    }


def report(runs: list[dict[str, Any]], tile: int, device: str) -> str:
    rows = []
    for r in runs:
        network = r["network_ms"][r["best"]]
        busy = "-" if r["busy"] is None else f"{r['busy']:.0%}"
        rows.append(
            (r["model"], r["batch"], f"{r['floor_ms']:.2f}", r["best"], f"{network:.2f}",
             f"{network / r['floor_ms']:.1f}", f"{1e3 / r['tiles_s']:.2f}", f"{r['tiles_s']:.1f}",
             f"{r['km2_h']:.0f}", f"{network * r['tiles_s'] / 1e3:.0%}", busy,
             f"{r['eager_ms']:.2f}", f"{r['eager_ms'] / network:.1f}")
        )  # fmt: skip
    ways = [
        (r["model"], way, f"{ms:.2f}", r["found"][way])
        for r in runs
        for way, ms in r["network_ms"].items()
    ]
    head = (
        "model", "batch", "floor, ms", "best way", "network, ms", "times the floor",
        "end to end, ms", "tiles/s", "km2/h", "of the ceiling", "GPU busy",
        "torchvision's loop, ms", "slower",
    )  # fmt: skip
    return "\n".join(
        [
            "# Throughput on a GPU",
            "",
            f"Made by `python benchmarks/gpu_throughput.py`. {device}; {machine()}.",
            "",
            (
                f"Tiles of {tile} px, {OVERLAP} px overlap, from a JPEG COG of a rendered town to "
                "a GeoPackage, one process. *Network* is the same detector on tiles in memory, "
                "masks on the host; *floor* as in [gpu_floor.md](gpu_floor.md); *torchvision's "
                "loop* is `model([image])` tile by tile with pasted masks brought to the host. v1 "
                "and v2 have random weights and 50 objects a tile."
            ),
            "",
            table(head, rows),
            "",
            table(("model", "way", "network, ms a tile", "objects"), ways),
        ]
    )


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tile", type=int, default=1024 if gpu else 256)
    parser.add_argument("--side", type=int, default=16384 if gpu else 512)
    parser.add_argument("--tiles", type=int, default=128 if gpu else 2)
    parser.add_argument("--repeats", type=int, default=5 if gpu else 1)
    parser.add_argument("--batch", type=int, default=None if gpu else 2)
    parser.add_argument("--models", nargs="*", default=MODELS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        cog = write_cog(folder, args.side)
        runs = []
        for name in args.models:
            runs.append(measure(name, cog, folder, args))
            print(runs[-1], flush=True)
    device = torch.cuda.get_device_name() if gpu else "no GPU"
    text = report(runs, args.tile, device)
    if gpu:
        write("gpu_throughput", text, {"machine": machine(), "device": device, "runs": runs})
    else:
        print(text)
        print("\nThere is no GPU here: nothing is written.")


if __name__ == "__main__":
    main()
