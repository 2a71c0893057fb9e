"""Open, describe and write rasters; the only place that calls ``rasterio.open``.

Opening a file already is processing it, so the drivers are named: a VRT that calls itself
``x.tif`` would otherwise read any file of the machine. Paths are made absolute first, so GDAL
never sees a prefix such as ``GTIFF_DIR:`` or ``WMS:``.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window

from geoseg.errors import GeosegError, OutputError, SourceError, TileError
from geoseg.imagery.georef import ground_gsd_m
from geoseg.imagery.limits import check_file, check_open, check_stream
from geoseg.imagery.remote import (
    RemoteFile,
    Shelf,
    ask_again,
    bucket_options,
    is_bucket,
    is_remote,
    name_of,
    plain_path,
    remote_facts,
    sidecars_of,
)
from geoseg.imagery.vrt import is_allowed_vrt, read_vrt
from geoseg.records import RasterInfo
from geoseg.redact import access_to

DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
}
"""Formats that are opened, by their first bytes; GTiff reads COG and BigTIFF too."""

_FINGERPRINT_SAMPLES = 16
_FINGERPRINT_BYTES = 16_384
_KNOWN_S = 60.0
_ALPHA_SAMPLES = 3
_ALPHA_SAMPLE_PX = 64
_ALPHA_SHARE = 0.5
_PRJ_BYTES = 65_536

_UNOPENED = (RasterioError, CPLE_BaseError, OSError, UnicodeDecodeError)
"""What opening raises; the last of text in the header that is none, such as a CRS of any bytes."""

_log = logging.getLogger(__name__)


def missing(path: str | Path) -> str:
    """Say what a path that is no file is."""
    text = str(path)
    head = text.partition(":")[0]
    if text.lstrip().startswith("<") or (head.isupper() and len(head) > 1 and head != text):
        return "this is GDAL's syntax for something else than a file; give the path of a file"
    return "no such file; check the path"


@contextmanager
def open_raster(path: str | Path, *, overview_level: int | None = None) -> Iterator[DatasetReader]:
    """Open a raster for reading with the drivers that are allowed.

    Parameters
    ----------
    path : str or Path
        A file on this machine, or a remote one or a VRT as `geoseg.imagery.inputs.find_images`
        returns them.
    overview_level : int, optional
        Open this overview (0 is the first) as if it were the raster.

    Yields
    ------
    rasterio.DatasetReader
        Closed at the end of the block.

    Raises
    ------
    SourceError
        If the file is missing, empty, not readable, or of no format in `DRIVERS`; of a remote file
        also at the end of the block, if bytes could not be had.
    TileError
        The same, where the block raised one.
    """
    options = {} if overview_level is None else {"overview_level": overview_level}
    if is_remote(path):
        plain = plain_path(str(path))
        opened = (_open_in_bucket if is_bucket(plain) else _open_behind_http)(plain, options)
    elif is_allowed_vrt(path):
        opened = _open_vrt(str(path), options)
    else:
        opened = _open_here(path, options)
    try:
        with opened as src:
            check_open(path, src)
            if src.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
                raise SourceError(
                    f"{path} names another file as its overviews, which could be any file; copy "
                    "the image without it: gdal_translate -co COPY_SRC_OVERVIEWS=NO "
                    f"{path} out.tif"
                )
            yield src
    except (CPLE_BaseError, UnicodeDecodeError) as error:
        # what is wrong with a header may show only when a property is asked for
        raise SourceError(f"{path}: the file is broken; copy it again (GDAL: {error})") from error


@contextmanager
def _open_here(path: str | Path, options: dict[str, Any]) -> Iterator[DatasetReader]:
    """Open a file on this machine."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder, not a raster" if file.is_dir() else missing(path)
        raise SourceError(f"{path}: {what}")
    driver = _driver(path, file)
    _check_companions(path, file)
    check_file(file)
    try:
        with _quietly():
            src = rasterio.open(file.absolute(), driver=driver, **options)
    except _UNOPENED as error:
        raise SourceError(
            f"{path}: the {driver} file is broken or truncated; copy it again (GDAL: {error})"
        ) from error
    with src:
        yield src


