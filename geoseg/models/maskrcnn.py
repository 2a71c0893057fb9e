"""Mask R-CNN and Faster R-CNN built on torchvision's parts: one builder, one description.

Two families share the pyramid, the proposals and the heads: ``timm_fpn`` takes its features from
any timm backbone, ``resnet_fpn`` from torchvision's residual networks, and its weights bear
torchvision's own names.

References
----------
He et al., "Mask R-CNN", https://doi.org/10.1109/ICCV.2017.322; Ren et al., "Faster R-CNN",
https://doi.org/10.1109/TPAMI.2016.2577031; Lin et al., "Feature Pyramid Networks for Object
Detection", https://doi.org/10.1109/CVPR.2017.106; Wu and He, "Group Normalization",
https://doi.org/10.1007/s11263-019-01198-w.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import Conv2dNormActivation

from geoseg.config import wrong_type
from geoseg.errors import ModelError
from geoseg.models.card import with_tuples
from geoseg.models.roialign import PyramidRoIAlign

LEVELS = ("0", "1", "2", "3")
"""Feature map names, strides 4, 8, 16 and 32; a pooled fifth one is for the RPN alone."""
FAMILIES = ("timm_fpn", "resnet_fpn")
NORMS = ("group", "batch", "none")
GROUPS = 32
"""Groups of a group norm; widths must be multiples of it."""

PLAIN_RESNETS: Mapping[str, tuple[Any, tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Block and blocks a stage of the residual networks whose widths can be chosen."""

LISTED = 12
"""Names that an error lists of each kind."""

