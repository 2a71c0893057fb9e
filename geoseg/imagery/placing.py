"""From the CRS of an image to that of the output: which may be chosen, and outlines that arrive.

An edge is straight in the CRS of its image. In another CRS it is a curve, across the antimeridian
it is torn, and a datum may be shifted only roughly: each of that is seen to here, or said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely
from affine import Affine
from pyproj.aoi import AreaOfInterest
from pyproj.exceptions import CRSError, ProjError
from pyproj.transformer import TransformerGroup

from geoseg.errors import ConfigError, SourceError
from geoseg.globe import difference_of_x, in_one_turn, projected
from geoseg.imagery.georef import polygons_to_crs
from geoseg.records import DoubleArray, GeometryArray, RasterInfo

BEND_PX = 0.01
"""An edge that leaves its straight course by more than this gets vertices, grid px."""
ROUND_TRIP_PX = 0.01
"""There and back again, the image's ground may come back this far from where it was, px."""
ROUGH_M = 5.0
"""A datum shift that is known no better than this is told, metres."""

_CRS_FILES = {".prj", ".wkt", ".projjson", ".json", ".qpj"}
_CRS_FILE_BYTES = 65_536


def choose_crs(text: str) -> pyproj.CRS:
    """Return the CRS that a user names for the output.

    Parameters
    ----------
    text : str
        A code such as EPSG:32645, WKT, a PROJ string, PROJJSON, or a file that holds one of them
        (.prj, .wkt, .projjson).

    Returns
    -------
    pyproj.CRS
        Geographic or projected, of two dimensions.

    Raises
    ------
    ConfigError
        If it is unknown, or is no CRS for places on the ground: vertical, geocentric, local, or
        of three dimensions.
    """
    try:
        crs = pyproj.CRS.from_user_input(_from_file(text))
    except (CRSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--dst-crs '{text}' is no CRS that PROJ knows; expected something like EPSG:32645, "
            "WKT, a PROJ string, or a .prj file"
        ) from error
    if problem := _problem_of(crs):
        raise ConfigError(f"--dst-crs '{text}' {problem}")
    return crs


def _from_file(text: str) -> str:
    """Return what a file of a CRS holds; what names no such file stays as it is."""
    path = Path(text)
    if path.suffix.lower() not in _CRS_FILES or not path.is_file():
        return text
    if path.stat().st_size > _CRS_FILE_BYTES:
        raise ConfigError(f"--dst-crs {text} is too large for a CRS; give a .prj file or a code")
    return path.read_text(encoding="utf-8-sig").strip()


def _problem_of(crs: pyproj.CRS) -> str | None:
    """Say why outlines cannot be written in a CRS; None where they can."""
    plain = crs.source_crs if crs.is_bound and crs.source_crs is not None else crs
    if plain.is_geocentric:
        return (
            f"is geocentric ({crs.name}): its coordinates are measured from the middle of the "
            "earth; give a projected or geographic CRS"
        )
    if plain.is_vertical and not plain.is_compound:
        return f"gives heights, not places ({crs.name}); give a projected or geographic CRS"
    if plain.is_compound or len(plain.axis_info) > 2:
        flat = horizontal(plain)
        authority = flat.to_authority()
        name = ":".join(authority) if authority else f"'{flat.name}'"
        return f"has heights ({crs.name}) and outlines have none; give its horizontal part, {name}"
    if not (plain.is_projected or plain.is_geographic) or plain.get_geod() is None:
        return (
            f"has no relation to the earth ({crs.name}, {plain.type_name}); give a projected or "
            "geographic CRS"
        )
    return None


def horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """Return the part of a CRS that says where on the ground: without heights."""
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    return crs.to_2d() if len(crs.axis_info) > 2 else crs


@dataclass(frozen=True, slots=True)
class _Ground:
    """The ground of an image, as points in its CRS."""

    x: DoubleArray
    y: DoubleArray
    px: float
    """Side of a pixel in units of the CRS."""


def _ground_of(info: RasterInfo) -> _Ground:
    """Lay a net of 17 x 17 points over an image, its corners included."""
    rows, cols = (
        axis.ravel()
        for axis in np.meshgrid(
            np.linspace(0, info.height, 17), np.linspace(0, info.width, 17), indexing="ij"
        )
    )
    t = info.transform
    return _Ground(
        t.a * cols + t.b * rows + t.c,
        t.d * cols + t.e * rows + t.f,
        float(np.sqrt(abs(t.determinant))),
    )


def check_target(images: Sequence[RasterInfo], crs: pyproj.CRS) -> tuple[str, ...]:
    """Try a CRS of the output on the ground of all images, before any work.

    Parameters
    ----------
    images : sequence of RasterInfo
        All images of a run.
    crs : pyproj.CRS
        Of the output, from :func:`choose_crs` or of an image.

    Returns
    -------
    tuple of str
        What the user should know: a datum shift that is rough, or a grid for it that is missing.

    Raises
    ------
    ConfigError
        If an image has no place in the CRS, or does not come back from it to `ROUND_TRIP_PX`.
    """
    notes: dict[str, None] = {}
    for info in images:
        source = horizontal(pyproj.CRS.from_wkt(info.crs_wkt))
        if not source.equals(crs):
            notes |= dict.fromkeys(_check_image(info, source, crs))
    return tuple(notes)


