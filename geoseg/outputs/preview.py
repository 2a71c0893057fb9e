"""Pictures of objects over imagery: light fill, crisp outline, one colour per class.

Everything is drawn at three times the picture's size, a band of rows at a time, and averaged down:
edges come out smooth, and memory does not grow with the height. A picture needs only numpy and
rasterio's rasterizer; PNG is simple enough to be written here.
"""

from __future__ import annotations

import math
import struct
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from affine import Affine
from rasterio.features import rasterize
from rasterio.windows import Window

from geoseg.errors import ConfigError, OutputError, RegionError
from geoseg.imagery.georef import ground_gsd_m
from geoseg.imagery.read import read_view, stretch
from geoseg.imagery.source import describe_raster
from geoseg.objects.count import count
from geoseg.objects.vectorize import vectorize
from geoseg.outputs.lettering import ink_of, place_of, print_ink, write_text
from geoseg.outputs.style import REGION_COLOUR, TRUTH_COLOUR, Colour, class_colours
from geoseg.records import DoubleArray, GeometryArray, Instances, Tile

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) red, green, blue."""
Labels: TypeAlias = Literal["auto", "all", "none"]

FILL_ALPHA = 0.22
_SAMPLES = 3
_BAND_ROWS = 256
_ROOM = 0.85
# ^ a label has room where it takes this share of its object's width and height
_LARGEST_ZOOM = 4
_SMALL_PX = 12.0
# ^ where the median object is smaller than this, outlines get thinner so that they stay apart


@dataclass(frozen=True, slots=True)
class _Layer:
    """Shapes in picture px that are painted with one colour."""

    shapes: GeometryArray
    colour: Colour
    alpha: float


def write_preview(
    pixels: Pixels,
    transform: Affine,
    crs: pyproj.CRS | str,
    objects: gpd.GeoDataFrame,
    path: str | Path,
    *,
    truth: gpd.GeoDataFrame | None = None,
    regions: gpd.GeoDataFrame | None = None,
    max_px: int = 2000,
) -> Path:
    """Draw objects over imagery and write a PNG.

    Parameters
    ----------
    pixels : ndarray
        (H, W, 3) uint8, red, green, blue; as read, at any scale.
    transform : Affine
        Maps px of ``pixels`` to the CRS; may be rotated.
    crs : CRS or str
        CRS of the imagery; the layers are brought to it.
    objects : GeoDataFrame
        Filled and outlined, a colour per ``class``.
    path : str or Path
        The PNG to write; an existing one is replaced.
    truth : GeoDataFrame, optional
        Outlined in cyan under the objects.
    regions : GeoDataFrame, optional
        Outlined in white; labelled with the field in ``attrs['region_field']`` and ``count``.
    max_px : int
        Longest side of the picture; larger imagery is averaged down by a whole number.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        If the pixels have another shape or type, a layer has no CRS, or writing fails.
    """
    picture, scaled = shrink(pixels, transform, max_px)
    drawn = draw_objects(picture, scaled, crs, objects, truth=truth, regions=regions)
    return write_png(path, drawn)


def preview_image(
    image: str | Path,
    objects: gpd.GeoDataFrame,
    path: str | Path,
    *,
    truth: gpd.GeoDataFrame | None = None,
    regions: gpd.GeoDataFrame | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    window: Window | None = None,
    region: str | None = None,
    labels: Labels = "auto",
    max_px: int = 2000,
    src_crs: str | None = None,
) -> Path:
    """Read imagery at the size of a picture, draw objects over it and write a PNG.

    Overviews are used where there are any, so a picture of a whole raster costs little. A small
    part is enlarged, up to four times.

    Parameters
    ----------
    image : str or Path
        A raster on this machine, of any type and number of bands.
    src_crs : str, optional
        CRS of the image, if its file has none.
    objects, path, truth, max_px
        As in :func:`write_preview`.
    regions : GeoDataFrame, optional
        Outlined in white and labelled with their names and the number of objects in them.
    bounds : tuple of float, optional
        (x0, y0, x1, y1) in the CRS of the image: only this part.
    window : Window, optional
        Only these pixels of the image.
    region : str, optional
        Only the region of this name, and a little around it.
    labels : {'auto', 'all', 'none'}
        Class (where there are several) and score at each object; 'auto': where there is room.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    SourceError, TileError
        If the image cannot be used or read, or the part is off it.
    RegionError
        If there is no region of that name.
    ConfigError
        If more than one of bounds, window and region is given.
    OutputError
        As :func:`write_preview`.
    """
    if sum(part is not None for part in (bounds, window, region)) > 1:
        raise ConfigError("bounds, window and region each choose a part; give one of them")
    info = describe_raster(image, src_crs=src_crs)
    counted = None if regions is None else count(objects, regions)
    if region is not None:
        bounds = region_bounds(counted, region, info.crs_wkt)
    pixels, transform, _ = read_view(image, bounds, max_px, window=window, src_crs=src_crs)
    pixels, transform = _enlarge(pixels, transform, max_px)
    drawn = draw_objects(
        pixels, transform, info.crs_wkt, objects, truth=truth, regions=counted, labels=labels
    )
    _add_scale_bar(drawn, ground_gsd_m(info.crs_wkt, transform, *drawn.shape[1::-1]))
    return write_png(path, drawn)


def region_bounds(
    regions: gpd.GeoDataFrame | None, name: str, crs: pyproj.CRS | str
) -> tuple[float, float, float, float]:
    """Return the bounds of the region of a name, and a twentieth more each way.

    Raises
    ------
    RegionError
        If there are no regions, they have no names, or none has this one.
    """
    field = None if regions is None else regions.attrs.get("region_field")
    if regions is None or field is None:
        raise RegionError(
            f"region '{name}' cannot be found: there are no regions with a field region, name, "
            "region_id or id; give such a file with --regions"
        )
    rows = regions[regions[field].astype(str) == name]
    if rows.empty:
        known = ", ".join(regions[field].astype(str)[:12])
        more = "" if len(regions) <= 12 else f" and {len(regions) - 12} more"
        raise RegionError(f"there is no region '{name}'; expected one of {known}{more}")
    x0, y0, x1, y1 = rows.to_crs(crs).total_bounds.tolist()
    room = 0.05 * max(x1 - x0, y1 - y0)
    return x0 - room, y0 - room, x1 + room, y1 + room


def draw_instances(
    pixels: npt.NDArray[Any],
    instances: Instances,
    classes: Sequence[str],
    *,
    labels: Labels = "all",
    boxes: bool = False,
    scale: int = 1,
) -> Pixels:
    """Draw what a detector found in one tile: masks, outlines, class and score.

    Parameters
    ----------
    pixels : ndarray
        (C, H, W) as the detector saw them: three bands or more are taken as red, green, blue,
        fewer as grey; other types than uint8 are stretched.
    instances : Instances
        In px of the tile.
    classes : sequence of str
        The detector's.
    labels : {'auto', 'all', 'none'}
        Class and score at each; 'auto': where there is room.
    boxes : bool
        Draw the boxes, too.
    scale : int
        Picture px per tile px along a side.

    Returns
    -------
    ndarray
        (H * scale, W * scale, 3) uint8.

    Raises
    ------
    OutputError
        If the pixels have another shape, or a label has no class.

    Examples
    --------
    >>> tile = np.zeros((3, 32, 32), np.uint8)
    >>> draw_instances(tile, Instances.empty(), ["house"], scale=2).shape
    (64, 64, 3)
    """
    if pixels.ndim != 3 or 0 in pixels.shape or scale < 1:
        raise OutputError(
            f"a tile needs pixels (C, H, W) and a scale of at least 1; got {pixels.shape} and "
            f"{scale}"
        )
    if len(instances) and instances.labels.max() >= len(classes):
        raise OutputError(
            f"label {instances.labels.max()} has no class: {len(classes)} are named; give all of "
            "the detector's"
        )
    bands = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    if bands.dtype != np.uint8:
        bands = stretch(bands, np.isfinite(bands).all(axis=0))
    height, width = bands.shape[1:]
    rgb = np.moveaxis(np.broadcast_to(bands, (3, height, width)), 0, -1)
    rgb = rgb.repeat(scale, axis=0).repeat(scale, axis=1)
    shapes, rows = _traced(instances, (height, width))
    names = np.array([*classes, None], object)[instances.labels[rows]]
    shapes = shapely.transform(shapes, lambda xy: xy * scale)
    colours = class_colours(classes)
    width_px = _outline_width(shapes)
    layers = _object_layers(names, shapes, width_px, colours)
    if boxes:
        frames = shapely.box(*(instances.boxes[rows].T.astype(np.float64) * scale))
        for name in colours:
            mine = _outlines(frames[names == name], 1.0)
            layers.append(_Layer(mine, colours[name], 0.8))
    picture = _paint(np.ascontiguousarray(rgb), layers)
    texts = [
        f"{name} {score:.0%}" for name, score in zip(names, instances.scores[rows], strict=True)
    ]
    _label_objects(picture, shapes, texts, instances.scores[rows], labels)
    return picture


def _traced(
    instances: Instances, shape: tuple[int, int]
) -> tuple[GeometryArray, npt.NDArray[np.intp]]:
    """Return the outlines of masks in px of the tile, and whose they are."""
    window = Window(0, 0, shape[1], shape[0])
    tile = Tile((0, 0), core=window, window=window)
    shapes, rows = [np.zeros(0, object)], [np.zeros(0, np.intp)]
    for row in range(len(instances)):
        one = Instances(
            instances.boxes[row : row + 1],
            instances.scores[row : row + 1],
            instances.labels[row : row + 1],
            instances.masks[row : row + 1],
        )
        found = vectorize(one, tile, tile_row=0, raster_shape=shape, min_area_px=0.0)
        shapes.append(found.polygons)
        rows.append(np.full(len(found), row, np.intp))
    return np.concatenate(shapes), np.concatenate(rows)


def draw_objects(
    pixels: Pixels,
    transform: Affine,
    crs: pyproj.CRS | str,
    objects: gpd.GeoDataFrame,
    *,
    truth: gpd.GeoDataFrame | None = None,
    regions: gpd.GeoDataFrame | None = None,
    width_px: float | None = None,
    labels: Labels = "none",
) -> Pixels:
    """Return the imagery with objects drawn over it, as :func:`write_preview` does.

    Parameters
    ----------
    pixels, transform, crs, objects, truth, regions
        As there.
    width_px : float, optional
        Width of the outlines; by default 1.8, or 1 where objects are small.
    labels : {'auto', 'all', 'none'}
        Class (where there are several) and score at each object; 'auto': where there is room.

    Returns
    -------
    ndarray
        (H, W, 3) uint8, a new array.
    """
    _check_pixels(pixels)
    shape = (pixels.shape[0], pixels.shape[1])
    frame = (transform, pyproj.CRS.from_user_input(crs), shape)
    rows, shapes = _to_picture(objects, frame)
    width = _outline_width(shapes) if width_px is None else width_px
    layers = []
    if truth is not None:
        shown = _to_picture(truth, frame)[1]
        layers.append(_Layer(_outlines(shown, width), TRUTH_COLOUR, 1.0))
    names, colours = _kinds(objects)
    layers += _object_layers(names[rows], shapes, width, colours)
    placed = rows, shapes
    texts: list[tuple[str, float, float]] = []
    if regions is not None:
        rows, shapes = _to_picture(regions, frame)
        layers.append(_Layer(_outlines(shapes, 5.0), (0, 0, 0), 0.45))
        layers.append(_Layer(_outlines(shapes, 2.0), REGION_COLOUR, 1.0))
        texts = _region_labels(regions, rows, shapes, shape)
    picture = _paint(pixels, layers)
    if labels != "none":
        rows, shapes = placed
        scores = objects["score"].to_numpy(np.float64) if "score" in objects.columns else None
        said = _object_texts(names, None if scores is None else scores, several=len(colours) > 1)
        rank = np.zeros(len(rows)) if scores is None else scores[rows]
        _label_objects(picture, shapes, [said[r] for r in rows], rank, labels)
        if len(colours) > 1:
            _add_legend(picture, colours)
    scale = max(1, round(min(shape) / 500))
    for text, x, y in texts:
        write_text(picture, text, (x, y), scale)
    return picture


def _enlarge(pixels: Pixels, transform: Affine, max_px: int) -> tuple[Pixels, Affine]:
    """Repeat the pixels of a small part, so that outlines and text on it can be told apart."""
    zoom = min(_LARGEST_ZOOM, max_px // max(pixels.shape[:2]))
    if zoom <= 1:
        return pixels, transform
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1), transform @ Affine.scale(1 / zoom)


def shrink(pixels: Pixels, transform: Affine, max_px: int) -> tuple[Pixels, Affine]:
    """Average imagery down by a whole number until its longest side fits.

    Returns
    -------
    tuple of (ndarray, Affine)
        (h, w, 3) uint8 and the map from its px to the CRS. Rows and columns at the end that
        fill no block are averaged from what there is.
    """
    _check_pixels(pixels)
    step = math.ceil(max(pixels.shape[:2]) / max_px)
    if step <= 1:
        return pixels, transform
    rows = np.arange(0, pixels.shape[0], step)
    columns = np.arange(0, pixels.shape[1], step)
    sums = np.add.reduceat(pixels, rows, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns, axis=1)
    heights = np.diff(np.append(rows, pixels.shape[0]))
    widths = np.diff(np.append(columns, pixels.shape[1]))
    mean = sums / (heights[:, None] * widths)[..., None]
    return np.rint(mean).astype(np.uint8), transform @ Affine.scale(step)


def write_png(path: str | Path, pixels: Pixels) -> Path:
    """Write (H, W, 3) uint8 pixels as a PNG, beside the target first.

    References
    ----------
    W3C, Portable Network Graphics (PNG) Specification, third edition: chunks, filter type 2.
    """
    _check_pixels(pixels)
    path = Path(path)
    height, width = pixels.shape[:2]
    # each row as its difference from the row above: imagery packs a third smaller
    rows = np.diff(pixels.reshape(height, -1), axis=0, prepend=np.zeros((1, 3 * width), np.uint8))
    filtered = np.column_stack([np.full(height, 2, np.uint8), rows])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"IDAT", zlib.compress(filtered.tobytes(), 6)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            temporary = Path(folder) / "new.png"
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"picture {path} cannot be written ({error}); check the folder and the space on it"
        ) from error
    return path


def _check_pixels(pixels: Pixels) -> None:
    """Refuse arrays that are no picture."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise OutputError(
            f"a picture needs pixels (H, W, 3) of uint8; got {pixels.shape} of {pixels.dtype}: "
            "choose three bands and stretch them to 0..255"
        )