@contextmanager
def _quietly() -> Iterator[None]:
    """Open without a warning: `describe_raster` refuses what has no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _open_behind_http(path: str, options: dict[str, Any]) -> Iterator[DatasetReader]:
    """Open a file behind http through our own reader: GDAL never sees the address."""
    driver = driver_of(path)
    shelf = Shelf(path, driver)
    for name, place in shelf.files.items():
        if name.endswith((".msk", ".ovr")) and driver_of(place) != "GTiff":
            raise SourceError(f"{place} is not a TIFF; delete it, or give {path} a right one")
    with RemoteFile(path) as stream:
        check_stream(path, cast("BinaryIO", stream), stream.facts.size)
    try:
        with _quietly():
            src = rasterio.open(shelf.name, driver=driver, opener=shelf, **options)
    except _UNOPENED as error:
        if shelf.error is not None:
            raise shelf.error from None
        raise SourceError(
            f"{path}: the {driver} file is broken or truncated; upload it again (GDAL: {error})"
        ) from error
    try:
        with src:
            yield src
    except (RasterioError, OSError, GeosegError) as error:
        if shelf.error is None or error is shelf.error:
            raise
        raise _with_reason(error, shelf.error) from error
    if shelf.error is not None:
        # GDAL made do with less: some decoders take a torn file for a whole one
        raise shelf.error


def _with_reason(error: BaseException, reason: SourceError) -> GeosegError:
    """Return an error as it was raised, with what the server did in place of GDAL's words."""
    if not isinstance(error, TileError):
        return reason
    place = re.search(r"cannot read (rows \S+, cols \S+) of ", str(error))
    return TileError(f"cannot read {place[1]}: {reason}" if place else str(reason))


@contextmanager
def _open_in_bucket(path: str, options: dict[str, Any]) -> Iterator[DatasetReader]:
    """Open an object through GDAL, which knows how to sign; our drivers are tried one by one."""
    with rasterio.Env(**bucket_options(), CPL_VSIL_CURL_ALLOWED_EXTENSIONS=_beside_object(path)):
        reason: Exception | None = None
        for driver in _object_drivers(path):
            try:
                with _quietly():
                    src = rasterio.open(path, driver=driver, **options)
                break
            except _UNOPENED as error:
                # the first is the one that the name promises
                reason = reason or error
        else:
            raise SourceError(
                f"{path} does not open: there is no such object, this user may not read it, or it "
                "is not GeoTIFF, COG, JPEG2000, PNG or JPEG; check the name and the credentials "
                f"(GDAL: {reason})"
            ) from reason
        with src:
            yield src


def _object_drivers(path: str) -> list[str]:
    """Return all drivers that are allowed, the likeliest first."""
    suffixes = {".jp2": "JP2OpenJPEG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    likely = suffixes.get(Path(path).suffix.lower(), "GTiff")
    return [likely, *sorted(set(DRIVERS.values()) - {likely})]


@lru_cache(maxsize=100_000)
def _beside_object(path: str) -> str:
    """Return the ends of the names that GDAL may open: the object and what is safe beside it.

    GDAL lets any driver open masks and overviews, so these must be TIFFs.
    """
    name = path.rpartition("/")[2]
    allowed = [f"/{name}", f"/{name}.aux.xml"]
    for suffix in (".msk", ".ovr"):
        alone = {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": f"/{name}{suffix}"}
        with (
            suppress(RasterioError, OSError),
            rasterio.Env(**bucket_options(), **alone),
            _quietly(),
        ):
            rasterio.open(path + suffix, driver="GTiff").close()
            allowed.append(f"/{name}{suffix}")
    return ",".join(allowed)


@contextmanager
def _open_vrt(path: str, options: dict[str, Any]) -> Iterator[DatasetReader]:
    """Open a VRT as it was understood and written anew; its sources must open on their own."""
    vrt = read_vrt(path)
    for source in vrt.sources:
        _check_source(source, *_state(source))
    try:
        with _quietly():
            src = rasterio.open(vrt.text, driver="VRT", **options)
    except _UNOPENED as error:
        raise SourceError(f"{vrt.path}: GDAL cannot open it ({error})") from error
    with src:
        yield src


def _state(file: str) -> tuple[int, int]:
    """Return size and time of a file: while they stay, it need not be looked at again."""
    try:
        found = Path(file).stat()
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror}); check it") from error
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=100_000)
def _check_source(file: str, _size: int, _changed_ns: int) -> None:
    """Refuse a source of a VRT that would not open on its own: GDAL lets any driver open it."""
    with _open_here(file, {}) as opened:
        others = opened.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if others:
        raise SourceError(f"{file} names another file as its overviews; copy it without")


