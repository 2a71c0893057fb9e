"""``geoseg train``: from labels to a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.errors import ConfigError

if TYPE_CHECKING:
    from geoseg.learning.labels import Site
    from geoseg.learning.team import Team

_LOSSES = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
_HEAD_EVERY = 20


@click.command("train")
@click.argument(
    "training_file", metavar="[TRAIN.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--run-dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for checkpoint, log, curves and model; the same command goes on from its "
    "checkpoint.",
)
@click.option("--image", help="Instead of a training file: the image, a folder or a glob.")
@click.option("--labels", help="Its labels: polygons in any vector file and CRS, or COCO JSON.")
@click.option(
    "--aoi",
    help="Where everything is labelled: a vector file, 'image' for all of the image, or 'labels' "
    "for the rectangle around the labels.",
)
@click.option("--class-field", help="Field of the labels that tells their class.")
@click.option("--class-name", help="Class of all labels, without --class-field [default: object].")
@click.option(
    "--start",
    help="What to begin with: a model's name or path, imagenet, or nothing [default: buildings].",
)
@click.option("--gsd", type=click.FloatRange(min=0, min_open=True), help="Working GSD, metres.")
@click.option(
    "--small-objects",
    help="Size of small objects, metres, or 'labels' for that of the smallest tenth of them: sets "
    "pixel, chips and anchors (docs/small-objects.md).",
)
@click.option(
    "--validation",
    type=click.FloatRange(0, 0.5),
    help="Share of the labels that is kept to judge by [default: 0.2].",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps in all, without a file [600].")
@click.option(
    "--stop-after",
    type=click.IntRange(min=1),
    help="Stop after this many steps now; the schedule stays as it is.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU where there is one.",
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    help="Processes that train together [default: one per GPU, as many as share a batch evenly].",
)
@click.option("--check", is_flag=True, help="Only read the labels and say what is wrong with them.")
def command(
    training_file: Path | None,
    run_dir: Path,
    device: str,
    devices: int | None,
    stop_after: int | None,
    check: bool,
    **quick: Any,
) -> None:
    """Train a model from a training file (TOML), or from one image and its labels.

    The file has a table [train] with the settings, one [[sites]] per image with its labels and
    AOI, [[validation]] for those that are kept to judge by, and [card] with what goes into the
    model's card; workflows/train_buildings.toml is one. With --image, --labels and --aoi such a
    file is written into the folder first. The model's path is printed at the end.
    """
    path = _training_file(training_file, run_dir, quick)
    from geoseg.jobs.training import check_labels, run_training
    from geoseg.learning.team import count_devices, train_together
    from geoseg.learning.train import MODEL, check_devices, read_training_file
    from geoseg.models.inference import choose_device

    # before the folder is made and the sites are read
    job = read_training_file(path)
    if check:
        _tell(check_labels(path))
        return
    kind = choose_device(device).type
    count = devices or count_devices(kind, job.settings.batch)
    check_devices(job.settings, count)
    if count == 1:
        model = run_training(path, run_dir, kind, max_steps=stop_after, shown=Table())
    else:
        train_together(count, kind, partial(_member, path, run_dir, kind, stop_after))
        model = run_dir / MODEL
    click.echo(model)


def _member(path: Path, run_dir: Path, kind: str, stop_after: int | None, team: Team) -> None:
    """Train as one of several processes."""
    from geoseg.jobs.training import run_training

    run_training(path, run_dir, kind, max_steps=stop_after, shown=Table(), team=team)


def _training_file(given: Path | None, run_dir: Path, quick: Mapping[str, Any]) -> Path:
    """Return the training file, written first where options stand for one."""
    named = {k: v for k, v in quick.items() if v is not None}
    if given is not None:
        if named:
            option = next(iter(named)).replace("_", "-")
            raise ConfigError(f"--{option} goes without a training file; change {given} instead")
        return given
    if "image" not in named or "labels" not in named:
        raise ConfigError("give a training file, or --image and --labels (and --aoi)")
    from geoseg.jobs.training import QuickJob, write_quick_file

    named["gsd_m"] = named.pop("gsd", None)
    named["small_objects"] = _size(named.get("small_objects"))
    return write_quick_file(QuickJob(**named, name=run_dir.resolve().name), run_dir)


def _size(given: str | None) -> float | str | None:
    """Return metres, or 'labels'."""
    if given is None or given == "labels":
        return given
    try:
        return float(given)
    except ValueError:
        raise ConfigError(
            f"--small-objects is '{given}'; expected a size in metres, or 'labels'"
        ) from None


class Table:
    """Prints the rows of a training's log as a table that grows."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Print one row."""
        if "validation" in row:
            v = row["validation"]
            click.echo(
                f"{row['step']:>7}  validation: F1 {v['f1']:.3f} at {v['min_score']:.2f}  "
                f"precision {v['precision']:.3f}  recall {v['recall']:.3f}  "
                f"count {v['count_error']:+.0%}",
                err=True,
            )
            return
        if self.rows % _HEAD_EVERY == 0:
            names = "".join(f"{name:>13}" for name in _LOSSES)
            click.echo(f"{'step':>7}{'s/step':>8}{names}", err=True)
        self.rows += 1
        losses = "".join(f"{row.get(name, float('nan')):13.4f}" for name in _LOSSES)
        click.echo(f"{row['step']:>7}{row['s_per_step']:>8.2f}{losses}", err=True)


def _tell(sites: list[Site]) -> None:
    """Print what became of the labels of each site."""
    for site in sites:
        report = site.report
        if report is None:
            continue
        classes = ", ".join(f"{name} {n:,}" for name, n in report.classes.items())
        click.echo(
            f"{site.name}: {report.used:,} of {report.read:,} labels used ({classes}), "
            f"{report.cut:,} cut by the AOI"
        )
        for line in report.problems():
            click.echo(f"  {line}")
