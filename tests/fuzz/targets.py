"""What a case runs: verbs of the command line, and calls of the API that no verb makes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from geoseg.cli.main import main
from geoseg.errors import GeosegError
from geoseg.records import Instances


class Halves:
    """Finds the brighter half of each tile, and says so twice where the tile is dark."""

    classes = ("thing", "other")
    fingerprint = "halves"
    tile_size = 32
    overlap = 8

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [self._find(tile) for tile in tiles]

    def _find(self, tile: np.ndarray) -> Instances:
        height, width = tile.shape[1:]
        box = [2, 2, width // 2, height - 2]
        n = 1 if np.nan_to_num(tile[0].astype(np.float64)).mean() > 100 else 2
        masks = np.ones((n, 7, 7), np.float32)
        masks[:, 0, :3] = 0.1
        return Instances(
            np.array([box] * n, np.float32),
            np.linspace(0.9, 0.6, n, dtype=np.float32),
            np.arange(n),
            masks,
        )


def detector() -> Halves:
    """Make the detector; ``--detector fuzz.targets:detector``."""
    return Halves()


def look_at_run(path: str) -> None:
    """Open a run and read all that it has, as a notebook does."""
    from geoseg.runs import open_run

    run = open_run(path)
    repr(run)
    run._repr_html_()
    len(run.objects)
    len(run.coverage)
    assert run.regions is None or len(run.regions) >= 0
    assert run.n_objects >= 0


def look_at_labels(path: str) -> None:
    """Read a training file and its sites, and cut two chips."""
    from geoseg.learning.chips import ChipSampler
    from geoseg.learning.labels import load_site
    from geoseg.learning.train import read_training_file

    file = read_training_file(Path(path))
    settings = file.settings
    sites = [load_site(Path(path).parent, s, settings.gsd_m, settings.classes) for s in file.sites]
    sampler = ChipSampler(sites, min(settings.chip_px, 128), settings.seed, settings.augmentation)
    for number in range(2):
        sampler.chip(number)


def load(path: str, config: str = "") -> None:
    """Load a model as a detector."""
    from geoseg.models.registry import load_model

    load_model(path, config=config or None, device="cpu")


def go_bad(how: str) -> None:
    """Do what no case may do, so that the tests see it found."""
    if how == "raise":
        raise KeyError("x")
    if how == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(60)
    if how == "memory":
        bytearray(1 << 36)
    if how == "write":
        Path("../left.txt").write_text("x", encoding="ascii")
    if how == "code":
        os._exit(70)


CALLS: dict[str, Callable[..., None]] = {
    "call:run": look_at_run,
    "call:labels": look_at_labels,
    "call:load": load,
    "call:bad": go_bad,
}


def run_command(command: Sequence[str]) -> int:
    """Run a verb, or one of `CALLS`, which end as a verb would."""
    call = CALLS.get(command[0])
    if call is None:
        return main(list(command))
    try:
        call(*command[1:])
    except GeosegError as error:
        sys.stderr.write(f"geoseg: error: {error}\n")
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # as the command line does
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        sys.stderr.write(
            f"geoseg: internal error: {type(error).__name__}: {error} "
            f"({Path(where.filename).name}:{where.lineno})\n"
        )
        return 1
    return 0
