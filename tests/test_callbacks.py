"""What runs inside the training process, fed by hand: a tiny module, a state, a control.

Imports torch, transformers and Axolotl, once for this file (about ten seconds).
"""

import errno
import io
import json
import math
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import transformers
from axolotl.utils.dict import DictDefault

from fakes import fake_files
from fakes.processes import wait_for
from leviathan import callbacks, checkpoints, endings, plugin, runs, safeguards
from leviathan.config import Guards
from leviathan.journal import Journal

ROOM = 1 << 40


@pytest.fixture
def paths(tmp_path):
    return runs.RunPaths(tmp_path)


@pytest.fixture
def journal(paths):
    return Journal(paths, 3)


@pytest.fixture
def disk(monkeypatch):
    """The free space: a list of one number, to be changed while a callback waits for it."""
    free = [0]
    monkeypatch.setattr(safeguards.machine, "free_bytes", lambda _: free[0])
    monkeypatch.setattr(callbacks.time, "sleep", lambda _, sleep=time.sleep: sleep(0.05))
    return free


def in_background(hook, *arguments):
    """Run a hook that waits, in a thread of its own."""
    thread = threading.Thread(target=hook, args=arguments, daemon=True)
    thread.start()
    return thread


def ended(thread):
    thread.join(10)
    return not thread.is_alive()


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(
        fp16=False, eval_on_start=False, eval_strategy="steps", save_strategy="steps"
    )


def state(step=7, *, main=True, history=()):
    found = transformers.TrainerState(
        global_step=step, max_steps=12, is_world_process_zero=main, log_history=list(history)
    )
    found.epoch = 0.5
    return found


def control(**wanted):
    return transformers.TrainerControl(**wanted)


def kinds(paths):
    return [(e["event"], e.get("kind")) for e in runs.events(paths)]


def phase(paths):
    return json.loads(paths.phase.read_text())["phase"]


# --- journal ----------------------------------------------------------------------


def test_journal_lines_carry_time_and_session(paths, journal):
    journal.metrics({"step": 1, "loss": 2.0})
    journal.event("warning", kind="jump", text="x")
    (line,) = runs.metrics(paths)
    assert (line["session"], line["step"], line["loss"]) == (3, 1, 2.0)
    (event,) = runs.events(paths)
    assert (event["event"], event["kind"], event["session"]) == ("warning", "jump", 3)
    assert line["time"] <= event["time"]


def test_what_a_full_disk_refuses_waits_and_comes_in_order(paths, journal):
    paths.metrics.symlink_to("/dev/full")
    for step in (1, 2):
        journal.metrics({"step": step})
    journal.event("save", step=2)
    assert runs.events(paths) == []  # nothing overtakes what waits
    paths.metrics.unlink()
    journal.metrics({"step": 3})
    assert [line["step"] for line in runs.metrics(paths)] == [1, 2, 3]
    assert kinds(paths) == [("save", None)]


def test_other_failures_of_the_journal_are_errors(paths, journal):
    paths.metrics.mkdir()
    with pytest.raises(IsADirectoryError):
        journal.metrics({"step": 1})


# --- the standard streams ---------------------------------------------------------


def test_a_progress_bar_survives_a_full_disk():
    with open("/dev/full", "w") as full:  # noqa: PTH123 - the device
        stream = plugin.Unbreakable(full)
        assert stream.write("100%") == 4
        stream.flush()
        print("more", file=stream, flush=True)
        with pytest.raises(OSError, match="No space") as info:
            full.flush()
        assert info.value.errno == errno.ENOSPC
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that closing succeeds


def test_the_stream_is_otherwise_what_it_was(tmp_path):
    with (tmp_path / "log").open("w+") as file:
        stream = plugin.Unbreakable(file)
        assert (stream.fileno(), stream.encoding, stream.isatty()) == (
            file.fileno(), file.encoding, False,
        )  # fmt: skip
        assert stream.writable()
        stream.write("text ")
        stream.flush()
        stream.buffer.write(b"bytes")
        stream.flush()
        assert (tmp_path / "log").read_text() == "text bytes"


