"""geoseg detect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geoseg.cli.progress import show_progress
from geoseg.cli.result import show_end, show_result


def _bands(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise click.BadParameter("expected band numbers such as 1,2,3, or names: red,green,blue")
    return tuple(int(part) if part.lstrip("-").isdigit() else part for part in parts)


def _gsd(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    if value is None or value == "native":
        return value
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter("expected native or metres per pixel, such as 0.13") from error


def _small(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    if value is None or value == "model":
        return value
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(
            f"'{value}' is no size in metres; write the option behind the images to take the "
            "model's size, or the metres: --small-objects 3"
        ) from error


def _once(
    _context: click.Context, _option: click.Parameter, value: tuple[Path, ...]
) -> Path | None:
    if len(value) > 1:
        raise click.BadParameter(f"given {len(value)} times; name further files with --also")
    # geoseg plan wants none
    return value[0] if value else None


@click.command(short_help="Find objects in images and write them as polygons.")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    callback=_once,
    help="GeoPackage (.gpkg), GeoParquet (.parquet), FlatGeobuf (.fgb), GeoJSON (.geojson) or COCO "
    "JSON (.coco.json).",
)
@click.option(
    "--also",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Write the objects to this file too; may be given again.",
)
@click.option(
    "--split-by",
    type=click.Choice(["region", "grid"]),
    help="One file per region, or per cell of a grid, and an index in place of the output.",
)
@click.option(
    "--split-rows",
    type=int,
    default=1_000_000,
    show_default=True,
    metavar="N",
    help="With --split-by grid: objects of a cell before it is cut into four.",
)
@click.option(
    "--model",
    default="buildings",
    show_default=True,
    help="Name (geoseg models), NAME@FILE, or a .safetensors or .pth file.",
)
@click.option("--detector", metavar="MODULE:FACTORY", help="Your own detector instead of a model.")
@click.option("--tile-size", type=int, help="Side of a tile, px.  [default: the model card's]")
@click.option("--overlap", type=int, help="Px that tiles share.  [default: the model card's]")
@click.option("--min-score", type=float, help="Score threshold.  [default: the model card's]")
@click.option(
    "--gsd", callback=_gsd, metavar="native|METRES", help="Working pixel size on the ground.  "
    "[default: the model card's]",
)  # fmt: skip
@click.option(
    "--bidx",
    "-b",
    callback=_bands,
    metavar="1,2,3",
    help="Bands in order: numbers from 1, or names.",
)
@click.option(
    "--scale",
    metavar="LOW,HIGH|none",
    help="Values that become black and white for the model, or none: take them as they are.  "
    "[default: by the whole image's values, where they are not the model's]",
)
@click.option("--src-crs", metavar="CRS", help="CRS of images that have none.")
@click.option("--asset", metavar="NAME", help="Asset of STAC items.  [default: visual or data]")
@click.option(
    "--allow-vrt", is_flag=True, help="Open .vrt mosaics of images beside them; docs/remote.md."
)
@click.option("--aoi", type=click.Path(path_type=Path), help="Look only inside these polygons.")
@click.option("--regions", type=click.Path(path_type=Path), help="Count per polygon of this layer.")
@click.option("--grid", metavar="SHAPE:METRES", help="Or count per cell: hexagon:500, square:1000.")
@click.option(
    "--counts",
    type=click.Path(path_type=Path),
    help="Write the counts to this file too: .csv, .xlsx or any format of --output.",
)
@click.option(
    "--rule",
    type=click.Choice(["point", "area", "intersects"]),
    default="point",
    show_default=True,
    help="Which region an object counts in; see geoseg count.",
)
@click.option("--regions-crs", metavar="CRS", help="CRS of --regions, where the file has none.")
@click.option("--parent", metavar="FIELD", help="Field with the id of a region's parent.")
@click.option("--id", "id_field", metavar="FIELD", help="Field with the ids that --parent names.")
@click.option("--force", is_flag=True, help="Run although the imagery cannot suit the model.")
@click.option("--workers", "-j", type=int, help="Processes.  [default: one per physical core]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--views",
    type=click.Choice(["1", "2", "4", "8"]),
    callback=lambda _context, _option, value: None if value is None else int(value),
    help="Look at each tile from so many sides and keep what they agree on: better, and as many "
    "times as slow.  [default: the model card's, else 1]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bfloat16", "float32", "exact"]),
    default="auto",
    help="Of the network; auto: bfloat16 where the device is fast at it; exact: as torchvision "
    "computes.",
)
@click.option(
    "--skip-empty",
    is_flag=True,
    help="Leave out tiles where a look at 4 times coarser pixels finds nothing: faster over empty "
    "land, and some objects are missed.",
)
@click.option(
    "--small-objects",
    is_flag=False,
    flag_value="model",
    callback=_small,
    metavar="[METRES]",
    help="Look for objects of this size: sets pixel, tiles, limits and smallest area; without "
    "METRES the size on the model's card.",
)
@click.option("--supertile-size", type=int, help="Side of what one task reads, px.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Parts, log and manifest; the same command goes on there.  [default: beside the output]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output or other run.")
@click.option("--dst-crs", help="CRS of the output.  [default: the first image's]")
@click.option(
    "--simplify", type=float, default=0.25, show_default=True, help="Tolerance of outlines, px."
)
@click.option("--resolve-overlaps", is_flag=True, help="Cut overlaps between objects of a class.")
@click.option("--regularize", is_flag=True, help="Right angles, where the shape allows it.")
@click.option(
    "--min-area", type=float, help="Leave smaller objects out, m2.  [default: the model card's]"
)
@click.option("--fill-holes", type=float, default=0.0, help="Fill holes up to this size, m2.")
@click.option(
    "--no-cross-image",
    "cross_image",
    is_flag=True,
    default=True,
    flag_value=False,
    help="Keep objects that overlapping images show once per image.",
)
@click.option(
    "--class-agnostic",
    is_flag=True,
    help="Let detections of different classes be one object; the class with most area wins.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="Leave a tile that fails out, or end the run.",
)
@click.option("--max-errors", type=int, metavar="N", help="End the run when more tiles failed.")
@click.option("--until", metavar="HH:MM", help="Stop by this local time; the same command goes on.")
@click.option(
    "--scheduler", metavar="ADDRESS|FILE", help="Join a Dask cluster: tcp://, tls://, or its file."
)
@click.option("--insecure-cluster", is_flag=True, help="Accept plain tcp beyond this machine.")
@click.option("--resource", multiple=True, metavar="NAME=N", help="What a worker must have: GPU=1.")
@click.option(
    "--shard", metavar="I/N", help="Run only this share; without --shard the command then joins."
)
@click.option("--notify", metavar="COMMAND", help="Run this at the end; see docs/faults.md.")
@click.option(
    "--no-report",
    "report",
    is_flag=True,
    default=True,
    flag_value=False,
    help="Leave the page report.html out of the run directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Find objects in IMAGES and write one polygon per object.

    IMAGES are files, folders, globs, lists (@images.txt), https:// and s3://, gs://, az://
    addresses, STAC items and collections.
    """
    from geoseg.config import DetectSettings
    from geoseg.jobs.pipeline import run_detect

    options["resource"] = options["resource"] or None
    settings = DetectSettings(**options)
    with show_end(context), show_progress(as_json=as_json) as progress:
        result = run_detect(settings, progress=progress)
    show_result(result, as_json=as_json)
    context.exit(result.exit_code)
