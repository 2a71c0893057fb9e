"""A detector that prompts: points or boxes go to a model such as Segment Anything, masks come back.

It takes any predictor with the two calls of SAM's and SAM 2's image predictors,
``set_image(image)`` and ``predict(point_coords=, point_labels=, box=, multimask_output=)``, and
imports neither. A module of yours, on ``PYTHONPATH`` and named with ``--detector my_sam:make``,
puts the pieces together::

    import torch
    from segment_anything import SamPredictor, sam_model_registry

    from detectors.coloured_roofs import ColouredRoofs
    from detectors.segment_anything import BoxPrompts, PointPrompts


    def make():
        sam = sam_model_registry["vit_b"](checkpoint="/models/sam_vit_b_01ec64.pth")
        sam.to("cuda" if torch.cuda.is_available() else "cpu")
        return PointPrompts(SamPredictor(sam), fingerprint="sam_vit_b_01ec64")

With boxes, ``return BoxPrompts(SamPredictor(sam), ColouredRoofs(), fingerprint=...)``: the
prompter, any detector, finds and names the objects and the predictor draws their outlines.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geoseg import Detector, Instances

Mask = npt.NDArray[np.bool_]


class Predictor(Protocol):
    """What SAM's ``SamPredictor`` and SAM 2's ``SAM2ImagePredictor`` have in common."""

    def set_image(self, image: npt.NDArray[np.uint8]) -> None:
        """Take an image (H, W, 3), red, green, blue, for the calls that follow."""
        ...

    def predict(
        self,
        point_coords: npt.NDArray[np.float32] | None = None,
        point_labels: npt.NDArray[np.int32] | None = None,
        box: npt.NDArray[np.float32] | None = None,
        *,
        multimask_output: bool = True,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Segment what a prompt shows.

        Parameters
        ----------
        point_coords : ndarray (n, 2), optional
            x, y in px.
        point_labels : ndarray (n,), optional
            1 = on the object.
        box : ndarray (4,), optional
            x0, y0, x1, y1 in px.
        multimask_output : bool
            Three masks of different extent, or one.

        Returns
        -------
        masks (C, H, W), of 0 and 1; estimates of their IoU with the truth (C,); logits.
        """
        ...


class Found(NamedTuple):
    """One object."""

    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in px of the tile."""
    score: float
    label: int
    mask: npt.NDArray[np.float32]
    """(h, w) of 0 and 1, one cell a pixel."""


class PointPrompts:
    """Asks for the object under each point of a grid.

    Parameters
    ----------
    predictor : Predictor
        Segments what a prompt shows.
    fingerprint : str
        Names the weights; a resumed run goes on only with the same.
    spacing_px : int
        Distance of the points; objects narrower than that may fall between them.
    class_name : str
        What the objects are called: a prompt model knows outlines, not names.
    min_quality : float
        Masks whose estimated IoU is lower are left out, in [0, 1]; the estimate is the score.
    min_area_px, max_area_share : float
        Smaller masks, px, and masks of more than this share of a tile (the ground) are left out.
    gsd_m : float, optional
        Metres per pixel on the ground to work at; without it imagery runs at its own pixels.

    Raises
    ------
    ValueError
        If `spacing_px` is below 1.

    Notes
    -----
    A point that an accepted mask covers is not asked again. What is still found twice geoseg joins:
    of masks in one tile that overlap by half, the better scored stays.
    """

    bands = ("red", "green", "blue")
    tile_size = 1024
    overlap = 256

    def __init__(
        self,
        predictor: Predictor,
        *,
        fingerprint: str,
        spacing_px: int = 32,
        class_name: str = "object",
        min_quality: float = 0.8,
        min_area_px: float = 64,
        max_area_share: float = 0.2,
        gsd_m: float | None = None,
    ) -> None:
        if spacing_px < 1:
            raise ValueError(f"spacing_px is {spacing_px}; expected at least 1")
        self.predictor = predictor
        self.classes = (class_name,)
        self.spacing_px = spacing_px
        self.min_quality = min_quality
        self.min_area_px = min_area_px
        self.max_area_share = max_area_share
        self.gsd_m = gsd_m
        self.fingerprint = (
            f"points 1 {fingerprint} {spacing_px} {min_quality} {min_area_px} {max_area_share}"
        )

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects in tiles (N, 3, H, W) of uint8."""
        return [self._find(tile) for tile in tiles]

    def _find(self, tile: npt.NDArray[Any]) -> Instances:
        self.predictor.set_image(to_image(tile))
        seen = np.zeros(tile.shape[1:], bool)
        found: list[Found] = []
        for x, y in grid_points(seen.shape, self.spacing_px):
            if seen[int(y), int(x)]:
                continue
            masks, qualities, _ = self.predictor.predict(
                point_coords=np.array([[x, y]], np.float32),
                point_labels=np.ones(1, np.int32),
                multimask_output=True,
            )
            best = int(np.argmax(qualities))
            quality = float(np.clip(qualities[best], 0, 1))
            mask = np.asarray(masks[best]) > 0.5
            area = np.count_nonzero(mask)
            if quality < self.min_quality or area > self.max_area_share * mask.size:
                continue
            if area < max(self.min_area_px, 1):
                continue
            seen |= mask
            box, piece = cut_out(mask)
            found.append(Found(box, quality, 0, piece))
        return as_instances(found)


