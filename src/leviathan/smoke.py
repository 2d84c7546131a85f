"""Owns the smoke test of a new run: the worst rows first, so that what must fail fails at once.

A run of its own in work/bench; what its ladder had to change, the new run begins with. Does
not choose rows (``probe``) nor launch (``sessions``).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import bench, calibrations, corpus, knobs, probe, runs, sessions, stand_in, train
from leviathan.calibrations import Calibration
from leviathan.config import Recovery
from leviathan.diagnosis import short
from leviathan.errors import BadInput, Refused
from leviathan.ladder import Change
from leviathan.layers import row_fields
from leviathan.probe import Probe
from leviathan.sessions import Ending
from leviathan.supervise import Listener
from leviathan.train import Decision

ACCUMULATION = 2


@dataclass(frozen=True)
class Smoke:
    """A smoke test that did not refuse the run."""

    decision: Decision
    """The run's, on the rung that passed."""
    calibration: Calibration | None
    """None when it was stopped, or memory did not suffice."""
    stopped: Ending | None = None
    """The run's ending, where somebody stopped the test."""


def tested(
    decision: Decision, listener: Listener, progress: corpus.Progress | None, *, shrink: bool
) -> Smoke:
    """Train two steps on the run's longest rows, evaluate, save; walk the ladder if need be.

    The rungs are copied into the new run's decision, so that its record has them as if it
    had taken them itself. Nothing of the run is touched.

    Args:
        decision: of a new run.
        listener: told what happens.
        progress: told of reading the corpus.
        shrink: when even the ladder's end does not fit, let the run itself begin a smaller one.

    Raises:
        Refused: it failed, and the run would.
        BadInput: as ``train.draw``.
    """
    sample = train.draw(decision, progress)
    made = _probe(decision, Path(sample.path))
    ending = sessions.run(made, listener)
    record = runs.read(made.paths)
    on_rung = replace(
        decision,
        config=train.adjusted(decision.config, record.adjustments),
        adjustments=tuple(record.adjustments),
    )
    if ending.outcome.kind in {"stopped", "killed"}:
        outcome = replace(ending.outcome, kind="stopped", reason="in the smoke test", step=0)
        return Smoke(decision, None, replace(ending, decision=decision, outcome=outcome))
    calibration = None
    if ending.outcome.kind == "done" or bench.ran_out_of_memory(ending):
        calibration = _kept(ending, decision.config.tree)
    if ending.outcome.kind == "failed" and not (shrink and bench.ran_out_of_memory(ending)):
        raise _refusal(ending)
    bench.drop_weights(made.paths)
    return Smoke(on_rung, calibration)


def _kept(ending: Ending, tree: dict[str, Any]) -> Calibration | None:
    try:
        base = stand_in.find(tree)
    except BadInput:  # trained all the same, but what is its shape called?
        return None
    calibration = bench.calibrate(ending, base, "smoke")
    calibrations.append(calibration)
    return calibration


def _probe(decision: Decision, corpus_path: Path) -> Decision:
    """The decision for the test itself."""
    config = decision.config
    probe.refuse_unmeasurable(config.tree)
    paths = runs.RunPaths(bench.DIRECTORY / f"smoke_{decision.paths.directory.name}")
    bench.replace_directory(paths)
    read = knobs.read(config.tree, config.profile.hardware.processes)
    rows = probe.from_corpus(
        corpus_path, read, probe.WORST_STEPS, ACCUMULATION, row_fields(config), None
    )
    sample, held_out = probe.write(rows, paths.directory, evaluation=probe.evaluates(config.tree))
    # The last of its steps is the measured one: the first pays for what is made once.
    made = Probe(sample, held_out, probe.WORST_STEPS - 1, 1, rows.worst, ACCUMULATION)
    once = config.profile.model_copy(update={"recovery": Recovery(restarts=0)})
    return replace(
        decision, paths=paths, record=None, resume_from=None, aside=(), notes=(), probe=made,
        config=replace(config, profile=once),
    )  # fmt: skip


def _refusal(ending: Ending) -> Refused:
    found, outcome = ending.diagnosis, ending.outcome
    why = found.text if found else short(outcome.reason)
    where = f" in phase {found.phase}" if found else ""
    gave_up = f"; {ending.gave_up}" if bench.ran_out_of_memory(ending) else ""
    return Refused(
        f"the smoke test failed{where}: {why}{gave_up}; log: {outcome.log}",
        f"{found.fix if found else 'mend it'}; or --no-smoke trains all the same",
    )


def rungs(smoke: Smoke) -> list[str]:
    """The rungs that passed, a line each."""
    changes = [Change(**adjustment) for adjustment in smoke.decision.adjustments]
    return [str(change) for change in changes if not change.refused]
