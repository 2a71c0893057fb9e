"""Read windows of the working grid: pixels in the raster's dtype and what is valid.

A pixel is valid if no declared source says otherwise: nodata value, alpha band (unless it is read
as a band), .msk file or internal mask, NaN or Inf. Invalid pixels are 0 in every band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from geoseg.errors import SourceError, TileError
from geoseg.imagery.georef import WorkingGrid, scaled_transform
from geoseg.imagery.remote import name_of
from geoseg.imagery.resample import axis_kernel, resample
from geoseg.imagery.source import describe_raster, open_raster, select_bands
from geoseg.records import BoolArray, DoubleArray, RasterInfo, Supertile, Tile, TileBatch

_STRIP_PX = 4_000_000
"""Source pixels resampled at once; bounds memory (some 100 bytes a pixel for three bands)."""

_MASK_PX = 16_000_000
"""Mask pixels read at once where an overview's mask is sampled from the full one."""

_OVERVIEW_REST = 2.0
"""An overview is used only if at least this much reduction is left for our own kernel: many
overviews are made by nearest neighbour, and their aliasing is averaged out only then."""


_HUGE_NODATA = 1e30
_HUGE_ROUNDING = 1e-5
"""Nodata values as large as this are met by pixels this close to them (a share): no pixel of an
image is so bright."""


@dataclass(frozen=True, slots=True, eq=False)
class SupertilePixels:
    """What one task reads."""

    pixels: npt.NDArray[Any]
    """(C, h, w) in the raster's dtype (float64 becomes float32); invalid pixels are 0."""
    valid: BoolArray
    """(h, w), True = use this pixel."""
    window: Window
    """Where it lies, grid px."""


