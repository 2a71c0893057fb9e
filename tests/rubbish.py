"""Detectors that keep no promise; ``RUBBISH`` in the environment names what is wrong with them."""

from __future__ import annotations

import locale
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geoseg.records import Instances


class NoPickleError(Exception):
    """Holds what cannot travel between processes, and cannot be made from its text."""

    def __init__(self, text: str, lock: object) -> None:
        super().__init__(text)
        self.lock = lock


class ShyError(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def one(
    boxes: Any = ((40, 40, 60, 60),), scores: Any = (0.9,), labels: Any = (0,), masks: Any = None
) -> Instances:
    """Return a record of one object, with columns of numpy's own choice of type."""
    rows = np.asarray(boxes)
    return Instances(
        boxes=rows if rows.dtype.kind not in "fi" else rows.astype(np.float32),
        scores=np.asarray(scores),
        labels=np.asarray(labels),
        masks=np.ones((len(rows), 4, 4), np.float32) if masks is None else masks,
    )


def unchecked(**columns: Any) -> Instances:
    """Return a record that was changed after it was made."""
    made = one()
    for name, value in columns.items():
        object.__setattr__(made, name, value)
    return made


@dataclass
class Duck:
    """Looks like Instances, and checks nothing."""

    boxes: Any
    scores: Any
    labels: Any
    masks: Any
    saturated: bool = False

    def __len__(self) -> int:
        return len(self.boxes)


def _raise(error: BaseException) -> Any:
    raise error


def _recurse(depth: int) -> Any:
    return _recurse(depth + 1)


def _meddle() -> Instances:
    """Change what belongs to the whole process, and find one object."""
    import torch

    sys.stdout.write("DETECTOR WROTE THIS\n")
    print("AND \x1b[31mTHIS")
    os.chdir("/")
    os.environ["LC_ALL"] = "de_DE.UTF-8"
    locale.setlocale(locale.LC_NUMERIC, "C")
    np.seterr(all="raise")
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    np.set_printoptions(precision=1)
    sys.setrecursionlimit(400)
    return one()


F = np.float32
NAN = float("nan")
KINDS: dict[str, Callable[[int], Any]] = {
    # what is no list of records
    "none": lambda n: None,
    "tuple": lambda n: tuple(one() for _ in range(n)),
    "generator": lambda n: (one() for _ in range(n)),
    "too-few": lambda n: [one() for _ in range(n - 1)],
    "too-many": lambda n: [one() for _ in range(n + 1)],
    "of-none": lambda n: [None] * n,
    "dicts": lambda n: [{"boxes": []}] * n,
    "duck": lambda n: [Duck(*[np.zeros(0)] * 4)] * n,
    # what a record refuses when it is made
    "nan-box": lambda n: [one(boxes=[(NAN, 0, 5, 5)])] * n,
    "inf-box": lambda n: [one(boxes=[(0, 0, float("inf"), 5)])] * n,
    "nan-score": lambda n: [one(scores=[NAN])] * n,
    "score-over-1": lambda n: [one(scores=[1.5])] * n,
    "score-below-0": lambda n: [one(scores=[-0.1])] * n,
    "label-negative": lambda n: [one(labels=[-1])] * n,
    "label-float": lambda n: [one(labels=[0.5])] * n,
    "label-text": lambda n: [one(labels=["roof"])] * n,
    "score-text": lambda n: [one(scores=["0.9"])] * n,
    "boxes-3-columns": lambda n: [one(boxes=[(1, 2, 3)])] * n,
    "boxes-text": lambda n: [one(boxes=[("a", "b", "c", "d")])] * n,
    "lengths-differ": lambda n: [one(scores=[0.9, 0.8])] * n,
    "mask-1d": lambda n: [one(masks=np.ones((1, 4), F))] * n,
    "mask-4d": lambda n: [one(masks=np.ones((1, 1, 4, 4), F))] * n,
    "mask-empty": lambda n: [one(masks=np.ones((1, 0, 4), F))] * n,
    "mask-missing": lambda n: [one(masks=[])] * n,
    "masks-none": lambda n: [one(masks=[None])] * n,
    "boxes-list": lambda n: [Instances([(40, 40, 60, 60)], [0.9], [0], np.ones((1, 4, 4)))] * n,
    "scores-2d": lambda n: [one(scores=[[0.9]])] * n,
    "labels-2d": lambda n: [one(labels=[[0]])] * n,
    "scores-bool": lambda n: [one(scores=[True])] * n,
    "scores-complex": lambda n: [one(scores=[0.9 + 1j])] * n,
    "saturated-text": lambda n: [unchecked(saturated="no")] * n,
    # what passes there
    "label-too-large": lambda n: [one(labels=[7])] * n,
    "changed-nan": lambda n: [unchecked(boxes=np.full((1, 4), NAN, F))] * n,
    "changed-shorter": lambda n: [unchecked(scores=np.zeros(0, F))] * n,
    "box-turned": lambda n: [one(boxes=[(60, 60, 40, 40)])] * n,
    "box-no-area": lambda n: [one(boxes=[(50, 50, 50, 50)])] * n,
    "box-outside": lambda n: [one(boxes=[(-500, -500, -400, -400)])] * n,
    "box-far": lambda n: [one(boxes=[(1e30, 1e30, 2e30, 2e30)])] * n,
    "box-huge": lambda n: [one(boxes=[(-1e30, -1e30, 1e30, 1e30)])] * n,
    "mask-nan": lambda n: [one(masks=np.full((1, 4, 4), NAN, F))] * n,
    "mask-inf": lambda n: [one(masks=np.full((1, 4, 4), np.inf, F))] * n,
    "mask-over-1": lambda n: [one(masks=np.full((1, 4, 4), 1e30, F))] * n,
    "mask-logits": lambda n: [one(masks=np.full((1, 4, 4), -3.0, F))] * n,
    "mask-text": lambda n: [one(masks=np.full((1, 4, 4), "x"))] * n,
    "mask-huge": lambda n: [one(masks=np.ones((1, 9000, 9000), np.uint8))] * n,
    # what is fine
    "mask-bool": lambda n: [one(masks=np.ones((1, 4, 4), bool))] * n,
    "mask-1-cell": lambda n: [one(masks=np.ones((1, 1, 1), F))] * n,
    "nothing": lambda n: [Instances.empty()] * n,
    "meddles": lambda n: [_meddle() for _ in range(n)],
    # what raises
    "value-error": lambda n: _raise(ValueError("with\nlines and \x1b[31mcolour")),
    "memory-error": lambda n: _raise(MemoryError()),
    "recursion": lambda n: _recurse(0),
    "no-pickle": lambda n: _raise(NoPickleError("stuck", threading.Lock())),
    "shy": lambda n: _raise(ShyError()),
    "stop-iteration": lambda n: _raise(StopIteration(3)),
    "timeout": lambda n: _raise(TimeoutError()),
    "system-exit": lambda n: _raise(SystemExit(0)),
    "keyboard": lambda n: _raise(KeyboardInterrupt()),
    "generator-exit": lambda n: _raise(GeneratorExit()),
    "base": lambda n: _raise(BaseException("bare")),
}


class Rubbish:
    """Does what its kind says at every call."""

    fingerprint = "rubbish"

    def __init__(self, kind: str, classes: Any = ("roof",)) -> None:
        self.kind, self.classes = kind, classes
        self.kept = np.zeros((1, 4), np.float32)

    def __call__(self, tiles: np.ndarray) -> Sequence[Instances]:
        if self.kind == "reused":
            found = []
            for tile in tiles:
                # one array for all tiles: the last one's box
                self.kept[:] = (10, 10, 10 + float(tile[0].max()) / 10, 30)
                found.append(one(boxes=self.kept))
            return found
        if self.kind == "writes-tiles":
            tiles[:] = 255
            return [one() for _ in tiles]
        return KINDS[self.kind](len(tiles))


CLASSES: dict[str, Any] = {
    "list": ["roof"],
    "text": "roof",
    "empty": (),
    "empty-name": ("",),
    "twice": ("roof", "roof"),
    "numbers": (1, 2),
    "none": (None,),
    "bytes": (b"roof",),
    "surrogate": ("a\udc80b",),
    "nul": ("a\0b",),
}


def make() -> Rubbish:
    """Make the detector that the environment names."""
    return Rubbish(os.environ["RUBBISH"])


def make_classes() -> Rubbish:
    """Make a detector with odd classes."""
    return Rubbish("mask-bool", CLASSES[os.environ["RUBBISH"]])


def __getattr__(name: str) -> Callable[[], Rubbish]:
    """Return the factory of a kind: ``rubbish:kind_mask_nan``, ``rubbish:classes_twice``."""
    head, _, kind = name.partition("_")
    kind = kind.replace("_", "-")
    if head == "kind" and kind in KINDS:
        return lambda: Rubbish(kind)
    if head == "classes" and kind in CLASSES:
        return lambda: Rubbish("mask-bool", CLASSES[kind])
    raise AttributeError(name)
