"""Owns the full-screen view of a run: panes, keys, and when what is drawn again.

Draws with ``ui_heart`` and ``ui_panes`` what ``pulse`` knows. Imported by the watch command
inside its function only: textual takes a while. Whatever waits for a disk does so in threads
that die with us.
"""

import os
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.events import Resize
from textual.widgets import Static

from leviathan import pulse as pulses
from leviathan import runs, saving, status, stopping, ui_heart, ui_panes
from leviathan import watch as watching
from leviathan.errors import LeviathanError
from leviathan.pulse import Pulse

_POLL_S = 1.0
_CURVES_EVERY_S = 2.0
_JUDGED_EVERY_S = 60.0
"""Whether it has stalled takes a look at all of the run (``status``)."""
_MESSAGE_S = 20.0
_LOG_LINES = 200
_WIDE, _TALL = 110, 34
"""From this size on all panes are shown side by side."""
_LISTS_FROM = 16
"""Lines from which on there is room for more than the heart and a curve."""
LISTS = ("events", "checkpoints", "gpus", "log")
HELP = """\
q        leave; the run goes on
s        save a checkpoint and stop the run
w        save a checkpoint, the run goes on
o        make the report and open it
l e r t  loss, eval loss, learning rate, tokens/s
v        next list: events, checkpoints, GPUs, log
d        colours for a dark or a light terminal
any key closes this help
"""


