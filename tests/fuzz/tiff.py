"""A small TIFF writer whose every number may be a lie."""

from __future__ import annotations

import math
import random
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from fuzz.mutate import INTEGERS, TEXTS, mutate_bytes, near

SHORT, LONG, ASCII, BYTE, DOUBLE, UNDEFINED = 3, 4, 2, 1, 12, 7
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8,
          17: 8, 18: 8}  # fmt: skip
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I",
          16: "Q", 17: "q", 18: "Q"}  # fmt: skip
TAGS = (
    254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 280, 281, 282, 284, 292,
    296, 297, 301, 317, 318, 320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 347, 512, 513, 514,
    519, 529, 530, 531, 532, 700, 33432, 33550, 33922, 34264, 34377, 34665, 34675, 34735, 34736,
    34737, 34853, 42112, 42113, 50674, 50844, 50909, 65000,
)  # fmt: skip
"""Tags that libtiff or GDAL look at."""
CODECS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 32766, 32771, 32773, 32809, 32895, 32908, 32946, 32947, 34661,
    34676, 34677, 34712, 34887, 34925, 34926, 34927, 34928, 50000, 50001, 50002, 52546, 65535,
)  # fmt: skip
_GEO_KEYS = (1024, 1025, 1026, 2048, 2049, 2050, 2052, 2054, 2056, 2057, 2059, 3072, 3073, 3074,
             3075, 3076, 3078, 3080, 3081, 3092, 4096, 4099, 5120)  # fmt: skip
_METADATA = (
    (
        '<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">../secret.tif</Item>'
        "</GDALMetadata>"
    ),
    '<GDALMetadata><Item name="SCALE" sample="0" role="scale">nan</Item></GDALMetadata>',
    '<GDALMetadata><Item name="NBITS" sample="0" domain="IMAGE_STRUCTURE">1</Item></GDALMetadata>',
    '<GDALMetadata><Item name="x" sample="99999" role="offset">1e999</Item></GDALMetadata>',
    "<GDALMetadata>" + "<a>" * 200,
    '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><GDALMetadata>&b;</GDALMetadata>',
    "<GDALMetadata><Item/></GDALMetadata>",
)


@dataclass(slots=True)
class Entry:
    """One entry of a directory; `count` and `offset` replace the true ones."""

    tag: int
    kind: int
    values: list[Any] | bytes
    count: int | None = None
    offset: int | None = None


@dataclass(slots=True)
class Directory:
    """One image: entries, and blocks whose places are filled in when it is written."""

    entries: list[Entry]
    blocks: list[bytes]
    next_offset: int | None = None
    entry_count: int | None = None
    subs: list[Directory] = field(default_factory=list)
    true_places: bool = True
    """Whether offsets and sizes of the blocks are filled in."""

    def get(self, tag: int) -> Entry | None:
        return next((e for e in self.entries if e.tag == tag), None)

    def put(self, tag: int, kind: int, values: list[Any] | bytes) -> None:
        self.entries = [e for e in self.entries if e.tag != tag]
        self.entries.append(Entry(tag, kind, values))
        self.entries.sort(key=lambda e: e.tag)


