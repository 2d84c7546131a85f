"""A disk of a few MiB that can be filled to the byte: a tmpfs."""

import os
import subprocess
from pathlib import Path

FILLER = "filler"
PAGE = 4096


class SmallDisk:
    """A context. Mounted where everybody sees it if that is allowed, else in a namespace.

    In a namespace of its own (any user may make one) only commands behind ``prefix`` see
    the disk at ``point``; the test itself looks at it through ``directory``. Trainings
    then go through the genuine accelerate: the fork server lives outside.
    """

    def __init__(self, point: Path, mib: int) -> None:
        self.point, self.mib = point, mib
        self.directory = point
        self.prefix: tuple[str, ...] = ()
        self._holder: subprocess.Popen | None = None

    @property
    def shared(self) -> bool:
        """Whether every process sees it."""
        return self._holder is None

    def __enter__(self) -> "SmallDisk":
        self.point.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.mib}m", "none", str(self.point)]
        if (
            os.geteuid() != 0
            or subprocess.run(mount, check=False, capture_output=True).returncode != 0
        ):
            self._enter_namespace(mount)
        return self

    def _enter_namespace(self, mount: list[str]) -> None:
        script = '"$@" && echo mounted && exec sleep 100000'
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, "sh", *mount], stdout=subprocess.PIPE
        )
        if self._holder.stdout.readline() != b"mounted\n":
            raise RuntimeError("this machine permits neither mounts nor user namespaces")
        pid = str(self._holder.pid)
        self.directory = Path("/proc", pid, "root", *self.point.parts[1:])
        self.prefix = ("nsenter", "-U", "-m", "--preserve-credentials", "-t", pid,
                       f"--wd={self.point}", "--")  # fmt: skip

    def __exit__(self, *_: object) -> None:
        if self._holder:
            self._holder.kill()
            self._holder.communicate()
        else:
            subprocess.run(["umount", "-l", str(self.point)], check=True)

    def free_bytes(self) -> int:
        """What can still be written."""
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize

    def fill(self, free_bytes: int) -> None:
        """Leave this much free, rounded down to pages."""
        with (self.directory / FILLER).open("ab") as filler:
            while (surplus := self.free_bytes() - free_bytes) >= PAGE:
                filler.write(bytes(min(surplus, 1 << 20) // PAGE * PAGE))
                filler.flush()

    def release(self) -> None:
        """Give the filler's space back."""
        (self.directory / FILLER).unlink()
