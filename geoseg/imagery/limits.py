"""What a raster may ask of this machine, looked at before anything is allocated for it.

A file of 62 kB can claim 10**12 pixels, one of 37 kB a strip that unpacks to 835 MB. What counts is
what one read needs: GDAL unpacks whole blocks, all bands of one together, and keeps them twice.
So blocks are bounded, not images: 400,000 px a side of 512 px blocks are fine.

The directories of a TIFF are read here, and not through GDAL, which would already hold their
tags and an object for each band. Those of masks and overviews count too, also of ones beside it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from geoseg.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


@dataclass(frozen=True, slots=True)
class Limits:
    """What is read of a raster; the first two can be raised."""

    max_pixels: int = 250_000_000_000
    """Of the whole image: 500,000 px a side. ``GEOSEG_MAX_PIXELS`` sets it."""
    max_block_mb: int = 128
    """A block unpacked, all bands of it, 10**6 bytes. ``GEOSEG_MAX_BLOCK_MB`` sets it."""
    max_side_px: int = 10_000_000
    """Longest side of the image."""
    max_bands: int = 4_096
    """GDAL holds an object for each."""
    max_ratio: int = 10_000
    """Unpacked bytes for each byte in the file, of blocks larger than `ratio_from_mb`: empty
    ground packs as well, but in blocks that do no harm."""
    ratio_from_mb: int = 32
    """Blocks up to this size are not asked how well they are packed, 10**6 bytes."""
    max_blocks: int = 10_000_000
    """Of one image: each has 16 bytes in the list of blocks. 400,000 px a side of 128 px blocks."""
    max_directories: int = 1_024
    """Pages, masks and overviews of one file."""
    max_overviews: int = 64
    """Overviews of one image; halving 400,000 px to one makes 19."""
    max_tag_mb: int = 16
    """Metadata, profiles, colour tables and the like of one directory, 10**6 bytes; also the size
    of an ``.aux.xml``."""
    max_gcps: int = 20_000
    """Ground control points."""
    max_jp2_records: int = 100_000
    """Tiles of a JPEG2000 file, times its bands and three: OpenJPEG keeps 2 kB for each."""


_KNOBS = {"GEOSEG_MAX_PIXELS": "max_pixels", "GEOSEG_MAX_BLOCK_MB": "max_block_mb"}
"""Environment variables: workers inherit them, and no job file can set them."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8,
          17: 8, 18: 8}  # fmt: skip
"""Bytes of a value by its type in a TIFF."""
_SHAPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _BANDS = 256, 257, 258, 259, 277
_STRIP_ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT = 278, 284, 322, 323
_OFFSETS, _COUNTS = (273, 324), (279, 325)
_TIE_POINTS = 33922
_NEEDED = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _BANDS, _STRIP_ROWS, _PLANAR, _TILE_WIDTH,
           _TILE_HEIGHT)  # fmt: skip
_UNPACKED, _BY_BAND = 1, 2
_MOST_ENTRIES = 4_096
_COUNTS_READ = 100_000
"""Sizes of blocks that are looked at in one directory; large blocks are few."""
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JP2_HEAD, _CODESTREAM = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
_MOST_BOXES = 1_000
_JP2_BYTES_A_PX = 0.1
"""What OpenJPEG keeps for each pixel and band of a tile, before it unpacks one: measured."""


def limits() -> Limits:
    """Return the limits of this process.

    Raises
    ------
    ConfigError
        If a variable of the environment is no whole number from 1.
    """
    found = Limits()
    for variable, field in _KNOBS.items():
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 18 and int(text) > 0):
            raise ConfigError(
                f"{variable} is '{text[:40]}'; expected a whole number from 1, or leave it unset"
            )
        found = replace(found, **{field: int(text)})
    return found


