"""What can be written: formats by suffix, and outputs that are refused before any work."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from geoseg.errors import OutputError
from geoseg.outputs.publish import sidecars

DRIVERS = {
    ".gpkg": "GPKG",
    ".parquet": "Parquet",
    ".fgb": "FlatGeobuf",
    ".geojson": "GeoJSON",
}
"""What GDAL writes for us, and GeoParquet, by suffix."""
COCO_SUFFIX = ".coco.json"
OBJECT_SUFFIXES = (*DRIVERS, COCO_SUFFIX)
"""What the objects of a run are written as."""


def suffix_of(path: str | Path) -> str:
    """Return the suffix that names the format of a file, in lower case.

    Examples
    --------
    >>> suffix_of("town.v2.GPKG"), suffix_of("town.coco.json"), suffix_of("coco.json")
    ('.gpkg', '.coco.json', '.json')
    """
    name = Path(path).name.lower()
    return COCO_SUFFIX if name.endswith(COCO_SUFFIX) else Path(name).suffix


def stem_of(path: str | Path) -> str:
    """Return the name of a file without the suffix that names its format."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name))]


def check_output(
    path: str | Path, overwrite: bool = False, *, suffixes: Collection[str] = tuple(DRIVERS)
) -> Path:
    """Refuse an output that could not be written, before anything is computed.

    Parameters
    ----------
    path : str or Path
        Where the output is to go.
    overwrite : bool
        Whether an existing file may be replaced.
    suffixes : collection of str
        What the name may end in, in lower case; by default the formats of tables.

    Returns
    -------
    Path
        The path, made absolute.

    Raises
    ------
    OutputError
        If the suffix is unknown, the folder is missing or not writable, or the file exists
        without ``overwrite``.
    """
    path = Path(path).expanduser().absolute()
    suffix = suffix_of(path)
    if suffix not in suffixes:
        raise OutputError(
            f"output {path.name} has the unknown suffix '{suffix}'; "
            f"expected {'one of ' if len(suffixes) > 1 else ''}{', '.join(suffixes)}"
        )
    if not path.parent.is_dir():
        raise OutputError(f"output folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {path.parent} is not writable; choose another")
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; give a file name")
    if path.exists() and not overwrite:
        raise OutputError(f"output {path} exists; give --overwrite to replace it, or another name")
    left = [] if path.exists() or suffix != ".gpkg" else sidecars(path)
    if left:
        raise OutputError(
            f"{left[0].name} lies in {path.parent} without its database; it would corrupt a new "
            f"{path.name}: move it away, or choose another name"
        )
    return path