def _check_image(info: RasterInfo, source: pyproj.CRS, crs: pyproj.CRS) -> list[str]:
    """Try a CRS on one image; see `check_target`."""
    name = Path(info.path).name
    transformer = _transformer(source, crs)
    ground = _ground_of(info)
    there = np.asarray(transformer.transform(ground.x, ground.y))
    if not np.isfinite(there).all():
        raise ConfigError(
            f"{name} has no place in the CRS of the output, '{crs.name}' (some or all of its "
            "coordinates there are infinite); choose a --dst-crs that covers the image"
        )
    back = np.asarray(transformer.transform(there[0], there[1], direction="INVERSE"))
    away = difference_of_x(back[0] - ground.x, source), back[1] - ground.y
    off_px = np.hypot(*away) / ground.px
    known = off_px[np.isfinite(off_px)]
    # on the very end of a map, rounding may leave a point without a way back
    worst = float(known.max()) if 2 * len(known) > len(off_px) else np.inf
    if worst > ROUND_TRIP_PX:
        raise ConfigError(
            f"{name} does not come back from the CRS of the output, '{crs.name}': it would lie "
            f"{worst:.2g} px off; choose a --dst-crs that covers the image"
        )
    return _about_shift(source, crs, ground)


def _about_shift(source: pyproj.CRS, crs: pyproj.CRS, ground: _Ground) -> list[str]:
    """Say how well the way between two CRS is known, where that is not well."""
    transformer = pyproj.Transformer.from_crs(source, crs, always_xy=True)
    middle = len(ground.x) // 2
    transformer.transform(ground.x[middle], ground.y[middle])
    try:
        used = transformer.get_last_used_operation()
    except ProjError:
        return []
    if "ballpark" in used.description.lower():
        text = (
            f"PROJ knows no datum shift from {source.name} to {crs.name} here: degrees are taken "
            "over as they are, and objects may lie off by up to some hundred metres"
        )
        return [text]
    missing, better_m = _missing_grids(source, crs, ground)
    accuracy = f"{used.accuracy:g} m" if used.accuracy > 0 else "unknown"
    if missing and not 0 <= used.accuracy <= better_m:
        text = (
            f"the shift from {source.name} to {crs.name} is known to {accuracy} here; with the "
            f"grid {missing}, which is not installed, to {better_m:g} m: get it with projsync "
            f"--file {missing.split(',')[0]}"
        )
        return [text]
    if used.accuracy >= ROUGH_M:
        return [f"the shift from {source.name} to {crs.name} is known only to {accuracy} here"]
    return []


def _missing_grids(source: pyproj.CRS, crs: pyproj.CRS, ground: _Ground) -> tuple[str, float]:
    """Return the grids that the best known way needs and that are not here; and its accuracy."""
    to_degrees = pyproj.Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
    lon, lat = to_degrees.transform(ground.x, ground.y)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return "", 0.0
    place = AreaOfInterest(min(lon), min(lat), max(lon), max(lat))
    group = TransformerGroup(source, crs, always_xy=True, area_of_interest=place)  # type: ignore[arg-type]
    if group.best_available or not group.unavailable_operations:
        return "", 0.0
    best = group.unavailable_operations[0]
    names = [grid.short_name for grid in best.grids if not grid.available]
    return ", ".join(names), float(best.accuracy)


def _transformer(source: pyproj.CRS, target: pyproj.CRS) -> pyproj.Transformer:
    """Return the way between two CRS; refuse what lies on two planets."""
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise ConfigError(
            f"there is no way from the CRS of the image, '{source.name}', to that of the output, "
            f"'{target.name}' ({str(error).partition('(')[2].rstrip(')') or error}); choose "
            "another --dst-crs"
        ) from error


@dataclass(frozen=True, slots=True)
class Placing:
    """The way of outlines from grid px to the output; the same for all of an image."""

    transform: Affine
    """Grid px to the image's CRS."""
    crs_wkt: str
    """Of the image."""
    output_wkt: str = ""
    """CRS of the output; '' where it is the image's."""
    cut: bool = True
    """Whether longitudes end at the antimeridian; otherwise they go on as the image's do."""

    def in_image_crs(self, polygons: GeometryArray | Sequence[shapely.Geometry]) -> GeometryArray:
        """Return polygons of grid px in the image's CRS, (n,), vertex by vertex."""
        return polygons_to_crs(polygons, self.transform)

    def to_output(self, polygons: GeometryArray) -> GeometryArray:
        """Bring polygons from the image's CRS to the output's.

        Parameters
        ----------
        polygons : ndarray of Polygon or MultiPolygon
            (n,) in the image's CRS.

        Returns
        -------
        ndarray of geometry
            (n,) Edges keep their course to `BEND_PX`; what crosses the seam of the output is a
            MultiPolygon. Outlines that are thinner than the digits may be invalid.

        Raises
        ------
        SourceError
            If a vertex has no place in the output.
        """
        source = pyproj.CRS.from_wkt(self.crs_wkt)
        if not self.output_wkt:
            return in_one_turn(polygons, source) if self.cut else polygons
        target = pyproj.CRS.from_wkt(self.output_wkt)
        bend = BEND_PX * float(np.sqrt(abs(self.transform.determinant)))
        placed = projected(polygons, source, target, bend)
        if not np.isfinite(shapely.get_coordinates(placed)).all():
            raise SourceError(
                f"some outlines have no place in {target.name}; choose a CRS that covers them"
            )
        return placed
