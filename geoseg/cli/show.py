"""How results look on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from geoseg.errors import printable
from geoseg.redact import redact_all

Rows = Sequence[Sequence[Any]]


def show_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a result for machines; NaN, which JSON does not know, as null."""
    click.echo(json.dumps(redact_all(_plain(value)), indent=2, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Rows, *, totals: Rows = ()) -> None:
    """Print rows below column names; on a terminal with lines, otherwise plainly aligned.

    Parameters
    ----------
    columns : sequence of str
        Names.
    rows, totals : sequence of sequence
        As many values each; numbers stand to the right. The totals come last, set apart.
    """
    numeric = [_is_numeric([row[i] for row in (*rows, *totals)]) for i in range(len(columns))]
    lines = [[as_text(value) for value in row] for row in rows]
    ends = [[as_text(value) for value in row] for row in totals]
    if sys.stdout.isatty():
        _show_rich(columns, lines, ends, numeric)
        return
    table = [list(map(as_text, columns)), *lines, *ends]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        cells = zip(row, widths, numeric, strict=True)
        line = "  ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in cells)
        click.echo(line.rstrip())


def as_text(value: object) -> str:
    """Return a value as people read it: a dash for what is unknown, three decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return printable(" ".join(str(value).split()))


def _show_rich(
    columns: Sequence[str], lines: list[list[str]], ends: list[list[str]], numeric: list[bool]
) -> None:
    """Print with rich; values are text, never its markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(Text(as_text(name)), justify="right" if right else "left")
    for i, line in enumerate(lines):
        table.add_row(*map(Text, line), end_section=bool(ends) and i == len(lines) - 1)
    for line in ends:
        table.add_row(*map(Text, line), style="bold")
    Console().print(table)


def _is_numeric(values: Sequence[object]) -> bool:
    """Tell whether a column holds only numbers and unknowns, and at least one number."""
    known = [v for v in values if v is not None]
    return bool(known) and all(isinstance(v, int | float) for v in known)


def _plain(value: object) -> object:
    """Return a value with NaN and infinities replaced by None, at any depth."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
