"""Owns the verdicts on the shell a training is started from: terminal, variables, clock,
limits, and whom it is to tell.

What a variable does was read in accelerate 1.13 (state.py, commands/launch.py) and torch 2.13
(AllocatorConfig.h), and in ``launch.environment``, which lets most of them through.
"""

import time
from calendar import timegm
from pathlib import Path

from leviathan import basemodel, hooks
from leviathan.checkup import Check, Subject

RELEASED = "2026-11-21"
"""A clock that shows an earlier day is wrong."""
_FEW_FILES = 1024
_SKEW_S = 60.0
_LAUNCH_MARKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The launcher sets these anew for every training, from the run's own accelerate.yaml.
_SET_ANEW = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_LOG_LEVEL", "ACCELERATE_DYNAMO_")
_FEW_SHM_GIB = 1.0


def terminal(subject: Subject) -> Check:
    """Whether the shell would outlive a lost connection."""
    environment, fix = subject.environment, "use tmux or screen, or leviathan train --detach"
    for name, variable in (("tmux", "TMUX"), ("screen", "STY")):
        if environment.get(variable):
            return Check("terminal", "pass", f"in {name}")
    if not subject.machine.host.terminal:
        return Check("terminal", "pass", "no terminal that could hang up")
    if environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"):
        evidence = "over SSH without tmux or screen: a lost connection saves and stops a training"
        return Check("terminal", "warn", evidence, fix)
    return Check("terminal", "pass", "on this machine, not over SSH")


def accelerate(subject: Subject) -> Check:
    """The user's default configuration, which accelerate would read if it were not told."""
    default = basemodel.hub_home(subject.environment) / "accelerate/default_config.yaml"
    if default.is_file():
        return Check("accelerate", "pass", f"{default} is overridden by the run's accelerate.yaml")
    return Check("accelerate", "pass", "no default configuration; a run brings its own")


def environment(subject: Subject) -> Check:
    """Variables that would reach the training and change it behind the configuration's back."""
    names = [name for name, value in subject.environment.items() if value]
    found = [(name, f"{name} overrides the configuration") for name in names
             if name.startswith("ACCELERATE_") and not name.startswith(_SET_ANEW)
             # launch.environment and the launcher set it for one process, and for CPUs.
             and not (name == "ACCELERATE_USE_CPU"
                      and (subject.processes == 1 or not subject.on_gpu))]  # fmt: skip
    marks = [name for name in _LAUNCH_MARKS if name in names]
    if subject.processes == 1 and {"LOCAL_RANK", "WORLD_SIZE"} & set(marks):
        told = f"{', '.join(marks)}: one process would take itself for one of several"
        found += [(name, told) for name in marks]
    if "PYTORCH_CUDA_ALLOC_CONF" in names and "PYTORCH_ALLOC_CONF" not in names:
        found.append(("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF is mixed with our "
                      "PYTORCH_ALLOC_CONF=expandable_segments:True"))  # fmt: skip
    hidden = len(subject.machine.gpus) - len(subject.visible)
    if hidden and (subject.on_gpu or subject.profile is None):
        told = f"CUDA_VISIBLE_DEVICES hides {hidden} of {len(subject.machine.gpus)} GPUs"
        found.append(("CUDA_VISIBLE_DEVICES", told))
    if found:
        evidence = "; ".join(dict.fromkeys(told for _, told in found))
        return Check("environment", "warn", evidence, f"unset {' '.join(n for n, _ in found)}")
    return Check("environment", "pass", "no variable that would change a training")


def clock(subject: Subject) -> Check:
    """Whether the clock can be right: the hub's certificates and file times depend on it."""
    now = time.time()
    today = time.strftime("%Y-%m-%d %H:%M", time.gmtime(now)) + " UTC"
    fix = "set the clock: sudo timedatectl set-ntp true"
    if now < timegm(time.strptime(RELEASED, "%Y-%m-%d")):
        return Check("clock", "warn", f"{today} is before this Leviathan was made", fix)
    newest = _newest(subject.inputs.run_dir) if subject.inputs else 0.0
    if newest > now + _SKEW_S:
        ahead = time.strftime("%Y-%m-%d %H:%M", time.gmtime(newest))
        return Check("clock", "warn", f"{today}, but the run has files of {ahead}", fix)
    steered = subject.machine.host.clock_synchronised
    told = {True: ", synchronised", False: ", not synchronised", None: ""}[steered]
    return Check("clock", "pass", today + told)


def _newest(directory: Path) -> float:
    if not directory.is_dir():
        return 0.0
    return max((path.stat().st_mtime for path in directory.iterdir() if path.exists()), default=0.0)


def limits(subject: Subject) -> Check:
    """Open files, and shared memory where data loader workers use it."""
    host, workers = subject.machine.host, subject.tree.get("dataloader_num_workers") or 0
    evidence = "open files unknown" if host.open_files is None else f"{host.open_files} open files"
    if host.open_files is not None and 0 <= host.open_files < _FEW_FILES:
        return Check("limits", "warn", evidence, f"ulimit -n {4 * _FEW_FILES}")
    if workers and host.shm_gib is not None:
        evidence += f", {host.shm_gib:.2g} GiB of shared memory for {workers} workers"
        if host.shm_gib < _FEW_SHM_GIB:
            return Check("limits", "warn", evidence,
                         "--set dataloader_num_workers=0, or docker run --shm-size=2g")  # fmt: skip
    return Check("limits", "pass", evidence)


def notify(subject: Subject) -> Check | None:
    """Whether everybody can be told who is to be told."""
    hooked = subject.profile.notify if subject.profile else []
    trial = subject.inputs is not None and subject.inputs.corpus is None
    if not hooked or trial:  # of a bench nobody is told
        return None
    targets = [hooks.target(hook, subject.environment) for hook in hooked]
    bad = [target for target in targets if target.problem]
    if bad:
        evidence = "; ".join(dict.fromkeys(f"{t.problem}: nobody is told by it" for t in bad))
        return Check("notify", "warn", evidence, "; ".join(dict.fromkeys(t.fix for t in bad)))
    return Check("notify", "pass", ", ".join(target.label for target in targets))
