"""The frame of a page: one HTML file that needs nothing else, and its building blocks.

What comes from data (names of classes, regions, files) is text, never markup: a plain `str` is
escaped wherever a block takes it, only `Html` is taken as it is. Scripts and styles are allowed by
their hashes, so that even a slip could not run anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from geoseg.errors import OutputError
from geoseg.outputs.tables import check_output

DASH = "\u2013"
"""What is shown where a value is unknown."""


class Html(str):
    """Text that is HTML already; made by the blocks below and by `escape`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page, with a heading and a link from the top."""

    key: str
    """Its ``id``: letters and dashes."""
    title: str
    """Heading."""
    body: Html
    """Content."""
    link: str = ""
    """Short name for the link; empty: the title."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    """Heading."""
    unit: str = ""
    """Shown below the heading."""
    numeric: bool = False
    """Numbers stand to the right and sort as numbers."""
    digits: int | None = None
    """Decimals; None: whole numbers as they are, others to three figures."""
    percent: bool = False
    """Shares are shown as percent."""


def write_page(
    path: str | Path,
    *,
    title: str,
    header: Html,
    sections: Sequence[Section],
    data: Mapping[str, Any] | None = None,
    footer: Html | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained HTML file with our style and script.

    Parameters
    ----------
    path : str or Path
        Ends in .html or .htm.
    title : str
        For the browser's tab.
    header : Html
        What stands above all sections: see `headline`.
    sections : sequence of Section
        In order; empty ones are left out.
    data : mapping of str to JSON values, optional
        Each becomes a JSON block that the script reads by its name: ``map`` is what
        `geoseg.outputs.report.map.MapData.to_json` returns.
    footer : Html, optional
        Below all.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written; nobody ever sees half of it.

    Raises
    ------
    OutputError
        As `geoseg.outputs.tables.check_output`, or if writing fails.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     page = write_page(
    ...         Path(folder) / "page.html",
    ...         title="A <page>",
    ...         header=headline("3 objects", "of class <b>"),
    ...         sections=[Section("facts", "Facts", facts([("model", "<script>")]))],
    ...     ).read_text()
    >>> "<b>" in page, "&lt;script&gt;" in page
    (False, True)
    """
    path = check_output(path, overwrite, suffixes=(".html", ".htm"))
    content = render_page(title, header, sections, data or {}, footer or Html())
    private = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # names of files may hold bytes that are no text
        with private.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        private.replace(path)
    except OSError as error:
        private.unlink(missing_ok=True)
        raise OutputError(
            f"page {path} cannot be written ({error}); check the folder and the space on it"
        ) from error
    return path


def render_page(
    title: str, header: Html, sections: Sequence[Section], data: Mapping[str, Any], footer: Html
) -> str:
    """Return the text of a page; see `write_page`."""
    style, script = package_text("page.css"), package_text("page.js")
    shown = [section for section in sections if section.body]
    links = "".join(
        f'<li><a href="#{escape(s.key)}">{escape(s.link or s.title)}</a></li>' for s in shown
    )
    parts = "".join(
        f'<section id="{escape(s.key)}" aria-labelledby="{escape(s.key)}-title">'
        f'<h2 id="{escape(s.key)}-title">{escape(s.title)}</h2>{s.body}</section>'
        for s in shown
    )
    blocks = "".join(
        f'<script type="application/json" id="{escape(name)}-data">{json_text(value)}</script>'
        for name, value in data.items()
    )
    return Template(package_text("page.html")).substitute(
        title=escape(title),
        style=style,
        style_hash=content_hash(style),
        script=script,
        script_hash=content_hash(script),
        header=header,
        links=links,
        sections=parts,
        data=blocks,
        footer=footer,
    )


@cache
def package_text(name: str) -> str:
    """Return a file that comes with this package."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """Return what a content security policy calls a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_text(value: Any) -> str:
    r"""Return JSON that can stand in a script element, whatever is in it; NaN as null.

    Examples
    --------
    >>> print(json_text({"name": "</script>", "share": float("nan")}))
    {"name":"\u003c/script\u003e","share":null}
    """
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for, at any depth."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escape(value: object) -> Html:
    """Return text as HTML; what is `Html` already stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Join HTML; plain text among it is escaped."""
    return Html(between.join(escape(part) for part in parts))


# -- blocks -----------------------------------------------------------------------------------


def headline(title: str, lead: str, *, over: str = "", rest: Html | None = None) -> Html:
    """Return the top of a page: a line above, the title, a sentence, and what else is to come."""
    above = f'<p class="over">{escape(over)}</p>' if over else ""
    below = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return Html(f"{above}<h1>{escape(title)}</h1>{below}{rest or ''}")


def figures(items: Sequence[tuple[str, str, str]]) -> Html:
    """Return large figures in a row: what, how much, a remark."""
    rows = (
        f"<div><dt>{escape(what)}</dt><dd>{escape(much)}"
        f"{f'<small>{escape(remark)}</small>' if remark else ''}</dd></div>"
        for what, much, remark in items
    )
    return Html(f'<dl class="figures">{"".join(rows)}</dl>')


