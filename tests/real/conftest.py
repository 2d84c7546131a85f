"""Fixtures of the tests that drive the real Axolotl."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from project import ROWS, RUN, TINY, Project

import tiny
from forked.client import ForkServer


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A tiny project with its base model."""
    directory = tiny.write_project(tmp_path_factory.mktemp("template"), ROWS)
    tiny.write_model(directory / "base", directory / "rows.jsonl")
    return directory


@pytest.fixture
def project(template, tmp_path) -> Project:
    shutil.copytree(template, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def fork_server(keys) -> Iterator[ForkServer]:
    """The training stack, imported once. ``keys``: ``train`` must not ask a fake for them."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def forked_project(template, tmp_path, fork_server) -> Project:
    """A project whose trainings are forked: for tests whose subject is not the launcher."""
    shutil.copytree(template, tmp_path / "project")
    return Project(tmp_path / "project", fork_server)


@pytest.fixture(scope="session")
def make_project(template, tmp_path_factory) -> Callable[[str], Project]:
    """Projects that several tests share."""

    def make(name: str) -> Project:
        directory = tmp_path_factory.mktemp(name) / "project"
        shutil.copytree(template, directory)
        return Project(directory)

    return make


@pytest.fixture(scope="session")
def reference(make_project) -> Project:
    """One run, never interrupted: what every resumed run is compared with."""
    project = make_project("reference")
    done = project.run(*TINY)
    assert done.code == 0, done.err
    return project


@pytest.fixture(scope="session")
def stopped(make_project) -> Project:
    """A run stopped by one Ctrl+C after several saves."""
    project = make_project("stopped")
    done = project.signal_at(RUN, 50, signal.SIGINT, arguments=TINY)
    assert done.code == 4, done.err
    project.last = done
    return project


@pytest.fixture
def stopped_copy(stopped, tmp_path, fork_server) -> Project:
    """That run to be resumed, by forked trainings."""
    shutil.copytree(stopped.directory, tmp_path / "project")
    return Project(tmp_path / "project", fork_server)
