"""What a detector, which may be anybody's code, cannot do to the rest of a run."""

from __future__ import annotations

import locale
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress

import numpy as np

_LONGEST = 500


_lock = threading.Lock()
_calls = 0
_kept: ExitStack | None = None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what belongs to the whole process, and keep stdout for results.

    What is printed inside goes to stderr. The working directory, the language, Python's warning
    filters and recursion limit, and what numpy does about odd numbers, are afterwards as they
    were. The environment and threads are the detector's own business: libraries set them for
    themselves when they load. Of calls side by side in several threads the last one to end puts
    back what the first one found.
    """
    global _calls, _kept  # noqa: PLW0603  # so is what it keeps: the whole process's
    with _lock:
        if _kept is None:
            _kept = ExitStack()
            _kept.enter_context(_process_as_it_was())
        _calls += 1
    try:
        with np.errstate():
            yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                kept, _kept = _kept, None
                kept.close()


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Put back at the end what several threads share; stdout goes to stderr meanwhile."""
    here, language = _here(), locale.setlocale(locale.LC_ALL)
    filters, depth = warnings.filters[:], sys.getrecursionlimit()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if here is not None and _here() != here:
            with suppress(OSError):
                os.chdir(here)
        if locale.setlocale(locale.LC_ALL) != language:
            with suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, language)
        if warnings.filters != filters:
            # a list, though typeshed says otherwise; resetwarnings makes Python look at it again
            warnings.resetwarnings()
            warnings.filters[:] = filters  # type: ignore[index]
        if sys.getrecursionlimit() != depth:
            sys.setrecursionlimit(depth)


def _here() -> str | None:
    """Return the working directory; None where it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109  # Path.cwd() is the same with more work, for every batch
    except OSError:
        return None


def shown(error: BaseException) -> str:
    r"""Return an error as one line of printable text, whatever its own text is.

    Examples
    --------
    >>> shown(ValueError("two\nlines"))
    "ValueError('two\\nlines')"
    """
    try:
        text = repr(error)
    except BaseException:  # noqa: BLE001  # its own code
        text = f"{type(error).__name__} (which cannot be shown)"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
