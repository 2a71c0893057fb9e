"""The path of a GPU: fixed shapes, no wait for the host, the same detections as the plain path.

The tests without a mark run the very code on a CPU. Those marked ``gpu`` need one: what holds of
streams, graphs and full memory can be seen there only.
"""

from __future__ import annotations

import copy
import multiprocessing
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from calibrated import calibrate, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import batched_nms, box_iou, nms

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard
from geoseg.models.fixed import masks_fixed, pack_atlas, pool_boxes, propose_fixed, suppress
from geoseg.models.footprint import peak_bytes
from geoseg.models.gpu import CALL_BATCHES, FixedShapes, GpuOptions, _without_values, tiles_that_fit
from geoseg.models.inference import _SURE_LOGIT, MaskRCNNDetector, propose
from geoseg.models.known import KNOWN, known_card
from geoseg.models.maskrcnn import LEVELS, Architecture, build_maskrcnn
from geoseg.models.roialign import PyramidRoIAlign
from geoseg.records import Instances

SIZE = (160, 192)
RESNET = Architecture(
    family="resnet_fpn", backbone="resnet18", fpn_channels=32, fpn_norm="none", box_norm="none",
    mask_norm="none", box_convs=0, box_fcs=2, box_features=64, mask_convs=1,
)  # fmt: skip
TIMM = Architecture(fpn_channels=32, box_features=32, mask_convs=1)
FLOAT = GpuOptions(precision="float32", batch=4)
HALF = GpuOptions(batch=4)
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(architecture: Architecture, n_classes: int = 3):
    torch.manual_seed(0)
    model = build_maskrcnn(architecture, n_classes)
    pixels = torch.from_numpy(picture(1, *SIZE)).float() / 64 - 2
    return calibrate(model, pixels)


def card_of(architecture: Architecture, **changes) -> ModelCard:
    values = {
        "name": "small", "classes": ("roof", "tree", "car"), "gsd_m": 0.2, "proposals": 150,
        "architecture": architecture.to_dict(), "min_score": 0.4, "max_detections": 60,
        "mean": (0.5,) * 3, "std": (0.25,) * 3,
    }  # fmt: skip
    return ModelCard(**(values | changes))


def pair(architecture: Architecture = TIMM, options: GpuOptions = FLOAT, device="cpu", **changes):
    """Return one network as a plain detector and as one in fixed shapes."""
    card = card_of(architecture, **changes)
    model = network(architecture)
    plain = MaskRCNNDetector(copy.deepcopy(model), card, device="cpu", precision="float32")
    return plain, MaskRCNNDetector(model, card, device=device, fixed=options)


def matched(one: Instances, two: Instances, iou: float = 0.9) -> np.ndarray:
    """Return pairs of rows with one label whose boxes meet best, at least by an IoU."""
    if not len(one) or not len(two):
        return np.zeros((0, 2), int)
    overlap = box_iou(torch.from_numpy(one.boxes), torch.from_numpy(two.boxes)).numpy()
    overlap = overlap * (one.labels[:, None] == two.labels)
    rows, cols = linear_sum_assignment(-overlap)
    good = overlap[rows, cols] >= iou
    return np.stack([rows[good], cols[good]], 1)


def same(one: list[Instances], two: list[Instances], *, box=0.02, score=1e-3, mask=2e-3) -> int:
    """Check that two lists hold the same detections within tolerances; return how many."""
    for a, b in zip(one, two, strict=True):
        assert len(a) == len(b)
        assert a.saturated == b.saturated
        rows, cols = matched(a, b).T
        assert len(rows) == len(a)
        np.testing.assert_allclose(a.boxes[rows], b.boxes[cols], atol=box)
        np.testing.assert_allclose(a.scores[rows], b.scores[cols], atol=score)
        np.testing.assert_allclose(a.masks[rows], b.masks[cols], atol=mask)
    return sum(map(len, one))


# --- the steps -------------------------------------------------------------------------------


def some_boxes(rng: np.random.Generator, tables: int, rows: int) -> torch.Tensor:
    corner = rng.uniform(0, 60, (tables, rows, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (tables, rows, 2))], 2)
    return torch.from_numpy(boxes.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 70), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_suppression_is_the_greedy_one(seed, rows, iou):
    rng = np.random.default_rng(seed)
    boxes, groups = some_boxes(rng, 3, rows), torch.from_numpy(rng.integers(0, 3, (3, rows)))
    there = torch.from_numpy(rng.random((3, rows)) < 0.8)
    scores = torch.linspace(1, 0.1, rows)
    kept, settled = suppress(boxes, there, iou)
    among, settled_too = suppress(boxes, there, iou, groups)
    assert bool(settled.all())
    assert bool(settled_too.all())
    for i in range(3):
        rows_there = torch.where(there[i])[0]
        left = boxes[i][rows_there], scores[rows_there]
        assert torch.where(kept[i])[0].tolist() == sorted(rows_there[nms(*left, iou)].tolist())
        wanted = rows_there[batched_nms(*left, groups[i][rows_there], iou)]
        assert torch.where(among[i])[0].tolist() == sorted(wanted.tolist())


