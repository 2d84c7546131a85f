"""An adapter without its run: what it belongs on, and what nothing vouches for."""

import json

import pytest
import xxhash

import tiny
from leviathan import evaluate, loose, models
from leviathan.errors import BadInput, Refused


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.write_hollow_model(tmp_path / "base")


def write_adapter(directory, **config):
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


def pulled(directory, **facts):
    """The note that ``cloud pull --for serve`` leaves beside it."""
    weights = (directory / "adapter_model.safetensors").read_bytes()
    entry = {"bytes": len(weights), "xxh3_64": xxhash.xxh3_64_hexdigest(weights)}
    told = {"schema": 1, "run": "my_run", "checkpoint": 10, "base_model": "base", "base": None,
            "files": {"adapter_model.safetensors": entry}, **facts}  # fmt: skip
    (directory / "transfer.json").write_text(json.dumps(told))
    return directory


def test_what_was_pulled_is_whole_and_held_as_in_training(base, tmp_path):
    held = {"adapter": "qlora", "load_in_4bit": True, "bf16": True}
    facts = {"base": models.fingerprint(str(base)), "format": "completion", "held": held}
    directory = pulled(write_adapter(tmp_path / "a"), **facts)
    source = evaluate.resolve(str(directory), "best")[0]
    assert (source.model, source.adapter) == (str(base), directory)
    assert (source.row_format, source.train_dtype) == ("completion", "bfloat16")
    assert source.quantised["load_in_4bit"]
    assert source.caution == (
        f"no run vouches for the adapter {directory}: it is whole, and checkpoint-10 of my_run "
        "only as transfer.json says"
    )


def test_one_from_anywhere_says_what_is_assumed(base, tmp_path):
    directory = write_adapter(tmp_path / "a", base_model_name_or_path=str(base))
    source = loose.read(directory)
    assert (source.model, source.quantised) == (str(base), None)
    assert "no digest says that it is whole; its base is taken unquantised" in source.caution


def test_a_base_that_moved_is_found_by_the_adapters_own_word(base, tmp_path):
    directory = pulled(
        write_adapter(tmp_path / "a", base_model_name_or_path="base"), base_model="/gone/base"
    )
    assert loose.read(directory).model == str(base)


def test_a_proof_that_holds_needs_no_warning(base, tmp_path):
    directory = write_adapter(tmp_path / "a")
    weights = directory / "adapter_model.safetensors"
    digest = f"xxh3_128:{xxhash.xxh3_128_hexdigest(weights.read_bytes())}"
    proof = {"verdict": "equal", "base_model": "base", "format": "alpaca",
             "base_digest": models.fingerprint(str(base)), "hashes": {weights.name: digest}}  # fmt: skip
    (directory / "merge-proof.json").write_text(json.dumps(proof))
    assert loose.read(directory).caution == ""
    weights.write_bytes(b"others!")
    assert loose.read(directory).caution


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (lambda d: (d / "adapter_model.safetensors").unlink(), BadInput, "has no adapter_model"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"Weights"), Refused,
         "is not what was pulled: adapter_model.safetensors is not what was committed"),
        (lambda d: pulled(d, base="xxh3_128:0"), Refused, "is not the base model that"),
        (lambda d: pulled(d, base_model="gone/base"), BadInput, "the base model gone/base of"),
        (lambda d: pulled(d, base_model=None), BadInput, "does not say which model it belongs on"),
        (lambda d: pulled(d, files={"x": 1}), Refused, "transfer.json is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(base, tmp_path, spoil, kind, said):
    directory = pulled(write_adapter(tmp_path / "a"))
    spoil(directory)
    with pytest.raises(kind, match=said) as caught:
        loose.read(directory)
    assert "\n" not in str(caught.value)


def test_a_directory_of_a_runs_checkpoint_is_the_runs(crashed, monkeypatch):
    monkeypatch.chdir(crashed.project)
    (crashed.project / "base").mkdir()
    source, recipe, run = evaluate.resolve(str(crashed.run_dir / "checkpoint-5"), "best")
    assert source.adapter == crashed.run_dir / "checkpoint-5"
    assert (recipe.format, run.directory) == ("alpaca", crashed.run_dir)
    assert source.caution == ""
