"""What can go wrong, by what failed.

Every message says what is wrong, what was expected and what to do. ``exit_code`` is what the
command line returns: 2 for a mistake in the input or the settings, 1 for a failure of the run.
"""

from __future__ import annotations


class GeosegError(Exception):
    """Base of all errors that geoseg raises on purpose."""

    exit_code = 1


class ConfigError(GeosegError):
    """A setting is out of range, unknown or contradicts another one."""

    exit_code = 2


class SourceError(GeosegError):
    """A raster cannot be used: missing, unreadable, not georeferenced, wrong bands."""

    exit_code = 2


class GridError(ConfigError):
    """Tile size, overlap or supertile size do not make a grid."""


class ModelError(GeosegError):
    """A model or detector is unknown, broken or does not fit the imagery."""

    exit_code = 2


class RegionError(GeosegError):
    """A region, AOI or label layer cannot be used."""

    exit_code = 2


class LabelError(GeosegError):
    """Training labels cannot be used."""

    exit_code = 2


class OutputError(GeosegError):
    """The output cannot be written, or exists and may not be replaced."""

    exit_code = 2


class TileError(GeosegError):
    """One tile or supertile failed while the run was going on."""


class WorkerLostError(TileError):
    """The worker processes that ran a task died: killed, out of memory, or crashed."""


class DeviceError(GeosegError):
    """The GPU failed in a way that its process does not survive."""


class ClusterError(GeosegError):
    """The scheduler or the workers are gone, or do not fit this run."""


class StoppedError(GeosegError):
    """The run was asked to stop and did; the same command goes on from there."""

    exit_code = 130

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyErrorsError(GeosegError):
    """More tiles failed than ``--max-errors`` allows."""

    exit_code = 4


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text that no terminal takes for a command and every encoding can write.

    Examples
    --------
    >>> printable("roof \x1b[31m"), printable("छत")
    ('roof \\x1b[31m', 'छत')
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )
