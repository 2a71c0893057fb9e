"""Small objects as one switch: what a size on the ground sets; pure arithmetic.

A network sees an object of a few pixels hardly, or not at all: its finest map has one cell for
4 x 4 px. So small things are looked for on a finer grid, and everything that is counted in pixels
or in objects a tile goes with it::

    pixels across an object   size / gsd            up to `TARGET_PX`
    tile, overlap             x enlargement         the same ground, so the same large objects fit
    objects, boxes a tile     ground / size^2       as many as the ground can hold
    smallest side, area       size / 2, size^2 / 4  what is smaller is no such object
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from geoseg.config import DEFAULT_OVERLAP, DEFAULT_TILE_SIZE, LARGEST_M, SMALLEST_M
from geoseg.errors import ConfigError

TARGET_PX = 28.0
"""Pixels that an object of the given size shall span (docs/small-objects.md has the trials)."""
FINER_THAN_IMAGE = 3.0
"""The grid is at most so much finer than the image's pixels: enlarging adds no detail."""
FINER_THAN_MODEL = 1.35
"""And than the pixels that the weights learnt from: `geoseg train` shows objects up to 1.35 times
enlarged, and beyond that false ones soon outnumber those gained."""
LEAST_GAIN = 1.05
"""A grid finer by less than this is not worth resampling for."""
STEP_PX = 32
"""Tiles and overlaps are multiples of this, the coarsest stride of the networks."""
MOST_TILE_PX = 2048
"""Tiles grow no further: memory goes with their area."""
ONE_IN = 4.0
"""The ground of a tile holds at most an object per this many times its area."""
BOXES_PER_OBJECT = 1.5
"""Boxes for the heads per object of a full tile (the shipped model's own ratio)."""
RANKED_PER_BOX = 2.0
"""Boxes of a level that are ranked, per box for the heads."""
MOST_OBJECTS = 2000
"""Detections a tile; a tile with more is run again in quarters anyway."""
SIDE_SHARE = 0.25
"""Boxes with a side below this share of the object's are no objects."""
RPN_NMS_IOU = 0.7
"""At least: neighbours in a row of sheds must not suppress each other's boxes."""
LIMITS = (
    "max_detections", "proposals", "rpn_pre_nms", "rpn_nms_iou", "rpn_min_size", "min_side_px",
)  # fmt: skip
"""Limits of a network that the switch sets, by their names on a model card."""
ANCHORS_PX = (16.0, 32.0, 64.0, 128.0, 256.0)
"""One a level: those of a network that nobody chose others for."""


@dataclass(frozen=True, slots=True)
class SmallSettings:
    """What a size on the ground sets."""

    size_m: float
    """Side of the square of as much area as the small objects have, m."""
    gsd_m: float
    """Pixel of the working grid on the ground, m."""
    enlarged: float
    """How many times finer that is than without the switch; at least 1."""
    held_by: str
    """'image' or 'model' where that, not the size, limits how fine; 'given', 'enough', or ''."""
    object_px: float
    """Pixels across an object of that size."""
    tile_size: int
    """Side of a tile, px."""
    overlap: int
    """Pixels that neighbouring tiles share."""
    max_detections: int
    """Cap of detections a tile."""
    proposals: int
    """Boxes that the region proposal network hands to the heads, a tile."""
    rpn_pre_nms: int
    """Boxes of each level that it ranks."""
    rpn_nms_iou: float
    """Box IoU above which the lower-ranked of two boxes of a level is dropped."""
    rpn_min_size: float
    """Boxes with a shorter side are dropped, px."""
    min_side_px: float
    """Detections with a shorter side are dropped, px."""
    min_area_m2: float
    """Smaller objects are left out, m2."""
    anchor_sizes_px: tuple[float, ...]
    """Anchors of the five levels for a network that is to be trained; trained ones keep theirs."""
    cost: float
    """Pixels that the network sees, to those without the switch."""

    @property
    def limits(self) -> dict[str, float]:
        """Return the limits of a network by their names on a model card."""
        return {name: getattr(self, name) for name in LIMITS}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def as_line(self, *, network: bool = True) -> str:
        """Say what was chosen and what it costs; `network`: its limits were set, too."""
        room = f", up to {self.max_detections} objects a tile" if network else ""
        why = {
            "image": f" (no finer: {FINER_THAN_IMAGE:g} times as fine as the image)",
            "model": f" (no finer: {FINER_THAN_MODEL:g} times as fine as the model learnt)",
            "given": " (given)",
            "enough": " (as without: fine enough)",
        }.get(self.held_by, "")
        if self.held_by in ("image", "model") and self.enlarged < LEAST_GAIN:
            why = " (as without: enlarging it further would show no more)"
        return (
            f"--small-objects {self.size_m:.3g} m: pixels of {self.gsd_m:.3g} m{why}, "
            f"{self.object_px:.0f} px an object, tiles of {self.tile_size} px that share "
            f"{self.overlap}{room}, none below {self.min_area_m2:.2g} m2; the network "
            f"sees {self.cost:.2g} times as many pixels"
        )


