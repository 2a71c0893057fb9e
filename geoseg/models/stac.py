"""Model cards as STAC items, by the Machine Learning Model extension (MLM).

References
----------
https://github.com/stac-extensions/mlm, version 1.4.0: the fields; STAC 1.1.0: items.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geoseg.models.card import ModelCard

STAC_VERSION = "1.1.0"
MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
ARTIFACTS = {
    ".safetensors": ("application/octet-stream; application=safetensors", "safetensors"),
    ".pth": ("application/octet-stream; application=pytorch", "torch.save"),
}
"""Suffix of a weights file to media type and kind of artifact."""


def stac_item(card: ModelCard, weights: str, parameters: int | None = None) -> dict[str, Any]:
    """Return a STAC item that describes a model.

    Parameters
    ----------
    card : ModelCard
        What is known of the model.
    weights : str
        Where its weights are: a path or a URL.
    parameters : int, optional
        How many weights it has.

    Returns
    -------
    dict
        JSON values. The item has no place on earth (``geometry`` is null), for a card does not
        tell where its training data lie.
    """
    kind, artifact = ARTIFACTS.get(Path(weights).suffix, ARTIFACTS[".pth"])
    properties: dict[str, Any] = {
        "datetime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "title": card.name,
        "description": card.description or card.name,
        "license": "other",
        "mlm:name": _mlm_name(card.name),
        "mlm:architecture": "Mask R-CNN" if card.has_masks else "Faster R-CNN",
        "mlm:tasks": [_task(card)],
        "mlm:framework": "PyTorch",
        "mlm:pretrained": True,
        "mlm:input": [_input(card)],
        "mlm:output": [_output(card)],
        "mlm:hyperparameters": {
            "min_score": card.min_score,
            "nms_iou": card.nms_iou,
            "max_detections": card.max_detections,
            "proposals": card.proposals,
            "tile_size": card.tile_size,
            "overlap": card.overlap,
        },
        "geoseg:licence": card.licence,
        "geoseg:credits": list(card.credits),
    }
    if card.gsd_m is not None:
        properties["gsd"] = card.gsd_m
    if parameters is not None:
        properties["mlm:total_parameters"] = parameters
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [MLM],
        "id": _mlm_name(card.name),
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {
            "model": {
                "href": weights,
                "type": kind,
                "title": f"Weights of {card.name}",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": artifact,
            }
        },
    }


def _mlm_name(name: str) -> str:
    """Return a name of letters, digits, '.', '_' and '-', as the extension's schema wants it."""
    plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name).strip("-_.")
    return plain if re.match(r"[a-zA-Z]", plain) else f"model-{plain}"


def _task(card: ModelCard) -> str:
    return "instance-segmentation" if card.has_masks else "object-detection"


def _input(card: ModelCard) -> dict[str, Any]:
    low, high = card.value_range
    width = high - low
    return {
        "name": "tiles",
        "description": "Tiles at their own pixels: they are not resized.",
        "bands": list(card.bands),
        "input": {
            "shape": [-1, len(card.bands), card.tile_size, card.tile_size],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": card.dtype,
        },
        "value_scaling": [
            {"type": "z-score", "mean": low + mean * width, "stddev": std * width}
            for mean, std in zip(card.mean, card.std, strict=True)
        ],
        "resize_type": None,
    }


def _output(card: ModelCard) -> dict[str, Any]:
    cells = card.mask_size
    return {
        "name": "masks" if card.has_masks else "boxes",
        "description": "Boxes (px), scores and labels, and for each a grid of probabilities on "
        "its box."
        if card.has_masks
        else "Boxes (px), scores and labels; an object is its box.",
        "tasks": [_task(card)],
        "result": {
            "shape": [-1, cells, cells] if card.has_masks else [-1, 4],
            "dim_order": ["instance", "height", "width"]
            if card.has_masks
            else ["instance", "corner"],
            "data_type": "float32",
        },
        "classification:classes": [
            {"value": i, "name": _mlm_name(name), "title": name}
            for i, name in enumerate(card.classes)
        ],
        "post_processing_function": None,
    }
