"""The detector protocol, version 1: what geoseg asks of anything that finds objects in tiles."""

from __future__ import annotations

import importlib
import unicodedata
from collections import Counter
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from geoseg.errors import ModelError
from geoseg.records import Instances

MAX_CLASS_NAME = 1_000
"""Characters that the name of a class may have."""


@runtime_checkable
class Detector(Protocol):
    """Anything with class names that maps tiles to instances.

    Optional attributes: ``gsd_m`` (float, metres), ``bands`` (tuple of names, as many as the
    detector wants), ``tile_size`` and ``overlap`` (int, px), ``min_score`` (float),
    ``fingerprint`` (str, changes with the weights), ``object_size_m`` (float, metres: of its small
    objects, for ``--small-objects``), ``dtype`` (name of a numpy type) and
    ``value_range`` (lowest and highest pixel value): a detector that declares them gets its pixels
    so, scaled where the raster holds others. One that several threads may call at once says so
    (``side_by_side``, bool); others are called from one thread, always the same.
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
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ModelError(f"--detector {spec}: importing {module_name} raised {error!r}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ModelError(f"--detector {spec}: {module_name} has no callable '{factory_name}'")
    try:
        made: Any = factory()
    except (Exception, SystemExit) as error:
        raise ModelError(f"--detector {spec}: the factory raised {error!r}") from error
    classes = getattr(made, "classes", None)
    if not callable(made) or not isinstance(classes, tuple) or not classes:
        raise ModelError(
            f"--detector {spec}: the factory returned {type(made).__name__}; expected a "
            "callable with classes: tuple[str, ...] (geoseg.Detector)"
        )
    check_detector(made, f"--detector {spec}")
    detector: Detector = made
    return detector


def check_detector(made: Any, where: str) -> None:
    """Refuse a detector whose attributes are not what the protocol says.

    Parameters
    ----------
    made : object
        Has ``classes``.
    where : str
        What it is, for the message.

    Raises
    ------
    ModelError
        If a class has no usable name, or an optional attribute is out of range.
    """
    check_classes(made.classes, where)
    for name, least, most in _RANGES:
        value = getattr(made, name, None)
        if value is None:
            continue
        whole = name in _WHOLE
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise ModelError(
                f"{where}: {name} is {value!r}; expected a {'whole ' * whole}number from {least:g} "
                f"to {most:g}, or no such attribute"
            )
    bands = getattr(made, "bands", None)
    if bands is not None and not (
        isinstance(bands, tuple | list) and bands and all(isinstance(b, str) for b in bands)
    ):
        raise ModelError(f"{where}: bands is {bands!r}; expected a tuple of names, one per band")


_WHOLE = ("tile_size", "overlap")
_RANGES = (("gsd_m", 0.001, 1000), ("min_score", 0, 1), ("tile_size", 32, 8192),
           ("overlap", 0, 8191), ("object_size_m", 0.05, 1000))  # fmt: skip


def check_classes(classes: Any, where: str) -> None:
    """Refuse class names that are none, or that two classes share.

    Names become fields, labels and values in files of every kind: any text does that can be seen.

    Raises
    ------
    ModelError
        If one is no text, is empty or too long, has characters that control a terminal or that
        no file can hold, or stands there twice.
    """
    for name in classes:
        if not isinstance(name, str):
            raise ModelError(f"{where}: class {name!r} is {type(name).__name__}; expected text")
        if not name.strip() or len(name) > MAX_CLASS_NAME:
            raise ModelError(
                f"{where}: class {name[:40]!r} has {len(name)} characters; expected 1 to "
                f"{MAX_CLASS_NAME} that are not only spaces"
            )
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
            raise ModelError(
                f"{where}: class {name[:40]!a} has control characters or line breaks; give it a "
                "name that can be printed"
            )
    if doubled := [name for name, n in Counter(classes).items() if n > 1]:
        raise ModelError(
            f"{where}: class {doubled[0]!r} is named {Counter(classes)[doubled[0]]} times; two "
            "classes of one name would be counted as one"
        )
