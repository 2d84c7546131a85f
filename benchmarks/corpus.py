"""Sampling and checking a corpus: ours beside everything else that does it, in one run.

    python benchmarks/corpus.py [--gb 1] [--check] [--cold] [--repeat 3]
        [--only ours,mawk,...] [--python OTHER_PYTHON] [--directory DIRECTORY]

Draws 10 % of a generated corpus (benchmarks/corpus_rows.py), with ``--check`` also checks all of
it. Whole processes are measured, in turn (A B C A B C): a machine that slows down is slow for
all. What each drew is compared with the corpus: exact count, order, bytes. ``durable``: until
the output is on the disk, which ours waits for in any case. Warm: the corpus is read before
each run; cold: it is thrown out of the page cache (not out of a host's).

Modules are looked for in this Python, then in OTHER_PYTHON. ``--only ours`` also measures a tenth
of the corpus and shows memory over time: it must not grow with the corpus.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import Run, run

HERE = Path(__file__).parent
LEVIATHAN = Path(sys.executable).parent / "leviathan"
GOALS = (("sampling", "mawk", 0.9), ("checking", "json.loads loop", 3.0))
GOAL_MIB = 100
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Contestant:
    """Something that samples or checks a corpus."""

    name: str
    command: Callable[[Path, Path, int], list[str]]
    """From the corpus, the output and the number of rows to draw."""
    needs: str = ""
    """A program on PATH, or ``module:NAME``."""
    as_stdout: bool = False
    """Whether its output is what it prints."""
    writes: bool = True


def _peer(name: str, program: str, module: str = "", *, writes: bool = True) -> Contestant:
    """A program of corpus_peers.py, in a Python that has its module."""

    def command(corpus: Path, out: Path, rows: int) -> list[str]:
        return [_python_with(module), str(HERE / "corpus_peers.py"), program,
                str(corpus), str(out), str(rows)]  # fmt: skip

    return Contestant(name, command, module and f"module:{module}", writes=writes)


def _awk(name: str) -> Contestant:
    script = "BEGIN { srand(42) } rand() < .1"
    return Contestant(name, lambda corpus, *_: [name, script, str(corpus)], name, as_stdout=True)


SAMPLING = (
    Contestant("ours", lambda corpus, out, _: [
        str(LEVIATHAN), "data", "sample", str(corpus), "--sample", "10pct", "--seed", "42",
        "-o", str(out)]),
    _peer("raw read", "read", writes=False),
    _peer("rb loop + random()", "loop"),
    _peer("rb loop + xxh3", "xxh3", "xxhash"),
    _awk("mawk"),
    _awk("gawk"),
    _peer("exact-k in two passes", "selection"),
    _peer("numpy index + pread", "pread", "numpy"),
    Contestant("shuf -n", lambda corpus, out, rows: [
        "shuf", "-n", str(rows), "-o", str(out), str(corpus)], "shuf"),
    _peer("duckdb", "duckdb", "duckdb"),
    _peer("polars", "polars", "polars"),
    _peer("pyarrow", "pyarrow", "pyarrow"),
    _peer("HF datasets", "hf_datasets", "datasets"),
)  # fmt: skip
CHECKING = (
    Contestant("ours", lambda corpus, *_: [
        str(LEVIATHAN), "data", "check", str(corpus), "--json"], writes=False),
    _peer("raw read", "read", writes=False),
    _peer("json.loads loop", "check_json", writes=False),
    _peer("orjson loop", "check_orjson", "orjson", writes=False),
    _peer("HF datasets", "check_datasets", "datasets", writes=False),
)  # fmt: skip

PYTHONS = [sys.executable]


def _has(python: str, module: str) -> bool:
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    return subprocess.run([python, "-c", find, module], check=False).returncode == 0


def _python_with(module: str) -> str:
    """The first Python that has ``module``; empty if none has."""
    return next((python for python in PYTHONS if not module or _has(python, module)), "")


def is_here(contestant: Contestant) -> bool:
    """Whether it can be run on this machine."""
    kind, _, module = contestant.needs.partition(":")
    return bool(_python_with(module) if module else not kind or shutil.which(kind))


@dataclass(frozen=True)
class Corpus:
    """The generated file."""

    path: Path
    rows: int
    cold: bool

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def prepare(self) -> None:
        """Into the page cache, or out of it."""
        with self.path.open("rb", buffering=0) as stream:
            if self.cold:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while stream.read(_BLOCK):
                    pass


def generate(path: Path, gb: float, *, cold: bool) -> Corpus:
    """In a process of its own: this one must stay small (``processes``)."""
    make = [sys.executable, str(HERE / "corpus_rows.py"), "make", str(path), str(gb)]
    rows = int(subprocess.check_output(make))
    os.sync()  # pages that wait to be written cannot be thrown out of the cache
    return Corpus(path, rows, cold)


def once(contestant: Contestant, corpus: Corpus) -> tuple[Run, dict[str, bool]]:
    """One run in an empty directory, so that nothing kept from an earlier one helps."""
    with tempfile.TemporaryDirectory(dir=corpus.path.parent) as name:
        directory, wanted = Path(name), corpus.rows // 10
        out = directory / "out.jsonl"
        os.sync()
        corpus.prepare()
        done = run(
            contestant.command(corpus.path, out, wanted),
            directory,
            out if contestant.writes else None,
            as_stdout=contestant.as_stdout,
        )
        judged = {}
        if contestant.writes and done.code == 0:
            judge = [sys.executable, str(HERE / "corpus_rows.py"), "judge"]
            said = subprocess.check_output([*judge, str(corpus.path), str(out), str(wanted)])
            judged = json.loads(said)
        return done, judged


Results = dict[str, list[tuple[Run, dict[str, bool]]]]


def compete(contestants: Sequence[Contestant], corpus: Corpus, repeat: int) -> Results:
    """All in turn, so many times."""
    results: Results = {contestant.name: [] for contestant in contestants if is_here(contestant)}
    for number in range(repeat):
        for contestant in contestants:
            if contestant.name in results:
                print(f"{number + 1}/{repeat} {contestant.name}", file=sys.stderr)
                results[contestant.name].append(once(contestant, corpus))
    return results


def ratio(results: Results, name: str, *, durable: bool = False) -> float | None:
    """How many times as fast as ``name`` ours is, in the median of the pairs of one round."""
    if name == "ours" or not {"ours", name} <= results.keys():
        return None
    if any(done.code for done, _ in results["ours"] + results[name]):
        return None
    pairs = zip(results["ours"], results[name], strict=True)
    return statistics.median(
        theirs.durable_s / ours.durable_s if durable else theirs.wall_s / ours.wall_s
        for (ours, _), (theirs, _) in pairs
    )


GIVEN = {"exact count": "count", "order kept": "order", "bytes identical": "bytes"}


def table(contestants: Sequence[Contestant], results: Results, size: int) -> list[str]:
    """Medians, what each gives, and how much faster ours is; who is not here has a line, too."""
    columns = ["MB/s", "wall s", "CPU s", "largest MiB", "all MiB", "ours is faster"]
    if any(contestant.writes for contestant in contestants):
        columns += ["durable s", "ours is faster", *GIVEN]
    lines = [f"| | {' | '.join(columns)} |", "|-" * (len(columns) + 1) + "|"]
    for contestant in contestants:
        cells = _cells(contestant, results, size)[: len(columns)]
        cells += [""] * (len(columns) - len(cells))
        lines.append(f"| {contestant.name} | {' | '.join(cells)} |")
    return lines


def _cells(contestant: Contestant, results: Results, size: int) -> list[str]:
    if contestant.name not in results:
        return ["not here"]
    runs = [done for done, _ in results[contestant.name]]
    for done in runs:
        if done.code:
            return [f"failed, exit {done.code}: {' '.join(done.error.splitlines()[-1:])}"]
    wall, cpu, durable = (
        statistics.median(values)
        for values in zip(*((r.wall_s, r.cpu_s, r.durable_s) for r in runs), strict=True)
    )
    largest, whole = max(r.largest_mib for r in runs), max(r.tree_mib for r in runs)
    cells = [f"{size / wall / 1e6:,.0f}", f"{wall:.2f}", f"{cpu:.2f}", f"{largest:,.0f}",
             f"{whole:,.0f}", _times(ratio(results, contestant.name))]  # fmt: skip
    if contestant.writes:
        judged = [found for _, found in results[contestant.name]]
        cells += [f"{durable:.2f}", _times(ratio(results, contestant.name, durable=True))]
        cells += ["yes" if all(j[key] for j in judged) else "no" for key in GIVEN.values()]
    return cells


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def goals(title: str, results: Results) -> list[str]:
    """What must hold, and whether it does."""
    lines = []
    for of, name, goal in GOALS:
        found = ratio(results, name) if of == title else None
        if found is not None:
            lines.append(f"{title}: ours / {name} {found:.2f} (goal: at least {goal})")
    rivals = [
        (found, name)
        for name, runs in results.items()
        if all(judged and all(judged.values()) for _, judged in runs)
        and (found := ratio(results, name)) is not None
    ]
    if rivals:
        found, name = min(rivals)
        lines.append(f"{title}: ours / the fastest that is exact, ordered and identical "
                     f"({name}) {found:.2f} (goal: above 1)")  # fmt: skip
    for done, _ in results.get("ours", [])[:1]:
        lines.append(f"{title}: ours took {done.largest_mib:.0f} MiB in its largest process, "
                     f"{done.tree_mib:.0f} in all (goal: below {GOAL_MIB})")  # fmt: skip
    return lines


def growth(title: str, contestant: Contestant, corpora: tuple[Corpus, Corpus]) -> list[str]:
    """Memory over time on a small and on a large corpus, and the ratio of the peaks."""
    lines, peaks = [], []
    for corpus in corpora:
        done, _ = once(contestant, corpus)
        peaks.append(done.tree_mib)
        tenths: list[float] = [0.0] * 10
        for moment, mib in done.trace_mib:
            tenth = min(9, int(10 * moment / done.wall_s))
            tenths[tenth] = max(tenths[tenth], mib)
        shown = " ".join(f"{mib:.0f}" for mib in tenths)
        lines.append(f"{title} {corpus.size / 1e9:.2f} GB: exit {done.code}, {done.wall_s:.1f} s, "
                     f"most MiB in each tenth of it: {shown}; {done.error[-100:]}")  # fmt: skip
    lines.append(f"{title}: peak of the larger / the smaller {peaks[1] / peaks[0]:.2f}")
    return lines


def machine() -> str:
    """Cores, processor, memory."""
    text = Path("/proc/cpuinfo").read_text()
    cpu = next((line.split(":")[1] for line in text.splitlines() if "model name" in line), "?")
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {cpu.strip()}, {ram:.0f} GiB, Python {platform.python_version()}"


def chosen(contestants: Sequence[Contestant], only: str) -> list[Contestant]:
    """Those that are named, and ours; all where nothing is."""
    names = {"ours", *only.split(",")}
    return [c for c in contestants if not only or c.name in names]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=1.0, help="size of the corpus")
    parser.add_argument("--check", action="store_true", help="checking, too")
    parser.add_argument("--cold", action="store_true", help="the corpus is not in memory")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="names from the table, between commas")
    parser.add_argument("--python", help="another Python, that has duckdb, polars, ...")
    parser.add_argument("--directory", type=Path, help="where the corpus and outputs are put")
    return parser.parse_args()


def main() -> None:
    """Generate, run, print."""
    options = arguments()
    PYTHONS.extend([options.python] if options.python else [])
    sides = [("sampling", SAMPLING), *([("checking", CHECKING)] if options.check else [])]
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        corpus = generate(Path(name) / "corpus.jsonl", options.gb, cold=options.cold)
        print(f"{corpus.size:,} bytes, {corpus.rows:,} rows, {'cold' if options.cold else 'warm'}")
        if options.only == "ours":
            small = generate(Path(name) / "small.jsonl", options.gb / 10, cold=options.cold)
            for title, contestants in sides:
                print("\n".join(growth(title, contestants[0], (small, corpus))))
            return
        for title, contestants in sides:
            invited = chosen(contestants, options.only)
            results = compete(invited, corpus, options.repeat)
            print(f"\n{title}, median of {options.repeat}:\n")
            print("\n".join(table(invited, results, corpus.size)))
            print("\n".join(["", *goals(title, results)]))


if __name__ == "__main__":
    main()
