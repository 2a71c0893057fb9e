"""Colours of classes, and the styles with which an output opens: QML for QGIS, SLD for others.

Both are written as text from one description: names of classes and fields are data, so each is
escaped.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape, quoteattr

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from geoseg.outputs.fields import describe_fields

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
    "outside": (205, 205, 205),
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
VERDICT_COLOURS: dict[str, Colour] = {
    "TP": (40, 160, 80),
    "FP": (225, 50, 45),
    "FN": (40, 110, 240),
}
TASK_COLOURS: dict[str, Colour] = {
    "todo": (255, 200, 0),
    "done": (40, 160, 80),
    "skip": (130, 130, 130),
}
JUDGED_COLOURS: dict[str, Colour] = {
    "accept": (40, 190, 80),
    "edit": (40, 110, 240),
    "reject": (225, 50, 45),
}
_QGIS_NULL = "{2839923C-8B7D-419E-B84B-CA2FE9B80EC7}"
"""What stands for NULL in QGIS's lists to choose from."""
SCORE_STEPS: tuple[tuple[float, float, Colour], ...] = (
    (0.0, 0.5, (200, 30, 140)),
    (0.5, 0.7, (235, 75, 80)),
    (0.7, 0.85, (250, 140, 40)),
    (0.85, 0.95, (250, 200, 50)),
    (0.95, 1.0, (245, 250, 110)),
)
"""Fixed, so that pictures of two runs compare; brighter is surer, also to the colour-blind."""
DENSITY_COLOURS: tuple[Colour, ...] = (
    (255, 250, 205),
    (185, 225, 160),
    (95, 190, 165),
    (45, 130, 170),
    (35, 60, 135),
)
"""From few to many."""
MAX_CLASSES = 60
"""Objects of more classes are coloured by score: nobody tells so many colours apart."""
_FILL_ALPHA = 70
_REGION_ALPHA = 130
_OTHER: Colour = (128, 128, 128)
_HEADER = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_PX_PER_MM = 96 / 25.4
_SLD_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<StyledLayerDescriptor version="1.1.0" '
    'xmlns="http://www.opengis.net/sld" xmlns:se="http://www.opengis.net/se" '
    'xmlns:ogc="http://www.opengis.net/ogc">'
)


