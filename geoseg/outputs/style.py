"""Colours of classes, and the QML styles with which QGIS opens an output.

QML is written as text, not by QGIS: names of classes and fields are data, so each is escaped.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import quoteattr

import geopandas as gpd

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (255, 127, 14),
    (235, 60, 170),
    (120, 200, 40),
    (150, 90, 220),
    (240, 220, 40),
    (40, 110, 240),
    (230, 60, 50),
    (0, 180, 150),
)
"""Bright, apart from each other and from vegetation, soil and roofs; then hues by golden angle.
None is near the cyan of the truth."""
TRUTH_COLOUR: Colour = (0, 235, 255)
REGION_COLOUR: Colour = (255, 255, 255)
STATUS_COLOURS: dict[str, Colour] = {
    "done": (90, 170, 90),
    "empty": (170, 200, 170),
    "nodata": (160, 160, 160),
    "failed": (210, 40, 40),
}
CHANGE_COLOURS: dict[str, Colour] = {
    "kept": (150, 150, 150),
    "grown": (240, 170, 40),
    "shrunk": (150, 90, 220),
    "appeared": (40, 190, 80),
    "gone": (225, 50, 45),
    "split": (40, 110, 240),
    "merged": (0, 180, 190),
    "not comparable": (90, 90, 90),
}
_FILL_ALPHA = 70
_HEADER = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def class_colours(classes: Iterable[str]) -> dict[str, Colour]:
    """Give each class a colour that depends only on the set of classes.

    Examples
    --------
    >>> class_colours(["roof", "car", "roof"])
    {'car': (255, 127, 14), 'roof': (235, 60, 170)}
    """
    names = sorted(set(classes))
    return {name: _colour(i) for i, name in enumerate(names)}


def style_objects(classes: Iterable[str], *, field: str = "class") -> str:
    """Return QML for objects: outlined, lightly filled, one colour per class."""
    colours = class_colours(classes)
    return _categories(field, [(name, colour, _FILL_ALPHA) for name, colour in colours.items()])


def style_regions(expression: str | None) -> str:
    """Return QML for regions: a dark line on a light one, labelled by a QGIS expression."""
    layers = _fill(None, (255, 255, 255), 1.1) + _fill(None, (40, 40, 40), 0.5)
    symbols = _symbol("0", layers)
    renderer = f'<renderer-v2 type="singleSymbol" symbollevels="0">{symbols}</renderer-v2>'
    return _document(renderer + ("" if expression is None else _labels(expression)), expression)


def style_coverage(field: str = "status") -> str:
    """Return QML for coverage: one colour per state of a supertile."""
    return _categories(field, [(name, colour, 40) for name, colour in STATUS_COLOURS.items()])


def style_changes(field: str = "change") -> str:
    """Return QML for changes between dates: one colour per kind."""
    rows = [(name, colour, _FILL_ALPHA) for name, colour in CHANGE_COLOURS.items()]
    return _categories(field, rows)


def default_styles(layers: dict[str, gpd.GeoDataFrame]) -> dict[str, str]:
    """Return QML for the layers that we know: ``objects``, ``regions``, ``coverage``, ``changes``.

    The label of a region is the field in ``attrs['region_field']``, if there, above its count.
    """
    styles = {}
    for name, table in layers.items():
        if name == "objects" and "class" in table.columns:
            styles[name] = style_objects(table["class"].astype(str).unique())
        elif name == "regions":
            styles[name] = style_regions(_region_label(table))
        elif name == "coverage" and "status" in table.columns:
            styles[name] = style_coverage()
        elif name == "changes" and "change" in table.columns:
            styles[name] = style_changes()
    return styles


def _region_label(table: gpd.GeoDataFrame) -> str | None:
    """Return the expression for name and count, with what there is of the two."""
    fields = [table.attrs.get("region_field"), "count"]
    quoted = [_identifier(f) for f in fields if f is not None and f in table.columns]
    if len(quoted) < 2:
        return quoted[0] if quoted else None
    # concat, unlike ||, is not NULL where a region has no name
    return f"concat({quoted[0]}, '\\n', {quoted[1]})"


def _identifier(name: str) -> str:
    """Quote a field name for a QGIS expression."""
    return '"' + name.replace('"', '""') + '"'


def _colour(i: int) -> Colour:
    """Return the i-th colour: of the palette, then by turning the hue."""
    if i < len(PALETTE):
        return PALETTE[i]
    r, g, b = colorsys.hsv_to_rgb(0.05 + 0.381966 * i % 1.0, 0.85, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def _categories(field: str, rows: Sequence[tuple[str, Colour, int]]) -> str:
    """Return QML of a layer coloured by the values of a field, with one more for all others."""
    everything = [*rows, ("", (128, 128, 128), _FILL_ALPHA)]
    categories, symbols = [], []
    for i, (value, colour, alpha) in enumerate(everything):
        last = i == len(rows)
        label = quoteattr("other" if last else value)
        kind = "NULL" if last else "string"
        categories.append(
            f'<category value={quoteattr(value)} type="{kind}" symbol="{i}" label={label} '
            'render="true"/>'
        )
        symbols.append(_symbol(str(i), _fill((*colour, alpha), colour, 0.46)))
    renderer = (
        f'<renderer-v2 type="categorizedSymbol" attr={quoteattr(field)} symbollevels="0" '
        f'enableorderby="0"><categories>{"".join(categories)}</categories>'
        f"<symbols>{_strip(symbols)}</symbols></renderer-v2>"
    )
    return _document(renderer, None)


def _strip(symbols: Sequence[str]) -> str:
    """Join symbols that each come in a list of their own."""
    return "".join(s.removeprefix("<symbols>").removesuffix("</symbols>") for s in symbols)


def _symbol(name: str, layers: str) -> str:
    """Return a list of one fill symbol."""
    return (
        f'<symbols><symbol type="fill" name="{name}" alpha="1" clip_to_extent="1" '
        f'force_rhr="0">{layers}</symbol></symbols>'
    )


def _fill(fill: tuple[int, int, int, int] | None, line: Colour, width_mm: float) -> str:
    """Return one symbol layer: a fill, or none, and an outline."""
    options = {
        "color": ",".join(map(str, fill or (0, 0, 0, 0))),
        "style": "no" if fill is None else "solid",
        "outline_color": ",".join(map(str, (*line, 255))),
        "outline_style": "solid",
        "outline_width": str(width_mm),
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
    rows = "".join(
        f'<Option type="QString" name="{k}" value="{v}"/>' for k, v in sorted(options.items())
    )
    return (
        '<layer class="SimpleFill" enabled="1" locked="0" pass="0">'
        f'<Option type="Map">{rows}</Option></layer>'
    )


def _labels(expression: str) -> str:
    """Return simple labelling by an expression, with a halo so that it reads on imagery."""
    return (
        '<labeling type="simple"><settings calloutType="simple">'
        f'<text-style fieldName={quoteattr(expression)} isExpression="1" fontSize="10" '
        'fontSizeUnit="Point" fontWeight="75" textColor="30,30,30,255" textOpacity="1" '
        'multilineHeight="1">'
        '<text-buffer bufferDraw="1" bufferSize="1" bufferSizeUnits="MM" '
        'bufferColor="255,255,255,255" bufferOpacity="1"/></text-style>'
        '<text-format multilineAlign="1"/>'
        '<placement placement="1" centroidInside="1" centroidWhole="1" priority="5"/>'
        '<rendering drawLabels="1" obstacle="0"/>'
        "</settings></labeling>"
    )


def _document(body: str, label: str | None) -> str:
    """Wrap renderer and labelling into a QML document."""
    enabled = int(label is not None)
    return (
        f'{_HEADER}<qgis version="3.28.0" styleCategories="Symbology|Labeling" '
        f'labelsEnabled="{enabled}">{body}<blendMode>0</blendMode>'
        "<layerOpacity>1</layerOpacity></qgis>"
    )
