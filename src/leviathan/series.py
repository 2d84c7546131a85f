"""Owns a run's figures over its steps: log lines as curves, without what later sessions undid.

Reads files only. Does not judge what the curves show (``verdicts``) nor draw them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from leviathan import files, runs, tidings

NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tok_s", "step_s", "data_s",
         "memory_gib", "reward", "reward_std", "answer_tokens", "eval_reward")  # fmt: skip
"""Curves that a run can have. ``tok_s``: computed tokens (padding included) a second over all
processes, ``step_s`` seconds a step, both without evaluations, saves and waiting; ``data_s``
seconds a step waited for its rows; ``memory_gib`` torch's peak of allocated memory on rank 0's
GPU. Of a training by rewards: ``reward`` is the mean of all answers of a log line, ``reward_std``
what the answers to one question differ by, ``answer_tokens`` their mean length."""
_OF_TRAINING = ("loss", "learning_rate", "grad_norm", "data_s", "reward", "reward_std",
                "answer_tokens")  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One figure by step; each step once, in order, finite values only."""

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    session: NDArray[np.int64]
    time_s: NDArray[np.float64]
    """The wall clock, in seconds of the epoch."""

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.step)

    def taken(self, chosen: Any) -> "Curve":
        """The points that an index, a mask or a slice chooses."""
        return Curve(
            self.step[chosen], self.value[chosen], self.session[chosen], self.time_s[chosen]
        )

    def of(self, session: int) -> "Curve":
        """What one session told."""
        return self.taken(self.session == session)

    def thinned(self, columns: int) -> "Curve":
        """At most four points for each of ``columns`` pixel columns: nothing visible is lost.

        First, last, lowest and highest of the points that fall on one column of pixels draw
        the same line as all of them (Jugel et al. 2014, M4: A Visualization-Oriented Time
        Series Data Aggregation, VLDB 7(10)). Sessions begin columns of their own.
        """
        if len(self) <= 4 * columns:
            return self
        span = max(int(self.step[-1] - self.step[0]), 1)
        column = (self.step - self.step[0]) * columns // (span + 1)
        new = (np.diff(column) != 0) | (np.diff(self.session) != 0)
        edges = [0, *(np.flatnonzero(new) + 1).tolist(), len(self)]
        kept: set[int] = set()
        for begin, end in pairwise(edges):
            part = self.value[begin:end]
            kept |= {begin, end - 1, begin + int(part.argmin()), begin + int(part.argmax())}
        return self.taken(np.array(sorted(kept), dtype=np.int64))


@dataclass(frozen=True)
class Part:
    """What one session contributed."""

    session: int
    begin: int
    """The step it began from."""
    end: int
    """Its last step that counts: what a later session went back behind is not among them."""
    undone: int
    """Steps it trained that a later session trained again, or nobody has yet."""
    began_s: float
    ended_s: float
    """Wall clock of its first and last log line."""


@dataclass(frozen=True)
class Series:
    """All curves of a run."""

    curves: dict[str, Curve]
    parts: tuple[Part, ...]
    lines: int
    """Log lines that could be read."""
    unread: int
    """Lines that could not: of a writer that was killed, or damage."""

    def __getitem__(self, name: str) -> Curve:
        """A curve; empty where the run has not told it."""
        return self.curves.get(name, _EMPTY)


_MOST = 2**53
"""Steps beyond what floats count exactly are a damaged file's."""


class _Line(msgspec.Struct, gc=False):
    """What is used of a log line. Whatever else it has, now or in versions to come, is not."""

    step: Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]
    session: Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]
    time: Any = None
    monotonic_s: Any = None
    loss: Any = None
    eval_loss: Any = None
    eval_s: Any = None
    learning_rate: Any = None
    grad_norm: Any = None
    data_s: Any = None
    tokens: Any = msgspec.field(default=None, name="tokens/total")
    answered: Any = msgspec.field(default=None, name="num_tokens")
    memory: Any = msgspec.field(default=None, name="memory/max_allocated (GiB)")
    reward: Any = None
    reward_std: Any = None
    answer_tokens: Any = msgspec.field(default=None, name="completions/mean_length")
    eval_reward: Any = None


class _Evaluation(msgspec.Struct, gc=False):
    step: Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]
    session: Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]
    time: Any = None
    eval_loss: Any = None
    eval_reward: Any = None


_WHOLE = {"step", "session"}