@dataclass(frozen=True, slots=True)
class Symbol:
    """How a polygon is drawn."""

    fill: tuple[int, int, int, int] | None
    """Red, green, blue and opacity, 0 to 255; None: not filled."""
    line: Colour
    """Colour of the outline."""
    width_mm: float = 0.46
    """Width of the outline, mm."""
    casing: Colour | None = None
    """Colour of a wider line below the outline, by which it shows on any ground."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row of a legend: what is drawn so."""

    label: str
    """What the legend says."""
    symbol: Symbol
    """How it is drawn."""
    value: str | None = None
    """The field's value; None, with no range either: all others."""
    range: tuple[float, float] | None = None
    """Lowest and highest value."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a layer is drawn, for every program that can be told."""

    steps: tuple[Step, ...]
    """Rows of the legend; a single one without value and range: all alike."""
    field: str | None = None
    """Field that decides."""
    label: tuple[str, ...] = ()
    """Fields whose values are written on the map, one a line."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Headings by field."""
    choices: Mapping[str, Mapping[str, str | None]] = dataclasses.field(default_factory=dict)
    """By field that the user fills in: label to value (None: NULL) of the list to choose from."""
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By field: the text that a polygon drawn in QGIS gets."""

    def to_qml(self) -> str:
        """Return the style for QGIS."""
        label = _expression(self.label)
        body = _qml_renderer(self) + ("" if label is None else _labels(label))
        forms = _forms(self.choices, self.defaults)
        return _document(body + _aliases(self.aliases) + forms, label, with_forms=bool(forms))

    def to_sld(self, name: str) -> str:
        """Return the style as SLD 1.1 (GeoServer, MapServer, and QGIS too).

        Parameters
        ----------
        name : str
            Name of the layer.
        """
        rules = "".join(_sld_rule(self.field, step) for step in self.steps)
        return (
            f"{_SLD_HEAD}<NamedLayer><se:Name>{_text(name)}</se:Name><UserStyle>"
            f"<se:Name>{_text(name)}</se:Name><se:FeatureTypeStyle>{rules}{_sld_label(self.label)}"
            "</se:FeatureTypeStyle></UserStyle></NamedLayer></StyledLayerDescriptor>"
        )


def class_colours(classes: Iterable[str]) -> dict[str, Colour]:
    """Give each class a colour that depends only on the set of classes.

    Examples
    --------
    >>> class_colours(["roof", "car", "roof"])
    {'car': (255, 127, 14), 'roof': (235, 60, 170)}
    """
    names = sorted(set(classes))
    return {name: _colour(i) for i, name in enumerate(names)}


def style_objects(classes: Iterable[str], *, field: str = "class") -> Style:
    """Return the style of objects: outlined, lightly filled, one colour per class."""
    return _by_value(field, class_colours(classes), _FILL_ALPHA)


def style_scores(field: str = "score") -> Style:
    """Return the style of objects of one class: the surer, the brighter."""
    steps = [
        Step(f"{low:g} to {high:g}", Symbol((*colour, _FILL_ALPHA), colour), range=(low, high))
        for low, high, colour in SCORE_STEPS
    ]
    return Style(tuple(steps), field)


def style_regions(
    label: Sequence[str] = (), *, density: npt.ArrayLike = (), field: str = "density_km2"
) -> Style:
    """Return the style of regions: shaded by density, labelled by fields.

    Parameters
    ----------
    label : sequence of str
        Fields that are written on the map.
    density : array-like
        (n,) the values of ``field``, from which the steps are made; with fewer than two different
        ones all regions look alike.
    field : str
        Field that decides the shade.
    """
    edges = _edges(np.asarray(density, np.float64))
    outline = Symbol(None, (40, 40, 40), 0.5, casing=(255, 255, 255))
    if len(edges) < 3:
        return Style((Step("region", outline),), label=tuple(label))
    picks = np.linspace(0, len(DENSITY_COLOURS) - 1, len(edges) - 1).round().astype(int)
    steps = [
        Step(
            f"{low:,.7g} to {high:,.7g} per km²",
            replace(outline, fill=(*DENSITY_COLOURS[pick], _REGION_ALPHA)),
            range=(low, high),
        )
        for low, high, pick in zip(edges[:-1], edges[1:], picks.tolist(), strict=True)
    ]
    return Style(tuple(steps), field, tuple(label))


def style_coverage(field: str = "status") -> Style:
    """Return the style of coverage: one colour per state of a supertile."""
    return _by_value(field, STATUS_COLOURS, 40)


def style_changes(field: str = "change") -> Style:
    """Return the style of changes between dates: one colour per kind."""
    return _by_value(field, CHANGE_COLOURS, _FILL_ALPHA)


def style_verdicts(field: str = "verdict") -> Style:
    """Return the style of what was right, false and missed: one colour each."""
    return _by_value(field, VERDICT_COLOURS, _FILL_ALPHA)


def style_tasks() -> Style:
    """Return the style of squares to label: an outline by status, which the user sets."""
    steps = [
        Step(name, Symbol(None, colour, 0.9, casing=(255, 255, 255)), value=name)
        for name, colour in TASK_COLOURS.items()
    ]
    other = Step("other", Symbol(None, _OTHER, 0.9, casing=(255, 255, 255)))
    return Style(
        (*steps, other),
        "status",
        label=("rank",),
        choices={"status": {name: name for name in TASK_COLOURS}},
        defaults={"status": "done"},
    )


def style_judged(classes: Iterable[str]) -> Style:
    """Return the style of outlines to correct: by verdict, which the user sets.

    Parameters
    ----------
    classes : iterable of str
        What the field ``class`` may be; a drawn polygon gets the first.
    """
    names = list(classes)
    steps = [
        Step(name, Symbol((*colour, _FILL_ALPHA), colour), value=name)
        for name, colour in JUDGED_COLOURS.items()
    ]
    fresh = Step("as found", Symbol((*PALETTE[0], _FILL_ALPHA), PALETTE[0]))
    verdicts: dict[str, str | None] = {"(as found)": None}
    return Style(
        (*steps, fresh),
        "verdict",
        choices={
            "verdict": verdicts | {name: name for name in JUDGED_COLOURS},
            "class": {name: name for name in names},
        },
        defaults={"verdict": "accept"} | ({"class": names[0]} if names else {}),
    )


def style_files() -> Style:
    """Return the style of an index of files: outlines with name and count."""
    outline = Symbol(None, (40, 40, 40), 0.5, casing=(255, 255, 255))
    return Style((Step("file", outline),), label=("name", "objects"))


def default_styles(layers: Mapping[str, gpd.GeoDataFrame]) -> dict[str, Style]:
    """Return styles for the layers that we know, by their names and fields.

    ``objects`` (by class; by score where there is one class, or more than `MAX_CLASSES`),
    ``regions`` (by density; labelled with the field in ``attrs['region_field']``, if there, and
    the count), ``coverage`` (by status), ``changes`` (by kind), ``right``, ``false`` and ``missed``
    (by verdict) and ``files``.
    """
    styles = {}
    for name, table in layers.items():
        columns = [str(c) for c in table.columns]
        style = _default_style(name, table, columns)
        if style is not None:
            aliases = {f.name: f.heading for f in describe_fields(name, columns)}
            styles[name] = replace(style, aliases=aliases)
    return styles


def _default_style(name: str, table: gpd.GeoDataFrame, columns: list[str]) -> Style | None:
    """Return the style of one layer, if it is one that we know."""
    if name == "objects" and "class" in columns:
        classes = table["class"].astype(str).unique()
        several = 1 < len(classes) <= MAX_CLASSES
        return style_objects(classes) if several or "score" not in columns else style_scores()
    if name == "regions":
        fields = [table.attrs.get("region_field"), "count"]
        label = [f for f in fields if f is not None and f in columns]
        return style_regions(label, density=table.get("density_km2", ()))
    if name == "coverage" and "status" in columns:
        return style_coverage()
    if name == "changes" and "change" in columns:
        return style_changes()
    if "verdict" in columns:
        return style_verdicts()
    return style_files() if name == "files" else None


def _by_value(field: str, colours: Mapping[str, Colour], alpha: int) -> Style:
    """Return a style with one colour per value, and one for all others."""
    steps = [Step(v, Symbol((*c, alpha), c), value=v) for v, c in colours.items()]
    others = Step("other", Symbol((*_OTHER, _FILL_ALPHA), _OTHER))
    return Style((*steps, others), field)


def _edges(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the edges of up to five steps that hold about as many values each, rounded."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() == finite.max():
        return []
    low, high = float(finite.min()), float(finite.max())
    inner = {_rounded(v) for v in np.quantile(finite, np.linspace(0, 1, 6)[1:-1]).tolist()}
    return [_rounded(low, -1), *sorted(v for v in inner if low < v < high), _rounded(high, 1)]


def _rounded(value: float, direction: int = 0) -> float:
    """Round to three digits: to the nearest, or down (-1) or up (1)."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    # a hair of tolerance: 0.3 / 0.1 is 2.9999999999999996
    digits = round(value / unit, 9)
    digits = [round(digits), math.ceil(digits), math.floor(digits)][direction]
    return float(f"{digits * unit:.12g}")


