"""Finding base models: local directories and the hub's cache, whole and not."""

import json
import struct

import pytest

import tiny
from leviathan import basemodel

HUB = {"HF_HUB_CACHE": "hub"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_weights(path, claimed=100, written=100):
    header = {"w": {"dtype": "U8", "shape": [claimed], "data_offsets": [0, claimed]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(written))


def test_a_whole_local_model(here):
    model = tiny.write_hollow_model(here / "base")
    write_weights(model / "model.safetensors")
    found = basemodel.locate({"base_model": "base"}, {})
    assert (str(found.directory), found.missing, found.is_local) == ("base", (), True)
    assert found.weight_bytes == (model / "model.safetensors").stat().st_size > 100


def remove(name):
    return lambda model: (model / name).unlink()


def cut(model):
    write_weights(model / "model.safetensors", written=99)


def index(*written):
    """Weights in three files, of which only some are there."""

    def change(model):
        (model / "model.safetensors").unlink()
        names = [f"model-{n}.safetensors" for n in (1, 2, 3)]
        weight_map = {f"w{n}": name for n, name in enumerate([*names, names[0]])}
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        for n in written:
            write_weights(model / f"model-{n}.safetensors")

    return change


@pytest.mark.parametrize(
    ("change", "tree", "missing"),
    [
        (remove("config.json"), {}, ("config.json",)),
        (remove("tokenizer.json"), {}, ("the tokenizer",)),
        (remove("tokenizer.json"), {"tokenizer_config": "other"}, ()),
        (remove("model.safetensors"), {}, ("model.safetensors",)),
        (remove("model.safetensors"), {"reinit_weights": True}, ()),
        (lambda model: (model / "model.safetensors").write_bytes(b""), {}, ("model.safetensors",)),
        (lambda model: (model / "model.safetensors").write_bytes(b"\1nope"), {}, ("model.safetensors",)),
        (cut, {}, ("model.safetensors",)),
        (index(1, 2, 3), {}, ()),
        (index(1, 3), {}, ("model-2.safetensors",)),
        (index(), {}, ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors")),
    ],
)  # fmt: skip
def test_what_a_model_lacks(here, change, tree, missing):
    change(tiny.write_hollow_model(here / "base"))
    assert basemodel.locate({"base_model": "base", **tree}, {}).missing == missing


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_CACHE": "x/hub"}, {"HUGGINGFACE_HUB_CACHE": "x/hub"}, {"HF_HOME": "x"},
        {"HF_HUB_CACHE": "$PWD/x/hub"}, {"HF_HUB_CACHE": "x/hub", "HF_HOME": "elsewhere"},
    ],
)  # fmt: skip
def test_the_hubs_cache_is_where_its_variables_say(here, monkeypatch, environment):
    monkeypatch.setenv("PWD", str(here))
    model = here / "x/hub/models--owner--name"
    tiny.write_hollow_model(model / "snapshots/abc")
    (model / "refs").mkdir()
    (model / "refs/main").write_text("abc\n")
    found = basemodel.locate({"base_model": "owner/name"}, environment)
    assert found.directory is not None
    assert (found.directory.name, found.missing, found.is_local) == ("abc", (), False)
    by_commit = {"base_model": "owner/name", "revision_of_model": "abc"}
    assert basemodel.locate(by_commit, environment).directory == found.directory
    other = {"base_model": "owner/name", "revision_of_model": "v2"}
    assert basemodel.locate(other, environment).directory is None
    assert basemodel.locate({"base_model": "owner/other"}, environment).directory is None


def test_the_default_cache_is_huggingface_hubs_own(here, monkeypatch):
    """Asked of huggingface_hub itself."""
    import importlib

    from huggingface_hub import constants

    for environment in ({"XDG_CACHE_HOME": str(here)}, {"HF_HOME": str(here / "h")}):
        with monkeypatch.context() as patch:
            for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            importlib.reload(constants)
            assert str(basemodel.hub_home(environment)) == constants.HF_HOME
            token = here / "token"
            token.write_text("x")
            assert basemodel.has_token({"HF_TOKEN_PATH": str(token)})
    importlib.reload(constants)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({"HF_TOKEN": "hf_x"}, True), ({"HUGGING_FACE_HUB_TOKEN": "hf_x"}, True),
     ({"HF_HOME": "with"}, True), ({"HF_HOME": "without"}, False)],
)  # fmt: skip
def test_a_token(here, environment, expected):
    (here / "with").mkdir()
    (here / "with/token").write_text("hf_x")
    assert basemodel.has_token({"XDG_CACHE_HOME": str(here), **environment}) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({"HF_HUB_OFFLINE": "1"}, True), ({"HF_HUB_OFFLINE": "0"}, False),
     ({"TRANSFORMERS_OFFLINE": "yes"}, True),
     ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, False)],
)  # fmt: skip
def test_offline(environment, expected):
    assert basemodel.is_offline(environment) == expected
