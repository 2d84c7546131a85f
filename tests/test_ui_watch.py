"""Screens of a run: the heart, the block of `train`, the full-screen view; keys and sizes.

What they look like is kept in tests/snapshots/*.txt: `LEVIATHAN_SNAPSHOTS=write pytest` writes
them anew, to be looked at.
"""

import asyncio
import html
import os
import re
import time
from pathlib import Path

import pytest

from fakes.fake_run import FakeRun
from fakes.processes import wait_for
from leviathan import machine, pulse, runs, ui_heart, ui_live, ui_panes, ui_watch, watch

SNAPSHOTS = Path(__file__).parent / "snapshots"
BEGAN = 1_800_000_000.0
NOW = BEGAN + 2500


def same(name: str, text: str) -> None:
    """Whether a screen is the one that was looked at."""
    path = SNAPSHOTS / f"{name}.txt"
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get("LEVIATHAN_SNAPSHOTS") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Memory ran out at step 170, the run went on from 150; 410 steps in 41 minutes."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: NOW)
    for name in (ui_heart.THEME_VARIABLE, "COLORFGBG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    run = FakeRun(tmp_path / "leviathan_10pct_a4000", BEGAN)
    run.begin()
    run.train(170, step_s=5.0)
    run.event("ladder", session=None, why="memory ran out at step 170",
              reason="next rung: micro_batch_size 4 -> 2")  # fmt: skip
    run.begin(150)
    run.train(130, step_s=5.0)
    run.train(130, step_s=5.5)
    run.now = NOW - 3
    run.event("warning", kind="jump", text="the loss jumped from 1.21 to 1.93 within ten steps")
    run.sample(throttle=["power cap"])
    run.log("\x1b[32m{'loss': 1.234}\x1b[0m\n 10%|#   | 1/9\r 20%|##  | 2/9\r 30%|### | 3/9")
    yield run
    monkeypatch.undo()
    time.tzset()


def screen(app) -> str:
    """The characters that are shown, from Textual's own picture of them."""
    lines = [[" "] * app.size.width for _ in range(app.size.height)]
    pattern = r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>'
    for x, y, text in re.findall(pattern, app.export_screenshot()):
        for place, character in enumerate(html.unescape(text).replace("\xa0", " ")):
            lines[int(float(y) / 24.4)][round(float(x) / 12.2) + place] = character
    return "\n".join("".join(line).rstrip() for line in lines)


def shown(run, size, *keys, then=None):
    """What the full-screen view shows after some keys."""

    async def show():
        app = ui_watch.WatchApp(run.paths, pulse.of(run.paths), poll_s=0.1)
        async with app.run_test(size=size) as pilot:
            await pilot.pause(0.15)
            for key in keys:
                await pilot.press(key)
                await pilot.pause(0.15)
            if then:
                await then(app, pilot)
            return screen(app)

    return asyncio.run(show())


# --- what it looks like -------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 78, 100])
def test_the_heart(run, width):
    text = ui_heart.heart(pulse.of(run.paths), ui_heart.DARK, width, 1234.0)
    assert all(len(line) <= width for line in text.plain.splitlines())
    same(f"heart-{width}", text.plain)


def test_the_block_of_train(run):
    view = ui_live.TrainView("leviathan_10pct_a4000")
    view("resume", {"session": 2, "step": 150, "run": str(run.paths.directory)})
    same("train-80x24", view._drawn(80, 24).plain)
    assert "┤" not in view._drawn(80, 12).plain  # no room for a curve


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=str)
def test_the_full_screen(run, size):
    same(f"watch-{size[0]}x{size[1]}", shown(run, size))


def test_the_other_curves_and_lists_of_a_small_screen(run):
    text = shown(run, (80, 24), "r", "v")
    assert "learning rate   0.00013" in text
    assert re.search(r"checkpoint-400 .* eval [\d.]+  best$", text, re.MULTILINE)
    assert "tokens per second" in shown(run, (80, 24), "t", "v", "v")
    assert " 30%|### | 3/9" in shown(run, (80, 24), "e", "v", "v", "v")


