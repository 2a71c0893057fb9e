"""How others go from tiles to objects with Mask R-CNN: torchvision's own loop, and SAHI.

Both get torchvision's own `MaskRCNN` class with the weights that geoseg gets, at geoseg's tiles and
thresholds, in inference mode and without gradients, which SAHI alone would keep switched on.
OpenCV and SAHI are optional: pip install sahi opencv-python-headless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, nms

from geoseg.models.card import ModelCard
from geoseg.models.known import KNOWN
from geoseg.models.maskrcnn import LEVELS, Architecture, build_maskrcnn, load_weights
from geoseg.models.registry import find_model
from geoseg.records import GeometryArray, Tile

try:
    import cv2
except ImportError:
    cv2 = None
try:
    from sahi.models.torchvision import TorchVisionDetectionModel
    from sahi.predict import get_sliced_prediction
except ImportError:
    TorchVisionDetectionModel = None

NO_OPENCV = "OpenCV is not installed: torchvision's loop with findContours is left out."
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as torchvision normalizes."""
NMS_IOU = 0.5
"""Boxes of the torchvision loop that overlap more are one object."""


@dataclass(frozen=True)
class Limits:
    """Thresholds and caps that all get alike."""

    min_score: float
    tile: int
    overlap: int
    max_detections: int


def torchvision_network(
    card: ModelCard, weights: Mapping[str, Tensor], name: str, limits: Limits
) -> nn.Module:
    """Return torchvision's network with its own forward; its transform resizes nothing."""
    if name in KNOWN:
        model = getattr(detection, name)(weights=None, weights_backbone=None)
        model.load_state_dict(weights, strict=False)
    else:
        model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
        load_weights(model, weights, find_model(name))
        heads = model.roi_heads
        heads.box_roi_pool = MultiScaleRoIAlign(list(LEVELS), 7, 2)
        heads.mask_roi_pool = MultiScaleRoIAlign(list(LEVELS), 14, 2)
    model.transform = GeneralizedRCNNTransform(
        limits.tile, limits.tile, list(card.mean), list(card.std)
    )
    rpn, heads = model.rpn, model.roi_heads
    rpn._pre_nms_top_n = {"training": card.rpn_pre_nms, "testing": card.rpn_pre_nms}
    rpn._post_nms_top_n = {"training": card.proposals, "testing": card.proposals}
    rpn.nms_thresh = card.rpn_nms_iou
    heads.score_thresh, heads.nms_thresh = limits.min_score, card.nms_iou
    heads.detections_per_img = limits.max_detections
    return model.eval().requires_grad_(False)


def forward(model: nn.Module, tiles: Sequence[Tensor], *, paste: bool = False) -> list[Any]:
    """Run torchvision's forward on tiles one by one; `paste` puts masks into images after it."""
    transform: Any = model.transform
    kept = transform.postprocess
    if not paste:
        transform.postprocess = lambda found, *_: found
    try:
        with torch.inference_mode():
            return [model([tile])[0] for tile in tiles]
    finally:
        transform.postprocess = kept


def _outlines(mask: np.ndarray, left: float, top: float) -> shapely.Geometry | None:
    """Return the largest outline that OpenCV traces of a pasted mask."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = [c[:, 0] for c in found if len(c) >= 3]
    if not rings:
        return None
    largest = max(rings, key=cv2.contourArea)
    return shapely.Polygon(largest + np.array((left, top)))


def torchvision_loop(
    model: nn.Module, tiles: Sequence[tuple[Tile, np.ndarray]]
) -> tuple[GeometryArray, np.ndarray]:
    """Return polygons (px of the image) and scores: `model(images)`, findContours, box NMS."""
    polygons: list[shapely.Geometry] = []
    boxes, scores = [], []
    for tile, pixels in tiles:
        image = torch.from_numpy(pixels).float() / 255
        found = forward(model, [image], paste=True)[0]
        left, top = tile.window.col_off, tile.window.row_off
        masks = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
        for mask, box, score in zip(masks, found["boxes"], found["scores"], strict=True):
            polygon = _outlines(mask, left, top)
            if polygon is not None:
                polygons.append(polygon)
                boxes.append(box + torch.tensor([left, top, left, top]))
                scores.append(score)
    if not polygons:
        return np.zeros(0, object), np.zeros(0)
    keep = nms(torch.stack(boxes), torch.stack(scores), NMS_IOU).numpy()
    return np.array(polygons, object)[keep], torch.stack(scores).numpy()[keep]


def sahi_model(model: nn.Module, limits: Limits) -> Any:
    """Return torchvision's network as SAHI holds it."""
    return TorchVisionDetectionModel(
        model=model, confidence_threshold=limits.min_score, device="cpu", load_at_init=True
    )


def sahi_sliced(held: Any, image: np.ndarray, limits: Limits) -> tuple[GeometryArray, np.ndarray]:
    """Return polygons (px of the image) and scores by SAHI at its default of merging.

    Parameters
    ----------
    held : TorchVisionDetectionModel
        See `sahi_model`.
    image : ndarray (H, W, 3) uint8
        The whole image, as SAHI wants it.
    """
    with torch.inference_mode():
        result = get_sliced_prediction(
            image,
            held,
            slice_height=limits.tile,
            slice_width=limits.tile,
            overlap_height_ratio=limits.overlap / limits.tile,
            overlap_width_ratio=limits.overlap / limits.tile,
            perform_standard_pred=False,
            verbose=0,
        )
    polygons, scores = [], []
    for found in result.object_prediction_list:
        if found.mask is None:
            continue
        rings = [np.reshape(s, (-1, 2)) for s in found.mask.segmentation if len(s) >= 6]
        if rings:
            parts = shapely.make_valid([shapely.Polygon(xy) for xy in rings])
            polygons.append(shapely.union_all(parts))
            scores.append(found.score.value)
    return np.array(polygons, object), np.array(scores)