def notice(kind: str, title: str, lines: Sequence[str] = ()) -> Html:
    """Return a marked message.

    Parameters
    ----------
    kind : str
        'bad', 'warn', 'info' or 'good'; said in words too, for who sees no colour.
    title : str
        What it is.
    lines : sequence of str
        More about it.
    """
    words = {"bad": "Problem", "warn": "Mind", "info": "Note", "good": "Good"}
    more = "".join(f" {escape(line)}" for line in lines)
    return Html(
        f'<div class="notice {escape(kind)}" role="note"><p><b class="kind">{words[kind]}</b> '
        f"<strong>{escape(title)}</strong>{more}</p></div>"
    )


def paragraph(text: str, kind: str = "") -> Html:
    """Return a paragraph."""
    return Html(
        f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
    )


def facts(items: Sequence[tuple[str, object]]) -> Html:
    """Return names and values below each other."""
    rows = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in items)
    return Html(f'<dl class="facts">{"".join(rows)}</dl>')


def details(title: str, body: Html) -> Html:
    """Return what is folded up until it is wanted."""
    return Html(f"<details><summary>{escape(title)}</summary>{body}</details>")


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    *,
    key: str = "",
    totals: Sequence[Sequence[Any]] = (),
    sortable: bool = False,
    places: bool = False,
    hidden_caption: bool = False,
) -> Html:
    """Return a table.

    Parameters
    ----------
    caption : str
        What it shows.
    columns : sequence of Column
        The first one names the row.
    rows, totals : sequence of sequence
        As many values each; None and NaN are unknown. The totals stand at the foot.
    key : str
        ``id`` of the table.
    sortable : bool
        Clicking a heading sorts, and a field above filters.
    places : bool
        Rows belong to the regions of the map, in order: their names lead there.
    hidden_caption : bool
        The caption is read aloud, but not shown.
    """
    head = "".join(_heading(column, sortable=sortable) for column in columns)
    body = "".join(_row(columns, row, i if places else None) for i, row in enumerate(rows))
    foot = "".join(_row(columns, row, None) for row in totals)
    attributes = f' id="{escape(key)}"' if key else ""
    attributes += ' class="sortable"' if sortable else ""
    hidden = ' class="unseen"' if hidden_caption else ""
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{attributes}><caption{hidden}>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"{f'<tfoot>{foot}</tfoot>' if foot else ''}</table></div>"
    )


def _heading(column: Column, *, sortable: bool) -> str:
    unit = f' <span class="unit">{escape(column.unit)}</span>' if column.unit else ""
    kind = ' class="number"' if column.numeric else ""
    label = f"{escape(column.title)}{unit}"
    if sortable:
        return f'<th scope="col"{kind} aria-sort="none"><button type="button">{label}</button></th>'
    return f'<th scope="col"{kind}>{label}</th>'


def _row(columns: Sequence[Column], row: Sequence[Any], place: int | None) -> str:
    cells = []
    for i, (column, value) in enumerate(zip(columns, row, strict=True)):
        shown = escape(value) if isinstance(value, Html) else escape(show(value, column))
        if i == 0:
            if place is not None:
                shown = Html(
                    f'<button type="button" class="place" data-place="{place}">{shown}</button>'
                )
            cells.append(f'<th scope="row">{shown}</th>')
        elif column.numeric:
            known = isinstance(value, int | float) and not math.isnan(value)
            sort = f' data-v="{value!r}"' if known else ""
            cells.append(f'<td class="number"{sort}>{shown}</td>')
        else:
            cells.append(f"<td>{shown}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def show(value: Any, column: Column | None = None) -> str:
    """Return a value as people read it."""
    column = column or Column("")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and column.percent:
        return percent(value)
    if isinstance(value, int | float) and column.numeric:
        return number(value, column.digits)
    return str(value)


def number(value: float, digits: int | None = None) -> str:
    """Return a number with thin groups of thousands.

    Examples
    --------
    >>> number(5242), number(0.14237), number(2079.14), number(3.0)
    ('5,242', '0.142', '2,079', '3')
    """
    if digits is not None:
        return f"{value:,.{digits}f}"
    if isinstance(value, int) or not math.isfinite(value) or float(value).is_integer():
        return f"{value:,.0f}" if math.isfinite(value) else str(value)
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 3 if size < 1 else 2}f}"


def percent(share: float | None) -> str:
    """Return a share, never rounded up to all nor down to nothing.

    Examples
    --------
    >>> percent(1.0), percent(0.99999), percent(0.912), percent(1e-5), percent(None)
    ('100 %', '>99.9 %', '91.2 %', '<0.1 %', '\u2013')
    """
    if share is None or math.isnan(share):
        return DASH
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if 0 < share < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    Examples
    --------
    >>> duration(7.2), duration(345.5), duration(30_000)
    ('7.2 s', '5 min 46 s', '8 h 20 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