def _check_companions(path: str | Path, file: Path) -> None:
    """Refuse masks and overviews beside a file that are no TIFF: GDAL lets any driver open them."""
    for suffix in (".ovr", ".msk", ".msk.ovr"):
        for companion in {Path(f"{file}{suffix}"), Path(f"{file}{suffix.upper()}")}:
            if not companion.is_file():
                continue
            with companion.open("rb") as stream:
                head = stream.read(4)
            if DRIVERS.get(head) != "GTiff":
                raise SourceError(
                    f"{companion} is not a TIFF; delete it, or give {path} a right one"
                )
            check_file(companion)


def _driver(path: str | Path, file: Path) -> str:
    """Return the one driver that may open a file, by its first bytes."""
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check it") from error
    return _driver_by(path, head)


def driver_of(path: str) -> str:
    """Return the one driver that may open a file behind http, by its first bytes."""
    with RemoteFile(path) as file:
        return _driver_by(path, file.read(512))


def _driver_by(path: str | Path, head: bytes) -> str:
    """Return the one driver for a file that begins so."""
    for magic, driver in DRIVERS.items():
        if head.startswith(magic):
            return driver
    if not head:
        raise SourceError(f"{path}: the file is empty; copy it again")
    if b"<VRTDataset" in head:
        raise SourceError(
            f"{path} is a VRT, which can point to any other file and is not opened; give "
            "--allow-vrt if it is your own, or make a GeoTIFF of it: "
            f"gdal_translate {path} out.tif"
        )
    raise SourceError(
        f"{path} is not a raster that is read here; expected GeoTIFF, COG, JPEG2000, PNG or JPEG"
    )


def describe_raster(path: str | Path, *, src_crs: str | None = None) -> RasterInfo:
    """Read the header of a raster and check that objects can be located in it.

    Parameters
    ----------
    path : str or Path
        As `open_raster` takes it.
    src_crs : str, optional
        CRS of the raster, if its file has none and no ``.prj`` of its name lies beside it.

    Returns
    -------
    RasterInfo
        ``mask_kind`` is where GDAL would take validity from; ``alpha_band`` is set only if a band
        is tagged as alpha and looks like one: GDAL tags the fourth of four bands so unless told
        otherwise, and near infrared taken for alpha hides dark ground. A warning is logged then.
        A palette is described as the three bands that it is read as.

    Raises
    ------
    SourceError
        If the file does not open, has no CRS, only ground control points, no transform, complex
        pixels or a palette beside other bands; the message says what to run.
    """
    path = _settled(path)
    with open_raster(path) as src:
        crs = _check_georeference(path, src, src_crs)
        _check_pixels(path, src)
        wkt = str(crs.to_wkt())
        palette = _palette(path, src)
        colors = ("red", "green", "blue") if palette else tuple(c.name for c in src.colorinterp)
        alpha_band = _alpha_band(path, src, colors)
        nodatas = tuple(None if v is None else float(v) for v in src.nodatavals)
        info = RasterInfo(
            path=path if isinstance(path, str) else str(path.expanduser().absolute()),
            access=access_to(str(path)),
            crs_wkt=wkt,
            transform=Affine(*tuple(src.transform)[:6]),
            height=src.height,
            width=src.width,
            bands=len(colors),
            dtype="uint8" if palette else src.dtypes[0],
            nodata=None if src.nodata is None else float(src.nodata),
            mask_kind=_mask_kind(src, alpha_band, palette),
            block_shape=tuple(src.block_shapes[0]),
            gsd_m=ground_gsd_m(wkt, src.transform, src.width, src.height),
            fingerprint="",
            alpha_band=alpha_band,
            colors=colors,
            names=() if palette else tuple(name or "" for name in src.descriptions),
            nodatas=nodatas if len(set(map(repr, nodatas))) > 1 else (),
            palette=palette,
            nbits=_few_bits(src, palette),
        )
    if not np.isfinite(info.gsd_m) or info.gsd_m <= 0:
        raise SourceError(
            f"{path}: its centre does not lie on the earth by its CRS and transform; "
            "assign the right CRS with gdal_edit.py -a_srs"
        )
    return _with_fingerprint(info)


