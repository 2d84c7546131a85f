"""Which trackers record a run, with which keys; and that nothing secret is written for them."""

import json
import subprocess

import pytest
import yaml

from leviathan import launch, layers, render, runs, trackers, train
from leviathan.config import Profile
from leviathan.errors import BadInput
from leviathan.origins import Origin
from leviathan.trackers import Here, Run

ALL = frozenset(trackers.NAMES)
SECRET = "0123456789abcdef" * 3


@pytest.fixture
def rendered(project, keys):
    """The YAML and environment of the tiny recipe with these overrides and trackers."""

    def make(*sets, track=None, installed=ALL, environment=None, run=None, **here):
        config = layers.build("tiny", "tiny", "full", sets)
        subject = run or Run("r", project / "r", "tiny", "cpu, big", "full", begun=1.5)
        place = Here(frozenset(installed), environment or {}, **here)
        tracking = trackers.of(track, config, subject, place)
        target = render.Target(subject.directory, project / "d", "base", tracking=tracking)
        return render.render(config, target, flash_attn=False, gpu=False, schema=keys)

    return make


def tracker_keys(result):
    return {key: value for key, value in result.tree.items() if trackers.is_key(key)}


def test_tensorboard_is_the_default_where_it_is_installed(rendered, project):
    result = rendered()
    assert tracker_keys(result) == {"use_tensorboard": True}
    assert result.environment == {"TENSORBOARD_LOGGING_DIR": str(project / "r/tensorboard")}
    assert ("use_tensorboard", True, Origin("track", "installed here")) in result.rows()
    assert tracker_keys(rendered(installed=())) == {}


def test_a_users_own_keys_replace_the_default(rendered):
    assert tracker_keys(rendered("use_tensorboard=false")) == {"use_tensorboard": False}
    own = tracker_keys(rendered("wandb_project=mine", "wandb_name=x"))
    assert own == {"wandb_project": "mine", "wandb_name": "x", "use_wandb": True,
                   "wandb_run_id": own["wandb_run_id"]}  # fmt: skip
    assert tracker_keys(rendered("use_comet=true")) == {"use_comet": True}


def test_a_name_asked_for_brings_names_and_tags(rendered, project):
    result = rendered(track=("wandb", "trackio", "mlflow"))
    found = tracker_keys(result)
    identity = found.pop("wandb_run_id")
    assert identity.startswith("r-")
    assert found == {
        "use_wandb": True, "wandb_project": "tiny", "wandb_name": "r",
        "use_trackio": True, "trackio_project_name": "tiny", "trackio_run_name": "r",
        "use_mlflow": True, "mlflow_experiment_name": "tiny", "mlflow_run_name": "r",
    }  # fmt: skip
    assert result.environment["WANDB_RESUME"] == "allow"
    assert result.environment["WANDB_DIR"] == str(project / "r")
    assert result.environment["WANDB_TAGS"] == "cpu  big,tiny,full"
    assert json.loads(result.environment["MLFLOW_TAGS"]) == {
        "profile": "cpu, big", "recipe": "tiny", "sample": "full", "leviathan.run": identity,
    }  # fmt: skip
    origins = {key: origin for key, _, origin in result.rows()}
    assert origins["wandb_project"] == Origin("track", "--track wandb,trackio,mlflow")


def test_the_users_names_win_over_ours(rendered):
    shell = {"WANDB_RUN_ID": "abc", "MLFLOW_EXPERIMENT_NAME": "e"}
    result = rendered("wandb_project=mine", track=("wandb", "mlflow"), environment=shell)
    assert result.tree["wandb_project"] == "mine"
    assert not {"wandb_run_id", "mlflow_experiment_name"} & {*result.tree}
    origins = {key: origin.layer for key, _, origin in result.rows()}
    assert (origins["wandb_project"], origins["wandb_name"]) == ("--set", "track")


@pytest.mark.parametrize("track", [(), ("tensorboard",)])
def test_what_was_not_asked_for_is_off(rendered, track):
    """A project's name alone would turn wandb on inside Axolotl."""
    result = rendered("use_wandb=true", "wandb_project=p", "mlflow_experiment_name=e", track=track)
    assert tracker_keys(result) == {f"use_{name}": True for name in track}


def test_wandb_finds_the_settings_of_the_directory(rendered):
    """``wandb offline`` leaves them there; elsewhere the run would go online."""
    assert "WANDB_DIR" not in rendered(track=("wandb",), wandb_workspace=True).environment


def test_an_identity_outlives_sessions_and_machines_not_beginnings(project):
    here = Run("r", project, "a", "p", "s", begun=7.25, beginning=1)
    moved = Run("r", project / "elsewhere", "a", "q", "s", begun=7.25)
    anew = Run("r", project, "a", "p", "s", begun=8.25, beginning=2)
    assert here.identity == moved.identity != anew.identity
    assert (here.title, anew.title) == ("r", "r-2")


@pytest.mark.parametrize(
    ("words", "found"),
    [(None, None), ([], None), (["none"], ()), (["wandb,tensorboard"], ("tensorboard", "wandb")),
     (["mlflow", "trackio", "mlflow"], ("trackio", "mlflow"))],
)  # fmt: skip
def test_track_is_repeatable_or_a_list(words, found):
    assert trackers.parse(words) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [(["tensorbord"], "tensorbord"), ([""], "''"), (["none", "wandb"], "excludes")],
)
def test_a_wrong_track_is_one_line(words, message):
    with pytest.raises(BadInput, match=message):
        trackers.parse(words)


