"""Labelled areas that a model is tuned on, and runs of it on them at any score threshold.

The network looks at each tile once, at a low score; what it found there is kept. A run at a higher
threshold takes from it what passes, and joins it anew: that is not the same as leaving objects of
a finished run out, because duplicates are resolved among what passed, and an object takes its
outline from it.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geoseg.config import DetectSettings, read_toml
from geoseg.errors import LabelError, SourceError
from geoseg.jobs.pipeline import run_detect
from geoseg.learning.labels import check_site, load_sites
from geoseg.objects.evaluate import Evaluation, evaluate
from geoseg.outputs.tables import write_table
from geoseg.records import Instances

if TYPE_CHECKING:
    from geoseg.models.inference import MaskRCNNDetector
    from geoseg.models.views import Views

_SUPERTILE_PX = 1024
"""Small, because an area is: a supertile is read as a whole. It never changes what is found."""
_AROUND_PX = 64
"""So far beyond an area the model also looks: what lies across its edge is judged as in a run."""


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """A completely labelled area of an image."""

    name: str
    """Shown in tables."""
    image: str
    """Path of the raster."""
    truth: gpd.GeoDataFrame = field(repr=False)
    """Labels, those of other areas too, in the CRS of the image; ``class`` where classes are
    told apart."""
    aoi: gpd.GeoDataFrame = field(repr=False)
    """Where labelling is complete, in the CRS of the image."""
    around: gpd.GeoDataFrame = field(repr=False)
    """The same and a little more: where to look."""
    n_truth: int = 0
    """True ones inside."""


def read_validation_file(path: Path) -> list[dict[str, Any]]:
    """Return the tables ``[[validation]]`` of a file.

    Each has the keys of ``[[sites]]`` in a training file; other tables of the file are not looked
    at, so that a training file may hold them too.

    Raises
    ------
    ConfigError, LabelError
        If the file is missing or no TOML, or holds no such table.
    """
    tables = read_toml(path, "file with [[validation]] tables").get("validation")
    if not isinstance(tables, list) or not tables:
        raise LabelError(
            f"{path} has no [[validation]] table; give one per labelled area, with image, labels "
            "and aoi"
        )
    for number, table in enumerate(tables, 1):
        check_site(table, f"{path}: [[validation]] {number}")
    return [dict(table) for table in tables]


def load_areas(
    tables: Sequence[Mapping[str, Any]], folder: Path, classes: Sequence[str]
) -> list[Area]:
    """Read the labelled areas of tables, in their order.

    Parameters
    ----------
    tables : sequence of mapping
        With the keys of ``[[sites]]``; see `geoseg.learning.labels.load_site`.
    folder : Path
        Paths in the tables are relative to it.
    classes : sequence of str
        Of the model; labels of other classes are errors.

    Raises
    ------
    GeosegError
        If a file is missing or cannot be used, an area lies outside its image, or no label lies
        in it.
    """
    for number, table in enumerate(tables, 1):
        check_site(table, f"area {number}")
    with_class = [bool(table.get("class_field")) for table in tables]
    if len(classes) > 1 and any(with_class) and not all(with_class):
        raise LabelError(
            "some of the validation areas name a class_field and some do not; name it in all, or "
            "in none to tune one threshold for all classes"
        )
    areas = [area for table in tables for area in _load_areas(table, folder, classes)]
    names = [area.name for area in areas]
    return [
        area
        if names.count(area.name) == 1
        else replace(area, name=f"{area.name} {names[: i + 1].count(area.name)}")
        for i, area in enumerate(areas)
    ]


def _load_areas(table: Mapping[str, Any], folder: Path, classes: Sequence[str]) -> Iterator[Area]:
    """Read the labelled areas of one table, one per image."""
    told_apart = table.get("class_field") is not None or table["labels"].endswith(".json")
    named = classes if told_apart else ("any",)
    for site in load_sites(folder, table, None, named, with_pixels=False):
        whole = site.polygons if site.whole is None else site.whole
        truth = gpd.GeoDataFrame(geometry=site.to_map(whole), crs=site.crs_wkt)
        if told_apart:
            truth["class"] = [named[i] for i in site.labels]
        wide = shapely.buffer(site.aoi, _AROUND_PX)
        aoi, around = (
            gpd.GeoDataFrame(geometry=site.to_map(shapely.get_parts([shape])), crs=site.crs_wkt)
            for shape in (site.aoi, wide)
        )
        n_truth = evaluate(truth.iloc[:0], truth, aoi=aoi).n_truth
        if n_truth == 0:
            raise LabelError(
                f"area {site.name}: at least half of a label must lie in its AOI, and none of "
                f"{len(truth)} does; widen the AOI, or aoi_part"
            )
        yield Area(site.name, site.image, truth, aoi, around, n_truth)


class KeptDetections:
    """A model that looks at each tile once, at its low threshold, and answers for higher ones.

    A detector (`geoseg.models.detector.Detector`) of its own, to be used by one process. It holds
    what was found, about 3 kB each.

    Parameters
    ----------
    model : MaskRCNNDetector or Views
        At the lowest threshold that will be asked for.
    """

    def __init__(self, model: MaskRCNNDetector | Views) -> None:
        self._model = model
        self._kept: dict[bytes, Instances] = {}
        self.score = model.min_score
        self.classes = model.classes
        self.bands = model.bands
        self.gsd_m = model.gsd_m
        self.tile_size, self.overlap = model.tile_size, model.overlap
        self.dtype, self.value_range = model.dtype, model.value_range
        self.min_score = model.min_score
        self.fingerprint = model.fingerprint
        self.tiles_a_call = model.tiles_a_call
        # two lanes that meet the same tile both look at it, and find the same
        self.side_by_side = model.side_by_side

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Return what was found in tiles at or above ``score``; see `Detector`."""
        keys = [hashlib.sha256(tile.tobytes()).digest() for tile in tiles]
        new = [i for i, key in enumerate(keys) if key not in self._kept]
        if new:
            found = self._model(np.ascontiguousarray(tiles[new]))
            self._kept |= {keys[i]: one for i, one in zip(new, found, strict=True)}
        return [self._passing(self._kept[key]) for key in keys]

    def _passing(self, found: Instances) -> Instances:
        """Return what a run at ``score`` would have found.

        The suppression of doubles goes from the best down, so that what scores less never changed
        what scores more. A full tile is full only if it is so without those, too.
        """
        least = np.float32(self.score)
        strict = self._model.card.strict_score
        keep = np.flatnonzero(found.scores > least if strict else found.scores >= least)
        return found if len(keep) == len(found) else replace(found.take(keep), saturated=False)


