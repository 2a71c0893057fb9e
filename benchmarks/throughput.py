"""Tiles a second from a file to objects, beside the network alone, torchvision and SAHI.

    python benchmarks/throughput.py [--models buildings ...] [--repeats 3] [--size 4096]
    python benchmarks/throughput.py --models buildings --image ortho.tif --truth roofs.geojson
    python benchmarks/throughput.py --models runs/town_v2/model.safetensors --name throughput_v2

Interleaved in one process, on the same pixels, weights, tiles, overlap, thresholds and threads:

ceiling
    geoseg's own network on tiles that lie in memory, and nothing else: one tile after another, all
    threads at each.
ceiling, side by side
    The same, in the lanes that a run has on a CPU: two tiles at a time, half of the threads each.
geoseg
    `run_detect` with one worker, in process, without the report page: read, detect, vectorize,
    stitch, write a GeoPackage. Start-up and loading of the model come before the clock.
geoseg, float32
    The same with ``--precision float32``, on a CPU that computes in bfloat16 unless told otherwise.
torchvision forward
    torchvision's unchanged model on tensors that lie in memory; no pasting.
torchvision loop
    `model(images)` with its pasting, `cv2.findContours` of each mask, NMS of all tiles' boxes.
SAHI
    `get_sliced_prediction` of the same torchvision model.

The scene is a rendered town: whole for the shipped model, its middle for torchvision's networks,
whose weights are random but scaled so that scores and boxes differ; their score threshold is set
for `DETECTIONS` objects a tile of a dense scene. OpenCV and SAHI are optional. Writes
docs/benchmarks/throughput.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import peers
import rasterio
import shapely
import torch
from common import machine, sahi_in_words, table, write
from rasterio.windows import Window
from torchvision.models import detection

from geoseg.config import DetectSettings
from geoseg.imagery.grid import TileGrid
from geoseg.jobs.lanes import keeping_threads, lanes_of, submit
from geoseg.jobs.pipeline import RunResult, run_detect
from geoseg.models.cpu import bfloat16_pays
from geoseg.models.inference import MaskRCNNDetector
from geoseg.models.known import KNOWN
from geoseg.models.registry import load_model, open_model
from geoseg.objects.evaluate import evaluate
from geoseg.outputs.tables import read_vector
from geoseg.records import Tile
from geoseg.scenes.town import render_town

MODELS = ("buildings", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
TORCHVISION_TILE = 1024
TORCHVISION_OVERLAP = 128
TORCHVISION_SIDE = 1920
"""Side of the scene for torchvision's networks, px: four tiles."""
DETECTIONS = 60
"""Objects in a tile of torchvision's networks."""
CAP = 400
"""Detections of a tile of theirs: so many that no tile is full."""
NOTES = (
    "The scene is a rendered town. torchvision's networks, where named without a file, have "
    "random, calibrated weights; `town_v2` is trained on rendered towns (benchmarks/town_v2.toml), "
    "without this one. Medians of paired runs: a ratio is the median of the repeats' own ratios, "
    "above 1 where geoseg is faster; that of a ceiling is the share of geoseg's tiles a second in "
    "it. Outlines of random weights are not simplified, as the others' are not. Recall of trained "
    "weights is against the town's true footprints, that of random weights against geoseg's "
    "objects in float32: the share of them that the other way found too (IoU 0.5)."
)


