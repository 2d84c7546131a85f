"""Owns the thorough checks: what is installed really imports, torch sees the GPU, the hub answers.

Takes ten seconds and more: the imports are made in a child process (``import_probe``).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from leviathan import basemodel
from leviathan.checkup import Check, Subject
from leviathan.render import FLASH_ATTENTION, PLUGIN

_LONGEST_S = 300.0


def checks(subject: Subject) -> list[Check]:
    """Verdicts on imports, torch's view of the GPU and the hub's of the base model."""
    wanted = subject.inputs.base if subject.inputs else None
    asked = wanted.name if wanted and wanted.directory is None else None
    if basemodel.is_offline(subject.environment):
        asked = None
    answer = _probe(_modules(subject), asked)
    found = [_imports(answer), _torch(answer, subject)]
    if asked:
        found.append(_hub(answer, asked))
    return [check for check in found if check]


def _modules(subject: Subject) -> list[str]:
    here = subject.machine.versions
    modules = ["torch", "axolotl", "axolotl.cli.train"]
    modules += ["bitsandbytes"] if "bitsandbytes" in here else []
    asked = subject.tree.get("attn_implementation") in FLASH_ATTENTION
    modules += ["flash_attn"] if asked and subject.machine.flash_attn else []
    return [*modules, PLUGIN.rpartition(".")[0]]


def _probe(modules: list[str], hub: str | None) -> dict[str, Any]:
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1"}
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        command = [sys.executable, "-m", "leviathan.import_probe", str(answer), *modules]
        command += ["--hub", hub] if hub else []
        try:
            subprocess.run(
                command, env=environment, capture_output=True, check=False, timeout=_LONGEST_S
            )
            found: dict[str, Any] = json.loads(answer.read_text())
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return {"modules": {"the imports": f"{type(error).__name__}: {error}"}}
    return found


def _imports(answer: dict[str, Any]) -> Check:
    failed = [f"{name}: {error}" for name, error in answer["modules"].items() if error]
    if failed:
        fix = "install it anew: pip install --force-reinstall 'leviathan-train[train]'"
        return Check("imports", "fail", "; ".join(failed), fix)
    return Check("imports", "pass", ", ".join(answer["modules"]))


def _torch(answer: dict[str, Any], subject: Subject) -> Check | None:
    if "cuda" not in answer:
        return None
    if not answer["cuda"]:
        evidence = "torch.cuda.is_available() is false"
        if subject.on_gpu:
            return Check("torch", "fail", evidence, "see driver and gpu above")
        return Check("torch", "pass", evidence)
    told = "" if answer["bf16"] else "; it computes bf16 by emulation only"
    return Check("torch", "pass", f"torch sees a GPU{told}")


def _hub(answer: dict[str, Any], model: str) -> Check:
    if answer.get("hub"):
        fix = "accept its licence on the hub, set HF_TOKEN, or download it beforehand"
        return Check("hub", "fail", f"{model}: {answer['hub']}", fix)
    return Check("hub", "pass", f"the hub hands out {model}")
