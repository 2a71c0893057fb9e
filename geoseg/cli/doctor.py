"""``geoseg doctor``: whether this installation works."""

from __future__ import annotations

import click

from geoseg.cli.show import show_json


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check this installation: versions, torch and torchvision, GPU, GDAL, memory.

    Ends with 1 if something is broken, and says what to do.
    """
    from geoseg.doctor import as_dict, diagnose

    findings = diagnose()
    result = as_dict(findings)
    if as_json:
        show_json(result)
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = "BROKEN" if finding.status == "broken" else finding.status
            click.echo(f"{mark:<6}  {finding.name.ljust(width)}  {finding.value}")
            if finding.advice:
                click.echo(f"{'':<6}  {'':<{width}}  -> {finding.advice}")
    ctx.exit(0 if result["ok"] else 1)
