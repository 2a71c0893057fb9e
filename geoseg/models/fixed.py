"""The steps of Mask R-CNN in fixed shapes, without a look at a value by the host.

Where torchvision picks rows by ``nonzero`` and loops over tiles, the host waits for the GPU each
time. Here every step has a shape that follows from the settings alone: so many proposals a tile,
so many candidates, and masks (True: there is something) in place of shorter tables. All steps run
on tensors of the *meta* device, which hold no values, and so cannot depend on any: the tests use
that as proof, and `geoseg.models.gpu` to count the memory of a batch beforehand.

Non-maximum suppression takes rounds: a box is kept if no better kept one overlaps it, starting
from all kept. The first k boxes of any chain are right after k rounds, so a round that changes
nothing proves the result to be the greedy one; a table in which that is not reached is flagged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.rpn import permute_and_flatten
from torchvision.ops import clip_boxes_to_image, roi_align

from geoseg.models.card import ModelCard

ROUNDS = 24
"""Rounds of a suppression; chains of more boxes that overlap by turns are not seen in practice."""
BORDER = 2
"""Cells that repeat the rim of a level in the atlas: samples beyond a rim take the rim's value."""


class Proposals(NamedTuple):
    """Boxes that the region proposal network hands on."""

    boxes: Tensor
    """(N, P, 4) px, best first; zeros where there is none."""
    there: Tensor
    """(N, P) bool."""
    cut: Tensor
    """(N,) bool: a limit left out a likely object."""
    settled: Tensor
    """(N,) bool: the suppression came to its end."""


class Found(NamedTuple):
    """Detections of a batch, before their masks."""

    boxes: Tensor
    """(N, D, 4) px, best first."""
    scores: Tensor
    """(N, D)."""
    labels: Tensor
    """(N, D) int64, from 0."""
    counts: Tensor
    """(N,) int64: so many of the D are there."""
    exact: Tensor
    """(N,) bool: no table of a step was too small."""


class Atlas(NamedTuple):
    """The levels of a pyramid beside each other in one map, for one ROIAlign over all of them."""

    cells: Tensor
    """(N, C, H, W) float32."""
    corners: Tensor
    """(L, 2) float32: x and y of the first cell of each level."""


def suppress(
    boxes: Tensor,
    there: Tensor,
    iou: float,
    groups: Tensor | None = None,
    rounds: int = ROUNDS,
) -> tuple[Tensor, Tensor]:
    """Keep each box that no better kept one overlaps: greedy suppression of B tables at once.

    Parameters
    ----------
    boxes : Tensor (B, K, 4)
        Sorted, best first, px.
    there : Tensor (B, K) bool
        Rows that hold a box.
    iou : float
        Boxes overlap if their IoU exceeds it.
    groups : Tensor (B, K), optional
        Only boxes of one group suppress each other.
    rounds : int
        See the module.

    Returns
    -------
    kept : Tensor (B, K) bool
    settled : Tensor (B,) bool
        Whether `kept` is what greedy suppression gives.

    Examples
    --------
    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 1, 10, 11], [20, 0, 30, 10]]])
    >>> kept, settled = suppress(boxes, torch.ones(1, 3, dtype=torch.bool), 0.5)
    >>> kept.tolist(), settled.tolist()
    ([[True, False, True]], [True])
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    wide = (torch.min(x1[:, :, None], x1[:, None]) - torch.max(x0[:, :, None], x0[:, None])).clamp_(
        min=0
    )
    high = (torch.min(y1[:, :, None], y1[:, None]) - torch.max(y0[:, :, None], y0[:, None])).clamp_(
        min=0
    )
    shared = wide.mul_(high)
    over = shared / (area[:, :, None] + area[:, None] - shared) > iou
    over = over.triu(1) & there[:, :, None]
    if groups is not None:
        over &= groups[:, :, None] == groups[:, None]
    # sums of zeros and ones: above 0 or not is exact in any precision
    weights = over.to(boxes.dtype if boxes.device.type == "cpu" else torch.bfloat16)
    kept = there
    for _ in range(rounds):
        kept = _round(kept, there, weights)
    return kept, (kept == _round(kept, there, weights)).all(1)


def _round(kept: Tensor, there: Tensor, weights: Tensor) -> Tensor:
    hit = torch.bmm(kept[:, None].to(weights.dtype), weights)[:, 0] > 0
    return there & ~hit


def propose_fixed(
    rpn: Any,
    outputs: tuple[Sequence[Tensor], Sequence[Tensor]],
    anchors: Tensor,
    size: tuple[int, int],
    card: ModelCard,
    sure_logit: float,
) -> Proposals:
    """Rank, decode and thin out the boxes of a region proposal network.

    Parameters
    ----------
    rpn : RegionProposalNetwork
        torchvision's; its box coder is used.
    outputs : tuple
        Logits (N, A, h, w) and deltas (N, 4 A, h, w) of each level.
    anchors : Tensor (sum of A h w, 4)
        Of one tile, px.
    size : tuple of int
        (rows, columns) of the tile without its padding.
    card : ModelCard
        Holds the limits.
    sure_logit : float
        Logit from which a box that is left out counts as a lost object.
    """
    levels = [_best_of_level(rpn, *level, card) for level in _by_level(outputs, anchors)]
    n, most = levels[0][0].shape[0], max(logit.shape[1] for logit, _, _ in levels)
    logits = torch.stack(
        [F.pad(logit, (0, most - logit.shape[1]), value=-math.inf) for logit, _, _ in levels], 1
    )
    boxes = torch.stack([F.pad(b, (0, 0, 0, most - b.shape[1])) for _, b, _ in levels], 1)
    boxes = clip_boxes_to_image(boxes, size)
    sides = boxes[..., 2:] - boxes[..., :2]
    there = ((sides >= card.rpn_min_size) & (sides > 0)).all(-1)
    there &= torch.isfinite(boxes).all(-1) & torch.isfinite(logits)
    kept, settled = suppress(boxes.flatten(0, 1), there.flatten(0, 1), card.rpn_nms_iou)
    kept, settled = kept.view(n, -1), settled.view(n, -1).all(1)
    boxes, logits = boxes.flatten(1, 2), logits.flatten(1)
    ranks = logits if card.rpn_by_logit else torch.sigmoid(logits)
    ranks = ranks.masked_fill(~kept, -math.inf)
    best, rows = ranks.topk(min(card.proposals, ranks.shape[1]), dim=1)
    there = best > -math.inf
    chosen = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    cut = (kept & (logits >= sure_logit)).sum(1) > card.proposals
    for logit, _, sure in levels:
        cut |= (sure >= sure_logit).sum(1) > logit.shape[1]
    return Proposals(chosen.masked_fill(~there[..., None], 0.0), there, cut, settled)


def _by_level(
    outputs: tuple[Sequence[Tensor], Sequence[Tensor]], anchors: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return logits (N, R), deltas (N, R, 4) and anchors (R, 4) of each level."""
    found, first = [], 0
    for logit, delta in zip(*outputs, strict=True):
        n, per_cell, height, width = logit.shape
        flat = permute_and_flatten(logit, n, per_cell, 1, height, width).flatten(1)
        rows = flat.shape[1]
        found.append(
            (
                flat.float(),
                permute_and_flatten(delta, n, per_cell, 4, height, width).float(),
                anchors[first : first + rows],
            )
        )
        first += rows
    return found


