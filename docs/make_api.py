"""Write docs/api.md from the docstrings of the public API: ``python docs/make_api.py``.

``--check`` writes nothing and ends with 1 if the page is not what the docstrings say. The page is
plain Markdown, so it reads on any host of the repository and in an editor.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).with_name("api.md")

SECTIONS: dict[str, tuple[str, list[str]]] = {
    "A run": (
        "What `geoseg detect` does, and what it leaves.",
        ["geoseg.detect", "geoseg.config.DetectSettings", "geoseg.open_run", "geoseg.Run"],
    ),
    "Tables": (
        "From objects to numbers. All take and give GeoDataFrames.",
        [
            "geoseg.count",
            "geoseg.objects.cells.make_grid",
            "geoseg.objects.expected.Calibration",
            "geoseg.compare",
            "geoseg.objects.compare.CompareSettings",
            "geoseg.objects.compare.Comparison",
            "geoseg.objects.tracks.tracks",
            "geoseg.evaluate",
            "geoseg.objects.evaluate.Evaluation",
            "geoseg.objects.evaluate.threshold_curve",
            "geoseg.objects.evaluate.average_precision",
            "geoseg.objects.count.ellipsoid_area_m2",
        ],
    ),
    "Detectors and models": (
        "What looks at tiles. See [detectors.md](detectors.md) and [models.md](models.md).",
        ["geoseg.Detector", "geoseg.Instances", "geoseg.load_model"],
    ),
    "Learning": (
        "To a model with thresholds: [training.md](training.md), [tune.md](tune.md).",
        [
            "geoseg.jobs.training.run_training",
            "geoseg.jobs.training.write_quick_file",
            "geoseg.jobs.training.QuickJob",
            "geoseg.learning.train.train",
            "geoseg.learning.train.TrainSettings",
            "geoseg.learning.chips.Augmentation",
            "geoseg.learning.labels.load_site",
            "geoseg.learning.labels.LabelReport",
            "geoseg.jobs.validation.load_areas",
            "geoseg.jobs.tune.tune",
            "geoseg.jobs.suggest.suggest",
        ],
    ),
    "The stitcher": (
        "From detections in tiles to objects; needs no torch. See [stitching.md](stitching.md).",
        [
            "geoseg.Tile",
            "geoseg.Fragments",
            "geoseg.vectorize",
            "geoseg.stitch",
            "geoseg.Objects",
            "geoseg.objects.stitch.stitch_counted",
            "geoseg.objects.seams.seam_report",
            "geoseg.objects.seams.SeamReport",
        ],
    ),
    "Shapes": (
        "What `--regularize`, `--simplify` and their like do, for polygons of your own.",
        [
            "geoseg.objects.shape.regularize",
            "geoseg.objects.shape.simplify",
            "geoseg.objects.shape.fill_holes",
            "geoseg.objects.shape.resolve_overlaps",
        ],
    ),
    "Pictures and rendered towns": (
        "To look at, and to test on.",
        [
            "geoseg.outputs.preview.preview_image",
            "geoseg.outputs.preview.draw_instances",
            "geoseg.outputs.report.write_page",
            "geoseg.jobs.report.report_run",
            "geoseg.scenes.town.render_town",
            "geoseg.scenes.dates.render_two_dates",
        ],
    ),
}
"""Heading to introduction and names; errors follow by themselves."""

INTRO = """# API

<!-- written by docs/make_api.py from the docstrings; change those -->

