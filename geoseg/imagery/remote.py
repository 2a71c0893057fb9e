"""Read files of other machines, range by range: addresses, connections, and what is kept of them.

Files behind http and https are read by this module and handed to GDAL as if they were local: GDAL
never sees an address, so none can stand in what it says; redirections, retries and the bytes
that are read are under control here. Buckets (``s3://``, ``gs://``, ``az://``) need
signatures that GDAL knows how to make; `bucket_options` sets it up for them.

What was read is kept in a folder that all processes of a run share, in chunks, so that no byte of
a file is fetched twice.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from rasterio._vsiopener import MultiByteRangeResource, MultiByteRangeResourceContainer

from geoseg.errors import SourceError
from geoseg.imagery.chunks import CHUNK, ChunkStore, cache_folder
from geoseg.redact import Access, address_of, is_known, learn_address, redact

BUCKETS = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
"""Schemes of object stores, and how GDAL names them."""
SIDECARS = (".msk", ".ovr", ".aux.xml")
"""Files beside a raster that change how it is read."""
WORLD_FILES = {
    "PNG": (".pgw", ".pngw", ".wld"), "JPEG": (".jgw", ".jpgw", ".jpegw", ".wld"),
    "JP2OpenJPEG": (".j2w", ".jp2w", ".wld"),
}  # fmt: skip
"""Suffixes, in place of the image's own, of files that say where it lies."""

_HEAD_BYTES = 2 * CHUNK
_MOST_AT_ONCE = 8_388_608
_PARALLEL = 8
_REDIRECTS = 5
_RETRY_CODES = (429, 500, 502, 503, 504)
_RETRY_S = 0.5
_LONGEST_WAIT_S = 15.0
_TRIES = 5
_TIMEOUT_S = 30.0
_ADDRESS = re.compile(r"^(https?|s3|gs|az):/{1,2}(?=[^/])(.*)$", re.DOTALL | re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?i)^(x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|signature|policy|key-pair-id|expires|"
    r"sig|se|sp|sv|sr|st|spr|sip|ss|srt|sdd|skoid|sktid|skt|ske|sks|skv|token|access_token|key|"
    r"api_?key|auth.*|.*(token|secret|passw|credential|subscription-key|signature).*)$"
)
_known: dict[str, tuple[float, RemoteFacts]] = {}
_local = threading.local()
_lock = threading.Lock()
_locks: dict[str, threading.Lock] = {}
_pool: ThreadPoolExecutor | None = None


class RemoteError(SourceError):
    """A file of another machine cannot be read; the message holds no secret."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """What the server answered; 0 where there was no answer, or a good one."""

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, int]]:
        return RemoteError, (str(self), self.status)


# -- addresses --------------------------------------------------------------------------------


def is_remote(path: object) -> bool:
    """Tell whether a path names a file of another machine."""
    text = str(path)
    return text.startswith("/vsi") or _ADDRESS.match(text) is not None


def is_bucket(path: object) -> bool:
    """Tell whether a path names an object that GDAL reads, as `plain_path` returns it."""
    return str(path).startswith(tuple(BUCKETS.values()))


def plain_path(text: str) -> str:
    """Return what a remote file is called from here on: without login and query.

    The address itself is kept in this process and `geoseg.redact.access_to` hands it to others.

    Parameters
    ----------
    text : str
        ``https://``, ``http://``, ``/vsicurl/https://``, ``s3://``, ``gs://``, ``az://``,
        ``/vsis3/``, ``/vsigs/`` or ``/vsiaz/``; a `Path` made of one is understood, too.

    Returns
    -------
    str
        An address without secrets, or GDAL's path of an object. Queries that tell files apart
        leave a short hash behind.

    Raises
    ------
    SourceError
        If it is of another kind.
    """
    if is_known(text):
        return text
    text = text.removeprefix("/vsicurl/") if text.startswith("/vsicurl/http") else text
    match = _ADDRESS.match(text)
    if match is None:
        return _checked_bucket(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme in BUCKETS:
        return _checked_bucket(BUCKETS[scheme] + rest.partition("?")[0])
    address = f"{scheme}://{rest}"
    try:
        parts = urlsplit(address)
        host, port = str(parts.hostname), parts.port
    except ValueError as error:
        raise SourceError(
            f"{redact(address)}: this is no address; expected https://HOST/PATH"
        ) from error
    name = f"[{host}]" if ":" in host else host
    plain: str = urlunsplit(
        (scheme, name if port is None else f"{name}:{port}", parts.path, "", "")
    )
    telling = [p for p in parts.query.split("&") if p and not _SIGNATURE.match(p.partition("=")[0])]
    if telling:
        plain += f"#{hashlib.sha256('&'.join(telling).encode()).hexdigest()[:8]}"
    Access(plain, urlunsplit((scheme, parts.netloc, parts.path, parts.query, "")))
    return plain


def _checked_bucket(text: str) -> str:
    """Return GDAL's path of an object, if it is one."""
    if not text.startswith(tuple(BUCKETS.values())):
        prefix = re.match(r"/vsi\w*", text)
        raise SourceError(
            f"{prefix[0] if prefix else redact(text)}: this kind of path is not read; expected "
            "https://, s3://, gs://, az://, /vsicurl/https://, /vsis3/, /vsigs/ or /vsiaz/ "
            "(without options), or a file"
        )
    bucket, _, key = text.split("/", 2)[2].partition("/")
    if (
        not bucket
        or not key
        or "/vsi" in key
        or any(part in ("..", ".") for part in key.split("/"))
    ):
        raise SourceError(f"{redact(text)}: this names no object; expected BUCKET/KEY after it")
    return text


