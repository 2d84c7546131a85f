"""A tracker that fails ends nothing but itself."""

import json
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from leviathan import reporters, runs
from leviathan.journal import Journal


class WandbCallback(TrainerCallback):
    """Stands where transformers' own would; fails from step 2 on."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, **kwargs):
        self.seen.append((state.global_step, kwargs["logs"]))
        if state.global_step >= 2:
            raise ConnectionError("no route to https://me:s3cret@host\nmore of it")

    def on_train_end(self, args, state, control, **kwargs):
        self.seen.append("end")


class SaveAxolotlConfigtoWandBCallback(WandbCallback):
    pass


class TrackioCallback(TrainerCallback):
    """With a module whose ``init`` is older than its caller."""

    def __init__(self):
        self._trackio = SimpleNamespace(init=lambda project, name=None: (project, name), log=len)


class OtherCallback(WandbCallback):
    pass


for kind in (WandbCallback, TrackioCallback):
    kind.__module__ = "transformers.integrations.integration_utils"
SaveAxolotlConfigtoWandBCallback.__module__ = "axolotl.utils.callbacks"


@pytest.fixture
def trainer(tmp_path):
    """With callbacks of two trackers and one that is no tracker's, guarded."""
    wandb, saver, other, trackio = callbacks = [
        WandbCallback(), SaveAxolotlConfigtoWandBCallback(), OtherCallback(), TrackioCallback(),
    ]  # fmt: skip
    made = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=list(callbacks)),
        is_world_process_zero=lambda: True,
    )
    reporters.install(made, Journal(runs.RunPaths(tmp_path), 3), None)
    made.all, made.wandb, made.saver, made.other, made.trackio = (
        made.callback_handler.callbacks, wandb, saver, other, trackio,
    )  # fmt: skip
    return made


def log(trainer, step):
    state, control = SimpleNamespace(global_step=step), SimpleNamespace()
    for callback in trainer.all:
        if not isinstance(callback, OtherCallback):
            callback.on_log(None, state, control, logs={"loss": step})
            callback.on_step_end(None, state, control)


def test_a_failing_tracker_is_off_from_then_on(trainer, tmp_path):
    for step in (1, 2, 3):
        log(trainer, step)
    assert [step for step, _ in trainer.wandb.seen] == [1, 2]
    assert [step for step, _ in trainer.saver.seen] == [1]  # the whole tracker is off
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (event,) = map(json.loads, lines)
    assert event["event"] == "warning"
    assert (event["kind"], event["step"], event["session"]) == ("tracker", 2, 3)
    assert event["text"] == (
        "wandb failed and is off for this session: ConnectionError: no route to "
        "https://[redacted]@host"
    )


def test_only_trackers_are_guarded(trainer):
    kinds = [type(callback) for callback in trainer.all]
    assert kinds == [reporters.Guarded, reporters.Guarded, OtherCallback, reporters.Guarded]


def test_trackio_is_called_as_it_can_be(trainer):
    module = trainer.trackio._trackio
    assert module.init(project="p", name="n", bucket_id=None) == ("p", "n")
    assert module.log("abc") == 3
