"""What the morning page says, section by section."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from geoseg.outputs.report import charts
from geoseg.outputs.report.page import (
    Column,
    Html,
    details,
    duration,
    escape,
    facts,
    figures,
    headline,
    join,
    notice,
    number,
    paragraph,
    percent,
    show,
    table,
)
from geoseg.outputs.report.pictures import Crop
from geoseg.outputs.report.run import RunFacts
from geoseg.outputs.report.statistics import (
    AREA_LOW,
    AREA_STEPS,
    EXAMPLE_KINDS,
    SCORE_BINS,
    ClassFigures,
    Statistics,
    area_edge,
    quantile_area,
    quantile_score,
    used,
)
from geoseg.outputs.style import class_colours

MAX_ROWS = 2000
"""Regions in the page's table; the rest is in the output."""
MAX_CLASSES = 8
"""Classes with histograms of their own."""
_LISTED = 200
_UNITS = (
    ("_per_km2", "per km²"), ("density_km2", "per km²"), ("_km2", "km²"), ("_m2", "m²"),
    ("_share", "%"), ("_m", "m"), ("_px", "px"), ("_s", "s"),
)  # fmt: skip
_TITLES = {
    "count": "objects",
    "density_km2": "density",
    "region_area_km2": "area of the region",
    "imaged_share": "imaged",
}
_RULES = {
    "point": "Each object is counted once, in the region that holds its representative point.",
    "area": "Each region gets the share of an object's area that lies in it.",
    "intersects": "Each region counts every object that it meets, so these counts do not add up: "
    "an object on a border is in several.",
}


def region_names(regions: gpd.GeoDataFrame) -> list[str]:
    """Return what to call the regions: their name field, or their number."""
    name = regions.attrs.get("region_field")
    values = regions[name] if name in regions.columns else range(1, len(regions) + 1)
    # a region without a name is called by its place in the file
    known = [None if _plain(value) is None else str(value) for value in values]
    return [f"({i})" if value is None else value for i, value in enumerate(known, 1)]


# -- the top ----------------------------------------------------------------------------------


def top(run: RunFacts, statistics: Statistics) -> Html:
    """Return headline, what is wrong, and the large figures."""
    n, regions = statistics.n_objects, run.regions
    where = ""
    if regions is not None:
        where = f" in {_many(len(regions), 'region')}"
    title = f"{n:,} {'object' if n == 1 else 'objects'}{where}"
    return headline(
        title,
        _lead(run, statistics),
        over=" · ".join(filter(None, ["geoseg", run.name, run.when])),
        rest=join([*_problems(run), _figures(run, statistics)]),
    )


def _lead(run: RunFacts, statistics: Statistics) -> str:
    classes = statistics.ranked()
    images = [str(image["name"]) for image in run.images]
    named = ", ".join(images[:3]) + (
        f" and {len(images) - 3:,} more images" if len(images) > 3 else ""
    )
    model = f"with the model {run.model_name}" if run.model_name else ""
    if len(classes) == 1:
        what = f"All of class {classes[0][0]}, found"
    elif classes:
        first = ", ".join(f"{c.n:,} {name}" for name, c in classes[:4])
        rest = f" and {len(classes) - 4} more classes" if len(classes) > 4 else ""
        what = f"{first}{rest}; found"
    else:
        what = "Nothing was found"
    return f"{what} in {named} {model}".strip() + "."


