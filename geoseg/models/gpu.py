"""Run a network so that a GPU never waits for the host.

A call takes several batches through three stages, each one batch behind the one before, so that
the next batch is on the GPU before the host waits for an earlier one:

1. *launch*: raw pixels (uint8, uint16, ...) to the device from a pinned buffer, on a stream of
   their own; scaling, backbone, pyramid, proposals, boxes and their suppression in fixed shapes
   (`geoseg.models.fixed`). A few numbers a tile go back: how many detections, and flags.
2. *finish*: the masks of as many detections as there are, rounded up to `MASK_STEP`, packed with
   boxes and scores into one table of bytes: one copy to the host.
3. *collect*: bytes to `Instances`, on the host.

Two *slots* (buffers, and graphs where wanted) take turns. On a CPU the same code runs without
streams and pinned memory. A tile whose flags say that a table was too small, or that a suppression
did not come to its end, is done again by the plain path, in float32.

The network computes in bfloat16 (autocast) unless float32 is asked for; scaling of boxes,
suppression, coordinates of ROIAlign and the last layer of the box head are float32 always.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from geoseg.errors import ModelError
from geoseg.models.fixed import (
    Atlas,
    Found,
    find_fixed,
    masks_fixed,
    pack_atlas,
    propose_fixed,
)
from geoseg.models.footprint import peak_bytes
from geoseg.records import Instances

if TYPE_CHECKING:
    from geoseg.models.inference import MaskRCNNDetector

log = logging.getLogger(__name__)

PRECISIONS = ("bfloat16", "float32")
MOST_PX = 16 * 1024**2
"""Pixels of a batch beyond which a GPU gains nothing: 16 tiles of 1,024 px."""
SHARE = 0.6
"""Share of the free memory that a batch may fill by count; what libraries take is not counted."""
MASK_STEP = 64
"""Masks are made in multiples of it, so that few shapes occur."""
MASK_CHUNK = 1024
"""Most masks at once."""
CALL_BATCHES = 4
"""Batches that a caller should hand over at once, so that they can follow each other closely."""
GRAPH_AFTER = 2
"""Batches of a shape that run plainly before it is worth a graph."""
_COUNTED = (4, 8)
# ^ below four tiles a chunk of masks may take more than the network does
_PLAIN = {np.dtype(t) for t in ("u1", "u2", "i1", "i2", "i4", "f2", "f4", "f8")}


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a network runs in fixed shapes."""

    precision: str = "bfloat16"
    """'bfloat16' (autocast) or 'float32'."""
    graphs: bool = False
    """Record the kernels of a batch shape once as a CUDA graph and replay them. Takes twice the
    memory; where recording fails, the log says so and the run goes on without."""
    batch: int | None = None
    """Tiles a forward pass; None: as many as fit into the free memory, at most `MOST_PX`."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ModelError(
                f"precision is '{self.precision}'; expected one of {', '.join(PRECISIONS)}"
            )
        if self.batch is not None and self.batch < 1:
            raise ModelError(f"batch is {self.batch}; expected at least 1")


def tiles_that_fit(free_bytes: float, fixed_bytes: float, tile_bytes: float, tile_px: int) -> int:
    """Return how many tiles a batch may have: a power of two, at least 1.

    Parameters
    ----------
    free_bytes : float
        Memory that is free.
    fixed_bytes, tile_bytes : float
        What a forward pass takes by itself, and for each tile.
    tile_px : int
        Pixels of a tile.

    Examples
    --------
    >>> tiles_that_fit(130e9, 0.1e9, 2e9, 1024**2)
    16
    >>> tiles_that_fit(16e9, 0.1e9, 2e9, 1024**2)
    4
    >>> tiles_that_fit(1e9, 0.1e9, 2e9, 1024**2)
    1
    """
    most = min((free_bytes * SHARE - fixed_bytes) // max(tile_bytes, 1), MOST_PX // tile_px)
    return 1 << max(int(most), 1).bit_length() - 1


class _Slot:
    """Buffers of one batch on its way: pixels on both sides, and a graph where there is one."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.device = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.uploaded = torch.cuda.Event() if pinned else None
        self.used = torch.cuda.Event() if pinned else None
        self.graph: Any = None
        self.results: tuple[Atlas, Found, Tensor] | None = None