def check_file(path: str | Path) -> None:
    """Refuse a file by what its header claims, before GDAL opens it.

    Parameters
    ----------
    path : str or Path
        A raster, or its mask or overviews. Only TIFF and JPEG2000 on this machine are looked into;
        of any file the size of its ``.aux.xml``.

    Raises
    ------
    SourceError
        If a limit is passed; the message names it, and how to raise it. A broken TIFF is not
        judged: GDAL refuses it.
    """
    file = Path(path).expanduser()
    most = limits()
    notes = Path(f"{file}.aux.xml")
    if notes.is_file() and notes.stat().st_size > most.max_tag_mb * 1_000_000:
        raise SourceError(
            f"{notes} has {notes.stat().st_size:,} bytes; {most.max_tag_mb} MB of notes beside an "
            "image is the limit: delete it, GDAL makes a new one"
        )
    if not file.is_file():
        return
    with file.open("rb") as stream:
        check_stream(path, stream, file.stat().st_size)


def check_stream(path: str | Path, stream: BinaryIO, size: int) -> None:
    """Refuse the bytes of a raster by what their header claims; see `check_file`.

    Parameters
    ----------
    path : str or Path
        For the message.
    stream : binary file
        At its beginning; left anywhere.
    size : int
        Of all its bytes.
    """
    most = limits()
    head = stream.read(8)
    # what is cut short or leads nowhere is not judged here
    with suppress(struct.error, _BrokenError):
        if head[:4] in _TIFF_HEADS:
            _check_tiff(str(path), stream, size, most)
        elif head == _JP2_HEAD or head[:4] == _CODESTREAM:
            _check_jp2(str(path), stream, most)


def _check_tiff(path: str, stream: BinaryIO, size: int, most: Limits) -> None:
    """Look into the directories of a TIFF."""
    for number, directory in enumerate(_directories(stream, size)):
        if number >= most.max_directories:
            raise SourceError(
                f"{path} has more directories (pages, masks, overviews) than "
                f"{most.max_directories:,}, which is the limit; save the page you want: "
                "gdal_translate GTIFF_DIR:1:in.tif out.tif"
            )
        _check_directory(path, directory, stream, size, most)


def _check_jp2(path: str, stream: BinaryIO, most: Limits) -> None:
    """Look at the sizes in a JPEG2000 codestream: ISO/IEC 15444-1, A.5.1."""
    _find_codestream(stream)
    # SOC, SIZ, length, profile; image and tile: sides, then offsets
    *_, width, height, left, top, cols, rows, tile_left, tile_top, bands = struct.unpack(
        ">HHHHIIIIIIIIH", stream.read(42)
    )
    _check_shape(path, width - left, height - top, bands, most)
    if not rows or not cols:
        raise _BrokenError
    tiles = -(-(width - tile_left) // cols) * -(-(height - tile_top) // rows)
    if tiles * (bands + 3) > most.max_jp2_records:
        raise SourceError(
            f"{path} has {tiles:,} tiles of {bands} bands; {most.max_jp2_records // (bands + 3):,} "
            f"is the limit: make a GeoTIFF of it where there is memory: gdal_translate {path} "
            "out.tif"
        )
    n_bytes = min(rows, height) * min(cols, width) * bands * _JP2_BYTES_A_PX
    # a block of a TIFF is held twice, this once
    if n_bytes > 2e6 * most.max_block_mb:
        raise SourceError(
            f"{path} is stored in tiles of {cols} x {rows} px, for which every read needs "
            f"{n_bytes / 1e6:,.0f} MB; {2 * most.max_block_mb} MB is the limit: make a GeoTIFF of "
            f"it where there is memory (gdal_translate -co TILED=YES {path} out.tif), or set "
            "GEOSEG_MAX_BLOCK_MB if you trust the file"
        )


def _find_codestream(stream: BinaryIO) -> None:
    """Go to where the pixels of a JPEG2000 file begin."""
    at = 0
    for _ in range(_MOST_BOXES):
        stream.seek(at)
        head = stream.read(16)
        if head[:4] == _CODESTREAM:
            stream.seek(at)
            return
        length, kind = struct.unpack_from(">I4s", head)
        begin = 8
        if length == 1:
            (length,), begin = struct.unpack_from(">Q", head, 8), 16
        if kind == b"jp2c":
            stream.seek(at + begin)
            return
        if length < begin:
            raise _BrokenError
        at += length
    raise _BrokenError


def check_open(path: str | Path, src: DatasetReader) -> None:
    """Refuse an open raster, or an overview of one, that is too large to be read.

    Parameters
    ----------
    path : str or Path
        For the message.
    src : rasterio.DatasetReader
        Of any format; nothing of it has been read.

    Raises
    ------
    SourceError
        If a limit is passed; the message names it, and how to raise it.
    """
    most = limits()
    _check_shape(path, src.width, src.height, src.count, most)
    rows, cols = src.block_shapes[0]
    _check_block(path, int(rows), int(cols), src.count * _bits_of(src.dtypes[0]), most)
    n_overviews = len(src.overviews(1))
    if n_overviews > most.max_overviews:
        raise SourceError(
            f"{path} has {n_overviews} overviews; {most.max_overviews} is the limit: remove them "
            f"with gdaladdo -clean {path}"
        )


def _bits_of(dtype: str) -> int:
    """Return the bits of a pixel of one band, as rasterio names its type."""
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits or 64)


