"""Run a network on tiles: torchvision's parts, without its resize, its silent cap and its pasting.

The steps are those of torchvision's own forward; what differs is said where it differs. Masks
leave as M x M probabilities in their box. Caps, counts and thresholds are the card's.

*Exact* detectors compute with torchvision's operations in torchvision's order, so that the same
pixels give its numbers to the last bits. The others, which all are unless told otherwise, fold
norms into convolutions, keep channels last, pool by a sparse product, and on a CPU run oneDNN's
fused kernels, in bfloat16 where it has matrix units for that (`geoseg.models.cpu`). Their rounding
differs: by some thousandths of a px in float32; docs/adr/0008 has what bfloat16 changes.

A tile is *saturated* where a limit may have cost objects: the detections reached their cap, or the
region proposal network left out boxes that it held for objects with `SURE_OBJECT` or more, because
there were more of them than a level ranks, or than the heads are given.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, permute_and_flatten
from torchvision.ops import FrozenBatchNorm2d, batched_nms, clip_boxes_to_image

from geoseg.errors import ModelError, TileError
from geoseg.models.card import ModelCard, file_sha256
from geoseg.models.cpu import cpu_precision, fused_kernels_work, mask_logits, pack
from geoseg.models.glance import Glance
from geoseg.models.gpu import CALL_BATCHES, FixedShapes, GpuOptions
from geoseg.models.maskrcnn import Architecture, build_maskrcnn, load_weights
from geoseg.models.roialign import PyramidRoIAlign
from geoseg.records import WORTH_TELLING, Instances

log = logging.getLogger(__name__)

BOX_PROBABILITY = np.nextafter(np.float32(0.5), np.float32(1))
"""In the masks of a model without masks: a pixel of the box is object rather than not.

An outline traced at 0.5 then runs along the box exactly; that of ones would lose its corners.
"""
SURE_OBJECT = 0.95
"""Objectness from which a proposal that a limit left out counts as a lost object.

The network learns objectness on boxes drawn half and half from objects and background, of which
there is a thousand times more: 0.5 is far from an even chance, and every object has a dozen such
boxes. With the shipped model 80 of 159 tiles of real imagery pass over boxes of 0.5 or more, 36 of
0.8, 12 of 0.9 and 3 of 0.95 (benchmarks/saturation.py), nearly all of them in a dense old town.
"""
_SURE_LOGIT = math.log(SURE_OBJECT / (1 - SURE_OBJECT))


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that the GPU has no room; libraries beside torch have own words.

    Examples
    --------
    >>> out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    True
    >>> out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."))
    True
    >>> out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(w in str(error) for w in words)


def choose_device(device: str) -> torch.device:
    """Return the device for 'auto', 'cpu' or 'cuda'.

    Raises
    ------
    ModelError
        If CUDA is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda, but torch sees no GPU; geoseg doctor tells why")
    return torch.device(device)


