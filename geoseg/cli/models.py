"""``geoseg models``: what is shipped, and cards."""

from __future__ import annotations

import json

import click

from geoseg.cli.show import as_text, show_json, show_table


@click.group("models", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the shipped models, or show a model's card."""
    from geoseg.models.registry import DEFAULT_MODEL, find_card, shipped_models

    if ctx.invoked_subcommand is not None:
        return
    paths = shipped_models()
    cards = {name: find_card(name) for name in paths}
    if as_json:
        show_json(
            [json.loads(card.to_json()) | {"path": str(paths[n])} for n, card in cards.items()]
        )
        return
    if not cards:
        click.echo("no models are shipped with this installation; name a .safetensors file instead")
        return
    show_table(
        ["model", "classes", "gsd_m", "min_score", "MB", "licence", ""],
        [
            [
                name,
                ", ".join(card.classes),
                card.gsd_m,
                card.min_score,
                round(paths[name].stat().st_size / 1e6, 1),
                card.licence or None,
                "default" if name == DEFAULT_MODEL else "",
            ]
            for name, card in cards.items()
        ],
    )


@command.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, model: str, as_json: bool) -> None:
    """Show the card of MODEL: the name of a shipped one, or a .safetensors file."""
    from geoseg.models.registry import find_card

    card = json.loads(find_card(model).to_json())
    if as_json or (ctx.parent is not None and ctx.parent.params.get("as_json")):
        show_json(card)
        return
    _show_fields(card, indent="")


def _show_fields(values: dict[str, object], indent: str) -> None:
    """Print names and values, tables within tables further in; nothing for what is empty."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        if isinstance(value, dict) and value:
            click.echo(f"{indent}{name}")
            _show_fields(value, indent + "  ")
        elif isinstance(value, list) and value:
            click.echo(f"{indent}{name.ljust(width)}  {', '.join(str(v) for v in value)}")
        elif value not in ("", None, [], {}):
            shown = f"{value:g}" if isinstance(value, float) else as_text(value)
            click.echo(f"{indent}{name.ljust(width)}  {shown}")
