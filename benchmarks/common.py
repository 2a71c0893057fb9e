"""What the benchmarks share: the machine in words, tables, files, and SAHI's postprocess."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from geoseg.records import Fragments, Objects, Tile

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks"
# the painted scenes of the tests are those of the benchmarks
sys.path.insert(0, str(ROOT / "tests"))

try:
    from sahi import __version__ as SAHI_VERSION
    from sahi.postprocess.backends import resolve_backend
    from sahi.postprocess.combine import GreedyNMMPostprocess, NMSPostprocess
    from sahi.prediction import ObjectPrediction
except ImportError:
    SAHI_VERSION = ""

NO_SAHI = "SAHI is not installed, so its figures are left out; `pip install sahi` brings them."


def sahi_in_words() -> str:
    """Return SAHI's version and array backend, or that it is missing."""
    if not SAHI_VERSION:
        return NO_SAHI
    return f"SAHI {SAHI_VERSION}, backend {resolve_backend()}."


def machine() -> str:
    """Return cores, CPU and Python in words; nothing that names the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return (
        f"{os.cpu_count()} cores, {cpu}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, Shapely {shapely.__version__}, GEOS {shapely.geos_version_string}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, columns aligned."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write(name: str, text: str, figures: dict[str, Any]) -> None:
    """Print a report and write it to docs/benchmarks, with its figures as JSON beside it."""
    print(text)
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / f"{name}.md").write_text(text + "\n")
    (DOCS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def sahi_predictions(
    fragments: Fragments, tiles: Sequence[Tile], shape: tuple[int, int]
) -> list[ObjectPrediction]:
    """Return the fragments as SAHI has them after slicing: polygons moved to the full image.

    SAHI gets the sub-pixel outlines that geoseg gets. Its own tracing walks pixel centres, which
    takes 44 % off a square of 4 px; that is left out of the comparison. Its polygons know no holes.
    """
    found = []
    rings = shapely.get_exterior_ring(fragments.polygons)
    for ring, score, label, row in zip(
        rings, fragments.scores, fragments.labels, fragments.tiles, strict=True
    ):
        window = tiles[row].window
        offset = (window.col_off, window.row_off)
        found.append(
            ObjectPrediction(
                segmentation=[(shapely.get_coordinates(ring) - offset).ravel().tolist()],
                category_id=int(label),
                score=float(score),
                shift_amount=list(offset),
                full_shape=list(shape),
            ).get_shifted_object_prediction()
        )
    return found


def sahi_postprocess(kind: str) -> GreedyNMMPostprocess | NMSPostprocess:
    """Return SAHI's default (greedy merging, intersection over smaller 0.5) or NMS at IoU 0.5."""
    if kind == "GREEDYNMM":
        return GreedyNMMPostprocess(0.5, "IOS", class_agnostic=False)
    return NMSPostprocess(0.5, "IOU", class_agnostic=False)


def sahi_objects(predictions: Sequence[ObjectPrediction]) -> Objects:
    """Return SAHI's result in geoseg's record."""
    polygons = []
    for p in predictions:
        parts = [np.reshape(s, (-1, 2)) for s in p.mask.segmentation if len(s) >= 6]
        polygons.append(
            shapely.union_all(shapely.make_valid([shapely.Polygon(xy) for xy in parts]))
        )
    n = len(polygons)
    return Objects(
        polygons=np.array(polygons, object),
        scores=np.array([p.score.value for p in predictions], np.float32),
        labels=np.array([p.category.id for p in predictions], np.int64),
        n_parts=np.ones(n, np.int64),
        complete=np.ones(n, bool),
        touches_edge=np.zeros(n, bool),
    )
