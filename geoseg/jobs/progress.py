"""What the terminal shows: progress on stderr while it runs, the result on stdout at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from geoseg.jobs.demo import DemoResult
    from geoseg.jobs.pipeline import Progress, RunResult

LINE_EVERY_S = 30.0
"""Where stderr is no terminal, a line at most this often."""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a callback that shows progress: a bar in a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _lines(sys.stderr)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("supertiles"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]} detections, ends in"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("run", total=None, found=0)

        def progress(done: int, total: int, found: int) -> None:
            bar.update(task, completed=done, total=total, found=found)

        yield progress


def _lines(stream: TextIO) -> Progress:
    begun = time.monotonic()
    last = -LINE_EVERY_S

    def progress(done: int, total: int, found: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < LINE_EVERY_S:
            return
        last = now
        left = (now - begun) / done * (total - done)
        stream.write(f"{done} of {total} supertiles, {found} detections, {left:.0f} s to go\n")
        stream.flush()

    return progress


def show_result(result: RunResult, *, as_json: bool) -> None:
    """Print what a run found, and numbers that add up."""
    if as_json:
        _print(json.dumps(_as_dict(result), indent=2))
        return
    if result.regions is not None:
        _show_counts(result)
    tiles = result.tiles
    empty = tiles.get("empty", 0)
    parts = [
        f"{tiles.get('done', 0) + empty} done ({empty} without objects)",
        f"{tiles.get('nodata', 0)} nodata",
        f"{tiles.get('outside', 0)} outside the AOI",
        f"{tiles.get('failed', 0)} failed",
    ]
    _print(f"{sum(tiles.values())} supertiles: {', '.join(parts)}")
    for note in result.notes:
        _print(f"note: {note}")
    if result.exit_code:
        _print(
            "supertiles failed: see the coverage layer; the same command with --overwrite tries "
            "them again, and only them"
        )
    _print(
        f"{len(result.objects)} objects in {result.seconds:.0f} s, "
        f"largest process {result.peak_mb / 1000:.2f} GB: {result.output}"
    )


def _as_dict(result: RunResult) -> dict[str, Any]:
    values: dict[str, Any] = {
        "output": str(result.output),
        "run_dir": str(result.run_dir),
        "objects": len(result.objects),
        "supertiles": result.tiles,
        "saturated_tiles": result.saturated,
        "seconds": round(result.seconds, 2),
        "peak_mb": result.peak_mb,
        "notes": list(result.notes),
    }
    if result.regions is not None:
        values["regions"] = json.loads(
            result.regions.drop(columns="geometry").to_json(orient="records")
        )
        values["outside"] = int(result.regions.attrs["outside"])
    return values


def _show_counts(result: RunResult) -> None:
    regions = result.regions
    if regions is None:
        return
    names = _names(regions)
    rows = [
        [name, f"{row['count']:g}", f"{row['density_km2']:.0f}", f"{row['imaged_share']:.0%}"]
        for name, (_, row) in zip(names, regions.iterrows(), strict=True)
    ]
    outside = int(regions.attrs["outside"])
    rows += [["outside", str(outside), "", ""], ["all", str(len(result.objects)), "", ""]]
    _table(["region", "objects", "per km2", "imaged"], rows)


def _names(regions: Any) -> list[str]:
    """Return what to call the regions: their name field, or their number."""
    field = regions.attrs.get("region_field")
    values = regions[field] if field else range(1, len(regions) + 1)
    return [str(value) for value in values]


def show_demo(result: DemoResult) -> None:
    """Print the demo's table: objects and truth per region, quality, seconds, files."""
    counts = result.counts
    rows = [
        [name, str(int(row["count"])), str(int(row["truth"]))]
        for name, (_, row) in zip(_names(counts), counts.iterrows(), strict=True)
    ]
    rows.append(["outside", *(str(n) for n in result.outside)])
    n_truth = int(counts["truth"].sum()) + result.outside[1]
    rows.append(["all", str(len(result.run.objects)), str(n_truth)])
    _table(["region", "objects", "truth"], rows)
    q = result.quality
    _print(
        f"precision {q.precision:.3f}, recall {q.recall:.3f}, F1 {q.f1:.3f} at IoU 0.5 "
        f"(inside the AOI: {q.n_objects} objects, {q.n_truth} in truth)"
    )
    _print(
        f"{result.render_s:.0f} s to render, {result.run.seconds:.0f} s to find, join and count; "
        f"largest process {result.run.peak_mb / 1000:.2f} GB"
    )
    files = {
        "image": result.town.image,
        "truth": result.town.footprints,
        "regions": result.town.regions,
        "objects": result.run.output,
        "picture": result.picture,
    }
    for name, path in files.items():
        _print(f"{name + ':':9}{path}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        _print("  ".join(cells).rstrip())


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
