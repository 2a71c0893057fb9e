"""The job as one Python call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.config import DetectSettings

if TYPE_CHECKING:
    import geopandas as gpd

    from geoseg.models.detector import Detector


def detect(
    images: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | Path = "buildings",
    detector: Detector | str | None = None,
    **settings: Any,
) -> gpd.GeoDataFrame:
    """Find objects in images.

    Parameters
    ----------
    images : str, Path or sequence of them
        Files, folders or globs.
    output : str or Path, optional
        GeoPackage, GeoParquet, FlatGeobuf, GeoJSON or COCO JSON to write too.
    model : str or Path
        Name of a shipped model or path of a ``.safetensors`` file.
    detector : Detector or str, optional
        Your own detector, or ``package.module:factory``, instead of a model.
    **settings
        The other options of ``geoseg detect``, with underscores: ``tile_size``, ``overlap``,
        ``min_score``, ``gsd``, ``bidx``, ``aoi``, ``regions``, ``workers``, ``device``,
        ``supertile_size``, ``run_dir``, ``overwrite``, ``dst_crs``, ``cross_image``,
        ``scale`` (a pair of values, or 'none'), ``class_agnostic``, ``simplify``, ``also``,
        ``split_by`` and so on. See `geoseg.config.DetectSettings` for units and ranges.

    Returns
    -------
    GeoDataFrame
        One row per object: object_id, uid, class, score, area_m2, perimeter_m, n_parts,
        touches_edge, image, geometry. ``attrs['notes']`` holds what should be known about the run.

    Raises
    ------
    GeosegError
        If the input or a setting cannot be used, or supertiles failed (then nothing is lost: what
        was found is in ``output``, and the same call does only the rest).

    Examples
    --------
    >>> import geoseg
    >>> objects = geoseg.detect("ortho.tif", min_score=0.6)  # doctest: +SKIP
    """
    from geoseg.errors import ConfigError, TileError
    from geoseg.jobs.pipeline import run_detect

    given = [images] if isinstance(images, str | Path) else list(images)
    for name in ("aoi", "regions", "run_dir", "counts"):
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    if settings.get("also") is not None:
        also = settings["also"]
        listed = [also] if isinstance(also, str | Path) else also
        settings["also"] = tuple(Path(path) for path in listed)
    if isinstance(settings.get("scale"), list | tuple):
        settings["scale"] = ",".join(f"{value!r}" for value in settings["scale"])
    for name in ("bidx", "resource"):
        if settings.get(name) is not None:
            settings[name] = tuple(settings[name])
    named = isinstance(detector, str)
    try:
        job = DetectSettings(
            images=tuple(str(image) for image in given),
            output=None if output is None else Path(output),
            model=str(model),
            detector=detector if isinstance(detector, str) else None,
            **settings,
        )
    except TypeError as error:
        raise ConfigError(f"geoseg.detect: {error}") from error
    result = run_detect(job, None if named or detector is None else detector)  # type: ignore[arg-type]
    if result.exit_code:
        failures = result.coverage[result.coverage["reason"] != ""]
        raise TileError(
            f"{len(failures)} of {len(result.coverage)} supertiles failed or lack tiles, the first "
            f"because: {failures['reason'].iloc[0]}"
        )
    result.objects.attrs["notes"] = list(result.notes)
    return result.objects
