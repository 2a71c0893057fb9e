"""What a user may give to geoseg, and how it ends: the contract of the fixtures.

A module ``cases_*.py`` lists `Case`s; a test runs each with `run_case` and compares with `check`;
the table of docs/inputs.md is made of what the runs printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd

from geoseg.cli.main import main


@dataclass(frozen=True, slots=True)
class Made:
    """What a case wrote into its folder: a command, and what it must find."""

    args: tuple[str, ...]
    """Arguments of ``geoseg``; paths relative to the folder."""
    output: str | None = None
    """File of objects that the command writes, relative to the folder."""
    truth: gpd.GeoDataFrame | None = None
    """The objects that must come back, in any CRS; None: not compared."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of input: how it is made and how it must end."""

    name: str
    """Short and unique, such as 'tiff-jpeg-ycbcr'."""
    group: str
    """Heading in the table: 'Formats', 'Pixels', 'Validity', 'Where it lies', 'Hostile', ..."""
    what: str
    """The input in a few words, for the table."""
    make: Callable[[Path], Made]
    """Writes the input into an empty folder."""
    exit_code: int = 0
    message: str = ""
    """Regular expression that stderr must match; '' : nothing is demanded."""
    result: str = ""
    """What comes out, in a few words, for the table, where no message says it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended."""

    exit_code: int
    out: str
    err: str
    objects: gpd.GeoDataFrame | None
    strays: tuple[str, ...]
    """Files that appeared or changed in the folder beside the output and its run directory."""


def run_case(case: Case, folder: Path) -> Outcome:
    """Make the input of a case in an empty folder and run its command there, in this process."""
    made = case.make(folder)
    before = _files(folder)
    out, err = io.StringIO(), io.StringIO()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(made.args))
    finally:
        os.chdir(here)
    after = _files(folder)
    stem = made.output.rpartition(".")[0] if made.output else None
    strays = tuple(
        sorted(
            name
            for name, content in after.items()
            if before.get(name) != content
            and not (stem and (name == made.output or name.startswith(f"{stem}.geoseg-run/")))
        )
    )
    written = made.output is not None and (folder / made.output).exists()
    objects = gpd.read_file(folder / made.output, layer="objects") if written else None
    return Outcome(code, out.getvalue(), err.getvalue(), objects, strays)


def check(case: Case, outcome: Outcome) -> None:
    """Compare an outcome with what its case says; truth is the business of the caller."""
    said = f"{case.name}: exit code {outcome.exit_code}\n{outcome.err}"
    assert outcome.exit_code == case.exit_code, said
    assert re.search(case.message, outcome.err), said
    assert "Traceback" not in outcome.err, said
    assert "internal error" not in outcome.err, said
    assert not outcome.strays, f"{said}\nwritten: {outcome.strays}"


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }
