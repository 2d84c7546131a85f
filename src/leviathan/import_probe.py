"""Owns importing the training stack to see whether it imports; run in a child process.

    python -m leviathan.import_probe ANSWER MODULE... [--hub NAME]

Writes JSON to ANSWER after every step, so that a step which kills the process is known:
``{"modules": {name: "" or the error's last line}, "cuda": ..., "bf16": ..., "hub": ...}``.
Does not judge (``check_imports``).
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

DIED = "the import ended the process"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"


def _import(name: str) -> str:
    try:
        importlib.import_module(name)
    except BaseException as error:  # whatever a foreign module raises, SystemExit too
        return _last_line(error)
    return ""


def _reach(model: str) -> str:
    """Whether the hub would hand out ``model``: "" or why not."""
    try:
        from huggingface_hub import HfApi

        HfApi().auth_check(model)
    except Exception as error:
        return _last_line(error)
    return ""


def main(arguments: list[str]) -> None:
    """Import what is named, in order; then ask torch for its GPU, and the hub for a model."""
    hub = arguments[arguments.index("--hub") + 1 :] if "--hub" in arguments else []
    modules = arguments[1 : len(arguments) - len(hub) - bool(hub)]
    answer: dict[str, Any] = {"modules": {}}

    def keep() -> None:
        Path(arguments[0]).write_text(json.dumps(answer))

    for name in modules:
        answer["modules"][name] = DIED
        keep()
        answer["modules"][name] = _import(name)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        answer["cuda"] = torch.cuda.is_available()
        answer["bf16"] = answer["cuda"] and torch.cuda.is_bf16_supported(including_emulation=False)
    if hub:
        answer["hub"] = _reach(hub[0])
    keep()


if __name__ == "__main__":
    main(sys.argv[1:])
