"""Keep secrets out of everything that is shown or written: one function for all places.

Three nets, each of which would do in most cases: what is known to be secret is replaced wherever it
stands, however it is encoded; addresses lose their login and the values of their query; and words
that announce a secret (``Authorization:``, ``token=``) lose what follows.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
"""What stands where a secret was."""

_SHORTEST = 6
# ^ a shorter word would be cut out of innocent text; logins and queries lose it all the same
_AT_SIGN = r"(?:@|%40|%2540)"
_SLASHES = r"(?:://|%3[Aa]%2[Ff]%2[Ff]|%253[Aa]%252[Ff]%252[Ff]|:/(?=[^/\s]))"
_END = r"\s'\"<>|"
_LOGIN = re.compile(rf"(\b[A-Za-z][\w+.-]*{_SLASHES})(?:(?!{_AT_SIGN})[^{_END}/?#])+{_AT_SIGN}")
_QUERY = re.compile(
    rf"(\b[A-Za-z][\w+.-]*{_SLASHES}[^{_END}?]*?)(?:\?|%3[Ff]|%253[Ff])([^{_END}]*)"
)
_VSI = re.compile(rf"(/vsi\w+)\?([^{_END}]*)")
_PARAMETERS = (
    r"X-(?:Amz|Goog|Ms)-[\w-]+|AWSAccessKeyId|GoogleAccessId|Signature|Policy|Key-Pair-Id|"
    r"sig|se|sp|sv|sr|skoid|sktid|skt|ske|sks|skv|st|Expires|"
    r"[\w-]*(?:access_?key|api_?key|subscription-key|token|secret|passw(?:or)?d|credential|"
    r"connection_string|userpwd|bearer)[\w-]*|key|auth|pwd"
)
_PAIR = re.compile(
    rf"(?i)((?:^|[?&;,\s'\"({{]|%26|%3F|%2526|%253F)(?:{_PARAMETERS})(?:=|%3D|%253D))"
    rf"[^&{_END},;)}}]+"
)
_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization|x-[\w-]*(?:token|key|secret)[\w-]*|cookie|set-cookie)"
    r"(['\"]?\s*[:=]\s*(?:b(?=['\"]))?['\"]?)(?:(?:basic|bearer|digest|aws4-hmac-sha256|sharedkey|token)\s+)?"
    r"[^\r\n'\"]+"
)
_ENVIRONMENT = re.compile(
    r"(?i)(secret|token|passw|access_key|account_key|storage_key|_sas|bearer|userpwd|credential|"
    r"connection_string|http_headers|apikey|api_key)"
)
_known: set[str] = set()
_pattern: re.Pattern[str] | None = None
_lock = threading.Lock()


def redact(text: str) -> str:
    """Return a text without secrets.

    Examples
    --------
    >>> redact("https://me:pass@host/x.tif?X-Amz-Signature=abc&v=2 failed")
    'https://host/x.tif?*** failed'
    >>> redact("Authorization: Bearer abc.def")
    'Authorization: ***'
    """
    if _pattern is None:
        _learn_environment()
    if _pattern is not None:
        text = _pattern.sub(HIDDEN, text)
    # what cannot hold an address or a pair is most of what passes here
    if ":" not in text and "=" not in text and "%" not in text and "?" not in text:
        return text
    text = _LOGIN.sub(r"\1", text)
    text = _QUERY.sub(_without_query, text)
    text = _VSI.sub(rf"\1?{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    return _PAIR.sub(rf"\1{HIDDEN}", text)


def _without_query(match: re.Match[str]) -> str:
    return f"{match[1]}?{HIDDEN}" if match[2] else match[0]


def redact_all(value: Any) -> Any:
    """Return a value whose texts are redacted, at any depth; for what goes into JSON."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_all(k): redact_all(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(v) for v in value]
    return value


def learn_secrets(secrets: Iterable[str]) -> None:
    """Have these texts replaced from now on, also where they are percent-encoded."""
    global _pattern  # noqa: PLW0603  # one net for the process
    with _lock:
        for secret in secrets:
            plain = unquote(secret)
            forms = {secret, plain, quote(plain, safe=""), quote(plain), quote_plus(plain)}
            forms |= {quote(form, safe="") for form in forms}
            _known.update(form for form in forms if len(form) >= _SHORTEST)
        longest_first = sorted(_known, key=lambda form: (-len(form), form))
        _pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _learn_environment() -> None:
    """Learn the secrets that stand in environment variables."""
    learn_secrets(
        value
        for name, value in os.environ.items()
        if _ENVIRONMENT.search(name) and len(value) >= 8 and not value.startswith(("/", "."))
    )


def learn_address(address: str) -> None:
    """Learn login and query values of an address."""
    parts = urlsplit(address)
    secrets = [parts.username or "", parts.password or ""]
    secrets += [value for _, value in parse_qsl(parts.query)]
    # as it was written, too
    secrets += [pair.partition("=")[2] for pair in parts.query.split("&")]
    learn_secrets(secret for secret in secrets if not _is_common(secret))


def _is_common(text: str) -> bool:
    """Tell whether a value is a short word or number that other text may hold."""
    if len(text) < _SHORTEST:
        return True
    return len(text) < 10 and (text.isdecimal() or (text.isalpha() and text.islower()))


class RedactingFilter(logging.Filter):
    """Takes secrets out of log records, arguments and traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record; it always passes."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        record.msg, record.args = redact(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


NOISY = ("rasterio", "rasterio._env", "rasterio._io", "rasterio._base", "distributed",
         "distributed.worker", "distributed.nanny", "distributed.scheduler")  # fmt: skip
"""Loggers of others that may tell an address: filters do not reach the loggers below theirs."""


def guard_logs() -> None:
    """Take secrets out of what the loggers of libraries say, whoever handles it."""
    for name in NOISY:
        logger = logging.getLogger(name)
        if not any(isinstance(known, RedactingFilter) for known in logger.filters):
            logger.addFilter(RedactingFilter())


class Access:
    """How a file is reached: an address that may hold secrets, and never shows them.

    Unpickled in another process it is known there, too.

    Parameters
    ----------
    path : str
        What the file is called.
    address : str
        Where it is.
    """

    __slots__ = ("_address", "path")

    def __init__(self, path: str, address: str) -> None:
        self.path, self._address = path, address
        learn_address(address)
        _addresses[path] = address

    def __reduce__(self) -> tuple[type[Access], tuple[str, str]]:
        return Access, (self.path, self._address)

    def __repr__(self) -> str:
        return f"Access({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Access) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.path, self._address))


_addresses: dict[str, str] = {}


def address_of(path: str) -> str:
    """Return where a file is: with login and query; for requests alone."""
    return _addresses.get(path, path)


def is_known(path: str) -> bool:
    """Tell whether this is what a file is called whose address was given before."""
    return path in _addresses


def access_to(path: str) -> Access | None:
    """Return how a file is reached, for other processes; None where its name says it all."""
    address = _addresses.get(path)
    return None if address is None or address == path else Access(path, address)
