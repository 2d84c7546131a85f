"""What Leviathan adds to a training: the same YAML bare and supervised, side by side.

    python benchmarks/overhead.py [--pairs 3] [--rows 6000]

Each pair trains a tiny model on the CPU twice: ``accelerate launch -m
axolotl.cli.train`` with the rendered YAML less our plugin, and ``leviathan train``.
Printed: wall seconds of each, their ratio, and the ratio of the training loops alone.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
GOAL_PCT = 2.0
# A rate so low that the tiny model does not learn its rows by heart: steps take twice as long
# once it has (benchmarks/eta.py), and each side has at another time, as Axolotl 0.19 alone
# leaves the adapter's beginning to chance.
RATE = "learning_rate=1e-5"


def environment() -> dict[str, str]:
    """Offline, and one thread, so that both sides compute the same way."""
    return {
        **os.environ,
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def timed(command: list[str], directory: Path) -> tuple[float, str]:
    """Wall seconds and output of one run."""
    began = time.perf_counter()
    done = subprocess.run(
        command, check=True, cwd=directory, env=environment(), text=True, capture_output=True
    )
    return time.perf_counter() - began, done.stdout + done.stderr


def loop_seconds(log: str) -> float:
    """The Trainer's own ``train_runtime``."""
    return float(re.findall(r"'train_runtime': '?([\d.]+)", log)[-1])


def supervised(directory: Path, name: str) -> tuple[float, float, Path]:
    """One ``leviathan train``: wall seconds, loop seconds, run directory."""
    command = [str(BIN / "leviathan"), "train", "--profile", "tiny", "--recipe", "tiny",
               "--sample", "full", "--name", name, "--set", "save_steps=200",
               "--set", "eval_steps=200", "--set", RATE]  # fmt: skip
    wall, _ = timed(command, directory)
    run = directory / "work/training" / name
    return wall, loop_seconds(next((run / "logs").glob("*.log")).read_text()), run


def bare(directory: Path, run: Path, name: str) -> tuple[float, float]:
    """The same YAML without our plugin, launched by hand: wall and loop seconds."""
    tree: dict[str, Any] = yaml.safe_load((run / "axolotl.yaml").read_text())
    tree["plugins"] = [p for p in tree["plugins"] if not p.startswith("leviathan.")]
    del tree["leviathan"]
    tree |= {"output_dir": str(directory / name), "save_total_limit": 5,
             "dataset_prepared_path": str(directory / name / "prepared")}  # fmt: skip
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(run / "accelerate.yaml"), "-m", "axolotl.cli.train", str(path)]  # fmt: skip
    wall, log = timed(command, directory)
    return wall, loop_seconds(log)


def main() -> None:
    """Run the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6000)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    with tempfile.TemporaryDirectory() as name:
        directory = tiny.write_project(Path(name), options.rows)
        tiny.write_model(directory / "base", directory / "rows.jsonl")
        walls, loops = [], []
        _, _, run = supervised(directory, "warm-up")
        for number in range(options.pairs):
            # In turn first and second: a machine that warms up or slows down favours neither.
            if number % 2:
                ours, our_loop, _ = supervised(directory, f"ours{number}")
                theirs, their_loop = bare(directory, run, f"bare{number}")
            else:
                theirs, their_loop = bare(directory, run, f"bare{number}")
                ours, our_loop, _ = supervised(directory, f"ours{number}")
            walls.append(ours / theirs)
            loops.append(our_loop / their_loop)
            print(f"pair {number + 1}: leviathan {ours:.1f} s ({our_loop:.1f} s in the loop), "
                  f"bare {theirs:.1f} s ({their_loop:.1f} s)")  # fmt: skip
    wall, loop = (100 * (statistics.median(ratios) - 1) for ratios in (walls, loops))
    print(f"Leviathan adds {wall:+.2f} % wall, {loop:+.2f} % in the loop; goal: < {GOAL_PCT} %")


if __name__ == "__main__":
    main()
