"""Owns carrying a decision out: as many sessions as it takes, and what is done between them.

Does not decide what to train or from where (``train``), nor what a failure means
(``diagnosis``, ``recovery``): it holds the lock, writes the record, launches, and goes on.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from leviathan import (
    agreement,
    checkpoints,
    corpus,
    files,
    hosts,
    ladder,
    launch,
    layers,
    machine,
    models,
    opening,
    provenance,
    recovery,
    runs,
    survey,
    tidings,
    train,
    writer,
)
from leviathan.budget import USED_UP, Budget
from leviathan.diagnosis import Diagnosis, diagnose
from leviathan.errors import Refused
from leviathan.ladder import Change
from leviathan.layers import Config
from leviathan.samples import Sample
from leviathan.supervise import Listener, Outcome, Requests, signals_to, supervise
from leviathan.train import Decision

_DISK_POLL_S = 5.0
_SMALLEST_SAVE = 1 << 21


@dataclass(frozen=True)
class Ending:
    """How carrying out a decision ended, with all that a person needs to go on."""

    decision: Decision
    """The last one carried out: of a smaller run, where ``--shrink`` had to begin one."""
    outcome: Outcome
    diagnosis: Diagnosis | None = None
    """Why it failed; None unless it did."""
    gave_up: str = ""
    """Why it was not tried again."""
    adjustments: dict[str, Any] = field(default_factory=dict)
    """Axolotl keys as the out-of-memory ladder left them, where it changed the user's."""
    asked: str = ""
    """Why it was asked to stop, be it too late."""


def run(
    decision: Decision,
    listener: Listener,
    progress: corpus.Progress | None = None,
    *,
    budget: Budget | None = None,
    shrink: bool = False,
    repeat: Sequence[str] = (),
) -> Ending:
    """Carry the decision out: sample, lock, sessions, until done, stopped or hopeless.

    Args:
        decision: from ``train.decide``, not overtaken by another process since.
        listener: told everything that happens.
        progress: told of reading the corpus.
        budget: limits over all sessions of the run.
        shrink: consent to begin a smaller training when the ladder is at its end.
        repeat: options that the command to go on with has to repeat.

    Raises:
        Refused: another process trains this run, the corpus changed, or the budget is spent.
    """
    budget = budget or Budget()
    requests = Requests(patient=not decision.probe)
    while True:
        if decision.record:
            _left_s(budget, decision.paths, decision.record)
        sample = train.draw(decision, progress)
        paths = decision.paths
        paths.directory.mkdir(parents=True, exist_ok=True)
        with writer.locked(paths), signals_to(requests):
            _refuse_overtaken(decision)
            attempts = _Attempts(decision, sample, listener, requests, budget, shrink, repeat)
            ending, smaller = attempts.run()
        if smaller is None:
            return ending
        text = f"going on with the smaller run {smaller.paths.directory}"
        listener("notice", {"text": text, "cause": "memory", "paths": smaller.paths})
        if smaller.action == "nothing":  # trained to its end by an earlier --shrink
            return Ending(smaller, Outcome("done", _newest_step(smaller), None))
        decision = smaller


@dataclass(frozen=True)
class _Rung:
    """A rung taken, and what it was taken from."""

    change: Change
    config_before: Config
    diagnosis: Diagnosis


