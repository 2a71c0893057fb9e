"""The threads that detectors run on: who is called from where, and in which order results come."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from affine import Affine
from painted import blob_scene
from stubs import Capped

from geoseg.config import DetectSettings
from geoseg.errors import GeosegError
from geoseg.jobs import capacity, lanes
from geoseg.jobs.pipeline import run_detect
from geoseg.models.registry import load_model
from geoseg.models.views import Views

TILES = {"tile_size": 256, "overlap": 64, "supertile_size": 640, "report": False, "workers": 1}
NORTH_UP = Affine(0.1, 0, 500_000, 0, -0.1, 5_500_000)


class Watched(Capped):
    """Knows from which threads it was called, and how many calls ran at once."""

    batch = 1

    def __init__(self, *, side_by_side: bool, fails_at: int = 0, **kwargs) -> None:
        super().__init__(cap=12, **kwargs)
        self.side_by_side, self.fails_at = side_by_side, fails_at
        self.threads: set[str] = set()
        self.now = self.most = self.count = 0
        self.lock = threading.Lock()

    def __call__(self, tiles):
        with self.lock:
            self.threads.add(threading.current_thread().name)
            self.now, self.count = self.now + 1, self.count + 1
            self.most = max(self.most, self.now)
            count = self.count
        try:
            print("said by the detector")
            # calls end in another order than they begin
            time.sleep(0.03 if count % 3 == 0 else 0.005)
            if count == self.fails_at:
                raise ValueError("once only")
            return super().__call__(tiles)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def image(make_raster, monkeypatch):
    """A raster in whose tiles there are more objects than the detector has room for."""
    monkeypatch.setattr(capacity, "physical_cores", lambda: 2)
    pixels = blob_scene(5, size=900, count=150).pixels
    return make_raster("painted.tif", pixels, transform=NORTH_UP, crs="EPSG:32633")


def run(image, detector, tmp_path, **settings):
    tmp_path.mkdir(exist_ok=True)
    settings = TILES | {"output": tmp_path / "objects.gpkg", "overwrite": True} | settings
    return run_detect(DetectSettings(images=(str(image),), **settings), detector)


def rows(result) -> list:
    columns = ["class", "score", "area_m2", "geometry"]
    return [tuple(map(str, row)) for row in result.objects[columns].itertuples(index=False)]


def test_a_detector_is_called_from_one_thread_unless_it_says_otherwise(image, tmp_path):
    plain = Watched(side_by_side=False)
    run(image, plain, tmp_path)
    assert plain.most == 1
    assert plain.threads == {"geoseg-network_0"}


def test_two_lanes_change_no_object_though_results_come_in_another_order(image, tmp_path):
    one, two = Watched(side_by_side=False), Watched(side_by_side=True)
    alone, beside = run(image, one, tmp_path / "1"), run(image, two, tmp_path / "2")
    assert two.most == 2
    assert two.threads == {"geoseg-lane_0", "geoseg-lane_1"}
    assert alone.saturated > 0
    assert alone.saturated == beside.saturated
    assert one.count == two.count
    assert rows(alone) == rows(beside)
    assert len(alone.objects) > 100


def test_stdout_and_warnings_are_as_before(image, tmp_path, capsys):
    out, filters = sys.stdout, warnings.filters[:]
    run(image, Watched(side_by_side=True), tmp_path)
    assert sys.stdout is out
    assert warnings.filters == filters
    said = capsys.readouterr()
    assert "said by the detector" in said.err
    assert not said.out


def test_a_failure_leaves_no_call_running(image, tmp_path):
    broken = Watched(side_by_side=True, poison=5)
    with pytest.raises(GeosegError, match="cannot stand"):
        run(image, broken, tmp_path, on_error="fail", supertile_size=1024)
    assert broken.now == 0
    assert broken.most == 2


def test_a_tile_that_fails_once_is_looked_at_again(image, tmp_path):
    whole = run(image, Watched(side_by_side=False), tmp_path)
    again = Watched(side_by_side=True, fails_at=5)
    assert rows(run(image, again, tmp_path / "again")) == rows(whole)
    assert again.count > 5


def test_the_users_threads_are_as_before(image, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        run(image, Watched(side_by_side=True), tmp_path)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_lanes_share_the_threads_of_the_process():
    network = Watched(side_by_side=True)
    assert [lanes.lanes_of(network, n) for n in (0, 1, 2, 3, 8)] == [1, 1, 2, 2, 2]
    assert lanes.lanes_of(Watched(side_by_side=False), 8) == 1
    # torch's threads are those of the lane that asks
    with lanes.keeping_threads():
        asked = [lanes.submit(torch.get_num_threads, lanes=2, threads=6).result()[0]]
        asked.append(lanes.submit(torch.get_num_threads, lanes=1, threads=6).result()[0])
    assert asked == [3, 6]


@pytest.mark.parametrize("views", [1, 2])
def test_the_shipped_network_may_be_called_from_two_threads(views):
    made = load_model(device="cpu", min_score=0.02)
    detector = made if views == 1 else Views(made, views, 0.02)
    assert detector.side_by_side
    pixels = np.random.default_rng(8).integers(0, 255, (6, 3, 24, 24), np.uint8)
    tiles = pixels.repeat(10, axis=2).repeat(10, axis=3)
    with lanes.keeping_threads():
        out = [
            lanes.submit(lambda tile=tile: detector(tile[None])[0], lanes=2, threads=2)
            for tile in [*tiles] * 2
        ]
        beside = [future.result()[0] for future in out]
        alone = [
            lanes.submit(lambda tile=tile: detector(tile[None])[0], lanes=1, threads=1).result()[0]
            for tile in tiles
        ]
    assert sum(len(found) for found in alone) > 0
    for wanted, *others in zip(alone, beside[:6], beside[6:], strict=True):
        for found in others:
            for name in ("boxes", "scores", "labels", "masks"):
                assert (getattr(found, name) == getattr(wanted, name)).all()
