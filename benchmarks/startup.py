"""How long geoseg takes to begin: its help, the libraries alone, and a run on one tile.

    python benchmarks/startup.py [--runs 5]

Each is a process of its own, as a user starts it. The raster is one tile of a rendered town, so
that one worker is enough, which is the process itself. Writes docs/benchmarks/startup.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, machine, table, write

from geoseg.scenes.town import render_town

SIDE_PX = 768
"""One tile."""


def seconds(command: list[str], folder: Path) -> float:
    """Return the seconds of a process, from its start to its end; nothing of a last run is left."""
    for path in folder.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    geoseg = [sys.executable, "-m", "geoseg.cli.main"]
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as name:
        folder = Path(name)
        tiny = render_town(folder / "tiny", width_px=SIDE_PX, height_px=SIDE_PX).image
        detect = [*geoseg, "detect", str(tiny), "-o", "out.gpkg"]
        ways = {
            "geoseg --help": [*geoseg, "--help"],
            "python -c 'import torch, torchvision'": [
                sys.executable, "-c", "import torch, torchvision",
            ],
            "geoseg detect": detect,
            "geoseg detect --no-report": [*detect, "--no-report"],
        }  # fmt: skip
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, command in ways.items():
                took[way].append(seconds(command, folder))
    rows = [
        (f"`{way}`", f"{statistics.median(all_s):.2f}", f"{min(all_s):.2f} to {max(all_s):.2f}")
        for way, all_s in took.items()
    ]
    text = (
        f"# Start-up\n\n`python benchmarks/startup.py --runs {runs}` on {machine()}. Each is a "
        f"process of its own, from its start to its end; the raster is one tile of {SIDE_PX} px; "
        f"medians of {runs} runs, in turn, files already in the system's cache.\n\n"
        + table(("command", "seconds", "range"), rows)
    )
    write("startup", text, {way: [round(s, 3) for s in all_s] for way, all_s in took.items()})


if __name__ == "__main__":
    main()
