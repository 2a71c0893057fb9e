"""Model cards: what a model is, beside its weights, so that a user sets nothing by hand.

A model is ``NAME.safetensors`` and ``NAME.json``. Neither can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.config import VIEWS, is_number, wrong_type
from geoseg.errors import ModelError
from geoseg.models.detector import check_classes

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD_VERSION = 1
_BANDS = ("red", "green", "blue")


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON or TOML table with its lists as tuples, as frozen records hold them."""
    return {k: _as_tuple(v) for k, v in values.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything a run must know about a model besides its weights."""

    name: str
    """Registry name."""
    classes: tuple[str, ...]
    """Class names; a detection's label is an index into it."""
    gsd_m: float | None
    """Ground metres per pixel that the network was trained at; None for a model of everyday
    photographs, which takes imagery at its own."""
    architecture: Mapping[str, Any]
    """Arguments of the network's builder."""
    bands: tuple[str, ...] = _BANDS
    """What the input channels are, in order."""
    dtype: str = "uint8"
    """Pixel type of the training imagery."""
    value_range: tuple[float, float] = (0.0, 255.0)
    """Pixel values that map to 0 and 1 before ``mean`` and ``std``."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted per channel after scaling to [0, 1]."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Divided by per channel after subtracting the mean."""
    tile_size: int = 768
    """Recommended tile side, px."""
    overlap: int = 192
    """Recommended overlap of neighbouring tiles, px: the largest common object fits into it."""
    min_score: float = 0.5
    """Recommended score threshold, tuned on validation areas."""
    nms_iou: float = 0.5
    """Box IoU above which the lower-scored of two detections in one tile is dropped."""
    max_detections: int = 400
    """Cap of detections a tile; a tile that reaches it counts as saturated."""
    proposals: int = 600
    """Boxes that the region proposal network hands to the heads, a tile."""
    licence: str = ""
    """Licence of the weights."""
    credits: tuple[str, ...] = ()
    """Whom a user of the model must name."""
    description: str = ""
    """One paragraph for people."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """Measured quality and the command that measured it."""
    card_version: int = CARD_VERSION
    """Version of this record."""
    rpn_pre_nms: int = 1000
    """Boxes of each pyramid level that the region proposal network ranks, a tile."""
    rpn_nms_iou: float = 0.7
    """Box IoU above which the lower-ranked of two proposals of one level is dropped."""
    rpn_min_size: float = 1e-3
    """Proposals with a side below this are dropped, px; at 0, those without width or height."""
    rpn_by_logit: bool = False
    """Rank proposals by logit (Detectron2) instead of by probability, in which the surest tie."""
    strict_score: bool = False
    """A score must exceed the threshold; otherwise reaching it is enough."""
    min_side_px: float = 1.0
    """Detections with a shorter side are dropped, px."""
    resize_hint: Mapping[str, Any] = field(default_factory=dict)
    """How its authors resized images before the network; a hint only, no tile is resized."""
    class_outputs: tuple[int, ...] = ()
    """The network's output of each class, where background is 0; empty: 1, 2, 3 and so on."""
    object_size_m: float | None = None
    """Size of the smallest objects that it learnt in number, m: what --small-objects takes."""
    class_scores: Mapping[str, float] = field(default_factory=dict)
    """Recommended score threshold of each class; `min_score` for those that are not named."""
    min_area_m2: float = 0.0
    """Recommended smallest object, m2."""
    views: int = 1
    """Sides to look at each tile from (1, 2, 4 or 8): thresholds and calibration are for them."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """How often the model is right and misses at these thresholds, as
    `geoseg.objects.expected.Calibration` takes it, or one such table for each class; empty: not
    measured."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ModelError(f"model card {self.name} has no classes")
        check_classes(self.classes, f"model card {self.name}")
        if self.gsd_m is not None and not self.gsd_m > 0:
            raise ModelError(f"model card {self.name}: gsd_m is {self.gsd_m}; expected above 0")
        if not 0 <= self.min_score <= 1:
            raise ModelError(f"model card {self.name}: min_score must lie in [0, 1]")
        if self.object_size_m is not None and not self.object_size_m > 0:
            raise ModelError(
                f"model card {self.name}: object_size_m is {self.object_size_m}; expected above 0"
            )
        for name in ("max_detections", "proposals", "rpn_pre_nms"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"model card {self.name}: {name} is {getattr(self, name)}; expected at least 1"
                )
        for name in ("nms_iou", "rpn_nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"model card {self.name}: {name} must lie in [0, 1]")
        outputs = self.class_outputs
        if outputs and (len(set(outputs)) != len(self.classes) or min(outputs) < 1):
            raise ModelError(
                f"model card {self.name}: class_outputs must name one output from 1 on for each "
                f"of the {len(self.classes)} classes"
            )
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        """Refuse thresholds of classes that there are not, and those out of range."""
        if self.views not in VIEWS:
            raise ModelError(
                f"model card {self.name}: views is {self.views!r}; expected 1, 2, 4, 8"
            )
        for name, score in self.class_scores.items():
            if name not in self.classes:
                raise ModelError(
                    f"model card {self.name}: class_scores names '{name}'; expected some of "
                    f"{', '.join(self.classes[:12])}"
                )
            if not 0 <= score <= 1:
                raise ModelError(f"model card {self.name}: class_scores must lie in [0, 1]")
        if not 0 <= self.min_area_m2 <= _LARGEST_AREA_M2:
            raise ModelError(
                f"model card {self.name}: min_area_m2 is {self.min_area_m2}; expected 0 to "
                f"{_LARGEST_AREA_M2:g}"
            )

    @property
    def n_outputs(self) -> int:
        """Outputs of the network besides the background's."""
        return max(self.class_outputs, default=len(self.classes))

    @property
    def mask_size(self) -> int:
        """Cells a side of the masks; 2 where an object is its box (Faster R-CNN)."""
        return int(self.architecture.get("mask_size", 28)) if self.has_masks else 2

    @property
    def has_masks(self) -> bool:
        """Whether it gives masks; otherwise an object is its box."""
        return bool(self.architecture.get("masks", True))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> ModelCard:
        """Rebuild from JSON values; `where` names the file in errors."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ModelError(f"{where} has unknown keys {unknown}; it needs a newer geoseg")
        missing = sorted({"name", "classes", "gsd_m", "architecture"} - set(values))
        if missing:
            raise ModelError(f"{where} lacks {missing}; a model card must have them")
        given = with_tuples(values)
        if wrong := wrong_type(cls, given):
            raise ModelError(f"{where}: {wrong}")
        _check_numbers(where, given)
        if odd := [k for k, v in given.get("class_scores", {}).items() if not is_number(v)]:
            raise ModelError(f"{where}: class_scores of '{odd[0]}' is no number; expected 0 to 1")
        return cls(**given)

    def to_json(self) -> str:
        """Return the card as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


_RANGES = {"tile_size": (32, 8192), "overlap": (0, 8191), "max_detections": (1, 100_000),
           "proposals": (1, 1_000_000), "rpn_pre_nms": (1, 1_000_000),
           "card_version": (1, CARD_VERSION)}  # fmt: skip
"""What a card of somebody else may ask for."""
_LARGEST = 4_096
"""Largest whole number in an architecture: a wider layer fills the memory by itself."""
_MAX_CARD_BYTES = 4_000_000
_LARGEST_AREA_M2 = 1e9


def _check_numbers(where: str, given: Mapping[str, Any]) -> None:
    """Refuse numbers that no network was made for."""
    for name, (low, high) in _RANGES.items():
        value = given.get(name)
        if value is not None and not low <= value <= high:
            raise ModelError(f"{where}: {name} is {value}; expected {low} to {high}")
    low, high = given.get("value_range", (0.0, 1.0))
    if not low < high:
        raise ModelError(f"{where}: value_range is {low} to {high}; expected a range")
    for name in ("mean", "std"):
        n = len(given.get("bands", _BANDS))
        if name in given and len(given[name]) != n:
            raise ModelError(f"{where}: {name} has {len(given[name])} numbers for {n} bands")
    if any(not value > 0 for value in given.get("std", ())):
        raise ModelError(f"{where}: std is {given['std']}; expected numbers above 0")
    _check_architecture(where, given["architecture"])


def _check_architecture(where: str, architecture: Mapping[str, Any]) -> None:
    """Refuse sizes that would fill the memory before weights are compared with them."""
    waiting: list[tuple[str, Any]] = list(architecture.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, tuple | list):
            waiting += [(key, v) for v in value]
        elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise ModelError(
                f"{where}: architecture has {key} = {str(value)[:40]}; at most {_LARGEST}"
            )


def save_model(path: Path, model: nn.Module, card: ModelCard, *, half: bool = False) -> Path:
    """Write weights and card; `half` stores float16, which halves the file.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``; the card goes beside it as ``.json``.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if half and value.dtype == torch.float32:
            value = value.half()  # noqa: PLW2901  # the stored form of the same tensor
        tensors[name] = value.contiguous()
    save_file(tensors, path)
    path.with_suffix(".json").write_text(card.to_json(), encoding="utf-8")
    return path


def read_card(path: Path) -> ModelCard:
    """Read the card beside a weights file.

    Raises
    ------
    ModelError
        If there is none, or it is no card.
    """
    card_path = path.with_suffix(".json")
    try:
        if card_path.stat().st_size > _MAX_CARD_BYTES:
            raise ModelError(f"{card_path} has more than {_MAX_CARD_BYTES:,} bytes; it is no card")
        values = json.loads(card_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} has no card; expected {card_path.name} beside it (geoseg train writes one)"
        ) from error
    except OSError as error:
        raise ModelError(f"{card_path} cannot be read ({error.strerror}); check it") from error
    except (ValueError, RecursionError) as error:
        # JSONDecodeError, UnicodeDecodeError, numbers of thousands of digits, brackets in brackets
        raise ModelError(f"{card_path} is not valid JSON: {str(error)[:300]}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{card_path} is not a model card; expected a JSON object")
    return ModelCard.from_dict(values, str(card_path))


def load_card_and_weights(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read a model's card and float32 weights.

    Raises
    ------
    ModelError
        If the file is missing, is no safetensors file, or holds values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"model file {path} does not exist")
    card = read_card(path)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
    return card, as_float32(weights, path)


def as_float32(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return weights as float32, all of them finite; `path` is for the message.

    Raises
    ------
    ModelError
        If some are not finite; the message names them.
    """
    import torch

    out = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    if bad := [k for k, v in out.items() if not bool(torch.isfinite(v).all())]:
        more = f" and {len(bad) - 12} more" if len(bad) > 12 else ""
        raise ModelError(f"{path}: {', '.join(bad[:12])}{more} holds values that are not finite")
    return out


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
