"""How long reading commands take on a run of a million log lines.

    python benchmarks/readers.py [--runs 3] [--keep DIRECTORY]

Makes a run of 1,000,000 log lines, 95,000 samples of the machine (11 days) and 40,000 saves
with an evaluation each, then runs each command as a process of its own. The run is resumed
three times. Saves leave events; of checkpoints retention has left four.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from leviathan import runs

LEVIATHAN = [sys.executable, "-m", "leviathan.cli"]
STEPS, SAMPLES, SAVES, SESSIONS = 1_000_000, 95_000, 40_000, 4
STEP_S = 0.95
GOALS_S = {"status": 0.5, "report": 10.0}
"""Commands, each with what issue 6 allows it."""


def main() -> None:
    """Make the run, time each command, say what was allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="Make it here and leave it.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = asked.keep or Path(temporary)
        run = make(directory / runs.TRAINING / "million")
        size = sum(path.stat().st_size for path in run.glob("*.jsonl"))
        print(f"{STEPS:,} log lines, {SAMPLES:,} samples, {SAVES:,} saves: {size / 1e6:.0f} MB")
        slow = [
            words
            for words, goal_s in GOALS_S.items()
            if not timed(words, goal_s, directory, asked.runs)
        ]
        report = run / "report.html"
        if report.exists():
            print(f"report.html       {report.stat().st_size / 1e3:.0f} kB (goal: below 1000 kB)")
    sys.exit(1 if slow else 0)


def timed(words: str, goal_s: float, directory: Path, count: int) -> bool:
    """Run a command ``count`` times; whether its median is below the goal."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        command = [*LEVIATHAN, *words.split(), "million"]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    print(f"leviathan {words:<8}{median:.2f} s (median of {count}; goal: below {goal_s} s)")
    return median < goal_s


def make(run: Path) -> Path:
    """The run directory."""
    run.mkdir(parents=True)
    began = time.time() - STEPS * STEP_S
    write_metrics(run / "metrics.jsonl", began)
    write_samples(run / "gpu.jsonl", began)
    write_events(run / "events.jsonl", began)
    first = STEPS // SESSIONS
    sessions = [
        runs.Session(
            n + 1, began + n * first * STEP_S, {}, n * first or None,
            began + (n + 1) * first * STEP_S, "stopped" if n < SESSIONS - 1 else "done",
            first * STEP_S,
        )
        for n in range(SESSIONS)
    ]  # fmt: skip
    record = runs.RunRecord(
        "million", "leviathan", "a4000", "10pct", [], {"success": {"final_loss": 1.5}}, {}, 1, {},
        None, {}, began, state="done", sessions=sessions,
    )  # fmt: skip
    runs.write(runs.RunPaths(run), record)
    return run


def write_metrics(path: Path, began: float) -> None:
    """As the plugin writes them, with the keys that Axolotl logs."""
    chance = random.Random(1)  # noqa: S311
    with path.open("w") as out:
        for step in range(1, STEPS + 1):
            moment = began + step * STEP_S
            line = {
                "time": moment, "monotonic_s": round(moment - began, 3),
                "session": session_at(step), "step": step, "epoch": step / STEPS,
                "max_steps": STEPS, "loss": 1.1 + math.exp(-step / 2e4) + chance.gauss(0, 0.05),
                "grad_norm": abs(chance.gauss(0.4, 0.05)), "ppl": 3.01,
                "learning_rate": 2e-4 * (1 - step / STEPS), "memory/max_active (GiB)": 11.9,
                "memory/max_allocated (GiB)": 11.9,
                "memory/device_reserved (GiB)": 12.4, "tokens/train_per_sec_per_gpu": 431.2,
                "tokens/trainable": step * 410, "tokens/total": step * 650, "data_s": 0.01,
            }  # fmt: skip
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
            if step % (STEPS // SAVES) == 0:
                line = {n: line[n] for n in ("time", "session", "step", "epoch", "max_steps")}
                out.write(json.dumps({**line, "eval_loss": eval_loss(step), "eval_s": 3.0}) + "\n")


def eval_loss(step: int) -> float:
    """Somewhat above the training's."""
    return 1.2 + math.exp(-step / 2e4)


def write_samples(path: Path, began: float) -> None:
    """One every ten seconds."""
    chance = random.Random(2)  # noqa: S311
    gpu = {"index": 0, "used_gib": 13.2, "total_gib": 15.99, "busy_pct": 98.0, "power_w": 139.6,
           "power_limit_w": 140.0, "sm_mhz": 1410.0, "throttle": ["power cap"]}  # fmt: skip
    with path.open("w") as out:
        for number in range(SAMPLES):
            moment = began + number * STEPS * STEP_S / SAMPLES
            celsius = round(chance.gauss(74, 2), 1)
            line = {"time": moment, "session": session_at(number * STEPS // SAMPLES),
                    "gpus": [gpu | {"temperature_c": celsius}], "resident_gib": 6.1,
                    "free_disk_gib": 300.0}  # fmt: skip
            out.write(json.dumps(line, separators=(",", ":")) + "\n")


def write_events(path: Path, began: float) -> None:
    """Every save with its evaluation and the checkpoint that it lets go."""
    every = STEPS // SAVES
    with path.open("w") as out:

        def tell(kind: str, step: int, **facts: float) -> None:
            line = {"time": began + step * STEP_S, "event": kind, "session": session_at(step)}
            out.write(json.dumps({**line, "step": step, **facts}, separators=(",", ":")) + "\n")

        for number in range(1, SAVES + 1):
            step = number * every
            if (step - every) % (STEPS // SESSIONS) == 0:
                begin = step - every
                line = {"time": began + begin * STEP_S, "event": "resume" if begin else "start",
                        "session": session_at(begin + 1), "step": begin}  # fmt: skip
                out.write(json.dumps(line) + "\n")
            tell("eval", step, eval_loss=eval_loss(step), eval_s=3.0)
            tell("save", step, save_s=0.2)
            tell("remove", step)


def session_at(step: int) -> int:
    """Which session trained a step."""
    return min(max(step - 1, 0) * SESSIONS // STEPS + 1, SESSIONS)


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    main()