def test_other_failures_of_the_stream_are_errors():
    closed = io.StringIO()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        plugin.Unbreakable(closed).write("x")


# --- finite -----------------------------------------------------------------------


def stepped(value):
    """A module whose gradient holds ``value``."""
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    model.weight.grad[0, 1] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_ends_training_before_the_step(paths, journal, args, value):
    finite = safeguards.FiniteCallback(journal)
    with pytest.raises(safeguards.NonFiniteError, match="the gradient of step 8 is"):
        finite.on_pre_optimizer_step(args, state(7), control(), model=stepped(value))
    assert kinds(paths) == [("guard", "nan")]
    assert runs.events(paths)[0]["step"] == 8


@pytest.mark.parametrize("value", [0.0, 1e15, -1e15])
def test_a_large_gradient_is_none_of_its_business(paths, journal, args, value):
    safeguards.FiniteCallback(journal).on_pre_optimizer_step(
        args, state(), control(), model=stepped(value)
    )
    assert kinds(paths) == []


def test_fp16_meets_infinite_gradients_as_a_matter_of_course(paths, journal, args):
    args.fp16 = True
    safeguards.FiniteCallback(journal).on_pre_optimizer_step(
        args, state(), control(), model=stepped(float("inf"))
    )
    assert kinds(paths) == []


def test_a_model_without_gradients_passes(journal, args):
    safeguards.FiniteCallback(journal).on_pre_optimizer_step(
        args, state(), control(), model=torch.nn.Linear(1, 1)
    )


def test_every_rank_raises_and_only_the_first_writes(paths, journal, args):
    finite = safeguards.FiniteCallback(journal)
    with pytest.raises(safeguards.NonFiniteError):
        finite.on_log(args, state(main=False), control(), logs={"loss": float("nan")})
    assert kinds(paths) == []
    with pytest.raises(safeguards.NonFiniteError, match="the loss of step 7 is nan"):
        finite.on_log(args, state(), control(), logs={"loss": float("nan")})
    assert kinds(paths) == [("guard", "nan")]
    finite.on_log(args, state(), control(), logs={"loss": 1.0, "eval_loss": float("nan")})
    finite.on_log(args, state(), control(), logs=None)


def test_the_trainer_asks_before_the_optimizer_steps(tmp_path, journal):
    """A real Trainer: the weights are those from before the NaN."""
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()

    class Broken(transformers.Trainer):
        def compute_loss(self, model, inputs, **_):
            return (model(inputs["x"]) * float("nan")).sum()

    arguments = transformers.TrainingArguments(
        tmp_path / "out", max_steps=2, report_to=[], use_cpu=True, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"x": torch.ones(2)}] * 8
    trainer = Broken(
        model, arguments, train_dataset=rows, callbacks=[safeguards.FiniteCallback(journal)]
    )
    with pytest.raises(safeguards.NonFiniteError):
        trainer.train()
    assert torch.equal(model.weight, before)


# --- losses -----------------------------------------------------------------------


def test_a_jump_after_a_resume_is_warned_of_once(paths, journal, args):
    watch = safeguards.LossCallback(journal, Guards())
    history = [{"loss": 1.0, "step": n} for n in range(30)] + [{"eval_loss": 9.0}]
    watch.on_train_begin(args, state(history=history), control())
    for _ in range(8):
        watch.on_log(args, state(), control(), logs={"loss": 1.8})
    assert kinds(paths) == [("warning", "jump")]


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_divergence_warns_or_stops_as_the_profile_says(paths, journal, args, action):
    watch = safeguards.LossCallback(journal, Guards(on_divergence=action))
    watch.on_train_begin(args, state(), control())
    for loss in [1.0] * 20 + [3.0] * 20:
        watch.on_log(args, state(), control(), logs={"loss": loss})
    assert kinds(paths) == [("warning", "divergence")]
    assert paths.stop.exists() == (action == "stop")
    if action == "stop":
        assert paths.stop.read_text() == "the loss diverges"


