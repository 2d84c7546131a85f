"""Owns the view that `train` shows of its training: a live block, or lines where no one watches.

What the block looks like is ``ui_heart`` and ``ui_panes``; the full screen is ``ui_watch``.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from leviathan import pulse as pulses
from leviathan import runs, telemetry, ui
from leviathan.errors import LeviathanError
from leviathan.pulse import Pulse
from leviathan.ui_heart import heart, palette
from leviathan.ui_panes import PLOTS, plot

_WARNINGS = {"warning", "guard", "pause", "unpause", "kill"}
_WIDEST = 100
_CURVE_ROWS = 7
_ROOM_FOR_CURVE = 18
"""Lines a terminal must have for the curve in the block of `train`."""
_REDRAW_S = 1.0
_RESAMPLE_S = 10.0


class TrainView:
    """The view of a running training: one live block on a terminal, plain lines elsewhere."""

    def __init__(
        self, name: str, foot: str = "Ctrl+C saves and stops", pulse: Pulse | None = None
    ) -> None:
        self.name = name
        self.pulse = pulse or Pulse(name)
        self._foot = foot
        self._paths: runs.RunPaths | None = None
        self._opened_s = time.monotonic()
        self._live = _Block(self._drawn) if ui.is_terminal() else None
        self._sampled_s = 0.0
        self._gone = False

    def __enter__(self) -> "TrainView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._guard(self._live.stop)

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """Take one message of the launch; never fails, whatever became of the terminal."""
        self._guard(lambda: self._take(kind, facts))

    def _guard(self, action: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            action()
        except OSError:  # the terminal went away (SSH, tmux); training has not
            self._gone = True

    def _take(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in {"start", "resume"} and "run" in facts:
            self._open(runs.RunPaths(Path(facts["run"])))
        self.pulse.take(kind, facts)
        event = facts.get("event")
        if kind == "notice":
            ui.notice(facts["text"])
        elif kind in {"start", "resume"}:
            ui.notice(f"{self.name}: {_beginning(kind, facts)}")
        elif event == "save":
            self._plain(f"saved checkpoint-{facts['step']}")
        elif kind == "metrics":
            self._tell_metrics(facts)
        elif kind == "warning" or (kind == "event" and event in _WARNINGS):
            ui.warn(facts.get("text", ""))
        if self._live:
            self._resample()
            self._live.update()

    def _open(self, paths: runs.RunPaths) -> None:
        """Begin anew with what the run has told so far, be it another, smaller one."""
        self._paths = paths
        try:
            self.pulse = pulses.of(paths)
        except (OSError, LeviathanError):  # a full disk may have refused its record
            self.pulse = Pulse(self.name)

    def _resample(self) -> None:
        if self._paths and time.monotonic() - self._sampled_s >= _RESAMPLE_S:
            self._sampled_s = time.monotonic()
            self.pulse.take("sample", {"sample": telemetry.last(self._paths)})

    def _tell_metrics(self, line: dict[str, Any]) -> None:
        if "eval_loss" in line:
            name = "eval_reward" if "eval_reward" in line else "eval_loss"
            number = self.pulse.figure(name)
            shown = "-" if number is None else f"{number:.4g}"
            self._plain(f"step {line['step']}: {name.replace('_', ' ')} {shown}")
        elif "loss" in line:
            self._plain(summary(self.pulse))

    def _plain(self, text: str) -> None:
        if not self._live:
            ui.notice(text)

    def _drawn(self, width: int, height: int) -> Text:
        width, colours = min(width - 1, _WIDEST), palette()
        elapsed_s = pulses.elapsed_s(self.pulse) or time.monotonic() - self._opened_s
        text = heart(self.pulse, colours, width, elapsed_s, self.name)
        if height >= _ROOM_FOR_CURVE and self.pulse.curves["loss"]:
            text.append("\n").append_text(plot(self.pulse, PLOTS[0], colours, width, _CURVE_ROWS))
        return text.append(f"\n{self._foot}", colours.faint)


class _Block:
    """A live block that is drawn once a second at most, and only from our own thread."""

    def __init__(self, draw: Callable[[int, int], Text]) -> None:
        self._draw = draw
        self._console: Console = ui.stderr_console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._drawn_s = 0.0

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        """With what came since it was drawn last."""
        self._redraw()
        self._live.stop()

    def update(self) -> None:
        if time.monotonic() - self._drawn_s >= _REDRAW_S:
            self._redraw()

    def _redraw(self) -> None:
        self._drawn_s = time.monotonic()
        size = self._console.size
        self._live.update(self._draw(size.width, size.height), refresh=True)


def summary(pulse: Pulse) -> str:
    """One line for where there is no terminal."""
    parts = [f"step {pulse.step}/{pulse.max_steps or '?'}"]
    # Trained by rewards, the loss hovers around 0 whatever is learned.
    watched = "loss" if pulse.figure("reward") is None else "reward"
    for label, value in (
        (watched, pulse.figure(watched)),
        ("lr", pulse.figure("learning_rate")),
        ("tok/s", pulse.tok_s),
    ):
        if value is not None:
            parts.append(f"{label} {value:.4g}")
    left = pulse.eta()
    parts.append(f"eta {'?' if left.mid_s is None else ui.duration(left.mid_s)}")
    return "  ".join(parts)


def _beginning(kind: str, facts: dict[str, Any]) -> str:
    if kind == "resume":
        return f"session {facts['session']}, resuming from checkpoint-{facts['step']}"
    return f"session {facts['session']}, starting from the base model"
