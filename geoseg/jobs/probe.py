"""What a worker says about itself, so that a cluster cannot mix versions, weights or folders."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import geoseg
from geoseg.errors import ClusterError, GeosegError
from geoseg.models.card import file_sha256
from geoseg.models.registry import find_model

LOOK_AT_IMAGES = 100
"""So many of a run's images are looked for on each worker; a missing mount shows in the first."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What every worker must have; small, it travels with each task."""

    versions: tuple[tuple[str, str], ...]
    """As `versions` gives them."""
    model: str | None = None
    """Weights file as the driver sees it; None: a detector of the user's own."""
    weights: str = ""
    """SHA-256 of the weights."""
    token: tuple[str, str] | None = None
    """A file in the run directory, and what it holds."""
    images: tuple[tuple[str, int], ...] = ()
    """Files and their sizes, bytes."""


def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of all that decides results, of this process."""
    import rasterio
    import shapely

    packages = ("torch", "torchvision", "rasterio", "shapely", "numpy", "dask", "distributed")
    return (
        ("geoseg", geoseg.__version__),
        ("python", ".".join(platform.python_version_tuple()[:2])),
        # +cpu or +cu130 is no other version
        *((name, version(name).partition("+")[0]) for name in packages),
        ("GDAL", rasterio.__gdal_version__),
        ("GEOS", shapely.geos_version_string),
    )


def model_here(model: str) -> str:
    """Return a weights file on this machine: the path, or the shipped model of that name."""
    if Path(model).is_file():
        return model
    return str(find_model(Path(model).stem))


def terms_of(model: str | None, images: Sequence[str], token: tuple[str, str] | None) -> Terms:
    """Return what workers must have to work with this process."""
    local = [Path(image) for image in images[:LOOK_AT_IMAGES]]
    return Terms(
        versions=versions(),
        model=model,
        weights="" if model is None else file_sha256(Path(model)),
        token=token,
        images=tuple((str(path), path.stat().st_size) for path in local if path.is_file()),
    )


def problem_here(terms: Terms) -> str:
    """Say what of the terms this process does not meet; empty if it meets them."""
    differ = [
        f"{name} {mine} instead of {theirs}"
        for (name, theirs), mine in zip(terms.versions, _values(versions()), strict=True)
        if mine != theirs
    ]
    if differ:
        return f"it has {', '.join(differ)}; install the same versions there"
    if terms.token is not None:
        path, text = terms.token
        try:
            seen = Path(path).read_text(encoding="utf-8")
        except OSError:
            seen = ""
        if seen != text:
            return (
                "it does not see the run directory; put --run-dir on a file system that all "
                "workers share, under the same path"
            )
    return _weights_problem(terms) or _images_problem(terms)


def _values(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [value for _, value in pairs]


def _weights_problem(terms: Terms) -> str:
    if terms.model is None:
        return ""
    try:
        found = file_sha256(Path(model_here(terms.model)))
    except (OSError, GeosegError):
        return f"it has no weights {Path(terms.model).name}; copy them to the same path there"
    if found != terms.weights:
        return f"its weights {Path(terms.model).name} are other ones; copy the same file there"
    return ""


def _images_problem(terms: Terms) -> str:
    for image, size in terms.images:
        path = Path(image)
        if not path.is_file() or path.stat().st_size != size:
            return (
                f"it does not see the image {path.name} as it is here; put images on a file "
                "system that all workers share, under the same path"
            )
    return ""


@lru_cache(maxsize=4)
def check_here(terms: Terms) -> None:
    """Refuse to work where the terms are not met; asked once per process.

    Raises
    ------
    ClusterError
        Says what differs.
    """
    if problem := problem_here(terms):
        raise ClusterError(f"worker on {platform.node()}: {problem}")


def describe_problems(answers: Mapping[str, object]) -> str:
    """Return one line about the workers that cannot take part; empty if all can."""
    bad = {place: str(said) for place, said in answers.items() if said}
    if not bad:
        return ""
    place, said = next(iter(sorted(bad.items())))
    more = f" (and {len(bad) - 1} more of {len(answers)} workers)" if len(bad) > 1 else ""
    return f"worker {place}{more}: {said}"
