"""A network on a CPU as oneDNN likes it: fused kernels, and bfloat16 where matrix units are.

Every convolution becomes one call of oneDNN together with the activation, or the addition of a
residual, that follows it: an activation by itself reads and writes the whole map again, which took
two fifths of the shipped model's backbone. The kernels are those that torch.compile calls, without
its minutes of compiling; they give the same bits whatever the number of threads and of tiles.

In bfloat16 everything between the pixels and the last layers computes with 8 bits of mantissa and
sums in float32. The last layers, which say what is an object, where, and which shape it has, the
group norms of boxes, and all that follows are float32.

References
----------
oneDNN, "Primitive Attributes: post-ops",
https://uxlfoundation.github.io/oneDNN/dev_guide_attributes_post_ops.html
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from geoseg.errors import ModelError

PRECISIONS = ("float32", "bfloat16")
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
"""Activations to oneDNN's names and constants for them."""
SMALL_MAP = 14
"""Cells a side of the maps that heads make of boxes."""
_EXACT_LAST = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits")
"""Layers that stay float32: what they put out is decided on."""


def bfloat16_pays() -> bool:
    """Tell whether this CPU multiplies matrices of bfloat16 in hardware (AMX).

    Without it bfloat16 is float32 with less precision. CPUs that have the vector instructions alone
    (``avx512_bf16``) were not at hand to be measured; they run in float32.
    """
    # named with an underscore in torch 2.10 to 2.14; where it goes, float32 runs
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported()) and fused_kernels_work()


def cpu_precision(name: str) -> torch.dtype:
    """Return the number type of 'float32' or 'bfloat16'; 'auto': what pays on this CPU.

    Raises
    ------
    ModelError
        If it is none of them.
    """
    if name == "auto":
        return torch.bfloat16 if bfloat16_pays() else torch.float32
    if name not in PRECISIONS:
        raise ModelError(f"precision is '{name}'; expected {' or '.join(PRECISIONS)}")
    kind: torch.dtype = getattr(torch, name)
    return kind


@lru_cache(maxsize=1)
def fused_kernels_work() -> bool:
    """Tell whether torch has oneDNN's fused convolutions here, and they compute what they should.

    They are not part of torch's public interface, and builds for other processors lack them.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode():
        conv = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
        x = torch.linspace(-8, 8, 16 * 64).reshape(1, 16, 8, 8)
        wanted = conv(x).clamp(0, 6)
        try:
            got = FusedConv(conv, nn.ReLU6(), torch.float32)(x)
        except (RuntimeError, AttributeError, TypeError):
            return False
    return bool(torch.allclose(got, wanted, atol=1e-4))


def pack(
    model: nn.Module, activations: Sequence[tuple[nn.Module, str, str]], dtype: torch.dtype
) -> None:
    """Put fused layers in place of a network's convolutions and fully connected layers.

    Parameters
    ----------
    model : Module
        Changed in place; its norms are folded already.
    activations : sequence of (parent, convolution's name, activation's name)
        Children that follow each other directly, beside those in an `nn.Sequential`.
    dtype : torch.dtype
        float32 or bfloat16, of weights and maps.
    """
    for parent, conv_name, name in activations:
        _fuse(parent, conv_name, name, dtype)
    for module in list(model.modules()):
        if isinstance(module, ResNet):
            if isinstance(module.bn1, nn.Identity):
                _fuse(module, "conv1", "relu", dtype)
        elif isinstance(module, Bottleneck | BasicBlock):
            _fuse_block(module, dtype)
        elif isinstance(module, nn.Sequential):
            _fuse_sequence(module, dtype)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _packed(child, torch.float32 if name in _EXACT_LAST else dtype))


def _packed(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return what computes as a layer does; what is no layer with weights stays."""
    if isinstance(layer, nn.Conv2d):
        return FusedConv(layer, None, dtype) if _plain(layer) else Cast(layer, torch.float32)
    if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
        return Cast(layer, dtype)
    return BoxNorm(layer) if isinstance(layer, nn.GroupNorm) else layer


