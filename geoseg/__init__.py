"""geoseg: find and count objects in aerial imagery overnight.

The stages, in the order that the data flows: `geoseg.imagery` reads GeoTIFFs as overlapping tiles;
`geoseg.models` finds instances in tiles; `geoseg.objects` traces, stitches, counts and evaluates;
`geoseg.outputs` writes tables and pictures; `geoseg.jobs` runs it all on Dask workers;
`geoseg.learning` trains models; `geoseg.scenes` renders towns with known truth.

>>> import geoseg
>>> sorted(geoseg.__all__)[:3]
['Detector', 'Fragments', 'Instances']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from geoseg.api import detect
    from geoseg.models.detector import Detector
    from geoseg.models.registry import load_model
    from geoseg.objects.compare import compare
    from geoseg.objects.count import count
    from geoseg.objects.evaluate import evaluate
    from geoseg.objects.stitch import stitch
    from geoseg.objects.vectorize import vectorize
    from geoseg.records import Fragments, Instances, Objects, Tile
    from geoseg.runs import Run, open_run

_WHERE = {
    "detect": "geoseg.api",
    "Detector": "geoseg.models.detector",
    "load_model": "geoseg.models.registry",
    "compare": "geoseg.objects.compare",
    "count": "geoseg.objects.count",
    "evaluate": "geoseg.objects.evaluate",
    "stitch": "geoseg.objects.stitch",
    "vectorize": "geoseg.objects.vectorize",
    "Fragments": "geoseg.records",
    "Instances": "geoseg.records",
    "Objects": "geoseg.records",
    "Tile": "geoseg.records",
    "Run": "geoseg.runs",
    "open_run": "geoseg.runs",
}
"""Loaded when first asked for: ``geoseg --help`` must not wait for torch."""

__all__ = [
    "Detector",
    "Fragments",
    "Instances",
    "Objects",
    "Run",
    "Tile",
    "compare",
    "count",
    "detect",
    "evaluate",
    "load_model",
    "open_run",
    "stitch",
    "vectorize",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'geoseg' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
