"""``geoseg train``: from labels to a model."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("train")
@click.argument("training_file", metavar="TRAIN.toml", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--run-dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for checkpoint, log and model; the same command goes on from its checkpoint.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU where there is one.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Stop after this many steps now; the schedule stays that of the file.",
)
def command(training_file: Path, run_dir: Path, device: str, steps: int | None) -> None:
    """Train a model from a training file (TOML).

    The file has a table [train] with the settings, one [[sites]] per image with its labels and
    AOI, and [card] with what goes into the model's card; workflows/train_buildings.toml is one.
    The model's path is printed at the end.
    """
    from geoseg.learning.train import read_training_file, train
    from geoseg.models.inference import choose_device

    # before the folder is made and the sites are read
    read_training_file(training_file)
    click.echo(train(training_file, run_dir, choose_device(device).type, max_steps=steps))