def _problems(run: RunFacts) -> list[Html]:
    """Return what is wrong, the worst first; one line where nothing is."""
    out = []
    failed = run.failed_supertiles
    if failed or run.failed_tiles:
        again = (
            "They are red on the map and listed under Tiles. The same command tries them again, "
            "and only them."
        )
        what = [
            _many(failed, "block of tiles", "blocks of tiles") if failed else "",
            _many(len(run.failed_tiles), "single tile") if run.failed_tiles else "",
        ]
        out.append(
            notice(
                "bad",
                f"{' and '.join(filter(None, what))} failed: objects there are missing.",
                [again],
            )
        )
    capped = run.capped
    if capped:
        out.append(
            notice(
                "warn",
                f"{_many(capped, 'quarter')} of tiles reached the detector's cap even after being "
                "split, and may lack objects.",
                ["They are dashed on the map; a smaller --tile-size may help."],
            )
        )
    if run.saturated and not capped:
        out.append(
            notice(
                "info",
                f"{_many(run.saturated, 'tile')} reached the detector's cap and "
                f"{'was' if run.saturated == 1 else 'were'} run again in quarters.",
                ["No quarter reached the cap, so nothing is known to be missing."],
            )
        )
    # those that have a sentence of their own above
    told = ("reached the detector's cap",)
    out += [notice("info", n) for n in run.notes if not any(t in n for t in told)]
    out += [notice("info", note) for note in run.picture_notes]
    if not (failed or run.failed_tiles or capped):
        said = "No tile failed: all of the imagery was worked through."
        out.insert(0, Html(f'<p class="fine"><span aria-hidden="true">✓</span> {said}</p>'))
    return out


def _figures(run: RunFacts, statistics: Statistics) -> Html:
    items = [("Objects", f"{statistics.n_objects:,}", _class_words(statistics))]
    regions = run.regions
    if regions is not None and len(regions):
        outside = regions.attrs.get("outside", 0)
        inside = statistics.n_objects - outside
        said = f"{show(outside, Column('', numeric=True))} outside all regions"
        items.append(("In regions", show(inside, Column("", numeric=True)), said))
    if run.imaged_share is not None:
        what = "of the regions' area" if run.imaged_of_regions else "of the images' area"
        items.append(("Imaged and searched", percent(run.imaged_share), what))
    if run.imaged_km2:
        items.append(
            ("Searched area", f"{number(run.imaged_km2)} km²", _many(len(run.images), "image"))
        )
        density = statistics.n_objects / run.imaged_km2
        items.append(("Density", number(density), "objects per km² searched"))
    total = run.seconds.get("total")
    if total:
        speed = f"{number(run.imaged_km2 / total * 3600)} km² an hour" if run.imaged_km2 else ""
        items.append(("Time", duration(total), speed))
    return figures(items)


def _class_words(statistics: Statistics) -> str:
    ranked = statistics.ranked()
    if not ranked:
        return "none found"
    words = ", ".join(f"{name} {c.n:,}" for name, c in ranked[:3])
    if len(ranked) == 1:
        return f"class {ranked[0][0]}"
    return words + (f", {len(ranked) - 3} more" if len(ranked) > 3 else "")


# -- regions ----------------------------------------------------------------------------------


def regions_section(run: RunFacts, statistics: Statistics) -> Html:
    """Return the table of regions with outside and total, and how they were counted."""
    regions = run.regions
    if regions is None:
        return Html()
    attrs = regions.attrs
    rule = str(attrs.get("rule", "point"))
    outside, total = attrs.get("outside"), attrs.get("total", statistics.n_objects)
    counted = float(np.nansum(regions["count"].to_numpy(np.float64)))
    words = _RULES.get(rule, "")
    if rule != "intersects" and outside is not None:
        words += (
            f" {number(round(counted, 6))} in regions + {number(round(outside, 6))} outside = "
            f"{number(total)} objects."
        )
    parts = [paragraph(words)]
    if pairs := attrs.get("overlapping"):
        parts.append(notice("warn", f"{_many(len(pairs), 'pair')} of regions overlap.", [
            "Where two overlap, an object counts for the one that comes first in the file."
            if rule != "intersects" else "An object there counts for each of them."
        ]))  # fmt: skip
    if attrs.get("repaired"):
        repaired = (
            f"{_many(attrs['repaired'], 'region')} had an invalid outline, repaired to count."
        )
        parts.append(notice("info", repaired))
    parts.append(_regions_table(regions, outside, total))
    return join(parts)


