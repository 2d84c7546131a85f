"""The verdict on a merge, from made-up comparisons."""

import json
import math
import shutil
from dataclasses import asdict, fields, replace

import pytest

import tiny
from leviathan import fusion, models, proof, quantisation

GOOD = proof.Comparison(
    positions=2048, argmax_agreement=1.0, max_abs_diff=1e-6, relative_error=1e-6, kl=1e-9,
    adapter_effect=1.4, differs_from_base=True,
)  # fmt: skip


SERVED = proof.Serving(
    computed="cpu bfloat16 / cpu bfloat16", positions=2048, argmax_agreement=0.95,
    disagreements=100, near_ties=100, max_abs_diff=0.05, kl=1e-5, rounding=0.04,
    greedy_tokens=128, greedy_agreement=0.9, base_greedy_agreement=0.2, greedy_partings=2,
    greedy_near_ties=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word", "reason"),
    [
        ({}, "equal", "differs from the base"),
        ({"near_ties": 60}, "equal", ""),
        ({"near_ties": 59}, "different", "as served, 2.0% of positions favour another token"),
        ({"near_ties": 0}, "different", "as served, 4.9% of positions favour another token"),
        ({"greedy_near_ties": 1}, "different", "1 greedy answers leave the trained model's"),
        ({"max_abs_diff": math.inf}, "different", "as served (cpu bfloat16"),
        ({"rounding": math.inf}, "different", "a model gives NaN or infinite logits"),
    ],
)
def test_verdict_in_the_type_that_is_served(change, word, reason):
    found = replace(GOOD, serving=replace(SERVED, **change))
    assert proof.read(json.loads(json.dumps(asdict(found)))) == found
    said = proof.verdict(found, 0.98, 0.1)
    assert said[0] == word
    assert reason in said[1]


@pytest.mark.parametrize(
    ("change", "word", "reason"),
    [
        ({}, "equal", "differs from the base"),
        ({"adapter_effect": 0.0, "relative_error": math.inf}, "unproven", "changes nothing"),
        ({"differs_from_base": False}, "different", "is the base model"),
        ({"max_abs_diff": math.nan}, "unproven", "NaN"),
        ({"kl": math.inf}, "unproven", "NaN"),
        ({"adapter_effect": math.nan}, "unproven", "NaN"),
        ({"argmax_agreement": 0.82}, "different", "only 82.0% of positions"),
        ({"argmax_agreement": 0.98}, "equal", ""),
        ({"argmax_agreement": 0.9799}, "different", "only 98.0% of positions"),
        ({"relative_error": 0.1}, "equal", ""),
        ({"relative_error": 0.11}, "different", "off by 11.0% of the adapter's effect"),
        # What QLoRA's NF4 round trip did to embeddings and head (facts: 0.60 and 0.82).
        ({"max_abs_diff": 0.6, "argmax_agreement": 0.82, "relative_error": 0.4}, "different", ""),
        ({"positions": 0, "argmax_agreement": 0.0, "adapter_effect": 0.0}, "unproven", ""),
    ],
)
def test_verdict(change, word, reason):
    found = proof.verdict(replace(GOOD, **change), 0.98, 0.1)
    assert found[0] == word
    assert reason in found[1]


@pytest.mark.parametrize("nonsense", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", [f.name for f in fields(proof.Comparison) if f.type in ("float", float)]
)
def test_no_number_that_is_none_is_ever_equal(name, nonsense):
    if (name, nonsense) == ("argmax_agreement", math.inf):
        return  # a share; infinity cannot come out of a division of counts
    assert proof.verdict(replace(GOOD, **{name: nonsense}), 0.98, 0.1)[0] != "equal"


def test_limits_of_the_recipe_are_the_ones_applied():
    poor = replace(GOOD, argmax_agreement=0.9, relative_error=0.15)
    assert proof.verdict(poor, 0.98, 0.1)[0] == "different"
    assert proof.verdict(poor, 0.9, 0.15)[0] == "equal"


# --- real models, made by PEFT ---------------------------------------------------------

PROBES = ["alpha beta gamma delta epsilon repeat " * 4, "Repeat: eta theta iota kappa " * 5]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base whose favourites are clear, and a random adapter on it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("trained")
    rows = tiny.write_rows(directory / "rows.jsonl", 40)
    base = tiny.write_model(directory / "base", rows)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.05
    model.save_pretrained(directory / "adapter")
    shutil.copy(base / "tokenizer.json", directory / "adapter")
    shutil.copy(base / "tokenizer_config.json", directory / "adapter")
    return directory


