"""Runs to make pages of, and pages taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine

from geoseg.imagery.source import describe_raster
from geoseg.objects.count import count
from geoseg.outputs.report import RunFacts
from geoseg.outputs.tables import ObjectsWriter, objects_to_arrow

UTM = 32633
WEST, NORTH = 500_000.0, 5_500_000.0
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=hacked()>&\"'"


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in self.raw:
            self.raw[self._open][-1] += data
        elif data.strip():
            self.texts.append(data.strip())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def data(self) -> dict:
        kinds = [a.get("type") for a in self.named("script")]
        return json.loads(self.raw["script"][kinds.index("application/json")])


def make_objects(n: int, *, classes=("house",), side: float = 200.0, seed: int = 1):
    rng = np.random.default_rng(seed)
    x = WEST + rng.uniform(0, side - 5, n)
    y = NORTH - rng.uniform(0, side - 5, n)
    size = rng.uniform(1, 5, n)
    shapes = shapely.box(x, y - size, x + size, y)
    return gpd.GeoDataFrame(
        {
            "object_id": np.arange(1, n + 1),
            "uid": [f"{i:016x}" for i in range(n)],
            "class": [classes[i % len(classes)] for i in range(n)],
            "score": np.linspace(0.5, 0.99, n),
            "area_m2": shapely.area(shapes),
            "perimeter_m": shapely.length(shapes),
            "n_parts": np.where(np.arange(n) % 50 == 7, 2, 1),
            "touches_edge": False,
            "image": "image.tif",
        },
        geometry=shapes,
        crs=UTM,
    )


def make_regions(names=("north", "south"), crs=UTM) -> gpd.GeoDataFrame:
    step = 200.0 / len(names)
    shapes = [
        shapely.box(WEST, NORTH - (i + 1) * step, WEST + 200, NORTH - i * step)
        for i in range(len(names))
    ]
    return gpd.GeoDataFrame({"name": list(names)}, geometry=shapes, crs=UTM).to_crs(crs)


def about_image(path: Path) -> dict:
    info = describe_raster(path)
    return {
        "name": path.name,
        "fingerprint": info.fingerprint,
        "gsd_m": info.gsd_m,
        "working_gsd_m": info.gsd_m,
        "grid_px": [info.height, info.width],
        "grid_transform": list(info.transform)[:6],
        "crs": info.crs_wkt,
        "tiles": 4,
        "tile_size": 128,
        "overlap": 32,
    }


def write_objects_of(folder: Path, objects: gpd.GeoDataFrame) -> Path:
    with ObjectsWriter(folder / "objects.parquet", objects.crs) as writer:
        writer.write(objects_to_arrow(objects))
    return folder / "objects.parquet"


def make_facts(folder: Path, make_raster):
    """Return a function that makes the facts of a run of one image, 200 m a side."""

    def make(n=120, *, images=None, objects=None, regions=None, counted=True, **more) -> RunFacts:
        objects = make_objects(n) if objects is None else objects
        if images is None:
            images = [
                make_raster(height=400, width=400, transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH))
            ]
        regions = make_regions() if regions is None and counted else regions
        manifest = {
            "key": "abc",
            "settings": {"images": [i.name for i in images], "output": "out.gpkg"},
            "geoseg": "1.2.3",
            "python": "3.12",
            "packages": {"torch": "2.10"},
            "model": {"name": "roofs", "licence": "CC BY 4.0", "credits": ["Ann, Bob"]},
            "images": [about_image(i) for i in images],
            "supertiles": {"done": 4},
            "failed_tiles": [],
            "saturated_tiles": 0,
            "saturated_places": [],
            "seconds": {"total": 100.0, "supertiles": 90.0, "worker_detect": 80.0},
            "seams": {},
            "notes": [],
        } | more
        return RunFacts(
            name="out.gpkg",
            manifest=manifest,
            objects=write_objects_of(folder, objects),
            regions=None
            if regions is None
            else count(objects, regions, imaged=shapely.box(WEST, NORTH - 200, WEST + 200, NORTH)),
            image_places=[i.parent for i in images],
            imaged_km2=0.04,
            images_share=1.0,
            when="1 May 2026, 06:00 UTC",
        )

    return make


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
