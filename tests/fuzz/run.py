"""Break files by seed and number, and see what geoseg makes of them.

``python tests/fuzz/run.py --files 10000 --seed 1`` ends with 1 if one of them ended in a signal,
a hang, a traceback, an unknown exit code, or left something where it must not. The same seed and
number give the same file: ``--only 1234 --keep FOLDER`` makes one again and keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.kinds import KINDS, kind_of, make  # noqa: E402
from fuzz.server import LIMIT_S, Ended, Server  # noqa: E402

TOGETHER = 16
"""Files that one process looks at, one after the other; alone only where something is found."""


def make_seeds(folder: Path) -> None:
    """Write the sound files, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.seeds", str(folder)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "OMP_NUM_THREADS": "1"}
        | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the seeds could not be written:\n{done.stderr}")


@dataclass(slots=True)
class Fuzzer:
    """Makes files and runs them, some at a time, in servers of its own; a context manager."""

    seed: int
    seeds: Path
    work: Path
    limit_s: float = LIMIT_S
    kind: str | None = None
    keep: Path | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _servers: dict[bool, Server] = field(default_factory=dict)

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        """Run files; yield what each ended in."""
        for start in range(0, len(numbers), TOGETHER):
            made = [self._make(number) for number in numbers[start : start + TOGETHER]]
            for needs in (False, True):
                yield from self._run_together([m for m in made if m["case"].torch == needs])
            shutil.rmtree(self.work)

    def _make(self, number: int) -> dict[str, Any]:
        kind = self.kind or kind_of(self.seed, number)
        folder = self.work / str(number) / "case"
        folder.mkdir(parents=True)
        case = make(kind, self.seed, number, self.seeds, folder)
        return {"seed": self.seed, "number": number, "kind": kind, "case": case, "folder": folder}

    def _server(self, *, torch: bool) -> Server:
        if torch not in self._servers:
            self._servers[torch] = self._stack.enter_context(Server(self.limit_s, torch))
        return self._servers[torch]

    def _run_together(self, made: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run cases in one process, and again one by one where something is found."""
        if not made:
            return
        server = self._server(torch=made[0]["case"].torch)
        works = [(m["folder"], m["case"].commands, m["case"].outputs) for m in made]
        ended = server.run_all(works)
        if not ended.findings:
            for m, seconds in zip(made, ended.each_s, strict=True):
                yield m | {"seconds": seconds, "ended": None, "codes": ()}
            yield {"codes": ended.codes}
            return
        for m in made:
            shutil.rmtree(m["folder"].parent)
            yield self._run_alone(server, self._make(m["number"]))

    def _run_alone(self, server: Server, m: dict[str, Any]) -> dict[str, Any]:
        folder, case, full = m["folder"], m["case"], ""
        ended = server.run(folder, case.commands, case.outputs)
        if ended.findings and self.keep is not None:
            target = self.keep / f"{m['kind']}-{self.seed}-{m['number']}"
            shutil.copytree(folder, target, dirs_exist_ok=True, symlinks=True)
            if not ended.timed_out:
                full = _in_full(server, folder, case.commands)
        return m | {"seconds": ended.seconds, "codes": ended.codes, "in_full": full,
                    "ended": ended if ended.findings else None}  # fmt: skip


def _in_full(server: Server, folder: Path, commands: Any) -> str:
    """Return what a case that went wrong says with tracebacks."""
    told = [c if c[0].startswith("call:") else ("-v", *c) for c in commands]
    return server.run(folder, told, ["*"]).err


def main() -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=list(KINDS), help="files of this kind only")
    parser.add_argument("--only", type=int, help="this one file")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds a file may take")
    parser.add_argument("--keep", type=Path, help="folder for what was found, and for --only")
    parser.add_argument("--seeds", type=Path, help="folder of seeds, made if it is not there")
    options = parser.parse_args()
    begun = time.monotonic()
    numbers = [*range(options.first, options.first + options.files)]
    numbers = numbers if options.only is None else [options.only]
    found: list[dict[str, Any]] = []
    totals: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    slowest: list[tuple[float, str, int]] = []
    took: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory(prefix="geoseg-fuzz-") as folder:
        work = Path(folder)
        seeds = options.seeds or work / "seeds"
        if not seeds.exists():
            seeds.mkdir(parents=True)
            make_seeds(seeds)
        print(f"seeds and imports: {time.monotonic() - begun:.0f} s", file=sys.stderr)

        def share(job: int) -> None:
            with Fuzzer(options.seed, seeds, work / str(job), options.limit, options.kind,
                        options.keep) as fuzzer:  # fmt: skip
                for result in fuzzer.run(numbers[job :: options.jobs]):
                    codes.update(str(code) for code in result["codes"])
                    if "number" not in result:
                        continue
                    totals[result["kind"]] += 1
                    took[result["kind"]] += result["seconds"]
                    slowest.append((result["seconds"], result["kind"], result["number"]))
                    slowest.sort(reverse=True)
                    del slowest[10:]
                    if result["ended"] is not None:
                        found.append(result)
                        _say(result)
                    if sum(totals.values()) % 500 == 0:
                        _progress(sum(totals.values()), len(found), begun)

        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(share, job) for job in range(options.jobs)]:
                future.result()
    seconds = time.monotonic() - begun
    if options.keep is not None and found:
        lines = [json.dumps(_plain(result)) for result in found]
        with (options.keep / "found.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    _summary(totals, codes, slowest, found, seconds, took)
    return 1 if found else 0


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    ended: Ended = result["ended"]
    told = {name: getattr(ended, name) for name in ("codes", "seconds", "err", "strays")}
    about = {name: result[name] for name in ("seed", "number", "kind", "in_full")}
    return about | {"commands": result["case"].commands, "findings": ended.findings} | told


def _say(result: dict[str, Any]) -> None:
    ended: Ended = result["ended"]
    said = [line for line in (ended.err + ended.out).splitlines() if line.strip()]
    worst = [line for line in said if "internal error" in line or "cannot be judged" in line]
    print(
        f"{result['kind']} {result['number']}: {'; '.join(ended.findings)}\n"
        f"    {result['case'].commands}\n    {(worst or said or [''])[-1][:300]}",
        flush=True,
    )


def _progress(done: int, found: int, begun: float) -> None:
    seconds = time.monotonic() - begun
    print(f"{done} files, {found} findings, {seconds:.0f} s", file=sys.stderr, flush=True)


def _summary(
    totals: Counter[str],
    codes: Counter[str],
    slowest: list[Any],
    found: list[Any],
    seconds: float,
    took: dict[str, float],
) -> None:
    bad = Counter(result["kind"] for result in found)
    for kind in KINDS:
        if totals[kind]:
            each = 1000 * took[kind] / totals[kind]
            print(f"{kind:16} {totals[kind]:6} files {bad[kind]:4} findings {each:6.0f} ms each")
    n = sum(totals.values())
    print(f"{'all':16} {n:6} files {len(found):4} findings, {seconds:.0f} s, "
          f"{1000 * seconds / max(n, 1):.0f} ms a file")  # fmt: skip
    print("exit codes:", ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())))
    print("slowest:", ", ".join(f"{kind} {no} {s:.1f} s" for s, kind, no in slowest[:5]))


if __name__ == "__main__":
    sys.exit(main())
