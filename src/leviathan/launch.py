"""Owns what is launched: the command, its environment, the files it is given.

Does not decide what to train (``train``) nor stay with the process (``supervise``).
"""

import json
import os
import sys
from typing import Any

from leviathan import files, machine, runs
from leviathan.config import Profile
from leviathan.yamlfile import dump


def command(paths: runs.RunPaths) -> list[str]:
    """The launch, as a list. ``-m`` runs the accelerate of this very environment."""
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", str(paths.accelerate),
        "-m", "axolotl.cli.train", str(paths.config),
    ]  # fmt: skip


def accelerate_config(profile: Profile, tree: dict[str, Any]) -> str:
    """accelerate's own configuration, whole, so that no default file of the user leaks in."""
    hardware = profile.hardware
    several = hardware.count > 1
    return dump(
        {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU" if several else "NO",
            "num_machines": 1,
            "num_processes": hardware.count,
            "machine_rank": 0,
            "mixed_precision": _mixed_precision(tree),
            "use_cpu": hardware.device == "cpu",
            "main_training_function": "main",
        }
    )


def _mixed_precision(tree: dict[str, Any]) -> str:
    if tree.get("bf16") in (True, "auto"):
        return "bf16"
    return "fp16" if tree.get("fp16") else "no"


def environment(profile: Profile) -> dict[str, str]:
    """The child's environment; what the user has set wins."""
    wanted = {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        # Axolotl's copy of the output, next to our log; a full disk would end it there.
        "AXOLOTL_TEE_STDOUT": "0",
        # Only axolotl's own CLI sets this, and it cures most fragmentation OOMs.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    if profile.hardware.threads:
        wanted["OMP_NUM_THREADS"] = str(profile.hardware.threads)
    result = {**wanted, **os.environ}
    result[runs.SUPERVISOR_VARIABLE] = json.dumps(machine.process_identity())
    if profile.hardware.device == "cpu":
        result["CUDA_VISIBLE_DEVICES"] = ""
    return result


def write_inputs(paths: runs.RunPaths, profile: Profile, yaml: str, tree: dict[str, Any]) -> None:
    """Put what is launched into the run directory, and clear the last session's marks."""
    files.write_text(paths.config, yaml)
    files.write_text(paths.accelerate, accelerate_config(profile, tree))
    paths.stop.unlink(missing_ok=True)
    paths.pause.unlink(missing_ok=True)
    paths.phase.unlink(missing_ok=True)
    paths.heartbeat.unlink(missing_ok=True)
