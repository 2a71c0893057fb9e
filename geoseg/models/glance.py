"""A first look at coarser pixels, to learn where there might be anything at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from geoseg.models.gpu import FixedShapes, GpuOptions

if TYPE_CHECKING:
    from geoseg.models.inference import MaskRCNNDetector


class Glance:
    """The boxes of a detector's network, however unsure, without masks.

    Parameters
    ----------
    detector : MaskRCNNDetector
        Its network is used as it is; only pixels are coarser than it is used to.
    """

    def __init__(self, detector: MaskRCNNDetector) -> None:
        self._fixed = FixedShapes(detector, GpuOptions(precision="float32", batch=1))

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[Any], min_score: float) -> npt.NDArray[np.float32]:
        """Return boxes (n, 4), px, with at least a score in one image (C, H, W)."""
        boxes = self._fixed.boxes_of(pixels[None], min_score)
        return boxes.cpu().numpy()
