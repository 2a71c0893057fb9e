"""The table of docs/inputs.md: what was given, how it ended, what was said."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from cases import Case, Outcome

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "inputs.md"
BEGIN = "<!-- The table is written by make docs; change the cases in tests/cases_*.py instead. -->"
END = "<!-- End of the table. -->"
HEAD = "| input | what comes out | exit code | message |\n|---|---|---|---|"
LONGEST = 400


def all_cases() -> tuple[Case, ...]:
    """Return the cases of every module ``cases_*.py`` beside this one, those of kinds first."""
    names = sorted(path.stem for path in HERE.glob("cases_*.py"))
    names.sort(key=lambda name: name != "cases_kinds")
    return tuple(case for name in names for case in importlib.import_module(name).CASES)


def with_table(page: str, cases: Sequence[Case], outcomes: Mapping[str, Outcome | None]) -> str:
    """Return a page with its table made anew; rows that cannot be made here stay as they are."""
    head, _, rest = page.partition(BEGIN)
    old, _, tail = rest.partition(END)
    kept = {line.partition(" | ")[0]: line for line in old.splitlines() if line.startswith("| ")}
    order = list(dict.fromkeys(case.group for case in cases))
    lines = []
    for group, members in groupby(sorted(cases, key=lambda c: order.index(c.group)),
                                  key=lambda c: c.group):  # fmt: skip
        lines += ["", f"### {group}", "", *HEAD.splitlines()]
        for case in members:
            outcome = outcomes[case.name]
            fallback = kept.get(
                f"| {_cell(case.what)}", f"| {_cell(case.what)} | not tried |  |  |"
            )
            lines.append(fallback if outcome is None else row(case, outcome))
    return f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{tail}"


def row(case: Case, outcome: Outcome) -> str:
    """Return one line of the table."""
    came = _objects(outcome)
    if case.result:
        came = f"{came}; {case.result}" if came else case.result
    said = said_in(outcome.err)
    return f"| {_cell(case.what)} | {_cell(came)} | {outcome.exit_code} | {_cell(said)} |"


def _objects(outcome: Outcome) -> str:
    """Say how many objects came back of how many."""
    if outcome.objects is None:
        return ""
    made = outcome.made
    if made is None or made.truth is None:
        return f"{len(outcome.objects)} objects"
    return f"{len(outcome.objects)} of {len(made.truth)} objects"


def said_in(err: str) -> str:
    """Return the errors and warnings of a run, without what differs from machine to machine."""
    marks = ("geoseg: error: ", "geoseg: no objects", "error: ", "warning: ")
    said = []
    for line in err.splitlines():
        text = re.sub(r"^\d\d:\d\d:\d\d ", "", line)
        mark = next((m for m in marks if text.startswith(m)), None)
        if mark is not None:
            said.append(text.removeprefix("geoseg: ").removeprefix("error: "))
    text = " / ".join(dict.fromkeys(said))
    text = re.sub(r"(?<![\w:/])/(?!vsi)[^\s:,;'()]*/(?=[^\s/]+)", "", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8080", text)
    text = re.sub(r" \(GDAL: .*?\)(?=$|;| /)", "", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _cell(text: str) -> str:
    """Return text that breaks no Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("\n", " ")