def _regions_table(regions: gpd.GeoDataFrame, outside: Any, total: Any) -> Html:
    names = region_names(regions)
    fields = [c for c in regions.columns if c != regions.geometry.name]
    name_field = regions.attrs.get("region_field")
    fields = [c for c in fields if c != name_field]
    # what was counted comes first, then what the user's file says of a region
    first = fields.index("count") if "count" in fields else 0
    fields = fields[first:] + fields[:first]
    columns = [Column("region"), *(column_of(str(c), regions[c]) for c in fields)]
    values = [[_plain(v) for v in regions[c].tolist()] for c in fields]
    rows = [list(row) for row in zip(names, *values, strict=True)]
    caption = "Objects in each region"
    if len(rows) > MAX_ROWS:
        order = np.argsort(-regions["count"].to_numpy(np.float64), kind="stable")[:MAX_ROWS]
        rows = [rows[i] for i in np.sort(order)]
        caption += f": the {MAX_ROWS:,} with most of {len(names):,}; all are in the output"
    blank: list[Any] = ["" for _ in fields]
    ends = []
    for label, value in (("outside all regions", outside), ("all objects", total)):
        if value is not None:
            ends.append(
                [label, *(value if c == "count" else b for c, b in zip(fields, blank, strict=True))]
            )
    # places: the rows stand in the order of the map's regions
    return table(
        caption, columns, rows, key="regions-table", totals=ends, sortable=True,
        places=len(names) <= MAX_ROWS,
    )  # fmt: skip


def column_of(name: str, values: pd.Series) -> Column:
    """Return how a column of a layer is shown, from its name and type."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if not numeric:
        return Column(name)
    unit = next((unit for end, unit in _UNITS if name.endswith(end)), "")
    if "density_km2" in name or name.startswith("density"):
        unit = "per km²"
    share = name.endswith("_share")
    title = _TITLES.get(name)
    if title is None and name.startswith("count_"):
        title, unit = name.removeprefix("count_"), "objects"
    if title is None:
        title = name
        for end, _ in _UNITS:
            title = title.removesuffix(end)
        title = (title or name).replace("_", " ")
    digits = 0 if unit == "per km²" and values.abs().max() >= 100 else None
    return Column(title, unit="" if share else unit, numeric=True, digits=digits, percent=share)


def _plain(value: Any) -> Any:
    """Return a cell as Python has it; what is missing as None."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NaT:
        return None
    return None if value is pd.NA else value


# -- histograms -------------------------------------------------------------------------------


def distributions(statistics: Statistics) -> Html:
    """Return histograms of score and size, per class."""
    ranked = statistics.ranked()
    if not ranked:
        return paragraph("There are no objects, so there is nothing to draw.")
    colours = class_colours(statistics.classes)
    parts = [_class_table(ranked)] if len(ranked) > 1 else []
    for name, figures_ in ranked[:MAX_CLASSES]:
        colour = "#{:02x}{:02x}{:02x}".format(*colours[name])
        title = f"<h3>{escape(name)}: {figures_.n:,}</h3>" if len(ranked) > 1 else ""
        both = _scores(figures_, colour) + _areas(figures_, colour)
        parts.append(Html(f'{title}<div class="charts">{both}</div>'))
    if len(ranked) > MAX_CLASSES:
        more = f"{len(ranked) - MAX_CLASSES:,} more classes are in the table above only."
        parts.append(paragraph(more, "remark"))
    return join(parts)


def _class_table(ranked: Sequence[tuple[str, ClassFigures]]) -> Html:
    columns = [
        Column("class"), Column("objects", numeric=True),
        Column("mean score", numeric=True, digits=3), Column("mean size", "m²", numeric=True),
        Column("median size", "m²", numeric=True), Column("total area", "m²", numeric=True),
    ]  # fmt: skip
    rows = [
        [name, c.n, c.score / c.n, c.area_m2 / c.n, c.median_area_m2(), c.area_m2]
        for name, c in ranked
    ]
    return table("Classes", columns, rows, key="classes-table", sortable=True)


