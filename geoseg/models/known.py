"""Models that are known by name: torchvision's, with COCO weights, and networks to train.

Importing this module loads no torch; cards and weights are made when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, as_float32, file_sha256, read_card

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINTS = (".pth", ".pt")
"""Suffixes of files that torch.save wrote."""
TIMM_PREFIX = "maskrcnn:"
"""Before the name of a timm backbone."""
HOLE = "N/A"
"""torchvision's name of outputs that no class of COCO 2017 belongs to."""
COCO_OUTPUTS = 90
"""Outputs besides the background's, holes included."""

_RESNET: dict[str, Any] = {
    "family": "resnet_fpn",
    "backbone": "resnet50",
    "fpn_channels": 256,
    "anchor_sizes_px": (32, 64, 128, 256, 512),
    "box_convs": 0,
    "box_fcs": 2,
    "box_features": 1024,
    "mask_convs": 4,
    "fpn_norm": "none",
    "box_norm": "none",
    "mask_norm": "none",
    # torchvision's transform pads batches to it
    "size_divisor": 32,
}
_V2 = _RESNET | {
    "backbone_norm": "batch",
    "fpn_norm": "batch",
    "box_norm": "batch",
    "mask_norm": "batch",
    "rpn_convs": 2,
    "box_convs": 4,
    "box_fcs": 1,
}
_BOXES = {"masks": False}

TORCHVISION_TERMS = (
    "weights by torchvision (code BSD 3-Clause; torchvision leaves the terms of the weights to "
    "those of their data), trained on COCO 2017 (annotations CC BY 4.0)"
)
TORCHVISION_CREDITS = (
    "weights: torchvision maintainers and contributors",
    "COCO 2017: COCO Consortium, https://cocodataset.org",
)
UNSURE = "unknown: ask whoever trained it"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A network that is known by name."""

    name: str
    architecture: Mapping[str, Any] = field(repr=False)
    description: str
    weights: str = ""
    """Name of torchvision's enum of its weights; empty: there are none for detection."""
    size_mb: float = 0.0
    """Size of the weights file, MB."""
    exact_norm: bool = False
    """The official weights want a norm_eps of 0, as torchvision sets it for them."""


KNOWN: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            "maskrcnn_resnet50_fpn",
            _RESNET,
            "Mask R-CNN with ResNet-50 and FPN, torchvision's first version: 80 everyday classes.",
            "MaskRCNN_ResNet50_FPN_Weights",
            169.8,
            exact_norm=True,
        ),
        KnownModel(
            "maskrcnn_resnet50_fpn_v2",
            _V2,
            "Mask R-CNN with ResNet-50 and FPN, torchvision's improved version: 80 everyday "
            "classes.",
            "MaskRCNN_ResNet50_FPN_V2_Weights",
            177.2,
        ),
        KnownModel(
            "maskrcnn_resnet101_fpn",
            _RESNET | {"backbone": "resnet101"},
            "Mask R-CNN with ResNet-101 and FPN, to be trained from an ImageNet backbone.",
        ),
        KnownModel(
            "fasterrcnn_resnet50_fpn",
            _RESNET | _BOXES,
            "Faster R-CNN with ResNet-50 and FPN, torchvision's first version: 80 everyday "
            "classes. Boxes only: each object is its box.",
            "FasterRCNN_ResNet50_FPN_Weights",
            159.7,
            exact_norm=True,
        ),
        KnownModel(
            "fasterrcnn_resnet50_fpn_v2",
            _V2 | _BOXES,
            "Faster R-CNN with ResNet-50 and FPN, torchvision's improved version: 80 everyday "
            "classes. Boxes only: each object is its box.",
            "FasterRCNN_ResNet50_FPN_V2_Weights",
            167.1,
        ),
    )
}


def known_model(name: str) -> KnownModel | None:
    """Return a model known by name, ``maskrcnn:BACKBONE`` included; None for another name."""
    if name.startswith(TIMM_PREFIX):
        backbone = name.removeprefix(TIMM_PREFIX)
        return KnownModel(
            name,
            {"backbone": backbone},
            f"Mask R-CNN with timm's {backbone} and FPN, to be trained from an ImageNet backbone.",
        )
    return KNOWN.get(name)


def split_name(name_or_path: str | Path) -> tuple[KnownModel | None, Path | None]:
    """Split ``NAME``, ``NAME@FILE`` or a path into the known model and the file."""
    text = str(name_or_path)
    name, at, file = text.partition("@")
    model = known_model(name)
    if model is None:
        return None, Path(text)
    return model, Path(file) if at and file else None


# --- cards -----------------------------------------------------------------------------------


def known_card(model: KnownModel) -> ModelCard:
    """Return the card of a known model with its official weights; nothing is downloaded."""
    if not model.weights:
        return ModelCard(
            name=model.name,
            classes=("object",),
            gsd_m=None,
            architecture=model.architecture,
            description=f"{model.description} {_how_to_train(model)}",
            licence="none: there are no weights yet",
        )
    norm = {"norm_eps": 0.0} if model.exact_norm else {}
    return _torchvision_card(model, dict(model.architecture) | norm, coco_classes(model))


def coco_classes(model: KnownModel) -> dict[str, int]:
    """Return COCO's classes by torchvision's weights enum, name to output; holes left out."""
    names = _weights(model).meta["categories"]
    return {name: i for i, name in enumerate(names) if i > 0 and name != HOLE}


