"""Owns the talk between the supervisors of several hosts: meeting, agreeing, and being lost.

JSON lines over TCP, a beat a second. The head waits for the others and says when to begin;
afterwards each knows within seconds when another is gone. Does not launch anything
(``supervise``, ``joining``) nor decide what must agree (``agreement``).
"""

import errno
import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from leviathan import files, runs
from leviathan.agreement import differences, shown
from leviathan.errors import LeviathanError, Refused
from leviathan.rendezvous import Meeting

Tell = Callable[[str], None]

PATIENCE_S = 1800.0
"""How long hosts wait for each other: a node that is still pulling an image is no failure."""
_BEAT_S = 1.0
_POLL_S = 0.1
_SAY_AGAIN_S = 60.0
_PARTING_S = 3.0
_LONGEST_LINE = 4 << 20
_SEEN_WITHIN_S = 15.0
"""A network file system may show a new file to others only after some seconds."""


class Stopping(Protocol):
    """What ends a wait: ``supervise.Requests``."""

    stop: bool


class InterruptedWait(Exception):  # noqa: N818
    """Asked to stop while hosts were waiting for each other."""


class Link:
    """One connection to another host's supervisor."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.settimeout(None)
        self.name = name
        self.closed = False
        """The other end has hung up, or the connection broke."""
        self._connection = connection
        self._heard = time.monotonic()
        self._sending = threading.Lock()
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._over = threading.Event()
        for work in (self._read, self._beat):
            threading.Thread(target=work, name=f"host {name}", daemon=True).start()

    def send(self, kind: str, /, **facts: Any) -> None:
        """Say something; to one who is gone nothing can be said."""
        line = json.dumps({"kind": kind, **facts}).encode() + b"\n"
        try:
            with self._sending:
                self._connection.sendall(line)
        except OSError:
            self.closed = True

    def take(self) -> dict[str, Any] | None:
        """The next thing said; None when there is none yet."""
        try:
            return self._messages.get_nowait()
        except queue.Empty:
            return None

    @property
    def silent_s(self) -> float:
        """Seconds since the other end was last heard."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        """Hang up; what was sent still arrives."""
        self._over.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                while (line := lines.readline(_LONGEST_LINE)).endswith(b"\n"):
                    self._heard = time.monotonic()
                    message = json.loads(line)
                    if message["kind"] != "beat":
                        self._messages.put(message)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # a broken connection, or a stranger's
        self.closed = True

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S) and not self.closed:
            self.send("beat")


@dataclass
class Guest:
    """Another host, as the head knows it."""

    link: Link
    rank: int = -1
    """-1 until it has said who it is."""
    ready: bool = False
    code: int | None = None
    """How its launcher ended; None while it runs."""
    log: str = ""
    """Its training log, once it has ended."""

    @property
    def called(self) -> str:
        """As people are told of it."""
        return f"host {self.rank} ({self.link.name})" if self.rank > 0 else self.link.name


@dataclass
class Party:
    """The other hosts of a session; only the head has one."""

    meeting: Meeting
    silent_s: float
    guests: list[Guest] = field(default_factory=list)

    def begin(self, session: int) -> None:
        """Everything is written: have all of them launch."""
        for guest in self.guests:
            guest.link.send("go", session=session)

    def end(self, **outcome: Any) -> None:
        """Tell how it ended; with ``again`` they are to come back for the next session."""
        for guest in self.guests:
            guest.link.send("end", **outcome)
            guest.link.close()
        # To hang up first, with something of theirs unread, could cost them what was said.
        until = time.monotonic() + _PARTING_S
        while time.monotonic() < until and not all(g.link.closed for g in self.guests):
            time.sleep(_POLL_S)

    def asked(self) -> tuple[str, bool]:
        """Who of them asks for a stop, if one does; and whether it was killed."""
        why, killed = "", False
        for guest in self.guests:
            while message := guest.link.take():
                if message["kind"] == "stop":
                    why = why or f"{message.get('why')} on {guest.called}"
                elif message["kind"] == "kill":
                    killed, why = True, why or f"a second Ctrl+C on {guest.called}"
                elif message["kind"] == "ended":
                    guest.code = int(message.get("code", 1))
                    guest.log = str(message.get("log", ""))
        return why, killed

    def gone(self) -> str:
        """Who hung up without a word of how it ended: its supervisor died."""
        found = next((g for g in self.guests if g.link.closed and g.code is None), None)
        return f"{found.called} was lost: its supervisor ended without a word" if found else ""

    def silent(self) -> str:
        """Who has not been heard for too long: its machine or the network is down."""
        found = next((g for g in self.guests if not g.link.closed and g.code is None
                      and g.link.silent_s > self.silent_s), None)  # fmt: skip
        return f"{found.called} was lost: not a word for {self.silent_s:g} s" if found else ""

    def failed(self) -> Guest | None:
        """One whose training failed."""
        return next((g for g in self.guests if g.code not in (None, 0)), None)


class _Lobby:
    """Gathers the others: who has come, who is ready, what was told."""

    def __init__(self, party: Party, facts: dict[str, Any], welcome: dict[str, Any]) -> None:
        self.party, self.facts, self.welcome = party, facts, welcome
        self.strangers: list[Guest] = []

    def attend(self) -> str:
        """Hear what they say; why the session cannot be, if it cannot."""
        for guest in [*self.strangers, *self.party.guests]:
            while message := guest.link.take():
                problem = self._hear(guest, message)
                if problem:
                    return problem
        self.strangers = [g for g in self.strangers if not g.link.closed]
        # One that has gone silent frees its number for whoever takes its place.
        self.party.guests = [
            g for g in self.party.guests
            if not g.link.closed and g.link.silent_s <= self.party.silent_s
        ]  # fmt: skip
        return ""

    def _hear(self, guest: Guest, message: dict[str, Any]) -> str:
        if guest in self.strangers:  # who is none of us decides nothing
            return self._greet(guest, message) if message["kind"] == "hello" else ""
        if message["kind"] == "refuse":
            return str(message.get("why"))
        if message["kind"] == "ready":
            if message.get("digest") != self.welcome["digest"]:
                return f"{guest.called} has another sample: its corpus is not the head's"
            guest.ready = True
        return ""

    def _greet(self, guest: Guest, message: dict[str, Any]) -> str:
        guest.link.name = f"{message.get('host')}, {guest.link.name}"
        free = [r for r in range(1, self.party.meeting.nodes)
                if r not in {g.rank for g in self.party.guests}]  # fmt: skip
        wanted = message.get("rank")
        guest.rank = wanted if wanted is not None else next(iter(free), -1)
        if guest.rank not in free:
            nodes = self.party.meeting.nodes
            why = f"all {nodes} hosts are here" if wanted is None else f"there is a host {wanted}"
            guest.link.send("refuse", why=f"{why} already")
            guest.link.close()
            return ""
        found = differences(self.facts, message.get("facts") or {})
        if found:
            return f"{guest.called} has something else than the head: {shown(found)}"
        self.strangers.remove(guest)
        self.party.guests.append(guest)
        guest.link.send("welcome", rank=guest.rank, **self.welcome)
        return ""

    def whole(self) -> bool:
        """Whether all have come and are ready."""
        ready = sum(guest.ready for guest in self.party.guests)
        return ready == self.party.meeting.nodes - 1


def gather(
    meeting: Meeting,
    paths: runs.RunPaths,
    facts: dict[str, Any],
    digest: str,
    *,
    silent_s: float,
    requests: Stopping,
    tell: Tell,
    patience_s: float = PATIENCE_S,
) -> Party:
    """Wait until every other host has come, agrees and is ready; for the head.

    Args:
        meeting: where.
        paths: the run; a mark is left there by which the others know that it is shared.
        facts: what must be the same everywhere (``agreement``).
        digest: of the head's sample.
        silent_s: seconds without a word after which a host counts as lost.
        requests: a stop ends the waiting.
        tell: told whom it waits for.
        patience_s: how long.

    Raises:
        InterruptedWait: asked to stop.
        Refused: a host has something else than the head.
        LeviathanError: they did not come, or the address is not to be had.
    """
    nonce = secrets.token_hex(16)
    files.write_json(paths.hosts, {"nonce": nonce})
    party = Party(meeting, silent_s)
    lobby = _Lobby(party, facts, {"nonce": nonce, "digest": digest})
    end, said, here = time.monotonic() + patience_s, 0.0, -1
    with _listening(meeting) as door:
        while not lobby.whole():
            with suppress(TimeoutError):
                connection, address = door.accept()
                lobby.strangers.append(Guest(Link(connection, str(address[0]))))
            problem = lobby.attend()
            everybody = [g.link for g in (*party.guests, *lobby.strangers)]
            if problem:
                _dismiss(everybody, problem)
                raise Refused(problem, "give every host the same files, packages and command")
            if requests.stop:
                _dismiss(everybody, "the head was asked to stop, before training began", "end")
                raise InterruptedWait
            if time.monotonic() > end:
                came = f"{len(party.guests) + 1} of {meeting.nodes} hosts"
                text = f"{came} came within {_told(patience_s)}"
                _dismiss(everybody, text)
                raise LeviathanError(
                    text, f"run the same command on all, with --rdzv {meeting.place}"
                )
            if len(party.guests) != here or time.monotonic() - said > _SAY_AGAIN_S:
                here, said = len(party.guests), time.monotonic()
                missing = meeting.nodes - 1 - here
                if missing:
                    tell(f"waiting for {missing} of {meeting.nodes} hosts at {meeting.place}")
    return party


def _listening(meeting: Meeting) -> socket.socket:
    try:
        door = _own_door(meeting) or socket.create_server(("", meeting.port), backlog=meeting.nodes)
    except OSError as error:
        raise LeviathanError(
            f"cannot listen at {meeting.place}: {error.strerror}",
            "both this port and the next must be free on the head",
        ) from error
    door.settimeout(_POLL_S)
    return door


def _own_door(meeting: Meeting) -> socket.socket | None:
    """The door at the address itself; None where it is not ours, as a service's in front of us."""
    try:
        found = socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM)
    except socket.gaierror:  # a name that is not known yet
        return None
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=meeting.nodes)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return None


