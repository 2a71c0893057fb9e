"""Read a VRT that its user allows, and hand GDAL only what was understood of it.

A VRT can name any file of this machine or of others, raw bytes among them, and code that makes
pixels. So none is opened as it is: its text is read here, each element must be one of the few that
a mosaic needs, each source must be a raster beside or below the VRT, and a new text is written from
what was read. What this module does not know, GDAL never sees.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from rasterio.crs import CRS
from rasterio.errors import CRSError

from geoseg.errors import SourceError

ALLOWED = "VRT:"
"""What stands before the path of a VRT that may be opened."""
MOST_SOURCES = 20_000
_MOST_BYTES = 64_000_000
_TYPES = ("Byte", "UInt16", "Int16", "UInt32", "Int32", "Float32", "Float64")
_COLORS = ("Gray", "Red", "Green", "Blue", "Alpha", "Undefined", "NIR", "RedEdge", "Palette",
           "Cyan", "Magenta", "Yellow", "Black", "Pan", "Coastal", "SWIR", "MWIR")  # fmt: skip
_RESAMPLING = ("near", "nearest", "bilinear", "cubic", "cubicspline", "lanczos", "average", "mode")
_SAID_ONLY = ("Metadata", "OverviewList", "Histograms", "Description", "UnitType", "Offset",
              "Scale", "CategoryNames", "BlockXSize", "BlockYSize")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vrt:
    """What a VRT says, as far as it was understood."""

    path: str
    text: str
    """Written anew, with absolute paths."""
    relative_text: str
    """The same with paths as seen from the VRT: equal for a copy of the folder."""
    sources: tuple[str, ...]
    """Absolute paths, each once."""


def is_allowed_vrt(path: object) -> bool:
    """Tell whether this is a VRT that may be opened."""
    return str(path).startswith(ALLOWED)


def allow_vrt(path: str | Path) -> str:
    """Return what a VRT is called from here on, once its user allows it."""
    return f"{ALLOWED}{Path(path).resolve()}"


def read_vrt(path: str) -> Vrt:
    """Read a VRT.

    Parameters
    ----------
    path : str
        From `allow_vrt`.

    Raises
    ------
    SourceError
        If it is broken, asks for more than a mosaic, or names what is no file beside or below it.
    """
    file = Path(path.removeprefix(ALLOWED))
    try:
        state = file.stat()
        return _read(file, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror}); check it") from error


@lru_cache(maxsize=16)
def _read(file: Path, size: int, _changed_ns: int) -> Vrt:
    if size > _MOST_BYTES:
        raise SourceError(f"{file} is larger than {_MOST_BYTES // 1_000_000} MB; make several VRTs")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is no VRT: it is not UTF-8") from error
    if re.search(r"<!(?!--)", text):
        raise SourceError(f"{file} declares XML types or entities, which no VRT needs")
    try:
        # without declarations there is nothing that could grow or lead elsewhere
        root = ET.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))  # noqa: S314
    except ET.ParseError as error:
        raise SourceError(f"{file} is no VRT: {error}") from error
    return _Writer(file).write(root)


class _Writer:
    """Writes a VRT anew from what it knows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.folder = file.parent.resolve()
        self.sources: dict[str, str] = {}

    def write(self, root: ET.Element) -> Vrt:
        if root.tag != "VRTDataset":
            raise SourceError(f"{self.file} is no VRT: it begins with <{root.tag[:40]}>")
        self._attributes(root, ("rasterXSize", "rasterYSize"))
        body, bands = [], 0
        for child in root:
            if child.tag == "SRS":
                body.append(f"<SRS>{escape(self._crs(child))}</SRS>")
            elif child.tag == "GeoTransform":
                numbers = self._numbers(child, (child.text or "").split(","), 6)
                body.append(f"<GeoTransform>{','.join(numbers)}</GeoTransform>")
            elif child.tag == "VRTRasterBand":
                bands += 1
                body.append(self._band(child, bands))
            elif child.tag == "MaskBand" and len(child) == 1 and child[0].tag == "VRTRasterBand":
                body.append(f"<MaskBand>{self._band(child[0], None)}</MaskBand>")
            elif child.tag not in _SAID_ONLY:
                raise self._unknown(child)
        if not bands or not self.sources:
            raise SourceError(f"{self.file} names no rasters; nothing could be read from it")
        names = ("rasterXSize", "rasterYSize")
        size = _pairs(names, [str(self._whole(root, name)) for name in names])
        text = f"<VRTDataset {size}>{''.join(body)}</VRTDataset>"
        relative = text
        for absolute in sorted(self.sources, key=len, reverse=True):
            relative = relative.replace(escape(absolute), escape(self.sources[absolute]))
        return Vrt(str(self.file), text, relative, tuple(self.sources))

    def _band(self, band: ET.Element, number: int | None) -> str:
        """Return a band, or the one of a mask, which has no number."""
        self._attributes(band, ("dataType", "band", "blockXSize", "blockYSize"))
        kind = band.get("dataType", "Byte")
        if kind not in _TYPES:
            raise self._wrong(band, "dataType")
        body = []
        for child in band:
            if child.tag in ("SimpleSource", "ComplexSource"):
                body.append(self._source(child))
            elif child.tag in ("NoDataValue", "HideNoDataValue"):
                value = self._numbers(child, [child.text or ""], 1)[0]
                body.append(f"<{child.tag}>{value}</{child.tag}>")
            elif child.tag == "ColorInterp":
                color = (child.text or "").strip()
                if color not in _COLORS:
                    raise self._wrong(child, "its text")
                body.append(f"<ColorInterp>{color}</ColorInterp>")
            elif child.tag not in _SAID_ONLY:
                raise self._unknown(child)
        place = "" if number is None else f' band="{number}"'
        return f'<VRTRasterBand dataType="{kind}"{place}>{"".join(body)}</VRTRasterBand>'

    def _source(self, source: ET.Element) -> str:
        """Return a source of a band."""
        self._attributes(source, ("resampling",))
        how = source.get("resampling", "")
        if how and how.lower() not in _RESAMPLING:
            raise self._wrong(source, "resampling")
        body = []
        for child in source:
            if child.tag == "SourceFilename":
                body.append(self._filename(child))
            elif child.tag == "SourceBand":
                body.append(f"<SourceBand>{self._band_number(child)}</SourceBand>")
            elif child.tag in ("SrcRect", "DstRect"):
                body.append(self._rectangle(child))
            elif child.tag == "NODATA":
                body.append(f"<NODATA>{self._numbers(child, [child.text or ''], 1)[0]}</NODATA>")
            elif child.tag == "UseMaskBand":
                body.append("<UseMaskBand>true</UseMaskBand>")
            elif child.tag != "SourceProperties":
                # these are hints about the file, which GDAL finds in the file itself
                raise self._unknown(child)
        if sum(part.startswith("<SourceFilename") for part in body) != 1:
            raise self._wrong(source, "SourceFilename")
        attribute = f" resampling={quoteattr(how)}" if how else ""
        return f"<{source.tag}{attribute}>{''.join(body)}</{source.tag}>"

    def _band_number(self, element: ET.Element) -> str:
        text = (element.text or "").strip()
        if not re.fullmatch(r"(mask,)?\d{1,5}", text):
            raise self._wrong(element, "its text")
        return text

    def _rectangle(self, element: ET.Element) -> str:
        names = ("xOff", "yOff", "xSize", "ySize")
        values = self._numbers(element, [element.get(name, "") for name in names], 4)
        return f"<{element.tag} {_pairs(names, values)}/>"

    def _filename(self, element: ET.Element) -> str:
        """Return a source's file, which must lie beside or below the VRT."""
        self._attributes(element, ("relativeToVRT", "relativetoVRT", "shared"))
        name = (element.text or "").strip()
        relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
        try:
            found = ((self.folder if relative else Path.cwd()) / name).resolve()
            inside = found.is_relative_to(self.folder) and not str(found).startswith("/vsi")
            place = found if inside else None
            there = inside and found.is_file()
        except (OSError, ValueError):
            place, there = None, False
        if place is None:
            raise SourceError(
                f"{self.file} names {name}, which is no file in the folder of the VRT or below it; "
                "only such are read: put the VRT beside its images, or name the images themselves"
            )
        if not there:
            raise SourceError(f"{self.file} names {name}, which is not there; copy it again")
        if len(self.sources) >= MOST_SOURCES and str(place) not in self.sources:
            raise SourceError(f"{self.file} names more than {MOST_SOURCES} files; make several")
        self.sources[str(place)] = str(place.relative_to(self.folder))
        # not shared: each opening has its own handles, for its own thread
        return f'<SourceFilename relativeToVRT="0" shared="0">{escape(str(place))}</SourceFilename>'

    def _crs(self, element: ET.Element) -> str:
        self._attributes(element, ("dataAxisToSRSAxisMapping", "coordinateEpoch"))
        text = (element.text or "").strip()
        try:
            if re.fullmatch(r"(EPSG|ESRI|OGC):\w+", text):
                return str(CRS.from_string(text).to_wkt())
            # never as GDAL's own reader of such texts, which takes names of files and addresses
            return str(CRS.from_wkt(text).to_wkt())
        except CRSError as error:
            raise self._wrong(element, "its text") from error

    def _attributes(self, element: ET.Element, known: tuple[str, ...]) -> None:
        for name in element.attrib:
            if name not in known:
                raise SourceError(
                    f"{self.file}: <{element.tag} {name[:40]}=...> is more than a plain mosaic; "
                    f"make a GeoTIFF of it: gdal_translate {self.file.name} out.tif"
                )

    def _numbers(self, element: ET.Element, texts: list[str], count: int) -> list[str]:
        """Return numbers as texts."""
        try:
            values = [float(text) for text in texts]
        except ValueError as error:
            raise self._wrong(element, "a number") from error
        if len(values) != count or (count > 1 and not all(map(math.isfinite, values))):
            raise self._wrong(element, "a number")
        return [repr(value) for value in values]

    def _whole(self, element: ET.Element, name: str) -> int:
        text = element.get(name, "")
        if not re.fullmatch(r"[1-9]\d{0,7}", text):
            raise self._wrong(element, name)
        return int(text)

    def _wrong(self, element: ET.Element, what: str) -> SourceError:
        return SourceError(f"{self.file}: {what} of <{element.tag}> is missing or wrong")

    def _unknown(self, element: ET.Element) -> SourceError:
        return SourceError(
            f"{self.file}: <{element.tag[:40]}> is more than a plain mosaic; make a GeoTIFF of it: "
            f"gdal_translate {self.file.name} out.tif"
        )


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    """Return attributes as XML."""
    both = zip(names, values, strict=True)
    return " ".join(f"{name}={quoteattr(value)}" for name, value in both)
