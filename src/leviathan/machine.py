"""Owns asking the machine: GPUs through NVML, installed packages, disk, process identity.

The only module that asks the hardware. Does not judge what it finds; ``preflight`` does.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a GPU."""

    pid: int
    command: str
    """Its command line, shortened; empty where the process cannot be seen (a container)."""
    gib: float | None
    """None where the driver does not tell (containers, display drivers)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML reports it; None or empty where the card or driver does not tell."""

    name: str
    memory_gib: float
    free_gib: float
    compute_capability: str
    power_limit_w: float | None = None
    """The limit in force, in watts."""
    power_default_w: float | None = None
    """The limit the board came with."""
    temperature_c: float | None = None
    ecc: bool | None = None
    holders: tuple[Holder, ...] = ()
    throttle: tuple[str, ...] = ()
    """Why the clocks are lowered right now, as ``thermal slowdown``; idling is no reason."""
    cores: int | None = None
    """CUDA cores of all streaming multiprocessors together."""
    max_sm_clock_mhz: float | None = None
    max_memory_clock_mhz: float | None = None
    memory_bus_bits: int | None = None

    @property
    def sm_count(self) -> int | None:
        """Streaming multiprocessors; NVML tells their cores only."""
        return self.cores and self.cores // _CORES_PER_SM.get(self.compute_capability, 128)


# Where it is not 128: CUDA C Programming Guide, "Compute Capabilities", FP32 cores per SM.
_CORES_PER_SM = {"sm_60": 64, "sm_70": 64, "sm_72": 64, "sm_75": 64, "sm_80": 64}


@dataclass(frozen=True)
class GpuState:
    """What one GPU is doing at a moment; None where the card or driver does not tell."""

    index: int
    """nvidia-smi's number."""
    used_gib: float | None
    """Memory in use, by whomever."""
    total_gib: float | None
    busy_pct: float | None
    """Share of the last second or so in which something ran on it."""
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    sm_mhz: float | None
    throttle: tuple[str, ...] = ()
    """As ``Gpu.throttle``."""


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: its version and the newest CUDA it can serve."""

    version: str
    cuda: tuple[int, int] | None


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch, as its own ``version.py`` says it."""

    version: str
    cuda: str | None
    """CUDA it was built with, as ``13.0``; None for a CPU build."""


@dataclass(frozen=True)
class Host:
    """The machine apart from its GPUs, and what it grants this process; None is unknown."""

    ram_gib: float | None = None
    ram_available_gib: float | None = None
    shm_gib: float | None = None
    """Free shared memory (/dev/shm), through which data loader workers hand rows over."""
    open_files: int | None = None
    """How many files this process may open."""
    clock_synchronised: bool | None = None
    """Whether the kernel's clock is steered by a time server."""
    terminal: bool = False
    """Whether this process belongs to a terminal that can hang up on it."""


@dataclass(frozen=True)
class Machine:
    """What this machine has."""

    gpus: tuple[Gpu, ...]
    flash_attn: bool
    versions: dict[str, str]
    driver: Driver | None = None
    driver_problem: str = ""
    """Why no GPU could be asked, in NVML's words."""
    torch: TorchBuild | None = None
    host: Host = Host()


_PACKAGES = ("leviathan-train", "axolotl", "torch", "transformers", "peft", "accelerate",
             "bitsandbytes", "datasets", "trl", "liger-kernel", "flash-attn",
             "deepspeed")  # fmt: skip


def probe() -> Machine:
    """Look at this machine. Imports nothing of the training stack."""
    gpus, driver, problem = _nvidia()
    flash_attn = importlib.util.find_spec("flash_attn") is not None
    return Machine(gpus, flash_attn, versions(), driver, problem, _torch_build(), _host())


def versions() -> dict[str, str]:
    """Installed versions of what a run depends on, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _torch_build() -> TorchBuild | None:
    """Read from torch's text: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    for place in (spec.submodule_search_locations if spec else None) or []:
        with suppress(OSError):
            text = (Path(place) / "version.py").read_text()
            found = dict(re.findall(r"^(\w+)\b[^=\n]*= '([^']*)'", text, re.MULTILINE))
            return TorchBuild(found.get("__version__", "of unknown version"), found.get("cuda"))
    return None


def _host() -> Host:
    memory = psutil.virtual_memory()
    shm = Path("/dev/shm")  # noqa: S108 - asked how large it is, nothing is put there
    return Host(
        memory.total / 2**30,
        memory.available / 2**30,
        free_gib(shm) if shm.is_dir() else None,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        _clock_synchronised(),
        _has_terminal(),
    )


_STA_UNSYNC = 0x40  # linux/timex.h


class _Timex(ctypes.Structure):
    """The head of the kernel's ``struct timex``; ``modes`` 0 only reads."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("before_status", ctypes.c_long * 4),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def _clock_synchronised() -> bool | None:
    if Path("/run/systemd/timesync/synchronized").exists():
        return True
    answer = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(answer))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else not answer.status & _STA_UNSYNC


def _has_terminal() -> bool:
    """nohup's child ignores the hang-up, and a process without a terminal never hears it."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _nvidia() -> tuple[tuple[Gpu, ...], Driver | None, str]:
    import pynvml  # loads the driver's library; only needed when the machine is asked

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), None, str(error)
    try:
        found = [_ask("DeviceGetHandleByIndex", i) for i in range(_ask("DeviceGetCount") or 0)]
        gpus = tuple(_gpu(handle) for handle in found if handle is not None)
        return gpus, _driver(), ""
    finally:
        pynvml.nvmlShutdown()