def test_divergence_on_a_full_disk_asks_to_stop_all_the_same(paths, journal, args):
    paths.stop.symlink_to("/dev/full")
    watch = safeguards.LossCallback(journal, Guards(on_divergence="stop"))
    watch.on_train_begin(args, state(), control())
    for loss in [1.0] * 20 + [3.0] * 20:
        watch.on_log(args, state(), control(), logs={"loss": loss})
    assert callbacks.StopCallback(journal).asked()


# --- disk -------------------------------------------------------------------------


def committed(paths, step, **facts):
    path = fake_files.write_checkpoint(paths.directory, step, **facts)
    document = json.loads((path / "trainer_state.json").read_text())
    checkpoints.commit(path, checkpoints.facts_from_history(document))
    return path


def steps(paths):
    return [c.step for c in checkpoints.scan(paths.directory)]


def test_with_room_a_save_goes_on(paths, journal, args, disk):
    committed(paths, 5)
    disk[0] = ROOM
    safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal)).on_step_end(
        args, state(), control(should_save=True)
    )
    assert (steps(paths), kinds(paths)) == ([5], [])


def test_the_reserve_stays_free(paths, journal, args, disk):
    disk[0] = ROOM
    waiting = in_background(
        safeguards.DiskCallback(journal, ROOM, callbacks.StopCallback(journal)).on_step_end,
        args,
        state(),
        control(should_save=True),
    )
    wait_for(lambda: ("pause", "disk") in kinds(paths))
    disk[0] = 2 * ROOM
    assert ended(waiting)


def test_where_nothing_is_saved_nothing_is_asked(paths, journal, args, disk):
    safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal)).on_step_end(
        args, state(), control()
    )
    assert kinds(paths) == []


def test_a_short_disk_pauses_and_goes_on_when_there_is_room(paths, journal, args, disk):
    for step in (2, 3, 4):
        committed(paths, step, eval_loss=float(step))
    (paths.directory / "checkpoint-3/leviathan-pin").touch()
    paths.phase.write_text("{}")
    asked = control(should_save=True)
    callback = safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal))
    waiting = in_background(callback.on_step_end, args, state(), asked)
    wait_for(lambda: ("pause", "disk") in kinds(paths))
    assert steps(paths) == [2, 3, 4]  # the best, the pinned, the newest
    before = paths.phase.stat().st_mtime_ns
    wait_for(lambda: paths.phase.stat().st_mtime_ns > before)  # waiting is no standstill
    assert waiting.is_alive()
    disk[0] = ROOM
    assert ended(waiting)
    assert kinds(paths) == [("pause", "disk"), ("unpause", "disk")]
    assert runs.events(paths)[1]["wait_s"] > 0
    assert asked.should_save


def test_pruning_for_room_takes_the_old_and_leaves_the_last(paths, journal, args, disk):
    for step in (2, 3, 4):
        committed(paths, step)
    callback = safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal))
    waiting = in_background(callback.on_step_end, args, state(), control(should_save=True))
    wait_for(lambda: ("pause", "disk") in kinds(paths))
    disk[0] = ROOM
    assert ended(waiting)
    assert steps(paths) == [4]
    assert [(e["step"], e["reason"]) for e in runs.events(paths) if e["event"] == "remove"] == [
        (2, "disk"), (3, "disk"),
    ]  # fmt: skip


def test_the_last_sound_checkpoint_is_not_given_up_for_one_that_only_looks_sound(paths):
    committed(paths, 2)
    newest = committed(paths, 3) / "optimizer.pt"
    newest.write_bytes(b"\0" * newest.stat().st_size)
    assert checkpoints.retain(paths.directory, 1) == checkpoints.Retention(())
    assert steps(paths) == [2, 3]