def _settled(path: str | Path) -> str | Path:
    """Return what a raster is called from here on: a plain address, or else a path."""
    if is_allowed_vrt(path):
        return str(path)
    if not is_remote(path):
        return Path(path)
    plain = plain_path(str(path))
    if is_bucket(plain):
        return plain
    # of two calls a minute apart the second may find another file
    ask_again([plain], after_s=_KNOWN_S)
    return plain


def parse_crs(text: str | None) -> CRS:
    """Return a CRS that a user names.

    Raises
    ------
    SourceError
        If it is none.
    """
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise SourceError(
            f"--src-crs '{text}' is no CRS that PROJ knows; expected something like EPSG:32645"
        ) from error


def raster_crs(src: DatasetReader) -> CRS | None:
    """Return the CRS of an open raster, or that of the .prj file beside its world file.

    GDAL takes the transform from a world file but leaves the .prj beside it alone.
    """
    placed = src.crs is not None or src.gcps[0]
    if placed or src.driver == "VRT" or src.transform.almost_equals(Affine.identity()):
        return src.crs
    for suffix in (".prj", ".PRJ"):
        beside = Path(src.name).with_suffix(suffix)
        if beside.is_file() and beside.stat().st_size <= _PRJ_BYTES:
            try:
                text = beside.read_text(encoding="utf-8-sig")
                return CRS.from_wkt(text, morph_from_esri_dialect=True)
            except (CRSError, RasterioError, UnicodeDecodeError, OSError) as error:
                raise SourceError(
                    f"{beside} holds no CRS that is understood ({error}); expected WKT, as of "
                    "ESRI, or delete it and name the CRS with --src-crs"
                ) from error
    return None


def _check_georeference(path: str | Path, src: DatasetReader, src_crs: str | None = None) -> CRS:
    """Return the CRS of a raster; refuse one that does not say where it lies."""
    gcps, gcp_crs = src.gcps
    crs = raster_crs(src)
    if crs is None and gcps:
        target = gcp_crs.to_string() if gcp_crs else "EPSG:..."
        raise SourceError(
            f"{path} has ground control points but no transform; warp it first: "
            f"gdalwarp -t_srs {target} {path} warped.tif"
        )
    if crs is None and src.rpcs is not None:
        raise SourceError(
            f"{path} has RPCs but no transform; orthorectify it first: "
            f"gdalwarp -rpc -to RPC_DEM=dem.tif -t_srs EPSG:... {path} ortho.tif"
        )
    if src.crs is None and src_crs is not None:
        # one that is named goes before a .prj file
        crs = parse_crs(src_crs)
    if crs is None:
        raise SourceError(
            f"{path} has no CRS; name it with --src-crs EPSG:..., put a .prj file beside it, or "
            f"assign one with gdal_edit.py -a_srs EPSG:... {path} or rio edit-info --crs EPSG:... "
            f"{path}"
        )
    if src.transform.almost_equals(Affine.identity()):
        raise SourceError(
            f"{path} has a CRS but no transform (px = CRS units); georeference it, "
            f"for example: gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM {path}"
        )
    if src.transform.is_degenerate:
        raise SourceError(
            f"{path}: the transform maps all pixels onto a line; georeference it again"
        )
    return crs


