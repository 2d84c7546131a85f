"""Time left, said and true: at a tenth, a fifth and half of real trainings.

    python benchmarks/eta.py [--steps 500] [--batch 32] [--record DIRECTORY]

Trains a tiny model on the CPU twice, with saves and evaluations: once undisturbed, once
stopped in the middle and resumed by the same command. Then each moment's figure is made of
the lines that were written by then, and compared with when training ended. ``--record``
keeps, of both runs, the lines and keys that the figures are made of, as in tests/recorded.
What else the machine has to do is in the truth, and cannot be in what is said: use a quiet one.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "real")]
from project import Project  # noqa: E402

import tiny  # noqa: E402
from forked.client import ForkServer  # noqa: E402
from leviathan import files, runs  # noqa: E402
from replay import moments  # noqa: E402

HELD_OUT = 256
# A rate so low that the tiny model does not learn its rows by heart: at the tests' own rate its
# steps took twice as long from about the fiftieth on, at the same step in every run.
RATE = "1e-5"
COMMAND = ("train", "--profile", "tiny", "--recipe", "tiny", "--sample", "full",
           "--set", f"val_set_size={HELD_OUT}", "--set", "eval_steps=40",
           "--set", "save_steps=30", "--set", f"learning_rate={RATE}")  # fmt: skip
SHARES_PCT = (10, 20, 50)
KEPT = ("time", "monotonic_s", "event", "session", "step", "max_steps", "loss", "eval_loss",
        "eval_s", "save_s", "wait_s", "eval_every", "save_every", "stopped")  # fmt: skip


def train(project: Project, name: str, batch: int, stop_at: int | None = None) -> None:
    """One session; stopped by Ctrl+C after a step, or to the end."""
    command = (*COMMAND, "--set", f"micro_batch_size={batch}", "--name", name)
    if stop_at is None:
        done, expected = project.run(*command), 0
    else:
        done, expected = project.signal_at(name, stop_at, signal.SIGINT, arguments=command), 4
    if done.code != expected:
        sys.exit(done.err)


def record(run: Path, target: Path) -> None:
    """Keep the lines and keys that the time left is made of."""
    target.mkdir(parents=True, exist_ok=True)
    paths = runs.RunPaths(run)
    told = {"start", "resume", "train_begin", "save", "train_end"}
    for path in (paths.events, paths.metrics):
        lines = [
            {name: _short(line[name]) for name in KEPT if name in line}
            for line in files.read_json_lines(path)
            if path == paths.metrics or line["event"] in told
        ]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (target / path.name).write_text(text)


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def show(name: str, run: Path) -> None:
    """A line for each moment."""
    for m in moments(run, SHARES_PCT):
        low, high = m.said.low_s or 0.0, m.said.high_s or 0.0
        print(f"{name}, session {m.session}, {m.share_pct} % (step {m.step}): said "
              f"{m.said.mid_s:.1f} s ({low:.1f} to {high:.1f}), true {m.true_s:.1f} s, "
              f"{m.error_pct:+.1f} %, by {m.said.source}")  # fmt: skip


def main() -> None:
    """Train, and print what was said and what was true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ForkServer() as server:
        directory = tiny.write_project(Path(name), options.steps * options.batch + HELD_OUT)
        tiny.write_model(directory / "base", directory / "rows.jsonl")
        project = Project(directory, server)
        train(project, "whole", options.batch)
        train(project, "resumed", options.batch, stop_at=options.steps // 2)
        train(project, "resumed", options.batch)
        for run in ("whole", "resumed"):
            show(run, project.path(run))
            if options.record:
                record(project.path(run), options.record / run)


if __name__ == "__main__":
    main()
