"""A real terminal for a command: a tmux pane on a socket of its own."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from fakes.processes import wait_for


class Terminal:
    """A context: the command lives inside it, and tmux ends with it."""

    def __init__(
        self, command: list[str], directory: Path, size: str = "80x24", env: dict | None = None
    ) -> None:
        # Not pytest's own directory: a socket's path has at most 107 bytes.
        self.socket = Path(tempfile.mkdtemp(prefix="tmux-")) / "s"
        self.width, self.height = map(int, size.split("x"))
        environment = {**(os.environ if env is None else env), "TERM": "screen-256color"}
        for name in ("TMUX", "NO_COLOR", "COLUMNS", "LINES", "COLORFGBG"):
            environment.pop(name, None)
        # Colours and the last screen stay to be looked at when the command has ended.
        self._tmux(
            "new-session", "-d", "-x", str(self.width), "-y", str(self.height), *command,
            ";", "set-option", "-g", "remain-on-exit", "on", cwd=directory, env=environment,
        )  # fmt: skip

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        server = int(self._tmux("display-message", "-p", "#{pid}"))
        self._tmux("kill-server")
        wait_for(lambda: not psutil.pid_exists(server))
        self.socket.unlink(missing_ok=True)
        self.socket.parent.rmdir()

    def _tmux(self, *arguments: str, **how) -> str:
        command = ["tmux", "-S", self.socket, "-f", os.devnull, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, **how).stdout

    @property
    def screen(self) -> str:
        """What is shown."""
        return self._tmux("capture-pane", "-p")

    @property
    def printed(self) -> str:
        """The same with what has scrolled away."""
        return self._tmux("capture-pane", "-p", "-S", "-100")

    @property
    def coloured(self) -> str:
        """The same with escape sequences."""
        return self._tmux("capture-pane", "-p", "-e")

    @property
    def pid(self) -> int:
        """Of the command."""
        return int(self._tmux("display-message", "-p", "#{pane_pid}"))

    @property
    def ended(self) -> bool:
        """Whether the command is over."""
        return self._tmux("display-message", "-p", "#{pane_dead}").strip() == "1"

    def press(self, *keys: str) -> None:
        """As a person does."""
        self._tmux("send-keys", *keys)

    def resize(self, size: str) -> None:
        """As a person who drags the window's corner."""
        self.width, self.height = map(int, size.split("x"))
        self._tmux("resize-window", "-x", str(self.width), "-y", str(self.height))

    def until(self, *words: str, seconds: float = 15.0) -> str:
        """The first screen that has all these words."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shown = self.screen
            if all(word in shown for word in words):
                return shown
            time.sleep(0.05)
        raise AssertionError(f"{words} did not appear within {seconds:g} s:\n{shown}")