def test_the_size_of_the_first_save_is_that_of_what_is_trained():
    model = torch.nn.Linear(100, 100, bias=False)
    frozen = torch.nn.Linear(100, 100)
    frozen.requires_grad_(False)
    both = torch.nn.Sequential(model, frozen)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    parts = {"model": both, "optimizer": optimizer, "processing_class": ["token"] * 10}
    needed = 3 * 40_000 + 10 * 135 + (1 << 16)
    assert needed <= safeguards._save_bytes(parts) <= needed + 100  # AdamW's step counter
    assert safeguards._save_bytes({}) == 1 << 16


# --- phase ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "wanted", "found"),
    [
        ("on_train_begin", {}, "train"),
        ("on_step_begin", {}, "train"),
        ("on_substep_end", {}, "train"),
        ("on_step_end", {}, "train"),
        ("on_step_end", {"should_save": True}, "save"),
        ("on_step_end", {"should_evaluate": True}, "eval"),
        ("on_step_end", {"should_evaluate": True, "should_save": True}, "eval"),
        ("on_prediction_step", {}, "eval"),
        ("on_evaluate", {}, "train"),
        ("on_evaluate", {"should_save": True}, "save"),
    ],
)
def test_the_phase_is_what_comes_next(paths, args, hook, wanted, found):
    getattr(safeguards.PhaseCallback(paths), hook)(args, state(), control(**wanted))
    assert phase(paths) == found


def test_an_evaluation_before_the_first_step_is_one(paths, args):
    args.eval_on_start = True
    safeguards.PhaseCallback(paths).on_train_begin(args, state(0), control())
    assert phase(paths) == "eval"


def test_every_batch_is_a_sign_of_life_and_a_full_disk_none_of_its_business(paths, args):
    told = safeguards.PhaseCallback(paths)
    told.on_step_begin(args, state(1), control())
    os.utime(paths.phase, (0, 0))
    told.on_substep_end(args, state(1), control())
    assert paths.phase.stat().st_mtime > 0
    paths.phase.unlink()
    paths.phase.symlink_to("/dev/full")
    told.on_prediction_step(args, state(1), control())


def test_only_the_first_rank_tells(paths, args):
    safeguards.PhaseCallback(paths).on_step_begin(args, state(main=False), control())
    assert not paths.phase.exists()


# --- stop -------------------------------------------------------------------------


def test_a_pause_is_waited_out_and_a_stop_ends_it(paths, journal, args, monkeypatch):
    monkeypatch.delenv(runs.SUPERVISOR_VARIABLE, raising=False)
    stop = callbacks.StopCallback(journal)
    paths.pause.touch()
    asked = control()
    waiting = in_background(stop.on_step_end, args, state(), asked)
    waiting.join(0.3)
    assert waiting.is_alive()
    paths.stop.touch()
    assert ended(waiting)
    assert (asked.should_save, asked.should_training_stop) == (True, True)
    (waited,) = [e for e in runs.events(paths) if e["event"] == "waited"]
    assert waited["wait_s"] >= 0.3


def test_a_dead_supervisor_stops_the_training(journal, args, monkeypatch):
    dead = {"pid": 1 << 30, "started": 0.0, "boot": "x"}
    monkeypatch.setenv(runs.SUPERVISOR_VARIABLE, json.dumps(dead))
    asked = callbacks.StopCallback(journal).on_step_end(args, state(), control())
    assert asked.should_training_stop


