"""Mask R-CNN networks built on torchvision's parts: one builder, one description.

References
----------
He et al., "Mask R-CNN", https://doi.org/10.1109/ICCV.2017.322; Lin et al., "Feature Pyramid
Networks for Object Detection", https://doi.org/10.1109/CVPR.2017.106; Wu and He, "Group
Normalization", https://doi.org/10.1007/s11263-019-01198-w.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from geoseg.errors import ModelError
from geoseg.models.card import with_tuples
from geoseg.models.roialign import PyramidRoIAlign

LEVELS = ("0", "1", "2", "3")
"""Feature map names, strides 4, 8, 16 and 32; a pooled fifth one is for the RPN alone."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is needed to rebuild a network before its weights are loaded."""

    backbone: str = "tf_efficientnet_lite0"
    """Name of a timm model that gives feature maps at strides 4 to 32."""
    fpn_channels: int = 128
    """Channels of every FPN level; a multiple of 32."""
    anchor_sizes_px: tuple[float, ...] = (16, 32, 64, 128, 256)
    """Side of the square anchor on each of the five levels, px."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    box_convs: int = 1
    """3 x 3 convolutions of the box head, before its fully connected layer."""
    box_features: int = 256
    """Width of the fully connected layer of the box head."""
    mask_convs: int = 3
    """3 x 3 convolutions of the mask head."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Rebuild from a card; unknown keys are errors."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ModelError(
                f"the card's architecture has unknown keys {sorted(unknown)}; "
                "it was written by another version of geoseg"
            )
        return cls(**with_tuples(values))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the card's JSON."""
        return asdict(self)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class PyramidBackbone(nn.Module):
    """A timm backbone with a feature pyramid on top; batch norm statistics stay frozen.

    Parameters
    ----------
    architecture : Architecture
        Names the backbone and the pyramid's width.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        import timm

        try:
            body: Any = timm.create_model(
                architecture.backbone,
                pretrained=False,
                features_only=True,
                out_indices=(1, 2, 3, 4),
            )
        except RuntimeError as error:
            raise ModelError(
                f"unknown timm backbone '{architecture.backbone}': {error}; "
                "python -c 'import timm; print(timm.list_models())' lists the known ones"
            ) from error
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            body.feature_info.channels(),
            architecture.fpn_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=_group_norm,
        )
        self.out_channels = architecture.fpn_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) normalized pixels to feature maps '0'..'3' and 'pool'."""
        # a CPU's bfloat16 depthwise convolutions are several times slower than its float32 ones
        mixed = x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=mixed):
            maps = self.body(x)
        levels: dict[str, Tensor] = self.fpn(OrderedDict(zip(LEVELS, maps, strict=True)))
        return levels

    def train(self, mode: bool = True) -> PyramidBackbone:
        """Switch modes, leaving the batch norm layers on their ImageNet statistics.

        Batches of four chips are too small to estimate them.
        """
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class BoxHead(nn.Module):
    """3 x 3 convolutions with group norm, then one fully connected layer."""

    def __init__(self, channels: int, convs: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                _group_norm(channels),
                nn.ReLU(inplace=True),
            ]
        self.convs = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * 7 * 7, features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, C, 7, 7) pooled features to (R, features)."""
        out: Tensor = torch.relu(self.fc(self.convs(x).flatten(1)))
        return out


def build_maskrcnn(architecture: Architecture, n_classes: int) -> MaskRCNN:
    """Build the network with random weights.

    Parameters
    ----------
    architecture : Architecture
        Sizes of its parts.
    n_classes : int
        Classes to tell apart, background not counted; at least 1.

    Returns
    -------
    torchvision.models.detection.MaskRCNN
        torchvision's container. Only its parts are used (``backbone``, ``rpn``, ``roi_heads``):
        its ``transform`` would resize the input and so change the GSD.

    Raises
    ------
    ModelError
        If timm does not know the backbone.
    """
    backbone = PyramidBackbone(architecture)
    channels = architecture.fpn_channels
    anchors = AnchorGenerator(
        sizes=tuple((s,) for s in architecture.anchor_sizes_px),
        aspect_ratios=(architecture.anchor_ratios,) * len(architecture.anchor_sizes_px),
    )
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0]),
        box_roi_pool=PyramidRoIAlign(LEVELS, output_size=7),
        box_head=BoxHead(channels, architecture.box_convs, architecture.box_features),
        box_predictor=FastRCNNPredictor(architecture.box_features, n_classes + 1),
        mask_roi_pool=PyramidRoIAlign(LEVELS, output_size=14),
        mask_head=MaskRCNNHeads(
            channels, [channels] * architecture.mask_convs, 1, norm_layer=_group_norm
        ),
        mask_predictor=MaskRCNNPredictor(channels, channels, n_classes + 1),
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put weights into a network that they must fit exactly.

    Parameters
    ----------
    model : Module
        Changed in place.
    weights : mapping of str to Tensor
        By the network's own names; counters of batch norm layers may be absent.
    path : Path
        Where they come from, for the message.

    Raises
    ------
    ModelError
        If names are missing or unknown, or shapes differ; the message lists them.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing, unknown = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    wrong = sorted(k for k in set(own) & set(weights) if own[k].shape != weights[k].shape)
    if missing or unknown or wrong:
        raise ModelError(
            f"{path} does not fit the architecture: {len(missing)} weights missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}, {len(wrong)} of other shape "
            f"{wrong[:3]}; it must be the one that the weights were trained in"
        )
    model.load_state_dict(weights, strict=False)