NormLayer = Callable[[int], nn.Module]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is needed to rebuild a network before its weights are loaded.

    The defaults are the shipped model's.
    """

    backbone: str = "tf_efficientnet_lite0"
    """A timm model that gives feature maps at strides 4 to 32, or for ``resnet_fpn`` one of
    torchvision's: resnet18 to resnet152, resnext..., wide_resnet..."""
    fpn_channels: int = 128
    """Channels of every FPN level; a multiple of 32 where it has group norms."""
    anchor_sizes_px: tuple[float, ...] | tuple[tuple[float, ...], ...] = (16, 32, 64, 128, 256)
    """Side of the square anchor on each of the five levels, px; a tuple a level for several."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    box_convs: int = 1
    """3 x 3 convolutions of the box head, before its fully connected layers."""
    box_features: int = 256
    """Width of the fully connected layers of the box head."""
    mask_convs: int = 3
    """3 x 3 convolutions of the mask head."""
    family: str = "timm_fpn"
    """'timm_fpn' or 'resnet_fpn' (torchvision's ResNet + FPN, by torchvision's names)."""
    masks: bool = True
    """False: Faster R-CNN, which finds boxes only."""
    stride_in_1x1: bool = False
    """Bottlenecks stride in their first 1 x 1 (the paper's, MSRA's) instead of in the 3 x 3."""
    backbone_norm: str = "frozen"
    """'frozen': batch norms keep their statistics (and, for ``resnet_fpn``, their weights) in
    training; 'batch': they are trained; 'group': group norms (``resnet_fpn`` only)."""
    norm_eps: float = 1e-5
    """Added to the variance by the norms of a ``resnet_fpn`` backbone."""
    fpn_norm: str = "group"
    """'group', 'batch' or 'none' behind each convolution of the pyramid."""
    box_norm: str = "group"
    """The same for the convolutions of the box head."""
    mask_norm: str = "group"
    """The same for the convolutions of the mask head."""
    rpn_convs: int = 1
    """3 x 3 convolutions of the RPN's head."""
    box_fcs: int = 1
    """Fully connected layers of the box head, at least 1."""
    box_channels: int = 0
    """Width of the box head's convolutions; 0: as the pyramid."""
    mask_channels: int = 0
    """Width of the mask head; 0: as the pyramid."""
    mask_size: int = 28
    """Cells a side of a mask: 28, or 56 by one more deconvolution."""
    anchor_offset: float = 0.0
    """Centre of the first anchor of a level, in its strides."""
    anchors_rounded: bool = True
    """True: torchvision's anchors, rounded to whole px and spaced by image size // grid size.
    False: Detectron2's, exact, spaced by the level's stride (also where a level's size was
    rounded up), and sizes before ratios in the order of the RPN's channels."""
    roi_aligned: bool = False
    """ROIAlign with pixel centres at half px ('aligned' in torchvision and Detectron2)."""
    box_sampling_ratio: int = 2
    """Samples a cell and axis in the box head's ROIAlign; 0: as many as px a cell spans."""
    mask_sampling_ratio: int = 2
    """The same for the mask head."""
    roi_level_eps: float = 1e-6
    """Added to a box's size over 224 before its level is read off (Detectron2: 1e-8)."""
    size_divisor: int = 1
    """Tiles are padded with zeros, after normalization, to a multiple of this."""
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    """Weights of the box head's box coder: x, y, width, height."""
    rpn_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """Weights of the RPN's box coder."""
    stem_channels: int = 0
    """Channels of the first convolution of a ``resnet_fpn`` backbone; 0: the backbone's own 64."""
    res2_channels: int = 0
    """Channels that its first stage gives, doubled by each further one; 0: its own."""
    groups: int = 0
    """Groups of the 3 x 3 convolutions in its bottlenecks; 0: its own."""
    width_per_group: int = 0
    """Channels of each of these groups in the first stage; 0: its own."""
    rpn_channels: tuple[int, ...] = ()
    """Width of each convolution of the RPN's head; empty: all as the pyramid."""
    box_cells: int = 7
    """Cells a side that the box head sees of a box."""

    def __post_init__(self) -> None:
        for name, known in (
            ("family", FAMILIES), ("backbone_norm", ("frozen", "batch", "group")),
            ("fpn_norm", NORMS), ("box_norm", NORMS), ("mask_norm", NORMS), ("mask_size", (28, 56)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ModelError(
                    f"architecture: {name} is {getattr(self, name)!r}; "
                    f"expected one of {', '.join(map(str, known))}"
                )
        for name in (
            "fpn_channels",
            "box_features",
            "box_fcs",
            "rpn_convs",
            "size_divisor",
            "box_cells",
        ):
            if getattr(self, name) < 1:
                raise ModelError(f"architecture: {name} is {getattr(self, name)}; at least 1")
        if self.backbone_norm == "group" and self.family != "resnet_fpn":
            raise ModelError("architecture: backbone_norm group is for family resnet_fpn only")
        if self.rpn_channels and len(self.rpn_channels) != self.rpn_convs:
            raise ModelError(
                f"architecture: rpn_channels is {self.rpn_channels}; expected one for each of the "
                f"{self.rpn_convs} convolutions (rpn_convs)"
            )
        if self.stride_in_1x1 and self.family != "resnet_fpn":
            raise ModelError("architecture: stride_in_1x1 is for family resnet_fpn only")
        sizes = self.anchors
        if len(sizes) != len(LEVELS) + 1 or len({len(s) for s in sizes}) != 1 or not sizes[0]:
            raise ModelError(
                f"architecture: anchor_sizes_px is {self.anchor_sizes_px}; expected five, one a "
                "level, or as many on each of five levels"
            )

    @property
    def anchors(self) -> tuple[tuple[float, ...], ...]:
        """Anchor sizes of each level, px."""
        return tuple(s if isinstance(s, tuple) else (s,) for s in self.anchor_sizes_px)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], gsd_m: float | None = None) -> Architecture:
        """Rebuild from a card or a training file; unknown keys are errors.

        ``anchor_sizes_m``, in metres on the ground, may stand for ``anchor_sizes_px`` where the
        GSD `gsd_m` is given.
        """
        values = with_tuples(values)
        metres = values.pop("anchor_sizes_m", None)
        if metres is not None:
            if gsd_m is None or "anchor_sizes_px" in values:
                raise ModelError(
                    "architecture: anchor_sizes_m needs a gsd_m and excludes anchor_sizes_px"
                )
            values["anchor_sizes_px"] = _in_px(metres, gsd_m)
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ModelError(
                f"the card's architecture has unknown keys {sorted(unknown)}; "
                "it was written by another version of geoseg"
            )
        if wrong := wrong_type(cls, values):
            raise ModelError(f"architecture: {wrong}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the card's JSON."""
        return asdict(self)


def _in_px(metres: Any, gsd_m: float) -> Any:
    if isinstance(metres, tuple):
        return tuple(_in_px(m, gsd_m) for m in metres)
    return metres / gsd_m


def _norm(kind: str, *widths: int) -> NormLayer | None:
    """Return the maker of a norm layer for layers of the given widths."""
    if kind == "group":
        if wrong := [w for w in widths if w % GROUPS]:
            raise ModelError(
                f"architecture: group norm needs widths that are multiples of {GROUPS}, not "
                f"{wrong[0]}; choose another width or norm"
            )
        return partial(nn.GroupNorm, GROUPS)
    return nn.BatchNorm2d if kind == "batch" else None


class PyramidBackbone(nn.Module):
    """A timm backbone with a feature pyramid on top.

    Parameters
    ----------
    architecture : Architecture
        Names the backbone, the pyramid's width and the norms.
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
        self.frozen = architecture.backbone_norm == "frozen"
        self.fpn = FeaturePyramidNetwork(
            body.feature_info.channels(),
            architecture.fpn_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=_norm(architecture.fpn_norm, architecture.fpn_channels),
        )
        self.out_channels = architecture.fpn_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) normalized pixels to feature maps '0'..'3' and 'pool'."""
        # a CPU's bfloat16 depthwise convolutions are several times slower than its float32 ones
        on_gpu = x.device.type == "cuda"
        mixed = on_gpu and torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda" if on_gpu else "cpu", dtype=torch.bfloat16, enabled=mixed):
            maps = self.body(x)
        levels: dict[str, Tensor] = self.fpn(OrderedDict(zip(LEVELS, maps, strict=True)))
        return levels

    def train(self, mode: bool = True) -> PyramidBackbone:
        """Switch modes, leaving frozen batch norm layers on their ImageNet statistics.

        Batches of four chips are too small to estimate them.
        """
        super().train(mode)
        if self.frozen:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def resnet_backbone(architecture: Architecture) -> nn.Module:
    """Return torchvision's ResNet with its feature pyramid, ``body`` and ``fpn``.

    Raises
    ------
    ModelError
        If torchvision has no such residual network.
    """
    name = architecture.backbone
    known = torchvision.models.list_models(
        module=torchvision.models, include=["resnet*", "resnext*", "wide_resnet*"]
    )
    if name not in known:
        raise ModelError(
            f"unknown backbone '{name}' of family resnet_fpn; expected one of {', '.join(known)}"
        )
    a = architecture
    norm = _backbone_norm(a)
    if any((a.stem_channels, a.res2_channels, a.groups, a.width_per_group)):
        body: Any = ScaledResNet(a, norm)
    else:
        body = torchvision.models.get_model(name, weights=None, norm_layer=norm)
    if architecture.stride_in_1x1:
        _stride_in_1x1(body, name)
    # the first of the four widths that the pyramid takes its maps from
    width = body.inplanes // 8
    channels = architecture.fpn_channels
    backbone: nn.Module = BackboneWithFPN(
        body,
        {f"layer{i + 1}": level for i, level in enumerate(LEVELS)},
        [width << i for i in range(len(LEVELS))],
        channels,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=_norm(architecture.fpn_norm, channels),
    )
    return backbone


def _backbone_norm(a: Architecture) -> NormLayer:
    """Return the maker of norm layers for a residual network."""
    if a.backbone_norm == "frozen":
        frozen: NormLayer = partial(FrozenBatchNorm2d, eps=a.norm_eps)
        return frozen
    if a.backbone_norm == "batch":
        return partial(nn.BatchNorm2d, eps=a.norm_eps)
    stem = a.stem_channels or 64
    bottleneck = (a.groups or 1) * (a.width_per_group or 64)
    _norm("group", stem, bottleneck, *([a.res2_channels] if a.res2_channels else []))
    return partial(nn.GroupNorm, GROUPS, eps=a.norm_eps)


class ScaledResNet(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's ResNet with widths of its own.

    Parameters
    ----------
    architecture : Architecture
        A plain resnet18 to resnet152, and its widths.
    norm : callable
        Makes a norm layer of a number of channels.

    Raises
    ------
    ModelError
        If the backbone is not plain, or basic blocks (resnet18, resnet34) shall have groups.
    """

    def __init__(self, architecture: Architecture, norm: NormLayer) -> None:
        a = architecture
        if a.backbone not in PLAIN_RESNETS:
            raise ModelError(
                f"architecture: {a.backbone} has fixed widths; stem_channels, res2_channels, "
                f"groups and width_per_group are for {', '.join(PLAIN_RESNETS)}"
            )
        block, blocks = PLAIN_RESNETS[a.backbone]
        groups, width = a.groups or 1, a.width_per_group or 64
        if block is BasicBlock and (groups, width) != (1, 64):
            raise ModelError(f"architecture: {a.backbone} has no groups; set none")
        # read by _make_layer, which the parent's constructor calls
        self._stem = a.stem_channels or 64
        self._planes = (a.res2_channels or 64 * block.expansion) // block.expansion
        # the parent takes int(planes * base / 64) for the width; the last factor keeps its
        # rounding from falling below
        base = 64 if block is BasicBlock else 64 * width / self._planes * (1 + 1e-9)
        super().__init__(block, list(blocks), groups=groups, width_per_group=base, norm_layer=norm)
        self.conv1 = nn.Conv2d(3, self._stem, 7, 2, 3, bias=False)
        self.bn1 = norm(self._stem)

    def _make_layer(
        self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self._stem
        stage: nn.Sequential = super()._make_layer(
            block, planes * self._planes // 64, blocks, stride, dilate
        )
        return stage


def _stride_in_1x1(body: nn.Module, name: str) -> None:
    for block in body.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    if not any(isinstance(block, Bottleneck) for block in body.modules()):
        raise ModelError(f"architecture: stride_in_1x1 needs bottlenecks; {name} has none")


class PyramidAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """Anchors of the five levels by torchvision's arithmetic or by Detectron2's.

    torchvision rounds their corners to whole px, and spaces them by image size // grid size,
    which is less than the stride where a level's size was rounded up. Detectron2 does neither.

    Parameters
    ----------
    architecture : Architecture
        Sizes, ratios, offset and whose arithmetic.
    """

    def __init__(self, architecture: Architecture) -> None:
        sizes = architecture.anchors
        super().__init__(sizes, (architecture.anchor_ratios,) * len(sizes))
        self.rounded, self.offset = architecture.anchors_rounded, architecture.anchor_offset
        if not self.rounded:
            self.cell_anchors = [exact_anchors(s, architecture.anchor_ratios) for s in sizes]

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        """Return the (A, 4) anchors of each level, px."""
        if not self.rounded:
            strides = [[torch.full_like(s, 4 << i) for s in pair] for i, pair in enumerate(strides)]
        levels: list[Tensor] = super().grid_anchors(grid_sizes, strides)
        if self.offset == 0:
            return levels
        return [
            boxes + self.offset * torch.stack([right, down, right, down])
            for boxes, (down, right) in zip(levels, strides, strict=True)
        ]


def exact_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> Tensor:
    """Return (sizes * ratios, 4) boxes around the origin, all ratios of a size together."""
    size = torch.tensor(sizes, dtype=torch.float64)[:, None]
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()
    width, height = size / root, size * root
    return torch.stack([-width, -height, width, height], -1).reshape(-1, 4).div(2).float()


class BoxHead(nn.Module):
    """3 x 3 convolutions with group norm, then one fully connected layer: the shipped model's."""

    def __init__(self, channels: int, convs: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, channels),
                nn.ReLU(inplace=True),
            ]
        self.convs = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * 7 * 7, features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, C, 7, 7) pooled features to (R, features)."""
        out: Tensor = torch.relu(self.fc(self.convs(x).flatten(1)))
        return out


def _box_head(a: Architecture) -> nn.Module:
    """Return the box head; each by the names that weights of its kind bear."""
    channels, width = a.fpn_channels, a.box_channels or a.fpn_channels
    norm = _norm(a.box_norm, width) if a.box_convs else None
    if (a.family, a.box_fcs, a.box_norm, width, a.box_cells) == (
        "timm_fpn", 1, "group", channels, 7,
    ):  # fmt: skip
        return BoxHead(channels, a.box_convs, a.box_features)
    if a.box_convs == 0 and a.box_fcs == 2:
        head: nn.Module = TwoMLPHead(channels * a.box_cells**2, a.box_features)
    else:
        convs, fcs = [width] * a.box_convs, [a.box_features] * a.box_fcs
        shape = (channels, a.box_cells, a.box_cells)
        head = FastRCNNConvFCHead(shape, convs, fcs, norm_layer=norm)
    return head


def _mask_parts(a: Architecture, n_classes: int) -> dict[str, nn.Module]:
    """Return the mask branch, by the names of torchvision's arguments."""
    width = a.mask_channels or a.fpn_channels
    head = MaskRCNNHeads(
        a.fpn_channels, [width] * a.mask_convs, 1, norm_layer=_norm(a.mask_norm, width)
    )
    last = width if a.mask_convs else a.fpn_channels
    if a.mask_size == 56:
        head.append(nn.Sequential(nn.ConvTranspose2d(last, width, 2, 2), nn.ReLU(inplace=True)))
        last = width
    return {
        "mask_roi_pool": PyramidRoIAlign(
            LEVELS, 14, a.mask_sampling_ratio, aligned=a.roi_aligned, level_eps=a.roi_level_eps
        ),
        "mask_head": head,
        "mask_predictor": MaskRCNNPredictor(last, width, n_classes + 1),
    }


