"""``geoseg convert``: a checkpoint of another program as a model of this one."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    "convert",
    short_help="Make a model (safetensors and card) of a checkpoint, such as Detectron2's.",
)
@click.argument("checkpoint")
@click.option(
    "--config",
    metavar="YAML",
    help="Detectron2's config.yaml of the same training, or the name of one of its standard "
    "files, such as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .safetensors file to write; its card goes beside it as .json.",
)
@click.option("--classes", metavar="A,B,C", help="Class names in the order of the labels.")
@click.option(
    "--gsd",
    type=click.FloatRange(0, min_open=True),
    metavar="METRES",
    help="Ground metres per pixel of the imagery that the model was trained on.",
)
@click.option("--licence", help="Licence of the weights, for the card and the output.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def command(
    *,
    checkpoint: str,
    config: str | None,
    output: Path,
    classes: str | None,
    gsd: float | None,
    licence: str | None,
    overwrite: bool,
) -> None:
    """Make a model (safetensors and card) of CHECKPOINT.

    With --config it is a Detectron2 file: .pth, .pt, or a .pkl of the model zoo. Without, it is
    what geoseg detect --model takes. Nothing in the file can run code. The model's path is
    printed at the end.
    """
    from geoseg.errors import OutputError
    from geoseg.models.convert import convert

    there = [path for path in (output, output.with_suffix(".json")) if path.exists()]
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists; choose another name, or --overwrite to replace it")
    names = [name.strip() for name in classes.split(",")] if classes else []
    card = convert(checkpoint, output, config=config, classes=names, gsd_m=gsd, licence=licence)
    shown = ", ".join(card.classes[:5]) + (", ..." if len(card.classes) > 5 else "")
    click.echo(f"{len(card.classes)} classes ({shown}); min_score {card.min_score:g}", err=True)
    if not card.licence:
        click.echo("no licence is known: --licence puts it into the card", err=True)
    click.echo(output)
