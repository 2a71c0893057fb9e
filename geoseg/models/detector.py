"""The detector protocol, version 1: what geoseg asks of anything that finds objects in tiles."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from geoseg.errors import ModelError
from geoseg.records import Instances


@runtime_checkable
class Detector(Protocol):
    """Anything with class names that maps tiles to instances.

    Optional attributes: ``gsd_m`` (float, metres), ``bands`` (tuple of names, as many as the
    detector wants), ``tile_size`` and ``overlap`` (int, px), ``min_score`` (float),
    ``fingerprint`` (str, changes with the weights), ``dtype`` (name of a numpy type) and
    ``value_range`` (lowest and highest pixel value): a detector that declares them gets its pixels
    so, scaled where the raster holds others.
    """

    classes: tuple[str, ...]
    """Class names; labels are indices into it."""

    def __call__(self, tiles: npt.NDArray[Any]) -> list[Instances]:
        """Find objects.

        Parameters
        ----------
        tiles : ndarray (N, C, H, W)
            Pixels as they are in the raster: dtype kept, bands as selected, invalid pixels 0. With
            ``value_range`` declared: of that range, and of the declared ``dtype``.

        Returns
        -------
        list of Instances
            One record a tile, in px of the tile.
        """
        ...


def load_detector(spec: str) -> Detector:
    """Make a user's detector from ``package.module:factory``.

    Raises
    ------
    ModelError
        If the module or the factory does not exist, the factory raises, or what it returns is no
        detector.
    """
    module_name, _, factory_name = spec.partition(":")
    if not module_name or not factory_name:
        raise ModelError(f"--detector is '{spec}'; expected package.module:factory")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(
            f"--detector {spec}: cannot import {module_name} ({error}); is it installed, or does "
            "PYTHONPATH name its folder?"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ModelError(f"--detector {spec}: {module_name} has no callable '{factory_name}'")
    try:
        made: Any = factory()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"--detector {spec}: the factory raised {error!r}") from error
    classes = getattr(made, "classes", None)
    if not callable(made) or not isinstance(classes, tuple) or not classes:
        raise ModelError(
            f"--detector {spec}: the factory returned {type(made).__name__}; expected a "
            "callable with classes: tuple[str, ...] (geoseg.Detector)"
        )
    detector: Detector = made
    return detector
