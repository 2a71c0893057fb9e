"""Find broken and unfit files before the night, without reading pixels unless asked to.

A truncated TIFF opens fine and its first blocks read fine; the run would fail hours later. Its
directory says where each block lies, so comparing that with the size of the file finds all lost
blocks in milliseconds. The directory is read here and not through GDAL, because GDAL gives one
block per call, and hides masks and overviews.

Bytes that changed inside a file show only when blocks are decoded. Of JPEG not even then: its
decoder takes almost any bytes for a picture.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from geoseg.errors import GeosegError, SourceError, TileError
from geoseg.imagery.georef import WorkingGrid, ground_gsd_m, scaled_transform
from geoseg.imagery.limits import check_stream
from geoseg.imagery.radiometry import (
    PROBABILITIES,
    BandStatistics,
    Expectation,
    Finding,
    Sight,
    band_name,
    judge,
    plan_scaling,
    scale_text,
    without_fill,
)
from geoseg.imagery.read import RasterReader
from geoseg.imagery.remote import (
    RemoteFile,
    is_bucket,
    is_remote,
    name_of,
    remote_facts,
    sidecars_of,
)
from geoseg.imagery.source import (
    describe_raster,
    driver_of,
    open_raster,
    raster_crs,
    select_bands,
)
from geoseg.imagery.vrt import is_allowed_vrt, read_vrt
from geoseg.records import BoolArray, RasterInfo

_UINT64 = npt.NDArray[np.uint64]

_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_OFFSETS, _COUNTS = (273, 324), (279, 325)
# ^ TIFF 6.0: StripOffsets or TileOffsets; StripByteCounts or TileByteCounts
_WIDTH, _HEIGHT, _STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 278, 322, 323
_LAYOUT = (_WIDTH, _HEIGHT, _STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT)
_MOST_DIRECTORIES = 1_000
_TAIL_BYTES = 65_536
_ENDS_AT_ONCE = 1_000_000
_NOT_CHECKED = (
    "whether the object is complete was not checked: its bytes cannot be had without GDAL; --read "
    "decodes every block"
)

_HUGE_PX = 100_000_000
"""From here on overviews matter."""
_WIDE_PX = 8_192
"""Strips wider than this make every window read much that it does not need."""
_LOSSY = ("JPEG", "YCBCR JPEG", "WEBP")
_SAMPLE_VALUES = 24_000_000
"""Pixels times bands that statistics are taken from, at most (but at least one block)."""
_SAMPLE_BLOCKS = 256
_KEPT_VALUES = 1_000_000
"""Values of a band that percentiles are taken from, some more or less."""
_OVERVIEW_SIDE_PX = 512
"""Statistics come from the coarsest overview whose longer side has this much."""
_READ_PX = 4_000_000
"""Blocks are read together up to this many pixels, and one by one only where that fails."""
_MOST_FAILURES = 5_000
"""Blocks that do not decode before reading ends: a header may claim millions."""
_MAP_SIDE = 256
"""Most cells a side of a map of validity that is made from overviews."""
_PROBES = 32
"""Windows a side that are looked into where there are no overviews."""
_PROBE_PX = 16

Progress = Callable[[int, int], None]
"""Called with blocks read and all blocks."""


@dataclass(frozen=True, slots=True)
class TruncationReport:
    """What of a file lies past its end."""

    path: str
    """As given."""
    blocks: int
    """Blocks of the full-resolution image that hold data (sparse ones do not)."""
    lost: int
    """Those of them that end past the end of the file."""
    lost_elsewhere: int
    """The same for the blocks of masks and overviews."""
    file_bytes: int
    """Size of the file."""
    needed_bytes: int
    """Size it would have to have, at least."""
    header_lost: bool = False
    """True if the directory itself, or the end marker of a PNG or JPEG, is not there."""
    lost_window: tuple[int, int, int, int] | None = None
    """(first row, end row, first column, end column) around the lost blocks of the image, px."""

    @property
    def share_lost(self) -> float:
        """Share of the image's blocks that are lost, 0 to 1; 1 if the header is."""
        if self.header_lost:
            return 1.0
        return self.lost / self.blocks if self.blocks else 0.0

    @property
    def problem(self) -> str | None:
        """What is wrong, in a line; None if nothing is."""
        name = name_of(self.path)
        if self.header_lost:
            return f"{name} is truncated: its end is missing; copy it again"
        missing = f"{self.needed_bytes - self.file_bytes:,} bytes are missing"
        if self.lost:
            # never '0 %' for a file that is truncated, nor '100 %' for one that is partly there
            percent = min(
                max(round(100 * self.share_lost), 1), 99 if self.lost < self.blocks else 100
            )
            return (
                f"{name} is truncated: {percent} % of its blocks lie past the end of the file "
                f"({missing}); copy it again"
            )
        if self.lost_elsewhere:
            return (
                f"{name} is truncated: {self.lost_elsewhere} blocks of its mask or overviews lie "
                f"past the end of the file ({missing}); copy it again"
            )
        return None


