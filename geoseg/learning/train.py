"""Train the compact Mask R-CNN on labelled sites; go on after any interruption.

The chips, the schedule and the random state are functions of (seed, step), so a run that was
killed and started again takes the same way as one that was not.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from geoseg.config import read_toml, wrong_type
from geoseg.errors import ConfigError
from geoseg.learning.chips import Augmentation, ChipSampler
from geoseg.learning.labels import Site, check_site, load_sites, read_outlines
from geoseg.learning.small import LARGE_SHARE, size_of_labels, training_for
from geoseg.learning.start import FROM_NOWHERE, Start, find_start, initial_model, learnt_gsd
from geoseg.learning.team import ALONE, Team
from geoseg.models.card import ModelCard, save_model, with_tuples
from geoseg.models.cpu import bfloat16_pays
from geoseg.models.inference import choose_device
from geoseg.models.maskrcnn import Architecture

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
MODEL, BEST, CANDIDATE = "model.safetensors", "best.safetensors", "candidate.safetensors"
LOG = "log.jsonl"
USUAL_CHIP_PX = 384
REPORT_EVERY = 20
"""Steps between rows of the log."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of one training, as in the ``[train]`` table of a training file."""

    classes: tuple[str, ...]
    """Class names in label order."""
    gsd_m: float = 0.0
    """Working ground sampling distance, metres; 0: as ``small_objects`` has it."""
    steps: int = 4000
    """Optimizer steps; the learning rate falls to zero along a cosine over them."""
    batch: int = 4
    """Chips a step."""
    chip_px: int = USUAL_CHIP_PX
    """Side of a chip, px."""
    seed: int = 1
    """Seeds weights, chips and samplers."""
    lr: float = 8e-4
    """Peak learning rate of the pyramid and the heads."""
    lr_backbone: float = 2e-4
    """Peak learning rate of the backbone."""
    weight_decay: float = 0.02
    """AdamW's decay of weights, not of norms and biases."""
    warmup: int = 150
    """Steps over which the learning rate rises."""
    ema: float = 0.998
    """Decay of the running mean of the weights, which is what is saved."""
    mixed_precision: bool = True
    """bfloat16 in the forward pass, where the device is fast at it."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    validate_every: int = 0
    """Steps between runs over the [[validation]] areas; 0: a fifth of all steps."""
    start: str = "imagenet"
    """Where the weights come from: 'imagenet', 'nothing', a model's name (COCO's among them) or a
    path."""
    frozen: tuple[str, ...] = ("conv_stem", "conv1.", "bn1", "blocks.0.", "blocks.1.", "layer1.")
    """Prefixes of backbone weights that stay as they are."""
    architecture: Architecture | None = None
    """Sizes of the network; None: those of the model that it starts from, or the shipped one's."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How chips vary."""
    small_objects: float | str | None = None
    """Size of small objects, m, or 'labels' for that of the smallest tenth of the labels: sets
    pixel, chips, anchors and the card's limits where they are not given (docs/small-objects.md)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "chip_px", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"[train] {name} is {getattr(self, name)}; expected at least 1")
        if self.gsd_m == 0 and self.small_objects is None:
            raise ConfigError("[train] lacks gsd_m; give metres per pixel, or small_objects")
        if isinstance(self.small_objects, str) and self.small_objects != "labels":
            raise ConfigError(
                f"[train] small_objects is '{self.small_objects}'; expected a size in metres or "
                "'labels'"
            )
        if not (0.001 <= self.gsd_m <= 1000 or self.gsd_m == 0):
            raise ConfigError(f"[train] gsd_m is {self.gsd_m}; expected 0.001 to 1000 metres")
        if not self.classes:
            raise ConfigError("[train] classes is empty; name at least one class")


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """A training file: settings, the table of sites and what goes into the card."""

    path: Path
    settings: TrainSettings
    sites: tuple[dict[str, Any], ...]
    card: dict[str, Any]
    validation: tuple[dict[str, Any], ...] = ()
    """Tables like those of sites, which are judged and never learnt from."""


@dataclass(frozen=True, slots=True)
class Validation:
    """How good a checkpoint is: final polygons on the validation areas."""

    f1: float
    min_score: float
    """The threshold at which it is that good."""
    precision: float
    recall: float
    count_error: float
    """Objects over true ones, minus 1."""
    n_truth: int


class Watcher(Protocol):
    """What goes along with a training: shows its rows, judges its checkpoints."""

    def show(self, row: Mapping[str, Any]) -> None:
        """Take a row of the log."""

    def validate(self, model: Path) -> Validation | None:
        """Judge a model on the validation areas; None where there are none."""


class Silent:
    """A watcher that neither shows nor judges."""

    def show(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def validate(self, model: Path) -> Validation | None:  # noqa: ARG002  # the protocol's
        """Judge nothing."""
        return None


def read_training_file(path: Path) -> TrainingFile:
    """Read a training file (TOML with ``[train]``, ``[[sites]]`` and ``[card]``).

    Raises
    ------
    ConfigError
        If the file is missing, is no TOML, or has keys that mean nothing.
    """
    table = _read_tables(path)
    try:
        settings = _settings(path, table.get("train", {}))
    except TypeError as error:
        raise ConfigError(f"{path}: [train] {error}") from error
    sites = table.get("sites")
    if not sites or not isinstance(sites, list):
        raise ConfigError(f"{path} has no [[sites]]; add at least one with image, labels and aoi")
    for number, site in enumerate(sites, 1):
        check_site(site, f"{path}: site {number}")
    kept = table.get("validation", [])
    if not isinstance(kept, list):
        raise ConfigError(f"{path}: validation is {kept!r}; write it as [[validation]]")
    for number, site in enumerate(kept, 1):
        check_site(site, f"{path}: validation {number}")
    return TrainingFile(path, settings, tuple(sites), dict(table.get("card", {})), tuple(kept))


def _read_tables(path: Path) -> dict[str, Any]:
    """Read a TOML file whose tables are where they belong."""
    table = read_toml(path, "training file")
    train = table.get("train", {})
    parts = {"train": train, "card": table.get("card", {})}
    if isinstance(train, dict):
        parts |= {k: train[k] for k in ("architecture", "augmentation") if k in train}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ConfigError(f"{path}: {name} is {part!r}; expected a table")
    return table


def _settings(path: Path, table: dict[str, Any]) -> TrainSettings:
    """Return the settings of a [train] table; a key that nobody knows raises TypeError."""
    train = with_tuples(table)
    if wrong := wrong_type(TrainSettings, {"gsd_m": train.get("gsd_m", 1.0)}):
        raise ConfigError(f"{path}: [train] {wrong}")
    if "architecture" in train:
        train["architecture"] = Architecture.from_dict(
            train["architecture"], gsd_m=train.get("gsd_m")
        )
    if "augmentation" in train:
        values = with_tuples(train["augmentation"])
        if wrong := wrong_type(Augmentation, values):
            raise ConfigError(f"{path}: [train] augmentation: {wrong}")
        train["augmentation"] = Augmentation(**values)
    train.setdefault("classes", ())
    if wrong := wrong_type(TrainSettings, train):
        raise ConfigError(f"{path}: [train] {wrong}")
    return TrainSettings(**train)


class _Chips(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Numbered chips, for a loader that reads ahead in a process of its own."""

    def __init__(self, sampler: ChipSampler, numbers: range) -> None:
        self.sampler, self.numbers = sampler, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.sampler.chip(self.numbers[i])