def _check_pixels(path: str | Path, src: DatasetReader) -> None:
    """Refuse pixels that are no measured brightness."""
    if src.dtypes[0].startswith("complex"):
        raise SourceError(f"{path} has complex pixels; convert them to real ones first")
    if len(set(src.dtypes)) > 1:
        raise SourceError(
            f"{path} has bands of several types ({', '.join(sorted(set(src.dtypes)))}); give them "
            "one with gdal_translate -ot"
        )


def _palette(path: str | Path, src: DatasetReader) -> tuple[tuple[int, int, int, int], ...]:
    """Return red, green, blue, alpha of each index of a raster of indices; empty for any other."""
    if ColorInterp.palette not in src.colorinterp:
        return ()
    if src.count > 1:
        raise SourceError(
            f"{path} has a palette and other bands beside it; expand it first: "
            f"gdal_translate -b 1 -expand rgb {path} rgb.tif"
        )
    try:
        colors = src.colormap(1)
    except ValueError as error:
        raise SourceError(
            f"{path} says that it has a palette but holds none; if its pixels are grey, say so: "
            f"gdal_edit.py -colorinterp_1 gray {path}"
        ) from error
    # an index that the table leaves out has no colour, so it is no data
    return tuple(colors.get(i, (0, 0, 0, 0)) for i in range(max(colors) + 1))


