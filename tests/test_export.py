"""``cloud export``: what a bundle holds, its scripts, and what must never be in one."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fakes.processes import listing
from leviathan import bundle, export, labels, layers, runs, samples, scripts, wheelhouse

TINY = ["-p", "tiny", "-r", "tiny"]
TOKEN = "hf_" + "aB3" * 12  # a form that its maker documents; nobody's
HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` ü;&|*\n-x'


@pytest.fixture
def exported(run_cli, project):
    """Export into a new directory; the manifest with it."""

    def exported(*options: object, out: str = "out") -> tuple[Path, dict]:
        done = run_cli("cloud", "export", *options, "-o", out)
        assert done.exit_code == 0, done.output
        return project / out, json.loads((project / out / "MANIFEST.json").read_text())

    return exported


def write_run(project: Path, *overrides: str, **facts) -> runs.RunPaths:
    """A run of the tiny project that was stopped after ten steps of two seconds."""
    paths = runs.RunPaths(project / "work/training/tiny_50pct_tiny")
    paths.directory.mkdir(parents=True)
    record = runs.RunRecord(
        "tiny_50pct_tiny", "tiny", "tiny", "50pct", list(overrides), {}, {}, 1, {}, None,
        {"python": "3.12.1", "axolotl": "0.19.0", "torch": "2.13.0+cpu", "peft": "0.20.0+cu126",
         "leviathan-train": "0.1.0"}, 0.0, state="stopped", **facts,
    )  # fmt: skip
    runs.write(paths, record)
    lines = [{"session": 1, "step": n, "loss": 1.0, "monotonic_s": 20.0 * n} for n in range(1, 11)]
    paths.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    runs.event(paths, "save", step=10, save_s=35.0)
    return paths


# --- what is in it ------------------------------------------------------------------------


def test_a_plan_is_exported_with_its_configs_and_where_its_data_lies(exported, project):
    (project / "configs/suites").mkdir()
    (project / "configs/suites/mine.yaml").write_text("cases: []\n")
    out, manifest = exported(*TINY, "-s", "50pct", "--set", "suite=mine", "--max-hours", "2.5")
    assert manifest["command"] == [
        "leviathan", "train", "--profile", "tiny", "--recipe", "tiny", "--sample", "50pct",
        "--name", "tiny_50pct_tiny", "--set", "suite=mine", "--max-hours", "2.5",
    ]  # fmt: skip
    for name in (
        "configs/profiles/tiny.yaml",
        "configs/recipes/tiny.yaml",
        "configs/suites/mine.yaml",
    ):
        assert (out / name).read_bytes() == (project / name).read_bytes()
    drawn = project / "work/data/rows-ab8a81_50pct_seed42.jsonl"
    (sample,) = manifest["data"]
    assert sample["source"] == str(drawn)
    assert (sample["name"], sample["included"]) == (str(drawn.relative_to(project)), False)
    assert not (out / sample["name"]).exists()
    for name, entry in manifest["files"].items():
        data = (out / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    on_disk = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert on_disk == {*manifest["files"], "MANIFEST.json"}


def test_a_run_is_exported_as_it_was_begun_with_its_versions(exported, project):
    write_run(project, "learning_rate=3e-3", "lora_r=4")
    out, manifest = exported("tiny_50pct_tiny")
    assert manifest["command"][-4:] == ["--set", "learning_rate=3e-3", "--set", "lora_r=4"]
    assert (out / "torch.txt").read_text() == "torch==2.13.0\n"
    assert (out / "requirements.txt").read_text() == "axolotl==0.19.0\npeft==0.20.0\n"
    assert "python3.12 " in (out / "setup.sh").read_text()


def test_a_run_for_another_machine_class(exported, project):
    write_run(project, "lora_r=4")
    _, manifest = exported("tiny_50pct_tiny", "-p", "a100", "--set", "micro_batch_size=1")
    assert manifest["command"] == [
        "leviathan", "train", "--profile", "a100-80gb", "--recipe", "tiny", "--sample", "50pct",
        "--name", "tiny_50pct_tiny", "--set", "lora_r=4", "--set", "micro_batch_size=1",
    ]  # fmt: skip


def test_a_run_of_a_recipe_that_is_a_file_is_found_by_its_command(exported, project):
    shutil.move(project / "configs/recipes/tiny.yaml", project / "mine.yaml")
    write_run(project, again="leviathan train --profile tiny --recipe mine.yaml --sample 50pct "
              "--max-hours 3 --no-smoke --track tensorboard --track wandb")  # fmt: skip
    out, manifest = exported("tiny_50pct_tiny")
    assert manifest["command"][-5:] == ["--no-smoke", "--track", "tensorboard", "--track", "wandb"]
    assert "WANDB_API_KEY" in manifest["secrets"]
    assert "3" not in manifest["command"]  # what has been spent here is not what it may cost there
    assert (out / "configs/recipes/mine.yaml").exists()


def test_a_stop_may_take_twice_the_longest_step_and_save(project):
    write_run(project)
    found = export.of(export.Wanted("tiny_50pct_tiny"))
    assert found.grace_s == 2 * (20 + 35) + 60
    assert export.of(export.Wanted(None, "tiny", "tiny", "full")).grace_s == export.GRACE_S


def test_the_same_input_gives_the_same_bytes(exported, project):
    one, _ = exported(*TINY, "-s", "50pct", "-t", "skypilot", "--bucket", "b", out="one")
    time.sleep(1.1)  # a time stamp would show
    wheelhouse.wheel.cache_clear()
    two, _ = exported(*TINY, "-s", "50pct", "-t", "skypilot", "--bucket", "b", out="two")
    for path in one.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path


def test_data_is_taken_along_when_asked_for(exported, project):
    (project / "base").mkdir()
    (project / "base/config.json").write_text("{}")
    out, manifest = exported(*TINY, "-s", "full", "--include-data")
    assert [one["name"] for one in manifest["data"]] == ["rows.jsonl", "base/config.json"]
    assert (out / "rows.jsonl").read_bytes() == (project / "rows.jsonl").read_bytes()
    push = (out / "remote.sh").read_text().partition("push)")[2].partition(";;")[0]
    assert ": # all of it is here" in push


def test_what_lies_elsewhere_gets_a_place_inside(exported, project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(project / "rows.jsonl", elsewhere / "all rows.jsonl")
    (elsewhere / "model").mkdir()
    (elsewhere / "model/config.json").write_text("{}")
    _, manifest = exported(*TINY, "-s", "full", "--set", f"corpus={elsewhere}/all rows.jsonl",
                           "--set", f"base_model={elsewhere}/model")  # fmt: skip
    places = [one["name"] for one in manifest["data"]]
    assert places == ["corpus/all-rows-a028ba99.jsonl", "base_model/model/config.json"]
    assert manifest["command"][-4:] == [
        "--set", f'corpus="{places[0]}"', "--set", 'base_model="base_model/model"',
    ]  # fmt: skip


def test_a_sample_is_trained_on_without_its_corpus(exported, project, monkeypatch):
    """Elsewhere: the bundle with its data, and not the 13 GB the sample was drawn from."""
    out, _ = exported(*TINY, "-s", "50pct", "--include-data")
    monkeypatch.chdir(out)
    merged = layers.build("tiny", "tiny", "50pct")
    wish = samples.Wish(Path("rows.jsonl"), "50pct", 42, samples.DIRECTORY)
    sample = samples.draw(wish, layers.row_fields(merged))
    assert (sample.rows, sample.of_rows) == (36, 72)
    assert samples.readable(wish) == wish.path
    rows = wish.path.read_bytes()
    wish.path.unlink()
    wish.path.write_bytes(rows[:-2] + b"x\n")  # as many bytes
    with pytest.raises(Exception, match=r"rows\.jsonl"):
        samples.draw(wish, layers.row_fields(merged))


def test_dry_run_and_json(run_cli, project):
    before = listing(project)
    done = run_cli("cloud", "export", *TINY, "-s", "50pct", "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert (told["run"], told["target"], told["directory"]) == ("tiny_50pct_tiny", "ssh", None)
    assert (told["data"], listing(project)) == ([], before)  # it has not been drawn yet
    run_cli("data", "sample", "rows.jsonl", "-s", "50pct")
    plain = run_cli("cloud", "export", *TINY, "-s", "50pct", "--dry-run")
    assert "rows-ab8a81_50pct_seed42.jsonl (sent from " in plain.stdout
    assert plain.stderr.endswith("nothing was written (--dry-run)\n")


# --- writing ------------------------------------------------------------------------------


def test_an_untouched_bundle_is_replaced_and_anything_else_is_not(exported, run_cli, project):
    out, _ = exported(*TINY, "-s", "50pct")
    exported(*TINY, "-s", "full")
    assert "--sample\n    full" in (out / "run.sh").read_text()
    (out / "mine.txt").write_text("mine")
    before = listing(project)
    again = ["cloud", "export", *TINY, "-s", "50pct", "-o", "out"]
    refused = run_cli(*again)
    assert refused.exit_code == 2
    assert "out/mine.txt was not put there by cloud export" in refused.stderr
    (out / "mine.txt").unlink()
    script = (out / "run.sh").read_text()
    (out / "run.sh").write_text(script + "# mine\n")
    assert "out/run.sh was not put there" in run_cli(*again).stderr
    (out / "run.sh").write_text(script)
    assert run_cli(*again).exit_code == 0
    assert {k for k in listing(project) if k.startswith(".out")} == set()
    assert len(before) > 5


def test_a_foreign_directory_is_left_alone(run_cli, project):
    before = listing(project / "configs")
    refused = run_cli("cloud", "export", *TINY, "-s", "50pct", "-o", "configs")
    assert (refused.exit_code, listing(project / "configs")) == (2, before)
    assert "configs holds something else than a bundle" in refused.stderr


def test_a_full_disk_leaves_the_earlier_bundle(exported, project, monkeypatch):
    out, _ = exported(*TINY, "-s", "50pct")
    before = {k: v for k, v in listing(project).items() if k.startswith("out")}
    made = export.of(export.Wanted(None, "tiny", "tiny", "full"))
    broken = bundle.Bundle("ssh", made, {"a": b"1", "a/b": b"2"}, ())  # b cannot be written
    with pytest.raises(FileExistsError):
        bundle.write(broken, out)
    assert {k: v for k, v in listing(project).items() if "out" in k} == before


# --- secrets ------------------------------------------------------------------------------


def plant_comment(project: Path) -> None:
    path = project / "configs/recipes/tiny.yaml"
    path.write_text(f"# my token: {TOKEN}\n" + path.read_text())


def plant_hook(project: Path) -> None:
    path = project / "configs/profiles/tiny.yaml"
    path.write_text(path.read_text() + "notify: [{webhook: 'https://hooks.example/T0/B0/x1y2'}]\n")


def plant_suite(project: Path) -> None:
    (project / "configs/suites").mkdir()
    (project / "configs/suites/s.yaml").write_text(f"cases: [{{prompt: 'use {TOKEN}'}}]\n")
    path = project / "configs/recipes/tiny.yaml"
    path.write_text(path.read_text() + "suite: s\n")


def plant_override(project: Path) -> None:
    write_run(project, f"hub_token={TOKEN}")


@pytest.mark.parametrize("target", ["ssh", "k8s", "skypilot"])
@pytest.mark.parametrize(
    ("plant", "asked"),
    [
        (plant_comment, TINY), (plant_hook, TINY), (plant_suite, TINY),
        (plant_override, ["tiny_50pct_tiny"]),
        (lambda _: None, [*TINY, "--set", f"hub_token={TOKEN}"]),
        (lambda _: None, [*TINY, "--secret", TOKEN]),
        (lambda _: None, [*TINY, "--secret", f"HF_TOKEN={TOKEN}"]),
    ],
)  # fmt: skip
def test_a_secret_is_refused_wherever_it_stands(run_cli, project, plant, asked, target):
    plant(project)
    done = run_cli("cloud", "export", *asked, "-s", "full", "-t", target, "--bucket", "b",
                   "--accelerators", "T4:1", "-o", "o")  # fmt: skip
    assert done.exit_code == 2, done.output
    assert not (project / "o").exists()
    assert TOKEN not in done.output
    assert "x1y2" not in done.output


@pytest.mark.parametrize("target", ["ssh", "k8s", "skypilot"])
def test_the_environment_is_named_and_not_copied(exported, project, monkeypatch, target):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    monkeypatch.setenv("MY_HOOK", "https://hooks.example/T0/B0/x1y2")
    path = project / "configs/profiles/tiny.yaml"
    path.write_text(path.read_text() + "notify: [{webhook: $MY_HOOK}]\n")
    out, manifest = exported(*TINY, "-s", "full", "-t", target, "--bucket", "b", "--accelerators",
                             "T4:1", "--set", "use_wandb=true", "--set", "wandb_project=p")  # fmt: skip
    assert manifest["secrets"] == ["HF_TOKEN", "MY_HOOK", "WANDB_API_KEY"]
    for file in out.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        for value in (TOKEN, "0123456789abcdef", "x1y2"):
            assert value.encode() not in data, file


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["nobody"], "no run 'nobody'"),
        ([*TINY, "-t", "moon"], "--target 'moon' is not one"),
        ([*TINY, "--name", "../x"], "'../x' cannot be a run's name"),
        ([*TINY, "--set", "zzz=1"], "zzz is not a key"),
        ([*TINY, "--set", "corpus=none.jsonl"], "none.jsonl"),
        ([*TINY, "--budget-usd", "5"], "--budget-usd needs the price of an hour"),
        ([*TINY, "-s", "many"], "--sample 'many' is not a sample"),
        ([*TINY, "--nodes", "2"], "an ssh bundle is for one host, and this run wants 2"),
        ([*TINY, "--set", "hardware.nodes=3"], "an ssh bundle is for one host"),
        ([*TINY, "-t", "skypilot"], "no --bucket keeps the run"),
        ([*TINY, "-t", "k8s", "--kind", "jobset"], "--kind jobset is not for 1 host"),
        ([*TINY, "--set", "base_model=./none"], "base model directory ./none does not exist"),
    ],
)
def test_bad_input(run_cli, project, asked, line):
    before = listing(project)
    done = run_cli("cloud", "export", "-s", "full", *asked, "-o", "o")
    assert done.exit_code == 2, done.output
    assert line in done.stderr
    assert "Traceback" not in done.output
    assert listing(project) == before


def test_it_says_where_to(run_cli, project):
    done = run_cli("cloud", "export", *TINY)
    assert (done.exit_code, done.stderr) == (
        2, "leviathan: where to? name a directory; example: -o cloud/my-run\n",
    )  # fmt: skip


# --- names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "a.b", "A", "x" * 200, "", "-", "--x", "ü", "$(x)", "a\nb", "9", "a" * 39 + "-b"]
)
def test_a_label_is_one_by_rfc_1123(name):
    import re

    for longest in (20, labels.LONGEST):
        made = labels.label(name, longest)
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", made)
        assert len(made) <= longest


def test_names_that_differ_have_labels_that_differ():
    names = ["a.b", "a-b", "a_b", "A-b", "a--b", "x" * 99, "x" * 98, "ü", "u"]
    assert len({labels.label(name) for name in names}) == len(names)


@pytest.fixture
def fake_leviathan(project):
    """An environment whose leviathan notes its arguments, one a NUL-ended word."""
    script = project / "a venv/bin/leviathan"
    script.parent.mkdir(parents=True)
    script.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$NOTED"\n')
    script.chmod(0o755)
    return {**os.environ, "LEVIATHAN_VENV": str(script.parents[1]), "NOTED": str(project / "noted")}


@pytest.mark.parametrize("kept", [False, True])
def test_hostile_names_arrive_as_they_are(exported, project, fake_leviathan, tmp_path, kept):
    """Of the profile, the recipe and a setting, in a directory of such a name."""
    for kind in ("profiles", "recipes"):
        name = HOSTILE.replace("/", "")
        (project / f"{name}-{kind}.yaml").write_bytes(
            (project / f"configs/{kind}/tiny.yaml").read_bytes()
        )
    out, manifest = exported(
        "-p", f"{HOSTILE}-profiles.yaml", "-r", f"{HOSTILE}-recipes.yaml", "-s", "full",
        "--name", "n", "--set", f"special_tokens={json.dumps({'pad_token': HOSTILE})}", out=HOSTILE,
    )  # fmt: skip
    environment = {**fake_leviathan, **({scripts.KEEP_VARIABLE: HOSTILE} if kept else {})}
    done = subprocess.run(["bash", out / "run.sh"], env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0
    words = (project / "noted").read_text().split("\0")[:-1]
    begin = (
        ["cloud", "keep", "n", "--in", HOSTILE, "--", f"{project}/a venv/bin/leviathan"]
        if kept
        else []
    )
    assert words == [*begin, *manifest["command"][1:]]
    assert json.loads(words[-1].partition("=")[2])["pad_token"] == HOSTILE
    assert not list(project.rglob("pwned"))
    for name in ("profiles", "recipes"):
        (copy,) = (out / f"configs/{name}").iterdir()
        assert words[words.index(f"--{name[:-1]}") + 1] == copy.stem


@pytest.mark.parametrize("target", ["ssh", "skypilot"])
def test_the_scripts_are_sound(exported, project, target):
    tool = shutil.which("shellcheck")
    assert tool, "shellcheck is not here; scripts/install_test_tools.sh installs it"
    out, _ = exported(*TINY, "-s", "full", "--name", "n", "-t", target, "--no-spot", "--set",
                      f"special_tokens={json.dumps({'pad_token': HOSTILE})}", "--set",
                      "attn_implementation=flash_attention_2", "--host", HOSTILE, "--key", HOSTILE,
                      "--accelerators", "T4:1", "--dir", HOSTILE)  # fmt: skip
    made = sorted(out.glob("*.sh"))
    if target == "skypilot":
        task = yaml.safe_load((out / "task.yaml").read_text())
        for part in ("setup", "run"):
            made.append(project / f"{part}.sh")
            made[-1].write_text(f"#!/bin/sh\n{task[part]}")
    # Info: that nothing is expanded in single quotes is what they are for.
    done = subprocess.run(
        [tool, "-S", "warning", *made], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


# --- setting up ---------------------------------------------------------------------------


def test_the_wheel_installs_and_is_this_leviathan(tmp_path):
    name, data = wheelhouse.wheel()
    (tmp_path / name).write_bytes(data)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, tmp_path / "there", tmp_path / name], check=True)
    listed = subprocess.run(
        [sys.executable, "-m", "leviathan.cli", "profiles", "list"], cwd=tmp_path, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "there")}, capture_output=True, text=True,
    )  # fmt: skip
    assert "a100x8" in listed.stdout
    for path in Path(wheelhouse.__file__).parent.glob("*.py"):
        assert (tmp_path / "there/leviathan" / path.name).read_bytes() == path.read_bytes()


def test_setup_makes_an_environment_once(exported, project):
    """With a pip that only notes what it was asked for: nothing is downloaded here."""
    out, _ = exported(*TINY, "-s", "full")
    python = project / "bin/python3"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"\n'
        'printf "#!/bin/sh\\necho leviathan 9\\n" >"$3/bin/leviathan"; chmod +x "$3/bin/leviathan"\n'
        'else echo "$@" >>"$NOTED"; fi\n'
    )
    python.chmod(0o755)
    version = json.loads((out / "MANIFEST.json").read_text())["versions"]["python"]
    (python.parent / f"python{'.'.join(version.split('.')[:2])}").symlink_to(python)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}",
                   "NOTED": str(project / "noted")}  # fmt: skip
    for _ in range(2):
        done = subprocess.run(["bash", out / "setup.sh"], env=environment, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "leviathan 9\n"), done.stderr
    asked = [line for line in (project / "noted").read_text().splitlines() if " install " in line]
    assert [line.partition("--quiet ")[2] for line in asked] == [
        "-r torch.txt", "-r requirements.txt ./leviathan_train-0.1.0-py3-none-any.whl",
    ]  # fmt: skip


# --- stages -------------------------------------------------------------------------------


def write_stages(project: Path) -> None:
    recipe = (project / "configs/recipes/tiny.yaml").read_text()
    stages = "stages:\n  - name: mid\n  - name: sft\n    axolotl: {weight_decay: 0.1}\n"
    (project / "configs/recipes/staged.yaml").write_text(recipe + stages)


def test_a_bundle_is_of_one_stage(run_cli, project, exported):
    write_stages(project)
    common = ["-p", "tiny", "-r", "staged", "-s", "50pct"]
    whole = run_cli("cloud", "export", *common, "-o", "whole")
    assert whole.exit_code == 2
    assert "is trained in stages (mid, sft), and a bundle is of one" in whole.stderr
    early = run_cli("cloud", "export", *common, "--set", "stage=sft", "-o", "early")
    assert early.exit_code == 2
    assert "stage sft begins with the model of mid, which is not here" in early.stderr
    base = project / "work/training/staged_50pct_tiny.sft/base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    _, manifest = exported(*common, "--set", "stage=sft", "--include-data")
    words = manifest["command"]
    assert words[words.index("--name") + 1] == "staged_50pct_tiny.sft"
    assert "stage=sft" in words
    assert 'base_model="work/training/staged_50pct_tiny.sft/base"' in words


def test_mode_and_stage_of_a_run_go_along(project):
    paths = write_run(
        project, "mode=demo", "stage=sft", "lora_r=4",
        again="leviathan train --profile tiny --recipe staged --mode demo --set lora_r=4",
    )  # fmt: skip
    assert export.overrides(runs.read(paths)) == ["lora_r=4", "mode=demo", "stage=sft"]
