"""Fixtures of the tests that drive the real Axolotl."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from project import HEALING, ROWS, RUN, TINY, Project

import tiny
from forked.client import ForkServer


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A tiny project with its base model."""
    directory = tiny.write_project(tmp_path_factory.mktemp("template"), ROWS)
    tiny.write_more(directory)
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


# The allocator itself refuses: what cannot be had is asked of it in the middle of a step.
_OUT_OF_MEMORY = """
import torch
from transformers import Trainer

step = Trainer.training_step

def short(self, *arguments, **named):
    if self.state.global_step == 69 and self.args.per_device_train_batch_size > 2:
        torch.empty(1 << 50)
    return step(self, *arguments, **named)

Trainer.training_step = short
"""


@pytest.fixture(scope="session")
def storied(template, tmp_path_factory, fork_server) -> Project:
    """A run with a story: stopped by Ctrl+C, resumed, out of memory once, one rung down, done.

    Only to be looked at. Its memory ran out in step 70: steps 61 to 69 were trained twice.
    """
    directory = tmp_path_factory.mktemp("storied")
    shutil.copytree(template, directory / "project")
    hook = directory / "hook.py"
    hook.write_text(_OUT_OF_MEMORY)
    project = Project(directory / "project", fork_server)
    profile = project.directory / "configs/profiles/tiny.yaml"
    profile.write_text(tiny.PROFILE.split("recovery:")[0] + HEALING)
    stopped = project.signal_at(RUN, 30, signal.SIGINT, arguments=TINY)
    assert stopped.code == 4, stopped.err
    done = project.run(*TINY, FORK_HOOK=str(hook))
    assert done.code == 0, done.err
    return project
