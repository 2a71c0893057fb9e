"""What a report is made from: all that is known of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyproj


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A finished run, as its directory tells it.

    ``manifest`` is what stands in ``run.json``; a key that is missing (an older run) leaves its
    part of the page out.
    """

    name: str
    """What the run is called: the name of its output."""
    manifest: Mapping[str, Any]
    objects: Path
    """The file of `geoseg.outputs.tables.ObjectsWriter`."""
    regions: gpd.GeoDataFrame | None = None
    """With counts, and the ``attrs`` of `geoseg.objects.count.count`."""
    coverage: gpd.GeoDataFrame | None = None
    """One row per supertile."""
    image_places: Sequence[Path] = ()
    """Files and folders where the images may be."""
    imaged_km2: float | None = None
    """Ground that was searched."""
    images_share: float | None = None
    """Share of the images' pixels that was searched."""
    when: str = ""
    """When it ran, for people."""
    picture_notes: Sequence[str] = field(default=())
    """What is to say about imagery that is missing."""

    @property
    def images(self) -> list[Mapping[str, Any]]:
        """Return the images, in the run's order."""
        return list(self.manifest.get("images", []))

    @property
    def model(self) -> Mapping[str, Any]:
        """Return what is known of the model."""
        model = self.manifest.get("model")
        return model if isinstance(model, Mapping) else {}

    @property
    def model_name(self) -> str:
        """Return the model's name."""
        return str(self.model.get("name", ""))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what the run was told."""
        return dict(self.manifest.get("settings", {}))

    @property
    def seconds(self) -> Mapping[str, float]:
        """Return the time that stages took."""
        return {k: float(v) for k, v in (self.manifest.get("seconds") or {}).items()}

    @property
    def supertiles(self) -> Mapping[str, int]:
        """Return how many supertiles ended in which state."""
        return dict(self.manifest.get("supertiles") or {})

    @property
    def failed_supertiles(self) -> int:
        """Return how many supertiles failed as a whole."""
        return int(self.supertiles.get("failed", 0))

    @property
    def failed_tiles(self) -> list[Mapping[str, Any]]:
        """Return the single tiles that were left out."""
        return list(self.manifest.get("failed_tiles") or [])

    @property
    def failed_places(self) -> list[list[str]]:
        """Return image, place and reason of supertiles that failed as a whole."""
        if self.coverage is None or "status" not in self.coverage:
            return []
        lost = self.coverage[self.coverage["status"] == "failed"]
        return [
            [str(row["image"]), f"block row {row['row']}, column {row['col']}", str(row["reason"])]
            for _, row in lost.iterrows()
        ]

    @property
    def saturated(self) -> int:
        """Return how many tiles reached a cap of the detector."""
        return int(self.manifest.get("saturated_tiles") or 0)

    @property
    def saturated_places(self) -> list[Mapping[str, Any]]:
        """Return image, tile and window of those."""
        return list(self.manifest.get("saturated_places") or [])

    @property
    def capped(self) -> int:
        """Return how many quarters of tiles reached the cap even so."""
        if self.coverage is None or "quarters_capped" not in self.coverage:
            return 0
        return int(self.coverage["quarters_capped"].sum())

    @property
    def notes(self) -> list[str]:
        """Return what the run said that the user should know."""
        return [str(note) for note in self.manifest.get("notes") or []]

    @property
    def seams(self) -> Mapping[str, Any]:
        """Return the run's report on its seams."""
        return dict(self.manifest.get("seams") or {})

    @property
    def peak_mb(self) -> float:
        """Return the largest resident memory of any process."""
        return float(self.manifest.get("peak_mb") or 0)

    @property
    def version(self) -> str:
        """Return geoseg's version."""
        return str(self.manifest.get("geoseg", ""))

    @property
    def python(self) -> str:
        """Return Python's version."""
        return str(self.manifest.get("python", ""))

    @property
    def packages(self) -> Mapping[str, str]:
        """Return the versions of what did the work."""
        return dict(self.manifest.get("packages") or {})

    @property
    def imaged_of_regions(self) -> bool:
        """Tell whether the imaged share is that of the regions."""
        return self._regions_share() is not None

    @property
    def imaged_share(self) -> float | None:
        """Return the share of the regions' area that was imaged, else of the images' pixels."""
        share = self._regions_share()
        return self.images_share if share is None else share

    def _regions_share(self) -> float | None:
        table = self.regions
        if table is None or not {"imaged_share", "region_area_km2"} <= set(table.columns):
            return None
        known = table[table["imaged_share"].notna()]
        area = float(known["region_area_km2"].sum())
        if not area:
            return None
        return min(float((known["imaged_share"] * known["region_area_km2"]).sum()) / area, 1.0)

    def crs_name(self, image: Mapping[str, Any]) -> str:
        """Return the name of an image's CRS."""
        try:
            return str(pyproj.CRS.from_wkt(str(image.get("crs", ""))).name)
        except pyproj.exceptions.CRSError:
            return ""