def _expression(fields: Sequence[str]) -> str | None:
    """Return the QGIS expression that writes fields, one a line."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in fields]
    if len(quoted) < 2:
        return quoted[0] if quoted else None
    # concat, unlike ||, is not NULL where a region has no name
    return f"concat({', '.join(_between(quoted))})"


def _between(quoted: Sequence[str]) -> list[str]:
    """Put a new line between expressions."""
    return [part for name in quoted for part in ("'\\n'", name)][1:]


def _colour(i: int) -> Colour:
    """Return the i-th colour: of the palette, then by turning the hue."""
    if i < len(PALETTE):
        return PALETTE[i]
    r, g, b = colorsys.hsv_to_rgb(0.05 + 0.381966 * i % 1.0, 0.85, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def _qml_renderer(style: Style) -> str:
    """Return what draws the layer in QGIS."""
    symbols = "".join(
        f'<symbol type="fill" name="{i}" alpha="1" clip_to_extent="1" force_rhr="0">'
        f"{_qml_layers(step.symbol)}</symbol>"
        for i, step in enumerate(style.steps)
    )
    symbols = f"<symbols>{symbols}</symbols>"
    if style.field is None:
        return f'<renderer-v2 type="singleSymbol" symbollevels="0">{symbols}</renderer-v2>'
    ranged = style.steps[0].range is not None
    kind, rows = ("graduatedSymbol", "ranges") if ranged else ("categorizedSymbol", "categories")
    method = ' graduatedMethod="GraduatedColor"' if ranged else ""
    body = "".join(_qml_row(i, step) for i, step in enumerate(style.steps))
    return (
        f'<renderer-v2 type="{kind}" attr={_quoted(style.field)}{method} symbollevels="0" '
        f'enableorderby="0"><{rows}>{body}</{rows}>{symbols}</renderer-v2>'
    )


def _qml_row(i: int, step: Step) -> str:
    """Return one row of a legend of QGIS."""
    end = f'symbol="{i}" label={_quoted(step.label)} render="true"/>'
    if step.range is not None:
        low, high = step.range
        return f'<range lower="{low!r}" upper="{high!r}" {end}'
    kind = "NULL" if step.value is None else "string"
    return f'<category value={_quoted(step.value or "")} type="{kind}" {end}'


def _qml_layers(symbol: Symbol) -> str:
    """Return the layers of a symbol of QGIS."""
    casing = ""
    if symbol.casing is not None:
        casing = _fill(None, symbol.casing, 2 * symbol.width_mm + 0.1)
    return casing + _fill(symbol.fill, symbol.line, symbol.width_mm)


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
        f'<text-style fieldName={_quoted(expression)} isExpression="1" fontSize="10" '
        'fontSizeUnit="Point" fontWeight="75" textColor="30,30,30,255" textOpacity="1" '
        'multilineHeight="1">'
        '<text-buffer bufferDraw="1" bufferSize="1" bufferSizeUnits="MM" '
        'bufferColor="255,255,255,255" bufferOpacity="1"/></text-style>'
        '<text-format multilineAlign="1"/>'
        '<placement placement="1" centroidInside="1" centroidWhole="1" priority="5"/>'
        '<rendering drawLabels="1" obstacle="0"/>'
        "</settings></labeling>"
    )


def _aliases(aliases: Mapping[str, str]) -> str:
    """Return the headings of fields for QGIS; older ones read them only here."""
    if not aliases:
        return ""
    rows = "".join(
        f'<alias index="{i}" field={_quoted(name)} name={_quoted(text)}/>'
        for i, (name, text) in enumerate(aliases.items())
    )
    return f"<aliases>{rows}</aliases>"


def _forms(choices: Mapping[str, Mapping[str, str | None]], defaults: Mapping[str, str]) -> str:
    """Return the lists to choose from and the values of new polygons, for QGIS."""
    lists = "".join(
        f'<field name={_quoted(name)}><editWidget type="ValueMap"><config><Option type="Map">'
        '<Option type="List" name="map">'
        + "".join(
            f'<Option type="Map"><Option type="QString" name={_quoted(label)} '
            f"value={_quoted(_QGIS_NULL if value is None else value)}/></Option>"
            for label, value in labels.items()
        )
        + "</Option></Option></config></editWidget></field>"
        for name, labels in choices.items()
    )
    texts = "".join(
        f'<default field={_quoted(name)} applyOnUpdate="0" expression={_quoted(_literal(text))}/>'
        for name, text in defaults.items()
    )
    return (f"<fieldConfiguration>{lists}</fieldConfiguration>" if lists else "") + (
        f"<defaults>{texts}</defaults>" if texts else ""
    )


def _literal(text: str) -> str:
    """Return a text as QGIS's expressions write it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _document(body: str, label: str | None, *, with_forms: bool = False) -> str:
    """Wrap renderer, labelling, aliases and forms into a QML document."""
    enabled = int(label is not None)
    forms = "|Forms" if with_forms else ""
    return (
        f'{_HEADER}<qgis version="3.22.0" styleCategories="Symbology|Labeling|Fields{forms}" '
        f'labelsEnabled="{enabled}">{body}<blendMode>0</blendMode>'
        "<layerOpacity>1</layerOpacity></qgis>"
    )