def test_what_is_not_installed_is_refused():
    with pytest.raises(BadInput) as error:
        trackers.refuse_unusable(("wandb", "mlflow"), {}, Here(ALL - {"mlflow"}))
    assert error.value.line == (
        "mlflow (--track wandb,mlflow) is not installed; pip install mlflow, or --track none"
    )
    with pytest.raises(BadInput, match="trackio"):
        trackers.refuse_unusable(None, {"use_trackio": True}, Here(frozenset()))
    trackers.refuse_unusable((), {"use_trackio": True}, Here(frozenset()))


@pytest.mark.parametrize(
    ("tree", "environment", "netrc", "refused"),
    [
        ({}, {}, "", True),
        ({}, {}, "machine other.example login u password p", True),
        ({}, {}, "machine api.wandb.ai login user password " + SECRET, False),
        ({}, {"WANDB_API_KEY": SECRET}, "", False),
        ({}, {"WANDB_MODE": "offline"}, "", False),
        ({"wandb_mode": "offline"}, {}, "", False),
        ({"wandb_mode": "online"}, {"WANDB_MODE": "offline"}, "", True),
        ({}, {"WANDB_BASE_URL": "https://other.example"},
         "machine other.example login u password p", False),
    ],
)  # fmt: skip
def test_wandb_without_a_key_is_refused(tmp_path, monkeypatch, tree, environment, netrc, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".netrc").write_text(netrc)
    here = trackers.look({"HOME": str(tmp_path), **environment})
    if not refused:
        trackers.refuse_unusable(("wandb",), tree, here)
        return
    with pytest.raises(BadInput, match="wandb has no key"):
        trackers.refuse_unusable(("wandb",), tree, here)


@pytest.mark.parametrize(
    "arguments",
    [("--track", "nonsense"), ("--track", "mlflow"), ("--track", "wandb"),
     ("--set", f"comet_api_key={SECRET}"), ("--set", f"wandb_api_key={SECRET}"),
     ("--set", f"mlflow_tracking_uri=https://me:{SECRET}@host")],
)  # fmt: skip
def test_bad_input_writes_nothing_and_tells_no_secret(run_cli, project, monkeypatch, arguments):
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("HOME", str(project))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    done = run_cli("train", "-p", "tiny", "-r", "tiny", "-s", "full", *arguments)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert SECRET not in done.output
    assert not (project / "work").exists()


def test_a_secret_in_a_file_is_refused_where_it_stands(run_cli, project):
    recipe = project / "configs/recipes/tiny.yaml"
    text = recipe.read_text()
    assert "axolotl:" in text
    recipe.write_text(text.replace("axolotl:", f"axolotl:\n  comet_api_key: {SECRET}"))
    line = recipe.read_text().splitlines().index(f"  comet_api_key: {SECRET}") + 1
    done = run_cli("render", "-p", "tiny", "-r", "tiny", "-s", "full")
    assert done.exit_code == 2
    assert f"tiny.yaml:{line}: comet_api_key holds a key or password" in done.stderr
    assert SECRET not in done.output


def test_render_adds_trackers_only_when_asked(run_cli):
    command = ("render", "-p", "tiny", "-r", "tiny", "-s", "full")
    assert not any(map(trackers.is_key, yaml.safe_load(run_cli(*command).stdout)))
    shown = yaml.safe_load(run_cli(*command, "--track", "trackio").stdout)
    assert shown["trackio_run_name"] == "tiny_full_tiny"


def test_trackers_may_change_between_sessions(crashed):
    """And the command that goes on repeats what was asked for."""
    resumed = crashed.run("--track", "none", mode="crash", crash_at=11)
    assert "--track none" in resumed.stderr
    tree = yaml.safe_load((crashed.run_dir / "axolotl.yaml").read_text())
    assert "checkpoint-10" in tree["resume_from_checkpoint"]
    assert "use_tensorboard" not in tree
    last = crashed.run("--track", "tensorboard", "--set", "trackio_project_name=x")
    assert last.code == 0, last
    assert yaml.safe_load((crashed.run_dir / "axolotl.yaml").read_text())["use_tensorboard"]


def test_a_key_in_the_environment_reaches_no_file(trainings, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    done = trainings.run("--track", "wandb,tensorboard")
    assert done.code == 0, done
    tree = yaml.safe_load((trainings.run_dir / "axolotl.yaml").read_text())
    assert tree["use_wandb"] is True
    found = subprocess.run(["grep", "-rl", SECRET, trainings.project, trainings.logs], check=False)
    assert found.returncode == 1


def test_a_probe_is_not_tracked(rendered, project):
    """Neither by a default nor by the user's own keys (``probe.overlay``)."""
    from leviathan import probe

    tree = rendered("use_wandb=true", "wandb_name=x").tree
    sample = probe.Probe(None, None, 1, 1, 1, 1)
    _, gone = probe.overlay(tree, sample)
    assert {key for key in tree if trackers.is_key(key)} <= set(gone)


def test_a_dry_run_tells_the_trackers(project):
    config = layers.build("tiny", "tiny", "full", [])
    plan = train.plan_of_action(train.decide(config, track=("tensorboard",)))
    assert plan["trackers"] == ["tensorboard (--track tensorboard)"]


def test_the_shells_variables_win_over_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", "mine")
    ours = {"WANDB_TAGS": "ours", "WANDB_RESUME": "allow"}
    found = launch.environment(runs.RunPaths(tmp_path), Profile(), ours)
    assert (found["WANDB_TAGS"], found["WANDB_RESUME"]) == ("mine", "allow")