@dataclass
class Bench:
    """One model on one scene: what all methods share, and what they gave."""

    name: str
    image: Path
    limits: peers.Limits
    detector: MaskRCNNDetector
    network: torch.nn.Module
    """torchvision's."""
    folder: Path
    tiles: list[tuple[Tile, np.ndarray]]
    single: MaskRCNNDetector | None
    """The same in float32, where this CPU computes in bfloat16 unless told otherwise."""
    truth: gpd.GeoDataFrame | None
    aoi: gpd.GeoDataFrame | None
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Method to (wall clock, CPU) of each repeat."""
    objects: dict[str, gpd.GeoDataFrame] = field(default_factory=dict)
    run: RunResult | None = None

    @property
    def title(self) -> str:
        """Name in the tables."""
        return self.name if self.name in KNOWN else self.detector.card.name

    def methods(self) -> dict[str, Callable[[], Any]]:
        """Return what can be run here."""
        tensors = [torch.from_numpy(pixels).float() / 255 for _, pixels in self.tiles]
        stacked = np.stack([pixels for _, pixels in self.tiles])
        out: dict[str, Callable[[], Any]] = {
            "ceiling": lambda: self.detector(stacked),
            "ceiling, side by side": lambda: self.in_lanes(stacked),
            "geoseg": self.end_to_end,
            "torchvision forward": lambda: peers.forward(self.network, tensors),
        }
        if self.single is not None:
            out["geoseg, float32"] = lambda: self.end_to_end(self.single)
        if peers.cv2 is not None:
            out["torchvision loop"] = lambda: peers.torchvision_loop(self.network, self.tiles)
        if peers.TorchVisionDetectionModel is not None:
            held = peers.sahi_model(self.network, self.limits)
            with rasterio.open(self.image) as file:
                pixels = np.ascontiguousarray(file.read((1, 2, 3)).transpose(1, 2, 0))
            out["SAHI"] = lambda: peers.sahi_sliced(held, pixels, self.limits)
        return out

    def in_lanes(self, tiles: np.ndarray) -> None:
        """Run the network on tiles as a run does, and do nothing else."""
        threads = torch.get_num_threads()
        lanes = lanes_of(self.detector, threads)
        with keeping_threads():
            out = [
                submit(partial(self.detector, tiles[i : i + 1]), lanes=lanes, threads=threads)
                for i in range(len(tiles))
            ]
            for future in out:
                future.result()

    def settings(self, image: Path) -> DetectSettings:
        """Return the settings of a run that does what the others do."""
        return DetectSettings(
            images=(str(image),),
            output=self.folder / "objects.gpkg",
            tile_size=self.limits.tile,
            overlap=self.limits.overlap,
            min_score=self.limits.min_score,
            # random weights pile hundreds of ragged outlines onto each other, which no model does;
            # to simplify them without new overlaps takes longer than to find them
            simplify=0.0 if self.name in KNOWN else 0.25,
            gsd="native",
            workers=1,
            device="cpu",
            report=False,
            overwrite=True,
        )

    def end_to_end(self, detector: MaskRCNNDetector | None = None) -> gpd.GeoDataFrame:
        """Run geoseg on the scene, from the beginning: parts of the last run would be reused."""
        shutil.rmtree(self.folder / "objects.geoseg-run", ignore_errors=True)
        self.run = run_detect(self.settings(self.image), detector or self.detector)
        return self.run.objects

    def start(self) -> None:
        """Run geoseg on one tile: libraries are loaded by then."""
        corner = self.folder / "corner.tif"
        crop(self.image, corner, self.tiles[len(self.tiles) // 2][0].window)
        run_detect(self.settings(corner), self.detector)

    def measure(self, repeats: int) -> None:
        """Run all methods in turn, as often as wanted."""
        methods = self.methods()
        for turn in range(repeats):
            for name, work in methods.items():
                wall, cpu = time.perf_counter(), time.process_time()
                made = work()
                took = time.perf_counter() - wall, time.process_time() - cpu
                self.seconds.setdefault(name, []).append(took)
                print(f"{self.name} {turn + 1}/{repeats} {name}: {took[0]:.1f} s", flush=True)
                if made is not None and name not in ("ceiling", "torchvision forward"):
                    self.objects[name] = self.frame(made)

    def frame(self, made: Any) -> gpd.GeoDataFrame:
        """Return objects in the image's CRS."""
        if isinstance(made, gpd.GeoDataFrame):
            return made
        polygons, scores = made
        with rasterio.open(self.image) as file:
            t, crs = file.transform, file.crs
        placed = shapely.transform(
            shapely.make_valid(polygons),
            lambda xy: np.stack(t @ (xy[:, 0], xy[:, 1]), 1),
        )
        return gpd.GeoDataFrame({"score": scores}, geometry=placed, crs=crs)

    def ratio(self, method: str, over: str, clock: int) -> float:
        """Return the median over repeats of one method's seconds by another's."""
        pairs = zip(self.seconds[method], self.seconds[over], strict=True)
        return statistics.median(a[clock] / b[clock] for a, b in pairs)


