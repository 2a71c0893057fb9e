"""What counting is given besides objects: regions, areas that were imaged, calibrations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
import pyproj

from geoseg.config import is_number
from geoseg.errors import ConfigError, RegionError
from geoseg.imagery.vector_files import why_not_opened
from geoseg.objects.count import Calibrations
from geoseg.objects.expected import Calibration
from geoseg.outputs.geopackage import read_documents
from geoseg.outputs.reading import reading
from geoseg.outputs.tables import read_vector

_DONE = {"done", "empty"}
_SAME_SCORE = 1e-6
_SAME_AREA_M2 = 1e-3


def read_regions(
    path: str | Path, *, layer: str | None = None, crs: str | None = None
) -> gpd.GeoDataFrame:
    """Read the regions to count in.

    Parameters
    ----------
    path : str or Path
        A file of polygons.
    layer : str, optional
        Layer of the file.
    crs : str, optional
        CRS of the regions where their file does not say it, such as EPSG:4326.

    Returns
    -------
    GeoDataFrame
        All regions, with a CRS.

    Raises
    ------
    RegionError
        As :func:`geoseg.outputs.tables.read_vector`; or if the file has another CRS than the one
        that was given.
    ConfigError
        If the CRS is unknown.
    """
    if crs is None:
        try:
            return read_vector(path, layer=layer, what="regions")
        except RegionError as error:
            if "has no CRS" in str(error):
                raise RegionError(f"{error}; or say it with --regions-crs EPSG:CODE") from error
            raise
    try:
        wanted = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise ConfigError(
            f"--regions-crs '{crs}' is no CRS that PROJ knows; expected something like EPSG:4326"
        ) from error
    try:
        regions = read_vector(path, layer=layer, what="regions")
    except RegionError as error:
        if "has no CRS" not in str(error):
            raise
        with reading(path, "regions"):
            return _read_without(Path(path), layer).set_crs(wanted, allow_override=True)
    if not pyproj.CRS.from_user_input(regions.crs).equals(wanted, ignore_axis_order=True):
        raise RegionError(
            f"regions file {path} says that its CRS is {regions.crs.name}, and --regions-crs that "
            f"it is {wanted.name}; leave the option out, or correct the file"
        )
    return regions


def _read_without(path: Path, layer: str | None) -> gpd.GeoDataFrame:
    """Read a layer whose CRS is unknown; that it can be read is known already."""
    if path.suffix.lower() in {".parquet", ".geoparquet"}:
        return gpd.read_parquet(path)
    path = path.absolute()
    names = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    chosen = layer or ("regions" if "regions" in names else names[0])
    return pyogrio.read_dataframe(path, layer=chosen)


def read_imaged(path: str | Path) -> gpd.GeoDataFrame:
    """Read the area that was imaged; of the coverage of a run what was worked through.

    Raises
    ------
    RegionError
        As :func:`geoseg.outputs.tables.read_vector`; or if nothing was worked through.
    """
    path, layer = Path(path), None
    if path.suffix.lower() == ".gpkg" and path.exists() and has_coverage(path):
        layer = "coverage"
    table = read_vector(path, layer=layer, what="imaged area")
    if "status" in table.columns and set(table["status"].dropna()) & {*_DONE, "nodata", "failed"}:
        table = table[table["status"].isin(_DONE)]
        if not len(table):
            raise RegionError(f"by the coverage in {path} nothing was worked through")
    return table


def has_coverage(path: Path) -> bool:
    """Tell whether a file of objects also says where was looked."""
    if path.suffix.lower() != ".gpkg" or why_not_opened(path):
        return False
    try:
        with reading(path):
            return "coverage" in {str(name) for name, _ in pyogrio.list_layers(path)}
    except RegionError:
        return False


def read_calibration(path: str | Path) -> Calibrations:
    """Read a calibration from JSON: of its own, by class, or in a model's card.

    Raises
    ------
    ConfigError
        If the file is missing, is no JSON, or holds no calibration.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"calibration {path} cannot be read ({error}); give a model's card or the JSON of a "
            "calibration"
        ) from error
    found = calibration_from(values, str(path))
    if found is None:
        raise ConfigError(f"{path} holds no calibration; expected the keys scores, chance, "
                          "sizes_m2 and missed, or a card that has them")  # fmt: skip
    return found