def _check_shape(path: str | Path, width: int, height: int, bands: int, most: Limits) -> None:
    """Refuse too many pixels or bands."""
    if max(width, height) > most.max_side_px:
        raise SourceError(
            f"{path} is {width} x {height} px; at most {most.max_side_px} px a side are read"
        )
    if width * height > most.max_pixels:
        raise SourceError(
            f"{path} is {width} x {height} px, {width * height:,} in all; {most.max_pixels:,} "
            "pixels is the limit: cut it, or set GEOSEG_MAX_PIXELS if you trust the file"
        )
    if bands > most.max_bands:
        raise SourceError(
            f"{path} has {bands:,} bands; {most.max_bands:,} is the limit: copy those you want: "
            f"gdal_translate -b 1 -b 2 -b 3 {path} out.tif"
        )


def _check_block(path: str | Path, rows: int, cols: int, bits: int, most: Limits) -> None:
    """Refuse blocks that need more memory than reading one may take."""
    n_bytes = rows * cols * bits / 8
    if n_bytes > most.max_block_mb * 1e6:
        raise SourceError(
            f"{path} is stored in blocks of {cols} x {rows} px, {n_bytes / 1e6:,.0f} MB unpacked, "
            f"and every read unpacks whole ones; {most.max_block_mb} MB is the limit: tile it "
            f"where there is memory (gdal_translate -co TILED=YES {path} out.tif), or set "
            "GEOSEG_MAX_BLOCK_MB if you trust the file"
        )


class _BrokenError(Exception):
    """The directories of a file do not lead anywhere."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One field of a directory."""

    kind: int
    count: int
    value: bytes
    """Its last 4 or 8 bytes: the value if it fits, else where it lies."""


