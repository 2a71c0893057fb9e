"""Find the images that a user names: files, folders, globs, lists, addresses, STAC documents."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affine import Affine

from geoseg.errors import SourceError
from geoseg.imagery.remote import ask_again, fetch, is_bucket, is_remote, name_of, plain_path
from geoseg.imagery.source import missing, open_raster, raster_crs
from geoseg.imagery.stac import images_of, is_document
from geoseg.imagery.vrt import allow_vrt as allowed
from geoseg.redact import address_of, redact

IMAGE_SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg")
"""What is looked for in a folder."""
LIST_SUFFIXES = (".txt", ".lst")
"""What is a list of images even without an @ before it."""

_PLAIN_PICTURES = (".png", ".jpg", ".jpeg")
_DOCUMENTS = (".json", ".geojson")
_MOST_LIST_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class _Wanted:
    asset: str | None
    allow_vrt: bool


def find_images(
    inputs: Sequence[str | Path], *, asset: str | None = None, allow_vrt: bool = False
) -> tuple[str, ...]:
    """List the rasters that inputs name.

    A folder gives its own ``*.tif``, ``*.tiff``, ``*.jp2`` (never skipped, so that a broken one is
    noticed) and those ``*.png``, ``*.jpg`` that carry georeferencing (folders hold photos too). A
    list file holds one input per line; empty lines and lines that begin with # are left out, and
    relative paths start at its folder.

    Parameters
    ----------
    inputs : sequence of str or Path
        Files, folders (not searched below their first level), globs (``**`` is understood),
        ``@list.txt`` or ``list.txt``, addresses as `geoseg.imagery.remote.plain_path` takes them,
        STAC items and collections (``.json`` files, or addresses).
    asset : str, optional
        Name of the asset of STAC items.
    allow_vrt : bool
        Open files named ``*.vrt`` too, as far as `geoseg.imagery.vrt` does.

    Returns
    -------
    tuple of str
        Absolute paths, plain addresses, and VRTs as `geoseg.imagery.vrt.allow_vrt` returns them;
        sorted, each file once.

    Raises
    ------
    SourceError
        If one of the inputs matches nothing or cannot be read.
    """
    if not inputs:
        raise SourceError("no image given; name at least one file, folder, glob or address")
    wanted = _Wanted(asset, allow_vrt)
    found: set[str] = set()
    for entry in inputs:
        found.update(_expand(str(entry), wanted))
    remote = [path for path in found if is_remote(path) and not is_bucket(path)]
    ask_again(remote)
    return tuple(sorted(found))


def find_image(path: str | Path, *, asset: str | None = None, allow_vrt: bool = False) -> str:
    """Return the one raster that an input names; parameters and errors as `find_images`."""
    found = find_images([path], asset=asset, allow_vrt=allow_vrt)
    if len(found) > 1:
        raise SourceError(f"{redact(str(path))} stands for {len(found)} images; name one")
    return found[0]


def _expand(entry: str, wanted: _Wanted) -> list[str]:
    """Return what one input stands for; at least one raster."""
    path = entry.removeprefix("@")
    if not Path(entry).is_file() and (
        entry.startswith("@") or (path.lower().endswith(LIST_SUFFIXES) and not is_remote(path))
    ):
        return _from_list(path, wanted)
    if entry.lower().endswith(LIST_SUFFIXES) and Path(entry).is_file():
        return _from_list(entry, wanted)
    matches = _matches(entry, wanted)
    if not matches:
        raise SourceError(f"{redact(entry)}: {_why_nothing(entry)}")
    return matches


def _from_list(path: str, wanted: _Wanted) -> list[str]:
    """Return what the lines of a list stand for."""
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_LIST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"{path}: the list cannot be read ({error.strerror}); check it"
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: the list is not UTF-8 text; save it as such") from error
    found: list[str] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if line.startswith("@") or line.lower().endswith(LIST_SUFFIXES):
            raise SourceError(f"{where}: a list may not name a list; name it on the command line")
        if "\0" in line:
            raise SourceError(f"{path} is no list of images: it holds bytes that are no text")
        entry = line if is_remote(line) else str(file.parent / Path(line).expanduser())
        try:
            found += _expand(entry, wanted)
        except SourceError as error:
            raise SourceError(f"{where}: {error}") from error
    if not found:
        raise SourceError(f"{path}: the list names no image; expected one per line")
    return found


def _matches(entry: str, wanted: _Wanted) -> list[str]:
    """Return the absolute paths or addresses that one input stands for."""
    if is_remote(entry):
        return _remote(entry, wanted)
    path = Path(entry).expanduser()
    if path.is_file():
        return _of_file(path, wanted)
    if path.is_dir():
        return [str(p.resolve()) for p in sorted(path.iterdir()) if _is_image(p)]
    if not glob.has_magic(entry):
        return []
    # Path.glob takes no absolute pattern
    hits = (Path(hit) for hit in glob.glob(str(path), recursive=True))  # noqa: PTH207
    return [str(p.resolve()) for p in hits if p.is_file() and _is_image(p)]


def _of_file(path: Path, wanted: _Wanted) -> list[str]:
    """Return the raster that a file is, or those that it names."""
    suffix = path.suffix.lower()
    if suffix == ".vrt" and wanted.allow_vrt:
        return [allowed(path)]
    if suffix in _DOCUMENTS:
        return _plain_all(images_of(str(path.resolve()), wanted.asset))
    return [str(path.resolve())]


def _remote(entry: str, wanted: _Wanted) -> list[str]:
    """Return the file behind an address, or the images that a document there names."""
    plain = plain_path(entry)
    suffix = Path(name_of(plain).partition("#")[0]).suffix.lower()
    if is_bucket(plain) or suffix in IMAGE_SUFFIXES:
        return [plain]
    if suffix in _DOCUMENTS or _begins_as_document(plain):
        return _plain_all(images_of(plain, wanted.asset))
    return [plain]


def _begins_as_document(plain: str) -> bool:
    """Tell whether JSON is behind an address that does not say what it is."""
    answer = fetch(address_of(plain), {"Range": "bytes=0-511"}, most=512)
    # whatever else is wrong is told where the raster is opened
    return answer.status in (200, 206) and is_document(answer.body)


def _plain_all(images: Sequence[str]) -> list[str]:
    """Return what images of a document are called from here on."""
    return [plain_path(image) if is_remote(image) else image for image in images]


def _is_image(path: Path) -> bool:
    """Tell whether a file found in a folder is meant as a raster."""
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix not in IMAGE_SUFFIXES or not path.is_file():
        return False
    if suffix not in _PLAIN_PICTURES:
        return True
    try:
        with open_raster(path) as src:
            # one with a world file is meant, even where its CRS is named elsewhere
            return raster_crs(src) is not None or not src.transform.almost_equals(Affine.identity())
    except SourceError:
        return False


def _why_nothing(entry: str) -> str:
    """Say why an input names no raster."""
    suffixes = ", ".join(f"*{s}" for s in IMAGE_SUFFIXES)
    if Path(entry).expanduser().is_dir():
        return f"the folder holds no raster ({suffixes}); name the files or another folder"
    if glob.has_magic(entry):
        return f"the pattern matches no raster ({suffixes}); check it with ls"
    return missing(entry)
