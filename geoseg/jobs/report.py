"""From a run directory to its page: what is noted for it, and how it is found again."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from geoseg.errors import ConfigError, GeosegError, OutputError
from geoseg.jobs.events import EVENTS
from geoseg.jobs.ledger import MANIFEST, REPORTED, RunDirectory
from geoseg.jobs.parts import PartSummary, read_summary
from geoseg.outputs.report import RunFacts, write_report
from geoseg.outputs.tables import read_vector

if TYPE_CHECKING:
    from geoseg.jobs.plan import RunPlan

REPORT, _REGIONS, _COVERAGE = REPORTED
_ATTRS = b"geoseg_attrs"

log = logging.getLogger(__name__)


def report_run(
    run_dir: Path,
    path: Path | None = None,
    *,
    images: Sequence[Path] = (),
    overwrite: bool = False,
) -> Path:
    """Write the page of a finished run.

    Parameters
    ----------
    run_dir : Path
        The directory of a run of ``geoseg detect``.
    path : Path, optional
        Ends in .html; by default ``report.html`` in the run directory, which may be replaced.
    images : sequence of Path
        Image files, or folders that hold them; the current folder and those around the run
        directory are looked through, too.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ConfigError
        If the directory holds no run, or one that has not finished.
    OutputError
        If the page cannot be written, or exists, or what it is made from is damaged.
    """
    run_dir = Path(run_dir).expanduser()
    manifest = _finished_manifest(run_dir)
    try:
        return _write(run_dir, path, manifest, images, overwrite=overwrite)
    except (GeosegError, MemoryError):
        raise
    except OSError as error:
        raise OutputError(f"the page of {run_dir} cannot be written ({error})") from error
    # a manifest or table with odd values in it: there are more ways than can be looked for
    except Exception as error:
        raise OutputError(
            f"the page of {run_dir} cannot be made ({type(error).__name__}: {error}): {MANIFEST} "
            "or a table there is damaged, or of another version; give the same geoseg detect "
            "command again, with --overwrite if that does not help"
        ) from error


def _write(
    run_dir: Path,
    path: Path | None,
    manifest: dict[str, Any],
    images: Sequence[Path],
    *,
    overwrite: bool,
) -> Path:
    """Collect what is known of a run and write its page."""
    name = str((manifest.get("settings") or {}).get("output") or run_dir.name)
    facts = RunFacts(
        name=name,
        manifest=manifest,
        objects=RunDirectory(run_dir).objects,
        regions=_regions(run_dir, manifest),
        coverage=_coverage(run_dir, manifest),
        image_places=[*images, Path.cwd(), run_dir.parent, run_dir.parent.parent],
        when=_when(run_dir),
        **_imaged(run_dir, manifest),
    )
    if path is None:
        return write_report(run_dir / REPORT, facts, overwrite=True)
    return write_report(path, facts, overwrite=overwrite)


def report_at_end(
    plan: RunPlan,
    run_dir: Path,
    regions: gpd.GeoDataFrame | None,
    coverage: gpd.GeoDataFrame,
    summaries: Sequence[PartSummary],
) -> Path | None:
    """Keep what the page needs in the run directory and write the page; never stop a run.

    Returns
    -------
    Path or None
        The page; None where it could not be made, which a warning says.
    """
    try:
        _keep(run_dir / _REGIONS, regions)
        _keep(run_dir / _COVERAGE, coverage)
        gsd = [image.grid.gsd_m for image in plan.images]
        sizes = [image.tiles.height * image.tiles.width for image in plan.images]
        RunDirectory(run_dir).note(imaged=_imaged_of(summaries, gsd, sizes))
        return report_run(run_dir, images=[Path(image.info.path) for image in plan.images])
    # whatever it is: the night's work is done and written, and a page can be made again
    except Exception as error:
        reason = str(error) or type(error).__name__
        log.warning("the report could not be made (%s); geoseg report tries again", reason)
        log.debug("in full", exc_info=error)
        return None


def _finished_manifest(run_dir: Path) -> dict[str, Any]:
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is no directory; name the run directory of geoseg detect")
    manifest = RunDirectory(run_dir).read_manifest()
    if manifest is None:
        raise ConfigError(
            f"{run_dir} holds no run (no {MANIFEST}); name the directory that geoseg detect made "
            "beside its output, NAME.geoseg-run"
        )
    state = manifest.get("state")
    if state != "finished" or not RunDirectory(run_dir).objects.is_file():
        raise ConfigError(
            f"the run in {run_dir} has not finished (it is {state}); give the same geoseg detect "
            "command again: it goes on from there and makes the report"
        )
    return manifest


# -- tables that are kept ---------------------------------------------------------------------


def _keep(path: Path, table: gpd.GeoDataFrame | None) -> None:
    """Write a table with its attrs beside the parts, whole or not at all."""
    if table is None:
        path.unlink(missing_ok=True)
        return
    private = path.with_name(f".{path.name}.partial")
    try:
        arrow = pa.table(table.to_arrow(geometry_encoding="WKB"))
        kept = dict(arrow.schema.metadata or {})
        about = {"attrs": table.attrs, "crs": pyproj.CRS(table.crs).to_json()}
        kept[_ATTRS] = json.dumps(about, default=str).encode()
        pq.write_table(arrow.replace_schema_metadata(kept), private, compression="zstd")
        private.replace(path)
    finally:
        private.unlink(missing_ok=True)


def _kept(path: Path) -> gpd.GeoDataFrame | None:
    """Read such a table back; None where there is none."""
    if not path.is_file():
        return None
    arrow = pq.read_table(path)
    about = json.loads((arrow.schema.metadata or {})[_ATTRS])
    table = gpd.GeoDataFrame.from_arrow(arrow)
    table = table.set_crs(pyproj.CRS.from_json(about["crs"]), allow_override=True)
    table.attrs = about["attrs"]
    return table


def _regions(run_dir: Path, manifest: dict[str, Any]) -> gpd.GeoDataFrame | None:
    """Return the counted regions: as kept, or of a run before there were reports its output's."""
    settings = manifest.get("settings") or {}
    if "regions" not in settings:
        return None
    kept = _kept(run_dir / _REGIONS)
    if kept is not None:
        return kept
    output = str(settings.get("output", ""))
    path = run_dir.parent / output
    layer = "regions"
    if path.suffix.lower() != ".gpkg":
        path = path.with_name(f"{path.stem}_regions{path.suffix}")
    try:
        table = read_vector(path, layer=layer if path.suffix.lower() == ".gpkg" else None)
    except GeosegError as error:
        log.warning("the counts per region are not in the report: %s", error)
        return None
    total = int(manifest.get("objects") or 0)
    # every run before counted by point
    table.attrs = {
        "rule": "point",
        "total": total,
        "outside": total - int(table["count"].sum()),
        "region_field": _name_field(table),
    }
    return table