class _Attempts:
    """The sessions of one run, from one command."""

    def __init__(
        self, decision: Decision, sample: Sample, listener: Listener, requests: Requests,
        budget: Budget, shrink: bool, repeat: Sequence[str],
    ) -> None:  # fmt: skip
        self.decision, self.sample, self.listener = decision, sample, listener
        self.requests, self.budget, self.shrink, self.repeat = requests, budget, shrink, repeat
        self.paths = decision.paths
        self.history = recovery.History(newest_step=_step(decision))
        self._untried: _Rung | None = None
        """The rung taken last, until a step was trained on it."""
        self._began = time.monotonic()
        self.party: hosts.Party | None = None
        """The other hosts of the session before, until they know what follows."""
        self.record: runs.RunRecord
        """As last written; never read back: days later the file may be gone or damaged."""

    def run(self) -> tuple[Ending, Decision | None]:
        """Until an ending; with it, the smaller run to go on with."""
        ending, smaller = self._run()
        self._part(ending.outcome, again=smaller is not None)
        return ending, smaller

    def _part(self, outcome: Outcome, *, again: bool) -> None:
        """Tell the other hosts how the session ended, and whether there is another one."""
        if self.party:
            self.party.end(
                outcome=outcome.kind, step=outcome.step, max_steps=outcome.max_steps,
                reason=outcome.reason, again=again,
            )  # fmt: skip
        self.party = None

    def _run(self) -> tuple[Ending, Decision | None]:
        while True:
            outcome = self._session()
            if outcome.kind != "failed" or outcome.evidence is None:
                return self._ending(outcome), None
            diagnosis = self._judge_rung(outcome, diagnose(outcome.evidence))
            newest, aside = train.resume_point(self.paths, "auto")
            self.history.note(diagnosis.kind, newest.step if newest else None)
            action = self._action(diagnosis)
            change = self._rung(diagnosis, action)
            if action.kind == "ladder" and change is None:
                smaller = self._smaller(diagnosis) if self.shrink else None
                gave_up = "" if smaller else self._end_of_ladder()
                return self._ending(outcome, diagnosis, gave_up), smaller
            if action.kind == "give_up":
                return self._ending(outcome, diagnosis, action.reason), None
            self._tell(outcome, diagnosis, action, change, newest)
            self._mark("running")  # for whoever looks: between two sessions it goes on
            if not self._wait(action):
                return self._stopped(outcome, self.requests.first), None
            if self.party and (why := self.party.asked()[0]):
                return self._stopped(outcome, why), None
            if self._unspent_s() == 0:
                return self._stopped(outcome, USED_UP), None
            self._part(outcome, again=True)  # not before it is sure: they come again at once
            self.decision = replace(
                self.decision, action="resume" if newest else "start", resume_from=newest,
                aside=tuple(aside), record=self.record, notes=(),
            )  # fmt: skip

    def _ending(
        self, outcome: Outcome, diagnosis: Diagnosis | None = None, gave_up: str = ""
    ) -> Ending:
        adjusted = self.decision.config.set_by_run
        asked = self.requests.first or ""
        return Ending(self.decision, outcome, diagnosis, gave_up, adjusted, asked)

    # --- one session ----------------------------------------------------------------

    def _session(self) -> Outcome:
        decision = self.decision
        self._began = time.monotonic()
        self.record = self._record()
        try:
            party = self._gather()
        except hosts.InterruptedWait:
            reason = f"{self.requests.first}, before training began"
            return Outcome("stopped", _step(decision) or 0, None, reason)
        try:
            outcome = self._launch(party)
        except BaseException as error:
            if party:
                party.end(outcome="failed", reason=str(error) or type(error).__name__)
            raise
        self._close(outcome)
        self.party = party
        return outcome

    def _gather(self) -> hosts.Party | None:
        """The other hosts, come and ready; None where there are none.

        Before anything is written of the session: one that never began leaves no trace.
        """
        decision = self.decision
        if decision.meeting is None:
            return None
        return hosts.gather(
            decision.meeting, self.paths, agreement.facts(decision, self.record.base),
            self.sample.digest, silent_s=decision.config.profile.recovery.silent_s,
            requests=self.requests, tell=lambda text: self.listener("notice", {"text": text}),
        )  # fmt: skip

    def _launch(self, party: hosts.Party | None) -> Outcome:
        decision, record = self.decision, self.record
        left_s = _left_s(self.budget, self.paths, record)
        session = opening.begin(decision, record, tidings.heard(self.paths, record))
        record.again = train.resume_command(decision, self.repeat)
        record.budget = asdict(self.budget)
        opening.set_aside(decision, session.number)
        rendered = train.render(decision, Path(self.sample.path), record)
        opening.drop_half_prepared(self.paths)
        profile = decision.config.profile
        launch.write_inputs(self.paths, profile, rendered.yaml(), rendered.tree, decision.meeting)
        provenance.note(self.paths, rendered)
        if decision.action == "start" and not decision.probe:
            survey.expect(decision.config, self.paths)
        runs.write(self.paths, record)
        self._take_over_rungs()
        opening.announce(decision, session, rendered, self.listener)
        if party:
            party.begin(session.number)
        return supervise(
            self.paths, profile, session.number, self.listener, self.requests, left_s,
            rendered.environment, party,
        )  # fmt: skip

    def _take_over_rungs(self) -> None:
        """Tell of the rungs that a smoke test took, once; the record has them now."""
        for rung in self.decision.adjustments:
            kind = "rung_refused" if rung.get("refused") else "ladder"
            runs.event(
                self.paths, kind, step=0, session=None, why=rung["why"], changes=rung["after"],
                reason="smoke test",
            )  # fmt: skip
        self.decision = replace(self.decision, adjustments=())

    def _close(self, outcome: Outcome) -> None:
        """Write how the session ended; where a full disk refuses, the record says running,
        and its dead supervisor tells the rest."""
        record = self.record
        session = record.sessions[-1]
        session.ended, session.outcome = time.time(), outcome.kind
        session.seconds = round(time.monotonic() - self._began, 3)
        record.state = {"killed": "stopped"}.get(outcome.kind, outcome.kind)
        self._write()
        runs.event(
            self.paths, "session_end", session=session.number, outcome=outcome.kind,
            step=outcome.step, reason=outcome.reason,
        )  # fmt: skip

    def _mark(self, state: str) -> None:
        self.record.state = state
        self._write()

    def _write(self) -> None:
        """Keep what the record says; on a full disk it is kept in memory until the next time."""
        with files.unless_full():
            runs.write(self.paths, self.record)

    def _stopped(self, outcome: Outcome, reason: str) -> Ending:
        """The ending of a run that stopped between two sessions."""
        self._mark("stopped")
        runs.event(self.paths, "session_end", session=None, outcome="stopped",
                   step=outcome.step, reason=reason)  # fmt: skip
        return self._ending(replace(outcome, kind="stopped", reason=reason))

    def _unspent_s(self) -> float:
        """Seconds of the budget that are left; without one, for ever."""
        try:
            left = _left_s(self.budget, self.paths, self.record)
        except Refused:
            return 0.0
        return math.inf if left is None else left

    def _record(self) -> runs.RunRecord:
        """The run's record: what resumes must match; begun anew where training begins anew.

        Raises:
            Refused: the base model's files are not those the run was begun with.
        """
        decision, config, old = self.decision, self.decision.config, self.decision.record
        base = None
        if not decision.probe:  # nothing comes of it, and reading 16 GB takes its time
            base = models.fingerprint(models.local_or_hub(config.tree["base_model"]))
        if old and decision.resume_from:
            if old.base != base:
                raise Refused(
                    f"the base model {config.tree['base_model']} has changed since {old.name} "
                    "was begun", "restore it, or start a new run with --name",
                )  # fmt: skip
            return old
        return runs.RunRecord(
            name=self.paths.directory.name,
            recipe=config.recipe_name,
            profile=config.profile_name,
            sample=config.sample,
            overrides=list(config.overrides),
            settings=config.recipe.model_dump(exclude={"axolotl"}),
            tree=config.tree,
            processes=config.profile.hardware.processes,
            corpus=asdict(self.sample),
            base=base,
            versions=decision.machine.versions,
            created=time.time(),
            sessions=old.sessions if old else [],
            adjustments=[*(old.adjustments if old else []), *decision.adjustments],
            stage=config.stage,
            stages=list(config.stages),
        )

    # --- between sessions -----------------------------------------------------------

    def _action(self, diagnosis: Diagnosis) -> recovery.Action:
        policy = self.decision.config.profile.recovery
        device = self.decision.config.profile.hardware.device
        memory = diagnosis.kind == "memory" or (diagnosis.kind == "host_memory" and device == "cpu")
        return recovery.next_action(
            diagnosis, self.history, restarts=policy.restarts, backoff_s=policy.backoff_s,
            ladder=memory, resumed=self.decision.resume_from is not None,
        )  # fmt: skip

    def _rung(self, diagnosis: Diagnosis, action: recovery.Action) -> Change | None:
        if action.kind != "ladder":
            return None
        config, record = self.decision.config, self.record
        why = f"{diagnosis.text} in phase {diagnosis.phase} of session {len(record.sessions)}"
        taken = [Change(**a) for a in record.adjustments]
        change = ladder.next_rung(
            config.profile.out_of_memory, config.tree, diagnosis.phase, why, taken
        )
        if change is None:
            return None
        self._untried = _Rung(change, config, diagnosis)
        record.adjustments.append(change.to_json())
        self._write()
        self.history.begin_anew()
        config = layers.changed(config, change.after, f"out of memory: {change.why}")
        self.decision = replace(self.decision, config=config)
        return change

    def _judge_rung(self, outcome: Outcome, diagnosis: Diagnosis) -> Diagnosis:
        """Take back the rung that training could not begin with; what led to it stands again.

        Axolotl knows combinations that it refuses, and devices cannot do everything.
        """
        rung, self._untried = self._untried, None
        begun = outcome.step > (_step(self.decision) or 0)
        if rung is None or begun or diagnosis.kind not in {"setup", "unknown", "package"}:
            return diagnosis
        self.record.adjustments[-1]["refused"] = True
        self._write()
        self.decision = replace(self.decision, config=rung.config_before)
        runs.event(self.paths, "rung_refused", session=None, changes=rung.change.after,
                   why=diagnosis.text)  # fmt: skip
        text = f"the rung {rung.change} is refused here and passed over: {diagnosis.text}"
        self.listener("warning", {"text": text})
        return rung.diagnosis

    def _tell(
        self, outcome: Outcome, diagnosis: Diagnosis, action: recovery.Action,
        change: Change | None, newest: checkpoints.Checkpoint | None,
    ) -> None:  # fmt: skip
        where = f"from {newest.path.name}" if newest else "from the beginning"
        what = f"next rung: {change}" if change else action.reason
        runs.event(
            self.paths, "ladder" if change else "restart", step=outcome.step,
            session=None, why=diagnosis.text, changes=change.after if change else None,
            reason=what, delay_s=action.delay_s,
        )  # fmt: skip
        if action.kind == "wait_for_disk":
            text = f"{diagnosis.text}: waiting for free space, then going on {where}"
        else:
            pause = f" in {action.delay_s:g} s" if action.delay_s else ""
            text = f"step {outcome.step}: {diagnosis.text}; {what}, going on {where}{pause}"
        self.listener("warning", {"text": text, "cause": diagnosis.kind})

    def _wait(self, action: recovery.Action) -> bool:
        """Wait as the action says; False when asked to stop meanwhile."""
        if not self.requests.wait(action.delay_s) or action.kind != "wait_for_disk":
            return not self.requests.stop
        self._make_room()
        needed = self._needed_bytes()
        end = time.monotonic() + self._unspent_s()
        while machine.free_bytes(self.paths.directory) < needed:
            if time.monotonic() >= end:  # a machine that waits is paid for, too
                self.requests.ask(USED_UP)
            if not self.requests.wait(_DISK_POLL_S):
                return False
        return not self.requests.stop

    def _make_room(self) -> None:
        retention = checkpoints.retain(self.paths.directory, 1)
        for step in retention.removed:
            runs.event(self.paths, "remove", session=None, step=step, reason="disk")
        if retention.problem:
            self.listener("warning", {"text": retention.problem})

    def _needed_bytes(self) -> int:
        known = checkpoints.newest_bytes(checkpoints.scan(self.paths.directory))
        reserve = self.decision.config.profile.guards.disk_reserve_gib * 2**30
        return int(max(_SMALLEST_SAVE, known or 0) * 1.1 + reserve)

    def _end_of_ladder(self) -> str:
        config = self.decision.config
        change = ladder.next_shrink(config.profile.out_of_memory, config.tree, "")
        way_out = f"; --shrink would begin a run with {change}" if change else ""
        return f"the out-of-memory ladder is at its end{way_out}"

    def _smaller(self, diagnosis: Diagnosis) -> Decision | None:
        """The decision for a run that needs less memory, noted in this run's record."""
        config = self.decision.config
        change = ladder.next_shrink(config.profile.out_of_memory, config.tree, diagnosis.text)
        if change is None:
            return None
        record = self.record
        overrides = [f"{k}={json.dumps(v)}" for k, v in (config.set_by_run | change.after).items()]
        short = {"sequence_len": "seq", "lora_r": "r"}
        size = "".join(f"_{short[k]}{v}" for k, v in change.after.items() if k in short)
        name = record.name + size
        record.successor = {"name": name, "overrides": overrides}
        self._write()
        runs.event(self.paths, "shrink", session=None, to=name, changes=change.after)
        return train.follow(self.decision, record)


