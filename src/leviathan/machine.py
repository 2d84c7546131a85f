"""Owns asking the machine: GPUs through NVML, installed packages, disk, process identity.

The only module that asks the hardware. Does not judge what it finds; ``preflight`` does.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML reports it."""

    name: str
    memory_gib: float
    free_gib: float
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """What this machine has."""

    gpus: tuple[Gpu, ...]
    flash_attn: bool
    versions: dict[str, str]


_PACKAGES = ("leviathan-train", "axolotl", "torch", "transformers", "peft", "accelerate",
             "bitsandbytes", "datasets", "trl")  # fmt: skip


def probe() -> Machine:
    """Look at this machine. Imports nothing of the training stack."""
    return Machine(_gpus(), importlib.util.find_spec("flash_attn") is not None, versions())


def versions() -> dict[str, str]:
    """Installed versions of what a run depends on, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> tuple[Gpu, ...]:
    import pynvml  # loads the driver's library; only needed when the machine is asked

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(_gpu(handle) for handle in handles)
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object) -> Gpu:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = str(pynvml.nvmlDeviceGetName(handle))
    return Gpu(name, memory.total / 2**30, memory.free / 2**30, f"sm_{major}{minor}")


def hottest_c() -> float | None:
    """Temperature of the hottest GPU in Celsius; None without a GPU."""
    import pynvml  # as in _gpus

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        kind = pynvml.NVML_TEMPERATURE_GPU
        return max((float(pynvml.nvmlDeviceGetTemperature(h, kind)) for h in handles), default=None)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def kernel_kills() -> int:
    """How many processes the kernel's OOM killer has ended since boot, here or in our cgroup."""
    total = 0
    for path, name in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        with suppress(OSError, ValueError):
            lines = dict(line.split()[:2] for line in Path(path).read_text().splitlines())
            total += int(lines.get(name, 0))
    return total


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is or will be, in bytes."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def free_gib(path: Path) -> float:
    """Free space where ``path`` is or will be, in GiB."""
    return free_bytes(path) / 2**30


def boot_id() -> str:
    """Identifies this boot of this machine, so that a pid can be told from its reuse."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def process_identity(pid: int | None = None) -> dict[str, object]:
    """What identifies a process across pid reuse and reboots."""
    pid = pid or os.getpid()
    return {"pid": pid, "started": _started(pid), "boot": boot_id()}


def _started(pid: int) -> float:
    """When a process started, in seconds since boot.

    Not by the wall clock: when that is set (NTP, a dead battery), the start times of
    living processes move with it, and they would be taken for others.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError as error:
        if Path("/proc/self/stat").exists():
            raise psutil.NoSuchProcess(pid) from error
        return psutil.Process(pid).create_time()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(identity: dict[str, object]) -> bool:
    """Whether the process ``process_identity`` described still runs on this boot."""
    try:
        process = psutil.Process(int(str(identity["pid"])))
        same = abs(_started(process.pid) - float(str(identity["started"]))) < 1
        zombie = process.status() == psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError, KeyError, ValueError, OverflowError):
        return False
    return same and not zombie and identity.get("boot") == boot_id()