def _to_picture(
    table: gpd.GeoDataFrame, frame: tuple[Affine, pyproj.CRS, tuple[int, int]]
) -> tuple[npt.NDArray[np.intp], GeometryArray]:
    """Return the rows whose geometry meets the picture, and their geometry in its px."""
    transform, crs, (height, width) = frame
    if table.crs is None:
        raise OutputError("a layer to draw has no CRS; set it with GeoDataFrame.set_crs")
    to_px = ~transform
    shapes = np.asarray(table.geometry.to_crs(crs).array, dtype=object)
    shapes = shapely.transform(
        shapes,
        lambda xy: np.column_stack(
            [
                to_px.a * xy[:, 0] + to_px.b * xy[:, 1] + to_px.c,
                to_px.d * xy[:, 0] + to_px.e * xy[:, 1] + to_px.f,
            ]
        ),
    )
    # None and empty geometries have no bounds, so they meet nothing
    x0, y0, x1, y1 = shapely.bounds(shapes).T
    rows = np.flatnonzero((x1 > 0) & (y1 > 0) & (x0 < width) & (y0 < height))
    # half a sample: invisible, and a tenth of the vertices at small scales
    shapes = shapely.simplify(shapes[rows], 0.5 / _SAMPLES, preserve_topology=True)
    return rows, cast("GeometryArray", shapes)


