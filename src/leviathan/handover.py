"""Owns the base model of a run that makes its own: from nothing, or of the stage before.

Does not make one from nothing (``scratch``) nor merge (``merge``: an adapter is merged and
proven, whole weights are linked).
"""

import json
import time
from collections.abc import Callable
from typing import Any

from leviathan import checkpoints, files, merge, runs, scratch, stages, writer
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput, Refused
from leviathan.runs import RunPaths
from leviathan.stages import Leg

RECORD = scratch.RECORD
"""In the base: which checkpoint it is of, or what it was made from."""
_POLL_S = 1.0


def wait(leg: Leg, tell: Callable[[str], None]) -> None:
    """On a host that is not the head: until the head has made the base model."""
    told = False
    while leg.config.makes_base and not (leg.paths.base / RECORD).is_file():
        if not told:
            tell(f"waiting for the head, which makes {leg.paths.base}")
        told = True
        time.sleep(_POLL_S)


def prepare(leg: Leg, tell: Callable[[str], None]) -> None:
    """See that the stage has its base model: keep it, or make it now.

    A run that has trained keeps the base it was begun with, whatever became of the stage before:
    its checkpoints go on from that one only.

    Raises:
        BadInput: the stage before has not been trained to its end.
        Refused: its model is not proven, or another process is at this run.
    """
    if not leg.config.makes_base or _has_trained(leg.paths):
        return
    if leg.before is None:
        scratch.make(leg.paths.base, scratch.request(leg.config), tell, replace=True)
        return
    source, chosen = _source(leg)
    wanted = {"run": source.directory.name, "checkpoint": chosen.step, "digest": _digest(chosen)}
    if _told(leg.paths) == wanted:
        return
    leg.paths.directory.mkdir(parents=True, exist_ok=True)
    with writer.locked(leg.paths):
        tell(f"{leg.stage} begins with {chosen.path.name} of {source.directory.name}")
        made = merge.merge(source, chosen, leg.paths.base, tell)
        if made.verdict != "equal" or made.directory != leg.paths.base:
            raise Refused(
                f"the model of {source.directory.name} is not proven: {made.reason}",
                f"see {made.directory}, or choose another checkpoint with start:",
            )
        files.write_json(leg.paths.base / RECORD, wanted)


def _has_trained(paths: RunPaths) -> bool:
    """Whether what this run saved goes on from the base that it has."""
    if not paths.record.exists() or not (paths.base / RECORD).is_file():
        return False
    saved = any(c.committed for c in checkpoints.scan(paths.directory))
    return saved or runs.read(paths).state == "done"


def _source(leg: Leg) -> tuple[RunPaths, Checkpoint]:
    if leg.before is None:
        raise AssertionError(leg.stage)
    before, start = stages.trained(leg.before), leg.config.starts
    if not before.record.exists() or runs.read(before).state != "done":
        name, stage = leg.before.directory.name, leg.config.before
        raise BadInput(
            f"stage {leg.stage} begins with the model of {stage}, and {name} is not trained to "
            "its end", f"train it first: --stage {stage}, or leave --stage out",
        )  # fmt: skip
    return before, checkpoints.choose(before.directory, start)


def _digest(checkpoint: Checkpoint) -> str:
    """What tells this checkpoint from one of the same step of a run that was begun anew."""
    return checkpoint.fingerprint + f"@{checkpoint.path.stat().st_mtime_ns}"


def _told(paths: RunPaths) -> Any:
    try:
        return json.loads((paths.base / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
