"""Objects on overlapping images, joined out of core: gathered on disk, swept from strip to strip.

Only objects on ground that two images show take part; `geoseg.objects.sheets` has the rules. A
group of them that meet across images is decided when the sweep has passed its end, so that memory
holds one strip and what reaches out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.imagery.georef import geodesic_area_perimeter
from geoseg.objects.sheets import Sheets, join_sheets, seen_areas
from geoseg.records import GeometryArray, IntArray

STRIP_OBJECTS = 50_000
"""Objects of a strip, about; bounds memory."""
MAX_STRIPS = 256
"""Files open at a time."""

_COLUMNS = ("class", "score", "n_parts", "touches_edge", "geometry")


class SheetJoin:
    """Decides which objects of several images are the same, and applies that to their tables.

    Every table is given twice, in the same order: to `add`, and after `join` to `apply`.

    Parameters
    ----------
    footprints : sequence of geometry
        Imaged area of each image, output CRS.
    near : float
        An object this near to the end of its image's area may be cut off, CRS units.
    crs_wkt : str
        Of the output.
    folder : Path
        Where strips are kept meanwhile.
    n_objects : int
        Of all images; decides the number of strips.
    """

    def __init__(
        self,
        footprints: Sequence[shapely.Geometry],
        near: float,
        crs_wkt: str,
        folder: Path,
        n_objects: int,
    ) -> None:
        self.footprints, self.near, self.crs_wkt = list(footprints), near, crs_wkt
        self._folder = folder
        self._shared = _shared_ground(seen_areas(self.footprints, near))
        strips = min(MAX_STRIPS, -(-n_objects // STRIP_OBJECTS))
        _, low, _, high = shapely.total_bounds(self._shared)
        self._edges = np.linspace(low, high, max(1, strips) + 1)[1:-1]
        self._files: dict[int, Any] = {}
        self._seen = [0] * len(self.footprints)
        self._dropped: list[IntArray] = []
        self._changed: list[dict[int, dict[str, Any]]] = [{} for _ in self.footprints]

    def add(self, sheet: int, table: pa.Table) -> None:
        """Keep those of an image's objects that another image may show."""
        first = self._seen[sheet]
        self._seen[sheet] += len(table)
        polygons = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
        rows = np.flatnonzero(shapely.intersects(self._shared[sheet], polygons))
        if len(rows) == 0:
            return
        strip = np.searchsorted(self._edges, shapely.bounds(polygons[rows])[:, 1], side="right")
        kept = (
            table.select(_COLUMNS)
            .take(rows)
            .append_column("place", pa.array(first + rows, pa.int64()))
            .append_column("sheet", pa.array(np.full(len(rows), sheet), pa.int64()))
        )
        for number in np.unique(strip).tolist():
            mine = kept.take(np.flatnonzero(strip == number))
            if number not in self._files:
                self._files[number] = pa.ipc.new_stream(self._strip(number), mine.schema)
            self._files[number].write_table(mine)

    def _strip(self, number: int) -> Path:
        return self._folder / f"strip-{number}.arrow"

    def join(self) -> None:
        """Decide; after all tables were added."""
        for file in self._files.values():
            file.close()
        dropped: list[list[IntArray]] = [[] for _ in self.footprints]
        waiting: pa.Table | None = None
        for number in range(len(self._edges) + 1):
            tables = [] if waiting is None else [waiting]
            if number in self._files:
                with pa.memory_map(str(self._strip(number))) as file:
                    tables.append(pa.ipc.open_stream(file).read_all())
            if not tables:
                continue
            table = pa.concat_tables(tables).sort_by(
                [("sheet", "ascending"), ("place", "ascending")]
            )
            polygons = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
            last = number == len(self._edges)
            end = np.inf if last else self._edges[number]
            closed = _closed(polygons, table["sheet"].to_numpy(), end)
            self._decide(table.filter(pa.array(closed)), polygons[closed], dropped)
            waiting = table.filter(pa.array(~closed))
        self._dropped = [np.sort(np.concatenate([np.zeros(0, np.int64), *d])) for d in dropped]

    def _decide(self, table: pa.Table, polygons: Any, dropped: list[list[IntArray]]) -> None:
        """Join whole groups of objects that meet."""
        sheet, place = table["sheet"].to_numpy(), table["place"].to_numpy()
        classes = table["class"].to_numpy(zero_copy_only=False).astype(str)
        joined = join_sheets(
            Sheets(
                polygons=polygons,
                scores=table["score"].to_numpy(),
                labels=np.unique(classes, return_inverse=True)[1].reshape(-1),
                sheet=sheet,
                footprints=self.footprints,
                near=self.near,
            )
        )
        gone = np.ones(len(table), bool)
        gone[joined.rows] = False
        for number, mine in enumerate(dropped):
            mine.append(place[gone & (sheet == number)])
        several = [k for k, members in enumerate(joined.parts) if len(members) > 1]
        areas = geodesic_area_perimeter(joined.polygons[several], self.crs_wkt)
        n_parts = table["n_parts"].to_numpy()
        at_edge = table["touches_edge"].to_numpy(zero_copy_only=False)
        for k, area, perimeter in zip(several, *areas, strict=True):
            row, members = joined.rows[k], joined.parts[k]
            self._changed[sheet[row]][int(place[row])] = {
                "area_m2": round(float(area), 3),
                "perimeter_m": round(float(perimeter), 3),
                "n_parts": int(n_parts[members].sum()),
                "touches_edge": bool(at_edge[members].any()),
                "geometry": shapely.to_wkb(joined.polygons[k]),
            }

    def apply(self, sheet: int, table: pa.Table, first: int) -> pa.Table:
        """Return an image's table without what another image shows better, joined outlines in.

        Parameters
        ----------
        sheet : int
            Number of the image.
        table : Table
            As given to `add`.
        first : int
            Objects of this image in the tables before.
        """
        changed = self._changed[sheet]
        places = range(first, first + len(table))
        rows = [place - first for place in places if place in changed] if changed else []
        if rows:
            for name in ("area_m2", "perimeter_m", "n_parts", "touches_edge", "geometry"):
                column = table[name].to_pylist()
                for row in rows:
                    column[row] = changed[first + row][name]
                index = table.column_names.index(name)
                kind = table.schema.field(name)
                table = table.set_column(index, kind, pa.array(column, kind.type))
        gone = self._dropped[sheet]
        low, high = np.searchsorted(gone, [first, first + len(table)])
        if low == high:
            return table
        keep = np.ones(len(table), bool)
        keep[gone[low:high] - first] = False
        return table.filter(pa.array(keep))


def _shared_ground(areas: GeometryArray) -> list[shapely.Geometry]:
    """Return for each image the part of its area that others show too."""
    tree = shapely.STRtree(areas)
    shared = []
    for number, area in enumerate(areas):
        others = np.setdiff1d(tree.query(area, predicate="intersects"), [number])
        common = shapely.intersection(area, areas[others])
        # images that only touch share nothing
        shared.append(shapely.union_all(common[shapely.area(common) > 0]))
    shapely.prepare(shared)
    return shared


def _closed(polygons: Any, sheet: IntArray, end: float) -> Any:
    """Say which objects belong to groups that lie below `end` as a whole."""
    a, b = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    across = sheet[a] != sheet[b]
    n = len(polygons)
    links = coo_array((np.ones(np.count_nonzero(across)), (a[across], b[across])), shape=(n, n))
    count, group = connected_components(links, directed=False)
    top = np.full(count, -np.inf)
    np.maximum.at(top, group, shapely.bounds(polygons).reshape(-1, 4)[:, 3])
    return (top < end)[group]
