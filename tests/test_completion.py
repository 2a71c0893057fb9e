"""Shells complete verbs, options and choices; ``rio geoseg`` is the same command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rasterio.rio.main import main_group

from geoseg.cli.main import VERBS, main
from geoseg.cli.rio import plugin as rio_command

ROOT = Path(__file__).parents[1]
CALL = f"{sys.executable} -c 'import sys; from geoseg.cli.main import main; sys.exit(main())'"


def completed(shell: str, line: str) -> list[str]:
    """Return what a shell is told when the last word of a line is to be completed."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        asked["COMP_CWORD"] = words[-1]
    done = subprocess.run(
        ["sh", "-c", CALL],
        env=os.environ | {"PYTHONPATH": str(ROOT), "_GEOSEG_COMPLETE": f"{shell}_complete"} | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_verb_is_completed():
    assert completed("bash", "geoseg de") == ["plain,detect", "plain,demo"]
    assert completed("fish", "geoseg prev") == [f"plain,preview\t{VERBS['preview']}"]
    zsh = completed("zsh", "geoseg cou")
    assert zsh == ["plain", "count", VERBS["count"]]
    assert {line.removeprefix("plain,") for line in completed("bash", "geoseg ")} == set(VERBS)


def test_options_choices_and_files_are_completed():
    options = completed("bash", "geoseg detect a.tif --re")
    wanted = {"--regions", "--regions-crs", "--resolve-overlaps", "--regularize", "--resource"}
    assert {line.removeprefix("plain,") for line in options} == wanted
    assert completed("bash", "geoseg detect a.tif --device c") == ["plain,cpu", "plain,cuda"]
    assert completed("bash", "geoseg detect a.tif --regions d") == ["file,d"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell, capsys):
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("no bash to ask for its version")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_GEOSEG_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        # the shell itself finds no fault
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash_completes(tmp_path):
    (tmp_path / "geoseg").write_text(f'#!/bin/sh\nexec {CALL[:-1]}\' "$@"\n')
    (tmp_path / "geoseg").chmod(0o755)
    script = (
        'eval "$(geoseg completion bash)"\n'
        "COMP_WORDS=(geoseg eva) COMP_CWORD=1\n"
        "_geoseg_completion geoseg eva geoseg\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "evaluate\n", done.stderr


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err


def rio(*arguments: str):
    """Run ``rio geoseg`` as rio does once the package is installed."""
    group = main_group
    before = dict(group.commands)
    group.add_command(rio_command)
    try:
        return CliRunner().invoke(group, ["geoseg", *arguments])
    finally:
        group.commands = before


def test_rio_geoseg_is_the_same_command():
    done = rio("--help")
    assert done.exit_code == 0
    assert "Usage: geoseg [OPTIONS] VERB" in done.output
    done = rio("count", "no.gpkg", "--layer", "x", "neither.gpkg")
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "no.gpkg does not exist" in done.output


def test_rio_lists_it_without_loading_what_is_heavy():
    code = (
        "import sys, geoseg.cli.rio; assert not {'numpy', 'torch', 'geopandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