def image(rng: random.Random, *, width: int = 64, height: int = 48, subfile: int = 0) -> Directory:
    """Return a sound image: striped or tiled, of a few layouts."""
    bands = rng.choice((1, 3, 3, 3, 4))
    bits, form = rng.choice(((8, 1), (8, 1), (8, 1), (16, 1), (32, 3), (16, 2), (1, 1)))
    bits, bands = (1, 1) if subfile & 4 else (bits, 1 if bits == 1 else bands)
    tiled = rng.random() < 0.5
    codec = rng.choice((1, 1, 8, 8, 32773))
    planar = rng.choice((1, 1, 2))
    block_w, block_h = (32, 16) if tiled else (width, rng.choice((8, height)))
    across, down = -(-width // block_w), -(-height // block_h)
    samples = bands if planar == 1 else 1
    size = -(-block_w * samples * bits // 8) * block_h
    n = across * down * (1 if planar == 1 else bands)
    blocks = [_pack(bytes((i * 7 + k) % 251 for k in range(size)), codec) for i in range(n)]
    out = Directory([], blocks)
    for tag, kind, values in (
        (254, LONG, [subfile]), (256, LONG, [width]), (257, LONG, [height]),
        (258, SHORT, [bits] * bands), (259, SHORT, [codec]),
        (262, SHORT, [4 if subfile & 4 else 2 if bands >= 3 else 1]), (277, SHORT, [bands]),
        (284, SHORT, [planar]), (339, SHORT, [form] * bands),
    ):  # fmt: skip
        out.put(tag, kind, values)
    if bands == 4:
        out.put(338, SHORT, [rng.choice((0, 1, 2))])
    if tiled:
        out.put(322, LONG, [block_w])
        out.put(323, LONG, [block_h])
    else:
        out.put(278, LONG, [block_h])
    out.put(324 if tiled else 273, LONG, [0] * n)
    out.put(325 if tiled else 279, LONG, [0] * n)
    return out


def _pack(data: bytes, codec: int) -> bytes:
    if codec == 8:
        return zlib.compress(data)
    if codec == 32773:
        # literal runs of PackBits
        return b"".join(bytes([len(p) - 1]) + p for p in (data[i : i + 128] for i in
                                                       range(0, len(data), 128)))  # fmt: skip
    return data


def georeference(out: Directory) -> None:
    """Place an image in UTM 33N, 10 cm pixels."""
    out.put(33550, DOUBLE, [0.1, 0.1, 0.0])
    out.put(33922, DOUBLE, [0.0, 0.0, 0.0, 500_000.0, 5_500_000.0, 0.0])
    out.put(34735, SHORT, [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633])


def write(
    directories: list[Directory], *, order: str = "<", big: bool = False, loop: int | None = None
) -> bytes:
    """Lay directories out; `loop` makes the last one lead back to that directory."""
    word, first = ("Q", 16) if big else ("I", 8)
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    out = bytearray(head + bytes(first - len(head)))
    link = first - struct.calcsize(word)
    starts: list[int] = []
    lies: list[tuple[int, int]] = []
    for directory in directories:
        start, link_at = _write_one(out, directory, order, word)
        struct.pack_into(f"{order}{word}", out, link, start)
        starts.append(start)
        link = link_at
        if directory.next_offset is not None:
            lies.append((link_at, directory.next_offset))
    for at, place in lies:
        struct.pack_into(f"{order}{word}", out, at, _fit(place, word))
    if loop is not None and starts:
        struct.pack_into(f"{order}{word}", out, link, starts[loop % len(starts)])
    return bytes(out)


def _whole(value: float) -> int:
    """Return a value as a whole number; what is none is one that no field expects."""
    return int(value) if math.isfinite(value) else 2**31


def _fit(value: int, code: str) -> int:
    return value % 256 ** struct.calcsize(f"<{code}")


def _write_one(out: bytearray, directory: Directory, order: str, word: str) -> tuple[int, int]:
    """Append blocks, values and the directory; return its place and that of its link."""
    if directory.subs:
        places = [_write_one(out, sub, order, word)[0] for sub in directory.subs]
        directory.put(330, 18 if word == "Q" else 13, places)
    at = []
    for block in directory.blocks:
        at.append(len(out))
        out += block
    for tags, values in (((273, 324), at), ((279, 325), [len(b) for b in directory.blocks])):
        for tag in tags:
            entry = directory.get(tag)
            if entry is not None and directory.true_places:
                entry.values = list(values)
                entry.kind = 16 if word == "Q" else LONG
    rows = []
    for entry in directory.entries:
        data = _bytes(entry, order)
        count = len(data) // _SIZES.get(entry.kind, 1) if entry.count is None else entry.count
        room = struct.calcsize(word)
        if len(data) <= room and entry.offset is None:
            place = data.ljust(room, b"\0")
        else:
            place = struct.pack(
                f"{order}{word}", _fit(len(out) if entry.offset is None else entry.offset, word)
            )
            out += data
        rows.append(
            struct.pack(f"{order}HH{word}", entry.tag, entry.kind, _fit(count, word)) + place
        )
    if len(out) % 2:
        out += b"\0"
    start = len(out)
    code = "Q" if word == "Q" else "H"
    number = len(rows) if directory.entry_count is None else directory.entry_count
    out += struct.pack(f"{order}{code}", _fit(number, code)) + b"".join(rows)
    link = len(out)
    out += bytes(struct.calcsize(word))
    return start, link


def _bytes(entry: Entry, order: str) -> bytes:
    if isinstance(entry.values, bytes):
        return entry.values
    code = _CODES.get(entry.kind, "I")
    if code in "fd":
        return struct.pack(f"{order}{len(entry.values)}{code}", *map(float, entry.values))
    unsigned = code.upper()
    return struct.pack(
        f"{order}{len(entry.values)}{unsigned}", *(_fit(_whole(v), unsigned) for v in entry.values)
    )


# --- lies ------------------------------------------------------------------------------------


def mutated(rng: random.Random) -> bytes:
    """Return a TIFF with one to five lies in it."""
    images = [image(rng)]
    georeference(images[0])
    if rng.random() < 0.35:
        images.append(image(rng, width=32, height=24, subfile=rng.choice((1, 1, 4, 5, 2))))
    if rng.random() < 0.15:
        images.append(image(rng, subfile=rng.choice((4, 5, 0))))
    if rng.random() < 0.15:
        images[0].subs = [image(rng, width=16, height=16, subfile=1)]
    for _ in range(rng.choice((1, 1, 2, 2, 3, 5))):
        rng.choice(_LIES)(rng, rng.choice(images))
    loop = rng.randrange(len(images)) if rng.random() < 0.06 else None
    data = write(images, order=rng.choice("<<>"), big=rng.random() < 0.25, loop=loop)
    if rng.random() < 0.15:
        data = mutate_bytes(rng, data)
    return data


def _lie_value(rng: random.Random, d: Directory) -> None:
    entry = rng.choice(d.entries)
    if isinstance(entry.values, bytes):
        entry.values = mutate_bytes(rng, entry.values)
        return
    if not entry.values:
        return
    at = rng.randrange(len(entry.values))
    if entry.kind in (11, 12):
        entry.values[at] = rng.choice((0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), 1e9))
    else:
        entry.values[at] = near(rng, int(entry.values[at]))
    d.true_places &= entry.tag not in (273, 279, 324, 325)


def _lie_size(rng: random.Random, d: Directory) -> None:
    """Let width, height, block size or bits be what nobody has."""
    tag = rng.choice((256, 257, 278, 322, 323, 277, 258))
    value = rng.choice(
        (0, 1, 3, 15, 16, 17, 64, 100_000, 1_000_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
    )
    d.put(tag, LONG, [value])


def _lie_codec(rng: random.Random, d: Directory) -> None:
    d.put(259, SHORT, [rng.choice(CODECS)])
    if rng.random() < 0.3:
        d.put(317, SHORT, [rng.choice((1, 2, 3, 4, 34892, 34893))])


def _lie_colour(rng: random.Random, d: Directory) -> None:
    d.put(
        262, SHORT, [rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32803, 32844, 32845, 34892, 65535))]
    )
    if rng.random() < 0.4:
        n = rng.choice((0, 3, 6, 48, 768))
        d.put(320, SHORT, [rng.randrange(65536) for _ in range(n)])
    if rng.random() < 0.3:
        d.put(530, SHORT, [rng.choice((0, 1, 2, 4, 8, 255)), rng.choice((0, 1, 2, 4))])


