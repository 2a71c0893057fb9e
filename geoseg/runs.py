"""A run opened again: its tables, its manifest, and a look at both in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from geoseg.errors import ConfigError, OutputError, RegionError
from geoseg.jobs.ledger import MANIFEST, RunDirectory, manifest_from
from geoseg.outputs.reading import reading
from geoseg.outputs.style import class_colours
from geoseg.outputs.tables import read_vector

if TYPE_CHECKING:
    import folium

RUN_SUFFIX = ".geoseg-run"
"""Ends the name of the run directory that lies beside an output."""
MAX_DRAWN = 20_000
"""Polygons that a browser still pans smoothly; their page weighs some 12 MB."""
SHOWN_DEGREES = 2e-6
"""Tolerance of drawn outlines, at most 0.22 m: less than half the page."""
SHOWN_ROWS = 12
"""Rows of a list in a notebook: the rest is a number."""
SHOWN_CHARS = 160
SCORE_STEPS = (
    (0.9, "#08519c"),
    (0.8, "#3182bd"),
    (0.7, "#6baed6"),
    (0.5, "#fd8d3c"),
    (0.0, "#d7301f"),
)
"""From this score on, this colour: blue is sure, red is not; the colour-blind tell them apart."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run of ``geoseg detect``; made by `open_run`.

    Tables are read when first asked for, and kept. In a notebook the run shows itself as a table.

    Attributes
    ----------
    objects : GeoDataFrame
        One row per object: object_id, uid, class, score, area_m2, perimeter_m, n_parts,
        touches_edge, image, geometry.
    regions : GeoDataFrame or None
        The user's regions with their counts; None where the run counted in none.
    coverage : GeoDataFrame
        One row per supertile: what happened there and why.
    """

    path: Path | None
    """The run directory; None where only the output is left."""
    output: Path | None
    """The file that the run wrote for the user; None where it is not there."""
    manifest: Mapping[str, Any]
    """What ``run.json`` holds: versions, settings, model, images, seconds, seams, notes."""

    @property
    def state(self) -> str:
        """'finished' (also where only the output is left), 'running', 'stopped' or 'failed'."""
        return str(self.manifest.get("state", "finished"))

    @property
    def n_objects(self) -> int:
        """How many objects there are; from the file's header where there is a run directory."""
        file = self._objects_file()
        if file is None:
            return len(self.objects)
        with self._looking():
            return int(pq.read_metadata(file).num_rows)

    @cached_property
    def objects(self) -> gpd.GeoDataFrame:
        """All objects, in their order.

        Raises
        ------
        OutputError
            If the run has not finished, or its files are gone.
        """
        file = self._objects_file()
        if file is not None:
            with self._looking():
                return gpd.read_parquet(file)
        if self.output is None:
            raise OutputError(f"{self.path} holds no objects: {self._why_nothing()}")
        layer = "objects" if self._has_layers else None
        return read_vector(self.output, layer=layer, what="objects")

    @cached_property
    def regions(self) -> gpd.GeoDataFrame | None:
        """The regions with their counts, or None where the run counted in none.

        Raises
        ------
        OutputError
            If the run counted, but its output is not there.
        """
        counted = {"regions", "grid"} & set(self.manifest.get("settings", {}))
        if self.output is None and not counted:
            return None
        output = self._output("regions")
        if self._has_layers:
            with self._looking():
                layers = gpd.list_layers(output)["name"].to_list()
                return gpd.read_file(output, layer="regions") if "regions" in layers else None
        # where an output has no layers, the counts lie beside it
        counts = output.with_name(f"{output.stem}_regions{output.suffix}")
        return read_vector(counts) if counts.exists() else None

    @cached_property
    def coverage(self) -> gpd.GeoDataFrame:
        """What happened in each part of the images.

        Raises
        ------
        OutputError
            If there is no GeoPackage, whose layer it is.
        """
        output = self._output("coverage")
        if not self._has_layers:
            raise OutputError(
                f"{output.name} has no layers; only a GeoPackage holds the coverage "
                "(-o NAME.gpkg, or geoseg.detect(..., output='NAME.gpkg'))"
            )
        with self._looking():
            return gpd.read_file(output, layer="coverage")

    def explore(
        self,
        objects: gpd.GeoDataFrame | None = None,
        *,
        by: str = "score",
        max_objects: int = MAX_DRAWN,
        tiles: str | None = "OpenStreetMap",
    ) -> folium.Map:
        """Draw objects and regions on a map that one can pan and zoom in a notebook.

        Layers can be switched off: one per step of the score, or per class. The pointer over an
        object shows its class, score and size; over a region its count. Outlines are drawn up to
        0.2 m off, so that the page stays small; the table keeps them as they are. The browser
        fetches Leaflet (and the background) from the network when the map is looked at.

        Parameters
        ----------
        objects : GeoDataFrame, optional
            Rows of `objects` to draw; by default all.
        by : str
            What colours and layers stand for: 'score' or 'class'.
        max_objects : int
            More are refused, rather than thinned out unseen.
        tiles : str, optional
            Background map, as folium names it. None leaves it out.

        Returns
        -------
        folium.Map
            ``.save("map.html")`` writes a page.

        Raises
        ------
        ConfigError
            If folium is not installed, there are too many objects, or `by` is something else.

        Examples
        --------
        >>> run = geoseg.open_run("buildings.gpkg")  # doctest: +SKIP
        >>> run.explore()  # doctest: +SKIP
        >>> unsure = run.objects[run.objects["score"] < 0.7]  # doctest: +SKIP
        >>> run.explore(unsure, by="class").save("unsure.html")  # doctest: +SKIP
        """
        if by not in ("score", "class"):
            raise ConfigError(f"by is {by!r}; expected 'score' or 'class'")
        table = self.objects if objects is None else objects
        if len(table) > max_objects:
            raise ConfigError(
                f"{len(table):,} objects are more than the {max_objects:,} that a browser draws "
                "smoothly; give a part, such as run.objects.cx[left:right, bottom:top] or "
                "run.objects[run.objects['score'] > 0.9], open the GeoPackage in QGIS, or raise "
                "max_objects"
            )
        return _draw(table, self.regions, by=by, tiles=tiles)

    def __repr__(self) -> str:
        where = self.path or self.output
        return f"<geoseg run {where}: {self.state}{self._count_text()}>"

    def _repr_html_(self) -> str:
        """Return the run as a small table, every value escaped."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{_text(name)}</th>"
            f"<td style='text-align:left'>{_text(value)}</td></tr>"
            for name, value in self._facts()
        )
        return f"<table><tbody>{rows}</tbody></table>{self._regions_html()}"

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield name and value of what a reader wants to know first."""
        told = self.manifest
        yield "run", f"{self.path or self.output}"
        yield "state", self.state + (f": {told['reason']}" if told.get("reason") else "")
        if self._is_there():
            yield "objects", self._objects_text()
        if self.output is not None:
            yield "output", str(self.output)
        if told.get("images"):
            yield "images", _some([str(image["name"]) for image in told["images"]])
        if told.get("model"):
            yield "model", str(told["model"].get("name", ""))
        if told.get("supertiles"):
            yield "supertiles", ", ".join(f"{n} {state}" for state, n in told["supertiles"].items())
        if told.get("failed_tiles"):
            yield "tiles left out", str(len(told["failed_tiles"]))
        if told.get("seconds"):
            yield "time", f"{told['seconds']['total']:.0f} s, {told['peak_mb'] / 1000:.2f} GB"
        for note in told.get("notes", [])[:SHOWN_ROWS]:
            yield "note", str(note)

    def _objects_text(self) -> str:
        """Return the number of objects, and of each class where there are several."""
        file = self._objects_file()
        if file is None:
            counts = self.objects["class"].value_counts().to_dict() if self._has_class() else {}
        else:
            with self._looking():
                column = pq.read_table(file, columns=["class"])["class"]
                counts = {str(c["values"]): c["counts"].as_py() for c in pc.value_counts(column)}
        parts = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        each = _some([f"{name} {n:,}" for name, n in parts])
        return f"{self.n_objects:,}" + (f" ({each})" if len(parts) > 1 else "")

    def _regions_html(self) -> str:
        """Return a table of the counts per region, cut short, or nothing."""
        try:
            regions = self.regions
        except OutputError:
            return ""
        if regions is None or "count" not in regions:
            return ""
        names = _region_names(regions)
        rows = "".join(
            f"<tr><td style='text-align:left'>{_text(name)}</td><td>{_text(f'{n:,.6g}')}</td></tr>"
            for name, n in list(zip(names, regions["count"], strict=True))[:SHOWN_ROWS]
        )
        left = len(regions) - SHOWN_ROWS
        more = f"<tr><td colspan='2'>and {left:,} more</td></tr>" if left > 0 else ""
        return (
            "<table><thead><tr><th style='text-align:left'>region</th><th>objects</th></tr></thead>"
            f"<tbody>{rows}{more}</tbody></table>"
        )

    def _has_class(self) -> bool:
        return "class" in self.objects.columns

    def _is_there(self) -> bool:
        return self._objects_file() is not None or (self.path is None and self.output is not None)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Let a file of the run that is damaged be an error that says what to do."""
        try:
            with reading(self.output or str(self.path), "run's"):
                yield
        except RegionError as error:
            raise OutputError(
                f"a file of the run is damaged or of another program: {error.__cause__}; run the "
                "same command again to write it anew"
            ) from error

    def _count_text(self) -> str:
        return f", {self.n_objects:,} objects" if self._is_there() else ""

    @property
    def _has_layers(self) -> bool:
        return self.output is not None and self.output.suffix.lower() == ".gpkg"

    def _objects_file(self) -> Path | None:
        if self.path is None:
            return None
        file = RunDirectory(self.path).objects
        # the file of an earlier run stays until a run that goes on has joined anew
        return file if file.is_file() and self.state == "finished" else None

    def _output(self, what: str) -> Path:
        """Return the output, or say where the layer would be."""
        if self.output is None:
            name = self.manifest.get("settings", {}).get("output")
            where = f"{name} is not beside {self.path}" if name else "the run wrote no output"
            raise OutputError(
                f"{what}: {where}; name the file with geoseg.open_run(RUN_DIR, output=FILE)"
            )
        return self.output

    def _why_nothing(self) -> str:
        if self.state == "finished":
            return "its objects.parquet was removed; open the output instead"
        why = f" ({self.manifest['reason']})" if self.manifest.get("reason") else ""
        return f"the run is {self.state}{why}; run the same command until it has finished"


def open_run(path: str | Path, output: str | Path | None = None) -> Run:
    """Open what a run left: its directory, or the file that it wrote.

    Parameters
    ----------
    path : str or Path
        A run directory (``buildings.geoseg-run``), or an output whose run directory lies beside
        it or was deleted.
    output : str or Path, optional
        The run's output, where it does not lie beside the run directory.

    Returns
    -------
    Run
        Nothing but the manifest is read yet.

    Raises
    ------
    OutputError
        If there is no run and no output of that name, or the manifest cannot be read.

    Examples
    --------
    >>> import geoseg
    >>> run = geoseg.open_run("buildings.gpkg")  # doctest: +SKIP
    >>> run.objects["area_m2"].median()  # doctest: +SKIP
    104.2
    >>> run.manifest["seams"]["verdict"]  # doctest: +SKIP
    'tiles agree: --overlap 192 is enough'
    """
    path = Path(path)
    given = None if output is None else Path(output)
    if given is not None and not given.is_file():
        raise OutputError(f"output {given} does not exist; check the path")
    if path.is_file():
        beside = path.with_name(f"{path.stem}{RUN_SUFFIX}")
        known = _is_run_of(beside, path)
        return Run(beside if known else None, path, _read_manifest(beside) if known else {})
    if not (path / MANIFEST).is_file():
        raise OutputError(
            f"{path} is neither a run directory (it holds no {MANIFEST}) nor an output file; name "
            "what geoseg detect wrote, such as buildings.gpkg or buildings.geoseg-run"
        )
    manifest = _read_manifest(path)
    name = (manifest.get("settings") or {}).get("output")
    if given is None and name and (path.parent / name).is_file():
        given = path.parent / name
    return Run(path, given, manifest)


def _is_run_of(run_dir: Path, output: Path) -> bool:
    """Tell whether a run directory is that of an output: a.gpkg and a.parquet share its name."""
    if not (run_dir / MANIFEST).is_file():
        return False
    return bool(_read_manifest(run_dir).get("settings", {}).get("output") == output.name)


def _read_manifest(run_dir: Path) -> dict[str, Any]:
    file = run_dir / MANIFEST
    try:
        return manifest_from(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{file} cannot be read ({error}); run the same command again to write it anew"
        ) from error


def _text(value: object) -> str:
    """Return a value for HTML: escaped, on one line, cut short."""
    text = " ".join(str(value).split())
    short = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
    return html.escape(short)


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN_ROWS:,} more" if len(names) > SHOWN_ROWS else ""
    return ", ".join(names[:SHOWN_ROWS]) + more


def _region_names(regions: gpd.GeoDataFrame) -> list[str]:
    """Return what to call the regions: the first text field, or their number."""
    for column in regions.columns:
        kind = regions[column].dtype
        if pd.api.types.is_string_dtype(kind) and column != regions.geometry.name:
            return [str(value) for value in regions[column]]
    return [str(number) for number in range(1, len(regions) + 1)]


def _draw(
    objects: gpd.GeoDataFrame, regions: gpd.GeoDataFrame | None, *, by: str, tiles: str | None
) -> folium.Map:
    """Return a map of objects over regions.

    `GeoDataFrame.explore` would do for a few hundred: it needs matplotlib and mapclassify too, and
    writes a style per object.
    """
    try:
        import folium
    except ImportError as error:
        raise ConfigError(
            "Run.explore draws with folium, which is not installed; "
            "pip install folium (or 'geoseg[notebook]')"
        ) from error
    page = folium.Map(tiles=tiles, prefer_canvas=True, max_zoom=22, control_scale=True)
    if regions is not None and len(regions):
        _add_regions(page, regions)
    for name, colour, rows in _groups(objects, by):
        _add_objects(page, objects[rows], f"{name} ({int(rows.sum()):,})", colour)
    folium.LayerControl(collapsed=False).add_to(page)
    shown = regions if len(objects) == 0 else objects
    if shown is not None and len(shown):
        left, bottom, right, top = shown.to_crs(4326).total_bounds
        page.fit_bounds([(bottom, left), (top, right)])
    return page


def _groups(objects: gpd.GeoDataFrame, by: str) -> Iterator[tuple[str, str, Any]]:
    """Yield name, colour and rows of the layers that hold anything."""
    if by == "class":
        names = objects["class"].astype(str)
        for name, colour in class_colours(names.unique()).items():
            yield html.escape(name), "#{:02x}{:02x}{:02x}".format(*colour[:3]), (names == name)
        return
    score, below = objects["score"].to_numpy(), np.inf
    for least, shade in SCORE_STEPS:
        rows = (score >= least) & (score < below)
        if rows.any():
            yield f"score from {least}", shade, rows
        below = least


def _add_regions(page: folium.Map, regions: gpd.GeoDataFrame) -> None:
    import folium

    known = "count" in regions
    table = gpd.GeoDataFrame(
        {
            "region": [_text(name) for name in _region_names(regions)],
            "objects": regions["count"].to_numpy() if known else "",
        },
        geometry=_lonlat(regions),
        crs=4326,
    )
    folium.GeoJson(
        table.to_json(drop_id=True),
        name=f"regions ({len(regions):,})",
        style_function=lambda _: {"color": "#444444", "weight": 2, "fillOpacity": 0.0},
        tooltip=folium.GeoJsonTooltip(["region", "objects"]),
    ).add_to(page)


def _add_objects(page: folium.Map, objects: gpd.GeoDataFrame, name: str, colour: str) -> None:
    import folium

    table = gpd.GeoDataFrame(
        {
            "object": objects["object_id"].to_numpy(),
            "class": [_text(value) for value in objects["class"]],
            "score": objects["score"].round(3).to_numpy(),
            "m2": objects["area_m2"].round(1).to_numpy(),
        },
        geometry=_lonlat(objects),
        crs=4326,
    )
    style = {"color": colour, "weight": 1, "fillColor": colour, "fillOpacity": 0.35}
    folium.GeoJson(
        table.to_json(drop_id=True),
        name=name,
        style_function=lambda _: style,
        tooltip=folium.GeoJsonTooltip(["object", "class", "score", "m2"]),
    ).add_to(page)


def _lonlat(table: gpd.GeoDataFrame) -> Any:
    """Return geometries in degrees, as the page needs them: simpler, to 7 decimals (1 cm)."""
    shapes = shapely.simplify(table.geometry.to_crs(4326).to_numpy(), SHOWN_DEGREES)
    return shapely.transform(shapes, lambda xy: np.round(xy, 7))