def _name_field(table: gpd.GeoDataFrame) -> str | None:
    by_name = {str(c).casefold(): str(c) for c in reversed(table.columns)}
    return next((by_name[n] for n in ("region", "name", "region_id", "id") if n in by_name), None)


def _coverage(run_dir: Path, manifest: dict[str, Any]) -> gpd.GeoDataFrame | None:
    kept = _kept(run_dir / _COVERAGE)
    output = run_dir.parent / str((manifest.get("settings") or {}).get("output", ""))
    if kept is not None or output.suffix.lower() != ".gpkg" or not output.is_file():
        return kept
    try:
        return read_vector(output, layer="coverage", what="coverage")
    except GeosegError as error:
        log.debug("no coverage: %s", error)
        return None


# -- what is known beside the manifest --------------------------------------------------------


def _imaged_of(
    summaries: Sequence[PartSummary], gsd_m: Sequence[float], sizes_px: Sequence[int]
) -> dict[str, float]:
    """Return the ground that was searched: km2, and the share of all pixels."""
    searched_px = [0.0] * len(gsd_m)
    for summary in summaries:
        if summary.imaged and summary.status != "failed":
            searched_px[summary.image] += shapely.from_wkt(summary.imaged).area
    km2 = sum(px * gsd**2 for px, gsd in zip(searched_px, gsd_m, strict=True)) / 1e6
    return {"km2": km2, "share": min(sum(searched_px) / max(sum(sizes_px), 1), 1.0)}


def _imaged(run_dir: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the same as noted, or of an older run from its parts."""
    imaged = manifest.get("imaged")
    if not imaged:
        images = manifest.get("images") or []
        summaries = []
        for path in sorted(RunDirectory(run_dir).parts.glob("*.parquet")):
            try:
                summaries.append(read_summary(path))
            except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, GeosegError):
                continue
        if not summaries or any(s.image >= len(images) for s in summaries):
            return {}
        gsd = [float(i["working_gsd_m"]) for i in images]
        sizes = [int(i["grid_px"][0]) * int(i["grid_px"][1]) for i in images]
        imaged = _imaged_of(summaries, gsd, sizes)
    return {"imaged_km2": float(imaged["km2"]), "images_share": float(imaged["share"])}


def _when(run_dir: Path) -> str:
    """Return when the run ended, from its events, in UTC."""
    try:
        lines = (run_dir / EVENTS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    moments = []
    for line in lines:
        try:
            moments.append(datetime.fromisoformat(json.loads(line)["at"]))
        except (ValueError, KeyError, TypeError):
            continue
    if not moments:
        return ""
    end = moments[-1]
    return f"{end.day} {end:%B %Y, %H:%M} UTC"
