"""What the page of a run costs: seconds to make, bytes, seconds to open in Chromium.

    python benchmarks/report_page.py RUN_DIR [--images FOLDER] [--objects 100000]

RUN_DIR is a finished run of geoseg detect. The second row has as many objects as wanted: those of
the run, strewn over the ground around it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
import shapely.affinity
from common import machine, table, write

from geoseg.jobs.memory import peak_mb
from geoseg.jobs.report import report_run
from geoseg.outputs.tables import ObjectsWriter, objects_to_arrow

CHROMIUM = Path("/usr/bin/chromium")
OPENINGS = 5


def strew(source: Path, target: Path, count: int) -> None:
    """Write as many objects as wanted: the run's own, moved at random over 19 times its ground."""
    found = gpd.read_parquet(source / "objects.parquet")
    rng = np.random.default_rng(7)
    rows = found.iloc[rng.integers(0, len(found), count)].reset_index(drop=True)
    left, bottom, right, top = found.total_bounds
    size = np.array([right - left, top - bottom]) * 19**0.5
    centres = shapely.get_coordinates(shapely.centroid(rows.geometry.to_numpy()))
    moves = [left, bottom] + rng.uniform(0, 1, (count, 2)) * size - centres
    moved = [
        shapely.affinity.translate(shape, *move)
        for shape, move in zip(rows.geometry, moves, strict=True)
    ]
    rows = rows.set_geometry(gpd.GeoSeries(moved, crs=found.crs))
    rows["object_id"] = np.arange(1, count + 1)
    rows["uid"] = [f"{i:032x}" for i in range(count)]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("parts", "*.html", "objects.*"))
    (target / "parts").mkdir()
    with ObjectsWriter(target / "objects.parquet", found.crs) as writer:
        for first in range(0, count, 20_000):
            writer.write(objects_to_arrow(rows.iloc[first : first + 20_000]))


def opening_s(page: Path) -> float | None:
    """Return the median seconds until Chromium has loaded a page from disk and drawn a frame."""
    if find_spec("playwright") is None or not CHROMIUM.exists():
        return None
    from playwright.sync_api import sync_playwright

    drawn = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))"
    seconds = []
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for _ in range(OPENINGS):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            begun = time.perf_counter()
            tab.goto(page.as_uri())
            tab.evaluate(drawn)
            seconds.append(time.perf_counter() - begun)
            tab.close()
        browser.close()
    return float(np.median(seconds))


def measure(run_dir: Path, images: Path, page: Path) -> dict[str, float | None]:
    begun, cpu = time.perf_counter(), time.process_time()
    report_run(run_dir, page, images=[images])
    return {
        "made_s": round(time.perf_counter() - begun, 2),
        "made_cpu_s": round(time.process_time() - cpu, 2),
        "mb": round(page.stat().st_size / 1e6, 1),
        "opened_s": None if (s := opening_s(page)) is None else round(s, 2),
        "peak_mb": round(peak_mb()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=Path, default=Path())
    parser.add_argument("--objects", type=int, default=100_000)
    options = parser.parse_args()
    n_own = len(gpd.read_parquet(options.run_dir / "objects.parquet", columns=["geometry"]))
    with tempfile.TemporaryDirectory() as scratch:
        own = measure(options.run_dir, options.images, Path(scratch) / "own.html")
        strew(options.run_dir, Path(scratch) / "many", options.objects)
        many = measure(Path(scratch) / "many", options.images, Path(scratch) / "many.html")
    rows = [
        [name, f"{n:,}", *found.values()]
        for name, n, found in (
            (options.run_dir.name.partition(".")[0], n_own, own),
            (
                "the same imagery, its objects strewn over 19 times the ground",
                options.objects,
                many,
            ),
        )
    ]
    head = ["", "objects", "seconds to make", "of CPU", "page, MB", "seconds to open", "peak, MB"]
    text = (
        "# The page of a run\n\n`python benchmarks/report_page.py RUN_DIR --images FOLDER`: opened "
        f"from disk in headless Chromium without a graphics card, median of {OPENINGS}, until the "
        "first frame is drawn. The peak is that of the whole process so far.\n\n"
        + table(head, rows)
        + f"\n\n{machine()}\n"
    )
    write("report_page", text, {"own": own | {"objects": n_own},
                                "many": many | {"objects": options.objects}})  # fmt: skip


if __name__ == "__main__":
    main()