def _outline_width(shapes: GeometryArray) -> float:
    """Return the width in px that suits the size of the objects."""
    if len(shapes) == 0:
        return 1.8
    return 1.0 if float(np.median(np.sqrt(shapely.area(shapes)))) < _SMALL_PX else 1.8


def _outlines(shapes: GeometryArray, width_px: float) -> GeometryArray:
    """Return the outlines as areas of the given width."""
    lines = shapely.boundary(shapes)
    return cast("GeometryArray", shapely.buffer(lines, width_px / 2, quad_segs=2))


def _kinds(objects: gpd.GeoDataFrame) -> tuple[npt.NDArray[np.object_], dict[str, Colour]]:
    """Return the class of each row, and the colour of each class.

    From all rows, seen or not: the colour of a class is the same in every picture.
    """
    if "class" not in objects.columns:
        return np.full(len(objects), "", dtype=object), class_colours([""] * bool(len(objects)))
    names = objects["class"].astype(str).to_numpy(dtype=object)
    return names, class_colours(names)


def _object_layers(
    names: npt.NDArray[np.object_],
    shapes: GeometryArray,
    width: float,
    colours: dict[str, Colour],
) -> list[_Layer]:
    """Return fills of all classes, then outlines of all, so that no fill hides an outline."""
    shown = {name: shapes[names == name] for name in colours}
    fills = [_Layer(s, colours[n], FILL_ALPHA) for n, s in shown.items()]
    return fills + [_Layer(_outlines(s, width), colours[n], 1.0) for n, s in shown.items()]