def test_a_chain_longer_than_the_rounds_is_told():
    # each box overlaps the next one only: every second one is kept
    left = torch.arange(12.0)[:, None] * 4
    boxes = torch.cat([left, torch.zeros(12, 1), left + 10, torch.full((12, 1), 10.0)], 1)[None]
    there = torch.ones(1, 12, dtype=torch.bool)
    wanted = [True, False] * 6
    kept, settled = suppress(boxes, there, 0.4)
    assert (kept[0].tolist(), settled.tolist()) == (wanted, [True])
    kept, settled = suppress(boxes, there, 0.4, rounds=3)
    assert settled.tolist() == [False]
    # what three rounds can reach is right already
    assert kept[0].tolist()[:3] == wanted[:3]


@pytest.mark.parametrize("by_logit", [False, True])
@pytest.mark.parametrize("limits", [{}, {"proposals": 20}, {"rpn_pre_nms": 30}])
def test_proposals_are_those_of_the_plain_path(by_logit, limits):
    plain, _ = pair(rpn_by_logit=by_logit, **limits)
    pixels = plain._normalized(picture(3, *SIZE, seed=4))
    with torch.inference_mode():
        features = plain.model.backbone(pixels)
        wanted, cut = propose(plain.model.rpn, pixels, features, SIZE, plain.card)
        maps = list(features.values())
        anchors = FixedShapes(plain, FLOAT)._anchors_of(plain.model.rpn, pixels, maps, SIZE)
        got = propose_fixed(
            plain.model.rpn, plain.model.rpn.head(maps), anchors, SIZE, plain.card, _SURE_LOGIT
        )
    assert got.cut.tolist() == cut
    assert bool(got.settled.all())
    for boxes, there, theirs in zip(got.boxes, got.there, wanted, strict=True):
        assert int(there.sum()) == len(theirs) > 10
        np.testing.assert_allclose(boxes[there].numpy(), theirs.numpy(), atol=1e-3)
        assert not boxes[~there].any()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0])
def test_the_atlas_pools_what_the_levels_pool(aligned, ratio):
    rng = np.random.default_rng(3)
    maps = [torch.from_numpy(rng.normal(size=(2, 5, 64 >> i, 96 >> i))).float() for i in range(4)]
    sides = rng.uniform(4, 380, (200, 2)) * rng.uniform(0.05, 1, (200, 1))
    corner = rng.uniform(0, [384, 256], (200, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + sides], 1)).float()
    boxes[:, 0::2].clamp_(0, 384)
    boxes[:, 1::2].clamp_(0, 256)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 4).all(1)]
    pooler = PyramidRoIAlign(LEVELS, 7, ratio, aligned=aligned)
    pooler.sparse = False
    half = len(boxes) // 2
    wanted = pooler(
        dict(zip(LEVELS, maps, strict=True)), [boxes[:half], boxes[half:]], [(256, 384)] * 2
    )
    tile = (torch.arange(len(boxes)) >= half).long()
    got = pool_boxes(pack_atlas(maps), boxes, tile, pooler)
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), atol=2e-4)


# --- the whole -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [RESNET, TIMM, replace(RESNET, masks=False)])
def test_the_same_detections_as_the_plain_path(architecture):
    plain, fixed = pair(architecture)
    # the last batch is an odd one: 4, 4 and 3 that are padded to 4
    tiles = picture(11, *SIZE, seed=2)
    assert same(plain(tiles), fixed(tiles)) > 50


def test_other_sizes_dividers_and_thresholds():
    plain, fixed = pair(size_divisor_check := replace(TIMM, size_divisor=32), strict_score=True)
    assert size_divisor_check.size_divisor == 32
    for size in ((100, 130), SIZE, (64, 64)):
        tiles = picture(2, *size, seed=5)
        assert same(plain(tiles), fixed(tiles)) > 0
    fixed.min_score = plain.min_score = 0.8
    few = picture(3, *SIZE, seed=6)
    assert same(plain(few), fixed(few)) < same(*(d(few) for d in pair(replace(TIMM)))) + 1