def read(paths: runs.RunPaths) -> Series:
    """All that a run logged, half-written and damaged lines passed over."""
    return _series(files.line_blocks(paths.metrics), runs.events(paths))


def recent(told: tidings.Tidings) -> Series:
    """The curves of the newest log lines, and all evaluations, in a moment."""
    lines = [msgspec.json.encode(line) for line in told.metrics]
    found = _series([lines], told.events)
    for name in ("eval_loss", "eval_reward"):
        evaluations = _evaluations(told.evaluations, runs.beginnings(told.events), name)
        if len(evaluations) > len(found[name]):
            found.curves[name] = evaluations
    return found


def _evaluations(lines: Iterable[bytes], began: dict[int, int], name: str) -> Curve:
    """All evaluations that count, by the events that tell of them."""
    decode = msgspec.json.Decoder(_Evaluation).decode
    told: list[_Evaluation] = []
    for line in lines:
        try:
            told.append(decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    step, session = (np.array([getattr(e, n) for e in told], np.int64) for n in ("step", "session"))
    value, time_s = (_floats([getattr(e, n) for e in told]) for n in (name, "time"))
    kept = _kept(step, session, began)
    table = {"step": step[kept], "session": session[kept], "time": time_s[kept]}
    return _curve(table, value[kept])


def _series(blocks: Iterable[list[bytes]], events: list[dict[str, Any]]) -> Series:
    table, lines, unread = _table(blocks)
    began = runs.beginnings(events)
    kept = _kept(table["step"], table["session"], began)
    parts = tuple(_parts(table, kept, began))
    table = {name: column[kept] for name, column in table.items()}
    untold = np.isnan(table["tokens"])  # TRL counts its own: questions and answers
    table["tokens"] = np.where(untold, table.pop("answered"), table["tokens"])
    training = ~np.isnan(table["loss"])
    trained = {name: column[training] for name, column in table.items()}
    step_s, tok_s = _paces(trained, _between(table, training, events))
    memory = trained["memory"]
    values = {
        **{name: trained[name] for name in _OF_TRAINING},
        "step_s": step_s,
        "tok_s": tok_s,
        "memory_gib": np.where(memory > 0, memory, np.nan),  # 0 is a machine without a GPU
    }
    curves = {name: _curve(trained, value) for name, value in values.items()}
    for name in ("eval_loss", "eval_reward"):
        curves[name] = _curve(table, table[name])
    return Series({n: c for n, c in curves.items() if len(c)}, parts, lines, unread)


_NO_INTS, _NO_FLOATS = np.zeros(0, np.int64), np.zeros(0)
_EMPTY = Curve(_NO_INTS, _NO_FLOATS, _NO_INTS, _NO_FLOATS)


class _Columns:
    """Columns in pieces, so that a million lines are never a million objects."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in _Line.__struct_fields__}

    def add(self, lines: list[_Line]) -> None:
        """Take a block of lines."""
        each = zip(*map(msgspec.structs.astuple, lines), strict=True)
        for (name, pieces), told in zip(self._pieces.items(), each, strict=False):
            whole = name in _WHOLE
            pieces.append(np.array(told, np.int64) if whole else _floats(told))

    def joined(self) -> dict[str, NDArray[Any]]:
        """All blocks together."""
        return {
            name: np.concatenate(pieces) if pieces else _NO_INTS if name in _WHOLE else _NO_FLOATS
            for name, pieces in self._pieces.items()
        }


def _table(blocks: Iterable[list[bytes]]) -> tuple[dict[str, NDArray[Any]], int, int]:
    columns, count, unread = _Columns(), 0, 0
    for found, bad in _decoded(blocks):
        columns.add(found)
        count, unread = count + len(found), unread + bad
    return columns.joined(), count, unread


def _decoded(blocks: Iterable[list[bytes]]) -> Iterator[tuple[list[_Line], int]]:
    decode = msgspec.json.Decoder(_Line).decode
    for raw in blocks:
        found, bad = [], 0
        for line in raw:
            try:
                found.append(decode(line))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                bad += bool(line.strip())
        yield found, bad


def _floats(values: Sequence[Any]) -> NDArray[np.float64]:
    """The numbers among values that others may have damaged, NaN for the others."""
    if set(map(type, values)) <= _PLAIN:
        with suppress(OverflowError):  # a whole number of 400 digits
            return np.array(values, np.float64)  # None becomes NaN
    return np.array([_number(value) for value in values])


_PLAIN = {float, int, type(None)}


def _number(value: Any) -> float:
    found = files.number(value)
    return math.nan if found is None else found


def _kept(
    step: NDArray[np.int64], session: NDArray[np.int64], began: dict[int, int]
) -> NDArray[np.bool_]:
    """Which lines count: see ``runs.metrics``."""
    kept = np.ones(len(step), bool)
    for start in _starts(session):
        if start:
            last = began.get(int(session[start]), int(step[start]) - 1)
            kept[:start] &= step[:start] <= last
    return kept


def _starts(session: NDArray[np.int64]) -> list[int]:
    return [0, *(np.flatnonzero(np.diff(session)) + 1).tolist()] if len(session) else []


def _parts(
    table: dict[str, NDArray[Any]], kept: NDArray[np.bool_], began: dict[int, int]
) -> Iterator[Part]:
    step, time_s = table["step"], table["time"]
    starts = _starts(table["session"])
    for start, end in pairwise([*starts, len(step)]):
        number = int(table["session"][start])
        begin = began.get(number, max(int(step[start]) - 1, 0))
        mine = step[start:end]
        counted = mine[kept[start:end]]
        last = int(counted.max()) if len(counted) else begin
        undone = max(int(mine.max()) - last, 0)
        yield Part(number, begin, last, undone, float(time_s[start]), float(time_s[end - 1]))


def _curve(table: dict[str, NDArray[Any]], value: NDArray[np.float64]) -> Curve:
    """The values that are figures (``files.number``); of a step told twice the later."""
    told = np.abs(value) <= files.LARGEST
    step = table["step"][told]
    last = np.append(np.diff(step) != 0, True) if len(step) else np.zeros(0, bool)
    columns = (table["step"], value, table["session"], table["time"])
    return Curve(*(column[told][last] for column in columns))


def _between(
    table: dict[str, NDArray[Any]], training: NDArray[np.bool_], events: list[dict[str, Any]]
) -> NDArray[np.float64]:
    """For each training line, the seconds since the one before that were no training."""
    steps, sessions = table["step"], table["session"]
    spent: dict[tuple[int, int], float] = {}
    for row in np.flatnonzero(np.isfinite(table["eval_s"])):
        key = (int(sessions[row]), int(steps[row]))
        spent[key] = spent.get(key, 0.0) + float(table["eval_s"][row])
    for line in events:
        session, step = line.get("session"), line.get("step")
        if not (runs.is_whole(session) and runs.is_whole(step)):
            continue
        seconds = (_number(line.get("save_s")), _number(line.get("wait_s")))
        # Waiting is at the end of a step, before its log line (``eta``).
        for place, took in ((step, seconds[0]), (step - 1, seconds[1])):
            if took > 0:
                spent[session, place] = spent.get((session, place), 0.0) + took
    lost = np.zeros(int(training.sum()))
    if spent:
        _spread(lost, sessions[training], steps[training], spent)
    return lost


def _spread(
    lost: NDArray[np.float64],
    sessions: NDArray[np.int64],
    steps: NDArray[np.int64],
    spent: dict[tuple[int, int], float],
) -> None:
    """Put what was spent after a step to the next training line of that session."""
    for start, end in pairwise([*_starts(sessions), len(steps)]):
        number = int(sessions[start])
        mine = [(step, took) for (session, step), took in spent.items() if session == number]
        rows = start + np.searchsorted(
            steps[start:end], np.array([step for step, _ in mine], np.int64), side="right"
        )
        for row, (_, took) in zip(rows, mine, strict=True):
            if start < row < end:
                lost[row] += took


def _paces(
    trained: dict[str, NDArray[Any]], lost_s: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds a step and tokens a second of each training line, from the one before it."""
    count = len(lost_s)
    step_s, tok_s = np.full(count, np.nan), np.full(count, np.nan)
    if count < 2:
        return step_s, tok_s
    clock = np.where(np.isnan(trained["monotonic_s"]), trained["time"], trained["monotonic_s"])
    seconds = np.diff(clock) - lost_s[1:]
    steps, tokens = np.diff(trained["step"]), np.diff(trained["tokens"])
    usable = (np.diff(trained["session"]) == 0) & (steps > 0) & (seconds > 0)
    step_s[1:][usable] = seconds[usable] / steps[usable]
    counted = usable & (tokens > 0)
    tok_s[1:][counted] = tokens[counted] / seconds[counted]
    return step_s, tok_s