What a program may rely on: the names of `geoseg` itself, and those below that are written with
their module. `import geoseg` is quick; torch is imported when a model is first used. The package
carries its types (`py.typed`). Every error that geoseg raises on purpose is a
[`geoseg.errors.GeosegError`](#errors), whose message says what is wrong, what was expected and what
to do.
"""

UNDERLINE = re.compile(r"^-{3,}$")


def main() -> int:
    """Write or check the page; return the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not same:
            sys.stderr.write(
                "docs/api.md is not what the docstrings say: python docs/make_api.py\n"
            )
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """Return the whole page."""
    parts = [INTRO, contents()]
    for heading, (about, names) in SECTIONS.items():
        parts += [f"## {heading}\n", f"{about}\n", *(entry(name) for name in names)]
    parts += ["## Errors\n", errors()]
    return "\n".join(parts).rstrip() + "\n"


def contents() -> str:
    """Return the list of all names, each a link."""
    lines = []
    for heading, (_, names) in SECTIONS.items():
        links = ", ".join(f"[`{name}`](#{anchor(name)})" for name in names)
        lines.append(f"- [{heading}](#{anchor(heading)}): {links}")
    return "\n".join([*lines, "- [Errors](#errors)", ""])


def anchor(heading: str) -> str:
    """Return the anchor that hosts of Markdown give a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def entry(name: str) -> str:
    """Return heading, signature and docstring of one public name, and the members of a class."""
    item = find(name)
    short = name.rpartition(".")[2]
    parts = [f"### `{name}`\n"]
    if inspect.isclass(item):
        parts.append(class_text(item, short))
    else:
        parts += [code(signature(item, short)), docstring(item)]
    return "\n".join(parts)


def find(name: str) -> Any:
    """Return the object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def class_text(cls: type, name: str) -> str:
    """Return a class: how it is made, what it is, its fields, its methods."""
    parts = []
    if not getattr(cls, "_is_protocol", False):
        parts.append(code(signature(cls, name)))
    parts.append(docstring(cls))
    fields = field_docs(cls)
    if fields:
        rows = [f"| `{f}` | `{kind}` | {text} |" for f, (kind, text) in fields.items()]
        parts.append("\n".join(["| field | type | meaning |", "|---|---|---|", *rows, ""]))
    for member, value in members(cls):
        if isinstance(value, property | cached_property):
            about = value.fget if isinstance(value, property) else value.func
            parts += [f"#### `{name}.{member}`\n", docstring(about)]
        else:
            raw = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            parts += [f"#### `{name}.{member}()`\n", code(signature(raw, f"{name}.{member}"))]
            parts.append(docstring(raw))
    return "\n".join(parts)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class defines itself, in their order."""
    kinds = property | cached_property | classmethod | staticmethod | type(main)
    for name, value in vars(cls).items():
        shown = not name.startswith("_") or (
            name == "__call__" and getattr(cls, "_is_protocol", False)
        )
        about = value.func if isinstance(value, cached_property) else value
        if shown and isinstance(value, kinds) and inspect.getdoc(about):
            yield name, value


def field_docs(cls: type) -> dict[str, tuple[str, str]]:
    """Return type and docstring of each field: the string that stands under it in the source."""
    import ast

    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    out = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        says = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = str(after.value.value) if says else ""  # type: ignore[union-attr]
        if not node.target.id.startswith("_"):
            kind = ast.unparse(node.annotation).replace("|", "\\|")
            out[node.target.id] = (kind, cell(text))
    return out


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return inline(" ".join(text.split())).replace("|", "\\|")


def signature(item: Callable[..., Any], name: str) -> str:
    """Return a call with annotations as they are written, wrapped past 88 characters."""
    told = inspect.signature(item)
    skip = {"self", "cls"} if not inspect.isclass(item) else set()
    arguments, star = [], False
    for parameter in told.parameters.values():
        if parameter.name in skip:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            arguments.append("*")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        arguments.append(argument(parameter))
    returns = told.return_annotation
    end = "" if inspect.isclass(item) or returns is told.empty else f" -> {plain(returns)}"
    line = f"{name}({', '.join(arguments)}){end}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){end}"


def argument(parameter: inspect.Parameter) -> str:
    """Return one parameter with annotation and default."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {plain(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = repr(parameter.default)
    known = "..." if default.startswith("<") else default
    return f"{text} = {known}"


def plain(annotation: Any) -> str:
    """Return an annotation as it stands in the source."""
    return (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )


def code(text: str) -> str:
    """Return a block of Python that is read, not run."""
    return f"```text\n{text}\n```\n"


def docstring(item: Any) -> str:
    """Return a NumPy docstring as Markdown."""
    lines = (inspect.getdoc(item) or "").splitlines()
    out: list[str] = []
    for heading, body in sections(lines):
        if heading == "":
            out += ["\n".join(prose(body)).strip(), ""]
        elif heading == "Examples":
            out += [
                "**Examples**",
                "",
                "```pycon",
                *"\n".join(body).strip().splitlines(),
                "```",
                "",
            ]
        elif heading in ("Notes", "References"):
            out += [f"**{heading}**", "", "\n".join(prose(body)).strip(), ""]
        else:
            out += [f"**{heading}**", "", *items(body), ""]
    return "\n".join(out)


def sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield heading and lines of each section; the first has no heading."""
    heading, body = "", list[str]()
    i = 0
    while i < len(lines):
        if i + 1 < len(lines) and UNDERLINE.match(lines[i + 1]):
            yield heading, body
            heading, body = lines[i], []
            i += 2
            continue
        body.append(lines[i])
        i += 1
    yield heading, body


def items(body: list[str]) -> Iterator[str]:
    """Yield parameters and the like as a list: name and type, then what it means."""
    head, about = "", list[str]()
    for line in [*body, "end"]:
        if line[:1] in ("", " "):
            about.append(line.strip())
            continue
        if head:
            text = inline(" ".join(" ".join(about).split()))
            yield f"- {item_head(head)}" + (f": {text}" if text else "")
        head, about = line, []


def item_head(head: str) -> str:
    """Return what names an item: ``name : type``, or a type alone."""
    name, colon, kind = head.partition(" : ")
    names = ", ".join(f"`{part}`" for part in name.split(", ")) if colon else f"`{name}`"
    return f"{names} ({inline(kind)})" if colon else names


def prose(body: list[str]) -> Iterator[str]:
    """Yield text as it is, in Markdown's marks."""
    for line in body:
        yield inline(line)


def inline(text: str) -> str:
    """Return reStructuredText's marks as Markdown's."""
    text = re.sub(r":(?:func|class|meth|mod):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def errors() -> str:
    """Return the table of errors, by what failed."""
    module: ModuleType = import_module("geoseg.errors")
    rows = []
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and issubclass(cls, module.GeosegError):
            base = "" if cls is module.GeosegError else f"`{cls.__base__.__name__}`"
            rows.append(
                f"| `{name}` | {base} | {cls.exit_code} | {cell(inspect.getdoc(cls) or '')} |"
            )
    head = ["| `geoseg.errors.` | is a | exit code | when |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