def calibration_from(values: object, where: str) -> Calibrations | None:
    """Return the calibration in a model's card or in JSON of its own; None where there is none.

    A card keeps it as ``calibration``, or as ``quality`` -> ``calibration``: one for all classes,
    or one by class.
    """
    if not isinstance(values, dict):
        return None
    about = values["quality"] if isinstance(values.get("quality"), dict) else values
    found: object = values.get("calibration") or about.get("calibration", about)
    if not isinstance(found, dict):
        return None
    if "scores" in found:
        return Calibration.from_dict(found, where)
    by_class = {str(k): v for k, v in found.items() if isinstance(v, dict) and "scores" in v}
    return {k: Calibration.from_dict(v, f"{where}: {k}") for k, v in by_class.items()} or None


def holding_calibration(
    about: Mapping[str, Any], scores: Mapping[str, float], min_area_m2: float, views: int = 1
) -> tuple[Calibrations | None, str]:
    """Return the calibration of a card, if it holds for how objects were made; else say why not.

    Parameters
    ----------
    about : mapping
        A card, or what a run tells of it: ``name``, ``calibration``, ``min_area_m2``.
    scores : mapping of str to float
        The score threshold at which objects of each class were made.
    min_area_m2 : float
        The smallest object that was kept.
    views : int
        Sides that tiles were looked at from.

    Returns
    -------
    calibration : Calibration, dict of str to Calibration, or None
        None where there is none, or it does not hold.
    why : str
        One line for the user; empty where there is none.
    """
    name = about.get("name", "the model")
    found = calibration_from(about, f"the card of {name}")
    if found is None:
        return None, ""
    curves = dict.fromkeys(scores, found) if isinstance(found, Calibration) else found
    ends = "so counts have no interval (geoseg tune --calibrate makes one)"
    if missing := sorted(set(scores) - set(curves)):
        return None, f"the calibration of {name} knows no class '{missing[0]}', {ends}"
    for kind, score in scores.items():
        wanted = curves[kind].min_score
        if wanted is not None and abs(wanted - score) >= _SAME_SCORE:
            return None, (
                f"objects were made at score {score:g}, but the calibration of {name} holds at "
                f"{wanted:g}, {ends}"
            )
    if views != about.get("views", 1):
        return None, (
            f"tiles were looked at from {views} side(s), but the calibration of {name} holds for "
            f"{about.get('views', 1)}, {ends}"
        )
    usual = float(about.get("min_area_m2") or 0.0)
    if abs(usual - min_area_m2) > _SAME_AREA_M2:
        return None, (
            f"objects under {min_area_m2:g} m2 were left out, but the calibration of {name} holds "
            f"for {usual:g} m2, {ends}"
        )
    return found, ""


def calibration_in(path: Path) -> tuple[Calibrations | None, str]:
    """Return the calibration that a GeoPackage of geoseg carries with its objects.

    Returns
    -------
    calibration, why
        As `holding_calibration`; None and nothing where the file tells of no run.
    """
    documents = read_documents(path)
    run, card = documents.get("run"), documents.get("model-card")
    if not isinstance(run, dict) or not isinstance(card, dict):
        return None, ""
    scores, least = run.get("scores"), run.get("min_area_m2", 0.0)
    if not isinstance(scores, dict) or not all(map(is_number, (*scores.values(), least))):
        return None, ""
    views = run.get("views", 1)
    return holding_calibration(card, scores, float(least), int(views) if is_number(views) else 1)
