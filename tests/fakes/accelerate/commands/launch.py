"""Acts ``accelerate launch -m axolotl.cli.train``: starts fake_worker.py and waits.

A worker that fails is reported as accelerate 1.13 does: a CalledProcessError, exit code 1.
"""

import signal
import subprocess
import sys
from pathlib import Path

from fake_mode import setting

WORKER = Path(__file__).parents[2] / "fake_worker.py"


def main(arguments: list[str]) -> None:
    option, accelerate_yaml, dash_m, module, config = arguments
    if (option, dash_m, module) != ("--config_file", "-m", "axolotl.cli.train"):
        sys.exit(f"not the launch that Leviathan promises: {arguments}")
    if "num_processes: 1\n" not in Path(accelerate_yaml).read_text():
        sys.exit("this fake launches one process")
    mode = setting("mode", Path(config))
    if mode in {"deaf", "grandchild"}:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    command = [sys.executable, str(WORKER), config]
    worker = subprocess.Popen(command, start_new_session=mode == "own-session")
    if worker.wait() != 0:
        raise subprocess.CalledProcessError(worker.returncode, command)


if __name__ == "__main__":
    main(sys.argv[1:])
