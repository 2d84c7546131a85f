"""The fork server is honest: what it runs cannot be told from a genuine launch."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from project import RUN, TINY, Project, environment

pytestmark = pytest.mark.real


@pytest.fixture
def launch(reference, fork_server, tmp_path):
    """Launch the reference's YAML in a copy of its project, without a supervisor."""
    shutil.copytree(reference.directory, tmp_path / "project")
    project = Project(tmp_path / "project")
    run = project.path(RUN)
    config = run / "axolotl.yaml"
    config.write_text(config.read_text().replace(str(reference.directory), str(project.directory)))
    (run / ".plugin.json").unlink()

    def start(**env: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                   str(run / "accelerate.yaml"), "-m", "axolotl.cli.train", str(config)]  # fmt: skip
        as_launched = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                       "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1",
                       "PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
        return subprocess.Popen(
            command, cwd=project.directory, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment(**fork_server.environment(), **as_launched, **env),
        )  # fmt: skip

    start.project = project
    return start


def wait_until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)


def test_a_forked_run_equals_a_genuine_one_bit_for_bit(forked_project, reference):
    done = forked_project.run(*TINY)
    assert done.code == 0, done.err
    assert forked_project.curve(RUN) == reference.curve(RUN)
    assert forked_project.adapter(RUN) == reference.adapter(RUN)


def test_each_fork_begins_anew(launch, tmp_path):
    """What one child does to the plugin manager, the seeds and the environment is its own."""
    look = tmp_path / "look.py"
    look.write_text(
        "import numpy, os, random, sys, torch\n"
        "from axolotl.integrations.base import PluginManager\n"
        "manager = PluginManager.get_instance()\n"
        "drawn = random.random(), numpy.random.random(), torch.rand(1).item()\n"
        "print('SEEN', len(manager.plugins), os.environ.get('LEFT_BEHIND'), *drawn)\n"
        "manager.plugins['mine'] = None\n"
        "os.environ['LEFT_BEHIND'] = '1'\n"
        "sys.exit()\n"
    )
    seen = []
    for _ in range(2):
        out, _ = launch(FORK_HOOK=str(look)).communicate(timeout=60)
        seen += [line.split() for line in out.splitlines() if line.startswith("SEEN")]
    assert [line[1:3] for line in seen] == [["0", "None"]] * 2
    assert all(one != other for one, other in zip(seen[0][3:], seen[1][3:], strict=True))


def test_an_error_ends_with_its_traceback_and_accelerates(launch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('made up')\n")
    process = launch(FORK_HOOK=str(broken))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RuntimeError: made up" in out
    assert "returned non-zero exit status 1" in out


def test_a_killed_training_ends_as_accelerate_says_it(launch, tmp_path):
    killed = tmp_path / "killed.py"
    killed.write_text("import os\nos.kill(os.getpid(), 9)\n")
    process = launch(FORK_HOOK=str(killed))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "died with <Signals.SIGKILL: 9>" in out


def test_other_import_time_variables_are_refused(launch):
    process = launch(OMP_NUM_THREADS="2")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "imported with OMP_NUM_THREADS=1, this launch has 2" in out


def test_a_launcher_killed_early_takes_its_child_along(launch, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text("import time\nprint('SLEEPS', flush=True)\ntime.sleep(300)\n")
    process = launch(FORK_HOOK=str(slow))
    while "SLEEPS" not in process.stdout.readline():
        assert process.poll() is None
    assert len(launch.project.processes()) == 2
    process.kill()
    wait_until(lambda: not launch.project.processes())
    process.communicate()


def test_a_launcher_killed_later_leaves_an_orphan_that_trains_on(launch):
    process = launch()
    wait_until((launch.project.path(RUN) / ".plugin.json").exists)
    (child,) = set(launch.project.processes()) - {process.pid}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert child in launch.project.processes()
    wait_until(lambda: not launch.project.processes())
    assert launch.project.events(RUN, "train_end")[-1]["step"] == 98
    assert len(launch.project.events(RUN, "train_end")) == 2
    process.stdout.close()