class Bench:
    """Runs of one detector on labelled areas at any threshold, each done once.

    Parameters
    ----------
    areas : sequence of Area
        To run on.
    detector : KeptDetections
        The model.
    iou : float
        From which an object matches.
    by_class : bool
        Match only within a class.
    tell : callable, optional
        Told in words what is done.
    """

    def __init__(
        self,
        areas: Sequence[Area],
        detector: KeptDetections,
        *,
        iou: float = 0.5,
        by_class: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.areas, self.detector = tuple(areas), detector
        self.iou, self.by_class = iou, by_class
        shown = {kind for area in areas for kind in area.truth["class"]} if by_class else {""}
        self.kinds = [kind for kind in detector.classes if kind in shown] or [""]
        self._tell = tell or (lambda _: None)
        self._objects: dict[float, list[gpd.GeoDataFrame]] = {}
        self._judged: dict[tuple[float, float], list[Evaluation]] = {}

    def settings(self, area: Area) -> DetectSettings:
        """Return how an area is run."""
        size = max(_SUPERTILE_PX, self.detector.tile_size)
        return DetectSettings(images=(area.image,), supertile_size=size)

    def of_kinds(self, objects: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """Leave out objects of classes that no label shows, where classes are compared."""
        return objects[objects["class"].isin(self.kinds)] if self.by_class else objects

    def objects(self, score: float) -> list[gpd.GeoDataFrame]:
        """Return the objects of each area of a run at a threshold."""
        if score not in self._objects:
            self.detector.score = score
            found = []
            for area in self.areas:
                first = not self._objects
                if first:
                    self._tell(f"looking at {area.name} ({area.n_truth} true ones)")
                settings = replace(self.settings(area), min_score=score, min_area=0.0)
                found.append(self.of_kinds(run_in(area, settings, self.detector, quiet=not first)))
            self._objects[score] = found
        return self._objects[score]

    def at(self, score: float, min_area_m2: float = 0.0) -> list[Evaluation]:
        """Return the figures of each area of a run at a threshold."""
        key = (score, min_area_m2)
        if key not in self._judged:
            self._judged[key] = [
                evaluate(
                    objects[objects["area_m2"] >= min_area_m2],
                    area.truth,
                    aoi=area.aoi,
                    iou_threshold=self.iou,
                    min_score=score,
                    by_class=self.by_class,
                )
                for area, objects in zip(self.areas, self.objects(score), strict=True)
            ]
        return self._judged[key]

    def joined(
        self, scores: Mapping[str, float], min_area_m2: float
    ) -> list[gpd.GeoDataFrame]:  # fmt: skip
        """Return the objects of each area of a run with a threshold for each class.

        Classes are joined apart from one another, so that each class's objects are those of a
        run at its threshold.
        """
        runs = {score: self.objects(score) for score in set(scores.values())}
        out = []
        for i in range(len(self.areas)):
            parts = [
                of_class[of_class["area_m2"] >= min_area_m2]
                for kind, score in scores.items()
                for of_class in [runs[score][i]]
                for of_class in [of_class[of_class["class"] == kind]]
            ]
            out.append(pd.concat(parts, ignore_index=True))
        return out


def run_in(
    area: Area, settings: DetectSettings, detector: Any = None, *, quiet: bool = False
) -> gpd.GeoDataFrame:
    """Run on an area and a little around it, and return the objects in the image's CRS."""
    with tempfile.TemporaryDirectory(prefix="geoseg-tune-") as folder, _quiet(quiet):
        path = write_table(Path(folder) / "aoi.fgb", area.around, layer="aoi")
        settings = replace(settings, aoi=path, workers=1, report=False)
        result = run_detect(settings, detector)
        objects = result.objects
    if result.exit_code:
        why = [r for r in result.coverage["reason"] if r]
        raise SourceError(
            f"area {area.name}: {len(why)} part(s) of it could not be looked at ({why[0]}); tuning "
            "needs all of an area"
        )
    return objects


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Keep the log of runs to errors: what they would say was said by the first."""
    logger = logging.getLogger("geoseg.jobs")
    before = logger.level
    # dozens of runs on the same ground
    logger.setLevel(logging.ERROR if wanted else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