@pytest.mark.parametrize("size", [(60, 20), (40, 12), (20, 5), (200, 60)], ids=str)
def test_no_size_is_too_small_or_too_large(run, size):
    lines = shown(run, size).splitlines()
    assert len(lines) <= size[1]
    assert all(len(line) <= size[0] for line in lines)
    assert "leviathan" in lines[0]


def test_help_and_colours(run):
    async def toggled(app, pilot):
        assert app._colours is ui_heart.LIGHT

    assert "colours for a dark or a light terminal" in shown(run, (80, 24), "question_mark")
    assert "colours for a" not in shown(run, (80, 24), "question_mark", "x", "d", then=toggled)


# --- what it does -------------------------------------------------------------------


def test_it_follows_the_run_and_shows_how_it_ended(run):
    async def goes_on(app, pilot):
        run.train(3, saves=False)
        run.sample(gpus=2, throttle=[])
        await pilot.pause(0.5)
        text = screen(app)
        assert "step 413 of 1,000" in text
        assert "2 GPUs" in text
        run.record.state = "done"
        run.event("session_end", outcome="done", reason="")
        runs.write(run.paths, run.record)
        await pilot.pause(0.5)

    text = shown(run, (80, 24), then=goes_on)
    assert "leviathan_10pct_a4000  done" in text
    assert "session ended, done" in text
    assert "s stop" not in text


def test_a_stop_is_asked_for_only_after_a_yes(run, monkeypatch):
    asked = []
    monkeypatch.setattr(ui_watch.stopping, "ask", lambda paths, tell: asked.append(paths) or True)
    text = shown(run, (80, 24), "s")
    assert "save a checkpoint and stop?" in text
    assert asked == []
    text = shown(run, (80, 24), "s", "t")  # any other key
    assert "tokens per second" not in text
    assert asked == []
    text = shown(run, (80, 24), "s", "y")
    assert asked == [run.paths]
    assert "stopped; q leaves" in text


def test_save_tells_what_was_saved_or_why_not(run):
    async def answered(app, pilot):
        wait_for(run.paths.save.exists)
        run.event("save_asked")
        run.paths.save.unlink()
        run.save()
        await pilot.pause(0.6)

    text = shown(run, (80, 24), "w", then=answered)
    assert re.search(r"^ saved checkpoint-410$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("env", "opened", "told"),
    [
        ({"DISPLAY": ":0"}, 1, "opened /"),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "x"}, 0, "the report is /"),
        ({}, 0, "the report is /"),
    ],
)
def test_the_report_is_opened_only_where_the_person_sits(run, monkeypatch, env, opened, told):
    calls, browsers = [], []

    def make(command, **_):
        calls.append(command[1:])
        return ui_watch.subprocess.CompletedProcess(command, 0, "", "")

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ui_watch.subprocess, "run", make)
    monkeypatch.setattr(ui_watch.webbrowser, "open", lambda url: browsers.append(url) or True)
    text = shown(run, (80, 24), "o")
    assert calls == [["-P", "-m", "leviathan.cli", "report", str(run.paths.directory)]]
    assert len(browsers) == opened
    assert told in " ".join(text.split())


def test_a_run_that_stalls_is_called_so_until_it_goes_on(run, monkeypatch):
    monkeypatch.setattr(ui_watch, "_JUDGED_EVERY_S", 0.1)
    monkeypatch.setattr(time, "time", lambda: NOW + 7200)
    run.paths.phase.write_text('{"phase": "train", "step": 410}')
    os.utime(run.paths.phase, (NOW, NOW))

    async def goes_on(app, pilot):
        for _ in range(100):  # a loaded machine takes its time
            await pilot.pause(0.1)
            if "leviathan_10pct_a4000  stalled" in screen(app):
                break
        else:
            raise AssertionError(screen(app))
        run.now = NOW + 7199
        os.utime(run.paths.phase, (run.now, run.now))
        run.train(1, saves=False)
        for _ in range(100):
            await pilot.pause(0.1)
            if "leviathan_10pct_a4000  running" in screen(app):
                break

    assert "leviathan_10pct_a4000  running" in shown(run, (80, 24), then=goes_on)


