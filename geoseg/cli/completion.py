"""geoseg completion."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print what makes a shell complete verbs and options.")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what makes SHELL complete geoseg's verbs, options and files.

    bash: add to ~/.bashrc: eval "$(geoseg completion bash)"

    zsh: add to ~/.zshrc, after compinit: eval "$(geoseg completion zsh)"

    fish: geoseg completion fish > ~/.config/fish/completions/geoseg.fish
    """
    from click.shell_completion import get_completion_class

    from geoseg.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click completes no {shell}")
    click.echo(kind(cli, {}, "geoseg", "_GEOSEG_COMPLETE").source())