def check_size(size_m: float, where: str = "--small-objects") -> float:
    """Refuse a size that no object has.

    Raises
    ------
    ConfigError
        If it is no number of metres in the range of `geoseg.config.DetectSettings`.
    """
    if isinstance(size_m, bool) or not SMALLEST_M <= size_m <= LARGEST_M:
        raise ConfigError(
            f"{where} is {size_m}; expected the size of the objects, {SMALLEST_M:g} to "
            f"{LARGEST_M:g} metres"
        )
    return float(size_m)


def settings_for(
    size_m: float,
    *,
    image_gsd_m: float,
    model_gsd_m: float | None = None,
    card: Mapping[str, Any] | None = None,
    gsd_m: float | None = None,
    tile_size: int | None = None,
    overlap: int | None = None,
) -> SmallSettings:
    """Return what follows from the size of objects on the ground.

    Parameters
    ----------
    size_m : float
        Side of the square of as much area as the small objects have, m; 0.05 to 1000.
    image_gsd_m : float
        Pixel of the image on the ground, m; above 0.
    model_gsd_m : float, optional
        Pixel that the weights learnt from; not given for a detector that takes imagery as it
        comes, which only the image limits.
    card : mapping, optional
        ``tile_size``, ``overlap``, ``max_detections``, ``proposals``, ``rpn_pre_nms``,
        ``rpn_nms_iou``, ``rpn_min_size`` and ``min_side_px`` without the switch, by their names
        on a model card; defaults where a name is missing.
    gsd_m, tile_size, overlap : optional
        What the user gave: it wins, and the rest follows from it.

    Returns
    -------
    SmallSettings
        Never a coarser grid, a smaller tile or a tighter limit on counts than without the switch.

    Raises
    ------
    ConfigError
        If the size is none.

    Examples
    --------
    Sheds of 3 m, a model of 14 cm, an image of 7 cm: 3 m / 28 px = 0.107 m a pixel, 1.31 times
    finer, so the tile of 768 px becomes 1,006, rounded up to 1,024:

    >>> s = settings_for(3.0, image_gsd_m=0.07, model_gsd_m=0.14)
    >>> round(s.gsd_m, 4), round(s.enlarged, 3), s.tile_size, s.overlap, s.held_by
    (0.1071, 1.307, 1024, 256, '')
    """
    check_size(size_m)
    known = dict(card or {})
    base = image_gsd_m if model_gsd_m is None else model_gsd_m
    if gsd_m is None:
        working, held_by = _gsd(size_m, image_gsd_m, model_gsd_m)
    else:
        working, held_by = gsd_m, "given"
    enlarged = base / working
    own_tile, own_overlap = known.get("tile_size"), known.get("overlap")
    own_tile = DEFAULT_TILE_SIZE if own_tile is None else int(own_tile)
    own_overlap = DEFAULT_OVERLAP if own_overlap is None else int(own_overlap)
    tile, shared = _tile(own_tile, own_overlap, max(1.0, enlarged), tile_size, overlap)
    limits = _limits(size_m, working, tile, known)
    object_px = size_m / working
    return SmallSettings(
        size_m=float(size_m),
        gsd_m=working,
        enlarged=enlarged,
        held_by=held_by,
        object_px=object_px,
        tile_size=tile,
        overlap=shared,
        **limits,
        rpn_min_size=max(float(known.get("rpn_min_size", 0)), SIDE_SHARE * object_px),
        min_side_px=max(float(known.get("min_side_px", 0)), SIDE_SHARE * object_px),
        min_area_m2=size_m**2 / 4,
        anchor_sizes_px=anchors_for(object_px),
        cost=enlarged**2 * (_seen(tile, shared) / _seen(own_tile, own_overlap)),
    )