class BoxPrompts:
    """Lets another detector find the objects, and the predictor draw their outlines.

    Parameters
    ----------
    predictor : Predictor
        Segments what a prompt shows.
    prompter : Detector
        Finds boxes, scores and classes; its masks are not used. Its bands, tile size, GSD and
        threshold become this detector's.
    fingerprint : str
        Names the predictor's weights; a resumed run goes on only with the same.
    min_quality : float
        Where the estimated IoU of the mask is lower, the prompter's own mask stays, in [0, 1].
    """

    def __init__(
        self,
        predictor: Predictor,
        prompter: Detector,
        *,
        fingerprint: str,
        min_quality: float = 0.5,
    ) -> None:
        self.predictor = predictor
        self.prompter = prompter
        self.classes = prompter.classes
        self.min_quality = min_quality
        for name in ("bands", "tile_size", "overlap", "gsd_m", "min_score"):
            if hasattr(prompter, name):
                setattr(self, name, getattr(prompter, name))
        about = getattr(prompter, "fingerprint", None) or repr(vars(prompter))
        self.fingerprint = f"boxes 1 {fingerprint} {min_quality} {about}"

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects in tiles (N, 3, H, W) of uint8."""
        prompts = self.prompter(tiles)
        return [self._refine(tile, found) for tile, found in zip(tiles, prompts, strict=True)]

    def _refine(self, tile: npt.NDArray[Any], prompts: Instances) -> Instances:
        """Draw anew what the prompter found in one tile (3, H, W)."""
        if len(prompts) == 0:
            return prompts
        self.predictor.set_image(to_image(tile))
        boxes = prompts.boxes.copy()
        masks = [np.asarray(mask, np.float32) for mask in prompts.masks]
        for row, box in enumerate(prompts.boxes):
            drawn, qualities, _ = self.predictor.predict(box=box, multimask_output=False)
            mask = np.asarray(drawn[0]) > 0.5
            if qualities[0] >= self.min_quality and mask.any():
                boxes[row], masks[row] = cut_out(mask)
        return Instances(boxes, prompts.scores, prompts.labels, masks, prompts.saturated)


def to_image(tile: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Turn a tile (3, H, W) into an image (H, W, 3).

    Raises
    ------
    TypeError
        If it is not three bands of uint8: what to make of others is no question for a guess.
    """
    if tile.dtype != np.uint8 or len(tile) != 3:
        raise TypeError(
            f"tiles have {len(tile)} band(s) of {tile.dtype}; expected red, green, blue of uint8"
        )
    return np.ascontiguousarray(tile.transpose(1, 2, 0))


def grid_points(shape: tuple[int, ...], spacing_px: int) -> npt.NDArray[np.float64]:
    """Return points (n, 2), x and y in px, spread evenly over an image, row by row.

    Examples
    --------
    >>> grid_points((20, 40), 20).tolist()
    [[10.0, 10.0], [30.0, 10.0]]
    """
    counts = [max(1, round(side / spacing_px)) for side in shape]
    ys, xs = ((np.arange(n) + 0.5) * side / n for n, side in zip(counts, shape, strict=True))
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def cut_out(mask: Mask) -> tuple[tuple[int, int, int, int], npt.NDArray[np.float32]]:
    """Return the box of a mask's largest piece, and that piece within the box.

    A stray pixel far away would otherwise stretch the box, to the edge of the tile perhaps.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, x0 = int(rows[0]), int(columns[0])
    pieces, _ = ndimage.label(mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1], np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    y, x = ndimage.find_objects(pieces)[largest - 1]
    box = (x0 + x.start, y0 + y.start, x0 + x.stop, y0 + y.stop)
    return box, (pieces[y, x] == largest).astype(np.float32)


def as_instances(found: list[Found]) -> Instances:
    """Put objects into one record."""
    if not found:
        return Instances.empty()
    return Instances(
        boxes=np.array([f.box for f in found], np.float32),
        scores=np.array([f.score for f in found], np.float32),
        labels=np.array([f.label for f in found], np.int64),
        masks=[f.mask for f in found],
    )
