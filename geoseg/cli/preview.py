"""``geoseg preview``: a picture of objects over imagery."""

from __future__ import annotations

from pathlib import Path

import click

Bounds = tuple[float, float, float, float]


def _parse_bounds(ctx: click.Context, param: click.Parameter, value: str | None) -> Bounds | None:
    """Return the four numbers of an option."""
    if value is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"'{value}' is not four numbers; expected x0,y0,x1,y1", ctx, param
        ) from error
    return x0, y0, x1, y1


@click.command("preview")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("objects", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The picture, .png."
)
@click.option("--truth", type=click.Path(path_type=Path), help="True polygons, drawn in cyan.")
@click.option(
    "--regions", type=click.Path(path_type=Path), help="Regions, drawn in white with their counts."
)
@click.option(
    "--max-px",
    type=click.IntRange(16, 20_000),
    default=2000,
    show_default=True,
    help="Longest side of the picture, px.",
)
@click.option(
    "--bounds",
    metavar="x0,y0,x1,y1",
    callback=_parse_bounds,
    help="Only this part, in the CRS of the image.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing picture.")
def command(
    *,
    image: Path,
    objects: Path,
    output: Path,
    truth: Path | None,
    regions: Path | None,
    max_px: int,
    bounds: Bounds | None,
    overwrite: bool,
) -> None:
    """Draw objects over imagery, as a PNG."""
    from geoseg.outputs.preview import preview_image
    from geoseg.outputs.tables import check_output, read_vector

    check_output(output, overwrite, suffixes=(".png",))
    click.echo(
        preview_image(
            image,
            read_vector(objects, what="objects"),
            output,
            truth=None if truth is None else read_vector(truth, what="truth"),
            regions=None if regions is None else read_vector(regions, what="regions"),
            bounds=bounds,
            max_px=max_px,
        )
    )
