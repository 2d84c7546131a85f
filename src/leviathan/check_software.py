"""Owns the verdicts on installed software against what a configuration asks for.

Does not import any of it: versions are read from its metadata. ``imports`` does, in a child.
"""

import re
from collections.abc import Iterator

from leviathan import schema
from leviathan.check_gpu import capability
from leviathan.checkup import Check, Subject
from leviathan.render import FLASH_ATTENTION

_NEEDED = ("axolotl", "torch", "transformers", "peft", "accelerate")
_AMPERE = 80  # bf16 and tf32 came with it (NVIDIA A100 architecture whitepaper, 2020)
_INSTALL = "pip install 'leviathan-train[train]'"


def packages(subject: Subject) -> Check:
    """Whether everything that the configuration uses is installed."""
    here = subject.machine.versions
    missing = [package for package in _NEEDED if package not in here]
    asked = [(p, why) for p, why in _asked_for(subject) if p not in here]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", _INSTALL)
    if asked:
        told = ", ".join(f"{package} ({why})" for package, why in asked)
        names = " ".join(package for package, _ in asked)
        return Check("packages", "fail", f"not installed: {told}", f"pip install {names}")
    shown = [*_NEEDED, *(package for package, _ in _asked_for(subject))]
    return Check("packages", "pass", ", ".join(f"{name} {here[name]}" for name in shown))


def _asked_for(subject: Subject) -> Iterator[tuple[str, str]]:
    tree = subject.tree
    if tree.get("load_in_4bit") or tree.get("load_in_8bit"):
        yield "bitsandbytes", "load_in_4bit" if tree.get("load_in_4bit") else "load_in_8bit"
    elif "8bit" in str(tree.get("optimizer")):
        yield "bitsandbytes", f"optimizer {tree['optimizer']}"
    if any("liger" in str(plugin).lower() for plugin in tree.get("plugins") or []):
        yield "liger-kernel", "the Liger plugin"
    if tree.get("deepspeed"):
        yield "deepspeed", "deepspeed"


def axolotl(subject: Subject) -> Check | None:
    """Whether Axolotl's version is one that Leviathan knows, and its keys could be read."""
    version = subject.machine.versions.get("axolotl")
    if version is None:
        return None  # ``packages`` has said so
    oldest, newest = schema.SUPPORTED
    known = f"this Leviathan knows {oldest} up to, not including, {newest}"
    if subject.keys_read is False:
        return Check("axolotl", "fail", f"{version} is installed but does not import",
                     "leviathan doctor --deep shows the error")  # fmt: skip
    if _numbers(version) < _numbers(oldest):
        return Check("axolotl", "fail", f"{version}: {known}", f"{_INSTALL} --upgrade")
    if _numbers(version) >= _numbers(newest):
        return Check("axolotl", "warn", f"{version}: {known}", _INSTALL)
    told = "its keys were read" if subject.keys_read else "its keys are read at the first render"
    return Check("axolotl", "pass", f"{version}; {told}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def precision(subject: Subject) -> Check | None:
    """Whether the device computes in the precision that is asked for."""
    if subject.profile is None:
        return None
    bf16, tf32 = subject.tree.get("bf16"), subject.tree.get("tf32")
    asked = [name for name, value in (("bf16", bf16), ("tf32", tf32)) if value is True]
    if not subject.on_gpu:
        if bf16 is True:
            return Check("precision", "fail", "bf16 is asked for, and Axolotl refuses it on a CPU",
                         "--set bf16=false")  # fmt: skip
        return Check("precision", "pass", "fp32 on the CPU")
    wanted = ", ".join(asked) or "neither bf16 nor tf32 is asked for"
    if not subject.used:
        return Check("precision", "pass", f"{wanted}; unknown without a GPU")
    oldest = min((gpu.compute_capability for gpu in subject.used), key=capability)
    if capability(oldest) >= _AMPERE or not asked:
        return Check("precision", "pass", f"{wanted} on {oldest}")
    if bf16 is True:
        return Check("precision", "fail", f"bf16 is asked for; {oldest} has none, sm_80 has",
                     "--set bf16=false --set fp16=true")  # fmt: skip
    return Check("precision", "warn", f"tf32 has no effect on {oldest}", "--set tf32=false")


def attention(subject: Subject) -> Check | None:
    """Whether flash attention is there when it is asked for."""
    wanted = subject.tree.get("attn_implementation")
    if subject.profile is None or wanted is None:
        return None
    if wanted not in FLASH_ATTENTION:
        return Check("attention", "pass", str(wanted))
    if not subject.on_gpu or not subject.machine.flash_attn:
        why = "flash-attn is not installed" if subject.on_gpu else "the profile trains on the CPU"
        return Check("attention", "warn", f"{wanted} is asked for; {why}: sdpa is used instead",
                     "pip install --no-build-isolation 'leviathan-train[flash-attn]', "
                     "or --set attn_implementation=sdpa")  # fmt: skip
    old = [g for g in subject.used if capability(g.compute_capability) < _AMPERE]
    if old:  # flash-attn's README, "NVIDIA CUDA Support": Ampere, Ada or Hopper
        return Check("attention", "fail", f"{wanted} runs from sm_80 on; this is "
                     f"{old[0].compute_capability}", "--set attn_implementation=sdpa")  # fmt: skip
    return Check("attention", "pass", f"{wanted}, flash-attn is installed")
