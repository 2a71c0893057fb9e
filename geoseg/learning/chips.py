"""Chips that are cut from training sites on the fly.

A chip is a square of the working grid under a random similarity: the image is resampled once and
the label polygons go through the same map, so that boxes and masks stay exact, which a map of
rasterized masks would not leave them. Light and colour then vary by torchvision.transforms.v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
import torch
import torch.nn.functional as F
from rasterio.features import rasterize
from torch import Tensor
from torchvision.transforms import v2

from geoseg.learning.labels import MIN_SIDE_PX, Site


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How chips vary; each range is (low, high)."""

    scale: tuple[float, float] = (0.75, 1.35)
    """Zoom of the chip relative to the working GSD."""
    any_turn: float = 0.5
    """Share of chips turned by any angle; the others by quarter turns."""
    colour: float = 1.0
    """Strength of brightness, contrast, colour, blur and noise; 0 switches them off."""


class ChipSampler:
    """Endless chips, each a pure function of (seed, number).

    Parameters
    ----------
    sites : sequence of Site
        Drawn by their weights, so that a large site does not drown the small ones.
    chip_px : int
        Side of a chip.
    seed : int
        Same seed, same chips, in any process and after any interruption.
    """

    def __init__(
        self, sites: Sequence[Site], chip_px: int, seed: int, augmentation: Augmentation
    ) -> None:
        self.sites = tuple(sites)
        self.chip_px = chip_px
        self.seed = seed
        self.augmentation = augmentation
        weights = np.array([s.weight for s in self.sites])
        self.shares = weights / weights.sum()
        self._trees = [shapely.STRtree(s.polygons) for s in self.sites]

    def chip(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return chip ``number``: pixels (3, S, S) in [0, 1] and torchvision's target."""
        rng = np.random.default_rng((self.seed, number))
        which = int(rng.choice(len(self.sites), p=self.shares))
        site = self.sites[which]
        matrix = self._similarity(site, rng)
        pixels, valid = _resample(site, matrix, self.chip_px)
        pixels = _vary_colour(pixels, rng, self.augmentation.colour) * valid
        return pixels, self._target(site, self._trees[which], matrix)

    def _similarity(self, site: Site, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw the (2, 3) map from chip px to site px."""
        half = self.chip_px / 2
        if rng.random() < 0.5:
            centre = (
                shapely.get_coordinates(
                    shapely.centroid(site.polygons[rng.integers(len(site.polygons))])
                )[0]
                + rng.uniform(-0.6, 0.6, 2) * half
            )
        else:
            x0, y0, x1, y1 = shapely.bounds(site.aoi)
            centre = rng.uniform((x0, y0), (x1, y1))
        low, high = np.log(self.augmentation.scale)
        zoom = float(np.exp(rng.uniform(low, high)))
        turn = float(rng.integers(4)) * np.pi / 2
        if rng.random() < self.augmentation.any_turn:
            turn = float(rng.uniform(0, 2 * np.pi))
        cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
        return np.column_stack([linear, centre - linear @ [half, half]])

    def _target(
        self, site: Site, tree: shapely.STRtree, matrix: npt.NDArray[np.float64]
    ) -> dict[str, Tensor]:
        """Return boxes, labels and masks of the objects in the chip, cut at its edge."""
        size = self.chip_px
        frame = shapely.box(0, 0, size, size)
        seen = shapely.transform(frame, lambda xy: xy @ matrix[:, :2].T + matrix[:, 2])
        rows = np.sort(tree.query(seen, predicate="intersects"))
        inverse = np.linalg.inv(matrix[:, :2])
        polygons = shapely.intersection(
            shapely.transform(site.polygons[rows], lambda xy: (xy - matrix[:, 2]) @ inverse.T),
            frame,
        )
        boxes = shapely.bounds(polygons)
        with np.errstate(invalid="ignore"):
            keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE_PX).all(axis=1)
        polygons, boxes, rows = polygons[keep], boxes[keep], rows[keep]
        masks = np.stack(
            [rasterize([p], out_shape=(size, size), dtype=np.uint8) for p in polygons]
            or [np.zeros((size, size), np.uint8)]
        )[: len(polygons)]
        return {
            "boxes": torch.from_numpy(boxes.astype(np.float32).reshape(-1, 4)),
            "labels": torch.from_numpy(site.labels[rows] + 1),
            "masks": torch.from_numpy(masks),
        }


def _resample(site: Site, matrix: npt.NDArray[np.float64], size: int) -> tuple[Tensor, Tensor]:
    """Return pixels (3, S, S) in [0, 1] and validity (1, S, S), bilinear."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ matrix[:, :2].T
    corners = corners + matrix[:, 2]
    height, width = site.valid.shape
    left, top = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, (width - 1, height - 1))
    right, bottom = np.clip(
        np.ceil(corners.max(0)).astype(int) + 1, (left + 1, top + 1), (width, height)
    )
    crop = torch.from_numpy(site.pixels[:, top:bottom, left:right].astype(np.float32) / 255)
    inside = torch.from_numpy(site.valid[top:bottom, left:right].astype(np.float32))
    centres = np.arange(size) + 0.5
    xy = np.stack(np.meshgrid(centres, centres), -1) @ matrix[:, :2].T + matrix[:, 2]
    xy = 2 * (xy - (left, top)) / (right - left, bottom - top) - 1
    grid = torch.from_numpy(xy.astype(np.float32))[None]
    both = torch.cat([crop, inside[None]])[None]
    out = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    valid = out[3:] > 0.5
    return out[:3], valid


def _vary_colour(pixels: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Change light, colour, sharpness and noise as cameras and seasons do."""
    if strength == 0:
        return pixels
    # what v2 has no transform for: white balance and exposure's curve
    gain = np.exp(rng.normal(0, 0.05 * strength, 3)).astype(np.float32)
    gamma = float(np.exp(rng.normal(0, 0.2 * strength)))
    out = v2.functional.adjust_gamma(
        (pixels * torch.from_numpy(gain)[:, None, None]).clamp(0, 1), gamma
    )
    # v2 draws from torch's own generator, which belongs to the training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        varied: Tensor = _colours(strength)(out)
    return varied.clamp(0, 1)


def _colours(strength: float) -> v2.Transform:
    """Return the photometric part of the augmentation at a strength; 1 is the usual one."""
    often = min(1.0, strength)
    return v2.Compose(
        [
            v2.ColorJitter(
                brightness=min(0.9, 0.3 * strength),
                contrast=min(0.9, 0.3 * strength),
                saturation=min(0.9, 0.4 * strength),
                hue=min(0.5, 0.03 * strength),
            ),
            v2.RandomApply([v2.GaussianBlur(3, (0.3, 1.2))], p=0.25 * often),
            v2.RandomApply([v2.GaussianNoise(sigma=0.02)], p=0.3 * often),
        ]
    )