def _dismiss(links: list[Link], why: str, kind: str = "refuse") -> None:
    for link in links:
        link.send(kind, why=why)
        link.close()


def _told(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


@dataclass
class Seat:
    """This host's place at the meeting; every host but the head has one."""

    link: Link
    rank: int
    digest: str
    """Of the head's sample."""

    def lost(self, silent_s: float) -> str:
        """Why the head is gone, if it is."""
        if self.link.closed:
            return f"the head ({self.link.name}) was lost: its supervisor ended without a word"
        if self.link.silent_s > silent_s:
            return f"the head ({self.link.name}) was lost: not a word for {silent_s:g} s"
        return ""


def join(
    meeting: Meeting,
    paths: runs.RunPaths,
    facts: dict[str, Any],
    *,
    requests: Stopping,
    tell: Tell,
    patience_s: float = PATIENCE_S,
    seen_within_s: float = _SEEN_WITHIN_S,
) -> Seat:
    """Come to the head and be welcomed; it is told ``ready`` by the caller.

    Raises:
        InterruptedWait: asked to stop.
        Refused: the head refuses this host, or its run directory is not the head's.
        LeviathanError: there is no head.
    """
    link = _connected(meeting, requests, tell, patience_s)
    link.send("hello", rank=meeting.rank, host=socket.gethostname(), facts=facts)
    welcome = answer(link, "welcome", requests)
    end = time.monotonic() + seen_within_s
    while _nonce(paths.hosts) != welcome.get("nonce"):
        if time.monotonic() > end:
            why = (f"{paths.directory} of host {welcome['rank']} ({socket.gethostname()}) is not "
                   "the head's: all hosts must share the run directory")  # fmt: skip
            link.send("refuse", why=why)
            link.close()
            raise Refused(why, "put work/ on a file system that all of them mount (NFS, a "
                          "ReadWriteMany volume) at the same path")  # fmt: skip
        time.sleep(_POLL_S)
    return Seat(link, int(welcome["rank"]), str(welcome["digest"]))


def _connected(meeting: Meeting, requests: Stopping, tell: Tell, patience_s: float) -> Link:
    end, said = time.monotonic() + patience_s, 0.0
    while True:
        try:
            connection = socket.create_connection((meeting.host, meeting.port), timeout=5.0)
            return Link(connection, meeting.place)
        except OSError as error:  # not there yet, its name neither
            why = error.strerror or str(error)
        if requests.stop:
            raise InterruptedWait
        if time.monotonic() > end:
            raise LeviathanError(
                f"no head answered at {meeting.place} within {_told(patience_s)} ({why})",
                "start the same command there; the port must be open",
            )
        if not said or time.monotonic() - said > _SAY_AGAIN_S:
            said = time.monotonic()
            tell(f"waiting for the head at {meeting.place}")
        time.sleep(min(1.0, patience_s / 10))


def answer(link: Link, kind: str, requests: Stopping) -> dict[str, Any]:
    """The next message, which is to be of this kind.

    Raises:
        InterruptedWait: asked to stop, here or on the head.
        Refused: the head refuses.
        LeviathanError: it is gone.
    """
    while True:
        over = link.closed  # before taking: what was said until then counts
        message = link.take()
        if message and message["kind"] == kind:
            return message
        if message and message["kind"] == "refuse":
            raise Refused(f"{message.get('why')}", "")
        if message and message["kind"] == "end" and message.get("outcome") == "failed":
            raise LeviathanError(f"the head ({link.name}) failed: {message.get('reason')}")
        if message and message["kind"] == "end":
            raise InterruptedWait(str(message.get("why")))
        if over:
            raise LeviathanError(f"the head ({link.name}) ended before training began", "")
        if requests.stop:
            link.send("bye")
            link.close()
            raise InterruptedWait
        time.sleep(_POLL_S)


def _nonce(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())["nonce"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
