"""Owns the verdicts on GPUs and their driver.

Does not ask them (``machine``), nor predict the memory a training needs.
"""

from collections.abc import Iterable

from leviathan.checkup import Check, Subject
from leviathan.machine import Gpu, TorchBuild

# NVML reports a few per cent less than the nominal size (ECC, reserved pages).
OF_NOMINAL = 0.9
# An idle card without a display keeps well under a tenth of its memory to itself.
_IDLE_FREE = 0.9
_LOWERED = 0.95
_WIDEST_GDDR_BITS = 512  # HBM's buses are 1,024 bits a stack and wider
_ECC_SHARE = 1 / 16
_FITTING = "leviathan profiles detect --write NAME makes a profile for this card"
_BAD_REASONS = {"hardware slowdown", "thermal slowdown", "hardware thermal slowdown", "power brake"}


def driver(subject: Subject) -> Check:
    """Whether there is a driver, new enough for the CUDA that torch was built with.

    A driver serves every CUDA of its own major version and older ones (NVIDIA, "CUDA
    Compatibility": minor version compatibility).
    """
    machine = subject.machine
    build = machine.torch
    if machine.driver is None:
        evidence = f"no NVIDIA driver answers: {machine.driver_problem or 'NVML is silent'}"
        if subject.on_gpu:
            return Check("driver", "fail", evidence, "install the driver, or use --profile cpu")
        return Check("driver", "pass", f"{evidence}; none is needed here")
    cuda = machine.driver.cuda
    evidence = f"driver {machine.driver.version}" + (f", CUDA {_dotted(cuda)}" if cuda else "")
    on_cpu = subject.profile is not None and not subject.on_gpu
    if build is None or not subject.machine.gpus or on_cpu:
        return Check("driver", "pass", evidence)
    if build.cuda is None:
        return Check(
            "driver", "fail", f"{evidence}, but torch {build.version} is a build without CUDA",
            f"install the CUDA build of torch {build.version.partition('+')[0]}",
        )  # fmt: skip
    evidence = f"{evidence}; torch {build.version} wants {build.cuda}"
    if cuda and _major(build) > cuda[0]:
        return Check(
            "driver", "fail", f"{evidence}: the driver is too old",
            f"update the driver, or install torch built for CUDA {cuda[0]}",
        )  # fmt: skip
    return Check("driver", "pass", evidence)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _major(build: TorchBuild) -> int:
    major = str(build.cuda).partition(".")[0]
    return int(major) if major.isdigit() else 0


def gpu(subject: Subject) -> Check:
    """Whether as many GPUs as the profile wants are here, of its size and generation."""
    if subject.profile and not subject.on_gpu:
        return Check("gpu", "pass", "the profile trains on the CPU")
    if subject.profile is None:
        here = _names(subject.visible) or "no GPU"
        return Check("gpu", "pass", here + _hidden(subject))
    hardware = subject.profile.hardware
    wanted = f"the profile wants {hardware.count} x {hardware.gpu or 'CUDA GPU'}"
    used = subject.used
    if len(used) < hardware.count:
        return Check(
            "gpu", "fail", f"{wanted}, this machine has {len(subject.visible)}{_hidden(subject)}",
            "use --profile cpu for a trial, or a profile for fewer GPUs",
        )  # fmt: skip
    smallest = min(used, key=lambda gpu: gpu.memory_gib)
    if hardware.memory_gib and smallest.memory_gib < OF_NOMINAL * hardware.memory_gib:
        return Check(
            "gpu", "fail",
            f"the profile wants {hardware.memory_gib:g} GiB, {smallest.name} has "
            f"{smallest.memory_gib:.1f}",
            _FITTING,
        )  # fmt: skip
    evidence = f"{_names(used)}{_hidden(subject)}"
    oldest = min(used, key=lambda gpu: capability(gpu.compute_capability))
    if capability(oldest.compute_capability) < capability(hardware.compute_capability or ""):
        return Check(
            "gpu", "warn",
            f"{evidence}; the profile was made for {hardware.compute_capability}",
            _FITTING,
        )  # fmt: skip
    return Check("gpu", "pass", evidence)


def capability(name: str) -> int:
    """``sm_86`` -> 86, to be compared; 0 for none."""
    digits = name.removeprefix("sm_").rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) if digits.isdigit() else 0


def _names(gpus: Iterable[Gpu]) -> str:
    told = [f"{gpu.name}, {gpu.memory_gib:.1f} GiB, {gpu.compute_capability}" for gpu in gpus]
    return "; ".join(
        f"{told.count(one)} x {one}" if told.count(one) > 1 else one for one in dict.fromkeys(told)
    )


