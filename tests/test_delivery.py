"""One message handed over: to a real web server on this machine, to real processes."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from fakes.processes import wait_for
from fakes.receiver import elapsed, free_port
from leviathan import delivery, runs
from leviathan.delivery import Message
from leviathan.hooks import Hook, Target, target

MESSAGE = Message(("oom", "restarted"), "tiny", "memory was short", "host1", 1.0, 7, 12, 1.23456)


def send(message=MESSAGE, **hook):
    made = Hook.model_validate(hook)
    return delivery.send(made, target(made, os.environ), message)


def test_a_webhook_is_sent_what_slack_discord_and_programs_read(receiver):
    server = receiver()
    assert send(webhook=f"{server.url}services/s3cret?x=1") is None
    ((path, headers, body),) = server.got
    assert path == "/services/s3cret?x=1"
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("leviathan/")
    line = "tiny oom: memory was short; step 7 of 12, loss 1.235; on host1"
    assert json.loads(body) == {
        "text": line, "content": line, "run": "tiny", "kind": "oom", "step": 7, "max_steps": 12,
        "loss": 1.23456, "host": "host1", "time": "1970-01-01T00:00:01Z", "next": "",
        "held_back": 0,
    }  # fmt: skip


def test_a_webhook_may_want_plain_text(receiver):
    server = receiver(204)
    assert send(webhook=server.url, body="text") is None
    ((_, headers, body),) = server.got
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert body.decode() == MESSAGE.line


def test_a_loss_that_is_no_number_and_a_log_line_of_garbage_arrive(receiver):
    server = receiver()
    text = "bad \x00\x1b[31m\ud800 line\n@" + "x" * 5000
    message = Message(("crashed",), "tiny", text, "h", 1.0, 7, None, float("nan"))
    assert send(message, webhook=server.url) is None
    (document,) = server.documents
    assert document["loss"] is None
    assert document["text"].isprintable()
    assert len(document["text"]) == 1500
    assert send(message, command=["test", "{text}"]) is None


@pytest.mark.parametrize(
    ("answer", "text", "passing"),
    [
        (404, "HTTP 404", False), (500, "HTTP 500", True), (429, "HTTP 429", True),
        (302, "HTTP 302: it leads elsewhere; give the address it leads to", False),
        (307, "HTTP 307: it leads elsewhere; give the address it leads to", False),
    ],
)  # fmt: skip
def test_what_a_server_refuses(receiver, answer, text, passing):
    server = receiver(answer)
    found = send(webhook=f"{server.url}s3cret")
    assert (found.text, found.passing) == (text, passing)
    assert [path for path, _, _ in server.got] == ["/s3cret"]


def test_a_server_that_is_not_there_or_says_nothing(receiver, monkeypatch):
    found = send(webhook=f"http://127.0.0.1:{free_port()}/s3cret")
    assert (found.text, found.passing) == ("Connection refused", True)
    monkeypatch.setattr(delivery, "WEBHOOK_S", 0.3)
    server = receiver("hang")
    assert elapsed(lambda: send(webhook=server.url)) < 5
    assert send(webhook=server.url).text == "no answer within 0.3 s"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999999/s3cret", "http://[s3cret/", "s3cret.example.com/", "http://a b/s3cret"]
)  # fmt: skip
def test_whatever_a_url_holds_nothing_is_raised_and_nothing_shown(url):
    """``hooks`` lets none of these through; should one come, it harms nobody."""
    hook = Hook.model_validate({"webhook": "$A"})
    found = delivery.send(hook, Target("x", url), MESSAGE)
    assert "s3cret" not in found.text


def test_a_command_gets_words_and_variables_and_no_shell(tmp_path):
    out = tmp_path / "out"
    script = (
        "import os, sys, json; json.dump([sys.argv[2:], dict(os.environ)], open(sys.argv[1], 'w'))"
    )
    text = "memory; touch {run} $(touch x)"
    message = Message(("oom",), "tiny", text, "host1", 1.0, 7, next="leviathan train")
    words = ["{kind}", "{run}@{host}:{step}", "{text}", '{"a": {x}, {run}', "{{run}}", "{"]
    assert send(message, command=["python3", "-c", script, str(out), *words]) is None
    arguments, environment = json.loads(out.read_text())
    assert arguments == ["oom", "tiny@host1:7", message.line, '{"a": {x}, tiny', "{tiny}", "{"]
    assert message.line.startswith("tiny oom: memory; touch {run} $(touch x)")
    told = {k: v for k, v in environment.items() if k.startswith("LEVIATHAN_")}
    assert told.items() >= {
        "LEVIATHAN_EVENT": "oom", "LEVIATHAN_RUN": "tiny", "LEVIATHAN_TEXT": message.line,
        "LEVIATHAN_STEP": "7", "LEVIATHAN_HOST": "host1", "LEVIATHAN_NEXT": "leviathan train",
    }.items()  # fmt: skip


def test_a_command_is_not_taken_for_a_process_of_the_run(monkeypatch):
    monkeypatch.setenv(runs.SUPERVISOR_VARIABLE, "{}")
    assert send(command=["sh", "-c", f'test -z "${runs.SUPERVISOR_VARIABLE}"']) is None


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["false"], "exit code 1"), (["sh", "-c", "kill -9 $$"], "signal 9"),
        (["no-such-program"], "there is no program no-such-program"), (["/etc"], "there is no program /etc"),
    ],
)  # fmt: skip
def test_a_command_that_fails(command, text):
    assert send(command=command).text == text


@pytest.mark.parametrize("ends", ["time", "gone"])
def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path, ends):
    pids = tmp_path / "pids"
    command = ["sh", "-c", f"trap '' TERM; sleep 90 & echo $$ $! > {pids}; wait"]
    hook, gone = Hook.model_validate({"command": command}), threading.Event()
    if ends == "gone":
        threading.Timer(0.5, gone.set).start()
    seconds = 0.5 if ends == "time" else 60
    found = delivery.send(hook, target(hook, os.environ), MESSAGE, gone, seconds)
    why = "it took longer than 0.5 s" if ends == "time" else "the run has ended"
    assert found.text == f"killed: {why}"
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: not alive(pid), 5)


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_output_of_a_command_is_dropped_and_it_is_asked_nothing(capfd):
    began = time.monotonic()
    assert send(command=["sh", "-c", "cat; echo out; echo err >&2"]) is None
    assert time.monotonic() - began < 5
    assert capfd.readouterr() == ("", "")
