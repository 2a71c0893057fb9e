"""Training sites: imagery, what is labelled on it, and a report on what is wrong with the labels.

Labels come as users have them: polygons in any vector file and CRS, with or without a class, or
COCO's JSON. Nothing is dropped in silence: a `LabelReport` counts what was read, used and left
out, and says what to do about it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError, ProjError
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely.errors import GEOSException

from geoseg.errors import GeosegError, LabelError, SourceError
from geoseg.imagery.georef import (
    WorkingGrid,
    polygons_to_crs,
    polygons_to_pixels,
    reproject_polygons,
    working_grid,
)
from geoseg.imagery.inputs import find_images
from geoseg.imagery.read import read_window
from geoseg.imagery.source import describe_raster, select_bands
from geoseg.imagery.vector_files import why_not_opened
from geoseg.learning.coco import is_coco, read_coco
from geoseg.records import BoolArray, GeometryArray, IntArray, RasterInfo

log = logging.getLogger(__name__)

MIN_SIDE_PX = 3.0
"""Fragments of objects thinner than this at a chip's edge are not taught."""
BORDER_PX = 128
"""Pixels read around an AOI, so that turned chips show context as far as there is any."""
WHOLE_IMAGE, AROUND_LABELS = "image", "labels"
"""Words that stand for an AOI: all of the image; the smallest rectangle around the labels."""


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What became of one site's labels: counts of features."""

    site: str
    read: int
    """In the file, after ``where``."""
    used: int
    """Taught, whole or cut."""
    cut: int = 0
    """Of those used, cut by the AOI or the image's edge."""
    repaired: int = 0
    """Invalid outlines that were mended (crossing rings)."""
    empty: int = 0
    """Without geometry, or with nothing left of it."""
    not_areas: int = 0
    """Points and lines."""
    outside_image: int = 0
    outside_aoi: int = 0
    outside_part: int = 0
    """In the AOI, but not in the ``aoi_part`` of it that this site is."""
    unclassed: int = 0
    """Class field empty; their ground is left out, for it is neither object nor background."""
    crowds: int = 0
    """COCO's ``iscrowd``; their ground is left out."""
    doubtful: int = 0
    """Chosen by ``ignore_where``; their ground is left out."""
    thin: int = 0
    """Of those used, with a side under 3 px at the working GSD: too small to be taught."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """Of those used, by class."""

    def problems(self) -> tuple[str, ...]:
        """Return a line for each thing that the user should look at, with what to do."""
        lines = (
            (self.empty, "without geometry: delete them"),
            (self.not_areas, "points or lines: draw them as polygons, or buffer the points"),
            (self.repaired, "with crossing rings, mended: look at them with QGIS's Check Validity"),
            (self.unclassed, "with an empty class: their ground is left out; fill in the class"),
            (self.outside_image, "outside the image"),
            (self.outside_aoi, "outside the AOI: widen it if their surroundings are labelled too"),
            (self.thin, "under 3 px across at the working GSD: not taught; give a finer gsd_m"),
        )
        return tuple(f"{n:,} of {self.read:,} labels {what}" for n, what in lines if n)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        return {**asdict(self), "classes": dict(self.classes)}


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One completely labelled area, resampled to the working GSD."""

    name: str
    """Shown in logs."""
    pixels: npt.NDArray[np.uint8]
    """(3, H, W)."""
    valid: BoolArray
    """(H, W), inside the AOI and imaged."""
    polygons: GeometryArray
    """(n,) label polygons in site px, clipped to the AOI."""
    labels: IntArray
    """(n,) class index, from 0."""
    aoi: shapely.Geometry
    """Where labelling is complete, site px."""
    weight: float
    """Share of chips cut here, relative to the other sites."""
    report: LabelReport | None = None
    """What became of the labels."""
    whole: GeometryArray | None = None
    """(n,) the label polygons before they were clipped, site px."""
    transform: Affine | None = None
    """Maps site px to the image's CRS."""
    crs_wkt: str = ""
    """CRS of the image."""
    image: str = ""
    """The image's path."""

    def to_map(self, shapes: GeometryArray) -> GeometryArray:
        """Bring shapes in site px into the image's CRS."""
        return polygons_to_crs(shapes, self.transform or Affine.identity())


