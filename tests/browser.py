"""A real Chromium without a window: what a page looks like, what it says to its console."""

import html
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# As root there is no sandbox; nothing is updated, synchronised or asked of the network.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


@dataclass
class Picture:
    """A screenshot."""

    width: int
    height: int
    rows: list[bytes]
    """Three bytes a pixel; of the upper rows only."""

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        return tuple(self.rows[y][3 * x : 3 * x + 3])

    def colours(self) -> int:
        return len({row[i : i + 3] for row in self.rows for i in range(0, len(row), 3)})


class Browser:
    """Opens files of this machine; each call is a browser of its own."""

    def __init__(self) -> None:
        self.program = next(filter(None, map(shutil.which, NAMES)), None)
        if self.program is None:
            pytest.fail("no Chromium here: apt-get install chromium (or google-chrome-stable)")
        self.console: list[str] = []
        """What pages said, errors among it."""

    def _run(self, page: Path, *flags: str) -> str:
        with tempfile.TemporaryDirectory() as profile:
            done = subprocess.run(
                [self.program, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()],
                capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
        self.console += re.findall(r"CONSOLE.*", done.stderr)
        return done.stdout

    def screenshot(
        self, page: Path, target: Path, width: int = 1100, height: int = 1400, *, dark: bool = False
    ) -> Picture:
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        self._run(page, scheme, f"--window-size={width},{height}", f"--screenshot={target}")
        return decode(target.read_bytes())

    def pdf(self, page: Path, target: Path) -> bytes:
        self._run(page, "--no-pdf-header-footer", f"--print-to-pdf={target}")
        return target.read_bytes()

    def ask(self, page: Path, question: str, width: int = 1100) -> str:
        """What a JavaScript expression over ``doc`` says of the page, in a window of this width."""
        frame = page.with_name(f"{page.stem}.frame.html")
        frame.write_text(
            f'<iframe style="width:{width}px;height:900px;border:0" src="{page.name}"></iframe>'
            "<pre></pre><script>onload = () => { const doc = document.querySelector('iframe')"
            f".contentDocument; document.querySelector('pre').textContent = {question}; }}</script>"
        )
        dom = self._run(frame, "--window-size=1400,1000", "--dump-dom")
        frame.unlink()
        return html.unescape(re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1])


def decode(data: bytes, most: int = 400) -> Picture:
    """The first ``most`` rows of a PNG of 8 bits a channel (PNG specification, section 9)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (depth, kind in (2, 6)) == (8, True)
    packed, place = b"", 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += 12 + length
    size = {2: 3, 6: 4}[kind]
    raw, stride = zlib.decompress(packed), width * size + 1
    above, rows = bytes(width * size), []
    for y in range(min(height, most)):
        line = raw[y * stride : (y + 1) * stride]
        above = _unfiltered(line[0], bytearray(line[1:]), above, size)
        pixels = above if size == 3 else bytes(b for i, b in enumerate(above) if i % 4 != 3)
        rows.append(bytes(pixels))
    return Picture(width, height, rows)


def _unfiltered(kind: int, line: bytearray, above: bytes, size: int) -> bytes:
    for i in range(len(line)):
        left = line[i - size] if i >= size else 0
        corner = above[i - size] if i >= size else 0
        if kind == 4:
            guess = left + above[i] - corner
            near = (abs(guess - left), abs(guess - above[i]), abs(guess - corner))
            add = (left, above[i], corner)[near.index(min(near))]
        else:
            add = (0, left, above[i], (left + above[i]) // 2)[kind]
        line[i] = (line[i] + add) & 255
    return bytes(line)
