"""Charts as inline SVG: plain bars that follow the page's colours, with their figures in words."""

from __future__ import annotations

from collections.abc import Sequence

from geoseg.outputs.report.page import Column, Html, details, escape, number, table

WIDTH, HEIGHT = 560, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 12, 36


def histogram(
    title: str,
    words: str,
    edges: Sequence[float],
    counts: Sequence[int],
    ticks: Sequence[tuple[float, str]],
    *,
    unit: str,
    colour: str = "",
) -> Html:
    """Return a histogram as a figure.

    Parameters
    ----------
    title : str
        What is shown.
    words : str
        What a reader should see in it, read aloud instead of the picture.
    edges : sequence of float
        (n + 1) of the bars, evenly spaced in the picture.
    counts : sequence of int
        (n) heights.
    ticks : sequence of (float, str)
        Place along the axis, in bars from the left, and its label.
    unit : str
        Of the axis.
    colour : str
        ``#rrggbb``; empty: the page's.
    """
    most = max(counts, default=0)
    across, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    step = across / max(len(counts), 1)
    fill = f' fill="{escape(colour)}"' if colour else ' class="bar"'
    bars = []
    for i, n in enumerate(counts):
        h = high * n / most if most else 0
        if n:
            # one object is still seen
            h = max(h, 1.5)
            said = f"{number(edges[i])} to {number(edges[i + 1])} {unit}: {n:,}"
            bars.append(
                f'<rect x="{_LEFT + i * step + 0.5:.1f}" y="{_TOP + high - h:.1f}" '
                f'width="{max(step - 1, 0.5):.1f}" height="{h:.1f}"{fill}>'
                f"<title>{escape(said)}</title></rect>"
            )
    lines = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        for y, label in _levels(most, high)
    )
    labels = "".join(
        f'<text x="{_LEFT + at * step:.1f}" y="{_TOP + high + 16}" text-anchor="middle">'
        f"{escape(label)}</text>"
        for at, label in ticks
    )
    rows = [
        (f"{number(edges[i])} {escape('to')} {number(edges[i + 1])}", n)
        for i, n in enumerate(counts)
        if n
    ]
    return Html(
        f"<figure><figcaption><strong>{escape(title)}</strong> <span>{escape(words)}</span>"
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}. {escape(words)}">{lines}{"".join(bars)}{labels}'
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">'
        f"{escape(unit)}</text></svg>"
        + details(
            "Figures",
            table(
                title, [Column(unit), Column("objects", numeric=True)], rows, hidden_caption=True
            ),
        )
        + "</figure>"
    )


def _levels(most: int, high: float) -> list[tuple[float, str]]:
    """Return heights and labels of the lines behind the bars."""
    if most <= 0:
        return [(_TOP + high, "0")]
    return [
        (_TOP + high * (1 - share), f"{round(most * share):,}")
        for share in ((0, 0.5, 1) if most > 1 else (0, 1))
    ]


def bars(
    title: str, rows: Sequence[tuple[str, float, str]], *, what: tuple[str, str], words: str = ""
) -> Html:
    """Return a table whose values are also drawn as bars.

    Parameters
    ----------
    title : str
        Caption.
    rows : sequence of (str, float, str)
        Name, value from 0, and the value in words.
    what : (str, str)
        Headings of names and values.
    words : str
        A remark below.
    """
    most = max((value for _, value, _ in rows), default=0) or 1
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{escape(said)}</td>'
        f'<td class="wide"><svg class="hbar" aria-hidden="true" width="100%" height="12">'
        f'<rect class="bar" width="{100 * value / most:.1f}%" height="12" rx="2"/></svg></td></tr>'
        for name, value, said in rows
    )
    return Html(
        f'<table class="bars"><caption>{escape(title)}</caption><thead><tr>'
        f'<th scope="col">{escape(what[0])}</th><th scope="col" class="number">'
        f"{escape(what[1])}</th><td></td></tr></thead><tbody>{body}</tbody></table>"
        + (f'<p class="remark">{escape(words)}</p>' if words else "")
    )


def shares(
    title: str, words: str, rows: Sequence[tuple[str, float, str]], *, unit: str, floor: float
) -> Html:
    """Return shares by place as columns, drawn from a floor up so that small dips show.

    Parameters
    ----------
    rows : sequence of (str, float, str)
        Label, share in [0, 1], and what to say of it.
    floor : float
        Share at the foot of the columns.
    """
    across, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    step = across / max(len(rows), 1)
    parts = []
    for share in (floor, (1 + floor) / 2, 1.0):
        y = _TOP + high * (1 - (share - floor) / (1 - floor))
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
        )
    for i, (label, share, said) in enumerate(rows):
        h = high * max(share - floor, 0.004) / (1 - floor)
        parts.append(
            f'<rect class="bar" x="{_LEFT + i * step + 1:.1f}" y="{_TOP + high - h:.1f}" '
            f'width="{max(step - 2, 1):.1f}" height="{h:.1f}"><title>{escape(said)}</title></rect>'
            f'<text x="{_LEFT + (i + 0.5) * step:.1f}" y="{_TOP + high + 16}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">'
        f"{escape(unit)}</text>"
    )
    return Html(
        f"<figure><figcaption><strong>{escape(title)}</strong> <span>{escape(words)}</span>"
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}. {escape(words)}">{"".join(parts)}</svg></figure>'
    )