class RasterReader:
    """An open raster, read window by window; made by `open_reader`."""

    def __init__(
        self,
        src: DatasetReader,
        info: RasterInfo,
        grid: WorkingGrid,
        bands: Sequence[int],
        full: DatasetReader | None = None,
    ) -> None:
        self._src = src
        self._full = full
        self._info = info
        self._grid = grid
        self._bands = tuple(bands)
        reads_alpha = info.alpha_band is None or info.alpha_band in self._bands
        self._alpha_band = None if reads_alpha else info.alpha_band
        self._alpha_floor = alpha_floor(src)
        per_dataset = MaskFlags.per_dataset in src.mask_flag_enums[0]
        self._mask_bands = [1] if per_dataset or info.palette else list(self._bands)
        self._dtype = np.dtype(np.float32 if info.dtype == "float64" else info.dtype)

    def read(self, window: Window) -> tuple[npt.NDArray[Any], BoolArray]:
        """Read one window.

        Parameters
        ----------
        window : Window
            Grid px, whole numbers; may reach past the grid on any side.

        Returns
        -------
        pixels : (C, h, w) array
            In the raster's dtype; 0 where invalid and outside the grid. A grid pixel has the same
            value, bit for bit, in whatever window it is read.
        valid : (h, w) bool
            True = use this pixel.

        Raises
        ------
        TileError
            If the file cannot be read there; names rows and columns.
        """
        height, width = int(window.height), int(window.width)
        pixels = np.zeros((len(self._bands), height, width), self._dtype)
        valid = np.zeros((height, width), np.bool_)
        top, left = int(window.row_off), int(window.col_off)
        y0, y1 = max(top, 0), min(top + height, self._grid.height)
        x0, x1 = max(left, 0), min(left + width, self._grid.width)
        if y0 >= y1 or x0 >= x1:
            return pixels, valid
        for start, stop, part, use in self._strips(y0, y1, x0, x1):
            rows, cols = slice(start - top, stop - top), slice(x0 - left, x1 - left)
            pixels[:, rows, cols] = part
            valid[rows, cols] = use
        return pixels, valid

    def _strips(
        self, y0: int, y1: int, x0: int, x1: int
    ) -> Iterator[tuple[int, int, npt.NDArray[Any], BoolArray]]:
        """Yield (first row, end row, pixels, valid) of grid rows [y0, y1), columns [x0, x1)."""
        source_height, source_width = self._src.height, self._src.width
        grid = self._grid
        if (source_height, source_width) == (grid.height, grid.width):
            yield (y0, y1, *self._source_block(y0, y1, x0, x1))
            return
        cols = axis_kernel(x0, x1, source_width, grid.width)
        source_rows = max(1, _STRIP_PX // (cols.stop - cols.start))
        step = max(1, int(source_rows * grid.height / source_height))
        for start in range(y0, y1, step):
            stop = min(start + step, y1)
            rows = axis_kernel(start, stop, source_height, grid.height)
            block, valid = self._source_block(rows.start, rows.stop, cols.start, cols.stop)
            yield (start, stop, *resample(block, valid, rows, cols))

    def _source_block(
        self, y0: int, y1: int, x0: int, x1: int
    ) -> tuple[npt.NDArray[Any], BoolArray]:
        """Read source pixels as they are stored; invalid ones become 0."""
        window = Window(x0, y0, x1 - x0, y1 - y0)
        try:
            pixels, valid = _stored(self._src, self._info, self._bands, window=window)
            with np.errstate(over="ignore"):
                # what float32 cannot hold becomes infinite, so invalid
                pixels = pixels.astype(self._dtype, copy=False)
            if pixels.dtype.kind == "f":
                valid &= np.isfinite(pixels).all(axis=0)
            if self._info.mask_kind == "mask":
                valid &= self._mask(window)
            if self._alpha_band is not None:
                valid &= self._src.read(self._alpha_band, window=window) > self._alpha_floor
        except (RasterioError, OSError, IndexError) as error:
            # IndexError: the file changed and has fewer bands now
            raise TileError(
                f"cannot read rows {y0}-{y1}, cols {x0}-{x1} of {name_of(self._info.path)}: "
                f"{error.__cause__ or error}; the file is damaged there: geoseg check tells more"
            ) from error
        if not valid.all():
            # 15 times as fast as an index of the invalid ones
            np.copyto(pixels, 0, where=~valid)
        return pixels, valid

    def _mask(self, window: Window) -> BoolArray:
        """Read the mask; at an overview it is sampled from the full mask.

        GDAL calls all of an overview valid if the mask has no overviews of its own, and does not
        tell whether it has.
        """
        if self._full is None:
            masks = self._src.read_masks(self._mask_bands, window=window)
            return np.asarray((masks != 0).all(axis=0))
        factor_y = self._full.height / self._src.height
        factor_x = self._full.width / self._src.width
        top, left, height, width = window.row_off, window.col_off, window.height, window.width
        # the middle of each overview pixel
        rows = ((np.arange(top, top + height) + 0.5) * factor_y).astype(np.int64)
        cols = ((np.arange(left, left + width) + 0.5) * factor_x).astype(np.int64)
        x0, x1 = int(cols[0]), int(cols[-1]) + 1
        step = max(1, int(_MASK_PX / (factor_y * (x1 - x0))))
        out = np.empty((height, width), np.bool_)
        for start in range(0, height, step):
            some = rows[start : start + step]
            y0, y1 = int(some[0]), int(some[-1]) + 1
            masks = self._full.read_masks(self._mask_bands, window=Window(x0, y0, x1 - x0, y1 - y0))
            mask = (masks != 0).all(axis=0)
            out[start : start + step] = mask[some - y0][:, cols - x0]
        return out


def how_read(info: RasterInfo) -> str:
    """Say what is made of the stored values of a raster before a detector sees them."""
    if info.palette:
        return f"palette of {len(info.palette)} entries, read as red, green, blue"
    if info.nbits is not None:
        return f"{info.nbits} bits, 0 to {2**info.nbits - 1} read as 0 to 255"
    return "float64, read as float32" if info.dtype == "float64" else f"{info.dtype}, as stored"


def alpha_floor(src: DatasetReader) -> int:
    """Return the largest value of alpha that says: no data.

    A lossy codec leaves specks in an alpha band where nothing is; then it is half its range.
    """
    structure = src.tags(ns="IMAGE_STRUCTURE")
    lossy = structure.get("COMPRESSION") in ("JPEG", "YCbCr JPEG") or (
        src.driver == "JP2OpenJPEG" and structure.get("COMPRESSION_REVERSIBILITY") == "LOSSY"
    )
    return 127 if lossy and src.dtypes[0] == "uint8" else 0


def _stored(
    src: DatasetReader, info: RasterInfo, bands: Sequence[int], **how: Any
) -> tuple[npt.NDArray[Any], BoolArray]:
    """Read bands as colours or measured values, and which pixels no value says to be no data.

    Indices become the colours of their palette, fewer than 8 bits become shares of 255.
    """
    if info.palette:
        how = how | ({"out_shape": (1, *how["out_shape"][-2:])} if "out_shape" in how else {})
        how["resampling"] = Resampling.nearest
        # ^ there is no index between two indices
        indices = src.read([1], **how)
        table = np.array([*info.palette, (0, 0, 0, 0)], np.uint8)
        entries = table[np.minimum(indices[0].astype(np.intp), len(info.palette))]
        pixels = np.moveaxis(entries[..., [band - 1 for band in bands]], -1, 0)
        return np.ascontiguousarray(pixels), _present(indices, (info.nodata,)) & (
            entries[..., 3] != 0
        )
    pixels = src.read(list(bands), **how)
    nodatas = tuple(info.nodatas[b - 1] if info.nodatas else info.nodata for b in bands)
    valid = _present(pixels, nodatas)
    if info.nbits is not None:
        top = 2**info.nbits - 1
        pixels = np.rint(np.minimum(pixels, top) * (255 / top)).astype(np.uint8)
    return pixels, valid


def _present(pixels: npt.NDArray[Any], nodatas: Sequence[float | None]) -> BoolArray:
    """Return which pixels (bands, h, w) are not nodata, a value for each band."""
    valid = np.ones(pixels.shape[1:], np.bool_)
    known = [
        (band, value)
        for band, value in zip(pixels, nodatas, strict=True)
        # NaN is found with whatever else is not finite
        if value is not None and not np.isnan(value)
    ]
    if not known:
        return valid
    present = np.stack([_differs(band, value) for band, value in known])
    # 0 or 255 in one band is a colour, so all bands must be nodata, as in GDAL's dataset
    # mask; -9999 never is one, and a single band of it would reach the network
    a_color = pixels.dtype.kind == "u" and all(value >= 0 for _, value in known)
    valid &= present.any(axis=0) if a_color else present.all(axis=0)
    return valid


def _differs(band: npt.NDArray[Any], nodata: float) -> BoolArray:
    """Return which pixels of a band are not its nodata value."""
    if band.dtype.kind == "f" and abs(nodata) >= _HUGE_NODATA:
        # the lowest float is declared with five to nine digits, as a program pleases
        with np.errstate(over="ignore"):
            return np.asarray(np.abs(band / np.float64(nodata) - 1) > _HUGE_ROUNDING)
    return np.asarray(band != _as_stored(nodata, band.dtype))


def _as_stored(nodata: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return nodata as a pixel would hold it; as it is, equal to none, where no pixel can."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(nodata).astype(dtype)
    limits = np.iinfo(dtype)
    if nodata == float(limits.max):
        # of 64 bits no float is the largest value: the next one stands for it
        return np.array(limits.max, dtype)
    if float(nodata).is_integer() and limits.min <= nodata <= limits.max:
        return np.array(int(nodata), dtype)
    return np.array(nodata)


@contextmanager
def open_reader(
    info: RasterInfo, grid: WorkingGrid, bands: Sequence[int]
) -> Iterator[RasterReader]:
    """Open a raster once, to read many windows of its working grid.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    grid : WorkingGrid
        From `geoseg.imagery.georef.working_grid`.
    bands : sequence of int
        1-based, in the wanted order.

    Yields
    ------
    RasterReader
        For one thread; closed at the end of the block.

    Raises
    ------
    SourceError
        If the file does not open any more.
    """
    with open_raster(info.path) as src:
        level = _overview_level(src, grid)
        if level is None:
            yield RasterReader(src, info, grid, bands)
            return
        with open_raster(info.path, overview_level=level) as overview:
            yield RasterReader(overview, info, grid, bands, full=src)


def _overview_level(src: DatasetReader, grid: WorkingGrid) -> int | None:
    """Return the coarsest overview that leaves enough reduction to our own kernel."""
    scale = min(grid.scale_x, grid.scale_y)
    levels = [i for i, factor in enumerate(src.overviews(1)) if scale / factor >= _OVERVIEW_REST]
    return max(levels, key=lambda i: src.overviews(1)[i], default=None)


def read_window(
    info: RasterInfo, grid: WorkingGrid, window: Window, bands: Sequence[int]
) -> tuple[npt.NDArray[Any], BoolArray]:
    """Open a raster and read one window; see `RasterReader.read`.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    grid : WorkingGrid
        From `geoseg.imagery.georef.working_grid`.
    window : Window
        Grid px, whole numbers; may reach past the grid.
    bands : sequence of int
        1-based, in the wanted order.

    Returns
    -------
    pixels : (C, h, w) array
        In the raster's dtype (float64 becomes float32); 0 where invalid.
    valid : (h, w) bool
        True = use this pixel.

    Raises
    ------
    SourceError
        If the file does not open.
    TileError
        If it cannot be read there.
    """
    with open_reader(info, grid, bands) as reader:
        return reader.read(window)


def read_supertile(
    info: RasterInfo, grid: WorkingGrid, supertile: Supertile, bands: Sequence[int]
) -> SupertilePixels:
    """Read all pixels of a supertile at once; parameters and errors as `read_window`."""
    pixels, valid = read_window(info, grid, supertile.window, bands)
    return SupertilePixels(pixels, valid, supertile.window)


def cut_tiles(
    pixels: npt.NDArray[Any], valid: BoolArray, supertile: Supertile, tiles: Sequence[Tile]
) -> TileBatch:
    """Cut tiles out of the pixels of their supertile.

    Parameters
    ----------
    pixels : (C, h, w) array
        Of ``supertile.window``.
    valid : (h, w) bool
        Of ``supertile.window``.
    supertile : Supertile
        That holds the tiles.
    tiles : sequence of Tile
        At least one; all windows have one size.

    Returns
    -------
    TileBatch
        Own copies, in the order of `tiles`.
    """
    top, left = int(supertile.window.row_off), int(supertile.window.col_off)
    cuts = []
    for tile in tiles:
        row, col = int(tile.window.row_off) - top, int(tile.window.col_off) - left
        height, width = int(tile.window.height), int(tile.window.width)
        cuts.append((slice(row, row + height), slice(col, col + width)))
    return TileBatch(
        pixels=np.stack([pixels[:, rows, cols] for rows, cols in cuts]),
        valid=np.stack([valid[rows, cols] for rows, cols in cuts]),
    )


def read_overview(path: str | Path, max_px: int) -> tuple[npt.NDArray[np.uint8], Affine, BoolArray]:
    """Read a whole raster, small, as a picture.

    Parameters
    ----------
    path : str or Path
        A file on this machine.
    max_px : int
        Longest side of the picture, px; at least 1. A smaller raster keeps its size.

    Returns
    -------
    rgb : (h, w, 3) uint8
        Grey where the raster has fewer than three bands. uint8 is as stored, other types are
        stretched between the 2nd and 98th percentile of each band's valid pixels; 0 where invalid.
    transform : Affine
        Maps (col, row) of the picture to the CRS.
    valid : (h, w) bool
        True = use this pixel.

    Raises
    ------
    SourceError
        If the raster cannot be used.
    TileError
        If it cannot be read.
    """
    return read_view(path, None, max_px)


def read_view(
    path: str | Path,
    bounds: tuple[float, float, float, float] | None,
    max_px: int,
    *,
    window: Window | None = None,
    src_crs: str | None = None,
) -> tuple[npt.NDArray[np.uint8], Affine, BoolArray]:
    """Read a part of a raster as a picture.

    Parameters
    ----------
    path : str or Path
        A file on this machine.
    bounds : tuple of float, optional
        (x0, y0, x1, y1) in the CRS of the raster; whatever of it lies on the raster is read, to
        whole pixels. Of a rotated raster that is the window that encloses the bounds. None: all.
    max_px : int
        Longest side of the picture, px; at least 1. A part with fewer pixels keeps them.
    window : Window, optional
        Instead of bounds: whole pixels of the raster; whatever of it lies on the raster is read.
    src_crs : str, optional
        CRS of the raster, if its file has none.

    Returns
    -------
    rgb : (h, w, 3) uint8
        Grey where the raster has fewer than three bands. uint8 is as stored, other types are
        stretched between the 2nd and 98th percentile of the part's valid pixels; 0 where invalid.
    transform : Affine
        Maps (col, row) of the picture to the CRS.
    valid : (h, w) bool
        True = use this pixel.

    Raises
    ------
    SourceError
        If the raster cannot be used, or bounds or window are turned around or off the raster.
    TileError
        If it cannot be read.
    """
    info = describe_raster(path, src_crs=src_crs)
    colors = info.bands - (info.alpha_band is not None)
    bands = select_bands(info, None, 3 if colors >= 3 else 1)
    window = _view_window(info, bounds) if window is None else _on_raster(info, window)
    full_height, full_width = int(window.height), int(window.width)
    reduction = max(1.0, max(full_height, full_width) / max_px)
    height = max(1, round(full_height / reduction))
    width = max(1, round(full_width / reduction))
    with open_raster(path) as src:
        pixels, valid = _read_small(src, info, bands, window, (height, width))
    if pixels.dtype != np.uint8:
        pixels = stretch(pixels, valid)
    pixels[:, ~valid] = 0
    rgb = np.moveaxis(np.broadcast_to(pixels, (3, height, width)), 0, -1)
    corner = window_transform(window, info.transform)
    transform = scaled_transform(corner, full_width / width, full_height / height)
    return np.ascontiguousarray(rgb), transform, valid


def _view_window(info: RasterInfo, bounds: tuple[float, float, float, float] | None) -> Window:
    """Return the window of whole pixels that encloses the bounds, clipped to the raster."""
    if bounds is None:
        return Window(0, 0, info.width, info.height)
    x0, y0, x1, y1 = bounds
    wanted = ",".join(f"{value:.10g}" for value in bounds)
    if not (np.isfinite(bounds).all() and x0 < x1 and y0 < y1):
        raise SourceError(
            f"bounds {wanted} hold no area; expected x0,y0,x1,y1 with x0 < x1 and y0 < y1"
        )
    cols, rows = _corners(~info.transform, x0, y0, x1, y1)
    # a thousandth of a pixel is rounding, not a wish for one pixel more
    left, right = max(0, math.floor(min(cols) + 1e-3)), math.ceil(max(cols) - 1e-3)
    top, bottom = max(0, math.floor(min(rows) + 1e-3)), math.ceil(max(rows) - 1e-3)
    right, bottom = min(info.width, right), min(info.height, bottom)
    if left >= right or top >= bottom:
        xs, ys = _corners(info.transform, 0, 0, info.width, info.height)
        covered = f"{min(xs):.10g},{min(ys):.10g},{max(xs):.10g},{max(ys):.10g}"
        raise SourceError(
            f"bounds {wanted} lie off {name_of(info.path)}, which covers {covered}; "
            "give bounds in its CRS"
        )
    return Window(left, top, right - left, bottom - top)


def _on_raster(info: RasterInfo, window: Window) -> Window:
    """Clip a window of whole pixels to the raster."""
    x, y, width, height = (int(v) for v in window.flatten())
    wanted = f"{x},{y},{width},{height}"
    if width < 1 or height < 1:
        raise SourceError(
            f"window {wanted} holds no pixels; expected col_off,row_off,width,height with at least "
            "one pixel each way"
        )
    left, top = max(0, x), max(0, y)
    right, bottom = min(info.width, x + width), min(info.height, y + height)
    if left >= right or top >= bottom:
        raise SourceError(
            f"window {wanted} lies off {name_of(info.path)}, which has {info.width} x "
            f"{info.height} px; give col_off,row_off,width,height"
        )
    return Window(left, top, right - left, bottom - top)


def _corners(
    transform: Affine, x0: float, y0: float, x1: float, y1: float
) -> tuple[DoubleArray, DoubleArray]:
    """Return x and y of the four corners of a box under an affine map."""
    x, y = np.array([x0, x0, x1, x1]), np.array([y0, y1, y0, y1])
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * x + b * y + c, d * x + e * y + f


def _read_small(
    src: DatasetReader,
    info: RasterInfo,
    bands: tuple[int, ...],
    window: Window,
    shape: tuple[int, int],
) -> tuple[npt.NDArray[Any], BoolArray]:
    """Read a window at a small size; GDAL takes overviews by itself."""
    whole = shape == (window.height, window.width)
    resampling = Resampling.nearest if whole else Resampling.average
    how: dict[str, Any] = {"window": window, "out_shape": (len(bands), *shape)}
    try:
        pixels, valid = _stored(src, info, bands, **how, resampling=resampling)
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        if info.mask_kind == "mask":
            per_dataset = MaskFlags.per_dataset in src.mask_flag_enums[0]
            which = [1] if per_dataset or info.palette else list(bands)
            how = {"window": window, "out_shape": (len(which), *shape)}
            valid &= (src.read_masks(which, **how) != 0).all(axis=0)
        if info.alpha_band is not None:
            alpha = src.read(info.alpha_band, window=window, out_shape=shape)
            valid &= alpha > alpha_floor(src)
    except (RasterioError, OSError) as error:
        raise TileError(
            f"cannot read {name_of(info.path)}: {error}; geoseg check tells more"
        ) from error
    return pixels, valid


def stretch(pixels: npt.NDArray[Any], valid: BoolArray) -> npt.NDArray[np.uint8]:
    """Map the 2nd to 98th percentile of each band's valid pixels to 0 to 255; 0 elsewhere.

    ``pixels`` are (bands, h, w) of any type, ``valid`` is (h, w).
    """
    out = np.zeros(pixels.shape, np.uint8)
    for band, target in zip(pixels, out, strict=True):
        if valid.any():
            low, high = np.percentile(band[valid].astype(np.float64), (2, 98))
            scaled = (band[valid].astype(np.float64) - low) / max(high - low, 1e-9)
            target[valid] = np.clip(np.rint(scaled * 255), 0, 255).astype(np.uint8)
    return out
