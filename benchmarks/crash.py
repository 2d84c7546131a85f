"""kill -9 at random moments, and the same command again: what is lost, and is the end the same?

    python benchmarks/crash.py [--trials 300] [--seed 1] [--json]

Real trainings of a tiny model on the CPU, forked from one process that has the imports
done (tests/forked); everything else is what a user runs. Each step is saved, so most
kills fall into a save. A trial kills the training process alone, or supervisor, launcher
and training at once as a power cut would (the same command follows then), and expects,
without a human: resumed from the newest checkpoint that was committed when the kill
came, at most one save interval lost.
Where the run ends, its weights and its loss curve must equal those of a run
nobody disturbed, bit for bit. Exit code 1 if any trial failed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import xxhash

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "real")]
from project import Project  # noqa: E402

import tiny  # noqa: E402
from forked.client import ForkServer  # noqa: E402

STEPS = 30
ROWS = 8 + 4 * STEPS  # 8 held out, 4 a step
SAVE_STEPS = 1
COMMAND = ("train", "--profile", "tiny", "--recipe", "tiny", "--sample", "full",
           "--set", f"save_steps={SAVE_STEPS}", "--set", "eval_steps=15",
           # A killed trainer is restarted by its supervisor; the wait leaves time to look.
           "--set", "recovery.restarts=3", "--set", "recovery.backoff_s=1")  # fmt: skip
PATIENCE_S = 120.0
_ATTEMPTS = 4  # commands in a row that may end without having begun to train


@dataclass
class Trial:
    """One kill, and what became of it."""

    run: str
    session: int
    kind: str
    """trainer, or all: supervisor, launcher and trainer at once."""
    moment: str
    """What the kill fell into: save, removal, end or between."""
    trained: int
    """Steps whose metrics were written by then."""
    committed: int
    """Newest step with a commit record whose files are what it says; 0 if there is none."""
    resumed: int | None = None
    problem: str | None = None

    @property
    def lost(self) -> int:
        """Steps to be trained again."""
        return self.trained - (self.resumed or 0)


@dataclass
class Report:
    """All trials of one invocation."""

    trials: list[Trial] = field(default_factory=list)
    runs: int = 0
    quarantined: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> list[Trial]:
        """Those in which anything was not as promised."""
        return [t for t in self.trials if t.problem]


class Crasher:
    """Trains one run again and again until it is done, killing it on the way."""

    def __init__(
        self, project: Project, name: str, reference: Project, chance: random.Random
    ) -> None:
        self.project, self.name, self.reference, self.chance = project, name, reference, chance
        self.directory = project.path(name)
        self.trials: list[Trial] = []
        self._pending: Trial | None = None
        self._span_s = 0.6 * training_seconds(reference)

    def train(self, budget: int) -> list[Trial]:
        """At most ``budget`` kills, then undisturbed to the end; its trials, judged."""
        session, idle = 0, 0
        process = self._start()
        while True:
            begun = self._next_session(process, session)
            if begun is None:
                if process.returncode == 0:
                    break
                idle += 1
                if idle > _ATTEMPTS:
                    self._fail(f"exit code {process.returncode}: {self._last_words()}")
                    return self.trials
                process = self._start()
                continue
            session, idle = begun, 0
            self._judge_resume(session)
            if len(self.trials) < budget and self._kill(process, session) == "all":
                process.wait()
                process = self._start()
        self._judge_end()
        return self.trials

    def _start(self) -> subprocess.Popen[bytes]:
        """The user's command, the same each time."""
        self.words = self.project.directory / f"{self.name}.err"
        with self.words.open("ab") as err:
            return self.project.spawn(*COMMAND, "--name", self.name, stdout=err, stderr=err)

    def _next_session(self, process: subprocess.Popen[bytes], after: int) -> int | None:
        """The next session that trains; None if the command ended without one."""

        def look() -> int | None:
            ended = process.poll() is not None
            begun = [e["session"] for e in self._events("train_begin") if e["session"] > after]
            if begun:
                return int(begun[0])
            return -1 if ended else None

        found = wait_for(look)
        return None if found == -1 else found

    def _kill(self, process: subprocess.Popen[bytes], session: int) -> str | None:
        """Kill at a random moment; None if the training was over before."""
        kind = self.chance.choice(["trainer", "all"])
        time.sleep(self.chance.uniform(0, self._span_s))
        beat = json.loads((self.directory / ".plugin.json").read_bytes())
        if process.poll() is not None or beat["session"] != session:
            return None
        pids = [beat["pid"]]
        if kind == "all":
            pids = self.project.processes()
            self.chance.shuffle(pids)
        if not is_alive(beat["pid"]):
            return None
        for pid in pids:
            with_no_error(os.kill, pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, pids)))
        self._pending = self._observe(kind, session)
        self.trials.append(self._pending)
        return kind

    def _observe(self, kind: str, session: int) -> Trial:
        """The run directory as the kill left it, read without Leviathan's code."""
        kept = committed(self.directory)
        present = [int(p.name[11:]) for p in self.directory.glob("checkpoint-*")]
        lines = [m for m in json_lines(self.directory / "metrics.jsonl") if "loss" in m]
        # Of a session killed before its first step nothing was trained but what it began from.
        trained = max(
            [m["step"] for m in lines if m["session"] == session] or [max(kept, default=0)]
        )
        newest = max(kept, default=0)
        if any(step > newest for step in present):
            moment = "save"
        elif len(present) > len(kept):
            moment = "removal"
        else:
            moment = "end" if newest == STEPS else "between"
        return Trial(self.name, session, kind, moment, trained, newest)

    def _judge_resume(self, session: int) -> None:
        trial, self._pending = self._pending, None
        if trial is None:
            return
        began = [e for e in self._events("resume", "start") if e["session"] == session]
        trial.resumed = int(began[-1]["step"])
        if trial.resumed != trial.committed:
            trial.problem = f"resumed from {trial.resumed}, but {trial.committed} was committed"
        elif trial.lost > SAVE_STEPS:
            trial.problem = f"{trial.lost} steps were lost, saved every {SAVE_STEPS}"

    def _judge_end(self) -> None:
        """The command says that the run is done: is it the run nobody disturbed?"""
        if self._pending:  # killed after the last step: nothing was left to train
            self._judge_resume_without_steps(self._pending)
        if self.project.curve(self.name) != self.reference.curve("reference"):
            self._fail("the loss curve differs from the undisturbed run's")
        if self.project.adapter(self.name) != self.reference.adapter("reference"):
            self._fail("the final weights differ from the undisturbed run's")

    def _judge_resume_without_steps(self, trial: Trial) -> None:
        trial.resumed = trial.committed
        if trial.committed != STEPS:
            trial.problem = f"done, but only step {trial.committed} of {STEPS} was committed"

    def _fail(self, problem: str) -> None:
        for trial in self.trials:
            trial.problem = trial.problem or problem

    def _events(self, *kinds: str) -> list[dict[str, Any]]:
        return [e for e in json_lines(self.directory / "events.jsonl") if e["event"] in kinds]

    def _last_words(self) -> str:
        return self.words.read_text()[-500:]

    def quarantined(self) -> int:
        """Checkpoints that resumes passed over."""
        return len(self._events("quarantine"))