def _batches(
    sampler: ChipSampler, settings: TrainSettings, first_step: int, team: Team
) -> Iterator[list[tuple[Tensor, dict[str, Tensor]]]]:
    """Yield this process's share of each step's chips; together they are those of one process."""
    first, end = first_step * settings.batch, settings.steps * settings.batch
    chips = _Chips(sampler, range(first + team.rank, end, team.size))
    loader = torch.utils.data.DataLoader(
        chips,
        batch_size=settings.batch // team.size,
        collate_fn=list,
        num_workers=1,
        prefetch_factor=3,
    )
    yield from loader


@dataclass(slots=True, eq=False)
class _Trainer:
    """The network in training and all that a checkpoint holds."""

    settings: TrainSettings
    start: Start
    device: torch.device
    model: nn.Module
    mean: nn.Module
    """The running mean of the weights, which is what is saved."""
    optimizer: torch.optim.Optimizer
    mixed: bool
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    """The best validation so far, and its step."""

    def advance(
        self, batch: list[tuple[Tensor, dict[str, Tensor]]], team: Team
    ) -> dict[str, Tensor]:
        """Take one step and return its losses."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * _schedule(self.step, settings)
        torch.manual_seed(settings.seed * 1_000_003 + self.step + team.rank * 2**40)
        losses = self._losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        team.average_gradients(self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            log.warning("step %d: gradient is not finite, step left out", self.step)
        _update_mean(self.mean, self.model, min(settings.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return losses

    def _losses(self, batch: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Return torchvision's five losses on one batch, without its resize."""
        model: Any = self.model
        pixels = torch.stack([chip for chip, _ in batch]).to(self.device)
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None]
            for v in (self.start.mean, self.start.std)
        )
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        targets = [{k: v.to(self.device) for k, v in target.items()} for _, target in batch]
        sizes = [(int(pixels.shape[2]), int(pixels.shape[3]))] * len(batch)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            features = model.backbone(pixels)
            proposals, rpn = model.rpn(ImageList(pixels, sizes), features, targets)
            _, heads = model.roi_heads(features, proposals, sizes, targets)
        return {**rpn, **heads}

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        private = path.with_suffix(".tmp")
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "mean": self.mean.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
            },
            private,
        )
        private.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = int(state["step"]), dict(state.get("best", {}))
        log.info("going on from step %s of %s", state["step"], path)


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (name.startswith("backbone.body."), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak_lr": settings.lr_backbone if body else settings.lr,
                "weight_decay": settings.weight_decay if decay else 0.0,
            }
            for (body, decay), parameters in groups.items()
        ],
        lr=settings.lr,
    )