def _ask(query: str, *arguments: Any) -> Any:
    """What NVML answers to ``query``; None where card, driver or binding does not know it."""
    import pynvml

    try:
        return getattr(pynvml, f"nvml{query}")(*arguments)
    except (pynvml.NVMLError, AttributeError):
        return None


def _driver() -> Driver:
    # 13000 is CUDA 13.0 (nvml.h, NVML_CUDA_DRIVER_VERSION_MAJOR).
    cuda = _ask("SystemGetCudaDriverVersion")
    version = _ask("SystemGetDriverVersion")
    return Driver(
        str(version or "of unknown version"), (cuda // 1000, cuda % 1000 // 10) if cuda else None
    )


def _gpu(handle: Any) -> Gpu:
    total, free = _memory(handle)
    major, minor = _ask("DeviceGetCudaComputeCapability", handle) or (0, 0)
    ecc = _ask("DeviceGetEccMode", handle)
    return Gpu(
        str(_ask("DeviceGetName", handle) or "a GPU without a name"),
        total / 2**30,
        free / 2**30,
        f"sm_{major}{minor}",
        power_limit_w=_scaled(_ask("DeviceGetEnforcedPowerLimit", handle), 1e-3),
        power_default_w=_scaled(_ask("DeviceGetPowerManagementDefaultLimit", handle), 1e-3),
        temperature_c=_scaled(_ask("DeviceGetTemperature", handle, _TEMPERATURE_GPU)),
        ecc=bool(ecc[0]) if ecc else None,
        holders=_holders(handle),
        throttle=_throttle(handle),
        cores=_ask("DeviceGetNumGpuCores", handle),
        max_sm_clock_mhz=_scaled(_ask("DeviceGetMaxClockInfo", handle, _CLOCK_SM)),
        max_memory_clock_mhz=_scaled(_ask("DeviceGetMaxClockInfo", handle, _CLOCK_MEMORY)),
        memory_bus_bits=_ask("DeviceGetMemoryBusWidth", handle),
    )


# Of nvml.h; the numbers are its binary interface and do not change.
_TEMPERATURE_GPU, _CLOCK_SM, _CLOCK_MEMORY = 0, 1, 2
_THROTTLE = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def _scaled(value: Any, factor: float = 1.0) -> float | None:
    return None if value is None else value * factor


def _memory(handle: Any) -> tuple[float, float]:
    """Bytes in all and free; the machine's own where the GPU shares it and NVML tells none."""
    memory = _ask("DeviceGetMemoryInfo", handle)
    if memory is not None:
        return memory.total, memory.free
    shared = psutil.virtual_memory()
    return shared.total, shared.available


def _throttle(handle: Any) -> tuple[str, ...]:
    reasons = _ask("DeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # its name before driver 535
        reasons = _ask("DeviceGetCurrentClocksThrottleReasons", handle) or 0
    return tuple(name for bit, name in _THROTTLE.items() if reasons & bit)


def _holders(handle: Any) -> tuple[Holder, ...]:
    found: dict[int, Holder] = {}
    for kind in ("Compute", "Graphics"):
        for process in _ask(f"DeviceGet{kind}RunningProcesses", handle) or []:
            gib = _scaled(process.usedGpuMemory, 2**-30)
            found[process.pid] = Holder(process.pid, _command(process.pid), gib)
    return tuple(sorted(found.values(), key=lambda holder: -(holder.gib or 0)))


_COMMAND_CHARACTERS = 60


def _command(pid: int) -> str:
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return ""
    text = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split()) if words else ""
    short = text[: _COMMAND_CHARACTERS - 1]
    return text if len(text) <= _COMMAND_CHARACTERS else f"{short}\N{HORIZONTAL ELLIPSIS}"


def cpu_name() -> str:
    """The CPU's model, as the kernel has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def ram_gib() -> float:
    """Memory of this machine in GiB."""
    return psutil.virtual_memory().total / 2**30


def hottest_c() -> float | None:
    """Temperature of the hottest GPU in Celsius; None without a GPU."""
    import pynvml  # as in _nvidia

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


def gpu_states() -> tuple[GpuState, ...]:
    """What every GPU does now; none where there is no driver that answers."""
    import pynvml  # as in _nvidia

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [
            (i, _ask("DeviceGetHandleByIndex", i)) for i in range(_ask("DeviceGetCount") or 0)
        ]
        return tuple(_state(i, handle) for i, handle in handles if handle is not None)
    finally:
        pynvml.nvmlShutdown()


def _state(index: int, handle: Any) -> GpuState:
    memory = _ask("DeviceGetMemoryInfo", handle)
    busy = _ask("DeviceGetUtilizationRates", handle)
    return GpuState(
        index,
        _scaled(memory.total - memory.free if memory else None, 2**-30),
        _scaled(memory.total if memory else None, 2**-30),
        _scaled(busy.gpu if busy else None),
        _scaled(_ask("DeviceGetTemperature", handle, _TEMPERATURE_GPU)),
        _scaled(_ask("DeviceGetPowerUsage", handle), 1e-3),
        _scaled(_ask("DeviceGetEnforcedPowerLimit", handle), 1e-3),
        _scaled(_ask("DeviceGetClockInfo", handle, _CLOCK_SM)),
        _throttle(handle),
    )


def resident_bytes(pid: int) -> int:
    """Memory that a process and all it started hold; 0 where they are gone."""
    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


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


def file_system(path: Path) -> int:
    """Identifies the file system that ``path`` is or will be on."""
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


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
    """What identifies a process across pid reuse and reboots, and names its host."""
    pid = pid or os.getpid()
    host = socket.gethostname()
    return {"pid": pid, "started": _started(pid), "boot": boot_id(), "host": host}


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
