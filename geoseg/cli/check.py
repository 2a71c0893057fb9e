"""geoseg check."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.detect import command as detect
from geoseg.cli.show import show_json, show_table
from geoseg.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geoseg.imagery.check import ImageReport, Progress

_SHARED = ("model", "bidx", "scale", "src_crs", "asset", "allow_vrt")
LINE_EVERY_S = 10.0
"""While blocks are read, a line at most this often."""


@click.command(short_help="Find broken and unfit images before the night.")
@click.argument("images", nargs=-1, required=True)
@click.option("--statistics", is_flag=True, help="Values per band, from overviews or a sample.")
@click.option("--read", is_flag=True, help="Decode every block: slow, finds bytes that changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(
    context: click.Context,
    images: tuple[str, ...],
    statistics: bool,
    read: bool,
    as_json: bool,
    model: str,
    bidx: tuple[int, ...] | None,
    scale: str | None,
    src_crs: str | None,
    asset: str | None,
    allow_vrt: bool,
) -> None:
    """Find out whether IMAGES (as geoseg detect takes them) can be used.

    Tells what they are, which share of a truncated file is lost and where, and what geoseg detect
    would say. Pixels are read only for --statistics and --read. Ends with 1 if a file is damaged
    or cannot be used.
    """
    from geoseg.config import parse_scale
    from geoseg.imagery.check import ImageReport, check_image
    from geoseg.imagery.radiometry import Expectation
    from geoseg.models.registry import find_card

    card = find_card(model)
    expected = Expectation(
        card.name, card.gsd_m, len(card.bands), card.dtype, card.value_range, card.bands
    )
    wanted = parse_scale(scale)
    reports: list[ImageReport] = []
    for path, problem in _files(images, asset, allow_vrt):
        if problem:
            reports.append(ImageReport(path, problems=(problem,)))
            continue
        progress = _lines(path) if read else None
        reports.append(
            check_image(
                path,
                expected,
                bidx=bidx,
                src_crs=src_crs,
                statistics=statistics,
                read=read,
                progress=progress,
                scale=wanted,
            )
        )
    if as_json:
        show_json([_as_dict(report) for report in reports])
    else:
        _show(reports)
    context.exit(1 if any(report.problems for report in reports) else 0)


command.params += [option for option in detect.params if option.name in _SHARED]


def _files(images: Sequence[str], asset: str | None, allow_vrt: bool) -> list[tuple[str, str]]:
    """Return each file once, with the reason why a name stands for none."""
    from geoseg.errors import SourceError
    from geoseg.imagery.inputs import find_images
    from geoseg.redact import redact

    found: dict[str, str] = {}
    for entry in images:
        try:
            paths = find_images([entry], asset=asset, allow_vrt=allow_vrt)
            found.update(dict.fromkeys(paths, ""))
        except SourceError as error:
            found[redact(entry)] = str(error)
        except (OSError, ValueError) as error:
            found[redact(entry)] = redact(f"{entry}: cannot be looked for ({error})")
    return list(found.items())


def _lines(path: str) -> Progress:
    """Return a callback that writes a line now and then."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            name = printable(Path(path).name)
            click.echo(f"{name}: {done} of {total} blocks read", err=True)

    return progress


def _as_dict(report: ImageReport) -> dict[str, Any]:
    values = {"path": report.path, "state": report.state} | asdict(report)
    plain: dict[str, Any] = _writable(values)
    return plain


def _writable(value: Any) -> Any:
    """Return a value whose text is valid Unicode: names of files need not be."""
    if isinstance(value, str):
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {name: _writable(v) for name, v in value.items()}
    return [_writable(v) for v in value] if isinstance(value, list | tuple) else value


def _show(reports: Sequence[ImageReport]) -> None:
    """Print what the files are, then what is wrong with them, then how many are fine."""
    names = _names(reports)
    opened = [(n, r) for n, r in zip(names, reports, strict=True) if r.facts is not None]
    if opened:
        columns = ["file", "state", "px", "bands", "GSD m", "CRS", "mask", "blocks", "overviews"]
        show_table([*columns, "MB"], [[name, *_row(report)] for name, report in opened])
    if any(report.statistics for _, report in opened):
        _show_statistics(opened)
    for name, report in zip(names, reports, strict=True):
        for problem in report.problems:
            click.echo(f"{report.state.upper()}: {printable(_with_name(problem, name))}")
        if report.loss is not None and report.loss.place:
            click.echo(
                f"  lost of {name}: {report.loss.share:.1%} of its blocks, {report.loss.place}"
            )
        for note in report.notes:
            click.echo(f"note: {name}: {printable(note)}")
    states = Counter(report.state for report in reports)
    seconds = sum(report.seconds for report in reports)
    click.echo(
        f"{len(reports)} file(s): {states['ok']} ok, {states['damaged']} damaged, "
        f"{states['unusable']} unusable; {seconds:.2f} s"
    )


def _with_name(problem: str, name: str) -> str:
    """Return a message that names its file."""
    return problem if name in problem else f"{name}: {problem}"


def _names(reports: Sequence[ImageReport]) -> list[str]:
    """Return what to call the files: their names, or their paths where two share one."""
    names = [Path(report.path).name or report.path for report in reports]
    if len(set(names)) < len(names):
        names = [report.path for report in reports]
    return [printable(name) for name in names]


def _row(report: ImageReport) -> list[Any]:
    facts = report.facts
    assert facts is not None  # noqa: S101  # only opened files get a row
    rows, cols = facts.block_shape
    shape = "strips" if cols == facts.width and rows < facts.height else f"{cols} x {rows}"
    colors = [c[0] if c in ("red", "green", "blue") else f" {c}" for c in facts.colors[:5]]
    return [
        report.state,
        f"{facts.width} x {facts.height}",
        f"{facts.bands} {facts.dtype} {''.join(colors).strip()}",
        facts.gsd_m,
        printable(facts.crs) if facts.crs else "none",
        facts.mask,
        f"{shape} {facts.codec}",
        " ".join(map(str, facts.overviews)) or "none",
        f"{facts.file_bytes / 1e6:.1f}",
    ]


def _show_statistics(opened: Sequence[tuple[str, ImageReport]]) -> None:
    rows = [
        [
            name,
            band.band,
            *(None if v is None else f"{v:.4g}" for v in (band.min, band.max, band.mean)),
            f"{band.invalid:.1%}",
            *(None if v is None else f"{v:.1%}" for v in (band.low, band.high)),
            report.statistics_from,
        ]
        for name, report in opened
        for band in report.statistics
    ]
    click.echo()
    show_table(
        ["file", "band", "min", "max", "mean", "invalid", "at lowest", "at highest", "from"], rows
    )
    click.echo()