def compared(trained, directory, change=None, dtype=None, tree=None, ends=None):
    """The proof of a merge of the adapter as ``change`` leaves it, against the true adapter."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained / "adapter", directory / "adapter")
    weights = directory / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(change(tensors) if change else tensors, weights, metadata={"format": "pt"})
    made = directory / "work/model"
    made.parent.mkdir()
    job = fusion.Job(trained / "base", directory / "adapter", made, "k", dtype, 10**9, tree or {})
    fusion.fuse(job, print)
    for file in (trained / "adapter").glob("tokenizer*"):
        shutil.copy(file, made)
    if ends:
        (made / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    source = models.Source(
        str(trained / "base"), trained / "adapter",
        quantised=quantisation.settings(tree or {}, "llama"),
        train_dtype=quantisation.train_dtype(tree or {}),
    )  # fmt: skip
    return proof.compare(source, models.Source(str(made)), PROBES)


def half(tensors):
    return {k: v * 0 if "layers.1" in k and "lora_B" in k else v for k, v in tensors.items()}


def nothing(tensors):
    return {k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}


def noisy(tensors):
    import torch

    return {k: v + 0.01 * torch.randn_like(v) for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [(half, "favour"), (nothing, "is the base model"), (noisy, "")],
)
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_a_merge_that_lost_or_spoiled_something_is_different(
    trained, tmp_path, change, reason, dtype
):
    found = compared(trained, tmp_path, change, dtype)
    word, said = proof.verdict(found, 0.98, 0.1)
    if change is nothing and dtype:  # bf16 rounds the base's own weights
        reason = "favour"
    assert word == "different"
    assert reason in said
    assert found.relative_error > 0.1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounding_of_the_served_type_is_told_from_disagreement(trained, tmp_path, dtype):
    found = compared(trained, tmp_path, dtype=dtype)
    served = found.serving
    assert proof.verdict(found, 0.98, 0.1)[0] == "equal"
    kind = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    assert served.computed == f"cpu {kind} / cpu {kind}"
    assert found.computed == "cpu float32 / cpu float32"
    assert served.near_ties == served.disagreements
    assert served.greedy_near_ties == served.greedy_partings
    # Of the size of the type's rounding, and far below what was trained.
    assert 0 < served.max_abs_diff < 4 * served.rounding < 0.1 * found.adapter_effect
    assert served.base_greedy_agreement < 0.5 < served.greedy_agreement


def test_where_float32_does_not_fit_the_served_type_measures_its_own_rounding(
    trained, tmp_path, monkeypatch
):
    """An 8B model in little memory: both in bf16, and no float32 to take a difference from."""
    import torch

    monkeypatch.setattr(models, "_placement", lambda *_, **__: ("cpu", torch.bfloat16))
    found = compared(trained, tmp_path, dtype="bf16")
    assert found.computed == "cpu bfloat16 / cpu bfloat16"
    assert found.serving.max_abs_diff < 4 * found.serving.rounding
    assert found.serving.near_ties == found.serving.disagreements


def test_near_ties_are_counted_where_the_trained_model_is_undecided():
    """Three positions: agreed; another favourite a hair apart; another favourite far apart."""
    import torch

    ours = torch.tensor([[3.0, 0.0], [1.00, 0.99], [2.0, 0.0]])
    theirs = torch.tensor([[3.0, 0.0], [0.99, 1.00], [0.0, 2.0]])
    said = [proof._Greedy([0, 0, 0], ours)]
    other = [proof._Greedy([0, 1, 1], theirs)]
    trained = proof._Answers("cpu bfloat16", [ours], [], said, said)
    merged = proof._Answers("cpu bfloat16", [theirs], [], other, [])
    found = proof._serving(trained, merged, rounding=0.01)
    assert (found.positions, found.disagreements, found.near_ties) == (3, 2, 1)
    assert found.disputed == pytest.approx(1 / 3)
    assert (found.greedy_partings, found.greedy_near_ties) == (1, 1)
    assert found.greedy_agreement == pytest.approx(1 / 3)
    assert found.base_greedy_agreement == 1
    sure = proof._serving(trained, merged, rounding=0.001)
    assert (sure.near_ties, sure.greedy_near_ties) == (0, 0)


def test_a_base_held_in_bf16_is_compared_in_float32(trained):
    import torch

    tree = {"adapter": "qlora", "load_in_4bit": True, "bf16": True}
    source = models.Source(
        str(trained / "base"), trained / "adapter", train_dtype="bfloat16",
        quantised=quantisation.settings(tree, "llama"),
    )  # fmt: skip
    model = models.Model(source, precise=True)
    assert model.computed == "cpu float32"
    kinds = {p.dtype for p in model.model.parameters() if type(p).__name__ != "Params4bit"}
    assert kinds == {torch.float32}
    embeddings = model.model.get_input_embeddings().weight
    assert torch.equal(embeddings, embeddings.bfloat16().float())  # as training held them


def test_in_float32_the_served_figures_are_the_precise_ones(trained, tmp_path):
    found = compared(trained, tmp_path, tree={"adapter": "qlora", "load_in_4bit": True})
    assert found.serving.computed == found.computed
    assert found.serving.argmax_agreement == found.argmax_agreement == 1.0
    assert found.serving.greedy_agreement == 1.0
    assert found.serving.max_abs_diff == found.max_abs_diff < 1e-5
    assert found.serving.greedy_tokens == proof.NEW_TOKENS * len(PROBES)


def test_what_files_tell_of_a_texts_end_changes_no_token_of_the_proof(trained, tmp_path):
    """A merge may write other ids than the base's: they are kept out of neither model's way."""
    found = compared(trained, tmp_path, ends=list(range(4, 400)))
    assert found.serving.greedy_agreement == 1.0


def test_eight_bits_are_merged_up_to_the_rounding_of_activations(trained, tmp_path):
    found = compared(trained, tmp_path, tree={"adapter": "lora", "load_in_8bit": True})
    assert 1e-5 < found.relative_error < 0.05
    assert found.argmax_agreement > 0.95


def test_the_wrong_base_is_different(trained, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained, tmp_path / "other")
    weights = tmp_path / "other/base/model.safetensors"
    torch.manual_seed(9)
    tensors = {k: v + 0.01 * torch.randn_like(v) for k, v in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    made = tmp_path / "work/model"
    made.parent.mkdir()
    job = fusion.Job(tmp_path / "other/base", trained / "adapter", made, "k", None, 10**9, {})
    fusion.fuse(job, print)
    for file in (trained / "adapter").glob("tokenizer*"):
        shutil.copy(file, made)
    source = models.Source(str(trained / "base"), trained / "adapter")
    found = proof.compare(source, models.Source(str(made)), PROBES)
    assert proof.verdict(found, 0.98, 0.1)[0] == "different"