def _paint(pixels: Pixels, layers: list[_Layer]) -> Pixels:
    """Blend the layers over the picture, in order, band by band."""
    result = pixels.copy()
    trees = [shapely.STRtree(layer.shapes) for layer in layers]
    height, width = pixels.shape[:2]
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        band: DoubleArray | None = None
        for layer, tree in zip(layers, trees, strict=True):
            hits = np.sort(tree.query(shapely.box(0, top, width, bottom)))
            shapes = layer.shapes[hits]
            shapes = shapes[~shapely.is_empty(shapes)]
            if len(shapes) == 0:
                continue
            cover = _coverage(shapes, top, (bottom - top, width))[..., None] * layer.alpha
            base = result[top:bottom].astype(np.float64) if band is None else band
            band = base * (1 - cover) + np.array(layer.colour) * cover
        if band is not None:
            result[top:bottom] = np.rint(band).astype(np.uint8)
    return result


def _coverage(shapes: GeometryArray, top: int, shape: tuple[int, int]) -> DoubleArray:
    """Return how much of each pixel of a band the shapes cover together, 0 to 1."""
    fine = rasterize(
        shapes,
        out_shape=(shape[0] * _SAMPLES, shape[1] * _SAMPLES),
        transform=Affine.translation(0, top) @ Affine.scale(1 / _SAMPLES),
        dtype="uint8",
    )
    blocks = fine.reshape(shape[0], _SAMPLES, shape[1], _SAMPLES)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float64))


