"""Judge a file of objects by a file of truth, in full: figures, what they are made of, maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd

from geoseg.errors import ConfigError
from geoseg.jobs.bands import rows_in_bands
from geoseg.objects.breakdown import (
    SIZES_M2,
    by_class,
    by_region,
    by_size,
    confusion,
    count_errors,
    verdicts,
)
from geoseg.objects.calibrate import fit_calibration
from geoseg.objects.evaluate import Evaluation, evaluate
from geoseg.objects.expected import Calibration
from geoseg.outputs.formats import check_output
from geoseg.outputs.publish import put, scratch
from geoseg.outputs.tables import read_vector, write_geopackage


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """How good objects are, and what that is made of."""

    objects: gpd.GeoDataFrame = field(repr=False)
    truth: gpd.GeoDataFrame = field(repr=False)
    aoi: gpd.GeoDataFrame | None = field(repr=False)
    result: Evaluation
    """The figures."""
    sizes: pd.DataFrame
    """See `geoseg.objects.breakdown.by_size`."""
    classes: pd.DataFrame | None
    """See `by_class`; None unless classes are compared."""
    confusion: pd.DataFrame | None
    """See `confusion`; None unless classes are compared."""
    regions: gpd.GeoDataFrame | None
    """See `by_region`; None without regions."""

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        parts: dict[str, Any] = {"by_size": self.sizes.to_dict("records")}
        if self.classes is not None:
            parts["by_class"] = self.classes.to_dict("records")
        if self.confusion is not None:
            table = self.confusion
            parts["confusion"] = {
                t: dict(zip(table, r, strict=True)) for t, *r in table.itertuples()
            }
        if self.regions is not None:
            parts["by_region"] = count_errors(self.regions)
        return self.result.to_dict() | parts


def judge_files(
    objects: Path,
    truth: Path,
    *,
    layer: str | None = None,
    where: str | None = None,
    aoi: Path | None = None,
    aoi_where: str | None = None,
    iou_threshold: float = 0.5,
    min_score: float | None = None,
    compare_classes: bool = False,
    run_dir: Path | None = None,
    sizes_m2: Sequence[float] = SIZES_M2,
    regions: Path | None = None,
) -> Judgement:
    """Read the files and judge them; see `geoseg.objects.evaluate.evaluate`.

    Parameters
    ----------
    objects, truth, aoi, regions : Path
        Vector files; ``layer`` and ``where`` (SQL) choose rows of the truth, ``aoi_where`` of the
        AOI.
    iou_threshold, min_score
        As for `evaluate`.
    compare_classes : bool
        Match only within a class, and say what was taken for what.
    run_dir : Path, optional
        Of the run that made the objects: tells bands from interiors.
    sizes_m2 : sequence of float
        Borders between sizes, m2.

    Raises
    ------
    ConfigError, RegionError
        If a setting or a file cannot be used.
    """
    if aoi_where is not None and aoi is None:
        raise ConfigError("--aoi-where is a condition on the AOI file, but there is no --aoi")
    found = read_vector(objects, what="objects")
    true = read_vector(truth, layer=layer, what="truth", where=where)
    area = None if aoi is None else read_vector(aoi, what="AOI", where=aoi_where)
    parts = None if regions is None else read_vector(regions)
    in_band = None
    if run_dir is not None:
        in_band = rows_in_bands(run_dir, found), rows_in_bands(run_dir, true)
    settings: dict[str, Any] = {"aoi": area, "iou_threshold": iou_threshold, "min_score": min_score}
    result = evaluate(found, true, **settings, by_class=compare_classes, in_band=in_band)
    return Judgement(
        objects=found,
        truth=true,
        aoi=area,
        result=result,
        sizes=by_size(result, sizes_m2),
        classes=by_class(result) if compare_classes else None,
        # what was taken for what shows only where classes may differ
        confusion=confusion(evaluate(found, true, **settings)) if compare_classes else None,
        regions=None if parts is None else by_region(found, true, parts, result),
    )


def write_verdicts(path: Path, judged: Judgement, *, overwrite: bool = False) -> Path:
    """Write what was right, false and missed, and the regions, as layers of a GeoPackage."""
    regions = {} if judged.regions is None else {"regions": judged.regions}
    layers = verdicts(judged.objects, judged.truth, judged.result) | regions
    return write_geopackage(path, layers, overwrite=overwrite)


def calibrate(judged: Judgement) -> Calibration | dict[str, Calibration]:
    """Fit a calibration to what was judged; each polygon of the AOI is an area of its own.

    Returns
    -------
    Calibration or dict of str to Calibration
        By class where classes were compared.

    Raises
    ------
    ConfigError
        If there are too few labels, or no scores.
    """
    if judged.classes is None:
        return _fit(judged, judged.objects, judged.truth)
    return {
        name: _fit(
            judged,
            judged.objects[judged.objects["class"].astype(str) == name],
            judged.truth[judged.truth["class"].astype(str) == name],
        )
        for name in judged.classes["class"].tolist()
    }


def write_calibration(path: Path, judged: Judgement, *, overwrite: bool = False) -> Path:
    """Write the calibration as ``geoseg count --calibration`` takes it (JSON)."""
    path = check_output(path, overwrite, suffixes=(".json",))
    found = calibrate(judged)
    plain = (
        found.to_dict()
        if isinstance(found, Calibration)
        else {name: one.to_dict() for name, one in found.items()}
    )
    with scratch(path) as temporary:
        temporary.write_text(json.dumps({"calibration": plain}, indent=2), encoding="utf-8")
        put(temporary, path, overwrite=overwrite)
    return path


def _fit(judged: Judgement, objects: gpd.GeoDataFrame, truth: gpd.GeoDataFrame) -> Calibration:
    """Fit to each area of the AOI, or to all there is."""
    areas = [None] if judged.aoi is None else [judged.aoi.iloc[[i]] for i in range(len(judged.aoi))]
    evaluations = [
        evaluate(
            objects,
            truth,
            aoi=area,
            iou_threshold=judged.result.iou_threshold,
            min_score=judged.result.min_score,
        )
        for area in areas
    ]
    return fit_calibration([e for e in evaluations if e.n_truth or e.n_objects] or evaluations)