def name_of(path: object) -> str:
    """Return the file name of a path or address."""
    return unquote(PurePosixPath(str(path).partition("?")[0]).name)


# -- connections ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    address: str
    """After redirections."""


def fetch(address: str, headers: Mapping[str, str] | None = None, *, most: int = 0) -> Answer:
    """Get an address, with retries; redirections are followed as far as that is safe.

    Parameters
    ----------
    address : str
        http or https.
    headers : mapping, optional
        To send.
    most : int
        Bytes of the body that are read, at most; 206 and 200 answers only.

    Raises
    ------
    RemoteError
        If no answer comes, or a redirection leads where it may not.
    """
    shown, tries = redact(address), max(1, int(_setting("GDAL_HTTP_MAX_RETRY", _TRIES - 1)) + 1)
    reason = ""
    for attempt in range(tries):
        if attempt:
            _wait(attempt, reason)
        try:
            answer = _follow(address, dict(headers or {}), most)
        except (OSError, http.client.HTTPException) as error:
            reason = _why(error)
            if isinstance(error, ssl.SSLCertVerificationError | socket.gaierror):
                break
            continue
        if answer.status not in _RETRY_CODES:
            return answer
        reason = f"the server answers {answer.status}"
        wait = answer.headers.get("retry-after", "")
        if wait.isdecimal() and attempt + 1 < tries:
            time.sleep(min(int(wait), _LONGEST_WAIT_S))
    raise RemoteError(f"{shown}: {reason}, after {tries} tries; check the server and the network")


def _wait(attempt: int, _reason: str) -> None:
    pause = _setting("GDAL_HTTP_RETRY_DELAY", _RETRY_S) * 2 ** (attempt - 1)
    # many workers must not come back at the same moment
    time.sleep(min(pause, _LONGEST_WAIT_S) * random.uniform(0.75, 1.25))  # noqa: S311


def _why(error: BaseException) -> str:
    """Say in few words why a connection failed; no text of libraries, it may hold anything."""
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"
    return f"the connection broke ({type(error).__name__})"


def _setting(name: str, default: float) -> float:
    """Return a number that users set for GDAL's own reader, too."""
    try:
        return max(0.0, float(os.environ.get(name, default)))
    except ValueError:
        return default


def _follow(address: str, headers: dict[str, str], most: int) -> Answer:
    headers = _own_headers(address) | headers
    for _ in range(_REDIRECTS + 1):
        answer = _once(address, headers, most)
        if answer.status not in (301, 302, 303, 307, 308) or "location" not in answer.headers:
            return answer
        target = urljoin(address, answer.headers["location"])
        learn_address(target)
        check_step(address, target)
        if urlsplit(target).netloc != urlsplit(address).netloc:
            # what opens one server is not for another
            headers = {k: v for k, v in headers.items() if k in ("Range", "If-None-Match")}
        address = target
    raise RemoteError(f"{redact(address)}: more than {_REDIRECTS} redirections; check the address")


