"""Detectron2's configuration files: read safely, completed by what Detectron2 takes for granted.

The defaults are facts restated from Detectron2's ``detectron2/config/defaults.py`` and its
``configs/`` folder (v0.6), reduced to what decides how a model computes and what it returns.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg.errors import ModelError

MAX_BYTES = 1_000_000
"""Detectron2's own files have 10 kB."""
MAX_VALUES = 20_000
"""Values of a file with its aliases followed; Detectron2's full dump has some 300."""
MAX_BASES = 8
"""Files that may build upon one another."""
BASE_KEY = "_BASE_"

_FPN = ["p2", "p3", "p4", "p5"]
_RES = ["res2", "res3", "res4", "res5"]
DEFAULTS: Mapping[str, Any] = {
    "VERSION": 2,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.PIXEL_MEAN": [103.530, 116.280, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.FPN.IN_FEATURES": [],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.CONV_DIMS": [-1],
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
"""What Detectron2 assumes where a file says nothing, by dotted key."""

_TRAINING = (
    "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.FREEZE_AT", "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.RPN.BOUNDARY_THRESH", "MODEL.RPN.IOU_THRESHOLDS", "MODEL.RPN.IOU_LABELS",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.POSITIVE_FRACTION", "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "MODEL.RPN.SMOOTH_L1_BETA",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS", "MODEL.ROI_HEADS.IOU_LABELS",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES",
    "MODEL.RESNETS.OUT_FEATURES", "MODEL.RESNETS.DEFORM_MODULATED",
    "MODEL.RESNETS.DEFORM_NUM_GROUPS",
)  # fmt: skip
"""Keys of Detectron2 that change training alone, or what other keys already say."""
_OTHER_MODELS = (
    "MODEL.ROI_BOX_CASCADE_HEAD.", "MODEL.ROI_KEYPOINT_HEAD.", "MODEL.SEM_SEG_HEAD.",
    "MODEL.PANOPTIC_FPN.", "MODEL.RETINANET.",
)  # fmt: skip
"""Sections of parts that a Mask R-CNN does not have; a full dump lists them all the same."""

_BASE_FPN: Mapping[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": _RES,
    "MODEL.FPN.IN_FEATURES": _RES,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": [*_FPN, "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": _FPN,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}


def _zoo() -> dict[str, Mapping[str, Any]]:
    """Return Detectron2's standard files by name; 1x and 3x differ in the schedule alone."""
    files: dict[str, Mapping[str, Any]] = {
        "Base-RCNN-FPN.yaml": _BASE_FPN,
        # enough to be told apart: both are refused
        "Base-RCNN-C4.yaml": {"MODEL.ROI_HEADS.NAME": "Res5ROIHeads"},
        "Base-RCNN-DilatedC5.yaml": {
            "MODEL.RESNETS.RES5_DILATION": 2,
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        },
    }
    bodies: dict[str, Mapping[str, Any]] = {
        "R_50": {"MODEL.RESNETS.DEPTH": 50},
        "R_101": {"MODEL.RESNETS.DEPTH": 101},
        "X_101_32x8d": {
            "MODEL.RESNETS.DEPTH": 101,
            "MODEL.RESNETS.NUM_GROUPS": 32,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
        },
    }
    for body, values in bodies.items():
        for schedule in ("1x", "3x"):
            for task, mask in (("mask_rcnn", True), ("faster_rcnn", False)):
                files[f"{task}_{body}_FPN_{schedule}.yaml"] = {
                    **_BASE_FPN,
                    **values,
                    "MODEL.MASK_ON": mask,
                }
    return files


STANDARD_FILES: Mapping[str, Mapping[str, Any]] = _zoo()
"""Files that a configuration may name although they are not there."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration by dotted keys, with typed access that names the key in errors."""

    where: str
    """The file, for messages."""
    given: Mapping[str, Any]
    """What the file and its bases say."""

    def __getitem__(self, key: str) -> Any:
        return self.given.get(key, DEFAULTS[key])

    def wrong(self, key: str, expected: str) -> ModelError:
        """Return the error for a value that cannot be used."""
        return ModelError(f"{self.where}: {key} is {self[key]!r}; expected {expected}")

    def flag(self, key: str) -> bool:
        """Return a yes or no."""
        if not isinstance(self[key], bool):
            raise self.wrong(key, "True or False")
        return bool(self[key])

    def count(self, key: str, low: int = 1, high: int = 100_000) -> int:
        """Return a whole number in [low, high]."""
        value = self[key]
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Return a number in [low, high]."""
        value = self[key]
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low} to {high}")
        return float(value)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """Return so many finite numbers."""
        value = self[key]
        if not _is_numbers(value) or len(value) != length:
            raise self.wrong(key, f"{length} numbers")
        return tuple(float(v) for v in value)

    def per_level(self, key: str, levels: int) -> tuple[tuple[float, ...], ...]:
        """Return positive numbers for each feature map; one list serves all of them."""
        value = self[key]
        if _is_numbers(value):
            value = [value]
        if not isinstance(value, list | tuple) or not value or not all(map(_is_numbers, value)):
            raise self.wrong(key, f"a list of numbers for each of the {levels} feature maps")
        rows = tuple(tuple(float(v) for v in row) for row in value)
        rows = rows * levels if len(rows) == 1 else rows
        if len(rows) != levels or len({len(row) for row in rows}) > 1 or min(map(min, rows)) <= 0:
            raise self.wrong(key, f"equally many positive numbers for each of {levels} levels")
        return rows


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(type(v) in (int, float) and abs(v) < 1e9 for v in value)
    )


def read_config(path: str | Path) -> Settings:
    """Read a ``config.yaml`` of Detectron2 with the files that it builds upon.

    Parameters
    ----------
    path : str or Path
        A file, or the name of one of Detectron2's standard files (`STANDARD_FILES`), such as
        ``COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml``, which then need not exist.

    Returns
    -------
    Settings
        Every key under ``MODEL`` is known; keys of other sections that do not matter are kept.

    Raises
    ------
    ModelError
        If the file is missing, is no YAML of plain values, is of VERSION 1, or has keys under
        ``MODEL`` that Detectron2 does not have: they may change what the model computes.
    """
    try:
        values = _read_with_bases(Path(path), ())
    except FileNotFoundError as error:
        raise ModelError(
            f"configuration {path} does not exist; give the config.yaml that the training wrote, "
            "or the name of a standard file of Detectron2"
        ) from error
    settings = Settings(str(path), values)
    old = [key for key in ("MODEL.WEIGHT", "TEST.AUG_ON") if key in values]
    if old or settings["VERSION"] != 2:
        raise ModelError(
            f"{path} is a configuration of VERSION {settings['VERSION'] if not old else 1}; "
            "expected 2, which Detectron2 has written since its release"
        )
    unknown = sorted(
        key
        for key in values
        if key.startswith("MODEL.")
        and key not in DEFAULTS
        and key not in _TRAINING
        and not key.startswith(_OTHER_MODELS)
    )
    if unknown:
        raise ModelError(
            f"{path} has keys that Detectron2's own models do not have: {', '.join(unknown)}; "
            "the model is of another program, or a key is misspelt"
        )
    return settings


def _read_with_bases(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """Return the flat values of a file, over those of its bases."""
    if not path.is_file() and path.name in STANDARD_FILES:
        return dict(STANDARD_FILES[path.name])
    if path.resolve() in before or len(before) >= MAX_BASES:
        raise ModelError(f"{path}: {BASE_KEY} leads in a circle; a file must not build on itself")
    tree = _read_yaml(path)
    bases = tree.pop(BASE_KEY, [])
    values: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ModelError(f"{path}: {BASE_KEY} is {base!r}; expected the name of a file")
        below = path.parent / Path(base).expanduser()
        try:
            values |= _read_with_bases(below, (*before, path.resolve()))
        except FileNotFoundError as error:
            raise ModelError(
                f"{path}: {BASE_KEY} is {base}, and {below} does not exist; put the file there "
                f"(known without a file: Base-RCNN-FPN.yaml and the COCO models with FPN)"
            ) from error
    values |= _flat(tree, path)
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the table in a YAML file of plain values."""
    import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes; {MAX_BYTES:,} is the limit")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError, ValueError) as error:
        # a tag such as !!python/object/apply ends here, and nothing has been called
        raise ModelError(f"{path} is not YAML of plain values: {error}") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path} is no configuration; expected a table of sections")
    return tree


def _flat(tree: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Return the leaves of nested tables by dotted key."""
    values: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", tree)]
    seen = 0
    while stack:
        prefix, node = stack.pop()
        for key, value in node.items():
            name = f"{prefix}{key}"
            seen += 1 if isinstance(value, dict) else _size(value)
            if seen > MAX_VALUES:
                raise ModelError(
                    f"{path} has more than {MAX_VALUES:,} values; no configuration has"
                )
            if isinstance(value, dict):
                stack.append((f"{name}.", value))
            else:
                values[name] = _plain(value)
    return values


def _size(value: Any) -> int:
    """Return how many values a list holds, counted to `MAX_VALUES`: aliases can repeat lists."""
    stack, seen = [value], 0
    while stack and seen <= MAX_VALUES:
        node = stack.pop()
        seen += 1
        if isinstance(node, list | tuple | set):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend(node.values())
    return seen


def _plain(value: Any) -> Any:
    """Return a value as Detectron2 understands it: text that is a Python literal is that value."""
    if not isinstance(value, str) or len(value) > 1_000:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value  # a plain word
