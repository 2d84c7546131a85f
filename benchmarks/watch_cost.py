"""What an open ``leviathan watch`` takes of one core, in a tmux pane, beside a run that writes.

    python benchmarks/watch_cost.py [--seconds 60] [--rates 1 20] [--sizes 80x24 120x40]

A made-up run of 5,000 log lines goes on with so many lines a second, and a line of telemetry
every ten. Counted is the CPU time of the watch itself after its start, by the kernel.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fakes.fake_run import FakeRun  # noqa: E402 - the tests' own run
from fakes.terminal import Terminal  # noqa: E402

LEVIATHAN = str(Path(sys.executable).with_name("leviathan"))
BACKLOG = 5000
STARTED_S = 5.0
"""After so long the watch has started, in any case."""
GOAL_PCT = 3.0


def write(run: FakeRun, rate: float, seconds: float) -> None:
    """Go on with the run in real time."""
    end, sampled = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        run.now = time.time()
        run.train(1, step_s=0.0)
        run.log(f"{{'loss': 1.2345, 'learning_rate': 0.00018, 'epoch': {run.step / 5000:.2f}}}\n")
        if time.monotonic() - sampled >= 10:
            sampled = time.monotonic()
            run.sample()
        time.sleep(1 / rate)


def measured(size: str, rate: float, seconds: float) -> tuple[float, float]:
    """Percent of one core, and MiB resident at the end."""
    with tempfile.TemporaryDirectory() as directory:
        run = FakeRun(Path(directory) / "work/training/made-up", time.time() - BACKLOG, 100_000)
        run.begin()
        run.train(BACKLOG, saves=False)
        with Terminal([LEVIATHAN, "watch"], Path(directory), size) as terminal:
            write(run, rate, STARTED_S)
            process = psutil.Process(terminal.pid)
            before, began = process.cpu_times(), time.monotonic()
            write(run, rate, seconds)
            after, wall_s = process.cpu_times(), time.monotonic() - began
            assert f"step {run.step // 100}" in terminal.screen.replace(",", "")
            cpu_s = after.user + after.system - before.user - before.system
            return 100 * cpu_s / wall_s, process.memory_info().rss / 2**20


def main() -> None:
    """Print a line for each size and rate, and whether it is what it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 20])
    parser.add_argument("--sizes", nargs="+", default=["80x24", "120x40"])
    asked = parser.parse_args()
    worst = 0.0
    for size in asked.sizes:
        for rate in asked.rates:
            pct, mib = measured(size, rate, asked.seconds)
            worst = max(worst, pct)
            print(f"{size:>7}  {rate:4g} lines/s  {pct:5.2f} % of one core  {mib:4.0f} MiB")
    print(f"goal: below {GOAL_PCT:g} %: {'met' if worst < GOAL_PCT else 'missed'}")
    sys.exit(worst >= GOAL_PCT)


if __name__ == "__main__":
    main()
