"""Fused kernels and bfloat16 on a CPU: the same as the plain layers, within what is stated."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.resnet import resnet18, resnet50

from geoseg.errors import ModelError
from geoseg.models import cpu
from geoseg.models.inference import fuse_batch_norms

pytestmark = pytest.mark.skipif(
    not cpu.fused_kernels_work(), reason="this torch has no fused kernels of oneDNN"
)
# largest difference over the largest value
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.shape == wanted.shape
    assert (got.float() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


def image(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    x = torch.randn(n, channels, height, width)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.ReLU6(), nn.Hardswish()])
def test_convolutions_with_what_follows(act, dtype):
    conv = nn.Conv2d(16, 32, 3, 2, 1, groups=4)
    x = image(2, 16, 31, 40)
    wanted = conv(x) if act is None else act(conv(x))
    close(cpu.FusedConv(conv, act, dtype)(x), wanted, dtype)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 47), (32, 47)])
def test_padding_of_tensorflow(kernel, height, width):
    # even sides have a row more of padding below than above: the kernel gets a row of zeros
    conv = Conv2dSame(16, 16, kernel, stride=2, groups=16)
    x = image(1, 16, height, width)
    close(cpu.FusedConv(conv, None, torch.float32)(x), conv(x), torch.float32)


def is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU)


def test_convolutions_that_do_more_stay_what_they_are():
    conv = ScaledStdConv2d(8, 8, 3, padding=1)
    x = image(1, 8, 12, 12)
    wanted = conv(x)
    network = nn.Sequential(conv, nn.ReLU())
    cpu.pack(network, [], torch.bfloat16)
    close(network(x.bfloat16()), wanted.relu(), torch.bfloat16)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("build", [resnet18, resnet50])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.GroupNorm, 8)])
def test_residual_networks(build, norm, dtype):
    network = build(weights=None, norm_layer=norm).eval()
    x = image(1, 3, 64, 96)
    wanted = network(x)
    activations = fuse_batch_norms(network)
    assert not activations, "torchvision's norms bring none along"
    cpu.pack(network, activations, dtype)
    left = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ReLU)]
    # group norms cannot be folded: activations follow them, not the convolutions
    assert len(left) == (0 if norm is nn.BatchNorm2d else sum(map(is_relu, left)))
    assert bool(left) == (norm is not nn.BatchNorm2d)
    # rounding adds up over the blocks of random weights
    got = network(x).float()
    assert (got - wanted).abs().max() <= 3 * TOLERANCE[dtype] * wanted.abs().max()


def test_threads_and_tiles_change_nothing():
    conv = cpu.FusedConv(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), torch.bfloat16)
    x = image(3, 32, 24, 40)
    before = torch.get_num_threads()
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outs += [conv(x), torch.cat([conv(x[i : i + 1]) for i in range(3)])]
    torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("cells", [7, 24])
def test_norms_of_boxes_and_of_maps(cells):
    norm = nn.GroupNorm(4, 16)
    x = image(3, 16, cells, cells)
    close(cpu.BoxNorm(norm)(x.bfloat16()), norm(x), torch.bfloat16)


def test_masks_of_the_class_that_was_found():
    predictor = MaskRCNNPredictor(8, 8, 5)
    x, outputs = torch.randn(6, 8, 14, 14), torch.tensor([1, 2, 4, 4, 3, 1])
    wanted = predictor(x)[torch.arange(6), outputs]
    cpu.pack(predictor, [], torch.float32)
    close(cpu.mask_logits(predictor, x, outputs), wanted, torch.float32)


def test_precision_by_name(monkeypatch):
    assert cpu.cpu_precision("float32") == torch.float32
    assert cpu.cpu_precision("bfloat16") == torch.bfloat16
    with pytest.raises(ModelError, match="precision is 'int8'; expected float32 or bfloat16"):
        cpu.cpu_precision("int8")
    # without matrix units it would only lose precision; nor where torch cannot tell
    for told in (lambda: False, None):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", told, raising=False)
        assert cpu.cpu_precision("auto") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert cpu.cpu_precision("auto") == torch.bfloat16
