"""geoseg plan."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.detect import command as detect
from geoseg.cli.show import show_json, show_table

if TYPE_CHECKING:
    from geoseg.jobs.estimate import Estimate, TimeEstimate


def _clock(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """Return the next time a clock on the wall shows this."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,2}):(\d{2})", value.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise click.BadParameter("expected a time of day such as 07:00")
    return int(match[1]), int(match[2])


@click.command(short_help="Tell tiles, memory, disk and time before the night.")
@click.option("--no-probe", is_flag=True, help="Time no supertiles: no estimate of the time.")
@click.option("--until", callback=_clock, metavar="HH:MM", help="Will it be done by then?")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(no_probe: bool, until: tuple[int, int] | None, as_json: bool, **options: Any) -> None:
    """Tell what geoseg detect would take for IMAGES, without running it.

    Takes the options of geoseg detect and ends as it would where something is wrong. Runs up to
    three supertiles in a scratch directory to measure time and memory; nothing is written.
    """
    from geoseg.config import DetectSettings
    from geoseg.jobs.estimate import estimate_run

    if no_probe and until is not None:
        raise click.UsageError("--until needs the timed supertiles; leave out --no-probe")
    # detect may have options that concern how a run goes on, not what it is
    known = {setting.name for setting in fields(DetectSettings)}
    settings = DetectSettings(**{k: v for k, v in options.items() if k in known})
    estimate = estimate_run(settings, probe=not no_probe)
    answer = None
    if until is not None and estimate.times:
        answer = _answer(estimate.times[-1], until, datetime.now().astimezone())
    if as_json:
        show_json(estimate.to_dict() | ({} if answer is None else {"until": answer}))
        return
    _show(estimate)
    if answer is not None:
        click.echo(_as_words(answer, estimate.times[-1]))


def _options_of_detect() -> list[click.Parameter]:
    """Return its arguments and options; here no output is required."""
    own = {parameter.name for parameter in command.params}
    shared = []
    for parameter in detect.params:
        if parameter.name not in own:
            shared.append(copy.copy(parameter))
            shared[-1].required = parameter.required and parameter.name != "output"
    return shared


command.params[:0] = _options_of_detect()


def _answer(time: TimeEstimate, until: tuple[int, int], now: datetime) -> dict[str, Any]:
    """Tell whether a run that begins now is done at the next such time of day."""
    end = now.replace(hour=until[0], minute=until[1], second=0, microsecond=0)
    if end <= now:
        end += timedelta(days=1)
    left = (end - now).total_seconds()
    return {
        "time": end.isoformat(timespec="minutes"),
        "done": (now + timedelta(seconds=time.seconds)).isoformat(timespec="minutes"),
        "in_time": time.seconds <= left,
        "margin_s": round(left - time.seconds),
        "worst_margin_s": round(left - time.high),
    }


def _as_words(answer: dict[str, Any], time: TimeEstimate) -> str:
    margin, worst = answer["margin_s"], answer["worst_margin_s"]
    words = "to spare" if margin >= 0 else "too late"
    at_worst = "to spare" if worst >= 0 else "too late"
    return (
        f"by {answer['time'][11:16]}?  {'yes' if answer['in_time'] else 'no'}: "
        f"with {time.workers} worker(s) done at {answer['done'][11:16]}, "
        f"{_duration(abs(margin))} {words} (at worst {_duration(abs(worst))} {at_worst})"
    )


def _show(estimate: Estimate) -> None:
    columns = ["image", "px", "grid px", "GSD m", "working m", "km2", "tiles", "to run"]
    rows: list[Sequence[Any]] = [
        [
            image.name,
            " x ".join(map(str, image.size_px)),
            " x ".join(map(str, image.grid_px)),
            image.gsd_m,
            image.working_gsd_m,
            image.km2,
            image.tiles,
            image.tiles_to_run,
            image.supertiles,
        ]
        for image in estimate.images
    ]
    sums = [sum(row[i] for row in rows) for i in range(5, 9)]
    totals = [["all", "", "", None, None, *sums]] if len(rows) > 1 else []
    show_table([*columns, "supertiles"], rows, totals=totals)
    click.echo()
    memory, disk = estimate.memory, estimate.disk
    free = "" if memory.free_mb is None else f"; {memory.free_mb / 1000:.1f} GB are free"
    click.echo(
        f"memory  {memory.worker_mb / 1000:.2f} GB a worker, {memory.total_mb / 1000:.2f} GB with "
        f"{estimate.workers} worker(s){free}\n        {memory.how}"
    )
    free = "" if disk.free_bytes is None else f"; {_bytes(disk.free_bytes)} are free"
    click.echo(
        f"disk    {_bytes(disk.total_bytes)}: parts {_bytes(disk.parts_bytes)}, objects.parquet "
        f"{_bytes(disk.table_bytes)}, output {_bytes(disk.output_bytes)} for some "
        f"{disk.objects:,} objects{free}\n        {disk.how}"
    )
    _show_times(estimate)
    for note in estimate.notes:
        click.echo(f"note: {note}")


def _show_times(estimate: Estimate) -> None:
    for line, time in enumerate(estimate.times):
        click.echo(
            f"{'' if line else 'time':8}{_duration(time.seconds)} with {time.workers} worker(s) of "
            f"{time.threads} thread(s) ({_duration(time.low)} to {_duration(time.high)})"
        )
    for timed in estimate.timed:
        rate = f"{timed.seconds / timed.tiles:.2f} s a tile" if timed.tiles else "no pixels"
        click.echo(
            f"        {timed.image}, supertile {timed.index}: {timed.tiles} tiles in "
            f"{timed.seconds:.1f} s, {rate}, {timed.objects:.0f} objects, "
            f"{timed.processes} process(es) at once"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
