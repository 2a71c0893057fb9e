"""A detector for YOLO segmentation models in ONNX, as YOLOv8-seg and YOLO11-seg export them.

The model's path comes from the environment, or from a factory of your own (a module on
``PYTHONPATH``, named with ``--detector my_models:trees``)::

    from functools import partial

    from detectors.onnx_yolo import make

    trees = partial(make, "/models/trees.onnx", gsd_m=0.1)

What the model must look like: one input (1 or any, 3, H, W), red, green, blue from 0 to 1; an
output (1, 4 + classes + K, anchors) of boxes (centre x, centre y, width, height, px of the input),
class scores from 0 to 1 and K mask coefficients (32 as a rule); and an output (1, K, H / 4, W / 4)
of prototypes.
Class names, and the input's size where the graph leaves it open, are in the file's metadata.

Tiles are never resized: a tile smaller than the input gets a grey border to the right and below,
and the default tile size is the input's, so that a pixel stays a pixel.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg import Instances

MODEL_VARIABLE = "GEOSEG_YOLO_MODEL"
"""Environment variable with the path of the model, where the factory gets none."""
GSD_VARIABLE = "GEOSEG_YOLO_GSD_M"
"""Environment variable with the metres per pixel that the model was trained at."""
GREY = 114 / 255
"""Border around a tile smaller than the input: what these networks saw in training."""
SCORE_FLOOR = 0.05
"""Detections below are never decoded; ``--min-score`` may go down to it."""
CELL_PX = 1.0
"""Largest cell of the mask grids, px: a quarter of a prototype's cell keeps its outline."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Form:
    """What a model file says of itself."""

    classes: tuple[str, ...]
    height: int
    """Rows of the input; 0 where any multiple of `stride` will do."""
    width: int
    """Columns of the input; 0 where any multiple of `stride` will do."""
    size: int
    """Side of the tiles that suit it, px."""
    stride: int
    """Px that the sides of the input must be a multiple of."""
    dtype: npt.DTypeLike
    """float32 or float16."""


class OnnxYolo:
    """Runs a YOLO segmentation model.

    Parameters
    ----------
    path : str or Path
        The ``.onnx`` file.
    gsd_m : float, optional
        Metres per pixel on the ground that the model was trained at; without it imagery runs at its
        own pixels.
    min_score : float
        Score threshold where ``--min-score`` gives none, in [0, 1].
    nms_iou : float
        Box IoU above which the lower-scored of two detections of one class is dropped.
    max_detections : int
        Cap a tile; a tile that reaches it is marked as saturated.
    full_scale : float, optional
        Pixel value that becomes 1; needed for anything but uint8.
    threads : int
        CPU threads of each worker; geoseg runs one worker per core.

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    FileNotFoundError, ValueError
        If the file does not exist or is no model of this form.
    """

    bands = ("red", "green", "blue")

    def __init__(
        self,
        path: str | Path,
        *,
        gsd_m: float | None = None,
        min_score: float = 0.25,
        nms_iou: float = 0.7,
        max_detections: int = 300,
        full_scale: float | None = None,
        threads: int = 1,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"model file {self.path} does not exist; check the path")
        self.threads = threads
        self._session = open_session(self.path, threads)
        self.form = read_form(self._session)
        self.classes = self.form.classes
        self.tile_size = self.form.size
        self.overlap = self.tile_size // 4
        self.gsd_m = gsd_m
        self.min_score = min_score
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.full_scale = full_scale
        weights = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self.fingerprint = f"onnx_yolo 1 {weights} {nms_iou} {max_detections} {full_scale}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session behind: it cannot travel to a worker."""
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again."""
        vars(self).update(state)
        self._session = open_session(self.path, self.threads)

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects in tiles (N, 3, H, W), one forward pass a tile."""
        return [self._find(tile) for tile in tiles]

    def _find(self, tile: npt.NDArray[Any]) -> Instances:
        """Find objects in one tile (3, H, W)."""
        image = pad_to_input(scaled(tile, self.full_scale), self.form)
        name = self._session.get_inputs()[0].name
        outputs = self._session.run(None, {name: image[None].astype(self.form.dtype)})
        predictions, prototypes = split_outputs(outputs, len(self.classes))
        return decode(
            predictions,
            prototypes,
            n_classes=len(self.classes),
            input_shape=(image.shape[1], image.shape[2]),
            tile_shape=(tile.shape[1], tile.shape[2]),
            nms_iou=self.nms_iou,
            max_detections=self.max_detections,
        )


def make(path: str | Path | None = None, **settings: Any) -> OnnxYolo:
    """Make a detector of a model file, or of the one that ``GEOSEG_YOLO_MODEL`` names.

    Parameters
    ----------
    path : str or Path, optional
        The ``.onnx`` file.
    **settings
        See `OnnxYolo`; ``gsd_m`` may also come from ``GEOSEG_YOLO_GSD_M``.

    Raises
    ------
    ValueError
        If neither names a file.
    """
    path = path or os.environ.get(MODEL_VARIABLE)
    if not path:
        raise ValueError(
            f"no model file; set {MODEL_VARIABLE}=/path/to/model.onnx, or name a factory of your "
            "own: functools.partial(make, '/path/to/model.onnx')"
        )
    if "gsd_m" not in settings and (gsd := os.environ.get(GSD_VARIABLE)):
        settings["gsd_m"] = float(gsd)
    return OnnxYolo(path, **settings)