def _rpn_head(a: Architecture, n_anchors: int) -> nn.Module:
    """Return torchvision's head of the RPN, with widths of its own where they are given."""
    head: Any = RPNHead(a.fpn_channels, n_anchors, conv_depth=a.rpn_convs)
    widths = a.rpn_channels
    if widths:
        pairs = zip((a.fpn_channels, *widths[:-1]), widths, strict=True)
        head.conv = nn.Sequential(
            *(Conv2dNormActivation(i, o, kernel_size=3, norm_layer=None) for i, o in pairs)
        )
        head.cls_logits = nn.Conv2d(widths[-1], n_anchors, 1)
        head.bbox_pred = nn.Conv2d(widths[-1], n_anchors * 4, 1)
    return head  # type: ignore[no-any-return]  # torchvision is untyped


def build_maskrcnn(architecture: Architecture, n_classes: int) -> FasterRCNN:
    """Build the network with random weights.

    Parameters
    ----------
    architecture : Architecture
        Sizes of its parts.
    n_classes : int
        Classes to tell apart, background not counted; at least 1.

    Returns
    -------
    torchvision.models.detection.MaskRCNN or FasterRCNN
        torchvision's container. Only its parts are used (``backbone``, ``rpn``, ``roi_heads``):
        its ``transform`` would resize the input and so change the GSD.

    Raises
    ------
    ModelError
        If the backbone is not known, or parts do not fit each other.
    """
    a = architecture
    anchors = PyramidAnchors(a)
    parts = {
        "rpn_anchor_generator": anchors,
        "rpn_head": _rpn_head(a, anchors.num_anchors_per_location()[0]),
        "box_roi_pool": PyramidRoIAlign(
            LEVELS,
            a.box_cells,
            a.box_sampling_ratio,
            aligned=a.roi_aligned,
            level_eps=a.roi_level_eps,
        ),
        "box_head": _box_head(a),
        "box_predictor": FastRCNNPredictor(a.box_features, n_classes + 1),
        "bbox_reg_weights": a.box_weights,
    }
    backbone = resnet_backbone(a) if a.family == "resnet_fpn" else PyramidBackbone(a)
    if a.masks:
        model = MaskRCNN(backbone, **parts, **_mask_parts(a, n_classes))
    else:
        model = FasterRCNN(backbone, **parts)
    model.rpn.box_coder = BoxCoder(a.rpn_weights)
    return model


def expected_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that a file must hold for a network: all but counters of norm layers."""
    return {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def count_weights(architecture: Architecture, n_classes: int) -> int:
    """Return how many numbers a network's weights hold, frozen norms included."""
    with torch.device("meta"):
        model = build_maskrcnn(architecture, n_classes)
    return sum(value.numel() for value in expected_weights(model).values())


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
    own = expected_weights(model)
    missing, unknown = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    wrong = sorted(k for k in set(own) & set(weights) if own[k].shape != weights[k].shape)
    if missing or unknown or wrong:
        raise ModelError(
            f"{path} does not fit the architecture: {len(missing)} weights missing "
            f"{_listed(missing)}, {len(unknown)} unknown {_listed(unknown)}, {len(wrong)} of other "
            f"shape {_listed(wrong)}; it must be the one that the weights were trained in"
        )
    model.load_state_dict(weights, strict=False)


def _listed(names: list[str]) -> str:
    """Name all of a few, and the first of many."""
    more = len(names) - LISTED
    return str(names) if more <= 0 else f"{names[:LISTED]} and {more} more"
