"""Networks of random weights that find dozens of confident, different things.

A freshly made network gives the same score to every box. Here norms take their statistics from
the picture, and each last layer is scaled by what it puts out, so that scores and boxes differ as
a trained network's do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import Bottleneck


def picture(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (n, 3, height, width) uint8 with patches of colour at several scales."""
    rng = np.random.default_rng(seed)
    out = np.zeros((n, 3, height, width))
    for cell in (4, 8, 16, 32, 64):
        small = rng.normal(0, 30, (n, 3, -(-height // cell), -(-width // cell)))
        out += small.repeat(cell, 2).repeat(cell, 3)[..., :height, :width]
    return np.clip(out + 128, 0, 255).astype(np.uint8)


@torch.no_grad()
def calibrate(model: nn.Module, pixels: Tensor, seed: int = 0) -> nn.Module:
    """Scale a network's layers on normalized pixels (N, 3, H, W), in place; leave it in eval."""
    torch.manual_seed(seed)
    model.eval()
    features = _with_statistics(model.backbone, pixels)
    head = model.rpn.head
    deep = torch.cat([head.conv(f).flatten(2) for f in features.values()], 2)[..., None]
    _scale(head.cls_logits, deep, 2.0)
    _scale(head.bbox_pred, deep, 0.3)
    sizes = [tuple(pixels.shape[2:])] * len(pixels)
    proposals, _ = model.rpn(ImageList(pixels, sizes), features)
    heads = model.roi_heads
    found = _with_statistics(heads.box_head, heads.box_roi_pool(features, proposals, sizes))
    _scale(heads.box_predictor.cls_score, found, 3.0)
    bias = heads.box_predictor.cls_score.bias
    bias.normal_(0, 1.0)
    # most boxes show nothing
    bias[0] += 1.2 + np.log(len(bias))
    _scale(heads.box_predictor.bbox_pred, found, 0.8)
    if heads.has_mask():
        pooled = heads.mask_roi_pool(features, [p[:50] for p in proposals], sizes)
        up, relu, last = heads.mask_predictor.children()
        _scale(last, relu(up(_with_statistics(heads.mask_head, pooled))), 2.0)
    return model


def _with_statistics(part: nn.Module, x: Tensor) -> Tensor:
    """Let the batch norms of a part take their statistics from its input; return its output."""
    norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    # as in trained networks, residuals add little: otherwise rounding grows from block to block,
    # until no two ways to compute the same thing agree
    last = [m.bn3 for m in part.modules() if isinstance(m, Bottleneck)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
        # a trained norm's gains and shifts are not all alike
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.normal_(0, 0.2)
        if norm in last:
            norm.weight.mul_(0.2)
    part(x)
    for norm in norms:
        norm.eval()
    return part(x)


def _scale(layer: nn.Module, x: Tensor, std: float) -> None:
    """Scale and centre a last layer so that its output on `x` has a standard deviation."""
    layer.weight.normal_(0, 1.0)
    layer.bias.zero_()
    out = layer(x)
    channels = out.transpose(0, 1).flatten(1)
    gain = std / channels.std()
    layer.weight.mul_(gain)
    layer.bias.copy_(-channels.mean(1) * gain)
