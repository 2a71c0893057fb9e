"""Detectors for tests of the whole path; factories read what to do from the environment.

``STUB_CALLS`` names a file that gets a line for each tile seen, in whatever process. With
``STUB_POISON`` a tile that shows the painted object of that id fails, with ``STUB_KILL`` it kills
its process; ``STUB_SLEEP`` is a pause for each tile, seconds; ``STUB_GATE`` names a file without
which no tile is looked at.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from distributed.chaos import KillWorker
from painted import PaintedDetector
from scipy import ndimage

from geoseg.records import Instances


class Stub(PaintedDetector):
    """The exact detector over painted pixels, which counts its tiles and may fail or be slow."""

    fingerprint = "stub"

    def __init__(
        self,
        calls: str | None = None,
        poison: int | None = None,
        sleep: float = 0.0,
        kill: int | None = None,
        gate: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.calls, self.poison, self.sleep, self.kill = calls, poison, sleep, kill
        self.gate = gate

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        while self.gate and not Path(self.gate).exists():
            time.sleep(0.02)
        time.sleep(self.sleep * len(tiles))
        if self.calls:
            with Path(self.calls).open("a", encoding="utf-8") as file:
                file.write("tile\n" * len(tiles))
        if self.poison is not None and (tiles[:, 0] == self.poison).any():
            raise ValueError("a tile that it cannot stand")
        if self.kill is not None and (tiles[:, 0] == self.kill).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tiles)


class Capped(Stub):
    """The exact detector, but with room for few objects a tile, best first."""

    def __init__(self, cap: int, **kwargs):
        super().__init__(**kwargs)
        self.cap = cap

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [
            Instances(
                found.boxes[: self.cap],
                found.scores[: self.cap],
                found.labels[: self.cap],
                found.masks[: self.cap],
                saturated=len(found) >= self.cap,
            )
            for found in super().__call__(tiles)
        ]


def make() -> Stub:
    """Make a detector as the environment says."""
    ids = {name: os.environ.get(f"STUB_{name.upper()}") for name in ("poison", "kill")}
    return Stub(
        os.environ.get("STUB_CALLS"),
        sleep=float(os.environ.get("STUB_SLEEP", "0")),
        gate=os.environ.get("STUB_GATE"),
        **{name: None if value is None else int(value) for name, value in ids.items()},
    )


def broken() -> Stub:
    raise RuntimeError("no licence key")


def no_detector() -> str:
    return "a string"


class KillFew(KillWorker):
    """Kills workers at random moments, but not for ever: a busy machine starts them slowly.

    Parameters
    ----------
    tokens : Path
        An empty folder; each worker that is to die leaves a file there.
    most : int
        Workers that die.
    """

    def __init__(self, tokens: Path, most: int, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.most = tokens, most

    async def setup(self, worker):
        for number in range(self.most):
            with suppress(FileExistsError):
                (self.tokens / str(number)).touch(exist_ok=False)
                await super().setup(worker)
                return


class Bright:
    """Finds pieces brighter than 100 in the first band; knows no pixel size."""

    classes = ("bright",)

    def __call__(self, tiles: np.ndarray) -> list[Instances]:
        return [self.find(tile[0] > 100) for tile in tiles]

    def find(self, mask: np.ndarray) -> Instances:
        pieces, n = ndimage.label(mask)
        places = ndimage.find_objects(pieces)
        if n == 0:
            return Instances.empty()
        return Instances(
            boxes=np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.float32),
            scores=np.full(n, 0.9, np.float32),
            labels=np.zeros(n, np.int64),
            masks=[(pieces[at] == i + 1).astype(np.float32) for i, at in enumerate(places)],
        )