def test_waiting_for_room_without_a_supervisor_ends(paths, journal, args, disk, monkeypatch):
    """Nobody would ever be told: the orphan ends with what was committed last."""
    dead = {"pid": 1 << 30, "started": 0.0, "boot": "x"}
    monkeypatch.setenv(runs.SUPERVISOR_VARIABLE, json.dumps(dead))
    monkeypatch.setattr(safeguards, "_STOP_PATIENCE", 1)
    committed(paths, 5)
    asked = control(should_save=True)
    stop = callbacks.StopCallback(journal)
    callback = safeguards.DiskCallback(journal, 0, stop)
    assert ended(in_background(callback.on_step_end, args, state(), asked))
    assert (asked.should_save, asked.should_training_stop) == (False, True)
    assert stop.stopping  # so that train_end tells of a stop, not of an end
    assert steps(paths) == [5]
    assert ("warning", "disk") in kinds(paths)


# --- order ------------------------------------------------------------------------


def test_callbacks_come_in_an_order_that_matters(tmp_path):
    keys = {"run_dir": str(tmp_path), "session": 1, "keep": 3, "guards": {"loss_jump": 0.7}}
    cfg = DictDefault(
        leviathan=keys, learning_rate=1e-4, sample_packing=True, curriculum_sampling=None
    )
    found = plugin.LeviathanPlugin().add_callbacks_pre_trainer(cfg, None)
    order = [type(callback).__name__ for callback in found]
    assert order == [
        "MetricsCallback", "FiniteCallback", "LossCallback", "CommitCallback", "StopCallback",
        "SaveCallback", "LearningRateCallback", "TokensCallback", "EpochCallback", "DiskCallback",
        "PhaseCallback", "Stopwatch",
    ]  # fmt: skip
    assert order.index("SaveCallback") < order.index("DiskCallback")
    assert order.index("StopCallback") < order.index("DiskCallback") < order.index("PhaseCallback")
    assert order.index("MetricsCallback") < order.index("FiniteCallback")
    assert found[2].limits.loss_jump == 0.7


def test_a_stop_on_a_short_disk_is_still_judged_by_the_disk(
    paths, journal, args, disk, monkeypatch
):
    """The stop asks for a save; only then does the disk look."""
    monkeypatch.delenv(runs.SUPERVISOR_VARIABLE, raising=False)
    paths.stop.touch()
    asked = control()
    callbacks.StopCallback(journal).on_step_end(args, state(), asked)
    callback = safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal))
    waiting = in_background(callback.on_step_end, args, state(), asked)
    wait_for(lambda: ("pause", "disk") in kinds(paths))
    disk[0] = ROOM
    assert ended(waiting)
    assert asked.should_save


def test_signals_in_the_training_process_only_set_a_flag(journal, args, monkeypatch):
    monkeypatch.delenv(runs.SUPERVISOR_VARIABLE, raising=False)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stop = callbacks.StopCallback(journal)
    try:
        stop.on_train_begin(args, state(0), control())
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stop.signalled)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.on_step_end(args, state(1), control()).should_training_stop


def test_a_checkpoint_that_cannot_be_removed_ends_nothing(paths, journal, args):
    fake_files.refuse_removal(fake_files.write_checkpoint(paths.directory, 3))
    fake_files.write_checkpoint(paths.directory, 7)
    callbacks.CommitCallback(journal, 1, "", callbacks.Stopwatch()).on_save(
        args, state(), control()
    )
    assert (paths.directory / "checkpoint-7" / checkpoints.COMMIT).is_file()
    assert kinds(paths) == [("save", None), ("warning", "retention")]


def test_nor_where_room_is_needed(paths, journal, args, disk):
    for step in (2, 3, 4):
        committed(paths, step)
    fake_files.refuse_removal(paths.directory / "checkpoint-2")
    callback = safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal))
    waiting = in_background(callback.on_step_end, args, state(), control(should_save=True))
    wait_for(lambda: ("pause", "disk") in kinds(paths))
    disk[0] = ROOM
    assert ended(waiting)
    assert kinds(paths) == [
        ("remove", None), ("warning", "retention"), ("pause", "disk"), ("unpause", "disk"),
    ]  # fmt: skip
    assert steps(paths) == [2, 4]


