"""Counts per region as people take them away: CSV, XLSX, or a layer of any vector format.

A spreadsheet program runs a cell that begins with = + - or @ as a formula, also one that came as
the name of a region. So no text of ours or of the user's is ever a formula: in CSV such a text
gets an apostrophe in front (OWASP, CSV injection), in XLSX its cell is typed as text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from geoseg.errors import OutputError
from geoseg.outputs.publish import put, scratch
from geoseg.outputs.tables import (
    DRIVERS,
    check_output,
    write_geopackage,
    write_table,
)

COUNTS_SUFFIXES = (*DRIVERS, ".csv", ".xlsx")
"""What counts are written as."""
_MEANINGS: dict[str, tuple[str, str]] = {
    "count": ("objects", "objects in the region by the rule of the run"),
    "count_own": ("objects", "objects in the region but in none of its children"),
    "density_km2": ("objects/km2", "count per square kilometre of the whole region"),
    "region_area_km2": ("km2", "area of the region on the ellipsoid"),
    "imaged_share": ("0 to 1", "share of the region's area that was imaged and processed"),
    "covered_share": ("0 to 1", "share of the imaged area that objects cover"),
    "mean_area_m2": ("m2", "mean size of the objects counted, on the ellipsoid"),
    "expected": ("things", "how many there are, by the model's calibration"),
    "expected_low": ("things", "lower bound: there are more with a probability of 95 %"),
    "expected_high": ("things", "upper bound: there are fewer with a probability of 95 %"),
    "level": ("", "1: at the top of the hierarchy; 2: a child of such a region; and so on"),
}
_RULES = {
    "point": "an object belongs to the region that holds its representative point",
    "area": "each region gets the share of the object's area that lies in it",
    "intersects": "each region that an object meets counts it; these counts do not add up",
}
_FORMATS = {"objects/km2": "#,##0.0", "km2": "#,##0.000", "0 to 1": "0.0%", "m2": "#,##0.0",
            "things": "#,##0.0"}  # fmt: skip
_MOST_ROWS = 1_048_575
# ^ of a sheet, less the header
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def write_counts(path: str | Path, counted: gpd.GeoDataFrame, *, overwrite: bool = False) -> Path:
    """Write regions with their counts.

    Parameters
    ----------
    path : str or Path
        Ends in .csv (fields only, UTF-8), .xlsx (the same, and a second sheet that says what was
        counted and what the columns mean), .gpkg, .parquet, .fgb or .geojson.
    counted : GeoDataFrame
        From :func:`geoseg.objects.count.count`, with its ``attrs``.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        As :func:`geoseg.outputs.tables.write_table`; or if there are more regions than a sheet
        has rows.
    """
    path = check_counts_output(path, overwrite)
    suffix = path.suffix.lower()
    if suffix == ".gpkg":
        notes = {name: counted.attrs.get(name) for name in ("rule", "total", "outside")}
        return write_geopackage(path, {"regions": counted}, overwrite=overwrite, metadata=notes)
    if suffix not in {".csv", ".xlsx"}:
        return write_table(path, counted, layer="regions", overwrite=overwrite)
    table = pd.DataFrame(counted.drop(columns=counted.geometry.name))
    with scratch(path) as temporary:
        if suffix == ".csv":
            _write_csv(temporary, table)
        else:
            _write_xlsx(temporary, table, counted.attrs)
        put(temporary, path, overwrite=overwrite)
    return path


def check_counts_output(path: str | Path, overwrite: bool = False) -> Path:
    """Refuse a file of counts that could not be written, before anything is computed.

    Returns
    -------
    Path
        The path, made absolute.

    Raises
    ------
    OutputError
        As :func:`geoseg.outputs.tables.check_output`; or if a sheet is wanted and openpyxl is not
        installed.
    """
    path = check_output(path, overwrite, suffixes=COUNTS_SUFFIXES)
    if path.suffix.lower() == ".xlsx" and find_spec("openpyxl") is None:
        raise OutputError(
            f"{path.name} needs openpyxl, which is not installed; pip install openpyxl, or write "
            "a .csv"
        )
    return path


def summary_of(counted: gpd.GeoDataFrame) -> list[tuple[str, Any]]:
    """Return what was counted and how it adds up, a line each, as people read it."""
    attrs = counted.attrs
    rule = attrs.get("rule", "point")
    lines: list[tuple[str, Any]] = [("rule", f"{rule}: {_RULES[rule]}")]
    lines.append(("regions", len(counted)))
    partition = rule != "intersects"
    inside = attrs["total"] - attrs["outside"]
    lines.append(("objects in all", attrs["total"]))
    lines.append(("objects in regions" if partition else "objects in any region", inside))
    lines.append(("objects outside", attrs["outside"]))
    for kind, sums in attrs.get("by_class", {}).items():
        lines.append((f"{kind}: in all", sums["total"]))
        lines.append((f"{kind}: outside", sums["outside"]))
    lines += [_of_level(level, attrs["total"]) for level in attrs.get("levels", [])]
    return [*lines, *(("note", text) for text in remarks_on(counted))]


def remarks_on(counted: gpd.GeoDataFrame) -> list[str]:
    """Return what is odd about regions or counts, a sentence each."""
    attrs = counted.attrs
    remarks = []
    if attrs.get("shared"):
        remarks.append(f"{attrs['shared']} objects lie in more than one region")
    if attrs.get("overlapping") and not attrs.get("levels"):
        remarks.append(
            f"{len(attrs['overlapping'])} pairs of regions overlap: "
            f"{attrs.get('overlap_share', 0.0):.2%} of their ground lies in more than one"
        )
    if attrs.get("repaired"):
        remarks.append(f"{attrs['repaired']} regions were invalid and have been repaired")
    if attrs.get("leaping"):
        remarks.append(
            f"{attrs['leaping']} regions have an edge of more than 180 degrees, which is taken as "
            "its numbers say, around the earth; if it is to cross the antimeridian, cut it there "
            "(ogr2ogr -wrapdateline) or count on beyond 180"
        )
    if attrs.get("empty"):
        remarks.append(
            f"{attrs['empty']} regions have no area, so they have no objects of their own"
        )
    if attrs.get("duplicate_names"):
        remarks.append(f"{attrs['duplicate_names']} regions have a name that another has already")
    return remarks


def _of_level(level: dict[str, Any], total: int) -> tuple[str, str]:
    """Return how the counts of one level of a hierarchy add up."""
    counted, above, outside = (f"{level[key]:g}" for key in ("counted", "above", "outside"))
    text = f"{counted} in {level['regions']} regions + {above} only in levels above"
    return f"level {level['level']}", f"{text} + {outside} outside = {total}"


def meaning_of(column: str, classes: Sequence[str] = ()) -> tuple[str, str]:
    """Return unit and meaning of a column of counts; of a field of the user's two empty texts."""
    if column in _MEANINGS:
        return _MEANINGS[column]
    for head in ("count", "covered_share", "mean_area_m2"):
        kind = column.removeprefix(f"{head}_")
        if kind != column and kind in classes:
            unit, text = _MEANINGS[head]
            return unit, f"{text}; of class {kind} alone"
    return "", ""


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write fields; a text that a spreadsheet would run gets an apostrophe in front."""
    safe = table.rename(columns=lambda name: _as_csv(str(name)))
    for i in range(safe.shape[1]):
        column = safe.iloc[:, i]
        if pd.api.types.is_numeric_dtype(column):
            continue
        texts = [_as_csv(value) if isinstance(value, str) else value for value in column]
        safe.isetitem(i, np.array([*texts, None], dtype=object)[:-1])
    safe.to_csv(path, index=False, encoding="utf-8")


def _as_csv(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip(" ")[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def _write_xlsx(path: Path, table: pd.DataFrame, attrs: dict[str, Any]) -> None:
    """Write a sheet of counts and one that explains it, row by row."""
    if len(table) > _MOST_ROWS:
        raise OutputError(
            f"{len(table):,} regions are more than a sheet has rows; write .csv or .parquet"
        )
    classes = list(attrs.get("by_class", {}))
    about = [meaning_of(str(name), classes) for name in table.columns]
    book = import_module("openpyxl").Workbook(write_only=True)
    _add_counts(book.create_sheet("counts"), table, about)
    _add_about(book.create_sheet("about"), table, about, attrs)
    book.save(path)


def _add_counts(sheet: Any, table: pd.DataFrame, about: Sequence[tuple[str, str]]) -> None:
    """Write the counts below a header with units."""
    bold = import_module("openpyxl.styles").Font(bold=True)
    letter_of = import_module("openpyxl.utils").get_column_letter
    heads = [f"{n} [{unit}]" if unit else str(n) for n, (unit, _) in zip(table.columns, about,
                                                                        strict=True)]  # fmt: skip
    sheet.freeze_panes = "A2"
    last = letter_of(max(len(heads), 1))
    sheet.auto_filter.ref = f"A1:{last}{len(table) + 1}"
    for i, head in enumerate(heads):
        sheet.column_dimensions[letter_of(i + 1)].width = min(max(len(head) + 4, 10), 40)
    sheet.append([_cell(sheet, head, font=bold) for head in heads])
    columns = [table.iloc[:, i].tolist() for i in range(table.shape[1])]
    for row in zip(*columns, strict=True):
        sheet.append(
            [
                _cell(sheet, value, _FORMATS.get(unit))
                for value, (unit, _) in zip(row, about, strict=True)
            ]
        )


def _add_about(
    sheet: Any, table: pd.DataFrame, about: Sequence[tuple[str, str]], attrs: dict[str, Any]
) -> None:
    """Write what was counted, and what the columns mean."""
    bold = import_module("openpyxl.styles").Font(bold=True)
    sheet.column_dimensions["A"].width = 46
    sheet.column_dimensions["B"].width = 14
    sheet.column_dimensions["C"].width = 90
    sheet.append([_cell(sheet, "what was counted", font=bold)])
    if "total" in attrs:
        counted = gpd.GeoDataFrame(index=table.index)
        counted.attrs = attrs
        for name, value in summary_of(counted):
            wide = isinstance(value, str)
            sheet.append([_cell(sheet, name), *([None] if wide else []), _cell(sheet, value)])
    sheet.append([])
    sheet.append([_cell(sheet, head, font=bold) for head in ("column", "unit", "meaning")])
    for name, (unit, text) in zip(table.columns, about, strict=True):
        meaning = text or "a field of the regions as given"
        sheet.append([_cell(sheet, value) for value in (str(name), unit, meaning)])


def _cell(sheet: Any, value: Any, form: str | None = None, font: Any = None) -> Any:
    """Return a cell that is a number, a date, a text or empty, and never a formula."""
    value = _plain(value)
    if not isinstance(value, str) and form is None and font is None:
        return value
    if isinstance(value, str):
        # what XML cannot hold, and what is longer than a cell
        value = _UNPRINTABLE.sub("\ufffd", value)[:32767]
    cell = import_module("openpyxl.cell").WriteOnlyCell(sheet, value)
    if isinstance(value, str):
        # text also after someone has edited the cell
        cell.data_type, cell.quotePrefix = "s", value[:1] in {"=", "+", "-", "@"}
    if form is not None:
        cell.number_format = form
    if font is not None:
        cell.font = font
    return cell


def _plain(value: Any) -> Any:
    """Return what a sheet takes: text, number, date or None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, pd.Timestamp):
        # a sheet knows no time zones
        return value.tz_localize(None).to_pydatetime()
    return value if isinstance(value, str | bool | int) else str(value)