def check_step(origin: str, target: str) -> None:
    """Refuse what an answer or a document of another machine may not lead to.

    Raises
    ------
    RemoteError
        If it leads from https to http, to another scheme, or from a public host to one inside.
    """
    old, new = urlsplit(origin), urlsplit(target)
    shown = redact(urlunsplit((new.scheme, new.netloc.rpartition("@")[2], new.path, "", "")))
    if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
        raise RemoteError(
            f"{redact(origin)} leads to {shown}, which is not safe; name the file's own address"
        )
    if new.hostname != old.hostname and _is_inside(new.hostname) and not _is_inside(old.hostname):
        raise RemoteError(
            f"{redact(origin)} leads to {shown}, a host inside this network; if that is meant, "
            "name the file's own address"
        )


def _is_inside(host: str | None) -> bool:
    """Tell whether a host is this machine or one of a private network."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(not ipaddress.ip_address(place.partition("%")[0]).is_global for place in found)


def _own_headers(address: str) -> dict[str, str]:
    """Return the headers that log in: from the address, or as users set them for GDAL."""
    headers = {"User-Agent": "geoseg", "Accept-Encoding": "identity"}
    for line in os.environ.get("GDAL_HTTP_HEADERS", "").split(","):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    parts = urlsplit(address)
    login = os.environ.get("GDAL_HTTP_USERPWD", "")
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif bearer := os.environ.get("GDAL_HTTP_BEARER"):
        headers["Authorization"] = f"Bearer {bearer}"
    return headers


def _once(address: str, headers: Mapping[str, str], most: int) -> Answer:
    """Send one request over a connection that is kept; a stale one is opened again."""
    parts = urlsplit(address)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{parts.query}" if parts.query else ""
    )
    for again in (True, False):
        connection, path_sent, reused = _connection(address, path)
        try:
            connection.request("GET", path_sent, headers=dict(headers))
            response = connection.getresponse()
            return _read(response, connection, address, most)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            stale = isinstance(error, http.client.RemoteDisconnected | ConnectionError)
            if not (again and reused and stale):
                raise
    raise AssertionError  # pragma: no cover


def _read(
    response: http.client.HTTPResponse, connection: http.client.HTTPConnection, address: str,
    most: int,
) -> Answer:  # fmt: skip
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = b""
    length = response.length
    if response.status in (200, 206) and (response.status == 206 or most):
        body = response.read(most) if most else response.read()
        if length is not None and len(body) < min(length, most or length):
            raise http.client.IncompleteRead(body)
    if response.isclosed() or (not body and length is not None and length < CHUNK):
        response.read()
    else:
        # the rest is not wanted
        connection.close()
    return Answer(response.status, headers, body, address)


def _connection(address: str, path: str) -> tuple[http.client.HTTPConnection, str, bool]:
    """Return a connection of this thread, what to ask it for, and whether it was used before."""
    parts = urlsplit(address)
    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    timeout = _setting("GDAL_HTTP_TIMEOUT", _TIMEOUT_S) or None
    kept: dict[tuple[str, str, int, str], http.client.HTTPConnection]
    kept = _local.__dict__.setdefault("connections", {})
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy and urllib.request.proxy_bypass(host):
        proxy = ""
    key = (parts.scheme, host, port, proxy)
    connection = kept.get(key)
    via = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    if proxy and parts.scheme == "http":
        path = urlunsplit(("http", parts.netloc.rpartition("@")[2], path.partition("?")[0],
                           path.partition("?")[2], ""))  # fmt: skip
    if connection is not None:
        return connection, path, connection.sock is not None
    at, gate = (str(via.hostname), via.port or 8080) if proxy else (host, port)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=os.environ.get("CURL_CA_BUNDLE") or None)
        connection = http.client.HTTPSConnection(at, gate, timeout=timeout, context=context)
        if proxy:
            connection.set_tunnel(host, port)
    else:
        connection = http.client.HTTPConnection(at, gate, timeout=timeout)
    kept[key] = connection
    return connection, path, False


# -- files ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """What a server says of a file."""

    size: int
    """Bytes."""
    mark: str
    """ETag, or time of the last change where there is none; '' if the server tells neither."""

    @property
    def key(self) -> str:
        """What tells its bytes from those of another state of the file."""
        return f"{self.size} {self.mark}"


def remote_facts(path: str) -> RemoteFacts:
    """Return size and state of a file behind http, as first seen; see `ask_again`.

    Parameters
    ----------
    path : str
        As `plain_path` returns it.

    Raises
    ------
    RemoteError
        If it is not there, may not be read, or cannot be read in parts.
    """
    known = _known.get(path)
    if known is not None:
        return known[1]
    noted = _noted(path)
    if noted is not None:
        _known[path] = (time.monotonic(), noted)
        return noted
    address = address_of(path)
    answer = fetch(address, {"Range": f"bytes=0-{_HEAD_BYTES - 1}"})
    facts = _facts_of(path, answer)
    store = ChunkStore(f"{path} {facts.key}")
    for index in range(0, len(answer.body), CHUNK):
        part = answer.body[index : index + CHUNK]
        if len(part) == CHUNK or index + len(part) == facts.size:
            store.put(index // CHUNK, part)
    _known[path] = (time.monotonic(), facts)
    _note(path, facts)
    return facts


def _note_file(path: str) -> Any:
    return cache_folder() / f"{hashlib.sha256(path.encode()).hexdigest()[:24]}.json"


def _note(path: str, facts: RemoteFacts) -> None:
    """Tell the other processes of this run."""
    with suppress(OSError):
        file = _note_file(path)
        private = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        private.write_text(json.dumps(asdict(facts)), encoding="utf-8")
        private.replace(file)


def _noted(path: str) -> RemoteFacts | None:
    """Return what the process that planned this run was told; it pins the state of the file."""
    if path in _asked_here:
        return None
    with suppress(OSError, ValueError, TypeError):
        return RemoteFacts(**json.loads(_note_file(path).read_text(encoding="utf-8")))
    return None


_asked_here: set[str] = set()


def ask_again(paths: Sequence[str], *, after_s: float = 0.0) -> None:
    """Forget what servers said of files: a command begins, and they may have changed.

    Parameters
    ----------
    paths : sequence of str
        As `plain_path` returns them.
    after_s : float
        Only of files that were asked for longer ago.
    """
    for path in paths:
        asked = _known.get(path, (0.0,))[0]
        if after_s and time.monotonic() - asked < after_s:
            continue
        _asked_here.add(path)
        _known.pop(path, None)
        for beside in _sidecars.pop(path, {}).values():
            _asked_here.add(beside)
            _known.pop(beside, None)


def _facts_of(path: str, answer: Answer) -> RemoteFacts:
    """Read size and state from an answer to a request for a range."""
    headers = answer.headers
    if answer.status == 206:
        total = headers.get("content-range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise RemoteError(
                f"{path}: the server does not tell the size of the file; download it and name the "
                "copy"
            )
        return RemoteFacts(int(total), headers.get("etag") or headers.get("last-modified", ""))
    raise RemoteError(f"{path}: {_refusal(answer)}", answer.status)


def _refusal(answer: Answer) -> str:
    status = answer.status
    if status == 200:
        return (
            "the server sends whole files only (no range requests); download it and name the copy"
        )
    if status in (404, 410):
        return f"the server has no such file ({status}); check the address"
    if status in (401, 403, 407):
        return (
            f"the server refuses access ({status}); check login and rights, and sign the address "
            "again if it is a signed one: they expire"
        )
    if status == 416:
        return "the file is empty; upload it again"
    return f"the server answers {status}; check the address"


class RemoteFile(RawIOBase):
    """A file behind http, open for reading: seek and read cost a request only for new bytes.

    Parameters
    ----------
    path : str
        As `plain_path` returns it.
    scan : bool
        It will be read from its beginning on, as headers are: more is fetched at once.

    Raises
    ------
    RemoteError
        As `remote_facts`.
    """

    def __init__(self, path: str, *, scan: bool = False) -> None:
        super().__init__()
        self.path = path
        self.facts = remote_facts(path)
        self._store = ChunkStore(f"{path} {self.facts.key}")
        self._scan = scan
        self._at = 0
        self._ahead, self._end = 2, -1

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it has positions."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position."""
        base = (0, self._at, self.facts.size)[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read from the position on; fewer bytes than asked for only at the end of the file."""
        end = self.facts.size if size < 0 else min(self._at + size, self.facts.size)
        data = self.ranges([(self._at, end)])[0] if end > self._at else b""
        self._at += len(data)
        return data

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of some (start, end), fetched at the same time.

        Raises
        ------
        RemoteError
            If they cannot be had, or the file has changed since it was first seen.
        """
        wanted = sorted({
            index
            for start, end in spans
            for index in range(start // CHUNK, -(-min(end, self.facts.size) // CHUNK))
        })  # fmt: skip
        found = self._store.get_many(wanted)
        if len(found) < len(wanted):
            # threads that read neighbouring windows want the same chunks: one fetches them
            with _lock_of(self.path):
                found |= self._complete([index for index in wanted if index not in found])
        return [
            b"".join(
                found[i][max(start - i * CHUNK, 0) : end - i * CHUNK]
                for i in range(start // CHUNK, -(-min(end, self.facts.size) // CHUNK))
            )
            for start, end in spans
        ]

    def _complete(self, wanted: Sequence[int]) -> dict[int, bytes]:
        """Return chunks that others fetched meanwhile, and fetch the rest."""
        found = self._store.get_many(wanted)
        missing = [index for index in wanted if index not in found]
        if missing:
            if self._scan and missing[0] <= self._end + 1:
                # headers are read in small steps: fetch more with each of them
                self._ahead = min(self._ahead * 2, 64)
                end = min(missing[-1] + self._ahead, -(-self.facts.size // CHUNK))
                missing = sorted({*missing, *range(missing[-1] + 1, end)})
            self._end = max(self._end, missing[-1])
            with self._store.claim(missing):
                found |= self._store.get_many(missing)
                found |= self._fetch([index for index in missing if index not in found])
        return found

    def _fetch(self, missing: Sequence[int]) -> dict[int, bytes]:
        """Get chunks from the server: neighbours together, far ones side by side."""
        runs: list[list[int]] = []
        for index in missing:
            if runs and index == runs[-1][-1] + 1 and len(runs[-1]) * CHUNK < _MOST_AT_ONCE:
                runs[-1].append(index)
            else:
                runs.append([index])
        parts = [self._get(runs[0])] if len(runs) == 1 else list(_threads().map(self._get, runs))
        return {index: chunk for part in parts for index, chunk in part.items()}

    def _get(self, run: Sequence[int]) -> dict[int, bytes]:
        start, end = run[0] * CHUNK, min((run[-1] + 1) * CHUNK, self.facts.size)
        address = address_of(self.path)
        answer = fetch(address, {"Range": f"bytes={start}-{end - 1}"})
        if answer.status == 416 or (
            answer.status == 206 and _facts_of(self.path, answer) != self.facts
        ):
            raise RemoteError(
                f"{self.path}: the file on the server has changed since it was first read; run the "
                "command again"
            )
        if answer.status != 206:
            raise RemoteError(f"{self.path}: {_refusal(answer)}", answer.status)
        span = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")[0]
        if span != f"{start}-{end - 1}" or len(answer.body) != end - start:
            raise RemoteError(f"{self.path}: the server sent other bytes than asked for")
        chunks = {
            index: answer.body[(index - run[0]) * CHUNK : (index - run[0] + 1) * CHUNK]
            for index in run
        }
        for index, chunk in chunks.items():
            self._store.put(index, chunk)
        return chunks


def _lock_of(path: str) -> threading.Lock:
    with _lock:
        return _locks.setdefault(path, threading.Lock())


def _threads() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603  # made when first needed
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="geoseg-fetch")
    return _pool


# -- what GDAL is given -----------------------------------------------------------------------

_sidecars: dict[str, dict[str, str]] = {}


def sidecars_of(path: str, driver: str) -> dict[str, str]:
    """Return the files beside a raster that change how it is read.

    A mask that is overlooked makes nodata look like ground, so they are asked for by name, once.
    A server that refuses a name (403) has none for us: object stores answer so where a listing is
    not allowed.

    Parameters
    ----------
    path : str
        As `plain_path` returns it.
    driver : str
        Of the raster.

    Returns
    -------
    dict of str to str
        Name on a `Shelf` to path.

    Raises
    ------
    RemoteError
        If the server does not say whether there are any.
    """
    if path not in _sidecars:
        name, found = name_of(urlsplit(path).path), {}
        stem, alias = name.rpartition(".")[0] or name, SHELVED[driver]
        names = {alias + suffix: name + suffix for suffix in SIDECARS}
        plain = alias.rpartition(".")[0]
        names |= {plain + suffix: stem + suffix for suffix in WORLD_FILES.get(driver, ())}
        for shelved, there in names.items():
            beside = beside_path(path, there)
            try:
                remote_facts(beside)
            except RemoteError as error:
                if error.status not in (401, 403, 404, 410, 416):
                    raise
            else:
                found[shelved] = beside
        _sidecars[path] = found
    return _sidecars[path]


def beside_path(path: str, name: str) -> str:
    """Return the path of a file beside another one: the same login and query lead to it."""
    plain, address = urlsplit(path), urlsplit(address_of(path))
    folder = plain.path.rpartition("/")[0]
    there = f"{folder}/{quote(name)}"
    beside = urlunsplit((plain.scheme, plain.netloc, there, "", plain.fragment))
    Access(beside, urlunsplit((address.scheme, address.netloc, there, address.query, "")))
    return beside


class Shelf(MultiByteRangeResourceContainer):  # type: ignore[misc]  # rasterio has no types
    """A raster behind http and what lies beside it, as a folder that GDAL can look into.

    What goes wrong is kept in `error`: GDAL would make other words of it, or none.

    Parameters
    ----------
    path : str
        As `plain_path` returns it.
    driver : str
        Of the raster.
    """

    def __init__(self, path: str, driver: str) -> None:
        self.name = f"{SHELF}/{SHELVED[driver]}"
        self.error: RemoteError | None = None
        self.files = {SHELVED[driver]: path} | sidecars_of(path, driver)

    def fail(self, error: RemoteError) -> None:
        """Keep the first error."""
        self.error = self.error or error

    def open(self, path: str, mode: str = "r", **_: Any) -> _Book:
        """Open a file for reading."""
        place = self.files.get(_last(path))
        if place is None or "r" not in mode or "+" in mode:
            raise FileNotFoundError(path)
        return _Book(place, self)

    def isfile(self, path: str) -> bool:
        """Tell whether a file is here."""
        return _last(path) in self.files

    def isdir(self, path: str) -> bool:
        """Tell whether this is the folder."""
        return _last(path) == SHELF

    def ls(self, _path: str) -> list[str]:
        """Return the names."""
        return list(self.files)

    def mtime(self, _path: str) -> int:
        """Return no time."""
        return 0

    def rm(self, path: str) -> None:
        """Refuse."""
        raise PermissionError(path)

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        place = self.files.get(_last(path))
        if place is None:
            raise FileNotFoundError(path)
        return remote_facts(place).size


SHELF = "remote"
"""The folder that GDAL sees."""
SHELVED = {"GTiff": "image.tif", "JP2OpenJPEG": "image.jp2", "PNG": "image.png",
           "JPEG": "image.jpg"}  # fmt: skip
"""What GDAL sees of a raster's name, by driver."""


def _last(path: str) -> str:
    return path.rpartition("/")[2]


class _Book(MultiByteRangeResource):  # type: ignore[misc]  # rasterio has no types
    """A file on a shelf; never raises: an exception has no way through GDAL."""

    def __init__(self, path: str, shelf: Shelf) -> None:
        self._file, self._shelf = RemoteFile(path), shelf

    def __enter__(self) -> _Book:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: connections are kept."""

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position."""
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """Read, or return nothing where that fails."""
        try:
            return self._file.read(size)
        except RemoteError as error:
            self._shelf.fail(error)
            return b""

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read several ranges; zeros where that fails, which the shelf remembers."""
        spans = [(o, o + size) for o, size in zip(offsets, sizes, strict=True)]
        try:
            parts = self._file.ranges(spans)
        except RemoteError as error:
            self._shelf.fail(error)
            parts = [b""] * len(spans)
        # GDAL copies as many bytes as it asked for
        return [part.ljust(size, b"\0") for part, size in zip(parts, sizes, strict=True)]


def bucket_options() -> dict[str, str]:
    """Return GDAL's settings for reading objects of a bucket.

    Sidecars are asked for by name: no listing of a bucket of a million objects, and no mask
    overlooked. What users set in the environment goes before.
    """
    options = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
        "GDAL_HTTP_MAX_RETRY": str(_TRIES - 1),
        "GDAL_HTTP_RETRY_DELAY": str(_RETRY_S),
        "GDAL_HTTP_RETRY_CODES": ",".join(map(str, _RETRY_CODES)),
        "GDAL_HTTP_TIMEOUT": str(int(_TIMEOUT_S)),
        "GDAL_HTTP_CONNECTTIMEOUT": "15",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_MULTIPLEX": "YES",
        "CPL_VSIL_CURL_CHUNK_SIZE": str(CHUNK),
        "CPL_VSIL_CURL_CACHE_SIZE": "268435456",
        "VSI_CACHE": "FALSE",
    }
    return {name: os.environ.get(name, value) for name, value in options.items()}
