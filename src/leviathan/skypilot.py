"""Owns a SkyPilot task: the YAML that trains a run on a machine SkyPilot rents.

Made as data and dumped. Its keys are those of SkyPilot 0.14 (sky/utils/schemas.py), whose own
loader reads it (scripts/check_skypilot.py). Does not call SkyPilot.
"""

import re
import shlex
from dataclasses import dataclass
from typing import Any

from leviathan import labels, scripts, yamlfile
from leviathan.config import Hardware
from leviathan.errors import BadInput
from leviathan.export import Carried, Export

VERSION = "0.14.0"
KEEP = "/leviathan-keep"
_DATA = "/leviathan-data"
_VOLUME = "/leviathan-work"
_PORT = 29400
_STOPPED = 4
"""Our exit code for stopped, resumable: the only one that is worth another machine. Where the
budget is what stopped it, the next one ends with 3 at once."""

# What profiles call a card -> SkyPilot's name of it, as its catalog (common/accelerators.csv) and
# its fetchers (sky/catalog/data_fetchers) spell it. Longest first: A100 80GB is no A100.
_ACCELERATORS = {
    "RTX A4000": "RTXA4000", "RTX A5000": "RTXA5000", "RTX A6000": "RTXA6000",
    "RTX 3090": "RTX3090", "RTX 4090": "RTX4090", "A100 80GB": "A100-80GB", "A100 40GB": "A100",
    "H100": "H100", "H200": "H200", "L40S": "L40S", "L4": "L4", "T4": "T4", "V100": "V100",
}  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """What of the task is not the run's."""

    bucket: str = ""
    """Keeps the run: a name, or an address as ``s3://bucket/folder``; empty: nothing outlives the
    machine."""
    spot: bool = True
    idle_minutes: int = 10
    accelerators: str | None = None
    """Instead of the profile's card, as SkyPilot writes it: ``A100-80GB:8``."""
    disk_gib: int = 256
    volume: str = ""
    """SkyPilot's name of a network volume that all hosts mount: the runs' directory."""


def accelerators(hardware: Hardware) -> str | None:
    """SkyPilot's name and count of the profile's GPUs; None for a CPU.

    Raises:
        BadInput: a card whose name there is not known.
    """
    if hardware.device == "cpu":
        return None
    named = (hardware.gpu or "").upper()
    for known in sorted(_ACCELERATORS, key=len, reverse=True):
        if re.match(rf"{re.escape(known.upper())}(?![A-Z0-9])", named):
            return f"{_ACCELERATORS[known]}:{hardware.count}"
    raise BadInput(
        f"SkyPilot's name of {hardware.gpu or 'this card'} is not known here",
        "say --accelerators NAME:COUNT, as sky show-gpus lists it",
    )


def task(export: Export, wish: Wish, listed: tuple[Carried, ...]) -> dict[str, Any]:
    """The task; ``listed`` is what is mounted because the bundle does not hold it.

    Raises:
        BadInput: an unknown card; spot machines or several hosts without a bucket.
    """
    if export.nodes > 1 and (wish.bucket or not wish.volume):
        raise BadInput(
            "several hosts share one run directory, and a bucket cannot be that",
            "name a network volume of SkyPilot (sky volumes apply): --volume NAME, no --bucket",
        )
    if wish.spot and not (wish.bucket or wish.volume):
        raise BadInput(
            "a spot machine is taken away with its disk, and no --bucket keeps the run",
            "name one, or take a machine that stays: --no-spot",
        )
    document: dict[str, Any] = {
        "name": labels.label(export.run),
        "resources": _resources(export, wish),
        "num_nodes": export.nodes,
        "workdir": ".",
        "file_mounts": _mounts(wish, listed),
        "volumes": {_VOLUME: wish.volume} if wish.volume else {},
        "envs": {"AXOLOTL_DO_NOT_TRACK": "1"},
        "secrets": dict.fromkeys(export.secrets),
        "setup": _script(_SETUP, [*_shared(wish), *_links(listed)]),
        "run": _script(_run(export, wish)),
    }
    return {key: value for key, value in document.items() if value not in ({}, None)}


def launch(export: Export, wish: Wish) -> str:
    """What is typed to begin or go on, without the task's file."""
    verb = "sky jobs launch" if wish.spot else f"sky launch -c {labels.label(export.run)}"
    return verb + "".join(f" --secret {name}" for name in export.secrets)


def text(export: Export, wish: Wish, listed: tuple[Carried, ...]) -> str:
    """task.yaml, with how to start it."""
    document = task(export, wish, listed)
    head = (
        f"# SkyPilot {VERSION}. From this directory, the first time and every later one:\n"
        f"#\n#   {launch(export, wish)} task.yaml\n\n"
    )
    return head + yamlfile.dump_blocks(document)


def _resources(export: Export, wish: Wish) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accelerators": wish.accelerators or accelerators(export.config.profile.hardware),
        "use_spot": wish.spot,
        "disk_size": wish.disk_gib,
        # Of sky launch; the machine of a managed job goes with its job anyway.
        "autostop": {"idle_minutes": wish.idle_minutes, "down": bool(wish.bucket or wish.volume)},
    }
    if wish.spot:
        found["job_recovery"] = {
            # Another region at once: where a machine was taken away, the next would be, too.
            "strategy": "EAGER_NEXT_REGION",
            # Crashes are Leviathan's to restart from (recovery.restarts), on the same machine.
            "recover_on_exit_codes": [_STOPPED],
        }
    return {key: value for key, value in found.items() if value is not None}


def _mounts(wish: Wish, listed: tuple[Carried, ...]) -> dict[str, Any]:
    mounts: dict[str, Any] = {
        f"{_DATA}/{number}": str(one.source) for number, one in enumerate(listed)
    }
    if wish.bucket:
        address = "source" if "://" in wish.bucket else "name"
        # MOUNT, not MOUNT_CACHED: closing a file there is having uploaded it.
        mounts[KEEP] = {address: wish.bucket, "mode": "MOUNT"}
    return mounts


_SETUP = "bash setup.sh"


def _shared(wish: Wish) -> list[str]:
    """The runs' directory is the volume's, at the same path on every host."""
    if not wish.volume:
        return []
    return [f"mkdir -p work {_VOLUME}/training", f"ln -sfn {_VOLUME}/training work/training"]


def _links(listed: tuple[Carried, ...]) -> list[str]:
    """Put what was mounted where training looks for it; the workdir is not to be mounted into."""
    lines = []
    for number, one in enumerate(listed):
        name = shlex.quote(one.name)
        lines += [f'mkdir -p -- "$(dirname -- {name})"', f"ln -sfn {_DATA}/{number} {name}"]
    return lines


def _script(last: str, lines: list[str] | None = None) -> str:
    return "\n".join(["set -eu", *(lines or []), last, ""])


def _run(export: Export, wish: Wish) -> str:
    folder = f"{KEEP}/{labels.label(export.run)}"
    keep = f"export {scripts.KEEP_VARIABLE}={folder}\n" if wish.bucket else ""
    if export.nodes == 1:
        return f"{keep}exec bash run.sh train"
    return (
        'head=$(printf "%s\\n" "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f'exec bash run.sh train --nodes "$SKYPILOT_NUM_NODES" --rdzv "$head:{_PORT}" '
        '--node-rank "$SKYPILOT_NODE_RANK"'
    )