def _sld_rule(field: str | None, step: Step) -> str:
    """Return one rule of an SLD."""
    if field is None:
        condition = ""
    elif step.range is not None:
        low, high = step.range
        name = f"<ogc:PropertyName>{_text(field)}</ogc:PropertyName>"
        condition = (
            f"<ogc:Filter><ogc:PropertyIsBetween>{name}<ogc:LowerBoundary><ogc:Literal>{low!r}"
            "</ogc:Literal></ogc:LowerBoundary><ogc:UpperBoundary><ogc:Literal>"
            f"{high!r}</ogc:Literal></ogc:UpperBoundary></ogc:PropertyIsBetween></ogc:Filter>"
        )
    elif step.value is None:
        condition = "<se:ElseFilter/>"
    else:
        condition = (
            f"<ogc:Filter><ogc:PropertyIsEqualTo><ogc:PropertyName>{_text(field)}"
            f"</ogc:PropertyName><ogc:Literal>{_text(step.value)}</ogc:Literal>"
            "</ogc:PropertyIsEqualTo></ogc:Filter>"
        )
    label = _text(step.label)
    return (
        f"<se:Rule><se:Name>{label}</se:Name><se:Description><se:Title>{label}</se:Title>"
        f"</se:Description>{condition}{_sld_symbol(step.symbol)}</se:Rule>"
    )


