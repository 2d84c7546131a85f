"""Starts a fork server, and says which environment sends launches to it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PADDING = 2000  # only reserves room: a child writes its own command line there
# What leviathan.launch gives the training of a CPU profile; the server compares.
_LAUNCHED_WITH = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


class ForkServer:
    """A context: the server lives inside it, and whatever it forked ends with it."""

    def __enter__(self) -> "ForkServer":
        # Not pytest's own directory: a socket's path has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="fork-"))
        self.socket = self.directory / "socket"
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), str(self.socket), "-" * PADDING],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_LAUNCHED_WITH},
                start_new_session=True,
            )
        if not any(line == b"ready\n" for line in self.process.stdout):  # imports talk
            raise RuntimeError((self.directory / "log").read_text()[-3000:])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        shutil.rmtree(self.directory)

    def environment(self) -> dict[str, str]:
        """For ``leviathan train``: its launches go to this server."""
        path = [str(HERE / "fake"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(path), "FORK_SERVER": str(self.socket)}