def _few_bits(src: DatasetReader, palette: tuple[tuple[int, int, int, int], ...]) -> int | None:
    """Return the bits of a pixel if they are fewer than 8 and no index into a palette."""
    bits = int(src.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    return bits if bits < 8 and not palette and src.dtypes[0] == "uint8" else None


def _alpha_band(path: str | Path, src: DatasetReader, colors: tuple[str, ...]) -> int | None:
    """Return the band that is tagged as alpha and holds next to nothing but 0 and its maximum."""
    if "alpha" not in colors:
        return None
    band = colors.index("alpha") + 1
    side = _ALPHA_SAMPLE_PX
    tops = np.linspace(0, max(src.height - side, 0), _ALPHA_SAMPLES).astype(int).tolist()
    lefts = np.linspace(0, max(src.width - side, 0), _ALPHA_SAMPLES).astype(int).tolist()
    size = (min(side, src.width), min(side, src.height))
    try:
        samples = [src.read(band, window=Window(x, y, *size)) for y in tops for x in lefts]
    except (RasterioError, OSError):
        # a damaged file is judged where damage is looked for
        return band
    values = np.concatenate([sample.ravel() for sample in samples])
    inside = values[values != 0]
    if not len(inside) or np.mean(inside == inside.max()) >= _ALPHA_SHARE:
        return band
    _log.warning(
        "%s: band %d is tagged as alpha but holds an image; it is not used as a mask",
        name_of(path),
        band,
    )
    return None


def _mask_kind(
    src: DatasetReader,
    alpha_band: int | None,
    palette: tuple[tuple[int, int, int, int], ...],
) -> str:
    """Return where validity comes from."""
    of_bands = src.mask_flag_enums
    flags = {flag for band in of_bands for flag in band}
    if MaskFlags.alpha in flags:
        return "none" if alpha_band is None else "alpha"
    # a band without any flag has a mask of its own; per_dataset beside nodata is NODATA_VALUES, a
    # colour that GDAL alone compares
    if MaskFlags.per_dataset in flags or not all(of_bands):
        return "mask"
    if MaskFlags.nodata in flags:
        return "nodata"
    return "alpha" if any(entry[3] == 0 for entry in palette) else "none"


def _with_fingerprint(info: RasterInfo) -> RasterInfo:
    """Add the hash of size, header and sampled bytes: a copy of the file keeps it."""
    digest = hashlib.sha256()
    facts: tuple[Any, ...] = (info.crs_wkt, tuple(info.transform), info.height, info.width)
    facts += (info.bands, info.dtype, info.nodata, info.mask_kind)
    if info.nodatas or info.palette:
        facts += (info.nodatas, info.palette)
    if is_bucket(info.path):
        digest.update(repr((facts, _block_places(info))).encode())
    elif is_remote(info.path):
        digest.update(repr((facts, _remote_state(info.path))).encode())
    elif is_allowed_vrt(info.path):
        vrt = read_vrt(info.path)
        digest.update(repr((facts, vrt.relative_text)).encode())
        for source in vrt.sources:
            _add_samples(digest, Path(source), ())
    else:
        _add_samples(digest, Path(info.path), facts)
    fields = {name: getattr(info, name) for name in info.__slots__}
    return RasterInfo(**(fields | {"fingerprint": digest.hexdigest()}))


def _add_samples(digest: hashlib._Hash, file: Path, facts: tuple[Any, ...]) -> None:
    """Add the size of a file, what is known of it, and bytes of it."""
    size = file.stat().st_size
    digest.update(repr((size, *facts)).encode())
    last = max(size - _FINGERPRINT_BYTES, 0)
    with file.open("rb") as stream:
        for offset in np.linspace(0, last, _FINGERPRINT_SAMPLES).astype(np.int64).tolist():
            stream.seek(offset)
            digest.update(stream.read(_FINGERPRINT_BYTES))
    for sidecar in (f"{file}.msk", f"{file}.aux.xml"):
        if Path(sidecar).is_file():
            digest.update(str(Path(sidecar).stat().st_size).encode())


def _remote_state(path: str) -> tuple[Any, ...]:
    """Return what the server says of a file and its sidecars, and a hash of its first bytes."""
    with RemoteFile(path) as file:
        head = file.read(_FINGERPRINT_BYTES)
    beside = sidecars_of(path, driver_of(path))
    sidecars = {name: remote_facts(place).key for name, place in beside.items()}
    return remote_facts(path).key, hashlib.sha256(head).hexdigest(), sorted(sidecars.items())


def _block_places(info: RasterInfo) -> tuple[Any, ...]:
    """Return where some blocks of a TIFF lie and what they take: other pixels take other bytes."""
    rows, cols = -(-info.height // info.block_shape[0]), -(-info.width // info.block_shape[1])
    samples = np.unique(np.linspace(0, rows * cols - 1, 64).astype(np.int64)).tolist()
    with open_raster(info.path) as src:
        return tuple(
            src.get_tag_item(f"BLOCK_{what}_{n % cols}_{n // cols}", "TIFF", bidx=1)
            for n in samples
            for what in ("OFFSET", "SIZE")
        )


def select_bands(
    info: RasterInfo, bidx: tuple[int | str, ...] | None, wanted: int
) -> tuple[int, ...]:
    """Choose the bands to read.

    Without `bidx`: red, green and blue by their tags where the file names them and three are
    wanted (so BGR files come out right), else the first `wanted` bands that are not alpha. With
    `bidx` any band can be chosen, also one tagged as alpha (NAIP's near infrared often is); it is
    no mask then.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    bidx : tuple of int or str, or None
        1-based bands in the wanted order, or their descriptions or colours ('red'), or None.
    wanted : int
        How many bands the model or detector takes; at least 1.

    Returns
    -------
    tuple of int
        Shape (wanted,), 1-based.

    Raises
    ------
    SourceError
        If a band does not exist, a name fits several, or there are too few or not `wanted`.
    """
    name = name_of(info.path)
    if bidx is not None:
        numbers = tuple(_band_number(info, band) for band in bidx)
        if absent := [b for b in numbers if not 1 <= b <= info.bands]:
            raise SourceError(
                f"{name} has {info.bands} band(s) but --bidx asks for band {absent[0]}; "
                f"choose from 1 to {info.bands}"
            )
        if len(bidx) != wanted:
            raise SourceError(
                f"--bidx names {len(bidx)} band(s) but {wanted} are needed; name {wanted} of the "
                f"{info.bands} bands of {name}"
            )
        return numbers
    if wanted == 3 and {"red", "green", "blue"} <= set(info.colors):
        return tuple(info.colors.index(color) + 1 for color in ("red", "green", "blue"))
    usable = [b for b in range(1, info.bands + 1) if b != info.alpha_band]
    if len(usable) < wanted:
        beside = " beside alpha" if info.alpha_band else ""
        raise SourceError(
            f"{name} has {len(usable)} band(s){beside} but {wanted} are needed; give an image with "
            "enough bands or name the bands with --bidx (one may be named more than once)"
        )
    return tuple(usable[:wanted])


def _band_number(info: RasterInfo, band: int | str) -> int:
    """Return the number of a band that is given by number, description or colour."""
    if not isinstance(band, str):
        return band
    for known in (info.names, info.colors):
        found = [row for row, name in enumerate(known, start=1) if name.lower() == band.lower()]
        if len(found) > 1:
            raise SourceError(
                f"{Path(info.path).name} has {len(found)} bands '{band}' (bands "
                f"{', '.join(map(str, found))}); name it by its number"
            )
        if found:
            return found[0]
    names = (
        name or color for name, color in zip(info.names or info.colors, info.colors, strict=True)
    )
    raise SourceError(
        f"{Path(info.path).name} has no band '{band}'; it has {', '.join(names)}: choose from "
        "them, or by number"
    )


@contextmanager
def create_raster(
    path: str | Path,
    *,
    height: int,
    width: int,
    bands: int,
    dtype: str,
    crs: str,
    transform: Affine,
    nodata: float | None = None,
    **options: str | float | bool,
) -> Iterator[DatasetWriter]:
    """Create a tiled GeoTIFF to be written window by window.

    Parameters
    ----------
    path : str or Path
        Written in place; a file that is there is replaced.
    height, width, bands, dtype, crs, transform, nodata
        As rasterio takes them.
    **options
        GeoTIFF creation options; they replace the defaults: 512 px blocks, deflate, BigTIFF if
        needed. Blocks never written take no room in the file.

    Yields
    ------
    rasterio.DatasetWriter
        Closed at the end of the block.

    Raises
    ------
    OutputError
        If the file cannot be made.
    """
    defaults = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "bigtiff": "if_safer",
        "sparse_ok": True,
    }
    profile = {"height": height, "width": width, "count": bands, "dtype": dtype, "crs": crs}
    profile |= {"transform": transform, "nodata": nodata}
    try:
        dst = rasterio.open(
            Path(path).absolute(), "w", driver="GTiff", **profile, **(defaults | options)
        )
    except (RasterioError, OSError) as error:
        raise OutputError(
            f"cannot create {path}: {error}; check the folder and the disk"
        ) from error
    try:
        yield dst
    finally:
        dst.close()


def to_cog(src: str | Path, dst: str | Path, **options: str | float | bool) -> None:
    """Copy a raster to a cloud-optimized GeoTIFF with overviews and its mask.

    Parameters
    ----------
    src : str or Path
        Opens with `open_raster`.
    dst : str or Path
        Replaced if it is there.
    **options
        Options of GDAL's COG driver; they replace the defaults: deflate, 512 px blocks, averaged
        overviews.

    Raises
    ------
    SourceError
        If `src` cannot be opened.
    OutputError
        If `dst` cannot be written.
    """
    defaults = {
        "compress": "deflate",
        "blocksize": 512,
        "overview_resampling": "average",
        "bigtiff": "if_safer",
    }
    with open_raster(src) as reader:
        try:
            rasterio.shutil.copy(reader, Path(dst).absolute(), driver="COG", **(defaults | options))
        # rasterio.shutil lets GDAL's own errors through
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise OutputError(f"cannot write {dst}: {error}; check the folder and disk") from error