def _step(decision: Decision) -> int | None:
    return decision.resume_from.step if decision.resume_from else None


def _newest_step(decision: Decision) -> int:
    newest, _ = checkpoints.newest_sound(decision.paths.directory)
    return newest.step if newest else 0


def _left_s(budget: Budget, paths: runs.RunPaths, record: runs.RunRecord) -> float | None:
    """Seconds of the budget that are left; None without one.

    Raises:
        Refused: it is spent.
    """
    left = budget.left_s(runs.seconds(record, tidings.heard(paths, record)))
    if left == 0:
        count = len(record.sessions)
        raise Refused(
            f"the budget ({budget.text}) of {record.name} is spent, over {count} "
            f"session{'s' * (count != 1)}", "raise it to go on",
        )  # fmt: skip
    return left


def _refuse_overtaken(decision: Decision) -> None:
    """Drawing a sample takes minutes: the run may have changed since it was decided on."""
    paths = decision.paths
    pid = runs.orphan(paths)
    if pid:
        raise Refused(
            f"the training process {pid} of {paths.directory.name} has lost its supervisor and is "
            "still saving",
            "it stops by itself after its step; run the same command again then",
        )
    now = runs.read(paths) if paths.record.exists() else None
    before = decision.record
    if (now and len(now.sessions)) != (before and len(before.sessions)):
        raise Refused(
            f"{paths.directory.name} was trained by another process meanwhile",
            "run the same command again",
        )
