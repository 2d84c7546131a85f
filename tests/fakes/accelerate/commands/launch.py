"""Acts ``accelerate launch -m axolotl.cli.train``: starts fake_worker.py, waits, passes its code on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).parents[2] / "fake_worker.py"
MODE = os.environ.get("FAKE_MODE", "finish")


def main(arguments: list[str]) -> int:
    option, accelerate_yaml, dash_m, module, config = arguments
    if (option, dash_m, module) != ("--config_file", "-m", "axolotl.cli.train"):
        sys.exit(f"not the launch that Leviathan promises: {arguments}")
    if "num_processes: 1\n" not in Path(accelerate_yaml).read_text():
        sys.exit("this fake launches one process")
    if MODE in {"deaf", "grandchild"}:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    worker = [sys.executable, str(WORKER), config]
    return subprocess.Popen(worker, start_new_session=MODE == "own-session").wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
