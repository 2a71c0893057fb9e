"""Run a network on tiles: torchvision's parts, without its resize, its silent cap and its pasting.

The steps are those of torchvision's own forward; what differs is said where it differs. Masks
leave as M x M probabilities in their box.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, file_sha256, load_card_and_weights
from geoseg.models.maskrcnn import Architecture, build_maskrcnn, load_weights
from geoseg.records import Instances

MIN_SIDE_PX = 1.0
"""Boxes thinner than this are no objects."""


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
    """A Mask R-CNN as a geoseg detector.

    Parameters
    ----------
    model : MaskRCNN
        Network with its weights.
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
    """

    def __init__(
        self,
        model: MaskRCNN,
        card: ModelCard,
        *,
        device: str = "auto",
        min_score: float | None = None,
        batch: int | None = None,
        fingerprint: str = "",
    ) -> None:
        self.card = card
        self.classes = card.classes
        self.bands = card.bands
        self.gsd_m = card.gsd_m
        self.tile_size = card.tile_size
        self.overlap = card.overlap
        self.min_score = card.min_score if min_score is None else min_score
        self.fingerprint = fingerprint
        self.device = choose_device(device)
        self.batch = batch or (1 if self.device.type == "cpu" else 8)
        self.model = model.eval().requires_grad_(False)
        _fuse_batch_norm(self.model)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.model.rpn._pre_nms_top_n = {"training": 0, "testing": 1000}
        self.model.rpn._post_nms_top_n = {"training": 0, "testing": card.proposals}
        low, high = card.value_range
        mean = torch.tensor(card.mean, device=self.device)
        std = torch.tensor(card.std, device=self.device)
        # one multiply and one add bring raw pixels to normalized ones
        self._gain = (1 / ((high - low) * std))[:, None, None]
        self._offset = ((-low / (high - low) - mean) / std)[:, None, None]

    @torch.inference_mode()
    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects in tiles (N, C, H, W); see `geoseg.models.detector.Detector`."""
        if tiles.ndim != 4 or tiles.shape[1] != len(self.bands):
            raise ModelError(
                f"tiles have shape {tiles.shape}; model {self.card.name} wants (N, "
                f"{len(self.bands)}, H, W) with bands {', '.join(self.bands)}"
            )
        found: list[Instances] = []
        for first in range(0, len(tiles), self.batch):
            found += self._forward(tiles[first : first + self.batch])
        return found

    def _forward(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device)
        if pixels.dtype == torch.uint16:
            pixels = pixels.int()
        pixels = (pixels.float() * self._gain + self._offset).contiguous(
            memory_format=torch.channels_last
        )
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        features = self.model.backbone(pixels)
        proposals, _ = self.model.rpn(ImageList(pixels, [size] * len(tiles)), features)
        kept = self._boxes(features, proposals, size)
        masks = self._masks(features, kept, size)
        return [
            Instances(
                boxes=boxes.cpu().numpy(),
                scores=scores.cpu().numpy().clip(0, 1),
                labels=labels.cpu().numpy(),
                masks=mask.cpu().numpy(),
                saturated=len(boxes) >= self.card.max_detections,
            )
            for (boxes, scores, labels), mask in zip(kept, masks, strict=True)
        ]

    def _boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return per tile the boxes, scores and labels (from 0) that pass threshold and NMS."""
        heads = self.model.roi_heads
        pooled = heads.box_roi_pool(features, proposals, [size] * len(proposals))
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        counts = [len(p) for p in proposals]
        decoded = heads.box_coder.decode(deltas, proposals).split(counts)
        scored = F.softmax(logits, -1).split(counts)
        return [
            self._keep(clip_boxes_to_image(b, size), s)
            for b, s in zip(decoded, scored, strict=True)
        ]

    def _keep(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply threshold, NMS within a class, and the cap, to one tile."""
        # class 0 is the background; only scores that count go on
        rows, classes = torch.where(scores[:, 1:] >= self.min_score)
        boxes, scores = boxes[rows, classes + 1], scores[rows, classes + 1]
        big = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE_PX).all(1)
        boxes, scores, classes = boxes[big], scores[big], classes[big]
        keep = batched_nms(boxes, scores, classes, self.card.nms_iou)[: self.card.max_detections]
        return boxes[keep], scores[keep], classes[keep]

    def _masks(
        self,
        features: dict[str, Tensor],
        kept: Sequence[tuple[Tensor, Tensor, Tensor]],
        size: tuple[int, int],
    ) -> Sequence[Tensor]:
        """Return per tile the (n, M, M) probabilities of the predicted class."""
        heads = self.model.roi_heads
        counts = [len(boxes) for boxes, _, _ in kept]
        if sum(counts) == 0:
            return [torch.zeros((0, 28, 28)) for _ in kept]
        pooled = heads.mask_roi_pool(features, [boxes for boxes, _, _ in kept], [size] * len(kept))
        logits = heads.mask_predictor(heads.mask_head(pooled))
        labels = torch.cat([labels for _, _, labels in kept])
        rows = torch.arange(len(labels), device=labels.device)
        masks: Sequence[Tensor] = torch.sigmoid(logits[rows, labels + 1]).split(counts)
        return masks


def _fuse_batch_norm(model: MaskRCNN) -> None:
    """Fold each frozen batch norm of the backbone into the convolution just before it."""
    body = getattr(model.backbone, "body", model.backbone)
    for parent in list(body.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            fits = isinstance(norm, torch.nn.BatchNorm2d) and isinstance(conv, torch.nn.Conv2d)
            if fits and conv.out_channels == norm.num_features:
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                # timm's norm layers carry the activation that follows them
                setattr(parent, norm_name, getattr(norm, "act", torch.nn.Identity()))


def load_maskrcnn(
    path: Path, *, device: str = "auto", min_score: float | None = None
) -> MaskRCNNDetector:
    """Load a model file and its card as a detector.

    Raises
    ------
    ModelError
        If the file or card is missing or broken, or weights do not fit the architecture.
    """
    card, weights = load_card_and_weights(path)
    model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
    load_weights(model, weights, path)
    return MaskRCNNDetector(
        model, card, device=device, min_score=min_score, fingerprint=file_sha256(path)
    )