def _schedule(step: int, settings: TrainSettings) -> float:
    """Return the share of the peak learning rate at a step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def with_small_objects(job: TrainingFile) -> TrainingFile:
    """Return a training file in which ``small_objects`` has become settings.

    What the file says itself stays as it is. Anchors are set only where no model's weights are
    taken over: to them, the network's outputs mean distances from the anchors they know.

    Raises
    ------
    ConfigError, LabelError, SourceError
        If there is no size to be told, or a file cannot be read.
    """
    settings = job.settings
    if settings.small_objects is None:
        return job
    folder = job.path.parent
    read = [read_outlines(folder, table) for table in job.sites]
    polygons = np.concatenate([shapes for shapes, _ in read])
    names = [i for i, (shapes, _) in enumerate(read) for _ in shapes]
    size = settings.small_objects
    if isinstance(size, str):
        size = size_of_labels(polygons, "EPSG:4326", sites=names)
    from_nowhere = settings.start in FROM_NOWHERE
    learnt = None if from_nowhere else learnt_gsd(settings.start, folder)
    chosen = training_for(
        size,
        [gsd for _, gsds in read for gsd in gsds],
        start_gsd_m=learnt,
        largest_m=size_of_labels(polygons, "EPSG:4326", sites=names, share=LARGE_SHARE),
        gsd_m=settings.gsd_m or None,
        chip_px=None if settings.chip_px == USUAL_CHIP_PX else settings.chip_px,
    )
    log.info("%s", chosen.line)
    architecture = settings.architecture
    if architecture is None and from_nowhere:
        architecture = Architecture(anchor_sizes_px=chosen.anchor_sizes_px)
    settings = replace(
        settings, gsd_m=chosen.gsd_m, chip_px=chosen.chip_px, architecture=architecture
    )
    return replace(job, settings=settings, card={**chosen.card, **job.card})


def check_devices(settings: TrainSettings, count: int) -> None:
    """Refuse a number of devices that a step's chips cannot be shared among.

    Raises
    ------
    ConfigError
        If the batch is no multiple of it.
    """
    if settings.batch % count:
        raise ConfigError(
            f"[train] batch is {settings.batch}; expected a multiple of {count}, the number of "
            "devices"
        )


def load_training_sites(job: TrainingFile) -> list[Site]:
    """Read all sites of a training file, and log what is wrong with their labels.

    Raises
    ------
    LabelError, SourceError
        If a site cannot be used.
    """
    sites: list[Site] = []
    for table in job.sites:
        sites += load_sites(job.path.parent, table, job.settings.gsd_m, job.settings.classes)
    for site in sites:
        shape, n = site.valid.shape, len(site.polygons)
        log.info("site %s: %s px, %d labels, weight %g", site.name, shape, n, site.weight)
        for line in site.report.problems() if site.report else ():
            log.warning("site %s: %s", site.name, line)
    return sites


def train(
    path: Path,
    run_dir: Path,
    device: str = "auto",
    *,
    max_steps: int | None = None,
    watcher: Watcher | None = None,
    team: Team = ALONE,
) -> Path:
    """Train a model from a training file, going on from the run directory's checkpoint.

    Parameters
    ----------
    path : Path
        Training file (TOML); see ``workflows/train_buildings.toml``.
    run_dir : Path
        Holds the checkpoint, the log and at the end the model. The same call goes on.
    device : str
        'auto', 'cpu' or 'cuda'.
    max_steps : int, optional
        Stop after this many steps of this call; the schedule is not changed.
    watcher : Watcher, optional
        Shows progress, and judges checkpoints; `geoseg.jobs.training` has the usual one.
    team : Team
        The processes that train together; see `geoseg.learning.team`.

    Returns
    -------
    Path
        ``run_dir/model.safetensors`` in half precision, with its card beside it: the running mean
        of the weights, at the step that was judged best, or at the last where nobody judges.

    Raises
    ------
    ConfigError, LabelError, SourceError
        If a setting or a site cannot be used.
    """
    job = with_small_objects(read_training_file(path))
    settings = job.settings
    check_devices(settings, team.size)
    watcher = watcher or Silent()
    run_dir.mkdir(parents=True, exist_ok=True)
    sites = load_training_sites(job)
    if team.leads:
        _write_reports(run_dir / "labels.json", sites)
    sampler = ChipSampler(sites, settings.chip_px, settings.seed, settings.augmentation)
    trainer = _trainer(job, team.device(choose_device(device)))
    trainer.load(run_dir / CHECKPOINT)
    first, last = trainer.step, settings.steps
    if max_steps is not None:
        last = min(last, first + max_steps)
    trainer.model.train()
    meter = _Meter(run_dir / LOG, first, settings.steps)
    every = settings.validate_every or max(1, settings.steps // 5)
    for batch in _batches(sampler, settings, first, team) if first < last else ():
        losses = trainer.advance(batch, team)
        step = trainer.step
        if not team.leads:
            if step == last:
                break
            continue
        meter.add(losses)
        if step % REPORT_EVERY == 0:
            watcher.show(meter.row(step))
        if step % every == 0 or step == settings.steps:
            _judge(trainer, job, run_dir, watcher, meter)
        if step % settings.checkpoint_every == 0 or step == last:
            trainer.save(run_dir / CHECKPOINT)
        if step == last:
            break
    team.wait()
    return _finish(trainer, job, run_dir) if team.leads else run_dir / MODEL


def _trainer(job: TrainingFile, device: torch.device) -> _Trainer:
    settings = job.settings
    start = find_start(settings.start, job.path.parent, settings.architecture)
    model = initial_model(start, settings.classes, settings.frozen, settings.seed)
    model = model.to(device, memory_format=torch.channels_last)
    # without matrix units for it bfloat16 is slower than float32, and less exact
    fast = device.type == "cuda" or bfloat16_pays()
    return _Trainer(
        settings=settings,
        start=start,
        device=device,
        model=model,
        mean=copy.deepcopy(model).eval(),
        optimizer=_optimizer(model, settings),
        mixed=settings.mixed_precision and fast,
    )


def _judge(
    trainer: _Trainer, job: TrainingFile, run_dir: Path, watcher: Watcher, meter: _Meter
) -> None:
    """Judge the mean weights as they are, and keep them if they are the best so far."""
    candidate = save_model(run_dir / CANDIDATE, trainer.mean, _card(job, trainer), half=True)
    # a run in this process sets threads as it likes; sums of other threads differ in the last bit
    threads = torch.get_num_threads()
    result = watcher.validate(candidate)
    torch.set_num_threads(threads)
    if result is not None:
        watcher.show(meter.note({"step": trainer.step, "validation": asdict(result)}))
        if result.f1 > trainer.best.get("f1", -1.0):
            trainer.best = {"step": trainer.step, **asdict(result)}
            save_model(run_dir / BEST, trainer.mean, _card(job, trainer), half=True)
    candidate.unlink()
    candidate.with_suffix(".json").unlink()


def _finish(trainer: _Trainer, job: TrainingFile, run_dir: Path) -> Path:
    """Write the model: the best where checkpoints were judged, else the last."""
    target = run_dir / MODEL
    best = run_dir / BEST
    if not trainer.best or not best.is_file():
        return save_model(target, trainer.mean, _card(job, trainer), half=True)
    for suffix in (".json", ".safetensors"):
        private = target.with_suffix(".tmp")
        private.write_bytes(best.with_suffix(suffix).read_bytes())
        private.replace(target.with_suffix(suffix))
    log.info("the best of the checkpoints is that of step %d", trainer.best["step"])
    return target


def _write_reports(path: Path, sites: list[Site]) -> None:
    reports = [site.report.to_dict() for site in sites if site.report]
    path.write_text(json.dumps(reports, indent=2), encoding="utf-8")


def _card(job: TrainingFile, trainer: _Trainer) -> ModelCard:
    settings = job.settings
    left_out = ("architecture", "classes")
    training = {k: v for k, v in asdict(settings).items() if k not in left_out}
    own: dict[str, Any] = {
        "name": job.path.stem,
        "classes": settings.classes,
        "gsd_m": settings.gsd_m,
        "architecture": trainer.start.architecture.to_dict(),
        "mean": trainer.start.mean,
        "std": trainer.start.std,
        "training": {
            **training,
            "steps_taken": trainer.step,
            "sites": [str(s.get("name", s["image"])) for s in job.sites],
        },
    }
    if trainer.best:
        own["min_score"] = trainer.best["min_score"]
        own["quality"] = {"validation": trainer.best, "iou": 0.5}
    # the [card] table of the training file has the last word
    return ModelCard.from_dict(own | job.card, str(job.path))


class _Meter:
    """Smooths losses and keeps the log."""

    def __init__(self, path: Path, first: int, steps: int) -> None:
        self.path, self.first, self.steps = path, first, steps
        self.begun = time.monotonic()
        self.shown: dict[str, float] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take the losses of a step."""
        for name, value in losses.items():
            self.shown[name] = 0.98 * self.shown.get(name, value.item()) + 0.02 * value.item()

    def row(self, step: int) -> dict[str, Any]:
        """Return the row of a step, and log it."""
        seconds = (time.monotonic() - self.begun) / (step - self.first)
        row: dict[str, Any] = {"step": step, "s_per_step": round(seconds, 3)}
        row |= {n.removeprefix("loss_"): round(v, 4) for n, v in self.shown.items()}
        return self.note(row)

    def note(self, row: dict[str, Any]) -> dict[str, Any]:
        """Log a row, and return it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        log.debug("step %s of %s: %s", row["step"], self.steps, row)
        return row


@torch.no_grad()
def _update_mean(mean: nn.Module, model: nn.Module, decay: float) -> None:
    for ours, theirs in zip(mean.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)
    # what trained batch norms know of their input is a running mean already
    for kept, seen in zip(mean.buffers(), model.buffers(), strict=True):
        kept.copy_(seen)
