"""Lists of images that STAC documents name: items, collections of items, static catalogs.

Only links and assets are read: ``links`` of the relations item, child and next, ``assets`` with
their ``href``, ``type`` and ``roles``.
A document of another machine may not name files of this one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from geoseg.errors import SourceError
from geoseg.imagery.remote import RemoteError, check_step, fetch, is_bucket, is_remote, plain_path
from geoseg.redact import address_of, redact

MOST_IMAGES = 10_000
"""Images that one document may lead to."""
_MOST_DOCUMENTS = 20_000
_MOST_BYTES = 64_000_000
_FORMATS = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/png", "image/jpeg")
_SUFFIXES = (".tif", ".tiff", ".jp2")
_NAMES = ("visual", "image", "data", "ortho", "orthophoto", "cog")


def is_document(head: bytes) -> bool:
    """Tell whether a file begins as a JSON object does."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def images_of(source: str, asset: str | None = None) -> list[str]:
    """List the images that a STAC document leads to.

    Parameters
    ----------
    source : str
        A file on this machine, or an address.
    asset : str, optional
        Name of the asset of each item. By default the one in a raster format whose role is
        'visual' or 'data'; where several are left, the visual one.

    Returns
    -------
    list of str
        Paths and addresses, in the order of the document.

    Raises
    ------
    SourceError
        If it is no STAC, an item has no such asset or several that could be meant, or there are
        more than `MOST_IMAGES`.
    """
    # children are walked in order, depth first, so that the list is the document's
    waiting, seen = deque([source]), {source}
    images: list[str] = []
    while waiting:
        place = waiting.popleft()
        document = _load(place)
        items = document.get("features") if document.get("type") == "FeatureCollection" else None
        for item in [document] if document.get("type") == "Feature" else items or []:
            images.append(_image_of(item, place, asset))
            if len(images) > MOST_IMAGES:
                raise SourceError(
                    f"{redact(source)} leads to more than {MOST_IMAGES} images; name a smaller "
                    "collection, or the items in a list file"
                )
        if document.get("type") != "Feature":
            found = [_resolve(place, href) for href in _links(document)]
            fresh = [link for link in dict.fromkeys(found) if link not in seen]
            seen.update(fresh)
            waiting.extendleft(reversed(fresh))
            if len(seen) > _MOST_DOCUMENTS:
                raise SourceError(
                    f"{redact(source)} leads to more than {_MOST_DOCUMENTS} documents; name a part"
                )
    if not images:
        raise SourceError(f"{redact(source)} leads to no STAC item; name an item or a collection")
    return images


def _load(place: str) -> dict[str, Any]:
    """Read a document, which must look like STAC."""
    if is_bucket(place) or place.startswith(("s3:", "gs:", "az:")):
        raise SourceError(
            f"{redact(place)}: STAC documents are read from https and from files; download it"
        )
    if is_remote(place):
        plain = plain_path(place)
        answer = fetch(address_of(plain), {"Accept": "application/json"}, most=_MOST_BYTES)
        if answer.status != 200:
            raise RemoteError(
                f"{plain}: the server answers {answer.status}; check the address", answer.status
            )
        text = answer.body
    else:
        try:
            with Path(place).open("rb") as file:
                text = file.read(_MOST_BYTES)
        except OSError as error:
            raise SourceError(f"{place}: cannot be read ({error.strerror}); check it") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{redact(place)} is no STAC: it is not valid JSON") from error
    kinds = ("Feature", "FeatureCollection", "Collection", "Catalog")
    if not isinstance(document, dict) or document.get("type") not in kinds:
        raise SourceError(
            f"{redact(place)} is no STAC; expected an item, an item collection or a collection"
        )
    return document


def _links(document: Mapping[str, Any]) -> list[str]:
    """Return what a collection leads to: its items and children, and the next page."""
    links = document.get("links")
    wanted = ("next",) if document.get("type") == "FeatureCollection" else ("item", "child")
    return [
        str(link["href"])
        for link in (links if isinstance(links, list) else [])
        if isinstance(link, dict)
        and link.get("rel") in wanted
        and link.get("href")
        # a page that must be asked for with a body cannot be followed by its address
        and str(link.get("method", "GET")).upper() == "GET"
    ]


def _resolve(place: str, href: str) -> str:
    """Return where a reference of a document leads."""
    if is_remote(place):
        base = address_of(plain_path(place))
        if href.startswith(("/vsi", "file:")) or (is_remote(href) and not href.startswith("http")):
            if href.startswith(("s3://", "gs://", "az://")):
                return href
            raise SourceError(f"{redact(place)} names {redact(href)}, which a document may not")
        target = urljoin(base, href)
        check_step(base, target)
        return target
    if is_remote(href):
        return href
    if "://" in href or href.startswith("file:"):
        path = urlsplit(href)
        if path.scheme == "file" and path.netloc in ("", "localhost"):
            return path.path
        raise SourceError(f"{place} names {redact(href)}, which is not read")
    return str((Path(place).parent / href).resolve())


def _image_of(item: Any, place: str, wanted: str | None) -> str:
    """Return the image of an item."""
    assets = item.get("assets") if isinstance(item, dict) else None
    name = redact(str(item.get("id", "?")))[:80] if isinstance(item, dict) else "?"
    where = f"item {name} of {redact(place)}"
    if not isinstance(assets, dict) or not assets:
        raise SourceError(f"{where} has no assets; it is no STAC item")
    assets = {str(k): v for k, v in assets.items() if isinstance(v, dict) and v.get("href")}
    listed = ", ".join(sorted(assets)[:20])
    if wanted is not None:
        if wanted not in assets:
            raise SourceError(f"{where} has no asset '{wanted}'; --asset may be {listed}")
        return _resolve(place, str(assets[wanted]["href"]))
    rasters = {key: value for key, value in assets.items() if _is_raster(value)}
    for choice in (
        {k: v for k, v in rasters.items() if "visual" in _roles(v)},
        {k: v for k, v in rasters.items() if "data" in _roles(v)},
        {k: v for k, v in rasters.items() if k.lower() in _NAMES},
        {k: v for k, v in rasters.items() if not {"thumbnail", "overview"} & _roles(v)},
    ):
        named = [key for key in choice if key.lower() in _NAMES]
        if len(choice) == 1 or len(named) == 1:
            only = choice[named[0]] if len(named) == 1 else next(iter(choice.values()))
            return _resolve(place, str(only["href"]))
        if choice:
            raise SourceError(
                f"{where} has several images; say which with --asset: {', '.join(sorted(choice))}"
            )
    raise SourceError(f"{where} has no raster asset (it has {listed}); name one with --asset")


def _roles(asset: Mapping[str, Any]) -> set[str]:
    roles = asset.get("roles")
    return {str(role).lower() for role in roles} if isinstance(roles, list) else set()


def _is_raster(asset: Mapping[str, Any]) -> bool:
    """Tell whether an asset is in a format that is read."""
    kind = str(asset.get("type", "")).partition(";")[0].strip().lower()
    if kind:
        return kind in _FORMATS and not {"thumbnail"} & _roles(asset)
    return urlsplit(str(asset["href"])).path.lower().endswith(_SUFFIXES)
