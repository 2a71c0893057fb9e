"""Detectron2's Mask R-CNN and Faster R-CNN, without Detectron2.

The weights get torchvision's names, their background class comes first instead of last, and their
first convolution takes red, green, blue instead of blue, green, red. Nothing else about them
changes. What differs in the arithmetic is written into the card: exact anchors, ROIAlign with
``aligned``, the padding to multiples of 32, caps, thresholds and their strictness.

References
----------
Wu et al., "Detectron2", 2019, https://github.com/facebookresearch/detectron2 (Apache-2.0), of
which names, defaults and arithmetic are restated here; He et al., "Mask R-CNN",
https://doi.org/10.1109/ICCV.2017.322.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, file_sha256
from geoseg.models.checkpoints import Checkpoint, listed, read_checkpoint
from geoseg.models.detectron2_config import Settings, read_config
from geoseg.models.maskrcnn import (
    LEVELS,
    Architecture,
    build_maskrcnn,
    exact_anchors,
)

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

    from geoseg.models.inference import MaskRCNNDetector

ZOO_LICENCE = "CC-BY-SA-3.0"
ZOO_CREDITS = (
    "Detectron2 model zoo, Facebook AI Research, https://github.com/facebookresearch/detectron2",
)
NO_CAP = 1_000_000
"""What a negative number of detections an image, Detectron2's "all", becomes."""
STEM = "backbone.body.conv1.weight"
"""The one convolution that sees pixels."""

