"""Find broken files before the night, without reading pixels.

A truncated TIFF opens fine and its first blocks read fine; the run would fail hours later. Its
directory says where each block lies, so comparing that with the size of the file finds all lost
blocks in milliseconds. The directory is read here and not through GDAL, because GDAL gives one
block per call, and hides masks and overviews.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from geoseg.errors import SourceError
from geoseg.imagery.source import describe_raster

_UINT64 = npt.NDArray[np.uint64]

_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_OFFSETS, _COUNTS = (273, 324), (279, 325)
# ^ TIFF 6.0: StripOffsets or TileOffsets; StripByteCounts or TileByteCounts
_MOST_DIRECTORIES = 1_000
_TAIL_BYTES = 65_536


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

    @property
    def share_lost(self) -> float:
        """Share of the image's blocks that are lost, 0 to 1; 1 if the header is."""
        if self.header_lost:
            return 1.0
        return self.lost / self.blocks if self.blocks else 0.0

    @property
    def problem(self) -> str | None:
        """What is wrong, in a line; None if nothing is."""
        name = Path(self.path).name
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
        If the file cannot be read at all.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            if head[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
                return _check_tiff(stream, str(path), size)
            return TruncationReport(
                str(path), 0, 0, 0, size, size, header_lost=_end_is_missing(stream, head, size)
            )
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def check_images(paths: Sequence[str | Path]) -> list[SourceError]:
    """Find what keeps images from being used, before any work is done.

    Parameters
    ----------
    paths : sequence of str or Path
        Files on this machine.

    Returns
    -------
    list of SourceError
        One per bad file, in the order of `paths`, not raised; empty if all can be used.
    """
    problems = []
    for path in paths:
        try:
            _check_image(path)
        except SourceError as error:
            problems.append(error)
    return problems


def _check_image(path: str | Path) -> None:
    """Raise what is wrong with one image; truncation first, it explains the rest."""
    # what opens as a raster's mask or overviews belongs to it
    sidecars = [Path(f"{path}{suffix}") for suffix in (".msk", ".ovr")]
    if Path(path).is_file():
        for file in [Path(path), *(s for s in sidecars if s.is_file())]:
            if problem := check_truncation(file).problem:
                raise SourceError(problem)
    describe_raster(path)


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
    header_lost = False
    try:
        for index, (offsets, counts) in enumerate(_directories(stream, size)):
            used = (offsets > 0) & (counts > 0)
            # as float: a hostile offset near 2**64 must not wrap around to a small one
            ends = offsets[used].astype(np.float64) + counts[used].astype(np.float64)
            past = int((ends > size).sum())
            needed = max(needed, int(ends.max(initial=0)))
            blocks, lost = (int(used.sum()), past) if index == 0 else (blocks, lost)
            elsewhere += past if index else 0
    except (struct.error, ValueError):
        header_lost = True
    return TruncationReport(path, blocks, lost, elsewhere, size, max(needed, size), header_lost)


def _directories(stream: BinaryIO, size: int) -> Iterator[tuple[_UINT64, _UINT64]]:
    """Yield (offsets, byte counts) of the blocks of each directory.

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
        fields = _block_fields(stream, table, order, big, size)
        if fields is not None:
            yield fields


def _block_fields(
    stream: BinaryIO, table: bytes, order: str, big: bool, size: int
) -> tuple[_UINT64, _UINT64] | None:
    """Return the offsets and byte counts of one directory; None if it has no blocks."""
    length, entry = (20, f"{order}HHQ") if big else (12, f"{order}HHI")
    found: dict[int, _UINT64] = {}
    for start in range(0, len(table), length):
        tag, kind, count = struct.unpack_from(entry, table, start)
        if tag in _OFFSETS + _COUNTS and kind in _UNSIGNED:
            value = table[start + struct.calcsize(entry) : start + length]
            found[tag] = _values(stream, value, order + _UNSIGNED[kind], count, size)
    offsets = next((found[tag] for tag in _OFFSETS if tag in found), None)
    counts = next((found[tag] for tag in _COUNTS if tag in found), None)
    if offsets is None:
        return None
    if counts is None or len(counts) != len(offsets):
        # old writers leave the sizes out; the start of a block must be in the file anyway
        counts = np.ones(len(offsets), np.uint64)
    return offsets, counts


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