@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """Labels as they were read, before it is known what of them lies where."""

    polygons: GeometryArray
    """In px of the working grid, as drawn."""
    classes: Sequence[Any] | None
    """Class names, None for one without; None: there is one class only."""
    left_out: BoolArray
    """Crowds and doubtful ones."""
    counts: Mapping[str, int]


def _read_layer(path: Path, where: str | None, layer: str | None = None) -> Any:
    import geopandas

    if not path.is_file():
        raise LabelError(f"{path} does not exist; name a vector file with polygons")
    if reason := why_not_opened(path):
        raise LabelError(f"{path} {reason}")
    try:
        frame = geopandas.read_file(path.absolute(), where=where, layer=layer)
    except Exception as error:
        # a broken file makes GDAL, GEOS and pyogrio raise whatever comes to pass in them
        asked = f" where {where}" if where else ""
        raise LabelError(
            f"{path} cannot be read as a vector layer{asked} ({type(error).__name__}: {error}); "
            "give a GeoPackage, GeoJSON, Shapefile or FlatGeobuf file"
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelError(f"{path} has no geometry; name a vector file with label polygons")
    if frame.crs is None:
        raise LabelError(f"{path} has no CRS; assign one before training on it")
    if frame.empty:
        raise LabelError(f"{path} has no features{f' where {where}' if where else ''}")
    return frame


_TEXTS = (
    *("image", "labels", "aoi", "name", "where", "ignore_where", "aoi_where", "class_field"),
    *("layer", "aoi_layer"),
)


def check_site(table: object, where: str) -> None:
    """Refuse the table of a site that is none, before anything is read.

    Raises
    ------
    LabelError
        If a key is missing, unknown or of the wrong kind.
    """
    if not isinstance(table, Mapping):
        raise LabelError(f"{where} is {table!r}; expected a table with image, labels and aoi")
    needed = ("image", "labels", "aoi")
    for key in needed:
        if key not in table and not (key == "aoi" and _is_json(table.get("labels"))):
            raise LabelError(
                f"{where} lacks {key}; a site has image, labels and aoi (a file, '{WHOLE_IMAGE}' "
                f"if all of the image is labelled, or '{AROUND_LABELS}' for the rectangle around "
                "the labels)"
                if key == "aoi"
                else f"{where} lacks {key}; a site has image, labels and aoi"
            )
    if unknown := sorted(set(table) - {*_TEXTS, "aoi_part", "weight"}):
        raise LabelError(f"{where} has the unknown key '{unknown[0]}'")
    for key in _TEXTS:
        if not isinstance(table.get(key, ""), str):
            raise LabelError(f"{where}: {key} is {table[key]!r}; expected text")
    part, weight = table.get("aoi_part", (0, 0, 1, 1)), table.get("weight", 1)
    if not isinstance(part, list | tuple) or len(part) != 4 or not all(map(_is_share, part)):
        raise LabelError(
            f"{where}: aoi_part is {part!r}; expected x0, y0, x1, y1 as shares of the AOI, 0 to 1"
        )
    if type(weight) not in (int, float) or not 0 < weight < np.inf:
        raise LabelError(f"{where}: weight is {weight!r}; expected a number above 0")


def _is_json(labels: object) -> bool:
    """COCO's labels bring their AOI along: an image in it is labelled completely."""
    return isinstance(labels, str) and labels.lower().endswith(".json")


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(value) <= 1  # type: ignore[arg-type]


def part_of(aoi: shapely.Geometry, part: Sequence[float] | None) -> shapely.Geometry:
    """Cut an AOI in px (y downwards) to fractions x0, y0, x1, y1 of its bounds (y upwards)."""
    if part is None:
        return aoi
    left, top, right, bottom = shapely.bounds(aoi)
    w, h = right - left, bottom - top
    x0, y0, x1, y1 = part
    return shapely.intersection(
        aoi, shapely.box(left + x0 * w, bottom - y1 * h, left + x1 * w, bottom - y0 * h)
    )


def load_sites(
    folder: Path,
    table: Mapping[str, Any],
    gsd_m: float | None,
    classes: Sequence[str],
    *,
    with_pixels: bool = True,
) -> tuple[Site, ...]:
    """Read what one table of a training file names: a site for each of its images.

    Parameters
    ----------
    folder, table, gsd_m, classes, with_pixels
        As for `load_site`, but ``image`` may also be a folder, a glob or a list of images, whose
        weight is shared by labelled area; images without labels are left out, and said.

    Returns
    -------
    tuple of Site
        At least one.

    Raises
    ------
    LabelError, SourceError
        As `load_site`; also if no image has labels.
    """
    image = table["image"]
    if "://" in image or image.startswith("/vsi") or (folder / image).is_file():
        return (load_site(folder, table, gsd_m, classes, with_pixels=with_pixels),)
    images = find_images([str(folder / image)])
    if len(images) == 1:
        one = {**table, "image": images[0]}
        return (load_site(folder, one, gsd_m, classes, with_pixels=with_pixels),)
    sites: list[Site] = []
    reasons: list[str] = []
    for path in images:
        name = f"{table['name']}/{Path(path).stem}" if "name" in table else Path(path).stem
        try:
            own = {**table, "image": path, "name": name}
            sites.append(load_site(folder, own, gsd_m, classes, with_pixels=with_pixels))
        except _NoLabelsError as error:
            reasons.append(str(error))
    if not sites:
        raise LabelError(f"none of {len(images)} images has labels; the first: {reasons[0]}")
    if reasons:
        log.warning(
            "%d of %d images of %s have no labels and are left out",
            len(reasons),
            len(images),
            image,
        )
    areas = np.array([s.aoi.area for s in sites])
    weights = float(table.get("weight", 1.0)) * areas / areas.sum()
    return tuple(_reweighted(s, float(w)) for s, w in zip(sites, weights, strict=True))


def _reweighted(site: Site, weight: float) -> Site:
    return replace(site, weight=weight)


class _NoLabelsError(LabelError):
    """An image without a single label."""


def read_outlines(folder: Path, table: Mapping[str, Any]) -> tuple[GeometryArray, list[float]]:
    """Read a site's labels alone, and how large its images' pixels are.

    Returns
    -------
    polygons : ndarray of geometry
        (n,) valid polygons, longitude and latitude (EPSG:4326).
    gsds_m : list of float
        Metres per pixel of each image.

    Raises
    ------
    LabelError, SourceError
        If a file cannot be read.
    """
    named = _image(folder, table["image"])
    images = [named] if "://" in named else find_images([named])
    infos = [describe_raster(image) for image in images]
    path = folder / table["labels"]
    if path.is_file() and is_coco(path):
        grid = working_grid(infos[0], None)
        found = read_coco(path, infos[0].path, (infos[0].width, infos[0].height))
        placed = polygons_to_crs(found.polygons[~found.crowd], grid.transform)
        shapes, wkt = placed, infos[0].crs_wkt
    else:
        frame = _read_layer(path, table.get("where"), table.get("layer"))
        shapes, wkt = frame.geometry.to_numpy(), frame.crs.to_wkt()
    polygons = reproject_polygons(shapely.make_valid(shapes), wkt, "EPSG:4326")
    return polygons[shapely.area(polygons) > 0], [info.gsd_m for info in infos]


def load_site(
    folder: Path,
    table: Mapping[str, Any],
    gsd_m: float | None,
    classes: Sequence[str],
    *,
    with_pixels: bool = True,
) -> Site:
    """Read one site of a training file into memory.

    Parameters
    ----------
    folder : Path
        Paths in the table are relative to it.
    table : mapping
        ``image``, ``labels`` (vector file, or COCO JSON) and ``aoi`` (file, 'image' or 'labels';
        COCO needs none), optional ``name``, ``layer``, ``where``, ``aoi_layer`` and ``aoi_where``
        (OGR SQL filters), ``ignore_where`` (features of ``labels`` that are neither objects nor
        background, as doubtful ones; their ground is blanked), ``aoi_part`` (x0, y0, x1, y1 as
        fractions of the AOI's bounds, y upwards), ``class_field``, ``weight`` (default 1).
    gsd_m : float or None
        Working ground sampling distance, metres; None: the image's own.
    classes : sequence of str
        Class names in label order; features of other classes are errors.
    with_pixels : bool
        False leaves ``pixels`` and ``valid`` empty: labels and AOI are wanted alone.

    Raises
    ------
    LabelError
        If a file is missing or empty, has no CRS, a class is unknown, or no label falls into the
        AOI.
    """
    info = describe_raster(_image(folder, table["image"]))
    grid = working_grid(info, gsd_m)
    name = str(table.get("name", Path(info.path).stem))
    found = _read_labels(folder, table, info, grid, name)
    try:
        area = _read_aoi(folder, table, info, grid, name, found.polygons)
        sheet = shapely.box(0, 0, grid.width, grid.height)
        aoi = shapely.intersection(part_of(area, table.get("aoi_part")), sheet)
        if not shapely.area(aoi) > 0:
            raise _NoLabelsError(
                f"site {name}: the AOI in {table.get('aoi', WHOLE_IMAGE)} lies outside "
                f"{Path(info.path).name}; check its CRS, and aoi_part"
            )
        named = (name, float(table.get("weight", 1.0)))
        site = _site_of(found, aoi, area, (info, grid), classes, named)
    except GEOSException as error:
        raise LabelError(
            f"site {name}: {table['labels']} or its AOI holds outlines that cannot be mended "
            f"({error}); find them with QGIS's Check Validity"
        ) from error
    return _with_pixels(site, info, grid) if with_pixels else site


def _image(folder: Path, image: str) -> str:
    return image if "://" in image or image.startswith("/vsi") else str(folder / image)


def _read_labels(
    folder: Path, table: Mapping[str, Any], info: RasterInfo, grid: WorkingGrid, site: str
) -> _Labels:
    path = folder / table["labels"]
    if path.is_file() and is_coco(path):
        coco = read_coco(path, info.path, (info.width, info.height))
        scale = (1 / grid.scale_x, 1 / grid.scale_y)
        polygons = shapely.transform(coco.polygons, lambda xy: xy * scale)
        counts = {"crowds": int(coco.crowd.sum())}
        return _Labels(polygons, [c or None for c in coco.classes], coco.crowd, counts)
    frame = _read_layer(path, table.get("where"), table.get("layer"))
    _check_place(frame, info, f"site {site}: {table['labels']}")
    polygons = _to_pixels(frame, info, grid, f"site {site}: {table['labels']}")
    column = table.get("class_field")
    values = [_class_name(v) for v in _column(frame, column, path)] if column else None
    left_out = np.zeros(len(frame), bool)
    if ignore := table.get("ignore_where"):
        doubtful = _read_layer(path, ignore, table.get("layer"))
        more = _to_pixels(doubtful, info, grid, f"site {site}: {table['labels']}")
        polygons = np.concatenate([polygons, more])
        left_out = np.concatenate([left_out, np.ones(len(more), bool)])
        values = None if values is None else [*values, *[None] * len(more)]
    return _Labels(polygons, values, left_out, {"doubtful": int(left_out.sum())})


def class_names(folder: Path, table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that the labels of a site name, sorted; none where they have no class.

    Raises
    ------
    LabelError
        If the labels cannot be read, or have no such field.
    """
    path = folder / table["labels"]
    if path.is_file() and is_coco(path):
        info = describe_raster(_image(folder, table["image"]))
        found = read_coco(path, info.path, (info.width, info.height))
        return tuple(sorted({c for c in found.classes if c}))
    column = table.get("class_field")
    if column is None:
        return ()
    frame = _read_layer(path, table.get("where"), table.get("layer"))
    return tuple(sorted({name for v in _column(frame, column, path) if (name := _class_name(v))}))


def _column(frame: Any, column: str, path: Path) -> Any:
    if column in frame.columns and column != frame.geometry.name:
        return frame[column]
    known = ", ".join(str(c) for c in frame.columns if c != frame.geometry.name)
    raise LabelError(f"{path} has no field '{column}'; it has {known or 'none'}")


def _class_name(value: object) -> str | None:
    """Return a class as text; None for what stands for none."""
    if value is None or value != value:  # noqa: PLR0124  # NaN, NaT
        return None
    return str(value).strip() or None


def _to_pixels(frame: Any, info: RasterInfo, grid: WorkingGrid, what: str) -> GeometryArray:
    try:
        return polygons_to_pixels(
            frame.geometry.to_numpy(), frame.crs.to_wkt(), info.crs_wkt, grid.transform
        )
    except ProjError as error:
        raise LabelError(
            f"{what}: there is no way from its CRS to that of the image ({error}); assign the "
            "right one"
        ) from error


def _check_place(frame: Any, info: RasterInfo, what: str) -> None:
    """Refuse labels of which none lies on the image, and say which CRS would fit."""
    native = working_grid(info, None)
    image = shapely.box(0, 0, native.width, native.height)
    raw = frame.geometry.to_numpy()
    try:
        here = polygons_to_pixels(raw, frame.crs.to_wkt(), info.crs_wkt, native.transform)
    except (SourceError, ProjError):
        # coordinates of no place on earth in the CRS that they are said to be in
        here = np.array([], object)
    if shapely.intersects(here, image).any():
        return
    x0, y0, x1, y1 = frame.total_bounds
    said = (
        f"{what}: none of {len(raw):,} labels lies on the image; they lie at {x0:.6g} to {x1:.6g}, "
        f"{y0:.6g} to {y1:.6g} in {frame.crs.name}"
    )
    if fits := _fitting_crs(raw, frame.crs, info, native.transform, image):
        raise _NoLabelsError(f"{said}, but they would lie on it {fits}")
    raise _NoLabelsError(f"{said}; give the labels of this image, or assign their right CRS")


def _fitting_crs(
    raw: GeometryArray, crs: CRS, info: RasterInfo, transform: Affine, image: shapely.Geometry
) -> str | None:
    """Say in which CRS, or by which exchange of axes, labels would lie on the image."""
    swapped = shapely.transform(raw, lambda xy: xy[:, ::-1])
    tries = (
        (swapped, crs.to_wkt(), "with x and y exchanged: swap them (ogr2ogr: QGIS's Swap X and Y)"),
        (raw, info.crs_wkt, "in the CRS of the image: assign that (Layer > Set CRS in QGIS)"),
        (raw, "EPSG:4326", "as longitude and latitude: assign EPSG:4326 (Layer > Set CRS in QGIS)"),
        (raw, "EPSG:3857", "in web mercator: assign EPSG:3857 (Layer > Set CRS in QGIS)"),
    )
    for shapes, wkt, words in tries:
        try:
            moved = polygons_to_pixels(shapes, wkt, info.crs_wkt, transform)
        except (GeosegError, ProjError, CRSError, GEOSException):
            continue
        if shapely.intersects(moved, image).mean() > 0.5:
            return words
    return None


def _read_aoi(
    folder: Path,
    table: Mapping[str, Any],
    info: RasterInfo,
    grid: WorkingGrid,
    site: str,
    polygons: GeometryArray,
) -> shapely.Geometry:
    """Return where labelling is complete, in px of the grid."""
    named = table.get("aoi", WHOLE_IMAGE)
    if named == WHOLE_IMAGE:
        return shapely.box(0, 0, grid.width, grid.height)
    if named == AROUND_LABELS:
        return shapely.box(*shapely.total_bounds(polygons))
    frame = _read_layer(folder / named, table.get("aoi_where"), table.get("aoi_layer"))
    parts = _to_pixels(frame, info, grid, f"site {site}: {named}")
    return shapely.union_all(shapely.make_valid(parts))


def _site_of(
    found: _Labels,
    aoi: shapely.Geometry,
    whole_aoi: shapely.Geometry,
    where: tuple[RasterInfo, WorkingGrid],
    classes: Sequence[str],
    named: tuple[str, float],
) -> Site:
    """Sort the labels and count them; `aoi` is the part of it that is used. Without pixels yet."""
    info, grid = where
    name, weight = named
    invalid = ~shapely.is_valid(found.polygons)
    polygons = np.where(invalid, shapely.make_valid(found.polygons), found.polygons)
    is_empty = shapely.is_empty(polygons) | shapely.is_missing(polygons)
    areal = shapely.area(polygons) > 0
    values = found.classes if found.classes is not None else [""] * len(polygons)
    unclassed = np.array([v is None for v in values], bool) & ~found.left_out
    out = found.left_out | unclassed
    if (areal & out).any():
        aoi = shapely.difference(aoi, shapely.union_all(polygons[areal & out]))
    inside = shapely.intersection(polygons, aoi)
    keep = areal & ~out & (shapely.area(inside) > 0)
    if not keep.any():
        raise _NoLabelsError(
            f"site {name}: none of {len(polygons)} labels lies in its AOI; check the CRS of both, "
            "and that the AOI is where the labels are"
        )
    index = _class_index(found.classes, keep, classes, name)
    sides = shapely.bounds(inside[keep])
    report = LabelReport(
        site=name,
        read=len(polygons),
        used=int(keep.sum()),
        cut=int((shapely.area(inside[keep]) < 0.999 * shapely.area(polygons[keep])).sum()),
        repaired=int((invalid & areal).sum()),
        empty=int(is_empty.sum()),
        not_areas=int((~areal & ~is_empty).sum()),
        unclassed=int(unclassed.sum()),
        thin=int(((sides[:, 2:] - sides[:, :2]).min(axis=1) < MIN_SIDE_PX).sum()),
        classes={classes[i]: n for i, n in sorted(Counter(index.tolist()).items())},
        **found.counts,
        **_outside(polygons[areal & ~out & ~keep], grid, whole_aoi),
    )
    # the corner that pixels are read from
    x0, y0, _, _ = shapely.bounds(aoi)
    corner = np.maximum(0, np.floor((x0, y0)) - BORDER_PX)
    aoi, clipped, whole = (
        shapely.transform(shapes, lambda xy: xy - corner)
        for shapes in (aoi, inside[keep], polygons[keep])
    )
    return Site(
        name=name,
        pixels=np.zeros((3, 0, 0), np.uint8),
        valid=np.zeros((0, 0), bool),
        polygons=clipped,
        labels=index,
        aoi=aoi,
        weight=weight,
        report=report,
        whole=whole,
        transform=grid.transform * Affine.translation(*corner),
        crs_wkt=info.crs_wkt,
        image=info.path,
    )


def _outside(polygons: GeometryArray, grid: WorkingGrid, aoi: shapely.Geometry) -> dict[str, int]:
    """Count labels that are not used by where they lie; `aoi` is all of it, not a part."""
    off = ~shapely.intersects(polygons, shapely.box(0, 0, grid.width, grid.height))
    elsewhere = ~off & (shapely.area(shapely.intersection(polygons, aoi)) > 0)
    return {
        "outside_image": int(off.sum()),
        "outside_aoi": int((~off & ~elsewhere).sum()),
        "outside_part": int(elsewhere.sum()),
    }


def _with_pixels(site: Site, info: RasterInfo, grid: WorkingGrid) -> Site:
    """Read the pixels of a site's AOI and some border around."""
    origin = ~grid.transform * (site.transform or grid.transform)
    left, top = round(origin.c), round(origin.f)
    _, _, x1, y1 = shapely.bounds(site.aoi)
    width = min(grid.width - left, int(x1) + BORDER_PX)
    height = min(grid.height - top, int(y1) + BORDER_PX)
    pixels, valid = read_window(
        info, grid, Window(left, top, width, height), select_bands(info, None, 3)
    )
    if pixels.dtype != np.uint8:
        raise LabelError(f"{info.path} is {pixels.dtype}; training reads uint8 imagery")
    inside = rasterize([site.aoi], out_shape=(height, width), dtype=np.uint8).astype(bool)
    return replace(site, pixels=pixels, valid=valid & inside)


def _class_index(
    values: Sequence[Any] | None, keep: BoolArray, classes: Sequence[str], site: str
) -> IntArray:
    if values is None:
        if len(classes) > 1:
            raise LabelError(
                f"site {site}: there are {len(classes)} classes but no class_field; name the field "
                "of the labels that tells them"
            )
        return np.zeros(int(keep.sum()), np.int64)
    lookup = {name: i for i, name in enumerate(classes)}
    own = [values[i] for i in np.flatnonzero(keep).tolist()]
    unknown = Counter(str(v) for v in own if v not in lookup)
    if unknown:
        counted = ", ".join(f"{name} ({n})" for name, n in unknown.most_common(12))
        raise LabelError(
            f"site {site}: labels have classes {sorted(unknown)} that are not in classes = "
            f"{list(classes)} ({counted}); add them, or leave them out by where"
        )
    return np.array([lookup[v] for v in own], np.int64)