_RES = ["res2", "res3", "res4", "res5"]
_NORMS = {"": "none", "GN": "group", "BN": "batch", "SyncBN": "batch", "FrozenBN": "batch"}
_BACKBONE_NORMS = {"FrozenBN": "frozen", "BN": "batch", "SyncBN": "batch", "GN": "group"}
_ALIGNED = {"ROIAlignV2": True, "ROIAlign": False}
_ONLY: Mapping[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": _RES,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
}
"""Settings with one supported value."""
_ONLY_MASK: Mapping[str, Any] = {
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
"""The same, where the model has masks."""


# --- what a configuration says ---------------------------------------------------------------


def check_supported(settings: Settings) -> None:
    """Raise if a configuration is of a model that cannot be represented, naming the key.

    Raises
    ------
    ModelError
        For C4 and dilated C5 backbones, keypoints, cascades, deformable convolutions, other
        backbones, heads and generators, and parts of a size that the network here does not have.
    """
    head, where = settings["MODEL.ROI_HEADS.NAME"], settings.where
    if head in ("Res5ROIHeads", "C4ROIHeads"):
        raise ModelError(
            f"{where} is a C4 model (MODEL.ROI_HEADS.NAME is {head}): its heads use one feature "
            "map at stride 16, too coarse for objects of a few pixels; use a model with FPN. "
            "A file without _BASE_ lacks what Base-RCNN-FPN.yaml says: is it a part of one?"
        )
    if settings["MODEL.RESNETS.RES5_DILATION"] != 1:
        raise ModelError(
            f"{where} is a DC5 model (MODEL.RESNETS.RES5_DILATION is "
            f"{settings['MODEL.RESNETS.RES5_DILATION']}): its one feature map at stride 16 is too "
            "coarse for objects of a few pixels; use a model with FPN"
        )
    only = {**_ONLY, **(_ONLY_MASK if settings.flag("MODEL.MASK_ON") else {})}
    for key, value in only.items():
        given = settings[key]
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise settings.wrong(key, f"{value!r}, the one that is supported")


def architecture_of(settings: Settings) -> Architecture:
    """Return the network that a configuration describes.

    Raises
    ------
    ModelError
        If it cannot be represented; the message names the key.
    """
    check_supported(settings)
    masks = settings.flag("MODEL.MASK_ON")
    aligned = _choice(settings, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", _ALIGNED)
    if masks and _choice(settings, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", _ALIGNED) != aligned:
        raise settings.wrong("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "that of MODEL.ROI_BOX_HEAD")
    fpn = settings.count("MODEL.FPN.OUT_CHANNELS")
    convs = settings["MODEL.RPN.CONV_DIMS"]
    if not isinstance(convs, list | tuple) or not convs or not all(_is_width(c) for c in convs):
        raise settings.wrong("MODEL.RPN.CONV_DIMS", "-1 or a number of channels for each")
    ratios = settings.per_level("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", len(LEVELS) + 1)
    if len(set(ratios)) > 1:
        raise settings.wrong("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "the same on every level")
    offset = settings.number("MODEL.ANCHOR_GENERATOR.OFFSET", 0, 1)
    architecture = Architecture(
        family="resnet_fpn",
        masks=masks,
        fpn_channels=fpn,
        fpn_norm=_choice(settings, "MODEL.FPN.NORM", _NORMS),
        anchor_sizes_px=settings.per_level("MODEL.ANCHOR_GENERATOR.SIZES", len(LEVELS) + 1),
        anchor_ratios=ratios[0],
        anchor_offset=offset,
        anchors_rounded=False,
        rpn_convs=len(convs),
        rpn_channels=_rpn_widths(convs, fpn),
        rpn_weights=settings.numbers("MODEL.RPN.BBOX_REG_WEIGHTS", 4),
        roi_aligned=aligned,
        roi_level_eps=1e-8,
        size_divisor=32,
        norm_eps=1e-5,
    )
    return replace(architecture, **_backbone(settings), **_heads(settings, masks=masks))


def _is_width(value: Any) -> bool:
    return type(value) is int and (value == -1 or 0 < value <= 100_000)


def _rpn_widths(convs: Sequence[int], fpn: int) -> tuple[int, ...]:
    """Return the width of each convolution, where -1 is that of its input; none if all agree."""
    widths = list(accumulate(convs, lambda before, c: before if c == -1 else c, initial=fpn))[1:]
    return tuple(widths) if set(widths) != {fpn} else ()


def _choice(settings: Settings, key: str, known: Mapping[str, Any]) -> Any:
    value = settings[key]
    if not isinstance(value, str) or value not in known:
        raise settings.wrong(key, f"one of {', '.join(repr(k) for k in known)}")
    return known[value]


def _backbone(settings: Settings) -> dict[str, Any]:
    """Return the arguments that describe the residual network."""
    section = "MODEL.RESNETS."
    depth = settings.count(section + "DEPTH")
    if depth not in (18, 34, 50, 101, 152):
        raise settings.wrong(section + "DEPTH", "18, 34, 50, 101 or 152")
    basic = depth in (18, 34)
    groups = settings.count(section + "NUM_GROUPS")
    width = settings.count(section + "WIDTH_PER_GROUP")
    res2 = settings.count(section + "RES2_OUT_CHANNELS")
    if basic and (groups, res2) != (1, 64):
        raise settings.wrong(section + "RES2_OUT_CHANNELS", "64, and NUM_GROUPS 1, for R18 and R34")
    if not basic and res2 % 4:
        raise settings.wrong(section + "RES2_OUT_CHANNELS", "a multiple of 4")
    stem = settings.count(section + "STEM_OUT_CHANNELS")
    usual = (stem, res2) == (64, 64 if basic else 256)
    return {
        "backbone": f"resnet{depth}",
        "backbone_norm": _choice(settings, section + "NORM", _BACKBONE_NORMS),
        # R18 and R34 have no bottlenecks that the stride could move in
        "stride_in_1x1": settings.flag(section + "STRIDE_IN_1X1") and not basic,
        "stem_channels": 0 if usual else stem,
        "res2_channels": 0 if usual else res2,
        "groups": 0 if basic or (groups, width) == (1, 64) else groups,
        "width_per_group": 0 if basic or (usual and (groups, width) == (1, 64)) else width,
    }


def _heads(settings: Settings, *, masks: bool) -> dict[str, Any]:
    """Return the arguments that describe the box and the mask head."""
    box, mask = "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD."
    values: dict[str, Any] = {
        "box_convs": settings.count(box + "NUM_CONV", low=0),
        "box_fcs": settings.count(box + "NUM_FC"),
        "box_features": settings.count(box + "FC_DIM"),
        "box_cells": settings.count(box + "POOLER_RESOLUTION", high=64),
        "box_norm": _choice(settings, box + "NORM", _NORMS),
        "box_channels": settings.count(box + "CONV_DIM"),
        "box_sampling_ratio": settings.count(box + "POOLER_SAMPLING_RATIO", low=0, high=64),
        "box_weights": settings.numbers(box + "BBOX_REG_WEIGHTS", 4),
    }
    if values["box_convs"] == 0:
        values |= {"box_channels": 0, "box_norm": "none"}
    if masks:
        values |= {
            "mask_convs": settings.count(mask + "NUM_CONV", low=0),
            "mask_channels": settings.count(mask + "CONV_DIM"),
            "mask_norm": _choice(settings, mask + "NORM", _NORMS),
            "mask_sampling_ratio": settings.count(mask + "POOLER_SAMPLING_RATIO", low=0, high=64),
        }
    return values


def card_of(settings: Settings, name: str) -> ModelCard:
    """Return the card of a configuration: network, pixels, caps and thresholds as it says.

    Classes have placeholder names or, where there are 80, those of COCO.

    Raises
    ------
    ModelError
        If a value cannot be used; the message names the key.
    """
    order = settings["INPUT.FORMAT"]
    if order not in ("BGR", "RGB"):
        raise settings.wrong("INPUT.FORMAT", "BGR or RGB")
    # the card is in the order of the tiles: red, green, blue
    turn = -1 if order == "BGR" else 1
    mean = settings.numbers("MODEL.PIXEL_MEAN", 3)[::turn]
    std = settings.numbers("MODEL.PIXEL_STD", 3)[::turn]
    if min(std) <= 0:
        raise settings.wrong("MODEL.PIXEL_STD", "three numbers above 0")
    smallest = settings.number("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0, 1e6)
    if smallest > 0:
        # Detectron2 wants more than this, the card's limit is the least that stays
        smallest = float(np.nextafter(np.float32(smallest), np.float32(np.inf)))
    cap = settings.count("TEST.DETECTIONS_PER_IMAGE", low=-1)
    if cap == 0:
        raise settings.wrong("TEST.DETECTIONS_PER_IMAGE", "at least 1, or -1 for all")
    count = settings.count("MODEL.ROI_HEADS.NUM_CLASSES")
    return ModelCard(
        name=name,
        classes=coco_classes() if count == 80 else tuple(f"class_{i}" for i in range(count)),
        gsd_m=None,
        architecture=architecture_of(settings).to_dict(),
        mean=tuple(m / 255 for m in mean),
        std=tuple(s / 255 for s in std),
        min_score=settings.number("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0, 1),
        strict_score=True,
        nms_iou=settings.number("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0, 1),
        max_detections=NO_CAP if cap < 0 else cap,
        min_side_px=0.0,
        proposals=settings.count("MODEL.RPN.POST_NMS_TOPK_TEST"),
        rpn_pre_nms=settings.count("MODEL.RPN.PRE_NMS_TOPK_TEST"),
        rpn_nms_iou=settings.number("MODEL.RPN.NMS_THRESH", 0, 1),
        rpn_min_size=smallest,
        rpn_by_logit=True,
        resize_hint={
            "shortest_side_px": settings.count("INPUT.MIN_SIZE_TEST", low=0),
            "longest_side_px": settings.count("INPUT.MAX_SIZE_TEST", low=0),
        },
    )


def coco_classes() -> tuple[str, ...]:
    """Return the names of COCO's 80 classes of things, in the order of their ids."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


# --- names and weights -----------------------------------------------------------------------

_NAMES: tuple[tuple[str, str], ...] = (
    (r"backbone\.body\.conv1\.", r"backbone.bottom_up.stem.conv1."),
    (r"backbone\.body\.bn1\.", r"backbone.bottom_up.stem.conv1.norm."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.", r"<stage\1>.\2.shortcut."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.", r"<stage\1>.\2.shortcut.norm."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.", r"<stage\1>.\2.conv\3."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.", r"<stage\1>.\2.conv\3.norm."),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"backbone.fpn_lateral<level\1>."),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"backbone.fpn_lateral<level\1>.norm."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"backbone.fpn_output<level\1>."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"backbone.fpn_output<level\1>.norm."),
    (r"rpn\.head\.cls_logits\.", r"proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", r"proposal_generator.rpn_head.anchor_deltas."),
    (r"rpn\.head\.conv\.(\d+)\.0\.", r"proposal_generator.rpn_head.conv<rpn\1>."),
    (r"roi_heads\.box_head\.fc6\.", r"roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", r"roi_heads.box_head.fc2."),
    (r"roi_heads\.box_head\.(\d+)\.0\.", r"roi_heads.box_head.conv<next\1>."),
    (r"roi_heads\.box_head\.(\d+)\.1\.", r"roi_heads.box_head.conv<next\1>.norm."),
    (r"roi_heads\.box_head\.(\d+)\.", r"roi_heads.box_head.fc<fc\1>."),
    (r"roi_heads\.box_predictor\.", r"roi_heads.box_predictor."),
    (r"roi_heads\.mask_head\.(\d+)\.0\.", r"roi_heads.mask_head.mask_fcn<next\1>."),
    (r"roi_heads\.mask_head\.(\d+)\.1\.", r"roi_heads.mask_head.mask_fcn<next\1>.norm."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", r"roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", r"roi_heads.mask_head.predictor."),
)
"""Beginnings of torchvision's names and of Detectron2's; numbers in <> are counted otherwise."""


def detectron2_name(name: str, architecture: Architecture) -> str:
    """Return Detectron2's name of a weight of the network built here.

    Examples
    --------
    >>> from geoseg.models.maskrcnn import Architecture
    >>> detectron2_name("backbone.body.layer1.0.bn2.bias", Architecture())
    'backbone.bottom_up.res2.0.conv2.norm.bias'
    """

    def count(match: re.Match[str]) -> str:
        kind, number = match[1], int(match[2])
        if kind == "stage":
            return f"backbone.bottom_up.res{number + 1}"
        if kind == "level":
            return str(number + 2)
        if kind == "rpn":
            return f".conv{number}" if architecture.rpn_convs > 1 else ""
        if kind == "fc":
            # behind the convolutions and a flattening, each followed by its activation
            return str((number - architecture.box_convs - 1) // 2 + 1)
        return str(number + 1)

    for ours, theirs in _NAMES:
        found, changed = re.subn("^" + ours, theirs, name)
        if changed:
            return re.sub(r"<([a-z]+)(\d+)>", count, found)
    raise AssertionError(name)  # the table covers every part that the builder makes


@dataclass(frozen=True, slots=True)
class _Conversion:
    """What must be known besides the names."""

    settings: Settings
    architecture: Architecture
    n_classes: int
    bgr: bool
    agnostic_boxes: bool
    agnostic_masks: bool
    averaged: bool

    @classmethod
    def of(cls, settings: Settings, card: ModelCard) -> _Conversion:
        fuse = settings["MODEL.FPN.FUSE_TYPE"]
        if fuse not in ("sum", "avg"):
            raise settings.wrong("MODEL.FPN.FUSE_TYPE", "'sum' or 'avg'")
        return cls(
            settings=settings,
            architecture=Architecture.from_dict(card.architecture),
            n_classes=len(card.classes),
            bgr=settings["INPUT.FORMAT"] == "BGR",
            agnostic_boxes=settings.flag("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
            agnostic_masks=settings.flag("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"),
            averaged=fuse == "avg",
        )

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that Detectron2 stores a weight of ours in."""
        if ".box_predictor.bbox_pred." in name:
            return (4 if self.agnostic_boxes else 4 * self.n_classes, *shape[1:])
        if ".mask_fcn_logits." in name:
            return (1 if self.agnostic_masks else self.n_classes, *shape[1:])
        return shape

    def convert(self, name: str, value: Tensor) -> Tensor:
        """Return a stored weight as the network here has it."""
        value = value.float()
        if name == STEM and self.bgr:
            return value.flip(1)
        if ".box_predictor.cls_score." in name:
            return torch.cat([value[-1:], value[:-1]])  # background first
        if ".box_predictor.bbox_pred." in name:
            return self._with_background(value, 4, repeat=self.agnostic_boxes)
        if ".mask_fcn_logits." in name:
            return self._with_background(value, 1, repeat=self.agnostic_masks)
        return self._summed(name, value) if self.averaged else value

    def _with_background(self, value: Tensor, rows: int, *, repeat: bool) -> Tensor:
        """Put the background's rows, which nothing reads, before those of the classes."""
        if repeat:
            value = value.repeat(self.n_classes, *[1] * (value.ndim - 1))
        return torch.cat([value.new_zeros((rows, *value.shape[1:])), value])

    def _summed(self, name: str, value: Tensor) -> Tensor:
        """Turn a pyramid that averages into one that adds, exactly: the factors are powers of 2.

        The mean (l + up(m)) / 2 of a level is its sum 2^k l' + up(m') over 2^k', where k' counts
        the levels above it.
        """
        found = re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(\d)\.(weight|bias)", name)
        if found is None:
            return value
        above = len(LEVELS) - 1 - int(found[2])
        if found[1] == "layer":
            # the sum is larger than the mean; the norm behind, or the bias, is as it was
            return value / 2**above if (found[3], found[4]) == ("0", "weight") else value
        last = "0" if self.architecture.fpn_norm == "none" else "1"
        return value * 2 ** max(above - 1, 0) if found[3] == last else value


def convert_weights(
    checkpoint: Checkpoint, settings: Settings, card: ModelCard, path: Path
) -> dict[str, Tensor]:
    """Return a checkpoint's weights, float32, by the names of the network built here.

    Parameters
    ----------
    checkpoint : Checkpoint
        By Detectron2's names.
    settings : Settings
        The model's configuration.
    card : ModelCard
        Made from it.
    path : Path
        Where the weights come from, for the message.

    Raises
    ------
    ModelError
        If names are missing or unknown, or shapes differ; the message lists them.
    """
    conversion = _Conversion.of(settings, card)
    architecture = conversion.architecture
    with torch.device("meta"):  # names and shapes alone
        network = build_maskrcnn(architecture, card.n_outputs)
    wanted = _wanted(network, architecture)
    stored = _without_buffers(checkpoint.weights, settings, architecture, path)
    stored = _renamed(stored, set(wanted), path)
    if architecture.backbone_norm == "frozen":
        _complete_norms(stored, wanted)
    _check_fit(stored, {k: conversion.stored_shape(n, s) for k, (n, s) in wanted.items()}, path)
    return {name: conversion.convert(name, stored[theirs]) for theirs, (name, _) in wanted.items()}


def _wanted(
    model: FasterRCNN, architecture: Architecture
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return Detectron2's name of each weight, with ours and its shape."""
    return {
        detectron2_name(name, architecture): (name, tuple(value.shape))
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _without_buffers(
    weights: Mapping[str, Tensor], settings: Settings, architecture: Architecture, path: Path
) -> dict[str, Tensor]:
    """Return the weights without what older checkpoints repeat of their configuration.

    It must agree: otherwise it is not the configuration that they were trained with.
    """
    said: dict[str, Tensor] = {
        "pixel_mean": torch.tensor(settings.numbers("MODEL.PIXEL_MEAN", 3)),
        "pixel_std": torch.tensor(settings.numbers("MODEL.PIXEL_STD", 3)),
    }
    for i, sizes in enumerate(architecture.anchors):
        name = f"proposal_generator.anchor_generator.cell_anchors.{i}"
        said[name] = exact_anchors(sizes, architecture.anchor_ratios)
    kept: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name not in said:
            if not name.endswith("num_batches_tracked"):
                kept[name] = value
            continue
        expected = said[name].flatten()
        if value.numel() != expected.numel() or not torch.allclose(
            value.float().flatten(), expected, rtol=1e-4, atol=1e-3
        ):
            raise ModelError(
                f"{path} has {name} {value.flatten()[:4].tolist()}, but {settings.where} says "
                f"{expected[:4].tolist()}; it is not the configuration of this training"
            )
    return kept


def _renamed(stored: dict[str, Tensor], wanted: set[str], path: Path) -> dict[str, Tensor]:
    """Complete names that lack their first parts, as Detectron2 does: the longest match counts."""
    missing = wanted - set(stored)
    spare = set(stored) - wanted
    completed: dict[str, str] = {}
    for name in sorted(missing):
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(1, len(parts)))
        end = next((e for e in ends if e in spare), None)
        if end is None:
            continue
        if end in completed:
            raise ModelError(
                f"{path}: {end} may be {completed[end]} or {name}; expected names in full"
            )
        completed[end] = name
    return {completed.get(name, name): value for name, value in stored.items()}


def _complete_norms(
    stored: dict[str, Tensor], wanted: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Add the statistics that Caffe2's frozen norms have merged into scale and shift."""
    for name in wanted:
        base, _, last = name.rpartition(".")
        scale = stored.get(f"{base}.weight")
        if name in stored or scale is None or not base.endswith(".norm"):
            continue
        if last == "running_mean":
            stored[name] = torch.zeros_like(scale)
        elif last == "running_var":
            stored[name] = torch.ones_like(scale)


def _check_fit(
    stored: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise unless every weight is there, none is left over and all have their shapes."""
    problems: list[str] = []
    if missing := sorted(set(shapes) - set(stored)):
        problems.append(f"{len(missing)} weights missing: {listed(missing)}")
    if unknown := sorted(set(stored) - set(shapes)):
        problems.append(f"{len(unknown)} unknown: {listed(unknown)}")
    if wrong := [
        f"{name} {tuple(stored[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in stored and tuple(stored[name].shape) != shape
    ]:
        problems.append(f"{len(wrong)} of other shape: {listed(wrong)}")
    if not problems:
        return
    if any(re.fullmatch(r".*_[wbs]|.*_bn_.*", name) for name in list(stored)[:50]):
        problems.append("the names are Caffe2's: a model of the first Detectron is not supported")
    raise ModelError(
        f"{path} does not fit its configuration: {'; '.join(problems)}. Expected a Detectron2 "
        "Mask R-CNN or Faster R-CNN with FPN, and the config.yaml of the same training"
    )


# --- whole models ----------------------------------------------------------------------------


def read_detectron2(path: Path, config: str | Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read a checkpoint and its configuration.

    Parameters
    ----------
    path : Path
        ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` with Detectron2's names.
    config : str or Path
        Its ``config.yaml``, or the name of a standard file; see
        `geoseg.models.detectron2_config.read_config`.

    Returns
    -------
    card : ModelCard
        With the yaml's caps and thresholds; without GSD.
    weights : dict of str to Tensor
        float32, by the names of the network built here.

    Raises
    ------
    ModelError
        If either cannot be used, or they do not belong together.
    """
    settings = read_config(config)
    card = card_of(settings, path.stem)
    checkpoint = read_checkpoint(path)
    weights = convert_weights(checkpoint, settings, card, path)
    zoo = "model zoo" in checkpoint.author.lower()
    source = {"file": path.name, "sha256": file_sha256(path), "config": Path(config).name}
    card = replace(
        card,
        licence=ZOO_LICENCE if zoo else "",
        credits=ZOO_CREDITS if zoo else (),
        description=f"Converted from the Detectron2 checkpoint {path.name}.",
        training={"converted_from": source},
    )
    return card, weights


def load_detectron2(
    path: Path,
    config: str | Path,
    *,
    device: str = "auto",
    min_score: float | None = None,
    **options: Any,
) -> MaskRCNNDetector:
    """Load a Detectron2 checkpoint as a detector, without writing anything.

    Parameters
    ----------
    path, config
        See `read_detectron2`.
    device, min_score, **options
        See `geoseg.models.inference.make_detector`.

    Raises
    ------
    ModelError
        As `read_detectron2`, or if the device does not exist or an option cannot be used.
    """
    from geoseg.models.inference import make_detector

    card, weights = read_detectron2(path, config)
    detector = make_detector(card, weights, path, device=device, min_score=min_score, **options)
    # the configuration decides what is found as much as the weights do, whose hash the card holds
    detector.fingerprint = hashlib.sha256(detector.card.to_json().encode()).hexdigest()
    return detector
