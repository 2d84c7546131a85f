"""The built wheel, installed alone in a fresh environment, away from the checkout."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from telling import Telling

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The ``leviathan`` script of a fresh environment that holds nothing but the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT],
        check=True,
        capture_output=True,
    )
    venv.create(directory / "venv", with_pip=True)
    wheel = next(directory.glob("*.whl"))
    subprocess.run(
        [directory / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel],
        check=True,
        capture_output=True,
    )
    return directory / "venv/bin/leviathan"


def run(script: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [script, *arguments], cwd=directory, capture_output=True, text=True, check=False
    )


def test_profiles_and_recipes_are_found_away_from_the_checkout(installed, tmp_path):
    listed = run(installed, tmp_path, "profiles", "list")
    assert listed.returncode == 0, listed.stderr
    for name in ("a4000", "a100-80gb", "cpu"):
        assert name in listed.stdout
    assert "demo" in run(installed, tmp_path, "recipes", "list").stdout


def test_render_works_without_axolotl_and_says_what_it_did_not_check(installed, tmp_path):
    rendered = run(installed, tmp_path, "render", "--profile", "a4000")
    assert rendered.returncode == 0, rendered.stderr
    assert "load_in_4bit: true" in rendered.stdout
    assert "keys were not checked: axolotl is not installed here" in rendered.stderr
    assert list(tmp_path.iterdir()) == []


def test_train_without_axolotl_says_what_to_install(installed, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    refused = run(
        installed, tmp_path, "train", "--profile", "cpu", "--set", "corpus=rows.jsonl",
        "--sample", "full",
    )  # fmt: skip
    assert refused.returncode == 3
    assert "not installed: axolotl" in refused.stderr
    assert "pip install" in refused.stderr


def test_the_report_finds_its_template(installed, tmp_path):
    told = Telling(tmp_path / "work/training/r")
    told.begin()
    told.train(1, 5)
    told.end()
    done = run(installed, tmp_path, "report")
    assert (done.returncode, done.stdout) == (0, "work/training/r/report.html\n"), done.stderr
    assert "<svg" in told.paths.report.read_text()