@dataclass(frozen=True, slots=True)
class _Directory:
    """One image of a TIFF: a page, a mask or an overview."""

    order: str
    """'<' or '>'."""
    entries: dict[int, _Entry]
    """By tag; the first of each, as in libtiff."""

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a field that holds small numbers."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _SHAPES or entry.count < 1:
            return default
        shape = _SHAPES[entry.kind]
        if entry.count * _SIZES[entry.kind] > len(entry.value):
            return default
        return int(struct.unpack_from(self.order + shape, entry.value)[0])

    def first(self, tag: int, default: int, stream: BinaryIO) -> int:
        """Return the first value of a field, wherever it lies."""
        entry = self.entries.get(tag)
        if entry is None or entry.count * _SIZES.get(entry.kind, 8) <= len(entry.value):
            return self.number(tag, default)
        values = self.values(tag, stream, 1)
        return values[0] if values else default

    def values(self, tag: int, stream: BinaryIO, most: int) -> tuple[int, ...]:
        """Return the values of a field, so many at most."""
        entry = self.entries[tag]
        if entry.kind not in _SHAPES:
            return ()
        size, n = _SIZES[entry.kind], min(entry.count, most)
        data = entry.value
        if entry.count * size > len(data):
            place = "Q" if len(data) == 8 else "I"
            stream.seek(struct.unpack(self.order + place, data)[0])
            data = stream.read(n * size)
        n = min(n, len(data) // size)
        return struct.unpack_from(f"{self.order}{n}{_SHAPES[entry.kind]}", data)


def _directories(stream: BinaryIO, size: int) -> Iterator[_Directory]:
    """Yield the directories of a TIFF, without what their fields point to."""
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    count_format, entry_format, place = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (at,) = struct.unpack_from(order + place, head, 8 if big else 4)
    length = struct.calcsize(order + entry_format)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        if at >= size:
            raise _BrokenError
        stream.seek(at)
        (n,) = struct.unpack(
            order + count_format, stream.read(struct.calcsize(order + count_format))
        )
        if n > _MOST_ENTRIES:
            raise _BrokenError
        table = stream.read(n * length)
        following = stream.read(struct.calcsize(order + place))
        entries: dict[int, _Entry] = {}
        for tag, kind, count, value in struct.iter_unpack(order + entry_format, table):
            entries.setdefault(tag, _Entry(kind, count, value))
        yield _Directory(order, entries)
        (at,) = struct.unpack(order + place, following)


def _check_directory(
    path: str, directory: _Directory, stream: BinaryIO, size: int, most: Limits
) -> None:
    """Refuse a directory of a TIFF by what it claims."""
    _check_fields(path, directory, size, most)
    width, height = directory.number(_WIDTH, 0), directory.number(_HEIGHT, 0)
    bands = directory.number(_BANDS, 1)
    _check_shape(path, width, height, bands, most)
    tiled = _TILE_WIDTH in directory.entries
    cols = directory.number(_TILE_WIDTH, width)
    rows = directory.number(_TILE_HEIGHT if tiled else _STRIP_ROWS, height)
    rows = rows if tiled else min(rows, height)
    packed = directory.number(_COMPRESSION, _UNPACKED) != _UNPACKED
    if not tiled and not packed:
        # what is not packed is read in as many pieces as one likes
        return
    together = 1 if directory.number(_PLANAR, 1) == _BY_BAND else bands
    bits = together * directory.first(_BITS, 1, stream)
    _check_block(path, rows, cols, bits, most)
    if packed:
        _check_ratio(path, directory, stream, rows * cols * bits / 8, most)


def _check_fields(path: str, directory: _Directory, size: int, most: Limits) -> None:
    """Refuse fields of a directory that are too long; those that pass the file's end are broken."""
    lists = (*_OFFSETS, *_COUNTS)
    for tag, entry in directory.entries.items():
        n_bytes = entry.count * _SIZES.get(entry.kind, 1)
        if n_bytes > size:
            continue
        if tag == _TIE_POINTS and entry.count > 6 * most.max_gcps:
            raise SourceError(
                f"{path} has {entry.count // 6:,} ground control points; {most.max_gcps:,} is the "
                "limit: warp it first with gdalwarp"
            )
        if tag in lists and entry.count > most.max_blocks:
            raise SourceError(
                f"{path} is stored in {entry.count:,} blocks; {most.max_blocks:,} is the limit: "
                f"store it in larger ones: gdal_translate -co TILED=YES {path} out.tif"
            )
        if tag not in lists and n_bytes > most.max_tag_mb * 1_000_000:
            raise SourceError(
                f"{path} holds {n_bytes:,} bytes in its field {tag} (metadata, colour table or the "
                f"like); {most.max_tag_mb} MB is the limit: copy the image without it"
            )


def _check_ratio(
    path: str, directory: _Directory, stream: BinaryIO, n_bytes: float, most: Limits
) -> None:
    """Refuse large blocks that are packed better than imagery ever is."""
    tag = next((tag for tag in _COUNTS if tag in directory.entries), None)
    if tag is None or n_bytes <= most.ratio_from_mb * 1e6:
        return
    # 0: a block that is left out, for which nothing is unpacked
    stored = [count for count in directory.values(tag, stream, _COUNTS_READ) if count]
    if stored and n_bytes / min(stored) > most.max_ratio:
        ratio = math.floor(n_bytes / min(stored))
        raise SourceError(
            f"{path} packs {n_bytes / 1e6:,.0f} MB into a block of {min(stored):,} bytes, "
            f"1 : {ratio:,}; 1 : {most.max_ratio:,} is the limit for blocks of more than "
            f"{most.ratio_from_mb} MB: tile it: gdal_translate -co TILED=YES {path} out.tif"
        )
