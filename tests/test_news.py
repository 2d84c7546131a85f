"""Real trainings on the fake accelerate, and what somebody who does not look hears of them."""

import json
import signal
import time
from types import SimpleNamespace

import pytest

import tiny
from fakes.processes import wait_for
from fakes.receiver import elapsed, free_port
from leviathan import news, runs, writer
from leviathan.delivery import Message
from leviathan.errors import Refused

SMALL_LADDER = """
out_of_memory:
  ladder: [{halve: micro_batch_size}]
  shrink: [{halve: sequence_len, down_to: 64}]
"""


def tell(trainings, *hooks, more="", restarts=3, guards="disk_reserve_gib: 0"):
    """The tiny profile with restarts and these hooks."""
    text = tiny.PROFILE.replace(
        "recovery: {restarts: 0}", f"recovery: {{restarts: {restarts}, backoff_s: 0}}"
    ).replace("guards: {disk_reserve_gib: 0}", f"guards: {{{guards}}}")
    text += f"notify: {json.dumps(hooks)}\n{more}"
    (trainings.project / "configs/profiles/tiny.yaml").write_text(text)


def all_text(trainings, *runs_of):
    """Everything that was written and printed about a run."""
    files = [p for p in (trainings.project / "work").rglob("*") if p.is_file()]
    texts = [p.read_bytes().decode(errors="replace") for p in files]
    return "".join([*texts, *(run.stdout + run.stderr for run in runs_of)])


def test_the_end_is_told_with_the_next_command_and_the_secret_stays_one(
    trainings, receiver, monkeypatch
):
    server = receiver()
    monkeypatch.setenv("HOOK", f"{server.url}in-a-variable")
    tell(trainings, {"webhook": "$HOOK"}, {"webhook": f"{server.url}in-the-file"})
    done = trainings.run()
    assert done.code == 0, done
    assert sorted(path for path, _, _ in server.got) == ["/in-a-variable", "/in-the-file"]
    told = server.documents[0]
    assert told["text"].startswith(
        "tiny_full_tiny finished: trained to its end; step 12 of 12, loss 0.1667; on "
    )
    assert told["text"].endswith("; next: leviathan merge tiny_full_tiny")
    assert (told["kind"], told["run"], told["step"], told["next"]) == (
        "finished", "tiny_full_tiny", 12, "leviathan merge tiny_full_tiny")  # fmt: skip
    assert "warning: notify" not in done.stderr
    written = all_text(trainings, done)
    assert "in-the-file" not in written
    assert "in-a-variable" not in written