def anchors_for(object_px: float) -> tuple[float, ...]:
    """Return one anchor a level, the finest no larger than two thirds of a small object.

    Examples
    --------
    >>> anchors_for(28.0)
    (16.0, 32.0, 64.0, 128.0, 256.0)
    >>> anchors_for(14.0)
    (8.0, 16.0, 32.0, 64.0, 128.0)
    """
    finest = ANCHORS_PX[0]
    while finest > 4 and finest > object_px * 2 / 3:
        finest /= 2
    return tuple(finest * 2**level for level in range(len(ANCHORS_PX)))


def _gsd(size_m: float, image_gsd_m: float, model_gsd_m: float | None) -> tuple[float, str]:
    """Return the pixel of the working grid, m, and what holds it."""
    wanted = size_m / TARGET_PX
    floors = {"image": image_gsd_m / FINER_THAN_IMAGE}
    if model_gsd_m is not None:
        floors["model"] = model_gsd_m / FINER_THAN_MODEL
    base = image_gsd_m if model_gsd_m is None else model_gsd_m
    held_by = max(floors, key=lambda name: floors[name])
    if floors[held_by] <= wanted:
        held_by = ""
    working = wanted if not held_by else floors[held_by]
    if base / working < LEAST_GAIN:
        return base, "enough" if wanted * LEAST_GAIN >= base else held_by
    return working, held_by


def _tile(
    own_tile: int, own_overlap: int, enlarged: float, tile: int | None, overlap: int | None
) -> tuple[int, int]:
    """Return tile and overlap, px: given ones, or as much ground as without the switch."""
    if tile is None:
        most = max(MOST_TILE_PX, own_tile)
        tile = own_tile if enlarged < LEAST_GAIN else min(most, _up(own_tile * enlarged))
        if overlap is not None and overlap >= tile:
            tile = max(tile, _up(2 * overlap))
    if overlap is None:
        wanted = own_overlap if enlarged < LEAST_GAIN else _up(own_overlap * enlarged)
        # a third of a tile at most: beyond that most pixels are seen four times and more
        overlap = min(wanted, tile // 3)
    return tile, overlap


def _up(length: float) -> int:
    """Round up to whole steps; a rounding error is none."""
    return STEP_PX * math.ceil(length / STEP_PX - 1e-6)


def _limits(size_m: float, gsd_m: float, tile: int, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many objects and boxes a tile of that much ground may have."""
    room = (tile * gsd_m / size_m) ** 2 / ONE_IN
    own = int(card.get("max_detections", 400))
    objects = max(own, math.ceil(min(room, MOST_OBJECTS)))
    boxes = max(int(card.get("proposals", 600)), math.ceil(BOXES_PER_OBJECT * objects))
    ranked = max(int(card.get("rpn_pre_nms", 1000)), math.ceil(RANKED_PER_BOX * boxes))
    return {
        "max_detections": objects,
        "proposals": boxes,
        "rpn_pre_nms": ranked,
        "rpn_nms_iou": max(float(card.get("rpn_nms_iou", RPN_NMS_IOU)), RPN_NMS_IOU),
    }


def _seen(tile: int, overlap: int) -> float:
    """Return how often a pixel is seen far from the edges."""
    return (tile / (tile - overlap)) ** 2
