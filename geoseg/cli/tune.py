"""``geoseg tune``: thresholds and a calibration for a model's card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.show import show_json, show_table

if TYPE_CHECKING:
    from geoseg.jobs.tune import Tuning

_PATH = click.Path(path_type=Path)
_SHOWN = ("n_objects", "precision", "recall", "f1", "count_error")


@click.command("tune")
@click.argument("model")
@click.option("--image", multiple=True, type=_PATH, help="Labelled image; may be given again.")
@click.option("--labels", multiple=True, type=_PATH, help="Its labels, one file per --image.")
@click.option("--aoi", multiple=True, type=_PATH, help="Where they are complete, one per --image.")
@click.option("--class-field", help="Field of the labels that names the class.")
@click.option("--sites", type=_PATH, help="Or a file (TOML) with a table [[validation]] per area.")
@click.option(
    "--goal",
    type=click.Choice(["f1", "count"]),
    default="f1",
    show_default=True,
    help="Best F1, or as many objects as there are true ones.",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead of a goal: the highest recall with at least this precision.",
)
@click.option("--nms", metavar="IOU,...", help="Values of nms_iou to try: 0.5,0.6,0.7.")
@click.option(
    "--lowest",
    type=click.FloatRange(0.01, 0.9),
    default=0.1,
    show_default=True,
    help="Lowest threshold tried.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="IoU from which an object matches a true one.",
)
@click.option("--calibrate", is_flag=True, help="Fit what gives counts an interval, and prove it.")
@click.option("--write", is_flag=True, help="Write the result into the card beside MODEL.")
@click.option("-o", "--output", type=_PATH, help="Or into a copy of the model (.safetensors).")
@click.option(
    "--curves",
    type=_PATH,
    help="Picture (.png): precision over recall, and the count; with --calibrate also "
    "NAME_reliability.png.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--views",
    type=click.Choice(["1", "2", "4", "8"]),
    help="Sides that each tile is looked at from, kept in the card for the runs to come.  "
    "[default: the card's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, model: str, as_json: bool, **options: Any) -> None:
    """Choose a model's thresholds on labelled areas; calibrate its counts.

    MODEL is a .safetensors file or the name of a shipped model; it should not have learnt from the
    areas. Printed are the figures of each threshold, each of a run; what was chosen; and how it
    does on areas that had no part in the choice.
    """
    from geoseg.jobs.tune import check_target, tunable, tune, write_tuned
    from geoseg.objects.tune import Goal

    precision = options["precision"]
    goal = Goal(options["goal"]) if precision is None else Goal("precision", precision)
    nms = _parse_nms(options["nms"])
    target = None
    if options["write"] or options["output"] is not None:
        target = check_target(model, options["output"], overwrite=options["overwrite"])
    _check_pictures(options)
    tunable(model)
    found = tune(
        model,
        _areas(model, options),
        goal=goal,
        nms=nms,
        lowest=options["lowest"],
        iou=options["iou"],
        calibrate=options["calibrate"],
        device=options["device"],
        views=None if options["views"] is None else int(options["views"]),
        tell=lambda text: click.echo(text, err=True),
    )
    written = _draw(found, options)
    if target is not None:
        told = _command(model, options)
        written.append(write_tuned(target, found, told, source=tunable(model)))
    if as_json:
        show_json({**found.to_dict(), "written": [str(path) for path in written]})
        return
    _show(found)
    for path in written:
        click.echo(str(path))


def _areas(model: str, options: dict[str, Any]) -> Any:
    """Read the labelled areas that the options name."""
    from geoseg.jobs.validation import load_areas, read_validation_file
    from geoseg.models.registry import find_card

    triples = [options["image"], options["labels"], options["aoi"]]
    sites: Path | None = options["sites"]
    if (sites is None) == (not any(triples)):
        raise click.UsageError(
            "Name labelled areas: with --sites FILE, or with --image, --labels and --aoi"
        )
    if sites is not None:
        tables, folder = read_validation_file(sites), sites.parent
    else:
        if len({len(one) for one in triples}) != 1:
            raise click.UsageError(
                f"There are {len(triples[0])} --image, {len(triples[1])} --labels and "
                f"{len(triples[2])} --aoi; give one of each per area"
            )
        named = zip(*triples, strict=True)
        keys = ("image", "labels", "aoi")
        tables = [dict(zip(keys, map(str, one), strict=True)) for one in named]
        folder = Path()
    if options["class_field"]:
        tables = [{"class_field": options["class_field"], **table} for table in tables]
    return load_areas(tables, folder, find_card(model).classes)


def _parse_nms(text: str | None) -> tuple[float, ...]:
    """Return the values of --nms."""
    from geoseg.errors import ConfigError

    try:
        values = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        values = (-1.0,)
    if not all(0 < value <= 1 for value in values):
        raise ConfigError(f"--nms is {text}; expected values above 0, to 1, such as 0.5,0.6,0.7")
    return values


def _check_pictures(options: dict[str, Any]) -> None:
    """Refuse pictures that could not be written, before any work."""
    from geoseg.outputs.tables import check_output

    curves = options["curves"]
    if curves is not None:
        for path in [curves, _reliability(curves)][: 1 + options["calibrate"]]:
            check_output(path, options["overwrite"], suffixes=(".png",))


def _reliability(curves: Path) -> Path:
    return curves.with_name(f"{curves.stem}_reliability{curves.suffix}")


def _draw(found: Tuning, options: dict[str, Any]) -> list[Path]:
    """Draw the curves that are wanted."""
    from geoseg.objects.expected import Calibration
    from geoseg.outputs.curves import write_curves, write_reliability

    curves = options["curves"]
    if curves is None:
        return []
    again = {"overwrite": options["overwrite"]}
    written = [write_curves(curves, found.pooled, **again)]
    if found.reliability is not None and found.calibration is not None:
        one = found.calibration
        each = {"": one} if isinstance(one, Calibration) else one
        written.append(write_reliability(_reliability(curves), found.reliability, each, **again))
    return written


def _command(model: str, options: dict[str, Any]) -> str:
    """Return the command, with the names of files alone: a card travels."""
    words = ["geoseg tune", Path(model).name]
    for name in ("image", "labels", "aoi"):
        words += [f"--{name} {path.name}" for path in options[name]]
    if options["sites"] is not None:
        words.append(f"--sites {options['sites'].name}")
    usual = {"goal": "f1", "lowest": 0.1, "iou": 0.5}
    for name in ("class_field", "goal", "precision", "nms", "lowest", "iou", "views"):
        value = options[name]
        if value is not None and value != usual.get(name):
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join([*words, *(["--calibrate"] if options["calibrate"] else [])])


def _show(found: Tuning) -> None:
    """Print the figures as tables, what was chosen last."""
    for kind, curve in found.curves.items():
        click.echo(f"{kind or 'all classes'}: each threshold by a run of its own")
        table = curve[["min_score", *_SHOWN]]
        show_table(list(table.columns), table.astype(object).to_numpy().tolist())
    if len(found.nms) > 1:
        click.echo("\nnms_iou, each at the thresholds chosen for it")
        _show_frame(found.nms[["nms_iou", *_SHOWN]])
    click.echo(f"\nchosen: {found.goal}")
    for kind, score in found.scores.items():
        click.echo(f"  min_score {score:g}" + (f" ({kind})" if len(found.scores) > 1 else ""))
    click.echo(f"  min_area {found.card.min_area_m2:g} m2, nms_iou {found.card.nms_iou:g}")
    _show_frame(found.areas[["area", "n_truth", *_SHOWN]])
    low, high = found.f1_90
    click.echo(
        f"F1 {low:.3f} to {high:.3f} in 90 % of draws of such objects; {found.verified:.3f} in a "
        f"run with the tuned card; {found.one_run:.3f} if the objects of one run at a low score "
        "were cut off there"
    )
    if len(found.held_out):
        click.echo("\neach area with the thresholds chosen on the others")
        names = ["area", "n_truth", "min_score", *_SHOWN]
        rows = found.held_out.reindex(columns=[*names, "why_not"])
        _show_frame(rows[names] if not rows["why_not"].any() else rows)
    _show_calibration(found)
    for note in found.notes:
        click.echo(note, err=True)


def _show_calibration(found: Tuning) -> None:
    """Print how counts were foretold."""
    if found.foretold is None:
        return
    click.echo("\ncounts of parts of each area, foretold from the others, with 90 % intervals")
    rows = found.foretold.assign(inside=found.foretold["inside"].map({True: "yes", False: "no"}))
    _show_frame(rows)
    for kind, some in found.foretold.groupby("left_out"):
        n = int(some["inside"].sum())
        where = "a new place" if kind == "area" else "more of a labelled place"
        click.echo(f"{n} of {len(some)} inside ({n / len(some):.0%}) with the {kind} left out: "
                   f"{where}")  # fmt: skip


def _show_frame(table: Any) -> None:
    """Print a table."""
    show_table(list(table.columns), table.astype(object).to_numpy().tolist())