@pytest.mark.parametrize(
    ("fake", "options", "kinds", "code", "text"),
    [
        ({"mode": "crash"}, {"restarts": 0}, ["crashed"], 1, "made up"),
        ({"mode": "oom", "fits": 2}, {"more": SMALL_LADDER}, ["oom", "finished"], 0,
         "next rung: micro_batch_size 4 -> 2"),
        ({"mode": "stall,finish"}, {"guards": "stall_min_s: 0.6, stall_factor: 2"},
         ["stalled", "finished"], 0, "training stood still"),
        ({"mode": "no-space,finish"}, {}, ["disk", "finished"], 0, "the disk is full"),
        ({"mode": "spike"}, {}, ["diverged", "finished"], 0, "the loss diverges: made up"),
    ],
    ids=lambda value: value.get("mode") if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_is_told(trainings, receiver, fake, options, kinds, code, text):
    server = receiver()
    tell(trainings, {"webhook": server.url}, **options)
    done = trainings.run(**fake)
    assert done.code == code, done
    assert server.kinds == kinds
    assert any(text in document["text"] for document in server.documents), server.documents
    if code:
        assert server.documents[-1]["next"].startswith("leviathan train --profile tiny ")


def test_who_asks_for_a_cause_or_for_the_effect_hears_of_both_under_that_name(trainings, receiver):
    cause, effect = receiver(), receiver()
    tell(trainings, {"webhook": cause.url, "when": ["oom"]},
         {"webhook": effect.url, "when": ["crashed", "restarted"]}, more=SMALL_LADDER)  # fmt: skip
    assert trainings.run(mode="oom", fits=0).code == 1
    assert effect.kinds == ["restarted", "crashed"]
    assert cause.kinds == ["oom", "oom"]  # the end is never held back
    assert "the out-of-memory ladder is at its end" in cause.documents[-1]["text"]


def test_a_budget_and_a_stop_are_told_apart(trainings, receiver):
    server = receiver()
    tell(trainings, {"webhook": server.url})
    stopped = trainings.run("--max-hours", "0.0015", steps=1000, step_s=0.05)
    assert stopped.code == 4, stopped
    stopped_at = server.documents[0]["step"]
    again = trainings.start(steps=1000, step_s=0.05).reached(stopped_at + 3)
    assert again.signal(signal.SIGTERM).end() == 4
    killed = trainings.start(steps=1000, step_s=0.05)
    wait_for(lambda: "session 3" in killed.stderr)
    killed.signal(signal.SIGINT)
    time.sleep(0.3)
    killed.signal(signal.SIGINT).end()
    assert server.kinds == ["budget", "stopped", "stopped"]
    texts = [document["text"] for document in server.documents]
    assert texts[0].startswith("tiny_full_tiny budget: the budget is used up; step ")
    assert texts[0].endswith("--max-hours 0.0015")
    assert texts[1].startswith("tiny_full_tiny stopped: SIGTERM; step ")


def test_in_the_background_too_and_a_smaller_run_by_its_own_name(trainings, receiver):
    server = receiver()
    tell(trainings, {"webhook": server.url, "every_min": 0}, more=SMALL_LADDER.replace(
        "[{halve: micro_batch_size}]", "[]"))  # fmt: skip
    started = trainings.run("--detach", "--shrink", mode="oom", fits=2)
    assert started.code == 0, started
    wait_for(lambda: "finished" in server.kinds)
    shown = [
        (d["kind"], d["run"], d["text"].split(": ")[1].split(";")[0]) for d in server.documents
    ]
    assert shown[0][:2] == ("oom", "tiny_full_tiny")
    assert "going on with the smaller run work/training/tiny_full_tiny_seq128" in shown[0][2]
    assert shown[-1][:2] == ("finished", "tiny_full_tiny_seq128")
    wait_for(lambda: trainings.left() == [])


def test_of_a_smoke_test_nobody_hears(trainings, receiver):
    server = receiver()
    tell(trainings, {"webhook": server.url}, more=SMALL_LADDER)
    done = trainings.run("--smoke", "--set", "micro_batch_size=4", mode="oom", fits=1)
    assert "smoke test: memory was short" in done.stderr, done
    assert server.kinds == ["finished"]


# --- what goes wrong with telling harms nothing -----------------------------------


def test_hooks_that_fail_leave_outcome_exit_code_and_duration_alone(trainings, receiver):
    tell(trainings)
    plain_s = elapsed(lambda: trainings.run("--name", "plain", mode="crash,finish"))
    servers = [receiver(404), receiver(500), receiver(302)]
    addresses = [f"{s.url}s3cret" for s in servers] + [f"http://127.0.0.1:{free_port()}/s3cret"]
    hooks = [{"webhook": a} for a in addresses] + [{"webhook": "$NOT_SET"}, {"command": ["false"]}]
    tell(trainings, *hooks)
    done = trainings.start(mode="crash,finish")
    took_s = elapsed(done.end)
    assert done.code == 0, done
    assert took_s < plain_s + 10
    # Once each while it runs, and once for the end; those that may pass are tried again.
    assert [len(s.got) for s in servers] == [2, 4, 2]
    assert {path for s in servers for path, _, _ in s.got} == {"/s3cret"}
    warned = [w for w in done.stderr.splitlines() if "was not told" in w]
    assert len(warned) == 2 * 5, warned
    assert (
        "warning: notify: $NOT_SET is not set: nobody is told by it; export NOT_SET=" in done.stderr
    )
    events = [e for e in runs.events(runs.RunPaths(trainings.run_dir)) if e.get("kind") == "notify"]
    assert len(events) == len(warned)
    assert "s3cret" not in all_text(trainings, done)
    assert trainings.left() == []


def test_hooks_that_hang_come_after_record_and_lock_and_a_signal_ends_the_waiting(
    trainings, receiver
):
    """That it ends by itself, too, is in test_notify."""
    stuck = receiver("hang")
    tell(
        trainings,
        {"webhook": f"{stuck.url}s3cret"},
        {"command": ["sh", "-c", "sleep 90 & sleep 90"]},
    )
    running = trainings.start(steps=6)
    wait_for(lambda: "telling others how it ended" in running.stderr)
    paths = runs.RunPaths(trainings.run_dir)
    assert runs.read(paths).state == "done"
    with writer.locked(paths):
        assert running.process.poll() is None
    assert elapsed(lambda: running.signal(signal.SIGINT).end()) < 5
    assert running.code == 0, running
    assert running.stderr.count("did not answer in time: given up") == 2
    assert trainings.left() == []


# --- by message ------------------------------------------------------------------


class Noted(list):
    """A notifier that keeps what it is given."""

    def tell(self, message):
        self.append(message)

    def problems(self):
        return []


def reporter(tmp_path):
    paths = runs.RunPaths(tmp_path / "r")
    decision = SimpleNamespace(paths=paths, resume_from=None)
    return news._Reporter(decision, lambda *_: None, Noted())


@pytest.mark.parametrize(
    ("kind", "facts", "kinds"),
    [
        ("event", {"event": "pause", "kind": "disk", "text": "x"}, [("disk",)]),
        ("event", {"event": "unpause", "kind": "disk", "text": "x"}, [("disk",)]),
        ("event", {"event": "warning", "kind": "heat", "text": "x"}, [("heat",)]),
        ("event", {"event": "pause", "kind": "heat", "text": "x"}, [("heat",)]),
        ("event", {"event": "warning", "kind": "jump", "text": "x"}, [("diverged",)]),
        ("event", {"event": "guard", "kind": "nan", "text": "x"}, []),  # the end of the session says it
        ("event", {"event": "kill", "kind": "stall", "text": "x"}, []),
        ("event", {"event": "stop", "kind": "budget", "text": "x"}, []),
        ("event", {"event": "save", "step": 5}, []),
        ("warning", {"text": "checkpoint-5 could not be removed"}, []),
        ("warning", {"text": "x", "cause": "host_memory"}, [("oom", "restarted")]),
        ("warning", {"text": "x", "cause": "nan"}, [("diverged", "restarted")]),
        ("warning", {"text": "x", "cause": "gpu"}, [("restarted",)]),
        ("tick", {}, []),
    ],
)  # fmt: skip
def test_which_happenings_are_news(tmp_path, kind, facts, kinds):
    told = reporter(tmp_path)
    told(kind, facts)
    assert [m.kinds for m in told.notifier] == kinds


def test_once_a_smaller_run_goes_on_it_is_told_of_by_its_name(tmp_path):
    told = reporter(tmp_path)
    smaller = runs.RunPaths(tmp_path / "r_seq128")
    told("notice", {"text": "going on", "cause": "memory", "paths": smaller})
    told("event", {"event": "warning", "kind": "heat", "text": "hot"})
    assert [(m.run, m.kind) for m in told.notifier] == [("r", "oom"), ("r_seq128", "heat")]


def test_an_error_of_our_own_is_told_once_training_has_begun(tmp_path):
    told = reporter(tmp_path)
    assert told.broken(Refused("no")) is None
    told("start", {"step": 0, "session": 1})
    told("metrics", {"step": 3, "max_steps": 9, "loss": 1.5})
    message = told.broken(Refused("the base model has changed", "restore it"))
    assert isinstance(message, Message)
    assert (message.kinds, message.last) == (("crashed",), True)
    assert message.line.startswith(
        "r crashed: the base model has changed; restore it; step 3 of 9, loss 1.5; on "
    )
    assert told.broken(KeyError("s3cret")).text == "KeyError"
