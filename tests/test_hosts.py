"""Supervisors that meet over real sockets, in threads of one process."""

import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from fakes.processes import wait_for
from leviathan import hosts, runs
from leviathan.errors import LeviathanError, Refused
from leviathan.hosts import InterruptedWait
from leviathan.rendezvous import Meeting

FACTS = {"settings": {"learning_rate": 1e-4}, "versions": {"torch": "2"}}


class Meet:
    """A head and others in threads; what each told and how each ended."""

    def __init__(self, directory, nodes=2) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.paths, self.nodes = runs.RunPaths(directory), nodes
        self.requests = SimpleNamespace(stop=False)
        self.told: list[str] = []

    def head(self, **options):
        return In(hosts.gather, self.meeting(0), self.paths, FACTS, "sample", silent_s=2,
                  requests=self.requests, tell=self.told.append, **options)  # fmt: skip

    def meeting(self, rank=None):
        return Meeting("127.0.0.1", self.port, self.nodes, rank)

    def other(self, facts=FACTS, rank=None, digest="sample", paths=None, **options):
        def come():
            seat = hosts.join(self.meeting(rank), paths or self.paths, facts,
                              requests=self.requests, tell=self.told.append, **options)  # fmt: skip
            seat.link.send("ready", digest=digest)
            return seat, hosts.answer(seat.link, "go", self.requests)["session"]

        return In(come)


