"""Small objects in training: their size from labels, and what that size sets; pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.config import DEFAULT_OVERLAP, DEFAULT_TILE_SIZE
from geoseg.errors import ConfigError, LabelError
from geoseg.imagery.georef import geodesic_area_perimeter
from geoseg.models.small import (
    FINER_THAN_IMAGE,
    FINER_THAN_MODEL,
    MOST_TILE_PX,
    STEP_PX,
    TARGET_PX,
    check_size,
    settings_for,
)
from geoseg.records import GeometryArray

SMALL_SHARE = 0.1
"""Labels up to the size of this share of them are the small ones."""
LARGE_SHARE = 0.99
"""Nearly all labels are no larger than this share of them."""
CHIP_PX = (384, 640)
"""Chips are no smaller, and no larger for memory's sake."""
CHIP_M = 50.0
"""Ground that a chip shows where it can: what lies around an object tells much."""


@dataclass(frozen=True, slots=True)
class TrainingSmall:
    """What the size of small objects sets in a training."""

    size_m: float
    """Goes into the card as ``object_size_m``."""
    gsd_m: float
    """Pixel of the working grid on the ground, m."""
    chip_px: int
    """Side of a chip, px."""
    anchor_sizes_px: tuple[float, ...]
    """One a level, for the architecture."""
    card: dict[str, float]
    """``tile_size``, ``overlap``, ``object_size_m`` and the limits, by their names on the card."""
    line: str
    """What was chosen, for the log."""


def sizes_of_labels(polygons: GeometryArray | Sequence[shapely.Geometry], crs_wkt: str) -> (
    npt.NDArray[np.float64]
):  # fmt: skip
    """Return the side of the square of each label's area on the ellipsoid, (n,) m.

    Parameters
    ----------
    polygons : (n,) array of shapely Polygons or MultiPolygons
        In units of `crs_wkt`, valid.
    crs_wkt : str
        Anything pyproj understands.
    """
    area_m2, _ = geodesic_area_perimeter(polygons, crs_wkt)
    return np.sqrt(area_m2)


def size_of_labels(
    polygons: GeometryArray | Sequence[shapely.Geometry],
    crs_wkt: str,
    *,
    sites: Sequence[object] | None = None,
    share: float = SMALL_SHARE,
) -> float:
    """Return the size of small labels: the square root of the area, of the tenth that is smallest.

    Parameters
    ----------
    polygons : (n,) array of shapely Polygons or MultiPolygons
        Labels of all sites, in units of `crs_wkt`, valid.
    crs_wkt : str
        Anything pyproj understands.
    sites : (n,) sequence, optional
        The site of each label: each site then weighs the same, as it does in training, however
        many labels it has.
    share : float
        In (0, 1): 0.1 asks for the size below which a tenth of the labels are.

    Returns
    -------
    float
        Metres on the ellipsoid.

    Raises
    ------
    LabelError
        If no label has an area.
    """
    size = sizes_of_labels(polygons, crs_wkt)
    weight = np.ones(len(size))
    if sites is not None:
        _, site, count = np.unique(
            np.asarray([str(name) for name in sites]), return_inverse=True, return_counts=True
        )
        weight = 1.0 / count[site]
    weight, size = weight[size > 0], size[size > 0]
    if not len(size):
        raise LabelError(
            'small_objects = "labels", but no label has an area; give the size in metres'
        )
    order = np.argsort(size, kind="stable")
    passed = np.cumsum(weight[order]) / weight.sum()
    return float(size[order][np.searchsorted(passed, share * (1 - 1e-12))])


def training_for(
    size_m: float,
    image_gsds_m: Sequence[float],
    *,
    start_gsd_m: float | None = None,
    largest_m: float | None = None,
    gsd_m: float | None = None,
    chip_px: int | None = None,
) -> TrainingSmall:
    """Return what the size of small objects sets in a training.

    Parameters
    ----------
    size_m : float
        Given, or by `size_of_labels`.
    image_gsds_m : sequence of float
        Pixels of the sites' images on the ground, m: the coarsest limits how fine the grid is.
    start_gsd_m : float, optional
        Pixel of the model that the training starts from, m; not given where it learnt no objects.
    largest_m : float, optional
        Size of large labels (`size_of_labels` with ``share=LARGE_SHARE``), m: the overlap of tiles
        holds it.
    gsd_m, chip_px : optional
        What the user gave: it wins.

    Raises
    ------
    ConfigError
        If the size is none, or there is no image.

    Examples
    --------
    Boats of 2 m in imagery of 10 cm: 2 m / 28 px = 0.071 m a pixel; chips of 50 m would be 700 px.

    >>> chosen = training_for(2.0, [0.1])
    >>> round(chosen.gsd_m, 4), chosen.chip_px, chosen.anchor_sizes_px[0]
    (0.0714, 640, 16.0)
    """
    check_size(size_m, "[train] small_objects")
    if not image_gsds_m or not min(image_gsds_m) > 0:
        raise ConfigError("[train] small_objects needs at least one image with a pixel size")
    floor = max(image_gsds_m) / FINER_THAN_IMAGE
    if start_gsd_m is not None:
        floor = max(floor, start_gsd_m / FINER_THAN_MODEL)
    working = max(size_m / TARGET_PX, floor) if gsd_m is None else gsd_m
    if chip_px is None:
        least, most = CHIP_PX
        chip_px = min(most, max(least, STEP_PX * round(CHIP_M / working / STEP_PX)))
    overlap = DEFAULT_OVERLAP
    if largest_m is not None:
        overlap = max(overlap, STEP_PX * math.ceil(largest_m / working / STEP_PX))
    tile = min(MOST_TILE_PX, max(DEFAULT_TILE_SIZE, 3 * overlap))
    small = settings_for(
        size_m,
        image_gsd_m=max(image_gsds_m),
        model_gsd_m=working,
        gsd_m=working,
        tile_size=tile,
        overlap=min(overlap, tile // 3),
    )
    sizes = {"tile_size": small.tile_size, "overlap": small.overlap, "object_size_m": size_m}
    line = (
        f"small objects of {size_m:.3g} m: pixels of {working:.3g} m, {small.object_px:.0f} px an "
        f"object, chips of {chip_px} px, anchors from {small.anchor_sizes_px[0]:g} px"
    )
    return TrainingSmall(
        size_m=float(size_m),
        gsd_m=working,
        chip_px=chip_px,
        anchor_sizes_px=small.anchor_sizes_px,
        card={**sizes, **small.limits},
        line=line,
    )
