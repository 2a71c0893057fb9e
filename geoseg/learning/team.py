"""Several processes that train one model together, each on a device and a share of the chips.

Gradients are averaged after each backward pass, so that all hold the same weights at all times.
That is what torch's DistributedDataParallel does; it wraps one ``forward``, where a detector in
training calls its parts one by one, and a single all-reduce of 24 MB needs no overlap.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessException, spawn

from geoseg.errors import ConfigError, GeosegError

_PATIENCE = timedelta(hours=6)
"""The others wait while the first one validates."""


@dataclass(frozen=True, slots=True)
class Team:
    """The place of a process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process logs, validates and saves."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """Return this process's own device of the wanted kind."""
        return torch.device("cuda", self.rank) if wanted.type == "cuda" else wanted

    @torch.no_grad()
    def average_gradients(self, model: nn.Module) -> None:
        """Make every process's gradients the mean over all."""
        if self.size == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            # a batch without objects has no gradient for the mask head
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.size
        begin = 0
        for parameter in parameters:
            end = begin + parameter.numel()
            parameter.grad = flat[begin:end].view_as(parameter).clone()
            begin = end

    def wait(self) -> None:
        """Wait for the others, who wait for what the first still has to do."""
        if self.size > 1:
            dist.barrier()


ALONE = Team()


def count_devices(kind: str, batch: int) -> int:
    """Return on how many devices of a kind to train: as many as can share a batch evenly."""
    there = torch.cuda.device_count() if kind == "cuda" else 1
    return max(n for n in range(1, max(there, 1) + 1) if batch % n == 0)


def train_together(size: int, kind: str, work: Callable[[Team], None]) -> None:
    """Run ``work`` in processes that form a team, and wait for them.

    Parameters
    ----------
    size : int
        Processes; on 'cuda' one per GPU, at most as many as there are.
    kind : str
        'cuda' (NCCL) or 'cpu' (Gloo).
    work : callable
        Takes the `Team`; must be importable (it is sent by pickle).

    Raises
    ------
    ConfigError
        If there are fewer GPUs than asked for.
    GeosegError
        If one of them failed; the message is its own.
    """
    if kind == "cuda" and size > torch.cuda.device_count():
        raise ConfigError(f"--devices is {size}, but there are {torch.cuda.device_count()} GPUs")
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_join, (size, kind, folder, work), nprocs=size)
        except ProcessException as error:
            said = str(error).strip().splitlines()[-1]
            raise GeosegError(f"one of {size} training processes failed: {said}") from error


def _join(rank: int, size: int, kind: str, folder: str, work: Callable[[Team], None]) -> None:
    # they meet through a file and talk within this machine only
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=(Path(folder) / "team").as_uri(),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    try:
        work(Team(rank, size))
    finally:
        dist.destroy_process_group()
