"""A full disk: nothing is lost, one clear line, and all goes on once there is space."""

import json
import shutil

import pytest
from project import RUN, Project
from smalldisk import SmallDisk

from fakes.processes import listing

pytestmark = pytest.mark.real

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """24 MiB, of which a project with a finished run takes about 8."""
    with SmallDisk(tmp_path / "small", 24) as disk:
        yield disk


@pytest.fixture
def small_project(small_disk, template, fork_server) -> Project:
    """A fresh project on the small disk."""
    shutil.copytree(template, small_disk.directory, dirs_exist_ok=True)
    return Project(small_disk.directory, fork_server if small_disk.shared else None,
                   small_disk.prefix)  # fmt: skip


def test_the_small_disk_is_small_and_filled_to_the_page(small_disk):
    small_disk.fill(64 << 10)
    assert small_disk.free_bytes() == 64 << 10
    (small_disk.directory / "fits").write_bytes(bytes(60 << 10))
    with pytest.raises(OSError, match="No space left"):
        (small_disk.directory / "does-not").write_bytes(bytes(8 << 10))
    small_disk.release()
    assert small_disk.free_bytes() > 20 * MIB


@pytest.mark.parametrize("free_bytes", [0, 256 << 10], ids=["nothing-free", "weights-half-written"])
def test_merging_onto_a_full_disk_leaves_no_half_model(
    small_disk, small_project, reference, free_bytes
):
    run = small_project.path(RUN)
    run.parent.mkdir(parents=True)
    shutil.copytree(reference.path(RUN), run)
    before = listing(run)
    small_disk.fill(free_bytes)
    failed = small_project.run("merge", RUN)
    assert failed.code in (1, 3), failed.err
    assert "Traceback" not in failed.err
    (line,) = [line for line in failed.err.splitlines() if line.startswith("leviathan: ")]
    assert "space" in line
    models = small_project.directory / "models"
    left = [path.name for path in models.iterdir() if path.suffix != ".lock"]
    assert left == [], "nothing, under whatever name, takes the space there is not"
    assert listing(run) == before
    small_disk.release()
    done = small_project.run("merge", RUN)
    assert done.code == 0, done.err
    proof = json.loads((models / f"{RUN}-merged/merge-proof.json").read_text())
    assert proof["verdict"] == "equal"