def test_a_run_that_vanishes_is_said_and_does_not_end_the_view(run):
    async def vanishes(app, pilot):
        run.paths.record.rename(run.paths.directory / "gone")
        await pilot.pause(0.5)
        assert "is not a run" in " ".join(screen(app).split())
        (run.paths.directory / "gone").rename(run.paths.record)
        run.train(1, saves=False)
        await pilot.pause(0.5)

    assert "step 411 of" in shown(run, (80, 24), then=vanishes)


def test_drawing_waits_for_no_disk(run, monkeypatch):
    """A file system that hangs holds up the thread that reads, and nothing else."""
    monkeypatch.setattr(watch.Follower, "poll", lambda *_: time.sleep(60))
    began = time.monotonic()
    assert "tokens per second" in shown(run, (80, 24), "t")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("variable", "value", "palette"),
    [
        (ui_heart.THEME_VARIABLE, "light", ui_heart.LIGHT),
        (ui_heart.THEME_VARIABLE, "dark", ui_heart.DARK),
        (ui_heart.THEME_VARIABLE, "pink", ui_heart.DARK),
        ("COLORFGBG", "0;15", ui_heart.LIGHT),
        ("COLORFGBG", "15;default;0", ui_heart.DARK),
    ],
)
def test_palette(run, monkeypatch, variable, value, palette):
    monkeypatch.setenv(variable, value)
    assert ui_heart.palette() is palette


def test_gpus_that_tell_little_are_shown_with_that():
    gpu = machine.GpuState(3, None, None, None, 55.0, None, None, None)
    (line,) = ui_heart.gpu_lines(gpu, ui_heart.DARK, 80)
    assert line.plain == "GPU 3 55 C"


def test_the_smoothed_loss_neither_lags_nor_leads():
    points = [(n, 5 - n / 10) for n in range(300)]
    steps, values = zip(*ui_panes._smoothed(points), strict=True)
    assert list(steps) == list(range(300))
    assert values == pytest.approx([value for _, value in points])
    noisy = [(n, n % 2) for n in range(300)]
    assert all(abs(value - 0.5) < 0.06 for _, value in ui_panes._smoothed(noisy)[20:-20])
    assert ui_panes._smoothed([(1, 2.0)]) == [(1, 2.0)]
    assert ui_panes._smoothed([]) == []


def test_a_level_curve_and_large_numbers_are_drawn():
    told = pulse.Pulse()
    for step in range(1, 9):
        line = {"session": 1, "step": step, "loss": 1.0, "monotonic_s": float(step)}
        told.take("metrics", {**line, "tokens/total": 2_500_000 * step})
    text = ui_panes.plot(told, ui_panes.PLOTS[3], ui_heart.DARK, 40, 6).plain
    assert "tokens per second   2,500,000\n   2.5M ┤" in text


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), 1e100])
def test_an_event_of_no_time_is_shown_all_the_same(run, moment):
    run.now = moment
    run.event("warning", text="of no time")
    shown = ui_panes.events(pulse.of(run.paths), ui_heart.DARK, 80, 10).plain
    assert "?  of no time" in shown


@pytest.mark.parametrize(("state", "loads"), [("starting", True), ("failed", False)])
def test_only_what_lives_is_said_to_load(state, loads):
    told = pulse.Pulse()
    told.state = state
    assert ("loading" in ui_heart.heart(told, ui_heart.DARK, 80, 1.0).plain) == loads
