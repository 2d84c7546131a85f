"""gpu.jsonl: sampled beside a run, never in its way, read back whatever became of it."""

import json
import subprocess
import threading
import time

import pytest

from fakes import gpus
from leviathan import files, machine, runs, telemetry
from leviathan.machine import GpuState
from leviathan.telemetry import Sample

BUSY = GpuState(0, 13.2, 15.99, 98.0, 78.0, 139.6, 140.0, 1410.0, ("power cap",))


@pytest.fixture
def paths(tmp_path):
    return runs.RunPaths(tmp_path)


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def recorder(paths, look=lambda: (BUSY,), session=3):
    return telemetry.Recorder(paths, session, machine.process_identity()["pid"], look)


def test_a_sample_is_read_back_as_it_was_taken(paths):
    with recorder(paths):
        wait_for(lambda: telemetry.recent(paths))
    (sample,) = telemetry.recent(paths)
    assert (sample.session, sample.gpus) == (3, (BUSY,))
    assert abs(sample.time_s - time.time()) < 30
    assert 0 < sample.resident_gib < 64
    assert sample.free_disk_gib > 0
    assert (sample.hottest_c, sample.used_gib, sample.busy_pct) == (78.0, 13.2, 98.0)
    assert (sample.power_w, sample.throttle) == (139.6, ("power cap",))


def test_processes_that_are_gone_hold_no_memory_that_could_be_told(paths):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with telemetry.Recorder(paths, 1, ended.pid, lambda: (BUSY,)):
        wait_for(lambda: telemetry.recent(paths))
    assert telemetry.recent(paths)[0].resident_gib is None


def test_several_gpus_are_told_as_one_where_one_decides():
    other = GpuState(1, 2.0, 16.0, 40.0, None, 60.0, 140.0, None, ("power cap", "thermal slowdown"))
    sample = Sample(1.0, 1, (BUSY, other), None, None)
    assert (sample.hottest_c, sample.used_gib, sample.busy_pct) == (78.0, 13.2, 40.0)
    assert sample.power_w == pytest.approx(199.6)
    assert sample.throttle == ("power cap", "thermal slowdown")


@pytest.mark.parametrize(
    ("shown", "indices"),
    [(None, [0, 1, 2]), ("1", [1]), ("2,0", [0, 2]), ("GPU-af31,1", [0, 1, 2]), ("", [0, 1, 2])],
)
def test_only_the_gpus_of_the_run_are_sampled(paths, monkeypatch, shown, indices):
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    three = tuple(GpuState(i, *[None] * 7) for i in range(3))
    with recorder(paths, lambda: three):
        wait_for(lambda: telemetry.recent(paths))
    assert [gpu.index for gpu in telemetry.recent(paths)[0].gpus] == indices


def test_a_driver_that_hangs_holds_up_nobody(paths):
    release = threading.Event()
    began = time.monotonic()
    with recorder(paths, lambda: (release.wait(60), ())[1]):
        pass
    assert time.monotonic() - began < 10
    release.set()


def test_a_directory_that_is_gone_is_borne(tmp_path):
    paths = runs.RunPaths(tmp_path / "gone")
    with recorder(paths):
        time.sleep(0.2)
    assert telemetry.recent(paths) == telemetry.read(paths) == []


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'{"time": "x", "session": 1, "gpus": []}', b'{"time": 1, "gpus": []}',
     b'{"time": 1, "session": 1, "gpus": {}}', b'{"time": true, "session": 1, "gpus": []}'],
)  # fmt: skip
def test_damaged_lines_are_passed_over(paths, line):
    paths.telemetry.write_bytes(line + b"\n")
    files.append_json(paths.telemetry, {"time": 1.0, "session": 1, "gpus": [{"index": "x"}, 5]})
    (sample,) = telemetry.read(paths)
    assert sample.gpus == (GpuState(-1, *[None] * 7),)
    assert sample.hottest_c is sample.power_w is None


def test_nvml_tells_what_every_gpu_does(tmp_path, monkeypatch):
    answers = {
        "MemoryInfo": {"total": 16 << 30, "free": 3 << 30}, "UtilizationRates": {"gpu": 97},
        "Temperature": 81, "PowerUsage": 139_500, "EnforcedPowerLimit": 140_000,
        "ClockInfo": 1395, "CurrentClocksEventReasons": 0x24,
    }  # fmt: skip
    state = tmp_path / "nvml.json"
    state.write_text(json.dumps({"gpus": [answers, {}], "driver": "580", "cuda": 13000}))
    monkeypatch.setenv("FAKE_NVML", str(state))
    monkeypatch.syspath_prepend(str(gpus.__file__).replace("gpus.py", "driver"))
    monkeypatch.delitem(__import__("sys").modules, "pynvml", raising=False)
    one, two = machine.gpu_states()
    monkeypatch.delitem(__import__("sys").modules, "pynvml", raising=False)
    assert one == GpuState(0, 13.0, 16.0, 97, 81, 139.5, 140.0, 1395,
                           ("power cap", "thermal slowdown"))  # fmt: skip
    assert two == GpuState(1, *[None] * 7)


# --- the disk ---------------------------------------------------------------------


def filling(free, every=60.0):
    return [Sample(every * n, 1, (), None, gib) for n, gib in enumerate(free)]


def test_a_disk_that_fills_is_forecast():
    told = filling([100 - 0.1 * n for n in range(200)])
    # Medians of the first and the last 20: minutes 9.5 and 189.5, 99.05 and 81.05 GiB.
    assert telemetry.disk_full_in_s(told) == pytest.approx(81.05 / 0.1 * 60, rel=1e-6)


@pytest.mark.parametrize(
    "free",
    [[100.0] * 200, [100 + 0.1 * n for n in range(200)], [100 - 0.001 * n for n in range(200)],
     [100 - n for n in range(9)], [100 - n for n in range(20)], [None] * 200, []],
)  # fmt: skip
def test_no_forecast_without_a_trend(free):
    assert telemetry.disk_full_in_s(filling(free)) is None


def test_saves_that_come_and_go_are_no_trend():
    assert telemetry.disk_full_in_s(filling([100 - (n % 25) * 0.02 for n in range(500)])) is None
