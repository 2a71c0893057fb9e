"""What ROIAlign is worth against the older ROIPool, on the shipped building model.

    python benchmarks/roi_pool.py ../shared/data/buildings

ROIPool rounds boxes and cells to whole feature cells and takes the maximum in each; ROIAlign reads
the features at exact places. The network's own pooling (ROIAlign, 2 x 2 samples) is swapped in the
box head, the mask head or both; nothing else changes, and nothing is trained again. Areas and
matching are those of benchmarks/model_quality.py. Writes docs/benchmarks/roi_pool.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import geopandas as gpd
import torch
from common import machine, table, write
from model_quality import areas
from torchvision.ops import roi_pool

import geoseg
from geoseg.models.inference import MaskRCNNDetector
from geoseg.models.registry import load_model
from geoseg.models.roialign import PyramidRoIAlign
from geoseg.objects.evaluate import Evaluation, evaluate, pool

HEADS = {
    "ROIAlign in both heads (as trained)": (),
    "ROIPool in the mask head": ("mask_roi_pool",),
    "ROIPool in the box head": ("box_roi_pool",),
    "ROIPool in both heads": ("box_roi_pool", "mask_roi_pool"),
}


def pooled(features: torch.Tensor, rois: torch.Tensor, scale: float, *, size: int) -> torch.Tensor:
    """Pool as Fast R-CNN did; stands in for PyramidRoIAlign.pool."""
    return roi_pool(features.float().contiguous(), rois, size, scale)


def detector(heads: tuple[str, ...]) -> MaskRCNNDetector:
    """Return the shipped model with ROIPool in the given heads."""
    made = load_model("buildings", device="cpu")
    for name in heads:
        part: PyramidRoIAlign = getattr(made.model.roi_heads, name)
        part.pool = partial(pooled, size=part.output_size[0])
    # another detector than the one whose parts may lie in a run directory
    made.fingerprint += "+".join(heads)
    return made


def judge(data: Path, heads: tuple[str, ...]) -> Evaluation:
    """Return the evaluation of all areas together."""
    buildings = gpd.read_file(data / "buildings.geojson")
    made = detector(heads)
    results = []
    for image, aoi in areas(data).values():
        with tempfile.TemporaryDirectory() as folder:
            aoi.to_file(Path(folder) / "aoi.geojson")
            objects = geoseg.detect(
                data / "ortho" / image, detector=made, aoi=Path(folder) / "aoi.geojson", workers=1
            )
        truth = buildings[buildings["image"] == image]
        results.append(evaluate(objects, truth, aoi=aoi, min_score=made.min_score))
    return pool(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name, heads in HEADS.items():
        e = judge(options.data, heads)
        figures[name] = {
            "f1": round(e.f1, 3),
            "precision": round(e.precision, 3),
            "recall": round(e.recall, 3),
            "mean_iou": round(e.mean_iou, 3),
            "ap50": round(e.ap50, 3),
            "ap": round(e.ap, 3),
            "truth": e.n_truth,
        }
        print(name, json.dumps(figures[name]), flush=True)
    head = ["pooling", "F1", "precision", "recall", "IoU of matches", "AP50", "AP"]
    keys = ("f1", "precision", "recall", "mean_iou", "ap50", "ap")
    rows = [[name, *(f"{values[k]:.3f}" for k in keys)] for name, values in figures.items()]
    n = next(iter(figures.values()))["truth"]
    text = (
        "# ROIAlign against ROIPool\n\n`python benchmarks/roi_pool.py ../shared/data/buildings` on "
        f"{machine()}; {n} buildings of the validation areas and the held-out quarter.\n\n"
        f"{table(head, rows)}"
    )
    write("roi_pool", text, figures)


if __name__ == "__main__":
    main()