@pytest.mark.parametrize("hook", ["on_step_end", "on_epoch_end"])
def test_a_save_at_an_epochs_end_is_judged_by_the_disk_too(paths, journal, args, disk, hook):
    callback = safeguards.DiskCallback(journal, 0, callbacks.StopCallback(journal))
    waiting = in_background(getattr(callback, hook), args, state(), control(should_save=True))
    wait_for(lambda: ("pause", "disk") in kinds(paths))
    disk[0] = ROOM
    assert ended(waiting)


# --- durations --------------------------------------------------------------------


def test_an_evaluation_and_a_save_are_timed_apart_and_without_what_was_waited_for(
    paths, journal, args, monkeypatch
):
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    fake_files.write_checkpoint(paths.directory, 7)
    stopwatch = callbacks.Stopwatch()
    metrics = callbacks.MetricsCallback(journal, stopwatch)
    commit = callbacks.CommitCallback(journal, 1, "", stopwatch)
    now[0] += 50  # the step, and waiting
    stopwatch.on_step_end(args, state(), control())
    metrics.on_log(args, state(), control(), logs={"loss": 1.0})
    now[0] += 4
    metrics.on_log(args, state(), control(), logs={"eval_loss": 1.0})
    now[0] += 3
    commit.on_save(args, state(), control())
    loss, evaluation = runs.metrics(paths)
    assert ("eval_s" in loss, evaluation["eval_s"]) == (False, 4.0)
    assert [e["save_s"] for e in runs.events(paths) if e["event"] == "save"] == [3.0]


@pytest.mark.parametrize(
    ("strategy", "steps", "every"),
    [("steps", 25, 25), ("epoch", 500, 6), ("no", 500, 0), ("best", 500, 0), ("steps", None, 0)],
)
def test_how_often_is_as_the_trainer_resolved_it(paths, journal, args, strategy, steps, every):
    found = state(0)
    found.num_train_epochs, found.eval_steps, found.save_steps = 2, steps, steps
    args.eval_strategy = args.save_strategy = transformers.trainer_utils.SaveStrategy(strategy)
    callbacks.StopCallback(journal).on_train_begin(args, found, control())
    (begin,) = runs.events(paths)
    assert (begin["eval_every"], begin["save_every"]) == (every, every)


# --- save -------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "main"), [(True, True), (True, False), (False, True)])
def test_a_save_that_is_asked_for_is_made_once(paths, journal, args, asked, main):
    if asked:
        paths.save.touch()
    wanted = callbacks.SaveCallback(journal).on_step_end(args, state(9, main=main), control())
    assert (wanted.should_save, wanted.should_training_stop) == (asked, False)
    assert paths.save.exists() == (asked and not main)  # rank 0 removes it
    assert kinds(paths) == [("save_asked", None)] * (asked and main)


def test_hours_since_the_last_save_ask_for_one(paths, journal, args):
    now = 0.0
    saver = callbacks.SaveCallback(journal, 1.5, lambda: now)
    saver.on_train_begin(args, state(0), control())
    wanted = []
    for now in (5399.0, 5400.0, 9000.0):
        wanted.append(saver.on_step_end(args, state(9), control()).should_save)
        if now == 5400:
            saver.on_save(args, state(9), control())
    assert wanted == [False, True, False]
    assert kinds(paths) == []  # nobody waits for it
    always = callbacks.SaveCallback(journal, None, lambda: 1e9)
    assert not always.on_step_end(args, state(9), control()).should_save


def test_a_commit_slims_what_the_policy_says(paths, journal, args):
    for step in (5, 6):
        checkpoints.commit(fake_files.write_checkpoint(paths.directory, step), {"step": step})
    fake_files.write_checkpoint(paths.directory, 7)
    commit = callbacks.CommitCallback(journal, 9, "", callbacks.Stopwatch(), 2)
    commit.on_save(args, state(), control())
    assert [c.slim for c in checkpoints.scan(paths.directory)] == [True, False, False]
    assert kinds(paths) == [("save", None), ("slim", None)]