def test_nothing_is_found_where_nothing_is_sure():
    plain, fixed = pair(min_score=0.9999)
    found = fixed(picture(3, *SIZE))
    assert [len(f) for f in found] == [0, 0, 0] == [len(f) for f in plain(picture(3, *SIZE))]
    assert found[0].masks.shape == (0, 28, 28)


def test_bfloat16_finds_nearly_the_same():
    """Random weights spread errors further than trained ones do: 95 in 100 meet, by 0.1 in score."""
    plain, fixed = pair(RESNET, HALF)
    tiles = picture(8, *SIZE, seed=2)
    one, two = plain(tiles), fixed(tiles)
    pairs = [matched(a, b, 0.7) for a, b in zip(one, two, strict=True)]
    count = sum(map(len, pairs))
    assert count >= 0.9 * max(sum(map(len, one)), sum(map(len, two))) > 30
    off = np.concatenate(
        [a.scores[p[:, 0]] - b.scores[p[:, 1]] for a, b, p in zip(one, two, pairs, strict=True)]
    )
    assert 0 < np.abs(off).mean() < 0.02


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8", "u4"])
def test_pixels_of_every_type(dtype):
    top = 40_000 if dtype == "u2" else 255
    plain, fixed = pair(value_range=(0.0, float(top)))
    tiles = (picture(3, *SIZE, seed=2).astype(np.float64) / 255 * top).astype(dtype)
    if tiles.dtype.kind == "f":
        tiles[0, :, :20, :20] = np.nan
        tiles[1, :, 5, 5] = np.inf
    assert dtype != "u2" or tiles.max() > 32_767
    wanted = plain(tiles if dtype != "u4" else tiles.astype(np.float32))
    assert same(wanted, fixed(tiles)) > 15


def test_a_tile_does_not_depend_on_its_neighbours_in_the_batch():
    _, fixed = pair(RESNET)
    tiles = picture(5, *SIZE, seed=2)
    together = fixed(tiles)
    alone = [fixed(tiles[i : i + 1])[0] for i in range(5)]
    assert same(together, alone, box=1e-3, score=1e-5, mask=1e-3) > 20


def test_two_slots_take_turns_and_results_stay():
    """Each batch has its own pixels: none is overwritten before it is used."""
    _, fixed = pair(options=GpuOptions(precision="float32", batch=2))
    tiles = picture(10, *SIZE, seed=8)
    first = fixed(tiles)
    kept = copy.deepcopy(first)
    fixed(tiles[::-1].copy())
    same(first, kept, box=0, score=0, mask=0)
    slots = fixed._fixed._slots[((2, 3, *SIZE), "|u1")]
    assert len(slots) == 2
    assert slots[0].host.data_ptr() != slots[1].host.data_ptr()
    assert same(first, fixed(tiles[::-1].copy())[::-1], box=1e-4, score=1e-5) > 20


def test_saturated_tiles_are_told():
    plain, fixed = pair(RESNET, max_detections=3)
    tiles = picture(3, *SIZE, seed=2)
    assert [f.saturated for f in fixed(tiles)] == [f.saturated for f in plain(tiles)]
    assert any(f.saturated for f in fixed(tiles))
    assert max(map(len, fixed(tiles))) == 3


def test_a_tile_with_more_candidates_than_there_is_room_for_is_done_again(monkeypatch):
    # three classes and a threshold of 0: three times as many candidates as proposals
    plain, fixed = pair(RESNET, min_score=0.0)
    again = []
    forward = fixed._forward
    monkeypatch.setattr(fixed, "_forward", lambda tiles: again.append(len(tiles)) or forward(tiles))
    tiles = picture(2, *SIZE, seed=2)
    assert same(plain(tiles), fixed(tiles)) == 120
    assert again == [1, 1]


# --- no look at a value ----------------------------------------------------------------------


