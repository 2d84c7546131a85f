"""Merges by the real Axolotl, and the proof that tells a good one from a bad one."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
from project import RUN, TINY, Project

import tiny
from leviathan import checkpoints, parity, proving, runs

pytestmark = pytest.mark.real


@pytest.fixture
def finished(reference, tmp_path) -> Project:
    shutil.copytree(reference.directory, tmp_path / "project")
    return Project(tmp_path / "project")


def proof(project: Project, name: str = f"{RUN}-merged") -> dict:
    return json.loads((project.directory / "models" / name / "merge-proof.json").read_text())


def passes(project: Project, name: str = f"{RUN}-merged", checks: int = 9) -> bool:
    """Whether every check of what servers read is simply ok."""
    findings = proof(project, name)["serving_parity"]
    assert {one["state"] for one in findings} == {"ok"}, findings
    return len(findings) == checks


def test_merged_equals_what_was_trained_and_differs_from_the_base(finished):
    done = finished.run("merge", "--quantize", "int8-int4", "--json")
    assert done.code == 0, done.err
    found = proof(finished)
    assert found["verdict"] == "equal"
    assert found["argmax_agreement"] == 1.0
    assert found["max_abs_diff"] < 1e-4 < found["adapter_effect"]
    assert found["differs_from_base"]
    assert "model.safetensors" in found["hashes"]
    assert passes(finished)
    merged = finished.directory / "models" / f"{RUN}-merged"
    assert not (merged / "UNVERIFIED").exists()
    assert not list(merged.parent.glob(".*.partial"))
    four = proof(finished, f"{RUN}-merged-int8-int4")
    assert four["kind"] == "quantised int8-int4"
    # Still the trained model, but only about: both are said, and neither is called equal.
    assert found["relative_error"] < 1e-5 < four["relative_error"] < 0.9
    assert four["verdict"] == "different"
    said = json.loads(done.out)
    assert (said["verdict"], said["quantised"]["verdict"]) == ("equal", "different")
    assert said["quantised"]["max_abs_diff"] == four["max_abs_diff"]
    assert said["serving_parity"] == found["serving_parity"]
    assert passes(finished, f"{RUN}-merged-int8-int4", checks=6)
    answer = finished.run("infer", str(merged), "--prompt", "Repeat: alpha beta")
    assert answer.code == 0, answer.err


def test_the_adapter_alone_is_proven_on_its_base(finished):
    done = finished.run("merge", "--adapter-only")
    assert done.code == 0, done.err
    shipped = finished.directory / "models" / f"{RUN}-adapter"
    names = {path.name for path in shipped.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not any(name.startswith(("optimizer", "trainer", "model")) for name in names)
    found = proof(finished, shipped.name)
    assert (found["verdict"], found["kind"]) == ("equal", "adapter")
    assert found["max_abs_diff"] == 0 < found["adapter_effect"]
    assert passes(finished, shipped.name, checks=6)
    assert found["hashes"]["adapter_model.safetensors"] == found["hashes"][
        "checkpoint/adapter_model.safetensors"]  # fmt: skip


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
    # But the rows were alpaca's: a conversation put through it is none that was trained.
    assert "serving parity: 8 of 9 checks pass" in done.out
    assert "chat template, warn: the tokenizer brings one that training did not use" in done.out


QLORA = ("adapter=qlora", "load_in_4bit=true")
TRAINED_EMBEDDINGS = ("lora_modules_to_save=[embed_tokens,lm_head]",)
CHAT = ("chat_template=chatml", "special_tokens={eos_token: <|im_end|>}")
ADDED_TOKENS = ("tokens=['<|tool|>','<|end|>','<|think|>']",)


@pytest.mark.parametrize(
    ("family", "tied", "sets", "options"),
    [
        ("qwen2", True, (*QLORA, *TRAINED_EMBEDDINGS, *ADDED_TOKENS), ("--shard-gb", "0.001")),
        ("gemma3", True, (*QLORA, *CHAT), ()),
        ("qwen3", False, (*ADDED_TOKENS, *TRAINED_EMBEDDINGS), ("--dtype", "bf16")),
    ],
)
def test_every_family_merges_into_what_was_trained(
    template, fork_server, tmp_path, family, tied, sets, options
):
    shutil.copytree(template, tmp_path / "project", ignore=shutil.ignore_patterns("base"))
    project = Project(tmp_path / "project", fork_server)
    base, rows = project.directory / "base", project.directory / "rows.jsonl"
    vocabulary = len(json.loads((template / "base/tokenizer.json").read_text())["model"]["vocab"])
    tiny.write_model(base, rows, family, tied=tied, vocabulary=vocabulary, max_shard_size="100KB")
    if CHAT[0] in sets:
        in_conversations(project)
    short = ("save_steps=30", "eval_steps=30", "max_steps=30")
    done = project.run(*TINY[:7], *(part for text in (*short, *sets) for part in ("--set", text)))
    assert done.code == 0, done.err
    done = project.run("merge", *options)
    assert done.code == 0, done.err
    found = proof(project)
    served = found["serving"]
    assert found["verdict"] == "equal"
    assert "serving parity: 9 of 9 checks pass" in done.out
    if CHAT[0] in sets:
        serves_conversations(project, proof(project)["serving_parity"])
    else:
        assert passes(project)
    assert served["disagreements"] == served["near_ties"]
    assert served["greedy_partings"] == served["greedy_near_ties"]
    if "bf16" in options:
        assert served["computed"] == "cpu bfloat16 / cpu bfloat16"
        assert 0 < served["max_abs_diff"] < 4 * served["rounding"]
    else:
        assert found["argmax_agreement"] == served["argmax_agreement"] == 1.0
        assert found["max_abs_diff"] < 2e-5 < 1e-2 * found["adapter_effect"]
    merged = project.directory / "models" / f"{RUN}-merged"
    told = json.loads((merged / "config.json").read_text())
    trained_apart = TRAINED_EMBEDDINGS[0] in sets and tied
    assert told["tie_word_embeddings"] == (tied and not trained_apart)
    assert told["vocab_size"] == vocabulary + (3 if ADDED_TOKENS[0] in sets else 0)


def in_conversations(project: Project) -> None:
    """Turn the recipe and its rows into conversations."""
    recipe, rows = project.directory / "configs/recipes/tiny.yaml", project.directory / "rows.jsonl"
    recipe.write_text(recipe.read_text().replace("format: alpaca", "format: chat"))
    with rows.open() as lines:
        pairs = [(row["instruction"], row["output"]) for row in map(json.loads, lines)]
    with rows.open("w") as out:
        for asked, said in pairs:
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            out.write(json.dumps({"messages": turns}) + "\n")


def serves_conversations(project: Project, findings: list[dict]) -> None:
    """The base had no template and ended texts elsewhere; what is shipped does as trained.

    And does not, where its template is deleted and its eos token is the base's again.
    """
    found = {one["check"]: one for one in findings}
    assert {name: one["state"] for name, one in found.items() if one["state"] != "ok"} == {
        "stop ids": "fixed"}  # fmt: skip
    assert found["rendered tokens"]["evidence"].endswith("equal to those trained on")
    merged = project.directory / "models" / f"{RUN}-merged"
    template, ends = merged / "chat_template.jinja", merged / "generation_config.json"
    assert json.loads(ends.read_text())["eos_token_id"] == [2, 0]
    assert set(states(project, repair=False).values()) == {"ok"}
    trained = template.read_text()
    template.unlink()
    ends.write_text(json.dumps({"eos_token_id": 0}))
    wrong = {name for name, state in states(project, repair=False).items() if state == "fail"}
    assert wrong == {"stop ids", "chat template", "rendered tokens"}
    put_right = {name for name, state in states(project).items() if state == "fixed"}
    assert put_right == {"stop ids", "chat template"}
    assert template.read_text() == trained
    assert set(states(project, repair=False).values()) == {"ok"}


def states(project: Project, **more) -> dict[str, str]:
    """What every check comes to, as in a merge; the run names its base from its directory."""
    with contextlib.chdir(project.directory):
        run = runs.RunPaths(project.path(RUN))
        job = proving.prepare(run, checkpoints.choose(run.directory, "best"))
        merged = project.directory / "models" / f"{RUN}-merged"
        subject = parity.subject_of(proving.subject(job, merged, "merged"))
        return {one.check: one.state for one in parity.check(replace(subject, **more))}


def test_the_alpaca_prompt_is_axolotls_own():
    from axolotl.prompters import AlpacaPrompter

    from leviathan.models import ALPACA

    assert ALPACA.format(prompt="Do it.") == next(AlpacaPrompter().build_prompt("Do it."))
