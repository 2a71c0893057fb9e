"""``geoseg models``: what is shipped and known by name, and cards."""

from __future__ import annotations

import json
from pathlib import Path

import click

from geoseg.cli.show import as_text, show_json, show_table


@click.group("models", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the models that have a name, or show a model's card."""
    from geoseg.models.known import KNOWN, TIMM_PREFIX
    from geoseg.models.registry import DEFAULT_MODEL, find_card, shipped_models

    if ctx.invoked_subcommand is not None:
        return
    paths = shipped_models()
    cards = {name: find_card(name) for name in paths}
    if as_json:
        shipped = [
            json.loads(card.to_json()) | {"path": str(paths[n])} for n, card in cards.items()
        ]
        show_json(shipped + [json.loads(find_card(name).to_json()) for name in KNOWN])
        return
    rows: list[list[object]] = [
        [
            name,
            ", ".join(card.classes),
            card.gsd_m,
            card.min_score,
            round(paths[name].stat().st_size / 1e6, 1),
            card.licence or None,
            "shipped, default" if name == DEFAULT_MODEL else "shipped",
        ]
        for name, card in cards.items()
    ]
    for model in KNOWN.values():
        boxes = "; boxes only" if "fasterrcnn" in model.name else ""
        if model.weights:
            about = ["80 of COCO", None, 0.05, model.size_mb, "see its card"]
            rows.append([model.name, *about, f"downloaded when first used{boxes}"])
        else:
            rows.append([model.name, None, None, None, None, None, "to be trained"])
    rows.append(
        [f"{TIMM_PREFIX}BACKBONE", None, None, None, None, None, "any of timm, to be trained"]
    )
    show_table(["model", "classes", "gsd_m", "min_score", "MB", "licence", ""], rows)


@command.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--stac", is_flag=True, help="Print a STAC item (Machine Learning Model extension).")
@click.pass_context
def show(ctx: click.Context, model: str, as_json: bool, stac: bool) -> None:
    """Show the card of MODEL: a name of the list, NAME@FILE, or a .safetensors or .pth file."""
    from geoseg.models.registry import find_card

    if stac:
        _show_stac(model)
        return
    card = json.loads(find_card(model).to_json())
    if as_json or (ctx.parent is not None and ctx.parent.params.get("as_json")):
        show_json(card)
        return
    _show_fields(card, indent="")


def _show_stac(model: str) -> None:
    from geoseg.models.known import known_url, split_name
    from geoseg.models.maskrcnn import Architecture, count_weights
    from geoseg.models.registry import find_card, find_model
    from geoseg.models.stac import stac_item

    card = find_card(model)
    known, path = split_name(model)
    if known is not None and path is None:
        # nothing is downloaded for a description
        where = known_url(known)
    else:
        where = str(Path(find_model(model)).absolute())
    total = count_weights(Architecture.from_dict(card.architecture), card.n_outputs)
    show_json(stac_item(card, where, total))


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