def _hidden(subject: Subject) -> str:
    hidden = len(subject.machine.gpus) - len(subject.visible)
    return f" (CUDA_VISIBLE_DEVICES hides {hidden})" if hidden else ""


def memory(subject: Subject) -> Check | None:
    """Whether the memory is free, and who holds it if not."""
    gpus = subject.used if subject.on_gpu else subject.visible
    if not gpus or (subject.profile and not subject.on_gpu):
        return None
    fullest = min(gpus, key=lambda gpu: gpu.free_gib)
    evidence = f"{fullest.free_gib:.1f} of {fullest.memory_gib:.1f} GiB free"
    held = _held(fullest)
    evidence += f"; held by {held}" if held else ""
    lost = _ecc_cost_gib(fullest)
    evidence += f"; ECC is on and takes {lost:.1f} GiB" if lost else ""
    needed = subject.needed_gib
    if needed is not None and needed > fullest.free_gib:
        return Check("gpu memory", "fail", f"{evidence}; training needs {needed:.1f}",
                     _more_memory(fullest, needed, lost))  # fmt: skip
    if needed is None and fullest.free_gib < _IDLE_FREE * fullest.memory_gib:
        return Check("gpu memory", "warn", evidence, _more_memory(fullest, None, lost))
    return Check("gpu memory", "pass", evidence)


def _held(gpu: Gpu) -> str:
    return ", ".join(
        f"pid {holder.pid}"
        + (f" ({holder.command})" if holder.command else "")
        + (f" {holder.gib:.1f} GiB" if holder.gib is not None else "")
        for holder in gpu.holders
    )


def _more_memory(gpu: Gpu, needed: float | None, lost: float) -> str:
    if needed is not None and needed > gpu.memory_gib:
        if needed <= gpu.memory_gib + lost:
            return "turn ECC off (sudo nvidia-smi -e 0, then reboot), or lower sequence_len"
        return "leviathan plan, with the same options, names the change that costs least"
    if gpu.holders:
        pids = " ".join(str(holder.pid) for holder in gpu.holders)
        return f"end what holds it: kill {pids}"
    return "end what holds it: nvidia-smi shows more to root"


def _ecc_cost_gib(gpu: Gpu) -> float:
    """GDDR keeps its check bits in the memory itself; HBM has room of its own for them."""
    inline = gpu.memory_bus_bits is not None and gpu.memory_bus_bits <= _WIDEST_GDDR_BITS
    # What is reported is what is left of it.
    return gpu.memory_gib * _ECC_SHARE / (1 - _ECC_SHARE) if gpu.ecc and inline else 0.0


def health(subject: Subject) -> Check | None:
    """Heat, lowered clocks and a lowered power limit: what makes a training slow."""
    gpus = subject.used if subject.on_gpu else subject.visible
    if not gpus or (subject.profile and not subject.on_gpu):
        return None
    found = [problem for gpu in gpus for problem in _ailments(gpu, subject)]
    evidence = "; ".join(dict.fromkeys(_condition(gpu) for gpu in gpus))
    if found:
        return Check("gpu health", "warn", f"{evidence}: {found[0][0]}", found[0][1])
    return Check("gpu health", "pass", evidence)


def _condition(gpu: Gpu) -> str:
    heat = "temperature unknown" if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} C"
    limit = "power limit unknown" if gpu.power_limit_w is None else f"{gpu.power_limit_w:.0f} W"
    return f"{heat}, {limit}" + "".join(f", {reason}" for reason in gpu.throttle)


def _ailments(gpu: Gpu, subject: Subject) -> Iterable[tuple[str, str]]:
    hot_c = subject.profile.guards.hot_c if subject.profile else 85.0
    if gpu.temperature_c is not None and gpu.temperature_c >= hot_c:
        yield f"hot already, the limit is {hot_c:g} C", "cool it, or end what runs on it"
    if bad := [reason for reason in gpu.throttle if reason in _BAD_REASONS]:
        yield f"clocks are lowered ({', '.join(bad)})", "look at cooling and power supply"
    nominal = subject.profile.hardware.power_w if subject.profile else None
    wanted = gpu.power_default_w or nominal
    if gpu.power_limit_w is None or wanted is None:
        return
    if gpu.power_limit_w < _LOWERED * wanted:
        yield (f"the power limit is lowered from {wanted:.0f} W: training is slower",
               f"sudo nvidia-smi -pl {wanted:.0f}")  # fmt: skip
    elif nominal and gpu.power_limit_w < _LOWERED * nominal:
        yield (f"the profile counts on {nominal:.0f} W: this card is slower than it says",
               _FITTING)  # fmt: skip