def check_truncation(path: str | Path) -> TruncationReport:
    """Compare where the blocks of a file lie with the size of the file.

    TIFF and BigTIFF in full, with masks and overviews; of PNG and JPEG the end marker. No pixel is
    read: 50 million blocks take a second, usual files milliseconds.

    Parameters
    ----------
    path : str or Path
        A file on this machine.

    Returns
    -------
    TruncationReport
        Sparse blocks (offset and size 0) are no loss. A format without such a list is not judged.

    Raises
    ------
    SourceError
        If the file cannot be read at all, or its lists of blocks pass a limit.
    """
    try:
        with _stream(path) as (stream, size):
            check_stream(path, stream, size)
            stream.seek(0)
            head = stream.read(8)
            if head[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
                return _check_tiff(stream, str(path), size)
            return TruncationReport(
                str(path), 0, 0, 0, size, size, header_lost=_end_is_missing(stream, head, size)
            )
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path") from error


@contextmanager
def _stream(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open the bytes of a file, here or behind http, and tell how many there are."""
    if is_remote(path):
        with RemoteFile(str(path), scan=True) as remote:
            yield cast("BinaryIO", remote), remote.facts.size
        return
    with Path(path).open("rb") as stream:
        yield stream, Path(path).stat().st_size


def check_images(paths: Sequence[str | Path], *, src_crs: str | None = None) -> list[SourceError]:
    """Find what keeps images from being used, before any work is done.

    Parameters
    ----------
    paths : sequence of str or Path
        As `geoseg.imagery.inputs.find_images` returns them.
    src_crs : str, optional
        CRS of those that have none.

    Returns
    -------
    list of SourceError
        One per bad file, in the order of `paths`, not raised; empty if all can be used.
    """
    problems = []
    for path in paths:
        try:
            _check_image(path, src_crs)
        except SourceError as error:
            problems.append(error)
    return problems


def _check_image(path: str | Path, src_crs: str | None = None) -> None:
    """Raise what is wrong with one image; truncation first, it explains the rest."""
    for file in _files_of(path):
        if problem := check_truncation(file).problem:
            raise SourceError(problem)
    describe_raster(path, src_crs=src_crs)


@dataclass(frozen=True, slots=True)
class RasterFacts:
    """What the header of a raster says, also of one that cannot be used."""

    driver: str
    width: int
    """Columns."""
    height: int
    """Rows."""
    bands: int
    dtype: str
    colors: tuple[str, ...]
    """Colour interpretation of each band."""
    crs: str | None
    """Authority and code where it has one, else its name."""
    gsd_m: float | None
    """Ground metres per pixel at the centre; None where that is not known."""
    bounds: tuple[float, float, float, float] | None
    """(left, bottom, right, top) in the CRS."""
    mask: str
    """'none', 'nodata VALUE', 'alpha', '.msk' or 'internal'."""
    block_shape: tuple[int, int]
    """(rows, cols) of a block."""
    codec: str
    """Compression, 'none' without."""
    interleave: str
    """'pixel' or 'band'."""
    overviews: tuple[int, ...]
    """Factors."""
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Which part of an image is not there."""

    share: float
    """Of its blocks, 0 to 1."""
    blocks: int
    """Lost ones."""
    rows: tuple[int, int] | None
    """First and end row around them, px."""
    cols: tuple[int, int] | None
    """First and end column around them, px."""
    bounds: tuple[float, float, float, float] | None
    """(left, bottom, right, top) around them in the CRS."""

    @property
    def place(self) -> str:
        """Where, in words; '' if that is not known."""
        if self.rows is None or self.cols is None:
            return ""
        words = f"rows {self.rows[0]}-{self.rows[1]}, cols {self.cols[0]}-{self.cols[1]}"
        if self.bounds is not None:
            words += " (bounds " + ",".join(f"{value:.10g}" for value in self.bounds) + ")"
        return words


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What is known of one image before the night."""

    path: str
    problems: tuple[str, ...] = ()
    """Why it cannot be used; empty if it can."""
    damaged: bool = False
    """True if bytes are missing or blocks do not decode."""
    notes: tuple[str, ...] = ()
    """What does not hinder a run but may spoil its result."""
    facts: RasterFacts | None = None
    """None if it does not open."""
    loss: Loss | None = None
    """What of the image is not there."""
    statistics: tuple[BandStatistics, ...] = ()
    """One per band, if asked for."""
    statistics_from: str = ""
    """What they were taken from."""
    blocks_read: int | None = None
    """Blocks decoded, masks and overviews among them; None if not asked for."""
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """'ok', 'damaged' or 'unusable'."""
        return "damaged" if self.damaged else "unusable" if self.problems else "ok"


def check_image(
    path: str | Path,
    expected: Expectation | None = None,
    *,
    bidx: tuple[int, ...] | None = None,
    src_crs: str | None = None,
    statistics: bool = False,
    read: bool = False,
    progress: Progress | None = None,
    scale: tuple[float, float] | str | None = None,
) -> ImageReport:
    """Find out whether an image can be used, and what may spoil the result.

    Parameters
    ----------
    path : str or Path
        A file on this machine.
    expected : Expectation, optional
        Of the model that is to run on it.
    bidx : tuple of int, optional
        1-based bands that will be read.
    src_crs : str, optional
        CRS of the image, if its file has none.
    statistics : bool
        Take statistics from an overview or, without one, from blocks spread over the image.
    read : bool
        Decode every block, those of masks and overviews too.
    progress : callable, optional
        Called while blocks are read.
    scale : (float, float) or 'none', optional
        As ``--scale`` of ``geoseg detect``.

    Returns
    -------
    ImageReport
        Whatever is wrong with the file; nothing is raised for it.
    """
    begun = time.perf_counter()
    report = ImageReport(str(path))
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return replace(report, problems=("the file's name is not valid UTF-8; rename it",))
    try:
        report = _look(report, _Wanted(expected, bidx, src_crs, statistics, scale))
        if read and report.facts is not None:
            report = _read_all(report, progress)
    except (GeosegError, RasterioError, OSError) as error:
        report = replace(report, problems=(*report.problems, str(error)))
    except Exception as error:  # noqa: BLE001  # one odd file must not hide what ails the others
        reason = f"{path}: cannot be judged ({type(error).__name__}: {error})"
        report = replace(report, problems=(*report.problems, reason))
    return replace(report, seconds=round(time.perf_counter() - begun, 4))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an image is judged by."""

    expected: Expectation | None
    bidx: tuple[int, ...] | None
    src_crs: str | None
    statistics: bool
    scale: tuple[float, float] | str | None


def _judged(
    info: RasterInfo, bands: tuple[int, ...], report: ImageReport, wanted: _Wanted
) -> list[Finding]:
    """Return what `geoseg detect` would say of this image alone."""
    assert wanted.expected is not None  # noqa: S101  # asked by the caller
    by_band = {band.band: band for band in report.statistics}
    sight = replace(
        sight_of(info, bands, bands_chosen=wanted.bidx is not None),
        statistics=tuple(by_band[band] for band in bands) if by_band else (),
        source=report.statistics_from,
    )
    (scaling,) = plan_scaling([sight], wanted.expected, wanted.scale)
    return judge(sight, wanted.expected, scaling, scale=scale_text(wanted.scale))


def _look(report: ImageReport, wanted: _Wanted) -> ImageReport:
    """Judge an image by its header, and by statistics if they are wanted."""
    file = report.path
    losses = [check_truncation(f) for f in _files_of(file)]
    found = [loss for loss in losses if loss.problem]
    problems = [str(loss.problem) for loss in found]
    with suppress(GeosegError), open_raster(file) as src:
        report = replace(report, facts=_facts(src, file), loss=_loss(losses, src))
    notes = [_NOT_CHECKED] if is_bucket(file) else []
    info, bands = None, None
    try:
        with _warnings_as(notes):
            info = describe_raster(file, src_crs=wanted.src_crs)
        if wanted.expected is not None or wanted.bidx is not None:
            n_bands = len(wanted.bidx or ()) if wanted.expected is None else wanted.expected.bands
            bands = select_bands(info, wanted.bidx, n_bands)
    except SourceError as error:
        # what does not open at all because bytes are missing needs no second word
        if not (found and report.facts is None):
            problems.append(str(error))
    if info is not None:
        notes += _notes(info, report.facts)
        if wanted.statistics and not found:
            of_bands, source = read_statistics(info)
            report = replace(report, statistics=of_bands, statistics_from=source)
        if wanted.expected is not None and bands is not None:
            for finding in _judged(info, bands, report, wanted):
                refused = finding.level == "refuse" and finding.kind != "blank"
                (problems if refused else notes).append(finding.text)
    return replace(report, problems=tuple(problems), damaged=bool(found), notes=tuple(notes))


def _files_of(path: str | Path) -> list[str]:
    """Return a raster and what opens as its mask or overviews, as far as their bytes can be had."""
    if is_bucket(path):
        return []
    if is_remote(path):
        sidecars = sidecars_of(str(path), driver_of(str(path)))
        return [str(path), *(p for name, p in sidecars.items() if name.endswith((".msk", ".ovr")))]
    if is_allowed_vrt(path):
        sources = read_vrt(str(path)).sources
        return [file for source in sources for file in _files_of(source)]
    if not Path(path).is_file():
        return []
    beside = [f"{path}{suffix}" for suffix in (".msk", ".ovr")]
    return [str(path), *(sidecar for sidecar in beside if Path(sidecar).is_file())]


@contextmanager
def _warnings_as(notes: list[str]) -> Iterator[None]:
    """Collect what would be logged of a raster, instead of logging it."""

    def collect(record: logging.LogRecord) -> bool:
        notes.append(record.getMessage().partition(": ")[2])
        return False

    log = logging.getLogger(describe_raster.__module__)
    log.addFilter(collect)
    try:
        yield
    finally:
        log.removeFilter(collect)


def _facts(src: DatasetReader, file: str) -> RasterFacts:
    """Read the header."""
    gsd = None
    bounds = _Box(0, src.height, 0, src.width).bounds(src)
    crs = raster_crs(src)
    if bounds is not None and crs is not None:
        with suppress(GeosegError):
            gsd = ground_gsd_m(crs.to_wkt(), src.transform, src.width, src.height)
    if gsd is not None and not np.isfinite(gsd):
        gsd = None
    structure = src.tags(ns="IMAGE_STRUCTURE")
    rows, cols = src.block_shapes[0]
    return RasterFacts(
        driver=src.driver,
        width=src.width,
        height=src.height,
        bands=src.count,
        dtype=src.dtypes[0],
        colors=tuple(color.name for color in src.colorinterp),
        crs=_crs_name(src),
        gsd_m=gsd,
        bounds=bounds,
        mask=_mask(src, file),
        block_shape=(int(rows), int(cols)),
        codec=str(structure.get("COMPRESSION", "none")),
        interleave=str(structure.get("INTERLEAVE", "band")).lower(),
        overviews=tuple(src.overviews(1)),
        file_bytes=_bytes_of(file),
    )


def _bytes_of(file: str) -> int:
    """Return the size of an image; 0 where nobody tells."""
    if is_bucket(file):
        return 0
    if is_remote(file):
        return remote_facts(file).size
    if is_allowed_vrt(file):
        return sum(Path(source).stat().st_size for source in read_vrt(file).sources)
    return Path(file).stat().st_size


def _crs_name(src: DatasetReader) -> str | None:
    """Return authority and code, or the first name in the WKT; None without a CRS."""
    crs = raster_crs(src)
    if crs is None:
        return None
    authority = crs.to_authority()
    if authority is not None:
        return ":".join(authority)
    return str(crs.to_wkt()).partition('"')[2].partition('"')[0]


def _mask(src: DatasetReader, file: str) -> str:
    """Say where validity is declared."""
    flags = src.mask_flag_enums[0]
    if MaskFlags.alpha in flags:
        return "alpha"
    if not flags:
        return "per band"
    if MaskFlags.nodata in flags:
        # of NODATA_VALUES no band knows its own
        values = dict.fromkeys(f"{v:g}" for v in src.nodatavals if v is not None)
        return f"nodata {' '.join(values) or src.tags().get('NODATA_VALUES', '')}".rstrip()
    if MaskFlags.per_dataset not in flags:
        return "none"
    beside = any(str(name).endswith(".msk") for name in _files_of(file))
    return ".msk" if beside else "internal"


def _loss(losses: Sequence[TruncationReport], src: DatasetReader) -> Loss | None:
    """Say where in the image the lost blocks lie; of a mosaic its sources say it themselves."""
    if not losses or not losses[0].lost or src.driver == "VRT":
        return None
    truncation = losses[0]
    if truncation.lost_window is None:
        return Loss(truncation.share_lost, truncation.lost, None, None, None)
    window = _Box(*truncation.lost_window)
    return Loss(
        truncation.share_lost, truncation.lost, window.rows, window.cols, window.bounds(src)
    )


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle of pixels."""

    row: int
    end_row: int
    col: int
    end_col: int

    @property
    def rows(self) -> tuple[int, int]:
        return self.row, self.end_row

    @property
    def cols(self) -> tuple[int, int]:
        return self.col, self.end_col

    def bounds(self, src: DatasetReader) -> tuple[float, float, float, float] | None:
        """Return (left, bottom, right, top) in the CRS, if the raster says where it lies."""
        if raster_crs(src) is None or src.transform.almost_equals(Affine.identity()):
            return None
        cols, rows = np.array([self.cols, self.cols]).T.ravel(), np.array([*self.rows, *self.rows])
        a, b, c, d, e, f = tuple(src.transform)[:6]
        # all four corners: the raster may be rotated or south-up
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _notes(info: RasterInfo, facts: RasterFacts | None) -> list[str]:
    """Say what the header gives away that a result may suffer from."""
    notes = []
    if info.bands == 4 and info.colors[3] == "undefined":
        notes.append(
            "band 4 is not said to be alpha or a colour and is left out; if it is alpha: "
            f"gdal_edit.py -colorinterp_4 alpha {info.path}"
        )
    if facts is None:
        return notes
    if info.mask_kind == "nodata" and facts.codec in _LOSSY:
        notes.append(
            f"{facts.codec} does not keep {facts.mask} exactly: expect specks along the edge of "
            "the image; a mask (gdal_translate -mask) is safer"
        )
    strips = facts.block_shape[1] == info.width > _WIDE_PX
    if not facts.overviews and strips and info.width * info.height > _HUGE_PX:
        notes.append(
            f"strips {info.width} px wide and no overviews: every window reads whole rows; a COG "
            f"is faster: gdal_translate -of COG {info.path} cog.tif"
        )
    return notes


def sight_of(
    info: RasterInfo,
    bands: Sequence[int],
    *,
    statistics: bool = False,
    values: int | None = None,
    skip_damaged: bool = True,
    **known: Any,
) -> Sight:
    """Look at an image as a model will see it, for `geoseg.imagery.radiometry.judge`.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    bands : sequence of int
        1-based, as they will be read.
    statistics : bool
        Take statistics of these bands.
    values, skip_damaged
        As `read_statistics` takes them.
    **known
        Other fields of `Sight`.

    Raises
    ------
    SourceError, TileError
        If the file does not open; without `skip_damaged` also where it cannot be read.
    """
    described = info.names or ("",) * info.bands
    names = tuple(map(band_name, info.colors, described))
    sight = Sight(info, tuple(bands), names, **known)
    if not statistics:
        return sight
    found, source = read_statistics(info, bands, values=values, skip_damaged=skip_damaged)
    return replace(sight, statistics=found, source=source)


def read_statistics(
    info: RasterInfo,
    bands: Sequence[int] = (),
    *,
    values: int | None = None,
    skip_damaged: bool = False,
) -> tuple[tuple[BandStatistics, ...], str]:
    """Take statistics of bands from an overview, or from blocks spread over the image.

    The same file gives the same figures, to the last bit.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    bands : sequence of int
        1-based; all bands of the file where none are named.
    values : int
        Pixels times bands that are read, at most (but at least one block); 24 million by default.
    skip_damaged : bool
        Leave out what cannot be read, instead of raising.

    Returns
    -------
    bands : tuple of BandStatistics
        In the order of `bands`.
    source : str
        What was read, in words.

    Raises
    ------
    SourceError, TileError
        If the file does not open, or cannot be read.
    """
    wanted = tuple(bands) or tuple(range(1, info.bands + 1))
    read = tuple(dict.fromkeys(wanted))
    # where every band is read as a band, alpha is applied here
    alpha = info.alpha_band if len(bands) == 0 else None
    with _reading(info, read, values or _SAMPLE_VALUES) as (reader, windows, source):
        n_pixels = sum(int(window.width * window.height) for window in windows)
        sums = [_Sums(max(1, n_pixels // _KEPT_VALUES)) for _ in read]
        for window in windows:
            try:
                pixels, valid = reader.read(window)
            except TileError:
                if not skip_damaged:
                    raise
                continue
            if alpha is not None:
                valid &= pixels[alpha - 1] != 0
            for band, total in zip(pixels, sums, strict=True):
                total.add(band[valid], valid.size)
    limits = np.iinfo(info.dtype) if np.dtype(info.dtype).kind in "iu" else None
    ends = None if limits is None else (limits.min, limits.max)
    found = {band: s.result(band, ends) for s, band in zip(sums, read, strict=True)}
    return tuple(found[band] for band in wanted), source


@contextmanager
def _reading(
    info: RasterInfo, bands: tuple[int, ...], values: int
) -> Iterator[tuple[RasterReader, list[Window], str]]:
    """Open what statistics are taken from, and list the windows to read."""
    with open_raster(info.path) as src:
        factors = src.overviews(1)
        longest = max(info.width, info.height)
        wanted = [f for f in factors if 0 < f <= longest / _OVERVIEW_SIDE_PX]
        budget = max(1, values // len(bands))
        if wanted and longest > 2 * _OVERVIEW_SIDE_PX:
            with _overview(src, info, factors.index(max(wanted)), bands) as reader:
                grid = reader[1]
                windows = [Window(0, 0, grid.width, grid.height)]
                if grid.width * grid.height <= budget:
                    yield reader[0], windows, f"overview {max(wanted)}"
                    return
        grid = WorkingGrid(info.transform, info.height, info.width, 1.0, 1.0, info.gsd_m)
        windows, source = _sample(info, budget)
        yield RasterReader(src, info, grid, bands), windows, source


@contextmanager
def _overview(
    src: DatasetReader, info: RasterInfo, level: int, bands: tuple[int, ...]
) -> Iterator[tuple[RasterReader, WorkingGrid]]:
    """Open an overview as a grid of its own pixels."""
    with open_raster(info.path, overview_level=level) as small:
        scale_x, scale_y = info.width / small.width, info.height / small.height
        grid = WorkingGrid(
            transform=scaled_transform(info.transform, scale_x, scale_y),
            height=small.height,
            width=small.width,
            scale_x=scale_x,
            scale_y=scale_y,
            gsd_m=info.gsd_m * math.sqrt(scale_x * scale_y),
        )
        yield RasterReader(small, info, grid, bands, full=src), grid


def _sample(info: RasterInfo, budget_px: int) -> tuple[list[Window], str]:
    """Return windows of whole blocks, evenly spread over the image, and what they are."""
    # a block that is the image, as in PNG, is read in part
    cols = min(info.block_shape[1], info.width)
    rows = min(info.block_shape[0], info.height, max(1, budget_px // cols))
    down, across = -(-info.height // rows), -(-info.width // cols)
    most = max(1, min(_SAMPLE_BLOCKS, budget_px // (rows * cols)))
    if down * across <= most or info.height * info.width <= budget_px:
        n_down, n_across = down, across
    else:
        n_across = max(1, min(across, round(math.sqrt(most * across / down)), most))
        n_down = max(1, min(down, most // n_across))
    tops = np.unique(np.linspace(0, down - 1, n_down).round().astype(int)) * rows
    lefts = np.unique(np.linspace(0, across - 1, n_across).round().astype(int)) * cols
    windows = [
        Window(int(x), int(y), min(cols, info.width - int(x)), min(rows, info.height - int(y)))
        for y in tops
        for x in lefts
    ]
    if len(windows) == down * across:
        return windows, "all pixels"
    return windows, f"{len(windows)} of {down * across} blocks"


@dataclass(slots=True)
class _Sums:
    """Adds up the valid values of one band."""

    step: int = 1
    """Every so manieth value is kept for percentiles."""
    pixels: int = 0
    values: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    at_ends: dict[float, int] = field(default_factory=dict)
    squares: float = 0.0
    kept: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, values: npt.NDArray[Any], pixels: int) -> None:
        """Add the valid values of a window of so many pixels."""
        self.pixels += pixels
        self.values += values.size
        if not values.size:
            return
        self.total += float(values.sum(dtype=np.float64))
        self.squares += float(np.square(values, dtype=np.float64).sum())
        self.kept.append(values[:: self.step])
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            for end in (limits.min, limits.max):
                self.at_ends[end] = self.at_ends.get(end, 0) + int((values == end).sum())

    def result(self, band: int, ends: tuple[int, int] | None) -> BandStatistics:
        """Return the figures."""
        invalid = round(1 - self.values / max(self.pixels, 1), 6)
        if not self.values:
            return BandStatistics(band, None, None, None, 1.0, None, None)
        low, high = (
            (None, None)
            if ends is None
            else (round(self.at_ends.get(end, 0) / self.values, 6) for end in ends)
        )
        mean = self.total / self.values
        std = math.sqrt(max(self.squares / self.values - mean**2, 0.0))
        shown, fill = without_fill(np.concatenate(self.kept))
        quantiles = np.quantile(shown.astype(np.float64), PROBABILITIES)
        # a sample may have missed the ends
        quantiles[-1] = self.most
        quantiles[0] = quantiles[0] if fill else self.least
        return BandStatistics(
            band, self.least, self.most, _short(mean), invalid, low, high, _short(std),
            tuple(float(q) for q in quantiles),
            round(fill, 6),
        )  # fmt: skip


def _short(value: float) -> float:
    """Return a figure without the digits that nobody reads, whatever its size."""
    return round(value, 4) if abs(value) >= 1 else float(f"{value:.6g}")


def _read_all(report: ImageReport, progress: Progress | None) -> ImageReport:
    """Decode every block of an image, of its mask and of its overviews."""
    with open_raster(report.path) as src:
        levels = range(len(src.overviews(1)))
        sizes = [math.prod(_block_grid(src))]
        for level in levels:
            with open_raster(report.path, overview_level=level) as small:
                sizes.append(math.prod(_block_grid(small)))
        done = _Counter(sum(sizes), progress)
        failed = _failing(src, done)
        loss = _loss_of(failed, sizes[0], src)
    elsewhere: list[_Failure] = []
    for level in levels:
        with open_raster(report.path, overview_level=level) as small:
            elsewhere += _failing(small, done)
    report = replace(report, blocks_read=done.read)
    name = name_of(report.path)
    problems = list(report.problems)
    if failed and loss is not None:
        problems.append(
            f"{name} is damaged: {_many(failed)} of {sizes[0]} blocks do not decode, "
            f"{loss.place}; copy it again (GDAL: {failed[0].reason})"
        )
    if elsewhere:
        problems.append(
            f"{name} is damaged: {_many(elsewhere)} blocks of its overviews do not decode; build "
            f"them again with gdaladdo (GDAL: {elsewhere[0].reason})"
        )
    damaged = report.damaged or bool(failed or elsewhere)
    return replace(report, problems=tuple(problems), damaged=damaged, loss=loss or report.loss)


def _many(failed: Sequence[_Failure]) -> str:
    """Return how many blocks failed, in words: reading ends at `_MOST_FAILURES`."""
    return f"{'at least ' if len(failed) >= _MOST_FAILURES else ''}{len(failed)}"


@dataclass(frozen=True, slots=True)
class _Failure:
    """A block that does not decode."""

    box: _Box
    reason: str


@dataclass(slots=True)
class _Counter:
    """Counts blocks and tells."""

    total: int
    progress: Progress | None
    read: int = 0

    def add(self, blocks: int) -> None:
        self.read += blocks
        if self.progress is not None:
            self.progress(self.read, self.total)


def _block_grid(src: DatasetReader) -> tuple[int, int]:
    """Return how many blocks lie below and beside each other."""
    rows, cols = src.block_shapes[0]
    return -(-src.height // rows), -(-src.width // cols)


def _failing(src: DatasetReader, done: _Counter) -> list[_Failure]:
    """Read all blocks, many at a time, and one by one where that fails; not for ever."""
    rows, cols = src.block_shapes[0]
    down, across = _block_grid(src)
    at_once = max(1, min(across, _READ_PX // (rows * cols)))
    failed = []
    for row in range(down):
        for col in range(0, across, at_once):
            n_blocks = min(at_once, across - col)
            if _reads(src, _blocks(src, row, col, n_blocks)) is not None:
                for one in range(col, col + n_blocks):
                    box = _blocks(src, row, one, 1)
                    reason = _reads(src, box)
                    if reason is not None:
                        failed.append(_Failure(box, reason))
                    if len(failed) == _MOST_FAILURES:
                        return failed
            done.add(n_blocks)
    return failed


def _blocks(src: DatasetReader, row: int, col: int, count: int) -> _Box:
    """Return the pixels of neighbouring blocks."""
    rows, cols = src.block_shapes[0]
    return _Box(
        row * rows,
        min((row + 1) * rows, src.height),
        col * cols,
        min((col + count) * cols, src.width),
    )


def _reads(src: DatasetReader, box: _Box) -> str | None:
    """Return why pixels or their mask cannot be read; None if they can."""
    window = Window(box.col, box.row, box.end_col - box.col, box.end_row - box.row)
    try:
        src.read(window=window)
        if src.mask_flag_enums[0] == [MaskFlags.per_dataset]:
            src.read_masks(1, window=window)
    except (RasterioError, OSError) as error:
        return str(error.__cause__ or error)
    return None


def _loss_of(failed: Sequence[_Failure], blocks: int, src: DatasetReader) -> Loss | None:
    """Say which part of the image does not decode."""
    if not failed:
        return None
    around = _Box(
        min(f.box.row for f in failed),
        max(f.box.end_row for f in failed),
        min(f.box.col for f in failed),
        max(f.box.end_col for f in failed),
    )
    share = len(failed) / max(blocks, 1)
    return Loss(share, len(failed), around.rows, around.cols, around.bounds(src))


def map_validity(info: RasterInfo, bands: tuple[int, ...]) -> BoolArray:
    """Map roughly where a raster has valid pixels, without reading all of it.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    bands : tuple of int
        1-based bands that will be read.

    Returns
    -------
    (h, w) bool
        Cells of one size that cover the raster. From an overview, a cell is True if any of its
        pixels is valid; without overviews, if any pixel of a small window at its middle is.

    Raises
    ------
    SourceError, TileError
        If the file does not open, or cannot be read.
    """
    reads_alpha = info.alpha_band in bands
    declared = info.mask_kind != "none" and not (info.mask_kind == "alpha" and reads_alpha)
    if not declared and np.dtype(info.dtype).kind != "f":
        return np.ones((1, 1), np.bool_)
    longest = max(info.width, info.height)
    with open_raster(info.path) as src:
        factors = src.overviews(1)
        fitting = [f for f in factors if 0 < f <= longest / _MAP_SIDE]
        if fitting and longest / max(fitting) <= 16 * _MAP_SIDE:
            level = factors.index(max(fitting))
            with _overview(src, info, level, bands) as (reader, grid):
                _, valid = reader.read(Window(0, 0, grid.width, grid.height))
            return _any_of(valid, -(-max(valid.shape) // _MAP_SIDE))
        grid = WorkingGrid(info.transform, info.height, info.width, 1.0, 1.0, info.gsd_m)
        return _probe(RasterReader(src, info, grid, bands), info)


def _any_of(valid: BoolArray, factor: int) -> BoolArray:
    """Join squares of cells: True where any of them is."""
    rows, cols = (-(-n // factor) for n in valid.shape)
    room = ((0, rows * factor - valid.shape[0]), (0, cols * factor - valid.shape[1]))
    padded = np.pad(valid, room)
    return np.asarray(padded.reshape(rows, factor, cols, factor).any(axis=(1, 3)))


def _probe(reader: RasterReader, info: RasterInfo) -> BoolArray:
    """Look into small windows on a regular grid."""
    rows, cols = (max(1, min(_PROBES, n // _PROBE_PX)) for n in (info.height, info.width))
    out = np.zeros((rows, cols), np.bool_)
    for row in range(rows):
        for col in range(cols):
            y = round((row + 0.5) * info.height / rows - _PROBE_PX / 2)
            x = round((col + 0.5) * info.width / cols - _PROBE_PX / 2)
            out[row, col] = reader.read(Window(x, y, _PROBE_PX, _PROBE_PX))[1].any()
    return out


def _end_is_missing(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Tell whether a PNG or JPEG lacks its end marker (after it, other bytes may follow)."""
    if head.startswith(b"\x89PNG"):
        marker = b"IEND"
    elif head.startswith(b"\xff\xd8\xff"):
        marker = b"\xff\xd9"
    else:
        return False
    stream.seek(max(0, size - _TAIL_BYTES))
    return marker not in stream.read()


def _check_tiff(stream: BinaryIO, path: str, size: int) -> TruncationReport:
    """Add up the lost blocks of all directories of a TIFF."""
    blocks = lost = elsewhere = needed = 0
    window = None
    header_lost = False
    try:
        for index, directory in enumerate(_directories(stream, size)):
            offsets, counts = directory.offsets, directory.counts
            used = (offsets > 0) & (counts > 0)
            past = np.zeros(len(used), np.bool_)
            # piece by piece: lists of ten million blocks should not need room for several copies
            for start in range(0, len(used), _ENDS_AT_ONCE):
                some = slice(start, start + _ENDS_AT_ONCE)
                # as float: a hostile offset near 2**64 must not wrap around to a small one
                ends = offsets[some].astype(np.float64) + counts[some].astype(np.float64)
                past[some] = used[some] & (ends > size)
                needed = max(needed, int(ends[used[some]].max(initial=0)))
            if index == 0:
                blocks, lost = int(used.sum()), int(past.sum())
                window = _around(past, directory.layout)
            else:
                elsewhere += int(past.sum())
    except (struct.error, ValueError):
        header_lost = True
    needed = max(needed, size)
    return TruncationReport(path, blocks, lost, elsewhere, size, needed, header_lost, window)


def _around(past: BoolArray, layout: dict[int, int]) -> tuple[int, int, int, int] | None:
    """Return (first row, end row, first column, end column), px, around some blocks."""
    width, height = layout.get(_WIDTH, 0), layout.get(_HEIGHT, 0)
    block_width = layout.get(_TILE_WIDTH, width)
    block_height = layout.get(_TILE_HEIGHT, min(layout.get(_STRIP_ROWS, height), height))
    if not past.any() or min(width, height, block_width, block_height) < 1:
        return None
    across, down = -(-width // block_width), -(-height // block_height)
    # where bands are stored one after the other, the list has one run of blocks for each
    rows, cols = np.divmod(np.flatnonzero(past) % (across * down), across)
    return (
        int(rows.min()) * block_height,
        min((int(rows.max()) + 1) * block_height, height),
        int(cols.min()) * block_width,
        min((int(cols.max()) + 1) * block_width, width),
    )


@dataclass(frozen=True, slots=True)
class _Directory:
    """One image of a TIFF: the full one, a mask or an overview."""

    offsets: _UINT64
    """Where each block begins; 0 where a block is left out."""
    counts: _UINT64
    """Bytes of each block."""
    layout: dict[int, int]
    """Tag to value, of the tags that say how blocks lie in the image."""


def _directories(stream: BinaryIO, size: int) -> Iterator[_Directory]:
    """Yield the directories that list blocks.

    Raises ValueError or struct.error where the file ends before the directory does.
    """
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    big = struct.unpack(f"{order}H", stream.read(2))[0] == 43
    # offset of the first directory; the number of entries; one entry; a pointer
    stream.seek(8 if big else 4)
    pointer, count_format = (f"{order}Q", f"{order}Q") if big else (f"{order}I", f"{order}H")
    (at,) = struct.unpack(pointer, stream.read(struct.calcsize(pointer)))
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(at)
        stream.seek(at)
        (entries,) = struct.unpack(count_format, stream.read(struct.calcsize(count_format)))
        length = 20 if big else 12
        if at + entries * length > size:
            raise ValueError("the directory ends past the end of the file")
        table = stream.read(entries * length)
        (at,) = struct.unpack(pointer, stream.read(struct.calcsize(pointer)))
        directory = _directory(stream, table, order, big, size)
        if directory is not None:
            yield directory


def _directory(
    stream: BinaryIO, table: bytes, order: str, big: bool, size: int
) -> _Directory | None:
    """Return what one directory says of its blocks; None if it has none."""
    length, entry = (20, f"{order}HHQ") if big else (12, f"{order}HHI")
    found: dict[int, _UINT64] = {}
    for start in range(0, len(table), length):
        tag, kind, count = struct.unpack_from(entry, table, start)
        wanted = tag in _OFFSETS + _COUNTS or (tag in _LAYOUT and count == 1)
        if wanted and kind in _UNSIGNED:
            value = table[start + struct.calcsize(entry) : start + length]
            found[tag] = _values(stream, value, order + _UNSIGNED[kind], count, size)
    offsets = next((found[tag] for tag in _OFFSETS if tag in found), None)
    counts = next((found[tag] for tag in _COUNTS if tag in found), None)
    if offsets is None:
        return None
    if counts is None or len(counts) != len(offsets):
        # old writers leave the sizes out; the start of a block must be in the file anyway
        counts = np.ones(len(offsets), np.uint64)
    return _Directory(offsets, counts, {tag: int(found[tag][0]) for tag in _LAYOUT if tag in found})


def _values(stream: BinaryIO, value: bytes, dtype: str, count: int, size: int) -> _UINT64:
    """Return the numbers of one field: in the entry itself if they fit, else where it points."""
    n_bytes = count * np.dtype(dtype).itemsize
    if n_bytes > len(value):
        at = int(np.frombuffer(value, f"{dtype[0]}u{len(value)}")[0])
        if at + n_bytes > size:
            raise ValueError("a field lies past the end of the file")
        stream.seek(at)
        value = stream.read(n_bytes)
    return np.frombuffer(value[:n_bytes], dtype).astype(np.uint64)