class NoLooking(TorchDispatchMode):
    """Refuses what makes a host wait for a GPU: reading a value, or a shape that depends on one."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        assert not name.startswith(self.REFUSED), f"{func} makes the host wait"
        if name in ("index", "index_put", "index_put_"):
            kinds = {i.dtype for i in args[1] if i is not None}
            assert torch.bool not in kinds, "a bool index makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", [RESNET, TIMM])
def test_no_step_looks_at_a_value(architecture):
    plain, fixed = pair(architecture)
    engine = fixed._fixed
    tiles = picture(4, *SIZE, seed=2)
    shape = tiles.shape
    raw = torch.from_numpy(tiles.reshape(-1))
    with torch.inference_mode():
        # anchors are made once for a size
        engine._first(raw, shape, tiles.dtype)
        with NoLooking():
            atlas, found, numbers = engine._first(raw, shape, tiles.dtype)
            masks_fixed(fixed.model.roi_heads, atlas, found, fixed._outputs, 0, 64, 28)
        assert numbers.shape == (4, 3)
        # the plain path does look
        with pytest.raises(AssertionError, match="makes the host wait"), NoLooking():
            plain._forward(tiles)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_shapes_follow_from_the_settings_alone(name):
    """Tensors without values go through: no shape depends on one."""
    card = known_card(KNOWN[name])
    with torch.device("meta"):
        model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
    model = _without_values(model.eval().requires_grad_(False), torch.bfloat16)
    small = MaskRCNNDetector(network(RESNET), card_of(RESNET), device="cpu", fixed=FLOAT)
    engine = small._fixed
    small.card = card
    outputs = torch.empty(len(card.classes), dtype=torch.int64, device="meta")
    pixels = torch.empty((2, 3, 1024, 1024), dtype=torch.bfloat16, device="meta")
    atlas, found = engine._network(model, pixels, (1024, 1024), outputs)
    assert found.boxes.shape == (2, 100, 4)
    assert atlas.cells.shape[:3] == (2, 256, 260)
    table = masks_fixed(model.roi_heads, atlas, found, outputs, 0, 128, 28)
    assert table.shape == (128, 24 + 2 * 28 * 28)


# --- memory ----------------------------------------------------------------------------------


def test_the_peak_of_a_computation_is_counted():
    x = torch.empty(1000, device="meta")

    def work():
        # two temporaries of 4 kB are alive beside each other, then one and what is kept
        y = (x + 1) * (x + 2)
        return y.view(10, 100)

    assert peak_bytes(work) == 12_000
    assert peak_bytes(lambda: x.view(10, 100)) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0


def test_the_footprint_grows_with_the_tile_and_falls_with_the_precision():
    # with few boxes to compare with each other, what grows with the pixels stands out
    _, fixed = pair(RESNET, rpn_pre_nms=60)
    _, small = fixed._fixed.footprint(*SIZE)
    _, large = fixed._fixed.footprint(2 * SIZE[0], 2 * SIZE[1])
    assert 1.5 * small < large < 4.5 * small
    _, half = FixedShapes(fixed, HALF).footprint(2 * SIZE[0], 2 * SIZE[1])
    assert half < large


@pytest.mark.parametrize(
    ("free", "fixed", "tile", "px", "batch"),
    [
        (140e9, 0.3e9, 0.4e9, 1024**2, 16),  # no more than MOST_PX
        (140e9, 0.3e9, 0.1e9, 512**2, 64),
        (8e9, 0.3e9, 0.4e9, 1024**2, 8),  # 4.8 - 0.3 over 0.4 are 11
        (2e9, 0.3e9, 0.4e9, 1024**2, 2),
        (0.1e9, 0.3e9, 0.4e9, 1024**2, 1),  # the back-off has the last word
        (140e9, 0.3e9, 9e9, 8192**2, 1),
    ],
)
def test_a_batch_fits_into_the_free_memory(free, fixed, tile, px, batch):
    assert tiles_that_fit(free, fixed, tile, px) == batch


class SmallMemory(torch.nn.Module):
    """A backbone that fails as in a full memory when it gets more tiles than there is room for."""

    def __init__(self, backbone, room: int):
        super().__init__()
        self.backbone, self.room, self.seen = backbone, room, []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.backbone(pixels)


def test_a_full_memory_halves_the_batch_and_no_tile_is_lost():
    plain, fixed = pair(RESNET)
    fixed.model.backbone = SmallMemory(fixed.model.backbone, 2)
    tiles = picture(7, *SIZE, seed=2)
    assert same(plain(tiles), fixed(tiles)) > 30
    # four batches of two are enough for seven tiles; nothing that was done is done again
    assert fixed.model.backbone.seen == [4, 2, 2, 2, 1]
    assert (fixed.batch, fixed.tiles_a_call) == (2, 2 * CALL_BATCHES)


def test_options_are_checked():
    with pytest.raises(ModelError, match="precision is 'int8'; expected one of bfloat16, float32"):
        GpuOptions(precision="int8")
    with pytest.raises(ModelError, match="batch is 0; expected at least 1"):
        GpuOptions(batch=0)
    with pytest.raises(ModelError, match="leave exact out"):
        MaskRCNNDetector(network(RESNET), card_of(RESNET), device="cpu", exact=True, fixed=FLOAT)
    # a CPU computes torchvision's networks exactly unless told otherwise
    assert MaskRCNNDetector(network(RESNET), card_of(RESNET), device="cpu")._fixed is None


# --- with a GPU ------------------------------------------------------------------------------


@gpu
@needs_gpu
@pytest.mark.parametrize("architecture", [RESNET, TIMM, replace(RESNET, masks=False)])
def test_a_gpu_finds_what_a_cpu_finds(architecture):
    """In float32; TF32 in convolutions, torch's default, is switched off for the comparison."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        plain, fixed = pair(architecture, device="cuda")
        tiles = picture(11, *SIZE, seed=2)
        assert same(plain(tiles), fixed(tiles), box=0.1, score=5e-3, mask=2e-2) > 50
    finally:
        torch.backends.cudnn.allow_tf32 = before