def _lie_type(rng: random.Random, d: Directory) -> None:
    rng.choice(d.entries).kind = rng.choice(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 99)
    )


def _lie_count(rng: random.Random, d: Directory) -> None:
    entry = rng.choice(d.entries)
    entry.count = near(rng, len(entry.values))
    d.true_places &= entry.tag not in (273, 279, 324, 325)


def _lie_offset(rng: random.Random, d: Directory) -> None:
    rng.choice(d.entries).offset = near(rng, 8, 4000)


def _lie_blocks(rng: random.Random, d: Directory) -> None:
    """Let blocks overlap, lie elsewhere, or be larger than they are."""
    d.true_places = False
    n = len(d.blocks)
    for tag in (273, 324):
        if d.get(tag):
            many = rng.choice((n, n, n, 0, 1, n + 1, n * 50))
            base = rng.choice((8, 16, 2000, rng.choice(INTEGERS)))
            step = rng.choice((0, 0, 1, 500))
            d.put(tag, rng.choice((SHORT, LONG, 16)), [base + i * step for i in range(many)])
    for tag in (279, 325):
        if d.get(tag):
            many = rng.choice((n, n, n, 0, 1, n + 1))
            d.put(tag, rng.choice((SHORT, LONG, 16)), [near(rng, 1000)] * many)


def _lie_samples(rng: random.Random, d: Directory) -> None:
    n = rng.choice((0, 1, 2, 5, 16, 255, 65535))
    d.put(277, SHORT, [n])
    d.put(
        258, SHORT, [rng.choice((0, 1, 2, 4, 7, 8, 12, 16, 24, 32, 64, 128, 65535))] * min(n, 300)
    )
    if rng.random() < 0.5:
        d.put(339, SHORT, [rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 65535))] * min(n, 300))
    if rng.random() < 0.5:
        d.put(338, SHORT, [rng.choice((0, 1, 2, 999))] * rng.choice((0, 1, min(n, 300))))


def _lie_drop(rng: random.Random, d: Directory) -> None:
    if len(d.entries) > 1:
        d.entries.remove(rng.choice(d.entries))