# --- the file -------------------------------------------------------------------------------


def open_session(path: Path, threads: int) -> Any:
    """Open a model with onnxruntime, on a GPU where the installed onnxruntime has one.

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    """
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            "onnxruntime is not installed; run: pip install onnxruntime (or onnxruntime-gpu)"
        ) from error
    options = runtime.SessionOptions()
    # the default is all cores for every worker, which is slower than one for each
    options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    return runtime.InferenceSession(str(path), options, providers=providers)


def read_form(session: Any) -> Form:
    """Read classes and input of an open model.

    Raises
    ------
    ValueError
        If it is not a segmentation model of this form; the message says what differs.
    """
    about: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    inputs, outputs = session.get_inputs(), session.get_outputs()
    task = about.get("task", "segment")
    if task != "segment" or len(outputs) < 2:
        raise ValueError(
            f"the model's task is '{task}' with {len(outputs)} output(s); expected 'segment' with "
            "two: export a -seg model"
        )
    shape = inputs[0].shape
    # open dimensions are names
    many = isinstance(shape[0], int) and shape[0] != 1
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or many:
        raise ValueError(
            f"the model has {len(inputs)} input(s), the first of shape {shape}; expected one of "
            "(1, 3, H, W): export with batch=1 or dynamic=True"
        )
    stride = int(about.get("stride", 32))
    height, width = (side if isinstance(side, int) else 0 for side in shape[2:])
    hint = _literal(about.get("imgsz", "[640, 640]"), "imgsz")
    sides = hint if isinstance(hint, list | tuple) else [hint]
    return Form(
        classes=parse_names(about.get("names", "")),
        height=height,
        width=width,
        size=min(int(height or sides[0]), int(width or sides[-1])),
        stride=stride,
        dtype=np.float16 if inputs[0].type == "tensor(float16)" else np.float32,
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Read class names as the exporter writes them: ``{0: 'roof', 1: 'tree'}``, or a list.

    The text is read as a literal and never run.

    Raises
    ------
    ValueError
        If it is anything else, or the numbers are not 0, 1, 2, ...
    """
    names = _literal(text, "names")
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
        raise ValueError(
            f"the metadata's names are {text[:80]!r}; expected numbers from 0 to names, such as "
            "{0: 'roof', 1: 'tree'}"
        )
    return tuple(str(names[i]) for i in range(len(names)))


def _literal(text: str, key: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"the metadata's {key} are {text[:80]!r}, which is no literal; export the model anew"
        ) from error


# --- before the network ---------------------------------------------------------------------


def scaled(tile: npt.NDArray[Any], full_scale: float | None) -> Floats:
    """Bring pixels to 0 to 1.

    Raises
    ------
    TypeError
        If they are not uint8 and nobody said what is white.
    """
    if full_scale is None and tile.dtype != np.uint8:
        raise TypeError(
            f"pixels are {tile.dtype}; expected uint8, or full_scale= with the value of white"
        )
    share: Floats = tile.astype(np.float32) / np.float32(full_scale or 255)
    return np.clip(share, 0, 1)


def pad_to_input(image: Floats, form: Form) -> Floats:
    """Give an image (3, h, w) a grey border to the right and below, up to the input's size.

    Raises
    ------
    ValueError
        If the image is larger than the input: shrinking it would change the ground size.
    """
    h, w = image.shape[1:]
    height = form.height or -(-h // form.stride) * form.stride
    width = form.width or -(-w // form.stride) * form.stride
    if h > height or w > width:
        raise ValueError(
            f"the tile is {w} x {h} px but the model takes {width} x {height}; give --tile-size "
            f"{form.size} or less, or export with dynamic=True"
        )
    return np.pad(image, ((0, 0), (0, height - h), (0, width - w)), constant_values=GREY)


# --- behind the network ---------------------------------------------------------------------


def split_outputs(outputs: list[npt.NDArray[Any]], n_classes: int) -> tuple[Floats, Floats]:
    """Tell predictions from prototypes, and check that they belong together.

    Returns
    -------
    predictions : ndarray (4 + classes + K, anchors)
    prototypes : ndarray (K, h, w)

    Raises
    ------
    ValueError
        If the shapes are of another form, such as that of an export with nms=True.
    """
    flat = [o[0].astype(np.float32) for o in outputs if o.ndim == 3 and len(o) == 1]
    grids = [o[0].astype(np.float32) for o in outputs if o.ndim == 4 and len(o) == 1]
    shapes = [o.shape for o in outputs]
    if len(flat) != 1 or len(grids) != 1 or len(flat[0]) != 4 + n_classes + len(grids[0]):
        raise ValueError(
            f"the model's outputs are {shapes} for {n_classes} classes; expected "
            "(1, 4 + classes + K, anchors) and (1, K, h, w): export with nms=False, and "
            "end2end=False where the model has that"
        )
    return flat[0], grids[0]


def decode(
    predictions: Floats,
    prototypes: Floats,
    *,
    n_classes: int,
    input_shape: tuple[int, int],
    tile_shape: tuple[int, int],
    nms_iou: float = 0.7,
    max_detections: int = 300,
    score_floor: float = SCORE_FLOOR,
) -> Instances:
    """Make instances of a network's outputs.

    Parameters
    ----------
    predictions : ndarray (4 + classes + K, anchors)
        Boxes (centre x, centre y, width, height) in px of the input, scores, coefficients.
    prototypes : ndarray (K, h, w)
        Their weighted sum is a mask's logit.
    n_classes : int
        Rows of scores.
    input_shape, tile_shape : tuple of int
        (rows, cols) of the input, and of the tile in its upper left corner.
    nms_iou, max_detections, score_floor
        See `OnnxYolo` and `SCORE_FLOOR`.

    Returns
    -------
    Instances
        Best first, in px of the tile; boxes clipped to it.
    """
    scores_of = predictions[4 : 4 + n_classes]
    labels: Ints = scores_of.argmax(axis=0).astype(np.int64)
    scores: Floats = scores_of.max(axis=0)
    whole = corners(predictions[:4])
    height, width = tile_shape
    boxes: Floats = np.clip(whole, 0, np.array([width, height, width, height], np.float32))
    sound = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.isfinite(predictions).all(axis=0)
    rows = np.flatnonzero((scores >= score_floor) & sound)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    # compared as predicted: clipped ones would look more alike
    rows = rows[keep_best(whole[rows], labels[rows], nms_iou, max_detections + 1)]
    saturated = len(rows) > max_detections
    rows = rows[:max_detections]
    stride = (input_shape[0] / prototypes.shape[1], input_shape[1] / prototypes.shape[2])
    return Instances(
        boxes=boxes[rows],
        scores=np.clip(scores[rows], 0, 1),
        labels=labels[rows],
        masks=[
            mask_of(weights, prototypes, box, stride)
            for weights, box in zip(predictions[4 + n_classes :, rows].T, boxes[rows], strict=True)
        ],
        saturated=saturated,
    )


def corners(centred: Floats) -> Floats:
    """Turn (4, n) of centres and sizes into (n, 4) of corners."""
    half = centred[2:] / 2
    boxes: Floats = np.concatenate([centred[:2] - half, centred[:2] + half]).T
    return boxes


def keep_best(boxes: Floats, labels: Ints, max_iou: float, limit: int) -> Ints:
    """Drop what overlaps a better box of its class; return rows, of boxes that come best first."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    waiting = np.arange(len(boxes))
    kept: list[int] = []
    while len(waiting) and len(kept) < limit:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[waiting, :2])
        high = np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        iou = shared / (areas[best] + areas[waiting] - shared)
        waiting = waiting[(iou <= max_iou) | (labels[waiting] != labels[best])]
    return np.array(kept, np.int64)


