"""Make a model, safetensors and card, of a checkpoint of another program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, save_model


def convert(
    checkpoint: str | Path,
    output: Path,
    *,
    config: str | Path | None = None,
    classes: Sequence[str] = (),
    gsd_m: float | None = None,
    licence: str | None = None,
) -> ModelCard:
    """Write a checkpoint as safetensors with a card; the same input gives the same bytes.

    Parameters
    ----------
    checkpoint : str or Path
        With `config` a Detectron2 file (``.pth``, ``.pt``, ``.pkl``, ``.safetensors``), without
        it whatever `geoseg.load_model` takes.
    output : Path
        Ends in ``.safetensors``; the card goes beside it as ``.json``.
    config : str or Path, optional
        Detectron2's ``config.yaml``, or the name of one of its standard files.
    classes : sequence of str
        Names in the order of the labels; by default those that are known.
    gsd_m : float, optional
        Ground metres per pixel that the model was trained at; by default what is known.
    licence : str, optional
        Licence of the weights; by default what is known.

    Returns
    -------
    ModelCard
        As written.

    Raises
    ------
    ModelError
        If the checkpoint or its configuration cannot be used, or the number of classes differs.
    """
    from geoseg.models.detectron2 import read_detectron2
    from geoseg.models.maskrcnn import Architecture, build_maskrcnn, load_weights
    from geoseg.models.registry import open_model

    if output.suffix != ".safetensors":
        raise ModelError(f"{output} is no name of a model; expected one ending in .safetensors")
    if config is None:
        card, weights = open_model(checkpoint)
    else:
        card, weights = read_detectron2(Path(checkpoint), config)
    if classes and len(classes) != len(card.classes):
        raise ModelError(
            f"{len(classes)} classes are named, but {checkpoint} tells {len(card.classes)} apart; "
            "name each, in the order of the labels"
        )
    if not all(classes) or len(set(classes)) < len(classes):
        raise ModelError(f"classes are {', '.join(classes)}; expected a different name for each")
    card = replace(
        card,
        name=output.stem,
        classes=tuple(classes) or card.classes,
        gsd_m=card.gsd_m if gsd_m is None else gsd_m,
        licence=card.licence if licence is None else licence,
    )
    model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
    load_weights(model, weights, Path(checkpoint))
    save_model(output, model, card)
    return card