def _sld_symbol(symbol: Symbol) -> str:
    """Return the symbolizers of a symbol."""
    fill = ""
    if symbol.fill is not None:
        *colour, alpha = symbol.fill
        fill = (
            f'<se:Fill><se:SvgParameter name="fill">{_hex(colour)}</se:SvgParameter>'
            f'<se:SvgParameter name="fill-opacity">{alpha / 255:.3f}</se:SvgParameter></se:Fill>'
        )
    lines = [(symbol.line, symbol.width_mm, fill)]
    if symbol.casing is not None:
        lines.insert(0, (symbol.casing, 2 * symbol.width_mm + 0.1, ""))
    return "".join(
        f'<se:PolygonSymbolizer>{inside}<se:Stroke><se:SvgParameter name="stroke">{_hex(line)}'
        f'</se:SvgParameter><se:SvgParameter name="stroke-width">{width * _PX_PER_MM:.2f}'
        "</se:SvgParameter></se:Stroke></se:PolygonSymbolizer>"
        for line, width, inside in lines
    )


def _sld_label(fields: Sequence[str]) -> str:
    """Return the rule that writes fields on the map."""
    if not fields:
        return ""
    names = [f"<ogc:PropertyName>{_text(name)}</ogc:PropertyName>" for name in fields]
    return (
        f"<se:Rule><se:TextSymbolizer><se:Label>{' '.join(names)}</se:Label>"
        '<se:Font><se:SvgParameter name="font-size">13</se:SvgParameter></se:Font>'
        '<se:Halo><se:Radius>2</se:Radius><se:Fill><se:SvgParameter name="fill">#ffffff'
        '</se:SvgParameter></se:Fill></se:Halo><se:Fill><se:SvgParameter name="fill">#1e1e1e'
        "</se:SvgParameter></se:Fill></se:TextSymbolizer></se:Rule>"
    )


def _hex(colour: Sequence[int]) -> str:
    """Return a colour as HTML writes it."""
    return "#" + "".join(f"{v:02x}" for v in colour)


def _legal(text: str) -> str:
    """Return a text without the characters that no XML can hold."""
    return "".join(c for c in text if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff"))


def _text(text: str) -> str:
    """Return a text for between two tags."""
    return escape(_legal(text))


def _quoted(text: str) -> str:
    """Return a text as the value of an attribute, with its quotes."""
    return quoteattr(_legal(text))
