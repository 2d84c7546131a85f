"""What a command takes, as a whole tree of processes: wall and CPU seconds, memory over time.

Reads /proc. Keep the process that uses this small: until a child has become another program,
the kernel counts its parent's memory as its own.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

EVERY_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20


@dataclass
class Memory:
    """Looks at a tree of processes until it has ended."""

    root: int
    largest: int = 0
    """Most bytes that any one process ever had resident; the kernel's own high-water mark."""
    tree: int = 0
    """Most bytes of all processes at one moment; what they share counts for each."""
    trace: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the beginning, and bytes of all processes."""

    def watch(self, ended: threading.Event) -> None:
        """Look every 20 ms."""
        began = time.perf_counter()
        while not ended.is_set():
            sizes = [_resident(pid) for pid in _tree(self.root)]
            total = sum(now for now, _ in sizes)
            self.largest = max([self.largest, *(peak for _, peak in sizes)])
            self.tree = max(self.tree, self.largest, total)
            self.trace.append((time.perf_counter() - began, total))
            ended.wait(EVERY_S)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return
    for child in children:
        yield from _tree(int(child))


def _resident(pid: int) -> tuple[int, int]:
    """Bytes now, and most until now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    now, peak = (int(found.get(key, "0 kB").split()[0]) << 10 for key in ("VmRSS", "VmHWM"))
    return now, peak


@dataclass(frozen=True)
class Run:
    """One run of a command."""

    code: int
    wall_s: float
    cpu_s: float
    """Of all its processes that have ended and were waited for."""
    durable_s: float
    """``wall_s``, and what it then takes to get its output onto the disk."""
    largest_mib: float
    tree_mib: float
    trace_mib: tuple[tuple[float, float], ...]
    error: str
    """The end of what it said on stderr."""


def run(
    command: list[str], directory: Path, output: Path | None, *, as_stdout: bool = False
) -> Run:
    """Run a command, its stdout being its output or thrown away."""
    said = directory / "stderr"
    with (
        said.open("wb") as err,
        (output if output and as_stdout else Path(os.devnull)).open("wb") as out,
    ):
        began = time.perf_counter()
        code, cpu_s, memory = _measured(command, directory, out, err)
        wall_s = time.perf_counter() - began
    if output and output.exists():
        handle = os.open(output, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    durable_s = time.perf_counter() - began
    trace = tuple((moment, size / _MIB) for moment, size in memory.trace)
    return Run(code, wall_s, cpu_s, durable_s, memory.largest / _MIB, memory.tree / _MIB, trace,
               said.read_text(errors="replace").strip()[-300:])  # fmt: skip


def _measured(
    command: list[str], directory: Path, out: IO[bytes], err: IO[bytes]
) -> tuple[int, float, Memory]:
    ended = threading.Event()
    process = subprocess.Popen(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err
    )
    memory = Memory(process.pid)
    watcher = threading.Thread(target=memory.watch, args=(ended,))
    watcher.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        ended.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if not memory.largest:  # it ended before the first look
        memory.largest = memory.tree = usage.ru_maxrss << 10
    return process.returncode, usage.ru_utime + usage.ru_stime, memory
