"""ROIAlign on a CPU as a sparse matrix product.

Each output cell is a weighted sum of 4 x sampling_ratio^2 feature vectors, so pooling all boxes is
one product of a sparse matrix with the (pixels, channels) features, and its gradient the product
with the transpose. Both walk whole feature vectors that lie together in channels-last memory.
``benchmarks/roialign.py`` compares it with torchvision's operator, whose values it reproduces.

References
----------
He et al., "Mask R-CNN", section 3 (ROIAlign), https://doi.org/10.1109/ICCV.2017.322.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align


def _linear_taps(
    start: Tensor, length: Tensor, cells: int, samples: int, size: int
) -> tuple[Tensor, Tensor]:
    """Return pixel indices and weights (R, cells, 2 * samples) of samples along one axis."""
    steps = (torch.arange(cells * samples, dtype=torch.float32) + 0.5) / (cells * samples)
    at = start[:, None] + steps * length[:, None]
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.floor().clamp(max=size - 1)
    share = at - low
    index = torch.stack([low, (low + 1).clamp(max=size - 1)], -1).long()
    weight = torch.stack([1 - share, share], -1) * inside[..., None] / samples
    shape = (len(start), cells, 2 * samples)
    return index.reshape(shape), weight.reshape(shape)


def _in_cells(rois: Tensor, scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Return corners and sides (R, 2), x first, in cells of a feature map."""
    corners = rois[:, 1:].float() * scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    # before 'aligned' was thought of, thinner boxes than a cell were widened to one
    return corners[:, :2], sides if aligned else sides.clamp(min=1)


def pooling_matrix(
    rois: Tensor,
    shape: tuple[int, int, int],
    scale: float,
    output_size: int,
    samples: tuple[int, int],
    *,
    aligned: bool = False,
) -> scipy.sparse.csr_matrix:
    """Return the matrix that pools all boxes from one feature map.

    Parameters
    ----------
    rois : Tensor (R, 5)
        Index of the image, then x0, y0, x1, y1 in px of the image.
    shape : tuple
        Images, rows and columns (N, H, W) of the feature map.
    scale : float
        Feature cells per image px.
    output_size : int
        Cells a side.
    samples : tuple of int
        Samples a cell, along x and along y.
    aligned : bool
        See `PyramidRoIAlign`.

    Returns
    -------
    scipy.sparse.csr_matrix (R * output_size^2, N * H * W), float32
    """
    index, weight = _taps(rois, shape, scale, output_size, samples, aligned=aligned)
    rows, taps = index.shape
    n, height, width = shape
    return scipy.sparse.csr_matrix(
        (
            weight.reshape(-1).numpy(),
            index.reshape(-1).numpy().astype(np.int32),
            np.arange(0, rows * taps + 1, taps, dtype=np.int32),
        ),
        shape=(rows, n * height * width),
    )


