"""Owns what is known of a GPU model: the shipped profiles' facts, else arithmetic on NVML's.

The facts themselves stand in ``configs/profiles``, once. Asks no hardware (``machine``) and
chooses no knobs (``detect``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from leviathan.config import Profile, directories, load_profile
from leviathan.machine import Gpu
from leviathan.yamlfile import YamlFile


@dataclass(frozen=True)
class Shipped:
    """A profile that comes with Leviathan, and its file."""

    name: str
    profile: Profile
    source: YamlFile


@dataclass(frozen=True)
class Card:
    """A GPU of this machine and its speed."""

    gpu: Gpu
    name: str
    """As people say it."""
    bf16_tflops: float | None
    """Dense peak with fp32 accumulation; fp16's for a card without bf16. None: not known."""
    memory_gb_s: float | None
    known: Shipped | None
    """The profile whose facts these are; None where they are computed from NVML's."""


def shipped() -> list[Shipped]:
    """Every shipped profile for GPUs. Those in ``./configs`` are the user's, and not asked."""
    found = [
        Shipped(*load_profile(str(path))) for path in directories("profiles")[-1].glob("*.yaml")
    ]
    return sorted((s for s in found if s.profile.hardware.device == "cuda"), key=lambda s: s.name)


def card(gpu: Gpu, profiles: list[Shipped]) -> Card:
    """What is known of ``gpu``: a profile's facts if one names the card, else computed."""
    for name, patterns, tflops, gb_s, profile in _named(profiles):
        if any(fnmatch(short_name(gpu).lower(), pattern.lower()) for pattern in patterns):
            return Card(gpu, name, tflops, gb_s, profile)
    return Card(gpu, short_name(gpu), peak_tflops(gpu), bandwidth_gb_s(gpu), None)


def _named(
    profiles: list[Shipped],
) -> Iterator[tuple[str, list[str], float | None, float | None, Shipped]]:
    for one in profiles:
        hardware = one.profile.hardware
        tflops, gb_s = hardware.bf16_tflops, hardware.memory_gb_s
        yield hardware.gpu or one.name, hardware.nvml_names, tflops, gb_s, one
        for v in hardware.variants:
            yield v.gpu, v.nvml_names, v.bf16_tflops or tflops, v.memory_gb_s or gb_s, one


def short_name(gpu: Gpu) -> str:
    """NVML's name without the vendor, which only newer drivers put in front."""
    return gpu.name.removeprefix("NVIDIA ")


def capability(gpu: Gpu) -> int:
    """``sm_86`` as 86."""
    return int("".join(filter(str.isdigit, gpu.compute_capability)) or 0)


# Dense fp16 (and, from sm_80 on, bf16) multiply-adds of an SM's tensor cores per clock, with
# fp32 accumulation. NVIDIA's architecture whitepapers, tensor cores per SM x FMA of each:
# V100 8 x 64, Turing 8 x 64, GA100 4 x 256, GA102 4 x 128, Ada 4 x 128, H100 4 x 512,
# RTX Blackwell 4 x 128.
_TENSOR_FMA = {"sm_70": 512, "sm_75": 512, "sm_80": 1024, "sm_86": 512, "sm_89": 512,
               "sm_90": 2048, "sm_120": 512}  # fmt: skip


def tensor_fma(gpu: Gpu) -> int | None:
    """Multiply-adds per SM and clock as above; None for an architecture not listed there.

    GeForce cards accumulate in fp32 at half rate (appendices of the Turing, GA102 and Ada
    whitepapers), and so do A10G and L40 by their data sheets. GTX cards have no tensor cores.
    """
    fma, name = _TENSOR_FMA.get(gpu.compute_capability), short_name(gpu)
    if fma is None or "GTX" in name:
        return None
    return fma // 2 if "GeForce" in name or name in {"A10G", "L40"} else fma


def peak_tflops(gpu: Gpu) -> float | None:
    """SMs x FMA x 2 x the highest clock. An upper bound: the clock falls under load."""
    fma = tensor_fma(gpu)
    if not (fma and gpu.sm_count and gpu.max_sm_clock_mhz):
        return None
    return gpu.sm_count * fma * 2 * gpu.max_sm_clock_mhz / 1e6


def bandwidth_gb_s(gpu: Gpu) -> float | None:
    """Bus width x memory clock x 2 (two transfers a clock, as NVML counts clocks)."""
    if not (gpu.memory_bus_bits and gpu.max_memory_clock_mhz):
        return None
    return gpu.memory_bus_bits / 8 * gpu.max_memory_clock_mhz * 2 / 1e3