def crop(image: Path, to: Path, window: Window) -> None:
    """Write a window of an image as a GeoTIFF."""
    with rasterio.open(image) as file:
        profile = {
            "driver": "GTiff", "count": 3, "dtype": "uint8", "crs": file.crs,
            "width": int(window.width), "height": int(window.height),
            "transform": file.window_transform(window),
        }  # fmt: skip
        pixels = file.read((1, 2, 3), window=window, boundless=True, fill_value=0)
    with rasterio.open(to, "w", **profile, tiled=True) as out:
        out.write(pixels)


def tiles_of(image: Path, limits: peers.Limits) -> list[tuple[Tile, np.ndarray]]:
    """Return geoseg's tiles of an image with their pixels; those without data left out."""
    with rasterio.open(image) as file:
        grid = TileGrid(file.height, file.width, limits.tile, limits.overlap, 1 << 20)
        shown = [
            tile
            for tile in grid.supertile(0, 0).tiles
            if file.dataset_mask(window=tile.window).any()
        ]
        return [(tile, file.read((1, 2, 3), window=tile.window)) for tile in shown]


def random_weights(name: str, tile: np.ndarray, path: Path) -> None:
    """Write weights of one of torchvision's networks that find different things in a tile."""
    from calibrated import calibrate  # among the tests, which common finds

    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None)
    mean, std = (torch.tensor(x)[:, None, None] for x in (peers.MEAN, peers.STD))
    calibrate(model, ((torch.from_numpy(tile).float() / 255 - mean) / std)[None])
    # objectness ranks proposals; as high as chance makes it, every tile would count as saturated
    model.rpn.head.cls_logits.bias.data -= 6
    # SAHI breaks off at a mask without any pixel
    model.roi_heads.mask_predictor.mask_fcn_logits.bias.data += 4
    torch.save(model.state_dict(), path)


def threshold(path: Path, tiles: Sequence[np.ndarray]) -> float:
    """Return the score that `DETECTIONS` objects a tile reach."""
    detector = load_model(path, device="cpu", min_score=0.02, max_detections=5000)
    scores = np.concatenate([detector(tile[None])[0].scores for tile in tiles])
    return float(np.sort(scores)[::-1][DETECTIONS * len(tiles)])


def prepare(name: str, image: Path, folder: Path, truth: Mapping[str, Any]) -> Bench:
    """Return a model with its scene, weights and limits."""
    weights = name
    if name in KNOWN:
        scene = folder / f"{name}.tif"
        with rasterio.open(image) as file:
            side = min(TORCHVISION_SIDE, file.width, file.height)
            left, top = (file.width - side) // 2, (file.height - side) // 2
        crop(image, scene, Window(left, top, side, side))
        image = scene
        limits = peers.Limits(0.5, TORCHVISION_TILE, TORCHVISION_OVERLAP, CAP)
        tiles = tiles_of(image, limits)
        path = folder / f"{name}.pth"
        random_weights(name, tiles[0][1][:, :512, :512], path)
        weights = str(path)
        limits = replace(limits, min_score=threshold(path, [pixels for _, pixels in tiles]))
    detector = load_model(weights, device="cpu")
    card = detector.card
    if name not in KNOWN:
        limits = peers.Limits(card.min_score, card.tile_size, card.overlap, card.max_detections)
        tiles = tiles_of(image, limits)
    load = partial(
        load_model, weights, device="cpu", precision="fast",
        min_score=limits.min_score, max_detections=limits.max_detections,
    )  # fmt: skip
    # as a run loads it
    detector = load()
    single = load(precision="float32") if bfloat16_pays() else None
    network = peers.torchvision_network(card, open_model(weights)[1], name, limits)
    return Bench(
        name, image, limits, detector, network, folder, tiles, single,
        truth.get("truth"), truth.get("aoi"),
    )  # fmt: skip


