"""Owns an adapter that came without its run: what it belongs on, and what speaks for it.

``cloud pull --for serve`` brings such a one, with a transfer.json beside it; others come from
anywhere. Does not load it (``models``) nor serve it (``serve``).
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from leviathan import basemodel, evidence, models, parcel
from leviathan.errors import BadInput, Refused

_WEIGHTS = "adapter_model.safetensors"


def is_adapter(directory: Path) -> bool:
    """Whether there is an adapter in it, and no whole model."""
    whole = any(directory.glob("model*.safetensors"))
    return (directory / "adapter_config.json").is_file() and not whole


def read(directory: Path) -> models.Source:
    """The adapter in ``directory``, on its base, which has to be here; with what is to be said.

    Raises:
        BadInput: it has no weights, does not say what it belongs on, or its base is not here.
        Refused: its files are not those that were pulled, or its base is not the one trained on.
    """
    if not (directory / _WEIGHTS).is_file():
        raise BadInput(f"{directory} has no {_WEIGHTS}", "pull it again, or name the run")
    pulled, proof = _document(directory / parcel.SERVED), evidence.of(directory)
    told = proof.told or pulled
    base = _base(directory, told)
    digest = proof.told.get("base_digest") or pulled.get("base")
    if digest and digest != models.fingerprint(base):
        raise Refused(f"{base} is not the base model that {directory} was trained on", "restore it")
    tree = pulled.get("held") if isinstance(pulled.get("held"), dict) else {}
    row_format = str(told.get("format") or "alpaca")
    source = models.from_run(dict(tree or {}), base, directory, row_format)
    known = bool(told.get("format"))
    return replace(source, caution=_caution(directory, pulled, proof, known=known))


def _base(directory: Path, told: dict[str, Any]) -> str:
    """Where the base is, by whichever of the files names a place that exists here."""
    config = _document(directory / "adapter_config.json")
    named = [told.get("base_model"), config.get("base_model_name_or_path")]
    names = [name for name in named if isinstance(name, str) and name]
    if not names:
        raise BadInput(f"{directory} does not say which model it belongs on", "name the run")
    base = next((name for name in names if Path(name).is_dir()), names[0])
    hint = f"put it there, or its place into {directory}/adapter_config.json"
    try:
        place = models.local_or_hub(base)
    except BadInput as error:
        raise BadInput(f"the base model {base} of {directory} is not here", hint) from error
    if basemodel.locate({"base_model": place}, os.environ).directory is None:
        raise BadInput(f"the base model {base} of {directory} is not here", "download it")
    return place


def _caution(
    directory: Path, pulled: dict[str, Any], proof: evidence.Evidence, *, known: bool
) -> str:
    if proof.verdict == "equal" and not evidence.changed_files(directory, proof.told):
        return ""
    found = f"no run vouches for the adapter {directory}"
    entries = pulled.get("files")
    if not isinstance(entries, dict) or not entries:
        what = "" if known else "; its base is taken unquantised, its format for alpaca"
        return f"{found}, and no digest says that it is whole{what}"
    if not all(isinstance(e, dict) and {"bytes", "xxh3_64"} <= e.keys() for e in entries.values()):
        raise Refused(f"{directory / parcel.SERVED} is damaged", "pull it again")
    problem = parcel.Parcel(0, "", entries).problem(directory)
    if problem:
        raise Refused(f"{directory} is not what was pulled: {problem}", "pull it again")
    whose = f"checkpoint-{pulled.get('checkpoint')} of {pulled.get('run')}"
    return f"{found}: it is whole, and {whose} only as {parcel.SERVED} says"


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
