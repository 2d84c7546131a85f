"""What is launched: whole YAML files against snapshots, and Axolotl's own word on them.

After a wanted change: LEVIATHAN_REWRITE_SNAPSHOTS=1 pytest tests/test_render.py, then
read the diff.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fakes.gpus import MACHINES
from leviathan import cards, config, detect, layers, render
from leviathan.errors import BadInput

SNAPSHOTS = Path(__file__).parent / "snapshots"
SHIPPED = {one.name: one.profile.hardware for one in cards.shipped()}
TARGET = render.Target(
    run_dir=Path("/runs/leviathan_10pct"),
    dataset=Path("/data/rows.jsonl"),
    base_model="meta-llama/Llama-3.1-8B",
)


def rendered(keys, profile, *sets, target=TARGET, flash_attn=True, gpu=True, recipe="leviathan"):
    merged = layers.build(recipe, profile, "10pct", sets)
    return render.render(merged, target, flash_attn=flash_attn, gpu=gpu, schema=keys)


def same_as_snapshot(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("LEVIATHAN_REWRITE_SNAPSHOTS"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("profile", sorted({*SHIPPED, "cpu"}))
def test_whole_yaml(keys, profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same_as_snapshot(f"{profile}.yaml", rendered(keys, profile).yaml())


def test_explained(keys, tmp_path, monkeypatch):
    """Every leaf has its row, and every file:line it names is the line of that key."""
    monkeypatch.chdir(tmp_path)
    found = rendered(keys, "a4000", "lora_r=16", "axolotl.datasets.0.type=completion")
    rows = []
    for key, value, origin in found.rows():
        path, _, line = origin.where.rpartition(":")
        where = origin.where
        if path.endswith(".yaml"):
            where = Path(path).name
            text = Path(path).read_text().splitlines()[int(line) - 1]
            own_key = {"datasets.0.ds_type": "format", "num_epochs": "epochs"}.get(key, key)
            assert f"{own_key.split('.')[-1]}:" in text, (key, text)
        rows.append(f"{key} = {value!r}  [{origin.layer}] {where}\n")
    same_as_snapshot("a4000-explained.txt", "".join(rows))
    assert len(rows) == len({row.partition(" = ")[0] for row in rows})


VALIDATE = """
import json, os, sys
import yaml
from axolotl.cli.config import prepare_plugins
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
import axolotl.integrations.liger, leviathan.plugin  # once, not in every child