@gpu
@needs_gpu
def test_a_gpu_in_bfloat16_finds_nearly_the_same():
    plain, fixed = pair(RESNET, HALF, "cuda")
    tiles = picture(8, *SIZE, seed=2)
    one, two = plain(tiles), fixed(tiles)
    count = sum(len(matched(a, b, 0.7)) for a, b in zip(one, two, strict=True))
    assert count >= 0.9 * max(sum(map(len, one)), sum(map(len, two))) > 30


@gpu
@needs_gpu
def test_graphs_replay_the_same():
    _, plain = pair(RESNET, FLOAT, "cuda")
    _, graphs = pair(RESNET, replace(FLOAT, graphs=True), "cuda")
    tiles = picture(40, *SIZE, seed=2)
    assert same(plain(tiles), graphs(tiles), box=0.1, score=5e-3, mask=2e-2) > 100
    slots = graphs._fixed._slots[((4, 3, *SIZE), "|u1")]
    assert all(slot.graph is not None for slot in slots)
    # other pixels through the recorded graphs
    more = picture(12, *SIZE, seed=9)
    assert same(plain(more), graphs(more), box=0.1, score=5e-3, mask=2e-2) > 30


@gpu
@needs_gpu
def test_the_host_never_waits_for_the_gpu():
    """torch tells of every call that waits; the events that a batch is waited for by are none."""
    _, fixed = pair(TIMM, HALF, "cuda")
    tiles = picture(16, *SIZE, seed=2)
    fixed(tiles)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert sum(map(len, fixed(tiles))) > 50
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(w.message) for w in told if "synchroniz" in str(w.message)] == []


@gpu
@needs_gpu
def test_a_gpu_that_is_really_full_gets_fewer_tiles():
    plain, fixed = pair(RESNET, GpuOptions(precision="float32", batch=64), "cuda")
    tiles = picture(64, 512, 512, seed=2)
    total = torch.cuda.get_device_properties(0).total_memory
    fixed(tiles[:1])
    torch.cuda.empty_cache()
    each = fixed._fixed.footprint(512, 512)[1]
    room = torch.cuda.memory_allocated() + 8 * each
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    try:
        found = fixed(tiles)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert 1 <= fixed.batch < 64
    assert same(plain(tiles[:4]), found[:4], box=0.2, score=1e-2, mask=5e-2) > 30


@gpu
@needs_gpu
def test_the_counted_memory_is_near_the_taken():
    _, fixed = pair(TIMM, GpuOptions(batch=8), "cuda")
    tiles = picture(8, 768, 768, seed=2)
    fixed(tiles)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fixed(tiles)
    taken = torch.cuda.max_memory_allocated() - before
    alone, each = fixed._fixed.footprint(768, 768)
    assert 0.3 < taken / (alone + 8 * each) < 1 / 0.6


@gpu
@needs_gpu
def test_the_batch_is_chosen_by_the_free_memory():
    _, fixed = pair(TIMM, GpuOptions(), "cuda")
    fixed(picture(1, 768, 768))
    assert fixed.batch in (1, 2, 4, 8, 16)
    assert fixed.tiles_a_call == CALL_BATCHES * fixed.batch


@gpu
@needs_gpu
def test_memory_is_returned():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    _, fixed = pair(TIMM, replace(HALF, graphs=True), "cuda")
    fixed(picture(24, *SIZE))
    fixed._fixed.forget()
    del fixed
    import gc

    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 2**20


def _count_alone(queue) -> None:
    _, fixed = pair(TIMM, HALF, "cuda")
    queue.put([len(f) for f in fixed(picture(12, *SIZE, seed=2))])


@gpu
@needs_gpu
def test_two_processes_may_share_one_gpu():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=_count_alone, args=(queue,)) for _ in range(2)]
    for process in both:
        process.start()
    counts = [queue.get(timeout=300) for _ in both]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert counts[0] == counts[1]
    assert sum(counts[0]) > 20
