"""Look at each tile from several sides, and keep what most of them agree on.

Seen from above nothing has an upright: a tile mirrored or turned shows the same ground, and a
network that is sure of an object finds it in each of those views. What it finds in one only (half a
roof, two houses as one) is what it is unsure of. Detections of the views that are one object become
one, with the mean of their scores, where a view that does not see it counts 0, of their boxes and
of their masks. The idea is test-time augmentation, with boxes joined as in Solovyev, Wang and
Gabruseva, "Weighted boxes fusion" (https://doi.org/10.1016/j.imavis.2021.104117).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError
from geoseg.models.glance import Glance
from geoseg.models.inference import MaskRCNNDetector
from geoseg.records import WORTH_TELLING, BoolArray, DoubleArray, FloatArray, Instances, IntArray

LOOK_AT = 0.1
"""Score from which a single view's detections take part."""
SAME_IOU = 0.65
"""Box IoU from which detections of two views are one object; 0.55 and 0.65 gave the same F1."""
_VIEWS = (
    (False, False, False), (False, True, False), (False, False, True), (False, True, True),
    (True, False, False), (True, True, False), (True, False, True), (True, True, True),
)  # fmt: skip
"""Rows and columns exchanged, then columns mirrored, then rows mirrored."""
SIDES = {2: (0, 3), 4: (0, 1, 2, 3), 8: tuple(range(8))}
"""Number of views to which they are: as they are and turned by 180 degrees; mirrored in both
axes, too; and all of these with rows and columns exchanged."""


