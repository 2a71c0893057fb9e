"""The data dictionary: what each field of each layer means, in one place.

GeoPackages carry it (``gpkg_data_columns`` and the aliases of QGIS), ``docs/outputs.md`` prints
it. A field that is not here, such as one of the user's regions, is no error: it has no entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """What one field means."""

    name: str
    """As in the file; a name that ends in ``*`` stands for all that begin so."""
    title: str
    """What a table's heading shows, without the unit."""
    description: str
    """One sentence or two."""
    unit: str = ""
    """Empty for texts, numbers of things and shares."""

    @property
    def heading(self) -> str:
        """The title, with the unit where there is one."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


_OBJECTS = (
    Field("object_id", "Number", "1 to N in a fixed order: by image, then from its top."),
    Field("uid", "Stable id", "Made from what the object is; the same in every rerun."),
    Field("class", "Class", "Name of the class, as the model gives it."),
    Field("score", "Score", "How sure the model is, 0 to 1; no probability unless calibrated."),
    Field("area_m2", "Area", "Area on the ellipsoid, whatever the CRS of the file.", "m²"),
    Field("perimeter_m", "Perimeter", "Length of outline and holes on the ellipsoid.", "m"),
    Field("n_parts", "Parts", "Detections whose union the object is; 1: one tile saw it whole."),
    Field(
        "touches_edge", "Touches edge", "Whether it reaches the edge of the image: it may go on."
    ),
    Field("image", "Image", "File name of the image it was found in."),
)
_REGIONS = (
    Field("count", "Count", "Objects counted in the region, by the rule of the file's metadata."),
    Field("count_*", "Count of {}", "The same, of one class; only where there are several."),
    Field("density_km2", "Density", "Objects per km² of the whole region.", "1/km²"),
    Field("region_area_km2", "Region's area", "Area of the region on the ellipsoid.", "km²"),
    Field(
        "imaged_share", "Imaged share", "Share of the region that was imaged and worked through."
    ),
    Field("covered_share", "Covered share", "Share of the region's area that objects cover."),
    Field("mean_area_m2", "Mean area", "Mean area of the objects counted.", "m²"),
)
_COVERAGE = (
    Field("image", "Image", "File name of the image."),
    Field("row", "Row", "Row of the supertile in its image, from 0 at the top."),
    Field("col", "Column", "Column of the supertile in its image, from 0 at the left."),
    Field("status", "Status", "done, empty (no object), nodata, outside (of the AOI) or failed."),
    Field("reason", "Reason", "Why it or tiles of it failed; empty where nothing did."),
    Field("tiles", "Tiles", "Tiles of the supertile."),
    Field("tiles_run", "Tiles run", "Tiles that hold pixels to look at, and were looked at."),
    Field("tiles_failed", "Tiles failed", "Tiles that were left out."),
    Field("tiles_saturated", "Tiles saturated", "Tiles that reached the detector's cap and were "
          "run in quarters."),
    Field("tiles_skipped", "Tiles skipped", "Tiles that a look at coarser pixels found empty "
          "(--skip-empty)."),
    Field("quarters_capped", "Quarters capped", "Quarters that reached the cap even so: objects "
          "may be missing there."),
    Field("seconds", "Time", "What workers spent on it.", "s"),
)  # fmt: skip
_FILES = (
    Field("file", "File", "Where it lies, from the folder of this index."),
    Field("name", "Name", "Name of the region, or quadkey of the cell; 'outside' of all regions."),
    Field("region", "Region", "Row of the region in the layer of regions, from 1; 0: outside."),
    Field("objects", "Objects", "How many objects the file holds."),
    Field("bytes", "Size", "Size of the file.", "B"),
)
_TASKS = (
    Field("rank", "Rank", "1 is the square to label first."),
    Field("status", "Status", "todo; done: every object in the square is outlined; skip: never."),
    Field("value", "Value", "How much there is to learn here; 1 is the average square's."),
    Field("uncertainty", "Uncertainty", "Expected number of wrong decisions, by the scores."),
    Field("disagreement", "Disagreement", "Objects about which overlapping tiles disagree."),
    Field("n_objects", "Objects", "Objects found at the model's threshold."),
    Field("image", "Image", "File name of the image."),
)
_CHANGES = (
    Field("change", "Change", "kept, grown, shrunk, appeared, gone, split or merged."),
    Field("class", "Class", "Name of the class."),
)

LAYERS: dict[str, tuple[Field, ...]] = {
    "objects": _OBJECTS,
    "regions": _REGIONS,
    "coverage": _COVERAGE,
    "files": _FILES,
    "changes": _CHANGES,
    "tasks": _TASKS,
}
"""Fields by layer, in their order."""
DESCRIPTIONS: dict[str, str] = {
    "objects": "one polygon per object on the ground",
    "regions": "the regions that were counted in, with all their own fields",
    "coverage": "one polygon per supertile: what was worked through",
    "files": "one polygon per file: where the objects are",
    "changes": "what changed between the dates",
    "tasks": "squares to label next",
}
"""What each layer is, for its entry in the table of contents."""


def describe_fields(layer: str, columns: Iterable[str]) -> list[Field]:
    """Return the entries of those columns of a layer that have one, in the columns' order.

    ``count_*`` are ours only after ``count``: what stands before are the user's own fields.

    Examples
    --------
    >>> columns = ["ward", "count_pupils", "count", "count_car", "density_km2"]
    >>> [f.heading for f in describe_fields("regions", columns)]
    ['Count', 'Count of car', 'Density (1/km²)']
    """
    known = {f.name: f for f in LAYERS.get(layer, ())}
    starts = [f for f in known.values() if f.name.endswith("*")]
    found: list[Field] = []
    for column in columns:
        if column in known:
            found.append(known[column])
            continue
        for f in starts:
            rest = column.removeprefix(f.name[:-1])
            begun = any(one.name == f.name[:-2] for one in found)
            if begun and rest not in (column, ""):
                found.append(Field(column, f.title.replace("{}", rest), f.description, f.unit))
                break
    return found


def fields_markdown(layer: str) -> str:
    """Return the dictionary of a layer as a Markdown table, as the documentation has it."""
    rows = ["| field | title | unit | meaning |", "|---|---|---|---|"]
    for f in LAYERS[layer]:
        title = f.title.replace("{}", "…")
        rows.append(f"| `{f.name}` | {title} | {f.unit} | {f.description} |")
    return "\n".join(rows) + "\n"
