"""What tests share: a project to work in, the CLI in process, the CLI as a real process."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import xxhash
from typer.testing import CliRunner

import tiny
from browser import Browser
from fakes.processes import Trainings
from fakes.receiver import Receiver
from leviathan import cli, schema, schema_dump

# Several workers share two cores: threads of one matrix product would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that runs tests in the background has them ignore Ctrl+C, and all they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def keys_cache(request):
    """Axolotl's keys, asked for once per version of the code that asks (15 s: it imports torch)."""
    source = b"".join(Path(m.__file__).read_bytes() for m in (schema, schema_dump))
    cache = request.config.cache.mkdir(f"axolotl-keys-{xxhash.xxh3_64_hexdigest(source)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("COLUMNS", "200")
        # What the checks before a launch look at, as of this shell.
        for name in ("FORCE_COLOR", "SSH_CONNECTION", "SSH_TTY", "HF_HOME", "HF_HUB_CACHE"):
            patch.delenv(name, raising=False)
        tiny.write_hub_cache(cache)
        yield cache


@pytest.fixture(scope="session")
def keys(keys_cache):
    """The installed Axolotl's keys."""
    found = schema.load()
    assert found, "the fast tier needs axolotl installed: pip install -e '.[train,dev]'"
    return found


@pytest.fixture
def project(tmp_path, monkeypatch, keys):
    """A working directory with a tiny recipe, profile and corpus; the tests' own directory."""
    monkeypatch.chdir(tmp_path)
    return tiny.write_project(tmp_path)


@pytest.fixture
def run_cli(project):
    """Run a command in process, in the project."""
    return lambda *arguments: CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture
def trainings(project, tmp_path_factory):
    """Start trainings in the project; whatever a test does, none outlives it."""
    started = Trainings(project, tmp_path_factory.mktemp("logs"))
    yield started
    all_ended = all(t.process.poll() is not None for t in started.started)
    left = started.left()
    started.kill_left()
    for training in started.started:
        training.process.wait(10)
    assert not (all_ended and left), f"processes were left behind: {left}"


@pytest.fixture(scope="session")
def crashed_project(tmp_path_factory, keys):
    """A project whose run crashed at step 11, with checkpoints 5 and 10; made once."""
    project = tiny.write_project(tmp_path_factory.mktemp("crashed"))
    run = Trainings(project, tmp_path_factory.mktemp("logs")).run(mode="crash", crash_at=11)
    assert run.code == 1, run
    return project


@pytest.fixture
def crashed(trainings, crashed_project):
    """``trainings`` after a crash at step 11, with checkpoints 5 and 10."""
    shutil.copytree(crashed_project, trainings.project, dirs_exist_ok=True)
    return trainings


@pytest.fixture(scope="session")
def browser():
    """A Chromium; without one the test fails, and says what to install."""
    return Browser()


@pytest.fixture
def receiver(monkeypatch):
    """Start a web server that notes what is posted to it; with answers to give in turn."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = []

    def start(*answers):
        started.append(Receiver(*answers))
        return started[-1]

    yield start
    for one in started:
        one.close()
