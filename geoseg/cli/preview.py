"""``geoseg preview``: a picture of objects over imagery."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
            f"'{value}' is not four numbers; expected {param.make_metavar(ctx)}", ctx, param
        ) from error
    return x0, y0, x1, y1


def _parse_window(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Return the window of an option."""
    numbers = _parse_bounds(ctx, param, value)
    if numbers is None:
        return None
    if any(number != int(number) for number in numbers):
        raise click.BadParameter(f"'{value}' are not whole pixels", ctx, param)
    from rasterio.windows import Window

    return Window(*(int(number) for number in numbers))


@click.command("preview")
@click.argument("image")
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
@click.option(
    "--window",
    metavar="col_off,row_off,width,height",
    callback=_parse_window,
    help="Only these pixels of the image.",
)
@click.option("--region", metavar="NAME", help="Only this region of --regions, or of OBJECTS.")
@click.option(
    "--labels",
    type=click.Choice(["auto", "all", "none"]),
    default="auto",
    show_default=True,
    help="Class and score at each object; auto: where there is room.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing picture.")
@click.option("--src-crs", metavar="CRS", help="CRS of the image, if it has none.")
@click.option("--asset", metavar="NAME", help="Asset of a STAC item.  [default: visual or data]")
@click.option("--allow-vrt", is_flag=True, help="Open a .vrt mosaic; docs/remote.md.")
def command(
    *,
    image: str,
    objects: Path,
    output: Path,
    truth: Path | None,
    regions: Path | None,
    max_px: int,
    bounds: Bounds | None,
    window: Any,
    region: str | None,
    labels: Literal["auto", "all", "none"],
    overwrite: bool,
    src_crs: str | None,
    asset: str | None,
    allow_vrt: bool,
) -> None:
    """Draw objects over imagery, as a PNG.

    Masks are filled lightly and outlined, a colour per class. Overviews are read where the image
    has any; --bounds, --window or --region choose a part.
    """
    from geoseg.imagery.inputs import find_image
    from geoseg.outputs.preview import preview_image
    from geoseg.outputs.tables import check_output, read_vector

    check_output(output, overwrite, suffixes=(".png",))
    if region is not None and regions is None:
        # outputs of geoseg detect --regions have them as a layer
        areas = read_vector(objects, layer="regions", what="regions")
    else:
        areas = None if regions is None else read_vector(regions, what="regions")
    click.echo(
        preview_image(
            find_image(image, asset=asset, allow_vrt=allow_vrt),
            read_vector(objects, what="objects"),
            output,
            truth=None if truth is None else read_vector(truth, what="truth"),
            regions=areas,
            bounds=bounds,
            window=window,
            region=region,
            labels=labels,
            max_px=max_px,
            src_crs=src_crs,
        )
    )