def _plain(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution does with its weights what the name says; timm has others."""
    known = type(conv) is nn.Conv2d or type(conv).__name__ == "Conv2dSame"
    return known and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _fuse(parent: nn.Module, conv_name: str, name: str, dtype: torch.dtype) -> None:
    """Fuse a convolution with the activation that follows it, if both are known."""
    conv, act = getattr(parent, conv_name), getattr(parent, name)
    if isinstance(conv, nn.Conv2d) and _plain(conv) and type(act) in _ACTIVATIONS:
        setattr(parent, conv_name, FusedConv(conv, act, dtype))
        setattr(parent, name, nn.Identity())


def _fuse_sequence(parent: nn.Sequential, dtype: torch.dtype) -> None:
    names = [n for n, child in parent.named_children() if not isinstance(child, nn.Identity)]
    for first, second in pairwise(names):
        _fuse(parent, first, second, dtype)


def _fuse_block(block: Any, dtype: torch.dtype) -> None:
    """Fuse a residual block of torchvision, whose activation is one child that it calls often."""
    names = [n for n in ("conv1", "conv2", "conv3") if hasattr(block, n)]
    if not all(isinstance(getattr(block, f"bn{n[-1]}"), nn.Identity) for n in names):
        # norms that could not be folded (group norms) stand before the activations
        return
    convs = [FusedConv(getattr(block, n), block.relu, dtype) for n in names]
    for name, conv in zip(names, convs, strict=True):
        setattr(block, name, conv)
    block.relu = nn.Identity()
    block.forward = _Residual(block, convs)


class _Residual:
    """The forward of a residual block whose last convolution adds the shortcut itself."""

    def __init__(self, block: Any, convs: Sequence[FusedConv]) -> None:
        self.block, self.convs = block, convs

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the block's output."""
        shortcut = x if self.block.downsample is None else self.block.downsample(x)
        for conv in self.convs[:-1]:
            x = conv(x)
        return self.convs[-1].add(x, shortcut)


class Cast(nn.Module):
    """A layer that computes in its own number type, whatever it is given."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        out: Tensor = self.layer(x.to(self.dtype))
        return out


class BoxNorm(nn.Module):
    """A group norm that takes the small maps of boxes in float32, plane by plane.

    torch's kernel takes ten times as long for such in bfloat16 with channels last; large maps stay
    what they are.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same, normalized."""
        if x.shape[-1] <= SMALL_MAP:
            x = x.float().contiguous()
        out: Tensor = self.norm(x)
        return out


class FusedConv(nn.Module):
    """A convolution with the activation that follows it, as one kernel of oneDNN.

    Parameters
    ----------
    conv : Conv2d
        May be timm's with TensorFlow's padding ('same', more of it right and below).
    act : Module, optional
        ReLU, ReLU6 or hard swish.
    dtype : torch.dtype
        What it computes in; sums are float32 either way.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.detach().to(dtype)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.register_buffer("bias", bias)
        # timm's Conv2dSame pads by the size of what comes
        self.same = type(conv).__name__ == "Conv2dSame"
        given: Any = conv.padding
        self.padding: list[int] = [0, 0] if self.same else list(given)
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.groups, self.out_channels = conv.groups, conv.out_channels
        self.act, self.constants = ("none", []) if act is None else _ACTIVATIONS[type(act)]

        kernel = set(conv.kernel_size)
        self.even: tuple[Tensor, list[int]] | None = None
        if self.same and self.stride == [2, 2] and self.dilation == [1, 1] and kernel <= {3, 5}:
            # one row more of padding below than above is a kernel with a row of zeros on top, and
            # saves a copy of the map: (3, 3) becomes (4, 4)
            larger = F.pad(weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
            self.even = larger, [(k - 1) // 2 for k in conv.kernel_size]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D, H', W')."""
        x, weight, padding = self._placed(x.to(self.weight.dtype))
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, padding, self.stride, self.dilation, self.groups,
            self.act, self.constants, "",
        )  # fmt: skip
        return out

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the activation of the convolution plus `other`."""
        x, weight, padding = self._placed(x.to(self.weight.dtype))
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other.to(x.dtype), weight, self.bias, padding, self.stride, self.dilation,
            self.groups, "add", 1.0, self.act, self.constants, "",
        )  # fmt: skip
        return out

    def _placed(self, x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Return map, weight and padding that together give TensorFlow's padding, where wanted."""
        if not self.same:
            return x, self.weight, self.padding
        if self.even is not None and not any(side % 2 for side in x.shape[2:]):
            return x, *self.even
        sides: list[int] = []
        for axis in (1, 0):
            size, kernel = x.shape[2 + axis], self.weight.shape[2 + axis]
            reach = (kernel - 1) * self.dilation[axis] + 1
            room = max((-(-size // self.stride[axis]) - 1) * self.stride[axis] + reach - size, 0)
            sides += [room // 2, room - room // 2]
        return F.pad(x, sides), self.weight, self.padding


def mask_logits(predictor: nn.Sequential, x: Tensor, outputs: Tensor) -> Tensor:
    """Return (n, M, M) mask logits of one output each; those of other classes are not computed.

    Parameters
    ----------
    predictor : Sequential
        torchvision's: deconvolution, activation, 1 x 1 convolution, here a packed one.
    x : Tensor (n, C, M / 2, M / 2)
        What the mask head gives.
    outputs : Tensor (n,)
        The output wanted of each.
    """
    *layers, last = predictor.children()
    for layer in layers:
        x = layer(x)
    weight: Any = last.weight
    bias: Any = last.bias
    rows = weight[outputs].flatten(1)[:, None]
    logits: Tensor = torch.bmm(rows, x.to(rows.dtype).flatten(2))[:, 0] + bias[outputs][:, None]
    return logits.reshape(len(x), *x.shape[2:])