def _taps(
    rois: Tensor,
    shape: tuple[int, int, int],
    scale: float,
    output_size: int,
    samples: tuple[int, int],
    *,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Return the pixels and weights, both (R * output_size^2, taps), that cells are sums of."""
    _, height, width = shape
    corner, side = _in_cells(rois, scale, aligned)
    ix, wx = _linear_taps(corner[:, 0], side[:, 0], output_size, samples[0], width)
    iy, wy = _linear_taps(corner[:, 1], side[:, 1], output_size, samples[1], height)
    first_row = rois[:, 0].long() * height
    index = (first_row[:, None, None, None, None] + iy[:, :, None, :, None]) * width
    index = index + ix[:, None, :, None, :]
    weight = wy[:, :, None, :, None] * wx[:, None, :, None, :]
    cells, taps = len(rois) * output_size**2, 4 * samples[0] * samples[1]
    return index.reshape(cells, taps), weight.reshape(cells, taps)


class _Pool(torch.autograd.Function):
    """Sparse product forward, product with the transpose backward; boxes get no gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, matrix: scipy.sparse.csr_matrix, size: int) -> Tensor:
        channels = features.shape[1]
        ctx.matrix, ctx.shape, ctx.dtype = matrix, features.shape, features.dtype
        flat = features.detach().permute(0, 2, 3, 1).reshape(-1, channels).float().numpy()
        return torch.from_numpy(matrix @ flat).view(-1, size, size, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        n, channels, height, width = ctx.shape
        flat = gradients[0].permute(0, 2, 3, 1).reshape(-1, channels).float().numpy()
        out = torch.from_numpy(ctx.matrix.T @ flat).view(n, height, width, channels)
        return out.permute(0, 3, 1, 2).to(ctx.dtype), None, None


class PyramidRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision is untyped
    """Pool boxes from the pyramid level that fits their size, as MultiScaleRoIAlign does.

    Parameters
    ----------
    levels : sequence of str
        Names of the feature maps, at strides 4, 8, 16 and so on.
    output_size : int
        Cells a side of the result.
    sampling_ratio : int
        Samples a cell and axis; 0: as many as feature cells it spans, rounded up.
    aligned : bool
        Feature cells have their centres at half indices, and boxes may be thinner than a cell.
    level_eps : float
        Added to a box's size over 224 before its level is read off.
    """

    def __init__(
        self,
        levels: tuple[str, ...],
        output_size: int,
        sampling_ratio: int = 2,
        *,
        aligned: bool = False,
        level_eps: float = 1e-6,
    ) -> None:
        super().__init__(list(levels), output_size, sampling_ratio)
        self.levels, self.aligned, self.level_eps = levels, aligned, level_eps
        self.sparse = True
        """Whether a CPU pools by a sparse product instead of by torchvision's operator."""

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Return (R, C, S, S) for all boxes of all images, in their order.

        float32, but for bfloat16 maps on a CPU, without gradients: bfloat16.
        """
        del image_sizes  # the strides are known; torchvision's pooler derives them from it
        rois = torch.cat(
            [torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)]
        ).detach()
        area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        # the paper's equation 1: a box of 224 px belongs to stride 16
        level = torch.floor(2 + torch.log2(area.clamp(min=0).sqrt() / 224 + self.level_eps))
        level = level.clamp(0, len(self.levels) - 1)
        first = features[self.levels[0]]
        size = self.output_size[0]
        kind = torch.bfloat16 if self._low(first) else torch.float32
        out = first.new_zeros((len(rois), first.shape[1], size, size), dtype=kind)
        for i, name in enumerate(self.levels):
            rows = torch.where(level == i)[0]
            if len(rows):
                pooled = self.pool(features[name], rois[rows], 1 / 2 ** (i + 2))
                out = out.index_copy(0, rows, pooled)
        return out

    def _low(self, features: Tensor) -> bool:
        """Tell whether bfloat16 maps are pooled as such, which no gradient goes through."""
        kind = (features.device.type, features.dtype)
        return self.sparse and kind == ("cpu", torch.bfloat16) and not torch.is_grad_enabled()

    def pool(self, features: Tensor, rois: Tensor, scale: float) -> Tensor:
        """Return (R, C, S, S) pooled from one feature map (N, C, H, W)."""
        size = self.output_size[0]
        if features.device.type != "cpu" or not self.sparse:
            pooled: Tensor = roi_align(
                features.float(), rois, size, scale, self.sampling_ratio, self.aligned
            )
            return pooled
        ratio = self.sampling_ratio
        if ratio > 0:
            return self._product(features, rois, scale, (ratio, ratio))
        # boxes that want as many samples go together; one without extent has none, and gives 0
        _, side = _in_cells(rois, scale, self.aligned)
        wanted = (side / size).ceil().long().clamp(min=0)
        order, parts = [], []
        for x, y in wanted.unique(dim=0).tolist():
            rows = torch.where((wanted == torch.tensor([x, y])).all(1))[0]
            order.append(rows)
            if x and y:
                parts.append(self._product(features, rois[rows], scale, (x, y)))
            else:
                parts.append(features.new_zeros((len(rows), features.shape[1], size, size)))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _product(
        self, features: Tensor, rois: Tensor, scale: float, samples: tuple[int, int]
    ) -> Tensor:
        n, channels, height, width = features.shape
        size = self.output_size[0]
        shape = (n, height, width)
        if self._low(features):
            index, weight = _taps(rois, shape, scale, size, samples, aligned=self.aligned)
            flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
            # the same sums, in float32; of float32 maps torch's kernel for it is a slow one
            low = F.embedding_bag(index, flat, mode="sum", per_sample_weights=weight.to(flat.dtype))
            return low.view(-1, size, size, channels).permute(0, 3, 1, 2)
        matrix = pooling_matrix(rois, shape, scale, size, samples, aligned=self.aligned)
        out: Tensor = _Pool.apply(features, matrix, size)
        return out