class MaskRCNNDetector:
    """A Mask R-CNN or Faster R-CNN as a geoseg detector.

    Parameters
    ----------
    model : MaskRCNN or FasterRCNN
        Network with its weights; frozen norms are folded into its convolutions.
    card : ModelCard
        Says how pixels are scaled, and the caps and thresholds.
    device : str
        'auto', 'cpu' or 'cuda'.
    min_score : float, optional
        Score threshold in [0, 1]; the card's where not given.
    batch : int
        Tiles a forward pass.
    fingerprint : str
        Identifies the weights.
    exact : bool
        Compute as torchvision does, to the last bits; otherwise faster.
    fixed : GpuOptions, optional
        Run in fixed shapes (`geoseg.models.gpu`), on whichever device; not given: on a GPU with
        the options' defaults, unless exact. It excludes `exact`.
    precision : str
        'float32' or 'bfloat16', unless exact; 'fast': bfloat16 on a GPU, and on a CPU that has
        matrix units for it; 'auto': the same, but float32 for networks of torchvision and
        Detectron2, whose numbers one may want to find again.
    """

    def __init__(
        self,
        model: FasterRCNN,
        card: ModelCard,
        *,
        device: str = "auto",
        min_score: float | None = None,
        batch: int | None = None,
        fingerprint: str = "",
        exact: bool = False,
        fixed: GpuOptions | None = None,
        precision: str = "auto",
    ) -> None:
        self.card = card
        self.classes = card.classes
        self.bands = card.bands
        self.dtype, self.value_range = card.dtype, card.value_range
        self.gsd_m = card.gsd_m
        self.tile_size = card.tile_size
        self.overlap = card.overlap
        self.min_score = card.min_score if min_score is None else min_score
        self.fingerprint = fingerprint
        self.device = choose_device(device)
        on_cpu = self.device.type == "cpu"
        self.batch = batch or (fixed and fixed.batch) or (1 if on_cpu else 8)
        self.model = model.eval().requires_grad_(False)
        self.exact = exact
        precision = _settled(precision, card)
        if fixed is not None and exact:
            raise ModelError("fixed shapes are not torchvision's to the last bits; leave exact out")
        layout = torch.contiguous_format if self.exact else torch.channels_last
        self._layout = layout
        activations = [] if self.exact else fuse_batch_norms(self.model)
        self.model.to(self.device, memory_format=layout)
        self.packed = not exact and on_cpu and fixed is None and fused_kernels_work()
        if self.exact:
            _pool_as_torchvision(self.model)
        elif self.packed:
            pack(self.model, activations, cpu_precision(precision))
        elif on_cpu and fixed is None and precision == "bfloat16":
            raise ModelError(
                "precision bfloat16 on a CPU needs oneDNN's kernels, which this torch has not; "
                "leave it out"
            )
        self._divisor = int(card.architecture.get("size_divisor", 1))
        outputs = card.class_outputs or range(1, len(card.classes) + 1)
        self._outputs = torch.tensor(list(outputs), device=self.device)
        self._mean = torch.tensor(card.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(card.std, device=self.device)[:, None, None]
        if fixed is None and not on_cpu and not self.exact:
            fixed = GpuOptions("bfloat16" if precision == "auto" else precision, batch=batch)
        self._fixed = None if fixed is None else FixedShapes(self, fixed)

    def make_glance(self) -> Glance:
        """Return what takes a first look at coarser pixels; see `geoseg.jobs.skip`."""
        return Glance(self)

    @property
    def tiles_a_call(self) -> int:
        """Tiles that a caller should hand over at once; memory is bounded by `batch`."""
        return self.batch if self._fixed is None else CALL_BATCHES * self.batch

    @property
    def side_by_side(self) -> bool:
        """Whether several threads may call it at once: nothing of it changes in a call."""
        return self.device.type == "cpu" and self._fixed is None

    @torch.inference_mode()
    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects in tiles (N, C, H, W); see `geoseg.models.detector.Detector`.

        Pixels that are not finite count as 0, like those without data; what comes out not finite
        is dropped. Where the GPU has no room for a batch, half as many tiles go at a time, from
        then on.

        Raises
        ------
        ModelError
            If the tiles do not fit the model.
        TileError
            If the GPU has no room for one tile.
        """
        if tiles.ndim != 4 or tiles.shape[1] != len(self.bands):
            raise ModelError(
                f"tiles have shape {tiles.shape}; model {self.card.name} wants (N, "
                f"{len(self.bands)}, H, W) with bands {', '.join(self.bands)}"
            )
        found: list[Instances] = []
        while len(found) < len(tiles):
            batch = tiles[len(found) : len(found) + self.batch]
            no_room = ""
            try:
                if self._fixed is None:
                    found += self._forward(batch)
                else:
                    self._fixed(tiles[len(found) :], found)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                no_room = str(error).partition("\n")[0]
            if no_room:
                # not in the handler: there, the traceback holds the tensors of the failed attempt
                self._take_fewer(batch, no_room)
        return found

    def _take_fewer(self, batch: npt.NDArray[Any], no_room: str) -> None:
        """Halve the batch after the GPU had no room for this one."""
        if self._fixed is not None:
            self._fixed.forget()
        torch.cuda.empty_cache()
        height, width = batch.shape[2:]
        if len(batch) == 1:
            raise TileError(
                f"the GPU has no room for one tile of {height} x {width} px ({no_room}); give a "
                "smaller --tile-size or --device cpu, or end what else uses the GPU"
            )
        self.batch = len(batch) // 2
        log.warning(
            "the GPU has no room for %d tiles of %d x %d px at once; going on with %d",
            len(batch), height, width, self.batch,
        )  # fmt: skip

    def _forward(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        size = (int(tiles.shape[2]), int(tiles.shape[3]))
        pixels = self._normalized(tiles)
        features = self.model.backbone(pixels)
        proposals, cut = propose(self.model.rpn, pixels, features, size, self.card)
        kept, below = self._boxes(features, proposals, size)
        masks = self._masks(features, kept, size)
        return [
            replace(self._instances(*found, mask, saturated), best_below=best, n_below=int(n))
            for found, mask, saturated, (best, n) in zip(kept, masks, cut, below, strict=True)
        ]

    def _normalized(self, tiles: npt.NDArray[Any]) -> Tensor:
        """Return the (N, C, H, W) pixels as the network wants them, padded to its divisor."""
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device)
        if pixels.dtype == torch.uint16:
            pixels = pixels.int()
        if pixels.is_floating_point():
            pixels = pixels.float().nan_to_num(0.0, 0.0, 0.0)
        low, high = self.card.value_range
        if self.exact:
            pixels = (pixels.float() - low).div_(high - low).sub_(self._mean).div_(self._std)
        else:
            # one multiply and one add bring raw pixels to normalized ones
            gain = 1 / ((high - low) * self._std)
            pixels = pixels.float() * gain + (-low / (high - low) - self._mean) / self._std
        down, right = (-int(side) % self._divisor for side in pixels.shape[2:])
        if down or right:
            pixels = F.pad(pixels, (0, right, 0, down))
        return pixels.contiguous(memory_format=self._layout)

    def _instances(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor, cut: bool
    ) -> Instances:
        saturated = cut or len(boxes) >= self.card.max_detections
        finite = torch.isfinite(masks).flatten(1).all(1)
        if not bool(finite.all()):
            boxes, scores, labels, masks = (t[finite] for t in (boxes, scores, labels, masks))
        return Instances(
            boxes=boxes.cpu().numpy(),
            scores=scores.cpu().numpy().clip(0, 1),
            labels=labels.cpu().numpy(),
            masks=masks.cpu().numpy(),
            saturated=saturated,
        )

    def _boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[list[float]]]:
        """Return per tile the boxes, scores and labels (from 0) that pass threshold and NMS.

        And per tile the best score below the threshold, and how many boxes have one.
        """
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(features, proposals, [size] * len(proposals))
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        counts = [len(p) for p in proposals]
        deltas = deltas.reshape(len(deltas), -1, 4)[:, self._outputs].split(counts)
        scored = F.softmax(logits, -1)[:, self._outputs].split(counts)
        found = zip(proposals, deltas, scored, strict=True)
        return [self._keep(*one, size) for one in found], [self._below(s) for s in scored]

    def _below(self, scores: Tensor) -> list[float]:
        """Return the best score below the threshold, and how many are worth telling."""
        low = scores * (scores < self.min_score)
        best = low.max() if low.numel() else low.sum()
        # one copy from the GPU, not two
        found: list[float] = torch.stack([best, (low >= WORTH_TELLING).sum()]).tolist()
        return found

    def _keep(
        self, proposals: Tensor, deltas: Tensor, scores: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply threshold, NMS within a class, and the cap, to one tile."""
        passed = scores > self.min_score if self.card.strict_score else scores >= self.min_score
        rows, classes = torch.where(passed)
        scores = scores[rows, classes]
        # torchvision decodes the boxes of all classes, of which a few in a thousand get this far
        coder = self.model.roi_heads.box_coder
        boxes = coder.decode_single(deltas[rows, classes], proposals[rows])
        boxes = clip_boxes_to_image(boxes, size)
        good = ((boxes[:, 2:] - boxes[:, :2]) >= self.card.min_side_px).all(1)
        good &= torch.isfinite(boxes).all(1)
        boxes, scores, classes = boxes[good], scores[good], classes[good]
        keep = batched_nms(boxes, scores, classes, self.card.nms_iou)[: self.card.max_detections]
        # where no side is too short, boxes outside the tile are left with none, as in Detectron2
        keep = keep[(boxes[keep, 2:] > boxes[keep, :2]).all(1)]
        return boxes[keep], scores[keep], classes[keep]

    def _masks(
        self,
        features: dict[str, Tensor],
        kept: Sequence[tuple[Tensor, Tensor, Tensor]],
        size: tuple[int, int],
    ) -> Sequence[Tensor]:
        """Return per tile the (n, M, M) probabilities of the predicted class."""
        heads, cells = self.model.roi_heads, self.card.mask_size
        counts = [len(boxes) for boxes, _, _ in kept]
        if sum(counts) == 0 or not self.card.has_masks:
            return [torch.full((n, cells, cells), float(BOX_PROBABILITY)) for n in counts]
        pooled = heads.mask_roi_pool(features, [boxes for boxes, _, _ in kept], [size] * len(kept))
        deep = heads.mask_head(pooled)
        outputs = self._outputs[torch.cat([labels for _, _, labels in kept])]
        if self.packed:
            logits = mask_logits(heads.mask_predictor, deep, outputs)
        else:
            rows = torch.arange(len(outputs), device=outputs.device)
            logits = heads.mask_predictor(deep)[rows, outputs]
        masks: Sequence[Tensor] = torch.sigmoid(logits).split(counts)
        return masks


def propose(
    rpn: RegionProposalNetwork,
    pixels: Tensor,
    features: Mapping[str, Tensor],
    size: tuple[int, int],
    card: ModelCard,
) -> tuple[list[Tensor], list[bool]]:
    """Run a region proposal network, and say where its limits left likely objects out.

    Parameters
    ----------
    rpn : RegionProposalNetwork
        torchvision's.
    pixels : Tensor (N, C, H, W)
        Normalized and padded.
    features : mapping of str to Tensor
        The pyramid, finest level first.
    size : tuple of int
        (rows, columns) of the tile without its padding.
    card : ModelCard
        Holds the limits.

    Returns
    -------
    proposals : list of Tensor (P, 4)
        Boxes of each tile, px, best first.
    cut : list of bool
        For each tile whether a limit left out a box with an objectness of `SURE_OBJECT` or more.
    """
    n, maps = len(pixels), list(features.values())
    logits, deltas = rpn.head(maps)
    # of the maps it takes sizes and number type; those of bfloat16 know no odd px above 256
    plain = [level[:, :1].float() for level in maps]
    anchors = rpn.anchor_generator(ImageList(pixels, [size] * n), plain)[0]
    boxes, ranks, levels = [], [], []
    cut = torch.zeros(n, dtype=torch.bool, device=pixels.device)
    for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
        _, per_cell, height, width = logit.shape
        logit = permute_and_flatten(logit, n, per_cell, 1, height, width).flatten(1)  # noqa: PLW2901
        delta = permute_and_flatten(delta, n, per_cell, 4, height, width)  # noqa: PLW2901
        here, anchors = anchors[: logit.shape[1]], anchors[logit.shape[1] :]
        best, rows = logit.topk(min(card.rpn_pre_nms, logit.shape[1]), dim=1)
        # torchvision decodes all boxes, of which a few in a hundred get this far
        chosen = delta.gather(1, rows[..., None].expand(-1, -1, 4)).reshape(-1, 4)
        boxes.append(rpn.box_coder.decode(chosen, list(here[rows])).reshape(n, -1, 4))
        ranks.append(best)
        levels.append(torch.full_like(rows, level))
        cut |= (logit >= _SURE_LOGIT).sum(1) > card.rpn_pre_nms
    proposals = []
    tiles = zip(*(torch.cat(parts, 1) for parts in (boxes, ranks, levels)), strict=True)
    for i, (box, logit, level) in enumerate(tiles):
        kept, passed_over = _best_proposals(clip_boxes_to_image(box, size), logit, level, card)
        proposals.append(kept)
        cut[i] |= passed_over
    return proposals, cut.tolist()


def _best_proposals(
    boxes: Tensor, logits: Tensor, levels: Tensor, card: ModelCard
) -> tuple[Tensor, Tensor]:
    """Return the best boxes of one tile, and whether others that are likely objects remain."""
    sides = boxes[:, 2:] - boxes[:, :2]
    good = ((sides >= card.rpn_min_size) & (sides > 0)).all(1)
    good &= torch.isfinite(boxes).all(1) & torch.isfinite(logits)
    boxes, logits, levels = boxes[good], logits[good], levels[good]
    ranks = logits if card.rpn_by_logit else torch.sigmoid(logits)
    keep = batched_nms(boxes, ranks, levels, card.rpn_nms_iou)
    return boxes[keep[: card.proposals]], (logits[keep] >= _SURE_LOGIT).sum() > card.proposals


def _pool_as_torchvision(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, PyramidRoIAlign):
            part.sparse = False


def fuse_batch_norms(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Fold each batch norm, trained or frozen, into the convolution just before it, in place.

    Returns
    -------
    list of (parent, convolution's name, activation's name)
        Activations that norms of timm brought along; they stand in the norms' places.
    """
    brought = []
    for parent in list(model.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            fits = isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
            if not (fits and isinstance(conv, nn.Conv2d)):
                continue
            if conv.out_channels != len(norm.running_mean):
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            # timm's norm layers carry the activation that follows them
            setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
            if hasattr(norm, "act"):
                brought.append((parent, conv_name, norm_name))
    return brought


def _settled(precision: str, card: ModelCard) -> str:
    """Return 'float32', 'bfloat16', or 'auto' for what the device is fast at."""
    if precision == "auto" and card.architecture.get("family") == "resnet_fpn":
        return "float32"
    return "auto" if precision == "fast" else precision


def make_detector(
    card: ModelCard,
    weights: Mapping[str, Tensor],
    path: Path,
    *,
    device: str = "auto",
    min_score: float | None = None,
    exact: bool = False,
    precision: str = "auto",
    **limits: float | None,
) -> MaskRCNNDetector:
    """Build the network of a card, put weights into it, and wrap it as a detector.

    Parameters
    ----------
    card : ModelCard
        Names the architecture, the classes and the defaults of limits and thresholds.
    weights : mapping of str to Tensor
        By the network's own names, float32.
    path : Path
        File that they come from; its hash identifies the detector.
    device : str
        'auto', 'cpu' or 'cuda'.
    min_score : float, optional
        Score threshold in [0, 1]; the card's where not given.
    exact, precision
        See `MaskRCNNDetector`.
    **limits
        ``max_detections``, ``proposals`` or ``nms_iou`` instead of the card's; None: the card's.

    Raises
    ------
    ModelError
        If weights do not fit the architecture, or a limit or the device cannot be used.
    """
    own: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    card = replace(card, **own)
    model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
    load_weights(model, weights, path)
    # a detector with other limits finds other things: it must not be taken for the first
    usual = _settled(precision, card) == _settled("auto", card)
    how = {"exact": exact or None, "precision": None if usual else precision}
    own |= {name: value for name, value in how.items() if value is not None}
    identity = [file_sha256(path), *(f"{name}={own[name]}" for name in sorted(own))]
    return MaskRCNNDetector(
        model,
        card,
        device=device,
        min_score=min_score,
        fingerprint=" ".join(identity),
        exact=exact,
        precision=precision,
    )