class Views:
    """A detector that looks at each tile from 2, 4 or 8 sides.

    Parameters
    ----------
    detector : MaskRCNNDetector
        The network, with a ``min_score`` of `LOOK_AT` or less.
    count : int
        Views of a tile; as many times as slow.
    min_score : float
        Objects whose mean score is lower are left out.

    Raises
    ------
    ConfigError
        If the count is none of `SIDES`.
    """

    def __init__(self, detector: MaskRCNNDetector, count: int, min_score: float) -> None:
        if count not in SIDES:
            raise ConfigError(f"--views is {count}; expected 1, {', '.join(map(str, SIDES))}")
        self._detector = detector
        self._sides = [_VIEWS[i] for i in SIDES[count]]
        self.card = detector.card
        self.classes, self.bands = detector.classes, detector.bands
        self.dtype, self.value_range = detector.dtype, detector.value_range
        self.gsd_m = detector.gsd_m
        self.tile_size, self.overlap = detector.tile_size, detector.overlap
        self.min_score = min_score
        self.fingerprint = f"{detector.fingerprint}-{count}-views"

    @property
    def tiles_a_call(self) -> int:
        """Tiles that a caller should hand over at once."""
        return self._detector.tiles_a_call

    @property
    def side_by_side(self) -> bool:
        """Whether several threads may call it at once."""
        return self._detector.side_by_side

    def make_glance(self) -> Glance:
        """Return what takes a first look at coarser pixels; one view is enough for it."""
        return self._detector.make_glance()

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects in tiles (N, C, H, W); see `geoseg.models.detector.Detector`.

        Raises
        ------
        ModelError, TileError
            As the detector.
        """
        views = []
        for side in self._sides:
            seen = np.ascontiguousarray(_turned(tiles, side))
            height, width = seen.shape[2:]
            found = self._detector(seen)
            views.append([_as_it_was(one, side, height, width) for one in found])
        return [self._joined(list(each)) for each in zip(*views, strict=True)]

    def _joined(self, views: list[Instances]) -> Instances:
        """Make one record of what the views of one tile show."""
        saturated = any(view.saturated for view in views)
        boxes = np.concatenate([view.boxes for view in views]).astype(np.float32)
        scores = np.concatenate([view.scores for view in views]).astype(np.float32)
        if not len(scores):
            return Instances.empty()
        labels = np.concatenate([view.labels for view in views])
        masks = np.concatenate([np.asarray(view.masks, np.float32) for view in views])
        view = np.repeat(np.arange(len(views)), [len(one) for one in views])
        first, group = _groups(boxes, scores, labels, view)
        total = np.bincount(group, scores)
        means = (total / len(views)).clip(0, 1)
        keep = np.flatnonzero(means >= np.float32(self.min_score))
        below = means[means < np.float32(self.min_score)]
        told = (float(below.max(initial=0.0)), int((below >= WORTH_TELLING).sum()))
        if not len(keep):
            return replace(
                Instances.empty(masks.shape[-1]),
                saturated=saturated, best_below=told[0], n_below=told[1],
            )  # fmt: skip
        share = (scores / total[group]).astype(np.float32)
        mean_boxes = np.zeros((len(first), 4), np.float32)
        np.add.at(mean_boxes, group, boxes * share[:, None])
        keep = keep[_best_of(mean_boxes[keep], means[keep], labels[first[keep]], self.card.nms_iou)]
        return Instances(
            mean_boxes[keep],
            means[keep].astype(np.float32),
            labels[first[keep]],
            _mean_masks(mean_boxes, boxes, masks, share, group, keep),
            saturated,
            *told,
        )


def _turned(tiles: npt.NDArray[Any], side: tuple[bool, bool, bool]) -> npt.NDArray[Any]:
    """Show the last two axes of an array from one side."""
    exchanged, across, down = side
    if exchanged:
        tiles = np.swapaxes(tiles, -1, -2)
    if across:
        tiles = tiles[..., ::-1]
    return tiles[..., ::-1, :] if down else tiles


def _as_it_was(
    found: Instances, side: tuple[bool, bool, bool], height: int, width: int
) -> Instances:
    """Bring what was found in a view of H x W px back to the tile."""
    exchanged, across, down = side
    boxes, masks = found.boxes.copy(), np.asarray(found.masks)
    if down:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
        masks = masks[..., ::-1, :]
    if across:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        masks = masks[..., ::-1]
    if exchanged:
        boxes = boxes[:, [1, 0, 3, 2]]
        masks = np.swapaxes(masks, -1, -2)
    return Instances(
        boxes, found.scores, found.labels, np.ascontiguousarray(masks), found.saturated
    )


def _groups(
    boxes: FloatArray, scores: FloatArray, labels: IntArray, view: IntArray
) -> tuple[IntArray, IntArray]:
    """Say which detections are one object: at most one of each view, the surest first.

    Returns
    -------
    first : ndarray
        (g,) the surest detection of each group.
    group : ndarray
        (n,) the group of each detection.
    """
    overlap = _iou(boxes, boxes)
    overlap[labels[:, None] != labels[None]] = 0
    group = np.full(len(boxes), -1)
    first: list[int] = []
    views = int(view.max()) + 1
    for lead in np.argsort(-scores, kind="stable").tolist():
        if group[lead] >= 0:
            continue
        group[lead] = len(first)
        near = np.flatnonzero((overlap[lead] >= SAME_IOU) & (group < 0) & (view != view[lead]))
        # of each other view the one that overlaps most
        best = np.full(views, -1)
        for one in near[np.argsort(overlap[lead][near], kind="stable")].tolist():
            best[view[one]] = one
        group[best[best >= 0]] = len(first)
        first.append(lead)
    return np.array(first), group


def _best_of(boxes: FloatArray, scores: DoubleArray, labels: IntArray, iou: float) -> IntArray:
    """Return the rows that are left of boxes that overlap more than `iou` within a class."""
    overlap = _iou(boxes, boxes)
    overlap[labels[:, None] != labels[None]] = 0
    gone: BoolArray = np.zeros(len(boxes), bool)
    kept = []
    for row in np.argsort(-scores, kind="stable").tolist():
        if not gone[row]:
            kept.append(row)
            gone |= overlap[row] > iou
    return np.array(kept)


def _iou(a: FloatArray, b: FloatArray) -> DoubleArray:
    """Return the (n, m) IoU of boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2, dtype=float)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1, dtype=float) for x in (a, b)]
    whole = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / np.maximum(whole, 1e-9))


def _mean_masks(
    mean_boxes: FloatArray,
    boxes: FloatArray,
    masks: FloatArray,
    share: FloatArray,
    group: IntArray,
    keep: IntArray,
) -> FloatArray:
    """Return the mean of each kept group's masks, (k, M, M), each read on the mean box."""
    place = np.full(int(group.max()) + 1, -1)
    place[keep] = np.arange(len(keep))
    rows = np.flatnonzero(place[group] >= 0)
    side = masks.shape[-1]
    cells = (np.arange(side) + 0.5) / side
    to, own = mean_boxes[group[rows]], boxes[rows]
    grid = np.empty((len(rows), side, side, 2), np.float32)
    for axis in (0, 1):
        at = to[:, axis, None] + cells * (to[:, axis + 2] - to[:, axis])[:, None]
        length = np.maximum(own[:, axis + 2] - own[:, axis], 1e-6)[:, None]
        there = 2 * (at - own[:, axis, None]) / length - 1
        # x goes along the columns, y along the rows
        grid[..., axis] = there[:, None, :] if axis == 0 else there[:, :, None]
    read = F.grid_sample(
        torch.from_numpy(masks[rows][:, None]), torch.from_numpy(grid), align_corners=False
    )[:, 0].numpy()
    mean = np.zeros((len(keep), side, side), np.float32)
    np.add.at(mean, place[group[rows]], read * share[rows, None, None])
    return mean.clip(0, 1)
