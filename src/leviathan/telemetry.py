"""Owns gpu.jsonl: what the machine does while a run trains, sampled by its supervisor.

Does not judge it: ``watchdog`` acts on heat, ``verdicts`` tells what slowed a run down.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import msgspec

from leviathan import files, machine, runs

EVERY_S = 10.0
"""Between two samples: 11 days are 95,000 lines of some 300 bytes."""

_Look = Callable[[], tuple[machine.GpuState, ...]]


@dataclass(frozen=True)
class Sample:
    """One moment."""

    time_s: float
    """Wall clock."""
    session: int
    gpus: tuple[machine.GpuState, ...]
    """Those that the run uses."""
    resident_gib: float | None
    """Memory of the launcher and all its processes; None once they are gone."""
    free_disk_gib: float | None

    @property
    def hottest_c(self) -> float | None:
        return max(
            (g.temperature_c for g in self.gpus if g.temperature_c is not None), default=None
        )

    @property
    def used_gib(self) -> float | None:
        """Of the fullest GPU."""
        return max((g.used_gib for g in self.gpus if g.used_gib is not None), default=None)

    @property
    def busy_pct(self) -> float | None:
        """Of the idlest GPU: the others wait for it."""
        return min((g.busy_pct for g in self.gpus if g.busy_pct is not None), default=None)

    @property
    def power_w(self) -> float | None:
        """Of all GPUs together."""
        told = [g.power_w for g in self.gpus if g.power_w is not None]
        return sum(told) if told else None

    @property
    def throttle(self) -> tuple[str, ...]:
        """Why some GPU's clocks are lowered, each reason once."""
        return tuple(dict.fromkeys(reason for g in self.gpus for reason in g.throttle))


class Recorder:
    """Samples in a thread of its own while a session runs: a driver that hangs holds up nobody."""

    def __init__(
        self, paths: runs.RunPaths, session: int, pid: int, look: _Look = machine.gpu_states
    ) -> None:
        self.paths, self.session, self.pid, self._look = paths, session, pid, look
        self._shown = _shown_gpus()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._record, name="telemetry", daemon=True)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(1.0)  # it may hang in the driver; it is a daemon then

    def _record(self) -> None:
        while True:
            with suppress(OSError):  # a full disk, a directory that is gone: training goes on
                files.append_json(self.paths.telemetry, self._line())
            if self._over.wait(EVERY_S):
                return

    def _line(self) -> dict[str, Any]:
        resident = machine.resident_bytes(self.pid)
        gpus = [g for g in self._look() if self._shown is None or g.index in self._shown]
        return {
            "time": time.time(),
            "monotonic_s": round(time.monotonic(), 3),
            "session": self.session,
            "gpus": [_rounded(asdict(gpu)) for gpu in gpus],
            "resident_gib": round(resident / 2**30, 3) if resident else None,
            "free_disk_gib": round(machine.free_gib(self.paths.directory), 3),
        }


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {n: round(v, 3) if isinstance(v, float) else v for n, v in facts.items()}


def _shown_gpus() -> set[int] | None:
    """Those that CUDA shows us, by nvidia-smi's numbers; None is all, or named by UUID."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    parts = shown.split(",") if shown else []
    return {int(p) for p in parts} if parts and all(p.strip().isdecimal() for p in parts) else None


def recent(paths: runs.RunPaths) -> list[Sample]:
    """The newest samples, some hours of them, without reading the others."""
    lines, _ = files.last_lines(paths.telemetry, 1 << 18)
    return [sample for line in lines if (sample := _sample(line))]


def last(paths: runs.RunPaths) -> Sample | None:
    """The newest sample that is whole."""
    lines, _ = files.last_lines(paths.telemetry, 1 << 14)
    return next((sample for line in reversed(lines) if (sample := _sample(line))), None)


_LEAST_S, _LEAST_SHARE = 1800.0, 0.01


def disk_full_in_s(samples: Sequence[Sample]) -> float | None:
    """Seconds until the disk is full if it goes on filling as it did; None if it does not.

    By the medians of the first and the last tenth of the samples, at least half an hour
    apart: saves come and go meanwhile. Less than 1 % of the free space is no trend.
    """
    told = [(s.time_s, s.free_disk_gib) for s in samples if s.free_disk_gib is not None]
    tenth = len(told) // 10
    if not tenth:
        return None
    (since, before), (until, after) = (
        (median(t for t, _ in part), median(f for _, f in part))
        for part in (told[:tenth], told[-tenth:])
    )
    if until - since < _LEAST_S or before - after < _LEAST_SHARE * before:
        return None
    return after * (until - since) / (before - after)


def read(paths: runs.RunPaths) -> list[Sample]:
    """Every sample, in the order taken; damaged ones are passed over."""
    blocks = files.line_blocks(paths.telemetry)
    return [sample for block in blocks for line in block if (sample := _sample(line))]


class _Line(msgspec.Struct, gc=False):
    """A line as it is written; one of another shape is read piece by piece."""

    time: float
    session: int
    gpus: tuple[machine.GpuState, ...]
    resident_gib: float | None = None
    free_disk_gib: float | None = None


_decode = msgspec.json.Decoder(_Line).decode


def _sample(line: bytes) -> Sample | None:
    try:
        told = _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _piecemeal(line)
    return Sample(told.time, told.session, told.gpus, told.resident_gib, told.free_disk_gib)


def _piecemeal(raw: bytes) -> Sample | None:
    line = next(iter(files.objects([raw])), {})
    moment, session, gpus = files.number(line.get("time")), line.get("session"), line.get("gpus")
    if moment is None or not runs.is_whole(session) or not isinstance(gpus, list):
        return None
    states = tuple(_state(gpu) for gpu in gpus if isinstance(gpu, dict))
    resident, free = (files.number(line.get(n)) for n in ("resident_gib", "free_disk_gib"))
    return Sample(moment, session, states, resident, free)


_FIGURES = ("used_gib", "total_gib", "busy_pct", "temperature_c", "power_w", "power_limit_w",
            "sm_mhz")  # fmt: skip


def _state(facts: dict[str, Any]) -> machine.GpuState:
    index, reasons = facts.get("index"), facts.get("throttle")
    figures = {name: files.number(facts.get(name)) for name in _FIGURES}
    return machine.GpuState(
        index=index if runs.is_whole(index) else -1,
        throttle=tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else (),
        **figures,
    )