def _best_of_level(
    rpn: Any, logits: Tensor, deltas: Tensor, anchors: Tensor, card: ModelCard
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best logits (N, K) of a level, their boxes (N, K, 4), and all its logits."""
    best, rows = logits.topk(min(card.rpn_pre_nms, logits.shape[1]), dim=1)
    chosen = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).reshape(-1, 4)
    boxes = rpn.box_coder.decode(chosen, [anchors[rows].reshape(-1, 4)])
    return best, boxes.reshape(len(best), -1, 4), logits


def pack_atlas(maps: Sequence[Tensor]) -> Atlas:
    """Lay the levels of a pyramid, finest first, into one float32 map; see `Atlas`.

    The first stands at the left, the others in a column beside it.
    """
    n, channels, height, width = maps[0].shape
    right = width + 2 * BORDER
    column = sum(m.shape[2] + 2 * BORDER for m in maps[1:])
    across = max((m.shape[3] + 2 * BORDER for m in maps[1:]), default=0)
    cells = maps[0].new_zeros(
        (n, channels, max(height + 2 * BORDER, column), right + across), dtype=torch.float32
    )
    corners, top, left = [], 0, 0
    for level in maps:
        framed = F.pad(level.float(), (BORDER,) * 4, mode="replicate")
        cells[:, :, top : top + framed.shape[2], left : left + framed.shape[3]] = framed
        corners.append((left + BORDER, top + BORDER))
        top, left = (0, right) if left == 0 else (top + framed.shape[2], left)
    return Atlas(cells, _constant(corners, cells))


def _constant(rows: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return numbers as a tensor, written by the device itself: a copy to it would wait."""
    return torch.stack(
        [torch.stack([like.new_full((), float(value)) for value in row]) for row in rows]
    )


def pool_boxes(atlas: Atlas, boxes: Tensor, tile: Tensor, pooler: Any) -> Tensor:
    """Pool boxes from the levels that fit their sizes, in one call.

    Parameters
    ----------
    atlas : Atlas
        The pyramid.
    boxes : Tensor (R, 4)
        Inside their tiles, px.
    tile : Tensor (R,)
        Which tile of the batch each lies in.
    pooler : PyramidRoIAlign
        Holds the settings.

    Returns
    -------
    Tensor (R, C, S, S) float32
        As `PyramidRoIAlign` gives; only boxes thinner than a cell at the right or lower rim of a
        tile take the rim's value where that takes 0.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides[:, 0] * sides[:, 1]
    level = torch.floor(2 + torch.log2(area.clamp(min=0).sqrt() / 224 + pooler.level_eps))
    level = level.clamp(0, len(pooler.levels) - 1)
    corner = atlas.corners[level.long()]
    inside = boxes * torch.exp2(-2 - level)[:, None] + torch.cat([corner, corner], 1)
    rois = torch.cat([tile[:, None].to(inside.dtype), inside], 1)
    size = pooler.output_size[0]
    pooled: Tensor = roi_align(atlas.cells, rois, size, 1.0, pooler.sampling_ratio, pooler.aligned)
    return pooled


def find_fixed(
    heads: Any,
    atlas: Atlas,
    proposals: Proposals,
    outputs: Tensor,
    size: tuple[int, int],
    card: ModelCard,
    min_score: float,
) -> Found:
    """Classify and refine proposals; keep the best detections of each tile.

    Parameters
    ----------
    heads : RoIHeads
        torchvision's.
    atlas, proposals
        The pyramid, and where to look.
    outputs : Tensor (classes,)
        The network's output of each class.
    size : tuple of int
        (rows, columns) of the tile without its padding.
    card : ModelCard
        Holds the limits.
    min_score : float
        Threshold.
    """
    n, most = proposals.there.shape
    boxes = proposals.boxes.reshape(-1, 4)
    pooled = pool_boxes(atlas, boxes, _tile_of_row(n, most, boxes), heads.box_roi_pool)
    described = heads.box_head(pooled.to(_dtype_of(heads.box_head)))
    with torch.autocast(_autocast_type(boxes), enabled=False):
        # scores and boxes are worth all digits, and the layer is small
        logits, deltas = heads.box_predictor(described.to(_dtype_of(heads.box_predictor)))
        logits, deltas = logits.float(), deltas.float()
    decoded = heads.box_coder.decode(deltas, [boxes]).reshape(len(boxes), -1, 4)[:, outputs]
    decoded = clip_boxes_to_image(decoded, size).reshape(n, -1, 4)
    scores = F.softmax(logits, -1)[:, outputs].reshape(n, -1)
    classes = len(outputs)
    passed = scores > min_score if card.strict_score else scores >= min_score
    sides = decoded[..., 2:] - decoded[..., :2]
    passed &= (sides >= card.min_side_px).all(-1) & (sides > 0).all(-1)
    passed &= torch.isfinite(decoded).all(-1)
    passed &= proposals.there.repeat_interleave(classes, 1)
    room = min(max(2 * card.max_detections, card.proposals), passed.shape[1])
    best, rows = scores.masked_fill(~passed, -1.0).topk(room, dim=1)
    decoded = decoded.gather(1, rows[..., None].expand(-1, -1, 4))
    labels = rows % classes
    kept, settled = suppress(decoded, best >= 0, card.nms_iou, labels)
    last = min(card.max_detections, room)
    place = torch.arange(room, device=kept.device).expand_as(kept)
    slots = place.masked_fill(~kept, room).topk(last, dim=1, largest=False).values
    slots = slots.clamp(max=room - 1)
    return Found(
        decoded.gather(1, slots[..., None].expand(-1, -1, 4)),
        best.gather(1, slots),
        labels.gather(1, slots),
        kept.sum(1).clamp(max=last),
        settled & proposals.settled & (passed.sum(1) <= room),
    )


def _tile_of_row(n: int, rows: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)[:, None].expand(n, rows).reshape(-1)


def _autocast_type(like: Tensor) -> str:
    return "cpu" if like.device.type == "meta" else like.device.type


def _dtype_of(part: Any) -> torch.dtype:
    dtype: torch.dtype = next(part.parameters()).dtype
    return dtype


def masks_fixed(
    heads: Any, atlas: Atlas, found: Found, outputs: Tensor, first: int, rows: int, cells: int
) -> Tensor:
    """Return some detections of a batch with their masks, as bytes for one copy to the host.

    Parameters
    ----------
    heads : RoIHeads
        torchvision's; without a mask branch no masks are made.
    atlas : Atlas
        The pyramid.
    found : Found
        Of the whole batch; its detections are counted tile after tile.
    outputs : Tensor (classes,)
        The network's output of each class.
    first, rows : int
        Which detections: from number `first` on, so many. Rows beyond the last one hold nothing
        of use.
    cells : int
        Cells a side of a mask; 0: no masks.

    Returns
    -------
    Tensor (rows, 24 + 2 cells^2) uint8
        Box (4 float32), score (float32), label (int32), mask (float16 probabilities).
    """
    ends = found.counts.cumsum(0)
    number = torch.arange(first, first + rows, device=ends.device)
    tile = torch.searchsorted(ends, number, right=True).clamp(max=len(ends) - 1)
    slot = (number - (ends - found.counts)[tile]).clamp(0, found.boxes.shape[1] - 1)
    boxes, labels = found.boxes[tile, slot], found.labels[tile, slot]
    columns = [boxes, found.scores[tile, slot][:, None], labels.int()[:, None]]
    if cells:
        pooled = pool_boxes(atlas, boxes, tile, heads.mask_roi_pool)
        head = heads.mask_predictor(heads.mask_head(pooled.to(_dtype_of(heads.mask_head))))
        logits = head[torch.arange(rows, device=tile.device), outputs[labels]]
        columns.append(torch.sigmoid(logits.float()).half().flatten(1))
    return torch.cat([column.contiguous().view(torch.uint8) for column in columns], 1)
