"""The pages keep what they promise: links lead somewhere, commands exist, code runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from geoseg.cli.main import VERBS, cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    p
    for p in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "workflows").rglob("*.md")]
    if ".geoseg-run" not in str(p)
)
NAMES = [p.relative_to(ROOT).as_posix() for p in PAGES]
FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,}) *(?P<kind>\w*)")
LINK = re.compile(
    r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)"
)


def blocks(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, content and first line of each block of code, indented ones as ''."""
    kind, body, first, mark = None, list[str](), 0, ""
    indented, before = list[str](), ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = FENCE.match(line)
        # indented lines right after text go on with it: an item of a list
        code = kind is None and not fence and line.startswith("    ") and line.strip()
        if code and (indented or not before.strip()):
            indented.append(line[4:])
        elif indented:
            yield "", "\n".join(indented), number - len(indented)
            indented = []
        if kind is None and fence:
            kind, body, first, mark = fence["kind"], [], number + 1, fence["mark"]
        elif kind is not None and fence and line.strip() == mark:
            yield kind, "\n".join(body), first
            kind = None
        elif kind is not None:
            body.append(line)
        before = line
    assert kind is None, f"the block of line {first} is not closed"


def prose(text: str) -> str:
    """Return a page without its code."""
    out, inside = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside and not line.startswith("    "):
            out.append(re.sub(r"`[^`]*`", "`x`", line))
    return "\n".join(out)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as hosts of Markdown make them."""
    out: dict[str, int] = {}
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        heading = re.match(r"#{1,6} +(.*?) *#*$", line)
        if inside or not heading:
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        seen = out.get(slug, 0)
        out[slug] = seen + 1
        if seen:
            out[f"{slug}-{seen}"] = 1
    return set(out)


def broken_links(path: Path, text: str) -> list[str]:
    out = []
    for link in LINK.finditer(prose(text)):
        target = link["target"]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or not place.is_relative_to(ROOT):
            out.append(f"{target}: there is no such file")
        elif anchor and (place.suffix != ".md" or anchor not in anchors(place)):
            out.append(f"{target}: there is no such heading")
    return out


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
    path = ROOT / name
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


def test_broken_links_are_found(tmp_path):
    page = DOCS / "index.md"
    text = "[a](no.md) [b](index.md#nothing) [c](#nor-this) [d](../../outside.md) `[e](code.md)`"
    assert len(broken_links(page, text)) == 4
    assert broken_links(page, "[a](index.md) [b](https://x.org/y.md) [c](../README.md)") == []


# Commands


def commands(text: str) -> Iterator[tuple[str, int]]:
    """Yield every ``geoseg ...`` command of a page: in blocks, and in the text between backticks."""
    for kind, body, first in blocks(text):
        if kind not in ("", "console", "sh", "bash", "shell", "text"):
            continue
        joined = re.sub(r" *\\\n *", " ", body)
        for line in joined.splitlines():
            shown = line.strip()
            prompt = shown.startswith("$ ")
            shown = shown.removeprefix("$ ")
            if kind == "text" and not prompt:
                continue
            for part in re.split(r"&&|\|\||[|;]", re.sub(r"\$\([^()]*\)", "X", shown)):
                command = re.sub(r"^(?:\w+=\S* +|nice +|time +|srun +|do +)*", "", part.strip())
                if re.match(r"geoseg( |$)", command):
                    yield command, first
    for number, line in enumerate(text.splitlines(), 1):
        for code in re.findall(r"(?<!`)`(geoseg [^`]*)`", line):
            yield code, number


NARROW = (click.Choice, click.types.IntParamType, click.types.FloatParamType)
PLACEHOLDER = re.compile(r"^[A-Z0-9_./]+$|^\$")


def fault(command: str) -> str | None:
    """Return what the command line would refuse of a command, or None."""
    words = [w for w in shlex.split(command, comments=True) if w not in ("...", "…")][1:]
    words = words[: next((i for i, w in enumerate(words) if re.match(r"\d?[<>]", w)), len(words))]
    group: click.Command = cli
    context = click.Context(cli, info_name="geoseg")
    while words and words[0].startswith("-") and isinstance(group, click.Group):
        known = {o for p in group.get_params(context) for o in p.opts}
        if words[0] not in known:
            return f"no option {words[0]}"
        words = words[1:]
    if not words or words[0] == "VERB":
        return None
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        if (found := group.get_command(context, words[0])) is None:
            return None if group is not cli else f"no verb {words[0]}"
        context = click.Context(found, info_name=words[0], parent=context)
        group, words = found, words[1:]
    try:
        values, _, _ = group.make_parser(context).parse_args(list(words))
        for parameter in group.get_params(context):
            value = values.get(parameter.name)
            if isinstance(value, str) and not PLACEHOLDER.match(value):
                kind = parameter.type
                if isinstance(kind, NARROW):
                    kind.convert(value, parameter, context)
    except click.UsageError as error:
        # text may speak of an option without its value: `geoseg detect --until`
        named = str(error.option_name) if isinstance(error, click.BadOptionUsage) else ""
        return None if named and named == command.rsplit(maxsplit=1)[-1] else error.format_message()
    return None


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist_with_their_options(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    faults = {f"line {n}: {c}": why for c, n in commands(text) if (why := fault(c))}
    assert faults == {}


def test_faulty_commands_are_found():
    text = (
        "Say `geoseg detekt a.tif`.\n\n    geoseg detect a.tif -o b.gpkg --min-skore 0.5\n\n"
        "```console\n$ FOO=1 geoseg detect a.tif \\\n    --device gpu && geoseg count --nope\n"
        "output geoseg what\n```\n\n    geoseg detect a.tif \\\n        --nope\n\n- a list that\n"
        "    geoseg goes on with\n"
    )
    assert [fault(c) is not None for c, _ in commands(text)] == [True] * 5
    for good in (
        "geoseg detect *.tif -o b.gpkg -j 2 --gsd native", "geoseg -v doctor", "geoseg VERB --help",
        "geoseg models show NAME --stac", "geoseg evaluate ... --min-score 0.6", "geoseg --help",
    ):  # fmt: skip
        assert fault(good) is None, good


def test_every_verb_is_explained():
    told = {
        words[1]
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for command, _ in commands(page.read_text(encoding="utf-8"))
        if len(words := command.split()) > 1
    }
    assert set(VERBS) <= told


# Python


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_compile(name):
    for kind, body, first in blocks((ROOT / name).read_text(encoding="utf-8")):
        if kind in ("python", "py") and not body.lstrip().startswith(">>>"):
            try:
                ast.parse(body)
            except SyntaxError as error:
                pytest.fail(f"line {first}: {error}")


def modules_with_examples() -> list[str]:
    files = [f for f in (ROOT / "geoseg").rglob("*.py") if ">>> " in f.read_text(encoding="utf-8")]
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    return sorted(name.removesuffix(".__init__") for name in names)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if n != "docs/api.md" and "\n>>> " in (ROOT / n).read_text(encoding="utf-8")],
)
def test_examples_of_pages_run(name):
    result = doctest.testfile(str(ROOT / name), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


# The pages as a whole


def test_the_api_page_is_what_the_docstrings_say():
    done = subprocess.run(
        [sys.executable, str(DOCS / "make_api.py"), "--check"],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_api_page_has_every_public_name():
    import geoseg

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [n for n in geoseg.__all__ if f"### `geoseg.{n}`" not in text]
    assert missing == []


def test_the_map_of_pages_leads_to_each():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / m["target"].partition("#")[0]).resolve() for m in LINK.finditer(text)}
    assert {p for p in DOCS.rglob("*.md") if p.name != "index.md"} <= linked
    assert "docs/index.md" in (ROOT / "README.md").read_text(encoding="utf-8")