class Pane(Static):
    """Text under a title, cut to the size it has; redrawn only when it changed."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name, markup=False)
        self.on_size: Callable[[], None] = lambda: None
        self._shown: Text | None = None
        self._from: object = None

    def is_new(self, *source: object) -> bool:
        """Whether what would be drawn comes from something else than last time."""
        changed, self._from = source != self._from, source
        return changed

    def on_resize(self) -> None:
        """What is there was drawn for another size."""
        self.on_size()

    def show(self, text: Text) -> None:
        """Draw, unless this is what is there."""
        if self._shown is None or text != self._shown:
            self._shown = text
            self.update(text, layout=False)


class WatchApp(App[None]):
    """The view of one run, from another process; leaving it leaves the run alone."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; overflow: hidden hidden; }
    Pane { width: 1fr; height: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #heart { height: auto; min-height: 4; }
    #curves { layout: grid; grid-size: 1; height: 5fr; }
    #lists { layout: grid; grid-size: 1; height: 4fr; }
    .wide #curves { grid-size: 2; grid-gutter: 1 2; margin-top: 1; }
    .all-lists #lists { grid-size: 2; grid-gutter: 1 2; margin-top: 1; }
    #message { height: auto; max-height: 9; display: none; text-wrap: wrap; text-overflow: fold; }
    #keys { height: 1; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding(keys, action, priority=True)
        for keys, action in (
            ("q,ctrl+c,ctrl+q", "leave"), ("s", "stop"), ("w", "save"), ("o", "report"),
            ("d", "colours"), ("v,tab", "list"), ("question_mark", "help"),
            *((plot.key, f"curve({place})") for place, plot in enumerate(ui_panes.PLOTS)),
        )
    ]  # fmt: skip

    def __init__(self, paths: runs.RunPaths, pulse: Pulse, *, poll_s: float = _POLL_S) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, on its own background
        self.paths, self.pulse = paths, pulse
        self.theme = "ansi-dark"
        self._colours = ui_heart.palette()
        self._poll_s = poll_s
        self._log_tail = watching.LogTail(paths, _LOG_LINES)
        self._lock = threading.Lock()
        """Between the thread that reads files and the one that draws."""
        names = ["heart", *map(_plot_id, ui_panes.PLOTS), *LISTS, "message", "keys"]
        self._panes = {name: Pane(name) for name in names}
        self._wide = False
        self._plot, self._list = 0, 0
        self._asking: tuple[str, Callable[[], None]] | None = None
        self._message, self._message_until = "", 0.0
        self._curves_s = 0.0
        self._helping = False
        self._over = False

    def compose(self) -> ComposeResult:
        """Every pane there can be; which are shown depends on the size."""
        panes = self._panes
        yield panes["heart"]
        yield Container(*(panes[_plot_id(plot)] for plot in ui_panes.PLOTS), id="curves")
        yield Container(*(panes[name] for name in LISTS), id="lists")
        yield panes["message"]
        yield panes["keys"]

    def on_mount(self) -> None:
        """Begin to look and to draw."""
        for plot in ui_panes.PLOTS:
            self._panes[_plot_id(plot)].on_size = self._redraw
        threading.Thread(target=self._look, name="watch", daemon=True).start()
        self.set_interval(self._poll_s, self._tick)

    # --- reading, in a thread of its own ------------------------------------------

    def _look(self) -> None:
        """Follow the run; a file system that hangs holds up this thread alone."""
        follower = watching.Follower(self.paths)
        judged_s = time.monotonic()
        while not self._over:
            try:
                over = follower.poll(self._take)
                self._log_tail.poll()
                if over or time.monotonic() - judged_s >= _JUDGED_EVERY_S:
                    judged_s = time.monotonic()
                    found = status.summarize(self.paths)
                    if over or found.state == "stalled":
                        self._take("state", {"state": found.state, "why": found.why})
                    self._over = over
            except (OSError, LeviathanError) as error:  # gone for a moment, or for good
                self._say(str(error))
            time.sleep(self._poll_s)

    def _take(self, kind: str, facts: dict[str, Any]) -> None:
        with self._lock:
            self.pulse.take(kind, facts)

    # --- drawing --------------------------------------------------------------------

    def on_resize(self, event: Resize) -> None:
        """Other panes may fit."""
        wide = event.size.width >= _WIDE and event.size.height >= _TALL
        if wide != self._wide:
            self._wide = wide
            self._list = -1 if wide else max(self._list, 0)
        self.screen.set_class(self._wide, "wide")
        self.query_one("#lists").display = event.size.height >= _LISTS_FROM
        self._arrange()

    def _arrange(self) -> None:
        """Show the panes that are wanted, and draw them once they have their size."""
        wide = self._wide
        for place, plot in enumerate(ui_panes.PLOTS):
            self._panes[_plot_id(plot)].display = wide or place == self._plot
        for place, name in enumerate(LISTS):
            self._panes[name].display = place == self._list or (wide and self._list < 0)
        self.screen.set_class(wide and self._list < 0, "all-lists")
        self._redraw()

    def _redraw(self) -> None:
        """Everything, once all panes have their new size."""
        self._curves_s = 0.0
        self.call_after_refresh(self._tick)

    def _tick(self) -> None:
        with self._lock:
            self._draw_heart()
            self._draw_lists()
            if time.monotonic() - self._curves_s >= _CURVES_EVERY_S:
                self._draw_curves()
        self._draw_message()

    def _draw_heart(self) -> None:
        pane = self._panes["heart"]
        elapsed_s = pulses.elapsed_s(self.pulse)
        if self._over:
            elapsed_s = self.pulse.heard_s
        text = ui_heart.heart(self.pulse, self._colours, pane.content_size.width, elapsed_s)
        height = text.plain.count("\n") + 1
        if pane.styles.height is None or pane.styles.height.value != height:
            pane.styles.height = height
            self._redraw()
        pane.show(text)

    def _draw_curves(self) -> None:
        self._curves_s = time.monotonic()
        for plot in ui_panes.PLOTS:
            pane = self._panes[_plot_id(plot)]
            size = pane.content_size
            if pane.display and size.height and pane.is_new(size, self._colours, self._of(plot)):
                pane.show(ui_panes.plot(self.pulse, plot, self._colours, *size))

    def _of(self, plot: ui_panes.Plot) -> list[Any]:
        """What a plot is drawn from, as far as it takes to see that it has changed."""
        curves = [self.pulse.curves.get(name) for name in plot.curves]
        return [*(curve[-1] for curve in curves if curve), len(self.pulse.resumes)]

    def _draw_lists(self) -> None:
        drawing: dict[str, Callable[[int, int], Text]] = {
            "events": lambda w, h: ui_panes.events(self.pulse, self._colours, w, h),
            "checkpoints": lambda w, h: ui_panes.saved(self.pulse, self._colours, w, h),
            "gpus": lambda w, h: ui_panes.gpus(self.pulse, self._colours, w, h),
            "log": lambda w, h: ui_panes.log(self._log_tail.lines, self._colours, w, h),
        }
        for name, draw in drawing.items():
            pane = self._panes[name]
            if pane.display and pane.content_size.height:
                pane.show(draw(*pane.content_size))

    def _draw_message(self) -> None:
        if time.monotonic() > self._message_until and not self._asking:
            self._message = ""
        text = Text(self._message, self._colours.warn if self._asking else self._colours.title)
        if self._helping:
            text = Text(HELP.rstrip())
        pane = self._panes["message"]
        if pane.display != bool(text):
            pane.display = bool(text)
            self._arrange()
        pane.show(text)
        self._panes["keys"].show(self._keys())

    def _keys(self) -> Text:
        keys = [("q", "leave"), ("s", "stop"), ("w", "save"), ("o", "report"),
                ("l e r t", "curves"), ("v", "list"), ("?", "help")]  # fmt: skip
        if self._over:
            keys = [key for key in keys if key[0] not in "sw"]
        if self._wide:
            keys = [key for key in keys if key[1] != "curves"]
        room = self.size.width - 2
        while len(keys) > 2 and sum(len(f"{key} {what}   ") for key, what in keys) > room + 3:
            del keys[-2]  # the help has them all
        parts = [((key, self._colours.title), f" {what}   ") for key, what in keys]
        return Text.assemble(*(piece for part in parts for piece in part))

    # --- keys -----------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While something is asked or explained, every key is the answer."""
        return not (self._asking or self._helping) or action == "leave"

    def on_key(self, event: Any) -> None:
        """The answer to a question; every other key but y means no."""
        if self._helping:
            self._helping = False
        elif self._asking:
            _, action = self._asking
            self._asking = None
            self._message = ""
            if event.key == "y":
                action()
        else:
            return
        event.stop()
        self._tick()

    def action_leave(self) -> None:
        """The run does not notice."""
        self.exit()

    def action_curve(self, place: int) -> None:
        """Show one curve, where not all are shown."""
        self._plot = place
        self._arrange()

    def action_list(self) -> None:
        """Show the next list, where not all are shown."""
        self._list += 1
        if self._list == len(LISTS):
            self._list = -1 if self._wide else 0
        self._arrange()

    def action_colours(self) -> None:
        """For the other kind of background."""
        light = self._colours is ui_heart.LIGHT
        self._colours = ui_heart.DARK if light else ui_heart.LIGHT
        self._arrange()

    def action_help(self) -> None:
        """What the keys do."""
        self._helping = True
        self._tick()

    def action_stop(self) -> None:
        """Ask first: a stop cannot be taken back."""
        if self._over:
            return
        self._asking = ("stop", lambda: self._work(self._stop))
        self._message = "save a checkpoint and stop?  y: yes, any other key: no"
        self._tick()

    def action_save(self) -> None:
        """A checkpoint after this step."""
        if not self._over:
            self._work(self._save)

    def action_report(self) -> None:
        """In a process of its own."""
        self._say("making the report ...")
        self._work(self._report)

    # --- work, in threads of its own -------------------------------------------------

    def _work(self, job: Callable[[], None]) -> None:
        def run() -> None:
            try:
                job()
            except (OSError, LeviathanError) as error:
                self._say(error.line if isinstance(error, LeviathanError) else str(error))

        threading.Thread(target=run, daemon=True).start()

    def _say(self, text: str) -> None:
        """A line above the keys, for a while; from any thread, drawn with the next tick."""
        self._message, self._message_until = text, time.monotonic() + _MESSAGE_S

    def _stop(self) -> None:
        if stopping.ask(self.paths, self._say):
            self._say("stopped; q leaves")

    def _save(self) -> None:
        self._say(f"saved checkpoint-{saving.ask(self.paths, self._say)}")

    def _report(self) -> None:
        # -P: a folder called leviathan in the working directory is not what is meant.
        command = [sys.executable, "-P", "-m", "leviathan.cli", "report", str(self.paths.directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            self._say(f"no report: {lines[-1].removeprefix('leviathan: ')}")
            return
        path = self.paths.directory / "report.html"
        opened = _has_display() and webbrowser.open(path.resolve().as_uri())
        self._say(f"{'opened' if opened else 'the report is'} {path}")


def _has_display() -> bool:
    """Whether a browser would open where the person sits."""
    shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(shown) and not os.environ.get("SSH_CONNECTION")


def _plot_id(plot: ui_panes.Plot) -> str:
    return f"plot-{plot.key}"


def show(paths: runs.RunPaths, pulse: Pulse) -> None:
    """Until the person leaves."""
    WatchApp(paths, pulse).run(mouse=False)