for path, capability, count in json.loads(sys.argv[1]):
    if os.fork() == 0:  # PluginManager is a singleton: one config per process
        status = 1
        try:
            cfg = DictDefault(yaml.safe_load(open(path)))
            prepare_plugins(cfg)
            modern = int(capability[3:]) >= 80
            capabilities = {"bf16": modern, "fp8": False, "tf32": modern, "n_gpu": count,
                            "compute_capability": capability}
            checked = validate_config(
                cfg, capabilities=capabilities, env_capabilities={"torch_version": "2.13.0"})
            with open(path + ".checked", "w") as out:
                json.dump({"keys": sorted(checked), "leviathan": dict(checked.leviathan),
                           "learning_rate": checked.learning_rate}, out, default=str)
            status = 0
        except BaseException as error:
            print(f"{path}: {error!r}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(status)
failed = 0
for _ in json.loads(sys.argv[1]):
    failed |= os.wait()[1]
sys.exit(bool(failed))
"""


SHARDED = ("a100x8", "h100x8")
GUIDES = (
    ("nanochat", "a100-40gb", ("base", "mid", "sft", "rl")),
    ("nanochat-d64", "h100x8", ("base",)),
    ("pure-transformer", "a100x8", ("base", "rl")),
)
"""Recipes of models from nothing, each with the machine it is meant for."""


def sharded(name: str, directory: Path) -> str:
    """A copy of a shipped profile whose FSDP lines count; its name."""
    text = (Path(__file__).parents[1] / f"configs/profiles/{name}.yaml").read_text()
    lines = [re.sub(r"^  # (?=fsdp_|  \w+: )", "  ", line) for line in text.splitlines()]
    assert sum(a != b for a, b in zip(lines, text.splitlines(), strict=True)) == 8
    (directory / f"{name}-sharded.yaml").write_text("\n".join(lines))
    return f"{name}-sharded"


def test_the_fsdp_lines_of_a_profile_are_whole(keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = rendered(keys, f"{sharded('h100x8', tmp_path)}.yaml").tree
    assert tree["fsdp_version"] == 2
    assert tree["fsdp_config"] == {
        "state_dict_type": "SHARDED_STATE_DICT", "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "reshard_after_forward": True,
        "cpu_ram_efficient_loading": True, "offload_params": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "sets",
    [["fsdp_config.state_dict_type=FULL_STATE_DICT"], ["fsdp_config.offload_params=true"]],
    ids=["whole", "unsaid"],
)
def test_an_adapter_whose_shards_would_be_saved_whole_is_refused(keys, tmp_path, monkeypatch, sets):
    """A resume would go on from other weights, and nobody would know."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="SHARDED_STATE_DICT"):
        rendered(keys, "h100x8", *sets)
    rendered(keys, "h100x8", *sets, "adapter=null")  # measured: these resume exactly


def test_axolotl_itself_accepts_what_is_rendered(keys, tmp_path, monkeypatch):
    """As rendered: with our plugin, without a GPU, on behalf of the cards meant."""
    monkeypatch.chdir(tmp_path)
    meant = dict(SHIPPED)
    for name in ("t4", "two-3090", "2080ti", "l40s", "h100-pcie"):
        text, _ = detect.profile_for(MACHINES[name])
        Path(f"detected-{name}.yaml").write_text(text)
        meant[f"detected-{name}.yaml"] = config.parse_profile(text).hardware
    jobs = []
    for profile, hardware in meant.items():
        for flash_attn in (True, False):
            run_dir = tmp_path / f"{profile}-{flash_attn}"
            run_dir.mkdir()
            target = render.Target(run_dir, tmp_path / "rows.jsonl", TARGET.base_model)
            path = Path(f"{run_dir}.rendered")
            path.write_text(rendered(keys, profile, target=target, flash_attn=flash_attn).yaml())
            jobs.append((str(path), hardware.compute_capability, hardware.count))
    for name in SHARDED:  # with the lines for FSDP, taken from their comments
        merged = sharded(name, tmp_path)
        target = render.Target(tmp_path / merged, tmp_path / "rows.jsonl", TARGET.base_model)
        target.run_dir.mkdir()
        path = Path(f"{target.run_dir}.rendered")
        path.write_text(rendered(keys, f"{merged}.yaml", target=target).yaml())
        jobs.append((str(path), SHIPPED[name].compute_capability, 8))
    for recipe, name, stages in GUIDES:
        for stage in stages:
            run_dir = tmp_path / f"{recipe}.{stage}"
            run_dir.mkdir()
            target = render.Target(run_dir, tmp_path / "rows.jsonl", TARGET.base_model)
            path = Path(f"{run_dir}.rendered")
            whole = rendered(keys, name, f"stage={stage}", target=target, recipe=recipe)
            path.write_text(whole.yaml())
            jobs.append((str(path), SHIPPED[name].compute_capability, SHIPPED[name].count))
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE, json.dumps(jobs)],
        env={**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for path, *_ in jobs:
        checked = json.loads(Path(f"{path}.checked").read_text())
        wanted = yaml.safe_load(Path(path).read_text())
        assert set(wanted) <= set(checked["keys"])  # nothing was dropped silently
        assert checked["leviathan"] == wanted["leviathan"]
        assert checked["learning_rate"] == float(wanted["learning_rate"])
        assert (Path(wanted["leviathan"]["run_dir"]) / ".plugin.json").exists()  # the heartbeat


@pytest.mark.parametrize(
    ("flash_attn", "gpu", "attention", "why"),
    [
        (True, True, "flash_attention_2", None),
        (False, True, "sdpa", "flash-attn is not installed here"),
        (True, False, "sdpa", "there is no GPU here"),
        (False, False, "sdpa", "there is no GPU here"),
    ],
)
def test_attention_falls_back_and_says_so(project, keys, flash_attn, gpu, attention, why):
    found = rendered(keys, "a4000", flash_attn=flash_attn, gpu=gpu)
    assert found.tree["attn_implementation"] == attention
    origins = {key: o for key, _, o in found.rows()}
    if why:
        assert found.notes == (
            f"attn_implementation falls back from flash_attention_2 to sdpa: {why}",
        )
        assert origins["attn_implementation"].layer == "fallback"
    else:
        assert found.notes == ()
        assert origins["attn_implementation"].layer == "profile"


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_attention_that_needs_no_package_is_left_alone(project, keys, attention):
    found = rendered(keys, "a4000", f"attn_implementation={attention}", flash_attn=False, gpu=False)
    assert found.tree["attn_implementation"] == attention


def test_a_resume_and_its_session_are_in_the_yaml(project, keys):
    target = render.Target(
        Path("/r"), Path("/d"), "b", session=3, resume_from=Path("/r/checkpoint-5")
    )
    tree = rendered(keys, "cpu", target=target).tree
    assert tree["resume_from_checkpoint"] == "/r/checkpoint-5"
    keys_of_ours = {name: tree["leviathan"][name] for name in ("run_dir", "session", "keep")}
    assert keys_of_ours == {"run_dir": "/r", "session": 3, "keep": 3}
    assert tree["leviathan"]["guards"]["hot_c"] == 85.0
    assert "resume_from_checkpoint" not in rendered(keys, "cpu").tree


def test_users_plugins_stay_before_ours(project, keys):
    tree = rendered(keys, "cpu", "plugins=[mine.Plugin]", "my_own_key=5").tree
    assert tree["plugins"] == ["mine.Plugin", render.PLUGIN]
    assert tree["my_own_key"] == 5  # a plugin of the user's own may define it


def test_entries_after_the_first_keep_their_own_paths(project, keys):
    tree = rendered(keys, "cpu", "datasets=[{type: alpaca}, {path: more, type: alpaca}]").tree
    assert [d["path"] for d in tree["datasets"]] == [str(TARGET.dataset), "more"]


def test_rendering_leaves_the_config_as_it_was(project, keys):
    merged = layers.build("tiny", "tiny", "full")
    before = json.dumps(merged.tree)
    render.render(merged, TARGET, flash_attn=False, gpu=False, schema=keys)
    assert json.dumps(merged.tree) == before


def test_without_axolotl_the_missing_check_is_said(project):
    found = rendered(None, "tiny", "no_such_key=1", recipe="tiny")
    assert found.notes == ("keys were not checked: axolotl is not installed here",)


def test_wrong_keys_are_all_named_with_where_they_stand(project, keys):
    profile = Path("configs/profiles/tiny.yaml")
    profile.write_text(
        profile.read_text().replace("lora_r: 8", "lora_rr: 8").replace("bf16: false", "bf16: soon")
    )
    with pytest.raises(BadInput) as caught:
        rendered(keys, "tiny", "learning_rat=1", "datasets.0.tpe=x", recipe="tiny")
    lines = sorted(caught.value.message.splitlines())
    assert len(lines) == 4
    assert lines[0].startswith(
        "--set datasets.0.tpe=x: datasets.0.tpe is not a key Axolotl knows; did you mean type?"
    )
    assert lines[1].startswith(
        "--set learning_rat=1: learning_rat is not a key Axolotl knows; did you mean learning_rate?"
    )
    assert lines[2].startswith("configs/profiles/tiny.yaml:10: lora_rr is not a key")
    assert lines[3].startswith("configs/profiles/tiny.yaml:15: bf16: 'soon' does not fit")