class In:
    """A call in a thread, and how it ended."""

    def __init__(self, call, *arguments, **named) -> None:
        self.value = self.error = None

        def run():
            try:
                self.value = call(*arguments, **named)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def ends(self, seconds=15):
        self.thread.join(seconds)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error
        return self.value


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Nobody here needs the time that a network takes to bring the last words."""
    monkeypatch.setattr(hosts, "_PARTING_S", 0.3)


@pytest.fixture
def meet(tmp_path):
    return Meet(tmp_path)


@pytest.fixture
def party(meet):
    """One that has begun: the head's side and the other's."""
    head, other = meet.head(), meet.other()
    begun = head.ends()
    begun.begin(4)
    seat, session = other.ends()
    assert session == 4
    yield begun, seat
    seat.link.close()
    begun.end(outcome="done")


def test_whoever_comes_first_waits_and_says_for_whom(tmp_path):
    meet = Meet(tmp_path, nodes=3)
    first = meet.other()
    wait_for(lambda: meet.told == [f"waiting for the head at 127.0.0.1:{meet.port}"])
    head = meet.head()
    wait_for(lambda: f"waiting for 1 of 3 hosts at 127.0.0.1:{meet.port}" in meet.told)
    second = meet.other(rank=2)
    party = head.ends()
    party.begin(1)
    assert {first.ends()[0].rank, second.ends()[0].rank} == {1, 2}
    assert second.value[0].rank == 2
    assert sorted(guest.rank for guest in party.guests) == [1, 2]
    party.end(outcome="done")


def test_a_stop_and_a_kill_reach_the_head_with_the_name_of_who_asked(party):
    begun, seat = party
    assert begun.asked() == ("", False)
    seat.link.send("stop", why="SIGTERM")
    name = f"host 1 ({socket.gethostname()}, 127.0.0.1)"
    assert wait_for(lambda: begun.asked()[0]) == f"SIGTERM on {name}"
    seat.link.send("kill")
    assert wait_for(lambda: begun.asked()[1])


def test_who_hangs_up_without_a_word_is_lost_at_once(party):
    begun, seat = party
    assert begun.gone() == begun.silent() == ""
    seat.link.close()
    gone = wait_for(begun.gone)
    assert gone.startswith("host 1 (")
    assert gone.endswith("was lost: its supervisor ended without a word")
    assert begun.failed() is None


def test_who_said_how_it_ended_is_not_lost_when_it_hangs_up(party):
    begun, seat = party
    seat.link.send("ended", code=1, log="/log")
    seat.link.close()
    wait_for(lambda: begun.guests[0].link.closed)
    begun.asked()
    assert (begun.gone(), begun.failed().log) == ("", "/log")


def test_who_is_not_heard_is_lost_after_its_time(party, monkeypatch):
    begun, seat = party
    monkeypatch.setattr(hosts.Link, "send", lambda *_, **__: None)  # as a cut cable does
    time.sleep(1)
    assert begun.silent() == seat.lost(2) == ""
    wait_for(begun.silent, 4)
    assert "not a word for 2 s" in begun.silent()
    assert wait_for(lambda: seat.lost(2), 4).startswith(f"the head (127.0.0.1:{begun.meeting.port}")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("come", "why"),
    [
        (
            {"facts": {**FACTS, "versions": {"torch": "3"}}},
            "versions torch is '3', '2' on the head",
        ),
        ({"digest": "another"}, "has another sample"),
        ({"paths": "elsewhere", "seen_within_s": 0.3}, "all hosts must share the run directory"),
    ],
)
def test_what_does_not_agree_is_refused_by_both_in_one_line(meet, tmp_path, come, why):
    if "paths" in come:
        come = {**come, "paths": runs.RunPaths(tmp_path / "elsewhere")}
    head, other = meet.head(), meet.other(**come)
    for side in (other, head):
        with pytest.raises(Refused, match=why):
            side.ends()
        assert "\n" not in side.error.line


def test_a_number_that_is_taken_is_refused_to_the_second_only(tmp_path):
    meet = Meet(tmp_path, nodes=3)
    head = meet.head()
    first = meet.other(rank=1)
    wait_for(lambda: f"waiting for 1 of 3 hosts at 127.0.0.1:{meet.port}" in meet.told)
    with pytest.raises(Refused, match="there is a host 1 already"):
        meet.other(rank=1).ends()
    last = meet.other()
    head.ends().begin(1)
    assert [first.ends()[0].rank, last.ends()[0].rank] == [1, 2]
    head.value.end(outcome="done")


def test_a_host_that_leaves_while_waiting_is_waited_for_again(tmp_path):
    meet = Meet(tmp_path, nodes=3)
    head = meet.head()
    seat = hosts.join(meet.meeting(), meet.paths, FACTS, requests=meet.requests, tell=print)
    seat.link.close()
    wait_for(lambda: meet.told[-1].startswith("waiting for 2 of 3") and len(meet.told) > 2)
    for other in (meet.other(), meet.other()):
        assert other
    assert len(head.ends().guests) == 2
    head.value.end(outcome="done")


def test_strangers_are_no_hosts(meet):
    head = meet.head()
    wait_for(lambda: meet.told)
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"kind": "ready"}\n', b"\xff" * 100):
        with socket.create_connection(("127.0.0.1", meet.port)) as stranger:
            stranger.sendall(said)
    other = meet.other()
    head.ends().begin(1)
    assert other.ends()[0].rank == 1
    head.value.end(outcome="done")


def test_waiting_ends(meet, tmp_path):
    alone = meet.head(patience_s=0.3)
    with pytest.raises(LeviathanError, match=r"1 of 2 hosts came within 0\.3 s"):
        alone.ends()
    lost = meet.other(patience_s=0.3)
    with pytest.raises(LeviathanError, match=r"no head answered at 127\.0\.0\.1"):
        lost.ends()


def test_a_stop_ends_the_waiting_of_both(meet):
    head = meet.head()
    wait_for(lambda: meet.told)
    meet.requests.stop = True
    with pytest.raises(InterruptedWait):
        head.ends()
    with pytest.raises(InterruptedWait):
        meet.other().ends()


def test_a_port_that_is_taken_is_told(meet):
    with (
        socket.create_server(("127.0.0.1", meet.port)),
        pytest.raises(LeviathanError, match=r"cannot listen at 127\.0\.0\.1"),
    ):
        meet.head().ends()


def test_the_end_arrives_though_the_head_leaves_at_once(party):
    begun, seat = party
    begun.end(outcome="stopped", step=7, again=False)
    message = wait_for(seat.link.take)
    assert message == {"kind": "end", "outcome": "stopped", "step": 7, "again": False}


def test_the_mark_in_the_run_directory_is_the_heads(meet):
    head = meet.head()
    nonce = json.loads(wait_for(lambda: meet.paths.hosts.exists() and meet.paths.hosts.read_text()))
    assert len(nonce["nonce"]) == 32
    meet.requests.stop = True
    with pytest.raises(InterruptedWait):
        head.ends()


def test_a_head_that_fails_before_it_begins_is_no_stop(meet):
    head = meet.head()
    other = meet.other()
    head.ends().end(outcome="failed", reason="no space left")
    with pytest.raises(LeviathanError, match="failed: no space left"):
        other.ends()


def test_a_host_that_falls_silent_while_waiting_frees_its_number(tmp_path, monkeypatch):
    meet = Meet(tmp_path, nodes=3)
    head = meet.head()
    wait_for(lambda: meet.told)
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "_BEAT_S", 60.0)
        silent = meet.other(rank=1)
        wait_for(lambda: any("waiting for 1 of 3" in text for text in meet.told))
        wait_for(lambda: meet.told[-1].startswith("waiting for 2 of 3"), 10)
    both = [meet.other(rank=1), meet.other(rank=2)]
    head.ends().begin(1)
    assert sorted(one.ends()[0].rank for one in both) == [1, 2]
    head.value.end(outcome="done")
    assert silent.thread


def test_a_head_listens_where_its_address_is_a_services(tmp_path):
    """10.255.255.1 is nobody's here: what is in front of the head would lead to it."""
    meet = Meet(tmp_path)
    meeting = Meeting("10.255.255.1", meet.port, 2, 0)
    with hosts._listening(meeting) as door:
        socket.create_connection(("127.0.0.1", meet.port), timeout=5).close()
        assert door.getsockname()[1] == meet.port
