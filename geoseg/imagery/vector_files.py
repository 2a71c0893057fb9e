"""Which vector files may be opened: looked at before GDAL does, because opening already acts.

Asked to open any file, GDAL tries all of its drivers, and some of them read other files or fetch
addresses that the file names: a VRT or a WFS description that calls itself ``x.geojson``, an
archive, the schema of a GML. So the formats are known by their first bytes, as with rasters; and a
GeoJSON whose CRS is a link is refused, for GDAL would follow it.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import sqlite3
from pathlib import Path

DRIVERS = ("GPKG", "GeoJSON", "GeoJSONSeq", "TopoJSON", "ESRIJSON", "ESRI Shapefile", "FlatGeobuf")
"""What may be read through GDAL; GeoParquet is read without it."""

_HEAD_BYTES = 4_096
_SQLITE = b"SQLite format 3\0"
_APPLICATION = slice(68, 70)
_CRS_BYTES = 4_096
_ADVICE = "give a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file"


def _letters(word: str) -> bytes:
    """Return a pattern for a word in JSON, whose letters may be written as escapes."""
    return b"".join(
        rb"(?:%c|%c|\\u00(?i:%02x|%02x))" % (ord(c), ord(c.upper()), ord(c), ord(c.upper()))
        for c in word
    )


_CRS_KEY = re.compile(rb"[\"']" + _letters("crs") + rb"[\"']\s*(?::\s*(\{)|:?\s*(/[*/]))")
_FOLLOWED = re.compile(
    rb"[\"'](?:" + b"|".join(map(_letters, ("link", "url", "href"))) + rb")[\"']|/[*/]"
)


def why_not_opened(path: Path) -> str | None:
    """Say why a vector file must not be opened through GDAL.

    Parameters
    ----------
    path : Path
        On this machine.

    Returns
    -------
    str or None
        What is wrong and what to do, to follow the name of the file; None if it may be opened.
    """
    if not path.is_file():
        return f"is {'a folder' if path.is_dir() else 'not there'}, no file; {_ADVICE}"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if b"<OGRVRT" in head:
            return "is a virtual file (VRT); give the file it refers to"
        if head.startswith(_SQLITE):
            return _why_not_database(path, head)
        if head.startswith((b"\x00\x00\x27\x0a", b"fgb\x03", b"PAR1")):
            return None
        if head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x1e")[:1] in (b"{", b"["):
            return _why_not_json(file.fileno())
    return f"cannot be read as a vector layer by its first bytes; {_ADVICE}"


def _why_not_database(path: Path, head: bytes) -> str | None:
    """Refuse databases that are no GeoPackage, and layers that are made up while they are read."""
    if head[_APPLICATION] != b"GP" and path.suffix.lower() != ".gpkg":
        return f"is a database but no GeoPackage; {_ADVICE}"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        ) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            rows = database.execute(
                "SELECT c.table_name, m.type, m.sql FROM gpkg_contents AS c JOIN sqlite_master AS m"
                " ON lower(m.name) = lower(c.table_name)"
            ).fetchall()
            made = database.execute(
                "SELECT type FROM sqlite_master WHERE lower(name) = 'gpkg_contents'"
            ).fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        # broken, locked or too new for it: GDAL says so
        return None
    bad = [str(n) for n, kind, sql in rows if kind != "table" or _is_virtual(sql)]
    if made and made[0][0] != "table":
        bad.append("gpkg_contents")
    if bad:
        return (
            f"has a layer '{bad[0]}' that is a query or virtual table, which may run for ever; "
            f"save it as a table: ogr2ogr out.gpkg in.gpkg '{bad[0]}'"
        )
    return None


def _is_virtual(sql: object) -> bool:
    return isinstance(sql, str) and sql.lstrip().upper().startswith("CREATE VIRTUAL")


def _why_not_json(descriptor: int) -> str | None:
    """Refuse GeoJSON whose CRS is to be fetched from somewhere."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as text:
        for key in _CRS_KEY.finditer(text):
            if key[2]:
                return "has a comment after 'crs', which JSON does not know; remove it"
            crs = _object_at(text, key.start(1))
            if crs is None or _FOLLOWED.search(crs):
                return (
                    "takes its CRS from another place ('crs' with a link or without an end), which "
                    "is not followed; remove the member 'crs': GeoJSON is in degrees then"
                )
    return None


def _object_at(text: mmap.mmap, start: int) -> bytes | None:
    """Return the JSON object that begins there; None if it does not end soon."""
    depth = 0
    some = text[start : start + _CRS_BYTES]
    for i, byte in enumerate(some):
        depth += (byte == 0x7B) - (byte == 0x7D)
        if depth == 0:
            return some[: i + 1]
    return None