# --- endings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "count"),
    [([], 0), ([3.0], 0), ([3.0, 3.0], 1), ([3.0, 2.0], 0), ([2.0, 3.0, 2.5], 2),
     ([2.0, math.nan, 1.0, math.nan], 1), ([math.nan, 2.0], 0), ([3, 4, 2, 2, 5], 2)],
)  # fmt: skip
def test_evaluations_without_gain_are_counted_as_transformers_counts_them(args, losses, count):
    assert endings.without_gain(losses) == count
    theirs = transformers.EarlyStoppingCallback(99)
    args.greater_is_better = False
    seen = transformers.TrainerState()
    for loss in losses:
        theirs.check_metric_value(args, seen, control(), loss)
        seen.best_metric = math.inf if seen.best_metric is None else seen.best_metric
        seen.best_metric = loss if loss < seen.best_metric else seen.best_metric
    assert theirs.early_stopping_patience_counter == count


class LastSteps:
    """A Trainer as far as ``endings`` sees it."""

    def __init__(self, step: int, losses: list[float]) -> None:
        self.state, self.control = state(step), control()
        self.state.max_steps = 10
        self.state.log_history = [{"eval_loss": loss, "step": 1} for loss in losses]
        self.removed: list[type] = []

    def remove_callback(self, kind: type) -> None:
        self.removed.append(kind)

    def get_batch_samples(self, *_):
        return ["a batch"], 1


@pytest.mark.parametrize(
    ("step", "losses", "over"),
    [(9, [], False), (10, [], True), (5, [2.0, 3.0, 3.0], True), (5, [2.0, 3.0], False)],
)
def test_no_batch_comes_after_the_end(journal, step, losses, over):
    trainer, early = LastSteps(step, losses), endings.EarlyStopCallback(journal, 2)
    endings.install(trainer, early)
    assert trainer.removed == [transformers.EarlyStoppingCallback]
    assert trainer.get_batch_samples(iter(()), 1, "cpu") == (([], None) if over else (
        ["a batch"], 1))  # fmt: skip
    assert trainer.control.should_training_stop == over


def test_early_stopping_saves_and_says_so(paths, journal, args):
    early = endings.EarlyStopCallback(journal, 2)
    found = LastSteps(5, [2.0, 3.0]).state
    assert not early.on_evaluate(args, found, control()).should_training_stop
    found.log_history.append({"eval_loss": 2.0, "step": 5})
    wanted = early.on_evaluate(args, found, control())
    assert (wanted.should_training_stop, wanted.should_save) == (True, True)
    assert [e["step"] for e in runs.events(paths) if e["event"] == "early_stop"] == [5]


def test_a_checkpoint_without_an_optimizer_is_not_committed(paths, journal, args):
    """Axolotl only warns where FSDP's optimizer cannot be saved; a resume would start it anew."""
    path = fake_files.write_checkpoint(paths.directory, 7)
    (path / "optimizer.pt").unlink()
    commit = callbacks.CommitCallback(journal, 1, "", callbacks.Stopwatch())
    commit.on_save(args, state(), control())
    assert not (path / checkpoints.COMMIT).exists()
    assert kinds(paths) == [("warning", "save")]
    assert "optimizer.pt is missing" in runs.events(paths)[0]["text"]


def test_what_another_rank_wrote_is_waited_for(tmp_path):
    """A network file system shows it late, or, where it is none of ours, never."""
    assert callbacks._missing(tmp_path, set()) is None
    told = callbacks._missing(tmp_path, {"rng_state_1.pth"}, 0.3)
    assert told == "rng_state_1.pth, written by another rank, is not to be seen by the first"
    waiting = in_background(callbacks._missing, tmp_path, {"rng_state_1.pth"}, 10)
    (tmp_path / "rng_state_1.pth").touch()
    assert ended(waiting)
