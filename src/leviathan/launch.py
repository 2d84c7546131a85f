"""Owns what is launched: the command, its environment, the files it is given.

Does not decide what to train (``train``) nor stay with the process (``supervise``).
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from leviathan import files, machine, rendezvous, runs
from leviathan.config import Profile
from leviathan.rendezvous import Meeting
from leviathan.yamlfile import dump

STORE_VARIABLE = "LEVIATHAN_STORE"
"""File through which the processes of a CPU run on one host meet; unset for every other run."""


def command(paths: runs.RunPaths, profile: Profile, meeting: Meeting | None = None) -> list[str]:
    """The launch, as a list. ``-m`` runs the launcher of this very environment.

    Args:
        paths: the run.
        profile: hardware.
        meeting: where several hosts meet, with this host's rank; None for a single one.
    """
    if meeting and profile.hardware.device == "cpu":
        return _torchrun_of_hosts(paths, profile.hardware.count, meeting)
    if _several_on_cpu(profile):
        return _torchrun(paths, profile.hardware.count)
    rank = ["--machine_rank", str(meeting.rank or 0)] if meeting else []
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", str(paths.accelerate), *rank,
        "-m", "axolotl.cli.train", str(paths.config),
    ]  # fmt: skip


def _several_on_cpu(profile: Profile) -> bool:
    return profile.hardware.device == "cpu" and profile.hardware.processes > 1


def _torchrun_of_hosts(paths: runs.RunPaths, count: int, meeting: Meeting) -> list[str]:
    """Static: who is rank 0 is the head's to say, c10d would number hosts by their addresses."""
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--nnodes", str(meeting.nodes), "--nproc_per_node", str(count), "--max_restarts", "0",
        "--rdzv_backend", "static", "--rdzv_id", paths.directory.name,
        "--node_rank", str(meeting.rank or 0),
        "--master_addr", meeting.host, "--master_port", str(meeting.store_port),
        "-m", "axolotl.cli.train", str(paths.config),
    ]  # fmt: skip


def _torchrun(paths: runs.RunPaths, count: int) -> list[str]:
    """``accelerate launch --cpu --num_processes 2`` starts one process and says nothing.

    Meeting through files, two runs on one machine cannot meet each other, and no port is
    opened; torchrun's own ports listen on every network interface.
    """
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--nnodes", "1", "--nproc_per_node", str(count), "--max_restarts", "0",
        "--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file",
        "--rdzv_endpoint", str(paths.launcher_store), "--local_addr", "localhost",
        "-m", "axolotl.cli.train", str(paths.config),
    ]  # fmt: skip


def accelerate_config(
    profile: Profile, tree: dict[str, Any], meeting: Meeting | None = None
) -> str:
    """accelerate's own configuration, whole, so that no default file of the user leaks in.

    It starts the processes; how they shard is Axolotl's to say, from ``fsdp_config`` or
    ``deepspeed`` alone (``prepare_optim_env`` sets accelerate's variables in every process, but
    only those that are on: what stood here could contradict them and win).
    """
    hardware = profile.hardware
    several = hardware.processes > 1
    return dump(
        {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU" if several else "NO",
            "num_machines": meeting.nodes if meeting else 1,
            "num_processes": hardware.processes,
            "machine_rank": 0,  # of the head; the others' command says theirs
            **(_place(meeting) if meeting else {}),
            # A free port: with the usual 29500 two runs of several GPUs meet, or warn of it.
            "main_process_port": meeting.store_port if meeting else 0,
            "mixed_precision": _mixed_precision(tree),
            "use_cpu": hardware.device == "cpu",
            "main_training_function": "main",
        }
    )


def _place(meeting: Meeting) -> dict[str, Any]:
    return {"main_process_ip": meeting.host, "rdzv_backend": "static", "same_network": True}


def _mixed_precision(tree: dict[str, Any]) -> str:
    if tree.get("bf16") in (True, "auto"):
        return "bf16"
    return "fp16" if tree.get("fp16") else "no"


def environment(
    paths: runs.RunPaths,
    profile: Profile,
    more: Mapping[str, str] | None = None,
    meeting: Meeting | None = None,
) -> dict[str, str]:
    """The child's environment, with ``more`` of the rendered; what the user has set wins."""
    wanted = {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        # Axolotl's copy of the output, next to our log; a full disk would end it there.
        "AXOLOTL_TEE_STDOUT": "0",
        # Only axolotl's own CLI sets this, and it cures most fragmentation OOMs.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # GPU 0 is nvidia-smi's GPU 0; CUDA by itself puts the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **(more or {}),
    }
    if profile.hardware.threads:
        wanted["OMP_NUM_THREADS"] = str(profile.hardware.threads)
    result = {**wanted, **os.environ}
    result[runs.SUPERVISOR_VARIABLE] = json.dumps(machine.process_identity())
    # With it Axolotl's reading of rng_state.pth would execute what is pickled there.
    result.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    result["CUDA_VISIBLE_DEVICES"] = _visible_gpus(profile)
    if _several_on_cpu(profile):
        result["ACCELERATE_USE_CPU"] = "true"
    if meeting:
        _name_interface(result, meeting)
    elif _several_on_cpu(profile):
        result[STORE_VARIABLE] = str(paths.store.resolve())
        result["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        result.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it listens where the network is
    return result


def _name_interface(result: dict[str, str], meeting: Meeting) -> None:
    """Gloo and NCCL guess from the host's name, which in a container often leads to itself."""
    interface = rendezvous.interface_to(meeting.host)
    if interface:
        result.setdefault("GLOO_SOCKET_IFNAME", interface)
        result.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # this one, not all that begin so


def _visible_gpus(profile: Profile) -> str:
    """As many GPUs as the profile has, of those the user shows us.

    One process that sees several would spread over them: the Trainer by DataParallel, or
    Axolotl's device map layer by layer.
    """
    if profile.hardware.device == "cpu":
        return ""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = profile.hardware.count
    mine = map(str, range(count)) if shown is None else shown.split(",")[:count]
    return ",".join(mine)


def write_inputs(
    paths: runs.RunPaths,
    profile: Profile,
    yaml: str,
    tree: dict[str, Any],
    meeting: Meeting | None = None,
) -> None:
    """Put what is launched into the run directory, and clear the last session's marks."""
    files.write_text(paths.config, yaml)
    files.write_text(paths.accelerate, accelerate_config(profile, tree, meeting))
    paths.stop.unlink(missing_ok=True)
    paths.save.unlink(missing_ok=True)
    paths.pause.unlink(missing_ok=True)
    paths.phase.unlink(missing_ok=True)
    paths.heartbeat.unlink(missing_ok=True)
    # Those of a session that was killed would be taken for this one's.
    paths.store.unlink(missing_ok=True)
    paths.launcher_store.unlink(missing_ok=True)
