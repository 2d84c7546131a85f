"""Queues, threads and limits of notifications; and the command that tries the hooks out."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import tiny
from fakes.processes import wait_for
from fakes.receiver import free_port
from leviathan.delivery import Message
from leviathan.hooks import Hook
from leviathan.notify import Notifier, Pace


def message(kind, text="", **more):
    return Message((kind,), "tiny", text, "host", 1.0, **more)


# --- the limit, on a clock of our own ---------------------------------------------


def test_one_of_a_kind_in_a_time_and_the_newest_of_the_others_when_it_is_over():
    pace = Pace(600)
    assert pace.offer(message("oom", "1"), 0).text == "1"
    assert pace.offer(message("oom", "2"), 1) is None
    assert pace.offer(message("oom", "3"), 2) is None
    assert pace.offer(message("disk", "4"), 3).text == "4"  # another kind
    assert (pace.wait_s(100), pace.due(599.9), pace.held) == (500, None, 2)
    late = pace.due(600)
    assert (late.text, late.held_back, pace.held) == ("3", 1, 0)
    assert (pace.due(601), pace.wait_s(601)) == (None, None)
    assert pace.offer(message("oom", "5"), 1199) is None
    assert (pace.due(1199), pace.due(1200).text) == (None, "5")
    assert pace.offer(message("oom", "6"), 1800).text == "6"


def test_an_older_one_never_comes_after_a_newer():
    """While a slow hook was busy, the time of the one held back has passed."""
    pace = Pace(600)
    for text, now in (("1", 0), ("2", 1), ("3", 700)):
        pace.offer(message("oom", text), now)
    late = pace.due(700)
    assert (late.text, late.held_back, pace.due(2000)) == ("3", 1, None)


def test_without_a_limit_all_go():
    pace = Pace(0)
    assert all(pace.offer(message("oom"), 5) for _ in range(9))


def test_what_is_held_at_the_end_is_counted():
    pace = Pace(600)
    for kind in ("oom", "oom", "oom", "disk", "disk"):
        pace.offer(message(kind), 1)
    assert pace.held == 3
    assert [(m.kind, m.held_back) for m in pace.rest()] == [("oom", 1), ("disk", 0)]
    assert (pace.held, pace.rest()) == (0, [])


# --- the notifier -----------------------------------------------------------------


@pytest.fixture
def notifier():
    """Start one with these hooks."""
    return lambda *hooked: Notifier([Hook.model_validate(h) for h in hooked], os.environ)


def test_every_hook_hears_what_it_wants_under_the_name_it_knows(receiver, notifier):
    one, two = receiver(), receiver()
    told = notifier(
        {"webhook": one.url, "when": ["oom", "finished"]},
        {"webhook": two.url, "when": ["restarted"]},
    )
    told.tell(Message(("oom", "restarted"), "tiny", "", "h", 1.0))
    told.tell(message("heat"))
    wait_for(lambda: one.got and two.got, 5)
    told.close(message("finished", last=True))
    assert one.kinds == ["oom", "finished"]
    assert two.kinds == ["restarted"]
    assert told.problems() == []


def test_what_came_too_soon_follows_and_the_end_is_always_told(receiver, notifier):
    server = receiver()
    told = notifier({"webhook": server.url, "every_min": 1 / 60})
    for number in range(4):
        told.tell(message("oom", str(number)))
    wait_for(lambda: len(server.got) == 2, 5)
    told.tell(message("oom", "late"))
    told.tell(message("finished"))
    wait_for(lambda: len(server.got) == 3, 5)
    told.close(message("finished", last=True))
    shown = [(d["kind"], d["text"].split("; ")[0], d["held_back"]) for d in server.documents]
    assert shown == [
        ("oom", "tiny oom: 0", 0), ("oom", "tiny oom: 3", 2), ("finished", "tiny finished: ", 0),
        ("finished", "tiny finished: ", 1),
    ]  # fmt: skip
    assert "; 1 more held back" in server.documents[-1]["text"]


def test_who_does_not_want_the_end_gets_what_was_held_back(receiver, notifier):
    server = receiver()
    told = notifier({"webhook": server.url, "when": ["oom"]})
    for number in range(3):
        told.tell(message("oom", str(number)))
    wait_for(lambda: server.got, 5)
    told.close(message("finished", last=True))
    assert [(d["text"][:11], d["held_back"]) for d in server.documents] == [
        ("tiny oom: 0", 0), ("tiny oom: 2", 1),
    ]  # fmt: skip


def test_what_fails_is_tried_once_more_and_told_once(receiver, notifier):
    server = receiver(500, 200, 404)
    told = notifier({"webhook": f"{server.url}s3cret", "every_min": 0})
    told.tell(message("oom"))
    wait_for(lambda: len(server.got) == 2, 5)
    for _ in range(3):
        told.tell(message("disk"))
    wait_for(lambda: len(server.got) == 5, 5)
    told.close(message("finished", last=True))
    label = f"{server.url}..."
    assert told.problems() == [
        f"{label} was not told (disk): HTTP 404", f"{label} was not told (finished): HTTP 404",
    ]  # fmt: skip


def test_telling_never_waits_and_the_end_not_long(receiver, notifier, tmp_path):
    """A hook that hangs costs the other its message neither."""
    stuck, well = receiver("hang"), receiver()
    pid = tmp_path / "pid"
    told = notifier(
        {"webhook": stuck.url, "every_min": 0},
        {"webhook": well.url},
        {"command": ["sh", "-c", f"echo $$ > {pid}; exec sleep 90"]},
    )
    said = []
    began = time.monotonic()
    for _ in range(500):
        told.tell(message("oom"))
    assert time.monotonic() - began < 0.5
    wait_for(lambda: pid.exists() and pid.read_text(), 5)
    began = time.monotonic()
    told.close(message("finished", last=True), 1.0, lambda: said.append(1))
    assert time.monotonic() - began < 4
    assert well.kinds[-1] == "finished"
    assert said == [1]
    assert told.problems() == [
        f"{stuck.url}... did not answer in time: given up",
        "command sh did not answer in time: given up",
    ]
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_and_nothing_else(receiver, notifier, number):
    told = notifier({"webhook": receiver("hang").url})
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    told.close(message("finished", last=True), 9.0)
    assert time.monotonic() - began < 3


def test_a_hook_that_leads_nowhere_is_left_out(notifier):
    told = notifier({"webhook": "$NO_SUCH_VARIABLE"}, {"command": ["no-such-program"]})
    told.tell(message("oom"))
    told.close(message("finished", last=True))
    assert told.problems() == []


# --- the command ------------------------------------------------------------------


@pytest.fixture
def hooked(run_cli):
    """``leviathan notify`` with these hooks in the tiny profile."""

    def run(hooks, *arguments):
        text = f"notify: {json.dumps(hooks)}\n"
        Path("configs/profiles/tiny.yaml").write_text(tiny.PROFILE + text)
        return run_cli("notify", "-p", "tiny", *arguments)

    return run


def test_every_hook_is_tried_and_each_result_told(receiver, hooked, monkeypatch):
    server = receiver()
    monkeypatch.setenv("HOOK", f"{server.url}s3cret")
    port = free_port()
    done = hooked(
        [{"webhook": "$HOOK"}, {"webhook": f"http://127.0.0.1:{port}/s3cret"},
         {"webhook": "$NO_SUCH_VARIABLE"}, {"command": ["false"]}, {"command": ["true"]}]
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"sent    $HOOK ({server.url}...)",
        f"failed  http://127.0.0.1:{port}/...: Connection refused",
        "failed  $NO_SUCH_VARIABLE: $NO_SUCH_VARIABLE is not set; export NO_SUCH_VARIABLE=https://...",
        "failed  command false: exit code 1",
        "sent    command true",
    ]
    assert [d["kind"] for d in server.documents] == ["test"]
    assert "no run is concerned" in server.documents[0]["text"]


def test_one_kind_and_json(receiver, hooked):
    server = receiver()
    hooks = [{"webhook": server.url, "when": ["oom"]}, {"command": ["false"], "when": ["disk"]}]
    done = hooked(hooks, "--kind", "oom", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == [
        {"hook": f"{server.url}...", "sent": True, "problem": "", "fix": ""}
    ]
    assert server.kinds == ["oom"]
    none = hooked(hooks, "--kind", "heat")
    assert none.exit_code == 0
    assert none.stdout == "profile tiny tells nobody of heat: it has no such hook under notify:\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--kind", "finishd"], "--kind 'finishd' is nothing that is told; did you mean finished? known: "),
        (["-p", "nobody"], "no profile called 'nobody'"),
    ],
)  # fmt: skip
def test_bad_input(hooked, arguments, line):
    done = hooked([], *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"leviathan: {line}")
    assert len(done.stderr.splitlines()) == 1
