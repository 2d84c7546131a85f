#!/usr/bin/env python3
"""From raw text to a model that answers: nanochat's demo mode, all four stages, and its suite.

python benchmarks/nanochat.py          # seconds, CPU seconds, what passes
python benchmarks/nanochat.py --kill   # killed with SIGKILL in every stage, and begun again; the
                                       # CPU seconds are then without those of the killed

Exit code 1 where the model is not better than guessing, or a stage does not resume.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from leviathan import classroom, files

ROOT = Path(__file__).parents[1]
TRAIN = ["train", "--recipe", "nanochat", "--mode", "demo", "--profile", "cpu"]
RUN = "nanochat_full_cpu_demo"
STAGES = ("base", "mid", "sft", "rl")
LEVIATHAN = [sys.executable, "-c", "from leviathan.cli import main; main()"]


def killed_in(stage: str, directory: Path) -> bool:
    """Train until the stage's first checkpoint is committed, then end every process at once."""
    runs = directory / "work/training"
    process = subprocess.Popen([*LEVIATHAN, *TRAIN], cwd=directory, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if list(runs.glob(f"{RUN}.{stage}/checkpoint-*/leviathan-commit.json")):
            family = psutil.Process(process.pid)
            for one in [*family.children(recursive=True), family]:
                one.kill()
            process.wait()
            return True
        time.sleep(0.2)
    return False


def sessions(stage: str, directory: Path) -> int:
    """How often the stage's training was started."""
    record = json.loads((directory / f"work/training/{RUN}.{stage}/run.json").read_text())
    return len(record["sessions"])


def passed(directory: Path, stage: str) -> float:
    """What of its suite a stage's model passes, in percent."""
    command = [*LEVIATHAN, "test", f"{RUN}.{stage}", "--suite", "nanochat", "--json"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return float(json.loads(done.stdout)["pass_pct"])


def main() -> None:
    """Train, ask, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill", action="store_true", help="kill it once in every stage")
    kill = parser.parse_args().kill
    with tempfile.TemporaryDirectory() as name:
        directory, began = Path(name), time.monotonic()
        if kill and not all(killed_in(stage, directory) for stage in STAGES):
            sys.exit("a stage ended before it could be killed")
        subprocess.run([*LEVIATHAN, *TRAIN], cwd=directory, check=True)
        seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        pct = {stage: passed(directory, stage) for stage in STAGES[-2:]}
        started = {stage: sessions(stage, directory) for stage in STAGES}
    shipped = files.read_json_lines(ROOT / "configs/demo/stdlib.jsonl")
    guessed = classroom.guessed_pct(classroom.split(shipped)[1])
    print(f"{seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU; sessions {started}")
    print(
        f"passed: {pct['sft']:.1f} % after sft, {pct['rl']:.1f} % after rl; guessing {guessed:.1f}"
    )
    resumed = all(count > 1 for count in started.values()) or not kill
    sys.exit(not (resumed and pct["rl"] > 2 * guessed))


if __name__ == "__main__":
    os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")
    main()