def _scores(figures_: ClassFigures, colour: str) -> Html:
    first, last = used(figures_.scores)
    first -= first % 5
    counts = figures_.scores[first:last].tolist()
    edges = [i / SCORE_BINS for i in range(first, last + 1)]
    step = 5 if last - first > 12 else 1
    ticks = [(float(i), f"{edges[i]:.2f}".rstrip("0")) for i in range(0, len(edges), step)]
    low, middle = (quantile_score(figures_.scores, s) for s in (0.1, 0.5))
    words = f"Half of the objects score above {middle:.2f}, nine of ten above {low:.2f}."
    return charts.histogram("Score", words, edges, counts, ticks, unit="score", colour=colour)


def _areas(figures_: ClassFigures, colour: str) -> Html:
    first, last = used(figures_.areas)
    counts = figures_.areas[first:last].tolist()
    edges = [area_edge(i) for i in range(first, last + 1)]
    ticks = []
    for power in range(AREA_LOW, AREA_LOW + len(figures_.areas) // AREA_STEPS + 1):
        for factor in (1, 3):
            at = (power - AREA_LOW + math.log10(factor)) * AREA_STEPS - first
            if 0 <= at <= last - first:
                ticks.append((at, f"{factor * 10**power:,g}"))
    low, middle, high = (quantile_area(figures_.areas, s) or 0.0 for s in (0.05, 0.5, 0.95))
    words = (
        f"Half of the objects are smaller than about {_round(middle)} m²; nine of ten are between "
        f"{_round(low)} and {_round(high)} m²."
    )
    unit = "m² (logarithmic)"
    return charts.histogram("Size", words, edges, counts, ticks, unit=unit, colour=colour)


def _round(value: float) -> str:
    """Return two figures: a bin knows no more."""
    return f"{float(f'{value:.2g}'):,g}"


# -- examples ---------------------------------------------------------------------------------

_EXAMPLE_WORDS = {
    "unsure": "What the model was least sure of and that still counted. If most are wrong, raise "
    "--min-score; if most are right, lower it and see what more comes.",
    "sure": "What a find looks like when all is well.",
    "large": "Very large ones are often several things taken for one.",
    "joined": "No tile saw these whole; their parts were put together across the seams. Steps or "
    "gaps in an outline tell of a join that went wrong.",
}


def examples_section(
    examples: Mapping[str, gpd.GeoDataFrame],
    crops: Mapping[int, Crop],
    places: Mapping[int, tuple[float, float, float]],
    classes: Sequence[str],
) -> Html:
    """Return pictures of objects worth a look.

    Parameters
    ----------
    examples : mapping of str to GeoDataFrame
        From `Statistics.examples`.
    crops : mapping of int to Crop
        By object_id; those without imagery are missing.
    places : mapping of int to (x, y, size)
        By object_id: where it is on the map, and how large, m.
    classes : sequence of str
        All classes, for the colours.
    """
    colours = class_colours(classes)
    parts = []
    for kind, rows in examples.items():
        if len(rows) == 0:
            if kind == "joined":
                none = "None: every object was seen whole by some tile."
                parts.append(Html(f"<h3>{EXAMPLE_KINDS[kind]}</h3>{paragraph(none, 'remark')}"))
            continue
        items = []
        for row in rows.itertuples():
            key, name = int(row.object_id), str(rows.at[row.Index, "class"])
            colour = "#{:02x}{:02x}{:02x}".format(*colours.get(name, (255, 127, 14)))
            items.append(_example(key, name, row, crops.get(key), places[key], colour))
        parts.append(
            Html(
                f"<h3>{EXAMPLE_KINDS[kind]}</h3>{paragraph(_EXAMPLE_WORDS[kind], 'remark')}"
                f'<ul class="crops">{"".join(items)}</ul>'
            )
        )
    return join(parts) or paragraph("There are no objects, so there are no examples.")


def _example(
    key: int, name: str, row: Any, crop: Crop | None, place: tuple[float, float, float], colour: str
) -> str:
    said = f"{name} {key}: score {row.score:.3f}, {number(float(row.area_m2))} m²"
    if row.n_parts > 1:
        said += f", joined from {row.n_parts} parts"
    picture = '<p class="remark">no imagery</p>'
    if crop is not None:
        path = escape("".join(_path(ring) for ring in crop.rings))
        picture = (
            f'<svg viewBox="0 0 {crop.width} {crop.height}" role="img" aria-label="{escape(said)}" '
            'preserveAspectRatio="xMidYMid slice">'
            f'<image width="{crop.width}" height="{crop.height}" '
            f'href="data:image/jpeg;base64,{crop.jpeg}"/><path class="halo" d="{path}"/>'
            f'<path class="line" d="{path}" stroke="{colour}"/></svg>'
        )
    parts = f" · {row.n_parts} parts" if row.n_parts > 1 else ""
    at = " ".join(f"{v:.1f}" for v in place)
    return (
        f"<li>{picture}<p><b>{row.score:.3f}</b> · {number(float(row.area_m2))} m²{parts}<br>"
        f'<button type="button" data-object="{key}" data-at="{at}" '
        f'aria-label="{escape(name)} {key} on the map">on the map</button></p></li>'
    )


def _path(ring: Sequence[float]) -> str:
    points = " ".join(f"{x:g},{y:g}" for x, y in zip(ring[::2], ring[1::2], strict=True))
    return f"M{points}Z"


# -- seams ------------------------------------------------------------------------------------


def seams_section(seams: Mapping[str, Any]) -> Html:
    """Return the run's own check of its seams, in plain words."""
    if not seams:
        return Html()
    enough = seams.get("enough")
    kinds = {True: ("good", "The tiles overlap enough."),
             False: ("warn", "A larger overlap would be better."),
             None: ("info", "There is too little to judge the overlap by.")}  # fmt: skip
    kind, title = kinds[enough]
    verdict = str(seams.get("verdict", ""))
    parts = [
        paragraph(
            "The imagery was looked at in tiles. Neighbouring tiles share a band of ground "
            f"{seams.get('overlap_px')} pixels wide ({percent(seams.get('band_share'))} of the "
            "ground is in such a band), so that an object at the edge of one tile is whole in the "
            "next. There two tiles saw the same ground, and here is how well they agree."
        ),
        notice(kind, title, [verdict[:1].upper() + verdict[1:] + "."] if verdict else []),
        Html(
            f'<ul class="plain">{"".join(f"<li>{escape(t)}</li>" for t in _seam_words(seams))}</ul>'
        ),
    ]
    agreement = [row for row in seams.get("agreement", []) if row.get("share") is not None]
    if len(agreement) > 1:
        parts.append(_agreement_chart(agreement))
    return join(parts)


def _seam_words(seams: Mapping[str, Any]) -> list[str]:
    words = []
    near, deep = seams.get("near"), seams.get("deep")
    if near and deep:
        words.append(
            f"Near its edge ({_span(near)}) a tile shows {percent(near['share'])} of what its "
            f"neighbour shows there; well inside ({_span(deep)}) {percent(deep['share'])}. If the "
            "two are alike, nothing is lost at the seams; the rest is how much the model varies "
            "from one look to the next."
        )
    margin = seams.get("trusted_margin_px")
    if margin is not None:
        least = "at least " if seams.get("margin_is_lower_bound") else ""
        words.append(
            "A tile can be trusted up to its very edge." if margin == 0 and not least
            else f"A tile can be trusted from {least}{margin} pixels off its edge inwards."
        )  # fmt: skip
    band, inner = seams.get("band_duplicate_rate"), seams.get("interior_duplicate_rate")
    if band is not None and inner is not None:
        said = {
            True: "more than chance: the seams change how often things are found twice",
            False: "no more different than by chance: the seams make no doubles",
            None: "too few to compare",
        }[seams.get("rates_differ")]
        words.append(
            f"Objects half covered by another one: {percent(band)} in the bands, {percent(inner)} "
            f"elsewhere; {said}."
        )
    words.append(
        f"{_many(seams.get('joined', 0), 'object')} of {seams.get('objects', 0):,} "
        f"{'was' if seams.get('joined') == 1 else 'were'} seen whole by no tile and joined from "
        f"parts; {seams.get('incomplete', 0):,} end at a tile's edge that nothing continues."
    )
    if seams.get("size_px") is not None:
        words.append(f"99 of 100 objects are shorter than {seams['size_px']:.0f} pixels.")
    return words


def _span(row: Mapping[str, Any]) -> str:
    to = row.get("to_px")
    return f"{row['from_px']} pixels and more" if to is None else f"{row['from_px']} to {to} pixels"


def _agreement_chart(agreement: Sequence[Mapping[str, Any]]) -> Html:
    lowest = min(row["share"] for row in agreement)
    floor = max(0.0, math.floor(lowest * 10 - 1) / 10)
    rows = []
    for row in agreement:
        to = row.get("to_px")
        label = f"{row['from_px']}+" if to is None else f"{row['from_px']}"
        said = f"{_span(row)}: {percent(row['share'])} of {row['trials']:,}"
        rows.append((label, float(row["share"]), said))
    words = (
        f"From {percent(lowest)} to {percent(max(r['share'] for r in agreement))}; a dip at the "
        "left would mean that objects get lost at the edges of tiles."
    )
    return charts.shares(
        "How much of what its neighbour shows a tile shows too", words, rows,
        unit="distance to the tile's edge, pixels, from", floor=floor,
    )  # fmt: skip


# -- tiles, time, settings --------------------------------------------------------------------


def tiles_section(run: RunFacts) -> Html:
    """Return what became of the tiles, and which failed and why."""
    states = {k: v for k, v in run.supertiles.items() if v}
    words = {
        "done": "with objects", "empty": "without an object", "nodata": "without data",
        "outside": "outside the AOI", "failed": "failed",
    }  # fmt: skip
    said = ", ".join(f"{n:,} {words.get(state, state)}" for state, n in states.items())
    total = sum(states.values())
    parts = [paragraph(f"{_many(total, 'block')} of tiles: {said}.")] if total else []
    failed = [["block", *row] for row in run.failed_places] + [
        ["tile", t["image"], f"row {t['tile'][0]}, column {t['tile'][1]}", t["reason"]]
        for t in run.failed_tiles
    ]
    columns = [Column("what"), Column("image"), Column("where"), Column("why")]
    if failed:
        more = f"; the first {_LISTED} of {len(failed):,}" if len(failed) > _LISTED else ""
        parts.append(table(f"Failed{more}", columns, failed[:_LISTED], sortable=True))
    else:
        parts.append(paragraph("None failed."))
    if run.saturated:
        per_image = Counter(str(place["image"]) for place in run.saturated_places)
        rows = sorted(per_image.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
        parts.append(
            paragraph(
                f"{_many(run.saturated, 'tile')} held more objects than the detector reports at "
                "once. Each was cut in quarters and looked at again (dashed yellow on the map)."
            )
        )
        columns = [Column("image"), Column("tiles", numeric=True)]
        if len(run.images) > 1:
            parts.append(
                details("By image", table("Full tiles", columns, rows, hidden_caption=True))
            )
    return join(parts)


_STAGES = {
    "worker_read": "Reading", "worker_load": "Loading the model", "worker_detect": "Detecting",
    "worker_vectorize": "Tracing outlines", "worker_stitch": "Joining inside blocks",
}  # fmt: skip


def timing_section(run: RunFacts) -> Html:
    """Return where the time went."""
    seconds = run.seconds
    if not seconds:
        return Html()
    parts = []
    total, tiles = seconds.get("total"), seconds.get("supertiles")
    if total and tiles:
        rest = max(total - tiles, 0)
        rows = [
            ("All tiles", tiles, duration(tiles)),
            ("Joining across blocks, counting, writing", rest, duration(rest)),
        ]
        parts.append(charts.bars(f"By the clock: {duration(total)}", rows, what=("stage", "time")))
    work = [
        (_STAGES.get(k, k.removeprefix("worker_").replace("_", " ")), v, duration(v))
        for k, v in seconds.items()
        if k.startswith("worker_")
    ]
    if work:
        summed = duration(sum(v for _, v, _ in work))
        title = f"Work of all processes together: {summed}"
        parts.append(charts.bars(title, work, what=("stage", "time")))
    memory = f"Largest process {run.peak_mb / 1000:.2f} GB." if run.peak_mb else ""
    inner = f'<div class="columns">{"".join(f"<div>{p}</div>" for p in parts)}</div>'
    return join([Html(inner), paragraph(memory, "remark") if memory else Html()])


def settings_section(run: RunFacts) -> Html:
    """Return images, settings and versions."""
    columns = [
        Column("image"), Column("pixel on the ground", "m", numeric=True, digits=3),
        Column("searched at", "m", numeric=True, digits=3), Column("size", "px, as searched"),
        Column("tiles", numeric=True), Column("tile size", "px", numeric=True),
        Column("overlap", "px", numeric=True), Column("CRS"),
    ]  # fmt: skip
    rows = [
        [
            i.get("name"), i.get("gsd_m"), i.get("working_gsd_m"),
            " \u00d7 ".join(f"{v:,}" for v in reversed(i.get("grid_px", []))),
            i.get("tiles"), i.get("tile_size"), i.get("overlap"), run.crs_name(i),
        ]
        for i in run.images[:_LISTED]
    ]  # fmt: skip
    more = f": the first {_LISTED} of {len(run.images):,}" if len(run.images) > _LISTED else ""
    settings = [(k, _setting(v)) for k, v in sorted(run.settings.items()) if k != "images"]
    versions = [("geoseg", run.version), ("Python", run.python), *sorted(run.packages.items())]
    return join(
        [
            table(f"Images{more}", columns, rows, sortable=len(rows) > 5),
            Html(f"<h3>Settings</h3>{facts(settings)}"),
            Html(f"<h3>Versions</h3>{facts([(k, v) for k, v in versions if v])}"),
        ]
    )


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def credits_section(run: RunFacts) -> Html:
    """Return model, its quality, licence and whom to name."""
    model = run.model
    parts = []
    if model.get("description"):
        parts.append(paragraph(str(model["description"])))
    items = [("Model", model.get("name", "")), ("Licence of the model", model.get("licence", ""))]
    parts.append(facts([(k, v) for k, v in items if v]))
    names = [str(credit) for credit in model.get("credits", [])]
    if names:
        listed = "".join(f"<li>{escape(name)}</li>" for name in names)
        parts.append(Html(f'<h3>Credits</h3><ul class="plain">{listed}</ul>'))
        parts.append(paragraph("Name them wherever you publish what the model found.", "remark"))
    quality = _flat(model.get("quality", {}))
    if quality:
        parts.append(details("Measured quality of the model", facts(quality)))
    parts.append(
        paragraph(
            "The imagery and the regions keep the licence of who gave them; this page holds "
            "small pictures of the imagery.",
            "remark",
        )
    )
    return join(parts)


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            out += _flat(value, f"{name}: ")
        else:
            out.append((name, str(value)))
    return out


def _many(n: int, one: str, more: str = "") -> str:
    """Return a number and its thing, in the right number."""
    return f"{n:,} {one if n == 1 else more or one + 's'}"
