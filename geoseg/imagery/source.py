"""Open, describe and write rasters; the only place that calls ``rasterio.open``.

Opening a file already is processing it, so the drivers are named: a VRT that calls itself
``x.tif`` would otherwise read any file of the machine. Paths are made absolute first, so GDAL
never sees a prefix such as ``GTIFF_DIR:`` or ``WMS:``.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window

from geoseg.errors import OutputError, SourceError
from geoseg.imagery.georef import ground_gsd_m
from geoseg.records import RasterInfo

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

IMAGE_SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg")
"""What is looked for in a folder."""

_PLAIN_PICTURES = (".png", ".jpg", ".jpeg")
_FINGERPRINT_SAMPLES = 16
_FINGERPRINT_BYTES = 16_384
_FILE_SIDE_PX = 10_000_000
_ALPHA_SAMPLES = 3
_ALPHA_SAMPLE_PX = 64
_ALPHA_SHARE = 0.5

_log = logging.getLogger(__name__)


def find_images(inputs: Sequence[str | Path]) -> tuple[str, ...]:
    """List the rasters named by files, folders and globs.

    A folder gives its own ``*.tif``, ``*.tiff``, ``*.jp2`` (never skipped, so that a broken one is
    noticed) and those ``*.png``, ``*.jpg`` that carry georeferencing (folders hold photos too).

    Parameters
    ----------
    inputs : sequence of str or Path
        Files, folders (not searched below their first level) or globs (``**`` is understood).

    Returns
    -------
    tuple of str
        Absolute paths, sorted, each file once.

    Raises
    ------
    SourceError
        If one of the inputs matches nothing.
    """
    if not inputs:
        raise SourceError("no image given; name at least one file, folder or glob")
    found: set[str] = set()
    for entry in inputs:
        matches = _matches(str(entry))
        if not matches:
            raise SourceError(f"{entry}: {_why_nothing(str(entry))}")
        found.update(matches)
    return tuple(sorted(found))


def _matches(entry: str) -> list[str]:
    """Return the absolute paths that one input stands for."""
    path = Path(entry).expanduser()
    if path.is_dir():
        return [str(p.resolve()) for p in sorted(path.iterdir()) if _is_image(p)]
    if path.is_file():
        return [str(path.resolve())]
    if not glob.has_magic(entry):
        return []
    # Path.glob takes no absolute pattern
    hits = (Path(hit) for hit in glob.glob(str(path), recursive=True))  # noqa: PTH207
    return [str(p.resolve()) for p in hits if p.is_file() and _is_image(p)]


def _is_image(path: Path) -> bool:
    """Tell whether a file found in a folder is meant as a raster."""
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix not in IMAGE_SUFFIXES or not path.is_file():
        return False
    if suffix not in _PLAIN_PICTURES:
        return True
    try:
        with open_raster(path) as src:
            return src.crs is not None
    except SourceError:
        return False


def _why_nothing(entry: str) -> str:
    """Say why an input names no raster."""
    suffixes = ", ".join(f"*{s}" for s in IMAGE_SUFFIXES)
    if Path(entry).expanduser().is_dir():
        return f"the folder holds no raster ({suffixes}); name the files or another folder"
    if glob.has_magic(entry):
        return f"the pattern matches no raster ({suffixes}); check it with ls"
    return _missing(entry)


def _missing(path: str | Path) -> str:
    """Say what a path that is no file is."""
    text = str(path)
    if text.startswith(("/vsi", "http://", "https://", "s3://", "gs://", "az://")):
        return "only files on this machine are read; copy or mount it and give its path"
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
        A file on this machine.
    overview_level : int, optional
        Open this overview (0 is the first) as if it were the raster.

    Yields
    ------
    rasterio.DatasetReader
        Closed at the end of the block.

    Raises
    ------
    SourceError
        If the file is missing, empty, not readable, or of no format in `DRIVERS`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder, not a raster" if file.is_dir() else _missing(path)
        raise SourceError(f"{path}: {what}")
    driver = _driver(path, file)
    _check_companions(path, file)
    options = {} if overview_level is None else {"overview_level": overview_level}
    try:
        with warnings.catch_warnings():
            # describe_raster refuses what has no georeference; the warning would come on top
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            src = rasterio.open(file.absolute(), driver=driver, **options)
    except (RasterioError, CPLE_BaseError, OSError, UnicodeDecodeError) as error:
        # ^ of text in the header that is none, such as a CRS of random bytes
        raise SourceError(
            f"{path}: the {driver} file is broken or truncated; copy it again (GDAL: {error})"
        ) from error
    try:
        if src.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
            raise SourceError(
                f"{path} names another file as its overviews, which could be any file; copy the "
                f"image without it: gdal_translate -co COPY_SRC_OVERVIEWS=NO {path} out.tif"
            )
        yield src
    except (CPLE_BaseError, UnicodeDecodeError) as error:
        # what is wrong with a header may show only when a property is asked for
        raise SourceError(
            f"{path}: the {driver} file is broken; copy it again (GDAL: {error})"
        ) from error
    finally:
        src.close()


def _check_companions(path: str | Path, file: Path) -> None:
    """Refuse masks and overviews beside a file that are no TIFF: GDAL lets any driver open them."""
    for suffix in (".ovr", ".msk", ".msk.ovr"):
        for companion in {Path(f"{file}{suffix}"), Path(f"{file}{suffix.upper()}")}:
            if companion.is_file() and _driver(companion, companion) != "GTiff":
                raise SourceError(
                    f"{companion} is not a TIFF; delete it, or give {path} a right one"
                )


def _driver(path: str | Path, file: Path) -> str:
    """Return the one driver that may open a file, by its first bytes."""
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check it") from error
    for magic, driver in DRIVERS.items():
        if head.startswith(magic):
            return driver
    if not head:
        raise SourceError(f"{path}: the file is empty; copy it again")
    if b"<VRTDataset" in head:
        raise SourceError(
            f"{path} is a VRT, which can point to any other file and is not opened; "
            f"make a GeoTIFF of it: gdal_translate {path} out.tif"
        )
    raise SourceError(
        f"{path} is not a raster that is read here; expected GeoTIFF, COG, JPEG2000, PNG or JPEG"
    )


def describe_raster(path: str | Path) -> RasterInfo:
    """Read the header of a raster and check that objects can be located in it.

    Parameters
    ----------
    path : str or Path
        A file on this machine.

    Returns
    -------
    RasterInfo
        ``mask_kind`` is where GDAL would take validity from; ``alpha_band`` is set only if a band
        is tagged as alpha and looks like one: GDAL tags the fourth of four bands so unless told
        otherwise, and near infrared taken for alpha hides dark ground. A warning is logged then.

    Raises
    ------
    SourceError
        If the file does not open, has no CRS, only ground control points, no transform, a palette,
        complex or 1-bit pixels; the message says what to run.
    """
    with open_raster(path) as src:
        _check_georeference(path, src)
        _check_pixels(path, src)
        wkt = str(src.crs.to_wkt())
        colors = tuple(c.name for c in src.colorinterp)
        alpha_band = _alpha_band(path, src, colors)
        info = RasterInfo(
            path=str(Path(path).expanduser().absolute()),
            crs_wkt=wkt,
            transform=Affine(*tuple(src.transform)[:6]),
            height=src.height,
            width=src.width,
            bands=src.count,
            dtype=src.dtypes[0],
            nodata=None if src.nodata is None else float(src.nodata),
            mask_kind=_mask_kind(src, alpha_band),
            block_shape=tuple(src.block_shapes[0]),
            gsd_m=ground_gsd_m(wkt, src.transform, src.width, src.height),
            fingerprint="",
            alpha_band=alpha_band,
            colors=colors,
        )
    if not np.isfinite(info.gsd_m) or info.gsd_m <= 0:
        raise SourceError(
            f"{path}: its centre does not lie on the earth by its CRS and transform; "
            "assign the right CRS with gdal_edit.py -a_srs"
        )
    return _with_fingerprint(info)


def _check_georeference(path: str | Path, src: DatasetReader) -> None:
    """Refuse a raster that does not say where it lies."""
    gcps, gcp_crs = src.gcps
    if src.crs is None and gcps:
        target = gcp_crs.to_string() if gcp_crs else "EPSG:..."
        raise SourceError(
            f"{path} has ground control points but no transform; warp it first: "
            f"gdalwarp -t_srs {target} {path} warped.tif"
        )
    if src.crs is None and src.rpcs is not None:
        raise SourceError(
            f"{path} has RPCs but no transform; orthorectify it first: "
            f"gdalwarp -rpc -to RPC_DEM=dem.tif -t_srs EPSG:... {path} ortho.tif"
        )
    if src.crs is None:
        raise SourceError(
            f"{path} has no CRS; assign one with gdal_edit.py -a_srs EPSG:... {path} "
            f"or rio edit-info --crs EPSG:... {path}"
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


def _check_pixels(path: str | Path, src: DatasetReader) -> None:
    """Refuse pixels that are no measured brightness."""
    if max(src.height, src.width) > _FILE_SIDE_PX:
        raise SourceError(
            f"{path} is {src.width} x {src.height} px; at most {_FILE_SIDE_PX} px a side are read"
        )
    if src.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1":
        raise SourceError(
            f"{path} has 1-bit pixels: it is a mask, not imagery; give the image itself"
        )
    if src.colorinterp[0] == ColorInterp.palette:
        raise SourceError(
            f"{path} has a palette: its pixels are indices, not colours; expand them first: "
            f"gdal_translate -expand rgb {path} rgb.tif"
        )
    if np.dtype(src.dtypes[0]).kind == "c":
        raise SourceError(f"{path} has complex pixels; convert them to real ones first")


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
        Path(path).name,
        band,
    )
    return None


def _mask_kind(src: DatasetReader, alpha_band: int | None) -> str:
    """Return where validity comes from."""
    flags = src.mask_flag_enums[0]
    if MaskFlags.alpha in flags:
        return "none" if alpha_band is None else "alpha"
    if MaskFlags.nodata in flags:
        return "nodata"
    return "mask" if MaskFlags.per_dataset in flags else "none"


def _with_fingerprint(info: RasterInfo) -> RasterInfo:
    """Add the hash of size, header and sampled bytes: a copy of the file keeps it."""
    file = Path(info.path)
    size = file.stat().st_size
    digest = hashlib.sha256()
    facts = (size, info.crs_wkt, tuple(info.transform), info.height, info.width, info.bands)
    digest.update(repr((*facts, info.dtype, info.nodata, info.mask_kind)).encode())
    last = max(size - _FINGERPRINT_BYTES, 0)
    with file.open("rb") as stream:
        for offset in np.linspace(0, last, _FINGERPRINT_SAMPLES).astype(np.int64).tolist():
            stream.seek(offset)
            digest.update(stream.read(_FINGERPRINT_BYTES))
    for sidecar in (f"{file}.msk", f"{file}.aux.xml"):
        if Path(sidecar).is_file():
            digest.update(str(Path(sidecar).stat().st_size).encode())
    fields = {name: getattr(info, name) for name in info.__slots__}
    return RasterInfo(**(fields | {"fingerprint": digest.hexdigest()}))


def select_bands(info: RasterInfo, bidx: tuple[int, ...] | None, wanted: int) -> tuple[int, ...]:
    """Choose the bands to read.

    Without `bidx`: red, green and blue by their tags where the file names them and three are
    wanted (so BGR files come out right), else the first `wanted` bands that are not alpha. With
    `bidx` any band can be chosen, also one tagged as alpha (NAIP's near infrared often is); it is
    no mask then.

    Parameters
    ----------
    info : RasterInfo
        Of the raster.
    bidx : tuple of int or None
        1-based bands in the wanted order, or None.
    wanted : int
        How many bands the model or detector takes; at least 1.

    Returns
    -------
    tuple of int
        Shape (wanted,), 1-based.

    Raises
    ------
    SourceError
        If a band does not exist, or there are too few or not `wanted` of them.
    """
    name = Path(info.path).name
    if bidx is not None:
        if absent := [b for b in bidx if not 1 <= b <= info.bands]:
            raise SourceError(
                f"{name} has {info.bands} band(s) but --bidx asks for band {absent[0]}; "
                f"choose from 1 to {info.bands}"
            )
        if len(bidx) != wanted:
            raise SourceError(
                f"--bidx names {len(bidx)} band(s) but {wanted} are needed; name {wanted} of the "
                f"{info.bands} bands of {name}"
            )
        return tuple(bidx)
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