@dataclass
class _Batch:
    """One batch between its stages."""

    tiles: npt.NDArray[Any]
    atlas: Atlas
    found: Found
    told: Tensor
    """(N, 3) int64 on the host, once `ready`: detections, saturated by proposals, exact."""
    ready: Any
    packed: Sequence[Tensor] = ()
    """Tables of bytes on the host, once `done`."""
    done: Any = None


class FixedShapes:
    """Runs a detector's network in fixed shapes; see the module.

    Parameters
    ----------
    detector : MaskRCNNDetector
        Its network, card, device and thresholds are used.
    options : GpuOptions
        How.
    """

    def __init__(self, detector: MaskRCNNDetector, options: GpuOptions) -> None:
        self.detector, self.options = detector, options
        self.device = detector.device
        self.cuda = self.device.type == "cuda"
        self.graphs = options.graphs and self.cuda
        self._anchors: dict[tuple[int, ...], Tensor] = {}
        self._slots: dict[tuple[Any, ...], list[_Slot]] = {}
        self._seen: dict[tuple[Any, ...], int] = {}
        self._turn = 0
        self._sized = options.batch is not None
        self._cut: Any = None
        self._min_score: float | None = None
        self._upload = torch.cuda.Stream() if self.cuda else None
        self._download = torch.cuda.Stream() if self.cuda else None

    def __call__(self, tiles: npt.NDArray[Any], found: list[Instances]) -> None:
        """Append the instances of tiles (N, C, H, W) to `found`, those of a batch at a time.

        Where memory runs out, `found` holds the tiles that are done.
        """
        if not self._sized:
            self.choose_batch(int(tiles.shape[2]), int(tiles.shape[3]))
        launched: deque[_Batch] = deque()
        finished: deque[_Batch] = deque()
        step = self.detector.batch
        for first in range(0, len(tiles), step):
            launched.append(self._launch(tiles[first : first + step]))
            # the GPU has the next batch: now the host may wait for the one before
            if len(launched) > 1:
                finished.append(self._finish(launched.popleft()))
            if len(finished) > 1:
                found += self._collect(finished.popleft())
        while launched:
            finished.append(self._finish(launched.popleft()))
        while finished:
            found += self._collect(finished.popleft())

    def boxes_of(self, tiles: npt.NDArray[Any], min_score: float) -> Tensor:
        """Return the boxes (n, 4) of one tile (1, C, H, W) with at least a score; no masks."""
        if tiles.dtype not in _PLAIN:
            tiles = tiles.astype(np.float32)
        raw = torch.from_numpy(np.ascontiguousarray(tiles).reshape(-1).view(np.uint8))
        self._min_score = min_score
        _, found, _ = self._first(raw.to(self.device), tiles.shape, tiles.dtype)
        return found.boxes[0, : int(found.counts[0])]

    def choose_batch(self, height: int, width: int) -> None:
        """Set the detector's batch by the memory that is free for tiles of a size."""
        self._sized = True
        if not self.cuda:
            return
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        fixed, each = self.footprint(height, width)
        self.detector.batch = tiles_that_fit(
            free / (2 if self.graphs else 1), fixed, each, height * width
        )
        log.info(
            "GPU: %d tiles of %d x %d px at once (%.2f GB a tile, %.1f GB free), %s",
            self.detector.batch, height, width, each / 1e9, free / 1e9, self.options.precision,
        )  # fmt: skip

    def footprint(self, height: int, width: int) -> tuple[float, float]:
        """Return bytes that a forward pass takes by itself, and more for each tile.

        Counted on tensors without values, which takes no memory: the largest sum of all that is
        alive at a time. Weights are there already and do not count.
        """
        dtype = torch.bfloat16 if self.options.precision == "bfloat16" else torch.float32
        model = _without_values(self.detector.model, dtype)
        outputs = self.detector._outputs.to("meta")
        cells = self._cells
        peaks = []
        for n in _COUNTED:
            pixels = torch.empty((n, len(self.detector.bands), height, width), device="meta")

            def work(pixels: Tensor = pixels) -> Any:
                scaled = self._padded(pixels.to(dtype))
                atlas, found = self._network(model, scaled, (height, width), outputs)
                masks = masks_fixed(model.roi_heads, atlas, found, outputs, 0, MASK_CHUNK, cells)
                return atlas, found, masks

            # two batches are alive at once, of the earlier one its atlas
            peaks.append(peak_bytes(work) + self._atlas_bytes(n, height, width))
        each = (peaks[1] - peaks[0]) / (_COUNTED[1] - _COUNTED[0])
        return max(peaks[0] - _COUNTED[0] * each, 0.0), each

    def _atlas_bytes(self, n: int, height: int, width: int) -> float:
        channels = float(self.detector.model.backbone.out_channels)
        return 4.0 * n * channels * (height / 4 + 4) * (width / 4 + width / 8 + 8)

    @property
    def _cells(self) -> int:
        return self.detector.card.mask_size if self.detector.card.has_masks else 0

    def forget(self) -> None:
        """Give up all buffers and graphs, as before a batch of another size."""
        self._slots.clear()
        self._seen.clear()
        if self.cuda:
            torch.cuda.empty_cache()

    # --- launch ------------------------------------------------------------------------------

    def _launch(self, tiles: npt.NDArray[Any]) -> _Batch:
        """Bring a batch to the device and queue its network."""
        if tiles.dtype not in _PLAIN:
            tiles = tiles.astype(np.float32)
        # a last, smaller batch takes the next power of two, so that few shapes occur
        n = min(1 << (len(tiles) - 1).bit_length(), max(self.detector.batch, len(tiles)))
        shape = (n, *tiles.shape[1:])
        slot = self._fill(tiles, shape)
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if slot.graph is None and self.graphs and self._seen[shape] > GRAPH_AFTER:
            self._record(slot, shape, tiles.dtype)
        if slot.graph is not None and slot.results is not None:
            slot.graph.replay()
            atlas, found, numbers = slot.results
        else:
            atlas, found, numbers = self._first(slot.device, shape, tiles.dtype)
        if slot.used is not None:
            slot.used.record()
        told, ready = self._to_host(numbers, None)
        return _Batch(tiles, atlas, found, told, ready)

    def _fill(self, tiles: npt.NDArray[Any], shape: tuple[int, ...]) -> _Slot:
        """Copy pixels into the buffers whose turn it is."""
        nbytes = int(np.prod(shape)) * tiles.dtype.itemsize
        key = (shape, tiles.dtype.str)
        if key not in self._slots:
            self._slots[key] = [_Slot(nbytes, self.device) for _ in range(2)]
        self._turn ^= 1
        slot = self._slots[key][self._turn]
        if slot.uploaded is not None:
            # two batches ago these pixels were on their way
            slot.uploaded.synchronize()
        room: npt.NDArray[Any] = slot.host.numpy().view(tiles.dtype).reshape(shape)
        room[: len(tiles)] = tiles
        room[len(tiles) :] = 0
        if self._upload is None or slot.used is None or slot.uploaded is None:
            slot.device.copy_(slot.host)
            return slot
        with torch.cuda.stream(self._upload):
            # what the network made of the former pixels must be done
            self._upload.wait_event(slot.used)
            slot.device.copy_(slot.host, non_blocking=True)
            slot.uploaded.record()
        torch.cuda.current_stream().wait_event(slot.uploaded)
        return slot

    def _first(
        self, raw: Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[Atlas, Found, Tensor]:
        """Return pyramid and detections of a batch of raw pixels, and what the host must know."""
        size = (shape[2], shape[3])
        with torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=self.options.precision == "bfloat16",
            cache_enabled=False,
        ):
            scaled = self._scaled(raw, shape, dtype)
            atlas, found = self._network(self.detector.model, scaled, size, self.detector._outputs)
        return atlas, found, torch.stack([found.counts, self._cut.long(), found.exact.long()], 1)

    def _scaled(self, raw: Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Return the pixels (N, C, H, W) in float32 as the network wants them."""
        if dtype == np.dtype("u2"):
            # operations on uint16 are few: read as int16 and mended
            pixels = raw.view(torch.int16).view(shape).int().bitwise_and(0xFFFF)
        else:
            torch_type = torch.from_numpy(np.empty(0, dtype)).dtype
            pixels = raw.view(torch_type).view(shape)
        if pixels.is_floating_point():
            pixels = pixels.float().nan_to_num(0.0, 0.0, 0.0)
        detector = self.detector
        low, high = detector.card.value_range
        gain = 1 / ((high - low) * detector._std)
        offset = (-low / (high - low) - detector._mean) / detector._std
        return self._padded(pixels.float() * gain + offset)

    def _padded(self, pixels: Tensor) -> Tensor:
        down, right = (-int(side) % self.detector._divisor for side in pixels.shape[2:])
        if down or right:
            pixels = F.pad(pixels, (0, right, 0, down))
        return pixels.contiguous(memory_format=torch.channels_last)

    def _network(
        self, model: Any, pixels: Tensor, size: tuple[int, int], outputs: Tensor
    ) -> tuple[Atlas, Found]:
        """Run everything up to the detections of normalized, padded pixels."""
        from geoseg.models.inference import _SURE_LOGIT

        card = self.detector.card
        min_score = self.detector.min_score if self._min_score is None else self._min_score
        features = model.backbone(pixels)
        maps = list(features.values())
        logits, deltas = model.rpn.head(maps)
        anchors = self._anchors_of(model.rpn, pixels, maps, size)
        proposals = propose_fixed(model.rpn, (logits, deltas), anchors, size, card, _SURE_LOGIT)
        self._cut = proposals.cut
        atlas = pack_atlas([features[name] for name in model.roi_heads.box_roi_pool.levels])
        found = find_fixed(model.roi_heads, atlas, proposals, outputs, size, card, min_score)
        return atlas, found

    def _anchors_of(
        self, rpn: Any, pixels: Tensor, maps: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Return the anchors of one tile, made once for a size: that copies from the host."""
        if pixels.device.type == "meta":
            n = sum(m.shape[2] * m.shape[3] for m in maps)
            per_cell = rpn.anchor_generator.num_anchors_per_location()[0]
            return torch.empty((n * per_cell, 4), device="meta")
        key = tuple(pixels.shape[2:])
        if key not in self._anchors:
            floats = [m.float() for m in maps]
            images = ImageList(pixels[:1], [size])
            self._anchors[key] = rpn.anchor_generator(images, floats)[0]
        return self._anchors[key]

    # --- graphs ------------------------------------------------------------------------------

    def _record(self, slot: _Slot, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Record the network of a slot as a graph; where that fails, go on without graphs."""
        try:
            plain = self._first(slot.device, shape, dtype)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                slot.results = self._first(slot.device, shape, dtype)
            graph.replay()
            torch.cuda.synchronize()
            _check_same(plain[0].cells, slot.results[0].cells)
            slot.graph = graph
            log.info("GPU: batches of %s are replayed as a graph", " x ".join(map(str, shape)))
        except Exception as error:  # noqa: BLE001  # whatever goes wrong, the plain way is there
            self.graphs, slot.graph, slot.results = False, None, None
            said = str(error).partition("\n")[0]
            log.warning("GPU: no graph could be recorded (%s); going on without", said)

    # --- finish ------------------------------------------------------------------------------

    def _finish(self, batch: _Batch) -> _Batch:
        """Queue the masks of a batch, and their copy to the host."""
        if batch.ready is not None:
            batch.ready.synchronize()
        total = int(batch.told[: len(batch.tiles), 0].sum())
        tables = [
            self._packed(batch, first, min(MASK_CHUNK, total - first))
            for first in range(0, total, MASK_CHUNK)
        ]
        waiting = [self._to_host(table, self._download) for table in tables]
        batch.packed = [table for table, _ in waiting]
        batch.done = waiting[-1][1] if waiting else None
        return batch

    def _packed(self, batch: _Batch, first: int, rows: int) -> Tensor:
        """Return so many detections from the first on, packed; rounded up to `MASK_STEP`."""
        rows = -(-rows // MASK_STEP) * MASK_STEP
        with torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=self.options.precision == "bfloat16",
            cache_enabled=False,
        ):
            return masks_fixed(
                self.detector.model.roi_heads,
                batch.atlas,
                batch.found,
                self.detector._outputs,
                first,
                rows,
                self._cells,
            )

    def _to_host(self, table: Tensor, stream: Any) -> tuple[Tensor, Any]:
        """Queue the copy of a table to pinned memory; return both it and the event of its end."""
        if not self.cuda:
            return table, None
        room = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        now = torch.cuda.current_stream()
        if stream is None:
            stream = now
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            room.copy_(table, non_blocking=True)
            table.record_stream(stream)
            done = torch.cuda.Event()
            done.record()
        return room, done

    # --- collect -----------------------------------------------------------------------------

    def _collect(self, batch: _Batch) -> Iterator[Instances]:
        """Yield the instances of the tiles of a batch."""
        if batch.done is not None:
            batch.done.synchronize()
        counts, cut, exact = batch.told[: len(batch.tiles)].numpy().T
        total = int(counts.sum())
        rows = self._unpack([table.numpy() for table in batch.packed], total)
        ends = counts.cumsum()
        for i, end in enumerate(ends):
            if not exact[i]:
                log.debug("GPU: tile %d of a batch is done again plainly", i)
                yield self.detector._forward(batch.tiles[i : i + 1])[0]
                continue
            mine = slice(int(end - counts[i]), int(end))
            yield rows(mine, bool(cut[i]) or counts[i] >= self.detector.card.max_detections)

    def _unpack(
        self, tables: Sequence[npt.NDArray[np.uint8]], total: int
    ) -> Callable[[slice, bool], Instances]:
        """Return what makes the instances of some rows of packed tables."""
        cells = self._cells
        table = np.concatenate(tables)[:total] if tables else np.zeros((0, 24), np.uint8)
        boxes = np.ascontiguousarray(table[:, :16]).view(np.float32).reshape(-1, 4)
        scores = np.ascontiguousarray(table[:, 16:20]).view(np.float32).reshape(-1)
        labels = np.ascontiguousarray(table[:, 20:24]).view(np.int32).reshape(-1)
        half = np.ascontiguousarray(table[:, 24:]).view(np.float16)
        half = half.reshape(len(table), cells, cells)
        return partial(self._instances, boxes, scores, labels, half)

    def _instances(
        self, boxes: Any, scores: Any, labels: Any, half: Any, rows: slice, saturated: bool
    ) -> Instances:
        from geoseg.models.inference import BOX_PROBABILITY

        boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
        size = self.detector.card.mask_size
        if self._cells:
            masks = half[rows].astype(np.float32)
        else:
            masks = np.full((len(boxes), size, size), BOX_PROBABILITY, np.float32)
        finite = np.isfinite(masks).all((1, 2))
        return Instances(
            boxes=boxes[finite].copy(),
            scores=scores[finite].clip(0, 1),
            labels=labels[finite].astype(np.int64),
            masks=masks[finite],
            saturated=saturated,
        )


def _check_same(plain: Tensor, replayed: Tensor) -> None:
    """Refuse a graph whose pyramid is another than the plain one."""
    worst = float((plain - replayed).abs().max())
    if not worst <= 0.05 * float(plain.abs().max()):
        raise ModelError(f"the graph's pyramid differs by {worst}")


def _without_values(model: nn.Module, dtype: torch.dtype) -> Any:
    """Return a copy of a network whose weights are of the meta device, so that it takes no room."""
    memo: dict[int, Any] = {}
    for part in (*model.parameters(), *model.buffers()):
        bare = part.detach().to("meta")
        bare = bare.to(dtype) if bare.is_floating_point() else bare
        memo[id(part)] = (
            nn.Parameter(bare, requires_grad=False) if isinstance(part, nn.Parameter) else bare
        )
    return copy.deepcopy(model, memo)
