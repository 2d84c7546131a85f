"""Whose proof is sound: what serve and push ask before they go on."""

import json

import pytest

from leviathan import corpus, evidence
from leviathan.errors import BadInput, Refused


def model(directory, verdict="equal", config="config.json", **told):
    """A directory with a proof of its files."""
    directory.mkdir()
    (directory / config).write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    hashes = {f.name: corpus.file_digest(f) for f in directory.iterdir()}
    hashes["checkpoint/adapter_model.safetensors"] = "xxh3_128:of the run, not of this directory"
    document = {"verdict": verdict, "reason": "because", "hashes": hashes, **told}
    (directory / evidence.PROOF).write_text(json.dumps(document))
    return directory


def damage(name, data):
    return lambda directory: (directory / name).write_bytes(data)


def remove(name):
    return lambda directory: (directory / name).unlink()


def nothing(_directory):
    pass


@pytest.mark.parametrize("config", ["config.json", "adapter_config.json"])
def test_a_proven_model_is_let_through(tmp_path, config):
    directory = model(tmp_path / "m", config=config, max_abs_diff=1e-6)
    found = evidence.demand(directory, force=False)
    assert (found.verdict, found.reason, found.told["max_abs_diff"]) == ("equal", "because", 1e-6)


@pytest.mark.parametrize(
    ("verdict", "change", "reason"),
    [
        ("different", nothing, "is not proven: because"),
        ("unproven", nothing, "is not proven: because"),
        ("EQUAL", nothing, "is not proven: because"),
        ("equal", remove(evidence.PROOF), "is not proven: it has no merge-proof.json"),
        ("equal", damage(evidence.PROOF, b'{"verdict": "eq'), "its merge-proof.json cannot be"),
        ("equal", damage(evidence.PROOF, b"[]"), "its merge-proof.json cannot be read"),
        ("equal", damage(evidence.PROOF, b"{}"), "its merge-proof.json cannot be read"),
        ("equal", damage(evidence.PROOF, b'{"verdict": "equal", "hashes": []}'), "cannot be read"),
        ("equal", damage(evidence.PROOF, b'{"verdict": "equal", "hashes": {}}'), "names no file"),
        ("equal", damage("more.safetensors", b"w"), "since it was proven: more.safetensors"),
        ("equal", damage(evidence.PROOF, b"\xff\xfe"), "its merge-proof.json cannot be read"),
        ("equal", damage("model.safetensors", b"weightz"), "since it was proven: model.safe"),
        ("equal", remove("model.safetensors"), "changed since it was proven: model.safetensors"),
        ("equal", damage("config.json", b"{ }"), "changed since it was proven: config.json"),
    ],
)
def test_an_unproven_or_changed_model_is_refused_unless_forced(tmp_path, verdict, change, reason):
    directory = model(tmp_path / "m", verdict)
    change(directory)
    with pytest.raises(Refused, match=reason) as error:
        evidence.demand(directory, force=False)
    assert "--force" in str(error.value.hint)
    assert evidence.demand(directory, force=True) == evidence.of(directory)


def test_what_is_no_model_is_bad_input_even_with_force(tmp_path):
    with pytest.raises(BadInput, match="is no model"):
        evidence.demand(tmp_path, force=True)


def test_all_changed_files_are_named(tmp_path):
    directory = model(tmp_path / "m")
    damage("model.safetensors", b"")(directory)
    remove("config.json")(directory)
    told = json.loads((directory / evidence.PROOF).read_text())
    assert evidence.changed_files(directory, told) == ["config.json", "model.safetensors"]
