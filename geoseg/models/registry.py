"""Names of models and how they become detectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, load_card_and_weights, read_card
from geoseg.models.known import (
    CHECKPOINTS,
    KNOWN,
    TIMM_PREFIX,
    known_card,
    open_checkpoint,
    split_name,
    weights_file,
)

if TYPE_CHECKING:
    from torch import Tensor

    from geoseg.models.inference import MaskRCNNDetector

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped models lie."""
DEFAULT_MODEL = "buildings"


def shipped_models() -> dict[str, Path]:
    """Return the shipped models, name to weights file."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}


def find_model(name_or_path: str | Path) -> Path:
    """Return the weights file of a model's name or path.

    A known model's weights are downloaded where they are not there yet.

    Parameters
    ----------
    name_or_path : str or Path
        A shipped or known model, ``NAME@FILE`` (a known one with the weights of a file), or the
        path of a ``.safetensors`` or ``.pth`` file.

    Raises
    ------
    ModelError
        If it is none of these; the message lists the names.
    """
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    model, path = split_name(name_or_path)
    if path is None and model is not None:
        return weights_file(model)
    names = ", ".join([*shipped, *KNOWN, f"{TIMM_PREFIX}BACKBONE"])
    if path is not None and path.suffix in (".safetensors", *CHECKPOINTS):
        if path.is_file():
            return path
        raise ModelError(f"model file {path} does not exist; check the path (names: {names})")
    raise ModelError(
        f"unknown model '{name_or_path}'; expected one of the shipped models ("
        f"{', '.join(shipped) or 'none'}), one of the known ({names}), or a path ending in "
        ".safetensors or .pth"
    )


def find_card(name_or_path: str | Path) -> ModelCard:
    """Return a model's card; only that of a ``.pth`` file without one needs its weights."""
    model, path = split_name(name_or_path)
    if model is not None and path is None:
        return known_card(model)
    return (
        read_card(find_model(name_or_path))
        if _has_card(name_or_path)
        else (open_model(name_or_path)[0])
    )


def _has_card(name_or_path: str | Path) -> bool:
    path = find_model(name_or_path)
    return path.suffix == ".safetensors" or path.with_suffix(".json").is_file()


def open_model(name_or_path: str | Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Return the card and the float32 weights of a model's name or path.

    Raises
    ------
    ModelError
        If it is unknown, or its file is broken or holds what could run code.
    """
    path = find_model(name_or_path)
    if path.suffix in CHECKPOINTS:
        return open_checkpoint(path, split_name(name_or_path)[0])
    return load_card_and_weights(path)


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL,
    *,
    weights: str | Path | None = None,
    config: str | Path | None = None,
    device: str = "auto",
    min_score: float | None = None,
    max_detections: int | None = None,
    proposals: int | None = None,
    nms_iou: float | None = None,
    exact: bool = False,
    precision: str = "auto",
    limits: Mapping[str, float] | None = None,
) -> MaskRCNNDetector:
    """Load a model as a detector.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a shipped or known model (``geoseg models`` lists them), or the path of a
        ``.safetensors`` file with its card beside it, or of a ``.pth`` file with weights in
        torchvision's naming.
    weights : str or Path, optional
        Weights file of a known model, instead of a download.
    config : str or Path, optional
        ``config.yaml`` of Detectron2, or the name of one of its standard files; `name_or_path` is
        then its checkpoint: ``.pth``, or a ``.pkl`` of its model zoo.
    device : str
        'auto' (CUDA where there is one), 'cpu' or 'cuda'.
    min_score : float, optional
        Score threshold in [0, 1]; the card's where not given.
    max_detections : int, optional
        Cap of detections a tile; the card's where not given.
    proposals : int, optional
        Boxes handed from the region proposal network to the heads, a tile; the card's.
    nms_iou : float, optional
        Box IoU above which the lower-scored of two detections is dropped; the card's.
    exact : bool
        Torchvision's numbers to the last bits, in two to four times the time on a CPU.
    precision : str
        'float32' or 'bfloat16', unless exact; 'fast', as runs have it: bfloat16 on a GPU, and on a
        CPU that has matrix units for it (AMX); 'auto': the same, but float32 for networks of
        torchvision and Detectron2, whose numbers one may want to find again.
    limits : mapping, optional
        Further limits instead of the card's, by their names there: ``rpn_pre_nms``,
        ``rpn_nms_iou``, ``rpn_min_size``, ``min_side_px``, and those above.

    Returns
    -------
    MaskRCNNDetector
        A `geoseg.Detector`; its ``card`` tells classes, GSD and quality.

    Raises
    ------
    ModelError
        If the model is unknown or broken, or the device does not exist.
    """
    from geoseg.models.inference import make_detector

    own: dict[str, float | None] = {
        "max_detections": max_detections, "proposals": proposals, "nms_iou": nms_iou,
        **(limits or {}),
    }  # fmt: skip
    if config is not None:
        from geoseg.models.detectron2 import load_detectron2

        if weights is not None:
            raise ModelError("config= goes with a Detectron2 checkpoint, which is its own weights")
        return load_detectron2(
            Path(name_or_path),
            config,
            device=device,
            min_score=min_score,
            exact=exact,
            precision=precision,
            **own,
        )
    if weights is not None:
        if split_name(name_or_path)[0] is None:
            raise ModelError(
                f"weights={weights} goes with a known model ({', '.join(KNOWN)}), not with "
                f"'{name_or_path}'; name the file itself instead"
            )
        name_or_path = f"{name_or_path}@{weights}"
    card, tensors = open_model(name_or_path)
    return make_detector(
        card,
        tensors,
        find_model(name_or_path),
        device=device,
        min_score=min_score,
        exact=exact,
        precision=precision,
        **own,
    )