def _lie_twice(rng: random.Random, d: Directory) -> None:
    entry = rng.choice(d.entries)
    d.entries.insert(rng.randrange(len(d.entries)), Entry(entry.tag, entry.kind, entry.values))


def _lie_order(rng: random.Random, d: Directory) -> None:
    rng.shuffle(d.entries)


def _lie_tag(rng: random.Random, d: Directory) -> None:
    """Add a tag that somebody looks at, with whatever in it."""
    tag = rng.choice(TAGS)
    if rng.random() < 0.5:
        d.put(tag, rng.choice((BYTE, ASCII, UNDEFINED)), rng.randbytes(rng.choice((0, 1, 8, 300))))
    else:
        many = rng.choice((0, 1, 2, 4, 16, 100))
        d.put(tag, rng.choice((SHORT, LONG, DOUBLE)), [rng.choice(INTEGERS) for _ in range(many)])


def _lie_geo(rng: random.Random, d: Directory) -> None:
    keys = [1, 1, 0, rng.choice((3, 0, 1, 50, 65535))]
    for _ in range(rng.choice((1, 3, 10))):
        keys += [rng.choice(_GEO_KEYS), rng.choice((0, 0, 34736, 34737, 34735, 1)),
                 rng.choice((0, 1, 1, 3, 65535)), rng.choice((0, 1, 2, 3, 4326, 32633, 32767, 65535))]  # fmt: skip
    d.put(34735, SHORT, keys)
    if rng.random() < 0.6:
        d.put(34736, DOUBLE, [rng.choice((0.0, 1.0, -1.0, 1e300, float("nan"), 298.257, 6378137.0))
                              for _ in range(rng.choice((0, 1, 8)))])  # fmt: skip
        d.put(34737, ASCII, rng.choice(TEXTS).encode() + b"|WGS 84|\0")


def _lie_transform(rng: random.Random, d: Directory) -> None:
    odd = (0.0, -0.1, 0.1, 1e-12, 1e-300, 1e12, 1e300, float("nan"), float("inf"), 180.0)
    if rng.random() < 0.5:
        d.put(34264, DOUBLE, [rng.choice(odd) for _ in range(rng.choice((16, 16, 12, 0, 17)))])
    else:
        d.put(33550, DOUBLE, [rng.choice(odd) for _ in range(rng.choice((3, 3, 2, 0)))])
        d.put(33922, DOUBLE, [rng.choice(odd) for _ in range(rng.choice((6, 6, 12, 24, 5, 600)))])


def _lie_metadata(rng: random.Random, d: Directory) -> None:
    text = rng.choice(_METADATA).encode()
    d.put(42112, ASCII, (mutate_bytes(rng, text) if rng.random() < 0.5 else text) + b"\0")
    if rng.random() < 0.4:
        d.put(42113, ASCII, rng.choice((b"nan", b"1e999", b"-9999", b"", b"x" * 999, b"0")) + b"\0")


def _lie_chain(rng: random.Random, d: Directory) -> None:
    if rng.random() < 0.6:
        d.next_offset = near(rng, 8, 3000)
    else:
        d.entry_count = near(rng, len(d.entries))


def _lie_subs(rng: random.Random, d: Directory) -> None:
    d.put(330, rng.choice((LONG, 13)), [near(rng, 8, 3000) for _ in range(rng.choice((1, 2, 500)))])


def _lie_jpeg(rng: random.Random, d: Directory) -> None:
    """Call the blocks JPEG, with tables that are none."""
    d.put(259, SHORT, [rng.choice((6, 7))])
    d.put(262, SHORT, [rng.choice((2, 6))])
    tables = bytes.fromhex("ffd8ffdb00430008") + bytes(range(64)) + bytes.fromhex("ffd9")
    d.put(347, UNDEFINED, mutate_bytes(rng, tables))
    sof = bytes.fromhex("ffd8ffc0001108") + struct.pack(">HH", rng.choice((16, 65535)), 65535)
    sof += bytes.fromhex("03011100021100031100ffda000c03010002000300003f00")
    d.blocks = [mutate_bytes(rng, sof + b"\x12" * 40 + b"\xff\xd9") for _ in d.blocks]


_LIES = (
    _lie_value, _lie_value, _lie_size, _lie_size, _lie_codec, _lie_colour, _lie_type, _lie_count,
    _lie_offset, _lie_blocks, _lie_samples, _lie_drop, _lie_twice, _lie_order, _lie_tag, _lie_tag,
    _lie_geo, _lie_transform, _lie_metadata, _lie_chain, _lie_subs, _lie_jpeg,
)  # fmt: skip