def found_rows(bench: Bench) -> list[tuple[object, ...]]:
    """Return a row a method: objects, and how they agree with the truth, or with geoseg's."""
    rows = []
    known = bench.truth is not None and bench.name not in KNOWN
    plain = "geoseg" if bench.single is None else "geoseg, float32"
    for method, objects in bench.objects.items():
        truth = bench.truth if known else bench.objects[plain]
        got = evaluate(objects, truth, aoi=bench.aoi if known else None)
        matched = "-" if method == plain and not known else f"{got.recall:.3f}"
        f1 = f"{got.f1:.3f}" if known else "-"
        rows.append((bench.title, method, len(objects), matched, f1))
    return rows


def speed_rows(bench: Bench) -> list[tuple[object, ...]]:
    """Return a row a method: tiles a second, and how many times its seconds geoseg's are."""
    rows = []
    for method, took in bench.seconds.items():
        wall, cpu = (statistics.median(t[i] for t in took) for i in (0, 1))
        ratios = (f"{bench.ratio(method, 'geoseg', clock):.2f}" for clock in (0, 1))
        tiles_s = f"{len(bench.tiles) / wall:.2f}"
        rows.append((bench.title, method, tiles_s, f"{cpu:.1f}", *ratios))
    return rows


def report(benches: list[Bench], command: str) -> str:
    """Return the page."""
    speed = ("model", "way", "tiles/s", "CPU s", "its time / geoseg's", "its CPU / geoseg's")
    found = ("model", "way", "objects", "recall", "F1")
    settings = [
        f"- {b.title}: {len(b.tiles)} tiles of {b.limits.tile} px, overlap {b.limits.overlap}, "
        f"score from {b.limits.min_score:.3f}, {b.detector.card.proposals} proposals; "
        f"{b.run.saturated if b.run else 0} tiles ran again in quarters."
        for b in benches
    ]
    missing = [peers.NO_OPENCV] if peers.cv2 is None else []
    ways = (__doc__ or "").partition("Interleaved")[2].partition("The scene")[0]
    setting = (
        f"`{command}` on {machine()}, torch {torch.__version__}, {torch.get_num_threads()} "
        f"threads; {' '.join([sahi_in_words(), *missing])}"
    )
    parts = [
        "# Throughput: geoseg, the network alone, torchvision, SAHI",
        setting,
        f"Interleaved{ways.rstrip()}",
        NOTES,
        "\n".join(settings),
        "## Speed",
        table(speed, [row for b in benches for row in speed_rows(b)]),
        "## Objects found",
        table(found, [row for b in benches for row in found_rows(b)]),
    ]
    return "\n\n".join(parts)


def scene(options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the image, and what is known to be on it."""
    if options.image is not None:
        truth = {} if options.truth is None else {"truth": read_vector(options.truth)}
        return options.image, truth
    town = render_town(folder / "town", width_px=options.size, height_px=options.size)
    return town.image, {
        "truth": read_vector(town.footprints, what="truth"),
        "aoi": read_vector(town.aoi, what="AOI"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=4096, help="side of the rendered town, px")
    parser.add_argument("--image", type=Path, help="a real image instead")
    parser.add_argument("--truth", type=Path, help="its true outlines")
    parser.add_argument("--name", default="throughput", help="of the page under docs/benchmarks")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    benches = []
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as name:
        folder = Path(name)
        image, truth = scene(options, folder)
        for model in options.models:
            bench = prepare(model, image, folder, truth)
            bench.start()
            bench.measure(options.repeats)
            benches.append(bench)
        named = " ".join(options.models)
        command = f"python benchmarks/throughput.py --models {named} --repeats {options.repeats}"
        if options.size != parser.get_default("size"):
            command += f" --size {options.size}"
        if options.name != parser.get_default("name"):
            command += f" --name {options.name}"
        figures = {
            b.title: {
                "tiles": len(b.tiles),
                "seconds": b.seconds,
                "ratios": {m: round(b.ratio(m, "geoseg", 0), 3) for m in b.seconds},
                "cpu_ratios": {m: round(b.ratio(m, "geoseg", 1), 3) for m in b.seconds},
                "objects": {m: len(o) for m, o in b.objects.items()},
            }
            for b in benches
        }
        write(options.name, report(benches, command), figures)


if __name__ == "__main__":
    main()