def committed(directory: Path) -> list[int]:
    """Steps whose commit record names exactly what is there, by this script's own reading."""
    steps = []
    for path in directory.glob("checkpoint-*"):
        try:
            entries = json.loads((path / "leviathan-commit.json").read_bytes())["files"]
            whole = all(
                xxhash.xxh3_64_hexdigest((path / name).read_bytes()) == entry["xxh3_64"]
                for name, entry in entries.items()
            )
        except (OSError, ValueError):
            continue
        if whole and "optimizer.pt" in entries:
            steps.append(int(path.name[11:]))
    return steps


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole JSON lines; a killed writer leaves half of one."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether a process still runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def with_no_error(call: Callable[..., None], *arguments: Any) -> None:
    """For a process that may have ended meanwhile."""
    try:
        call(*arguments)
    except ProcessLookupError:
        return


def wait_for(what: Callable[[], Any]) -> Any:
    """The first true value of ``what()``."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not so after {PATIENCE_S} s")


def training_seconds(reference: Project) -> float:
    """How long the undisturbed run trained, from its first step to its end."""
    events = json_lines(reference.path("reference") / "events.jsonl")
    times = {e["event"]: e["time"] for e in events}
    return float(times["train_end"] - times["train_begin"])


def undisturbed(directory: Path, server: ForkServer) -> Project:
    """A project and its run called reference, which is never killed."""
    project = Project(tiny.write_project(directory, ROWS), server)
    tiny.write_model(directory / "base", directory / "rows.jsonl")
    done = project.run(*COMMAND, "--name", "reference")
    assert done.code == 0, done.err
    assert len(project.curve("reference")) == STEPS
    return project


def crash(project: Project, trials: int, seed: int, tell: Callable[[str], None]) -> Report:
    """Runs with kills until there were ``trials`` of them."""
    chance, report, began = random.Random(seed), Report(), time.monotonic()  # noqa: S311
    while len(report.trials) < trials:
        report.runs += 1
        crasher = Crasher(project, f"run{report.runs}", project, chance)
        found = crasher.train(trials - len(report.trials))
        report.trials += found
        report.quarantined += crasher.quarantined()
        for trial in found:
            tell(f"{trial.run} session {trial.session}: {trial.kind} killed ({trial.moment}), "
                 f"step {trial.trained} -> {trial.resumed} {trial.problem or 'ok'}")  # fmt: skip
        if not any(t.problem for t in found):
            shutil.rmtree(crasher.directory)  # one that failed is kept for a look
    report.seconds = time.monotonic() - began
    return report


def document(report: Report) -> dict[str, Any]:
    """What is told, by a person's and a program's reader alike."""
    lost = [t.lost for t in report.trials if t.resumed is not None]
    return {
        "trials": len(report.trials),
        "resumed": sum(t.resumed is not None and not t.problem for t in report.trials),
        "runs": report.runs,
        "moments": dict(Counter(t.moment for t in report.trials)),
        "kinds": dict(Counter(t.kind for t in report.trials)),
        "steps_lost_max": max(lost, default=0),
        "steps_lost_mean": round(statistics.mean(lost), 3) if lost else 0,
        "quarantined": report.quarantined,
        "seconds": round(report.seconds, 1),
        "failed": [asdict(t) for t in report.failed],
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ForkServer() as server:
        project = undisturbed(Path(name).resolve(), server)
        tell = (lambda _: None) if options.json else (lambda line: print(line, flush=True))
        report = crash(project, options.trials, options.seed, tell)
        told = document(report)
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        for key, value in told.items():
            print(f"{key:<16} {value}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
