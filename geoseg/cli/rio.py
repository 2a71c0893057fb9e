"""``rio geoseg``: the same command below rasterio's."""

from __future__ import annotations

import click


@click.command(
    "geoseg",
    short_help="Find and count objects in aerial imagery overnight.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def plugin(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run geoseg with ARGUMENTS, by its own entry point: errors are a line, exit codes its own."""
    from geoseg.cli.main import main

    context.exit(main(arguments))
