"""Merges by the real Axolotl, and the proof that tells a good one from a bad one."""

import json
import shutil

import pytest
from project import RUN, Project

pytestmark = pytest.mark.real


@pytest.fixture
def finished(reference, tmp_path) -> Project:
    shutil.copytree(reference.directory, tmp_path / "project")
    return Project(tmp_path / "project")


def proof(project: Project, name: str = f"{RUN}-merged") -> dict:
    return json.loads((project.directory / "models" / name / "merge-proof.json").read_text())


def test_merged_equals_what_was_trained_and_differs_from_the_base(finished):
    done = finished.run("merge")
    assert done.code == 0, done.err
    found = proof(finished)
    assert found["verdict"] == "equal"
    assert found["argmax_agreement"] == 1.0
    assert found["max_abs_diff"] < 1e-4 < found["adapter_effect"]
    assert found["differs_from_base"]
    assert "model.safetensors" in found["hashes"]
    merged = finished.directory / "models" / f"{RUN}-merged"
    assert not (merged / "UNVERIFIED").exists()
    assert not list(merged.parent.glob(".*.partial"))
    answer = finished.run("infer", str(merged), "--prompt", "Repeat: alpha beta")
    assert answer.code == 0, answer.err


def test_an_adapter_that_does_nothing_is_refused(finished):
    from safetensors.torch import load_file, save_file

    for checkpoint in finished.path(RUN).glob("checkpoint-*"):
        weights = checkpoint / "adapter_model.safetensors"
        tensors = {
            name: tensor * 0 if "lora_B" in name else tensor
            for name, tensor in load_file(weights).items()
        }
        save_file(tensors, weights, metadata={"format": "pt"})
        (checkpoint / "leviathan-commit.json").unlink()
    done = finished.run("merge")
    assert done.code == 3
    assert "is unverified: the adapter changes nothing" in done.err
    assert proof(finished)["verdict"] == "unproven"
    assert (finished.directory / "models" / f"{RUN}-merged" / "UNVERIFIED").exists()


def test_the_trained_chat_template_is_what_is_shipped(finished):
    """Axolotl's merge copies the base's tokenizer; the template trained with would be lost."""
    for checkpoint in finished.path(RUN).glob("checkpoint-*"):
        (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        (checkpoint / "leviathan-commit.json").unlink()
    done = finished.run("merge", "--output", "models/with-template")
    assert done.code == 0, done.err
    merged = finished.directory / "models/with-template"
    assert (merged / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"


def test_the_alpaca_prompt_is_axolotls_own():
    from axolotl.prompters import AlpacaPrompter

    from leviathan.models import ALPACA

    assert ALPACA.format(prompt="Do it.") == next(AlpacaPrompter().build_prompt("Do it."))