def _torchvision_card(
    model: KnownModel, architecture: Mapping[str, Any], classes: Mapping[str, int]
) -> ModelCard:
    """Return a card with torchvision's own limits, thresholds and normalization."""
    return ModelCard(
        name=model.name,
        classes=tuple(classes),
        class_outputs=tuple(classes.values()),
        gsd_m=None,
        architecture=architecture,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        tile_size=800,
        overlap=200,
        min_score=0.05,
        strict_score=True,
        nms_iou=0.5,
        max_detections=100,
        proposals=1000,
        min_side_px=0.01,
        resize_hint={"shorter_side": 800, "longer_side": 1333},
        licence=TORCHVISION_TERMS,
        credits=TORCHVISION_CREDITS,
        description=f"{model.description} Learnt from everyday photographs, not from above.",
        quality=_quality(model),
    )


def _quality(model: KnownModel) -> dict[str, Any]:
    return {"as torchvision reports": dict(_weights(model).meta["_metrics"])}


def _weights(model: KnownModel) -> Any:
    """Return the default member of torchvision's enum of weights."""
    from torchvision.models import detection

    return getattr(detection, model.weights).DEFAULT


# --- files -----------------------------------------------------------------------------------


def weights_file(model: KnownModel) -> Path:
    """Return the official weights in torch's cache, downloading them where they are not there.

    Raises
    ------
    ModelError
        If there are no weights for this network, or they cannot be downloaded; the message says
        what to do.
    """
    import torch

    url = known_url(model)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_official_hash(model))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"model {model.name}: cannot download {url} ({error}); fetch that file elsewhere and "
            f"put it at {path}, or name its place: {model.name}@/path/to/{path.name}"
        ) from error
    return path


def known_url(model: KnownModel) -> str:
    """Return where the official weights are; an error for a network without any."""
    if not model.weights:
        raise ModelError(
            f"model {model.name} has no weights for detection: it is a network to train. "
            f"{_how_to_train(model)}"
        )
    return str(_weights(model).url)


def _how_to_train(model: KnownModel) -> str:
    own = {k: v for k, v in model.architecture.items() if k in ("family", "backbone")}
    table = ", ".join(f'{key} = "{value}"' for key, value in own.items())
    return (
        "geoseg train makes weights: [train] start = 'imagenet' and [train.architecture] "
        f"{table}; docs/models.md has the whole table"
    )


def open_checkpoint(
    path: Path, model: KnownModel | None = None
) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read a ``.pth`` file with weights in torchvision's naming, old or new, and make its card.

    A card beside the file (``.json``) says what the classes are. Without one, 90 outputs are
    COCO's; others are called class_1, class_2 and so on.

    Parameters
    ----------
    path : Path
        Written by ``torch.save``; may hold the weights under 'model' or 'state_dict'.
    model : KnownModel, optional
        What it is said to be; otherwise the names and shapes of its weights tell.

    Raises
    ------
    ModelError
        If the file is missing, would need code to be run, or holds none of the known networks;
        the message lists weights that do not fit.
    """
    weights = as_float32(_read_tensors(path), path)
    if path.with_suffix(".json").is_file():
        return read_card(path), weights
    score = weights.get("roi_heads.box_predictor.cls_score.weight")
    if score is None or score.ndim != 2 or len(score) < 2:
        raise ModelError(
            f"{path} has no weights by torchvision's names (no roi_heads.box_predictor.cls_score); "
            "geoseg convert makes a model of checkpoints of other libraries"
        )
    outputs = len(score) - 1
    if model is None:
        model = _recognized(path, weights, outputs)
    architecture = dict(model.architecture)
    official = bool(model.weights) and file_sha256(path).startswith(_official_hash(model))
    if official and model.exact_norm:
        architecture["norm_eps"] = 0.0
    if outputs == COCO_OUTPUTS and model.weights:
        classes = coco_classes(model)
    else:
        classes = {f"class_{i}": i for i in range(1, outputs + 1)}
    card = _torchvision_card(model, architecture, classes)
    if not official:
        about = f"Weights of {path.name} in torchvision's {model.name}."
        card = replace(card, licence=UNSURE, credits=(), quality={}, description=about)
    return card, weights


def _official_hash(model: KnownModel) -> str:
    return known_url(model).rpartition("-")[2].partition(".")[0]


def _recognized(path: Path, weights: Mapping[str, Tensor], outputs: int) -> KnownModel:
    """Return the known network whose weights have these names and shapes."""
    import torch

    from geoseg.models.maskrcnn import Architecture, build_maskrcnn, expected_weights

    shapes = {name: value.shape for name, value in weights.items()}
    nearest: list[tuple[int, str]] = []
    for model in KNOWN.values():
        with torch.device("meta"):
            empty = build_maskrcnn(Architecture.from_dict(model.architecture), outputs)
        wanted = {name: value.shape for name, value in expected_weights(empty).items()}
        if wanted == shapes:
            return model
        nearest.append((len(wanted.items() ^ shapes.items()), model.name))
    raise ModelError(
        f"{path} is none of the known networks ({', '.join(KNOWN)}); the nearest is "
        f"{min(nearest)[1]}: {min(nearest)[1]}@{path} lists what does not fit. A card beside it "
        f"({path.stem}.json) may describe another architecture"
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict, by the names that torchvision uses today."""
    from geoseg.models.checkpoints import read_checkpoint

    return {
        _new_name(name): value
        for name, value in read_checkpoint(path).weights.items()
        if not name.endswith("num_batches_tracked")
    }


def _new_name(name: str) -> str:
    """Return today's name of a weight in torchvision, which renamed some in version 0.13."""
    name = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
    old = re.match(r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$", name)
    if old:
        return f"roi_heads.mask_head.{int(old[1]) - 1}.0.{old[2]}"
    return name
