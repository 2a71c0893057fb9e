"""Names of models and how they become detectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, read_card

if TYPE_CHECKING:
    from geoseg.models.inference import MaskRCNNDetector

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped models lie."""
DEFAULT_MODEL = "buildings"


def shipped_models() -> dict[str, Path]:
    """Return the shipped models, name to weights file."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}


def find_model(name_or_path: str | Path) -> Path:
    """Return the weights file of a model's name or path.

    Raises
    ------
    ModelError
        If it is neither; the message lists the names.
    """
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    known = ", ".join(shipped) or "none"
    if path.suffix == ".safetensors":
        raise ModelError(f"model file {path} does not exist; check the path (shipped: {known})")
    raise ModelError(
        f"unknown model '{name_or_path}'; expected one of the shipped models ({known}) or a path "
        "ending in .safetensors with its card beside it"
    )


def find_card(name_or_path: str | Path) -> ModelCard:
    """Return a model's card without loading weights or torch."""
    return read_card(find_model(name_or_path))


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    min_score: float | None = None,
) -> MaskRCNNDetector:
    """Load a model as a detector.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a shipped model, or the path of a ``.safetensors`` file with its card beside it.
    device : str
        'auto' (CUDA where there is one), 'cpu' or 'cuda'.
    min_score : float, optional
        Score threshold in [0, 1]; the card's where not given.

    Returns
    -------
    MaskRCNNDetector
        A `geoseg.Detector`; its ``card`` tells classes, GSD and quality.

    Raises
    ------
    ModelError
        If the model is unknown or broken, or the device does not exist.
    """
    from geoseg.models.inference import load_maskrcnn

    return load_maskrcnn(find_model(name_or_path), device=device, min_score=min_score)