def mask_of(
    weights: Floats, prototypes: Floats, box: Floats, stride: tuple[float, float]
) -> Floats:
    """Sample one object's mask at the cell centres of a grid on its box.

    Parameters
    ----------
    weights : ndarray (K,)
        Mask coefficients.
    prototypes : ndarray (K, h, w)
        Cells of `stride` px.
    box : ndarray (4,)
        x0, y0, x1, y1 in px of the input.
    stride : tuple of float
        (rows, cols) px a cell of the prototypes.

    Returns
    -------
    ndarray (m, n)
        Probabilities; cells of at most `CELL_PX`. Logits are interpolated, then squashed.
    """
    columns, part_x = _between(box[0], box[2], stride[1], prototypes.shape[2])
    rows, part_y = _between(box[1], box[3], stride[0], prototypes.shape[1])
    # only the cells around the box are summed up; the ring is for the neighbours of the last ones
    left, top = columns[0], rows[0]
    near = prototypes[:, top : rows[-1] + 2, left : columns[-1] + 2]
    logits = np.pad(np.tensordot(weights, near, axes=1), ((0, 1), (0, 1)), mode="edge")
    columns, rows = columns - left, rows - top
    down = logits[rows] * (1 - part_y)[:, None] + logits[rows + 1] * part_y[:, None]
    across = down[:, columns] * (1 - part_x) + down[:, columns + 1] * part_x
    probabilities: Floats = 1 / (1 + np.exp(-np.clip(across, -60, 60)))
    return probabilities.astype(np.float32)


def _between(low: float, high: float, stride: float, cells: int) -> tuple[Ints, Floats]:
    """Return, for points from `low` to `high` px, the cell before and the share of the next."""
    n = max(1, int(np.ceil((high - low) / CELL_PX)))
    points = (low + (np.arange(n) + 0.5) * (high - low) / n) / stride - 0.5
    points = np.clip(points, 0, cells - 1)
    before = np.floor(points).astype(np.int64)
    return before, (points - before).astype(np.float32)
