"""Owns what a finished model's directory says of its proof, and who may go on without one.

Does not prove (``proof``) nor merge (``merge``): it reads merge-proof.json and looks
whether the files are still those that were proven.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import corpus
from leviathan.errors import BadInput, Refused

PROOF = "merge-proof.json"


@dataclass(frozen=True)
class Evidence:
    """What stands in a model's proof."""

    verdict: str
    """equal, different or unproven; unproven too where there is no proof."""
    reason: str
    """One line."""
    told: dict[str, Any]
    """The whole document; empty where there is none."""


def of(directory: Path) -> Evidence:
    """What is proven of the model in ``directory``, as far as its proof is readable.

    Raises:
        BadInput: not a model directory.
    """
    if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise BadInput(f"{directory} is no model", "give a directory that leviathan merge made")
    try:
        told = json.loads((directory / PROOF).read_bytes())
        if not told["hashes"].keys():
            return Evidence("unproven", f"its {PROOF} names no file", told)
        return Evidence(str(told["verdict"]), str(told.get("reason", "")), told)
    except FileNotFoundError:
        return Evidence("unproven", f"it has no {PROOF}", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Evidence("unproven", f"its {PROOF} cannot be read", {})


def changed_files(directory: Path, told: dict[str, Any]) -> list[str]:
    """Names of files that are gone or no longer what was proven, and of weights that were not
    there; reads every byte."""
    proven = {name: digest for name, digest in told["hashes"].items() if "/" not in name}
    added = {path.name for path in directory.glob("*.safetensors")} - proven.keys()
    changed = [
        name for name, digest in proven.items()
        if not (directory / name).is_file() or corpus.file_digest(directory / name) != digest
    ]  # fmt: skip
    return sorted([*added, *changed])


def demand(directory: Path, *, force: bool) -> Evidence:
    """The evidence of a model that is to be served or shipped.

    Raises:
        BadInput: not a model directory.
        Refused: it is not proven to be what was trained, or its files have changed since;
            unless ``force``.
    """
    found = of(directory)
    if force:
        return found
    hint = "merge it again with leviathan merge, or --force to go on without a proof"
    if found.verdict != "equal":
        raise Refused(f"{directory} is not proven: {found.reason}", hint)
    changed = changed_files(directory, found.told)
    if changed:
        raise Refused(f"{directory} has changed since it was proven: {', '.join(changed)}", hint)
    return found