def _region_labels(
    regions: gpd.GeoDataFrame,
    rows: npt.NDArray[np.intp],
    shapes: GeometryArray,
    shape: tuple[int, int],
) -> list[tuple[str, float, float]]:
    """Return the text and place of each region's label, inside what the picture shows of it."""
    fields = [f for f in (regions.attrs.get("region_field"), "count") if f in regions.columns]
    if not fields:
        return []
    seen = shapely.intersection(shapely.make_valid(shapes), shapely.box(0, 0, shape[1], shape[0]))
    points = shapely.get_coordinates(shapely.point_on_surface(seen[~shapely.is_empty(seen)]))
    rows = rows[~shapely.is_empty(seen)]
    labels = []
    for row, (x, y) in zip(rows, points, strict=True):
        text = ": ".join(_show(regions[f].iloc[row]) for f in fields)
        labels.append((text, float(x), float(y)))
    return labels


def _show(value: object) -> str:
    """Return a cell of the user's table as short text."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.1f}"
    return str(value)[:20]


def _object_texts(
    names: npt.NDArray[np.object_], scores: DoubleArray | None, *, several: bool
) -> list[str]:
    """Return what to write at each object: its class if there are several, and its score."""
    said = []
    for row, name in enumerate(names.tolist()):
        parts = [str(name)[:20]] if several and name else []
        if scores is not None and np.isfinite(scores[row]):
            parts.append(f"{scores[row]:.0%}")
        said.append(" ".join(parts))
    return said


def _label_objects(
    picture: Pixels,
    shapes: GeometryArray,
    texts: Sequence[str],
    rank: npt.NDArray[Any],
    labels: Labels,
) -> None:
    """Write texts at their objects, the surest first; 'auto' leaves out what has no room."""
    if labels == "none" or not len(shapes):
        return
    taken = np.zeros(picture.shape[:2], bool)
    bounds = shapely.bounds(shapes)
    # as large as most objects bear, up to three times
    typical = float(np.median(bounds[:, 2] - bounds[:, 0]))
    scale = int(np.clip(typical // 60, 1, 3))
    for row in np.argsort(-np.asarray(rank, np.float64), kind="stable").tolist():
        if not texts[row]:
            continue
        ink = ink_of(texts[row], scale)
        x0, y0, x1, y1 = bounds[row]
        room = ink.shape[1] <= _ROOM * (x1 - x0) and ink.shape[0] <= _ROOM * (y1 - y0)
        if labels == "auto" and not room:
            continue
        centre = (x0 + x1) / 2, (y0 + y1) / 2
        here = place_of(picture, ink, centre)
        if labels == "auto" and taken[here].any():
            continue
        taken[here] = True
        print_ink(picture, ink, here)


def _add_legend(picture: Pixels, colours: dict[str, Colour]) -> None:
    """Write the classes in the upper left corner, each beside its colour."""
    scale = max(1, round(min(picture.shape[:2]) / 700))
    top, left = 4 * scale, 4 * scale
    for name, colour in colours.items():
        ink = ink_of(f"  {name[:20]}", scale)
        here = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
        if top + ink.shape[0] > picture.shape[0] or left + ink.shape[1] > picture.shape[1]:
            return
        print_ink(picture, ink, here)
        patch = picture[here][2 * scale : -2 * scale, 2 * scale : 9 * scale]
        patch[:] = colour
        top += ink.shape[0]


def _add_scale_bar(picture: Pixels, metres_per_px: float) -> None:
    """Draw a bar of a round length in the lower left corner."""
    height, width = picture.shape[:2]
    longest = 0.25 * width * metres_per_px
    if min(height, width) < 120 or not math.isfinite(longest) or longest <= 0:
        return
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    scale = max(1, round(min(height, width) / 700))
    text = f"{length:g} m" if length < 1000 else f"{length / 1000:g} km"
    ink = ink_of(text, scale)
    long_px, thick = round(length / metres_per_px), 2 * scale
    tall = ink.shape[0] + thick + 3 * scale
    wide = max(long_px, ink.shape[1]) + 4 * scale
    top, left = height - tall - 4 * scale, 4 * scale
    plate = picture[top : top + tall, left : left + wide]
    plate[:] = plate // 4
    words = plate[: ink.shape[0], 2 * scale : 2 * scale + ink.shape[1]]
    words[ink] = 255
    plate[ink.shape[0] + scale : ink.shape[0] + scale + thick, 2 * scale : 2 * scale + long_px] = (
        255
    )
