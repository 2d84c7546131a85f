"""Predicted memory against published measurements of real GPUs, and the verdicts' logic."""

import dataclasses

import pytest

import published_memory as published
from leviathan import knobs, shapes
from leviathan.decoder import Shape
from leviathan.memory import Memory, estimate
from leviathan.residents import AXOLOTL, Stack

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
LLAMA = {"model_type": "llama", "max_position_embeddings": 8192}
LLAMA3 = {**LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}  # fmt: skip
MISTRAL = {**LLAMA3, "vocab_size": 32000}
LLAMA70 = {**LLAMA, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
           "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000}  # fmt: skip
BASES = {"Llama-3-8B": LLAMA3, "Mistral-7B": MISTRAL, "Llama-2-70B": LLAMA70}

PEFT_LOOP = Stack("PEFT in a plain loop", upcast=True, autocast=False, outputs_held=True)
STACKS = {
    "liger": Stack("Trainer"),
    "fp16": Stack("Trainer without autocast", autocast=False, adapter_bytes=2),
    "amp": Stack("Trainer"),
    "prepared": Stack("Trainer after PEFT's preparation", upcast=True, outputs_held=True),
}
KERNELS = {"liger_rms_norm": True, "lora_mlp_kernel": True, "lora_qkv_kernel": True}
NO_NESTING = {"bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}


def read(tree: dict, processes: int = 1) -> knobs.Knobs:
    defaults = {"bf16": True, "gradient_checkpointing": True, "optimizer": "adamw_torch",
                "attn_implementation": "flash_attention_2"}  # fmt: skip
    return knobs.read({**defaults, **tree}, processes)


def method(name: str) -> dict:
    if name == "full":
        return {}
    quantised = {"load_in_4bit": True} if name == "qlora" else {}
    return {"adapter": name, "lora_r": 16, "lora_target_modules": QKVO, **quantised}


def t4_shape(name: str) -> Shape:
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
            "tie_word_embeddings")  # fmt: skip
    config = dict(zip(keys, published.T4_SHAPES[name], strict=True))
    return shapes.from_config({**config, "max_position_embeddings": 4096}, name)


def t4(row: tuple) -> Memory:
    name, attention, storage, rank, batch, sequence, *_ = row
    tree = {**method("qlora" if storage == "nf4" else "lora"), **NO_NESTING, "lora_r": rank,
            "bf16": False, "fp16": True, "attn_implementation": attention,
            "micro_batch_size": batch, "sequence_len": sequence}  # fmt: skip
    return estimate(t4_shape(name), read(tree), stack=PEFT_LOOP)


def fms(row: tuple) -> Memory:
    model, how, processes, batch, fused, stack, *_ = row
    tree = {**method(how), "micro_batch_size": batch, "sequence_len": 4096,
            "liger_fused_linear_cross_entropy": fused}  # fmt: skip
    tree |= KERNELS if stack == "liger" else {"bf16": False, "fp16": True}
    tree |= {"fsdp_config": {"reshard_after_forward": True}} if processes > 1 else {}
    shape = shapes.from_config(BASES[model], model)
    return estimate(shape, read(tree, processes), stack=STACKS[stack])


@pytest.mark.parametrize("row", published.T4, ids=lambda row: " ".join(map(str, row[:6])))
def test_tensors_on_a_t4_within_6_percent(row):
    assert t4(row).tensors_gib * 1024 == pytest.approx(row[6], rel=0.06)


@pytest.mark.parametrize("row", published.FMS, ids=lambda row: " ".join(map(str, row[:6])))
def test_tensors_on_a100s_within_6_percent(row):
    rotary = 2 * 2 * 128 * published.OLD_ROTARY.get(row[0], 0)
    assert fms(row).tensors_gib * 1024**3 + rotary == pytest.approx(row[6], rel=0.06)


def test_most_readings_of_whole_cards_lie_inside_the_interval():
    """Eager attention and unfused logits leave torch's pool more cut up than the interval has."""
    readings = [(t4(row), row[7]) for row in published.T4 if row[1] == "sdpa"]
    readings += [(fms(row), row[7]) for row in published.FMS if row[2] == 1 and row[5] == "liger"]
    inside = [m.low_gib <= mib / 1024 <= m.high_gib for m, mib in readings]
    assert sum(inside) / len(inside) >= 0.95


@pytest.mark.parametrize(("card_gb", "context"), published.UNSLOTH)
def test_the_longest_context_that_others_found_is_where_a_card_is_full(card_gb, context):
    """At the limit torch returns what it has cached: tensors and context, no fragmentation.

    Not stated there, hence assumed: 8-bit AdamW as in Unsloth's own examples, and quantisation
    constants that are not quantised (bitsandbytes' default). Together they are worth 0.8 GiB.
    """
    tree = {**method("qlora"), **NO_NESTING, "lora_r": 32, "lora_target_linear": True,
            "sequence_len": context, "optimizer": "adamw_8bit"}  # fmt: skip
    found = estimate(shapes.from_config(LLAMA3, "8B"), read(tree), stack=STACKS["prepared"])
    full = found.tensors_gib + found.components_gib["context"]
    assert full == pytest.approx(0.97 * card_gb, rel=0.06)


# --- what follows from the settings -------------------------------------------------

BIG = shapes.from_config(LLAMA3, "8B")
QLORA = {**method("qlora"), "sequence_len": 2048, "embeddings_skip_upcast": True}


def test_components_add_up_and_the_peak_is_the_largest_phase():
    found = estimate(BIG, read(QLORA))
    assert sum(found.components_gib.values()) == pytest.approx(found.total_gib)
    assert found.total_gib == max(found.phases_gib.values()) == found.phases_gib[found.peak]
    assert found.low_gib < found.tensors_gib < found.total_gib < found.high_gib


def test_the_guide_s_card_holds_qlora_but_not_bf16_weights():
    fused = {"liger_fused_linear_cross_entropy": True, "optimizer": "paged_adamw_8bit"}
    assert estimate(BIG, read({**QLORA, **fused})).verdict_for(16) == "fits"
    assert estimate(BIG, read({**method("lora"), **fused})).verdict_for(16) == "does_not_fit"


def test_verdicts_follow_the_interval():
    found = dataclasses.replace(estimate(BIG, read(QLORA)), total_gib=10.0, high_gib=12.0)
    sizes = {9: "does_not_fit", 11: "tight", 13: "fits"}
    assert {size: found.verdict_for(size) for size in sizes} == sizes


@pytest.mark.parametrize(
    ("change", "processes", "component", "factor"),
    [
        ({}, 2, "gradients", 2),  # DDP's buckets
        ({"deepspeed": "zero2.json"}, 4, "optimizer", 1.5 / 4),  # masters, then a quarter
        ({"deepspeed": "zero3.json"}, 4, "weights", 0.25),
        ({"fsdp_config": {"x": 1}}, 4, "weights", 0.25),
        ({"fsdp_config": {"x": 1}}, 4, "adapter", 0.25),
        ({"fsdp_config": {"offload_params": True}}, 4, "weights", 0),
        ({"deepspeed": "zero1_offload.json"}, 2, "optimizer", 0),
        ({"micro_batch_size": 2}, 1, "activations", 2),
        ({"optimizer": "adamw_8bit"}, 1, "optimizer", (2 + 8 / 256) / 8),
        ({"optimizer": "sgd"}, 1, "optimizer", 0),
    ],
)
def test_a_setting_changes_its_component(change, processes, component, factor):
    tree = {**QLORA, "gradient_accumulation_steps": 2, "liger_fused_linear_cross_entropy": True}
    before = estimate(BIG, read(tree)).components_gib
    after = estimate(BIG, read({**tree, **change}, processes)).components_gib
    assert after[component] == pytest.approx(factor * before[component], rel=1e-3)


def test_evaluation_counts_where_there_is_one():
    tree = {**QLORA, "liger_fused_linear_cross_entropy": True, "eval_batch_size": 8}
    assert "evaluation" not in estimate(BIG, read(tree)).phases_gib
    assert estimate(BIG, read({**tree, "val_set_size": 10, "eval_steps": 5})).peak == "evaluation"


def test_embeddings_are_cast_while_loading_unless_told_otherwise():
    small = {**method("qlora"), "sequence_len": 64}
    assert estimate(BIG, read(small)).peak == "loading"
    assert estimate(BIG, read({**small, "embeddings_skip_upcast": True})).peak != "loading"


def test_paged_state_counts_but_may_leave():
    plain, paged = (
        estimate(BIG, read({**QLORA, "lora_r": 32, "optimizer": f"{prefix}adamw_8bit"}))
        for prefix in ("", "paged_")
    )
    assert paged.total_gib == plain.total_gib
    assert paged.low_gib < plain.low_gib
    assert any("paged" in line for line in paged.evidence)


def test_an_optimizer_that_is_not_known_counts_as_adamw_and_says_so():
    found = estimate(BIG, read({**QLORA, "optimizer": "muon"}))
    adamw = estimate(BIG, read({**QLORA, "optimizer": "adamw_torch_fused"}))
    assert found.components_gib["optimizer"] == adamw.components_gib["optimizer"]
    assert any("muon" in line for line in found.evidence)


def test_a_cpu_has_tensors_alone():
    found = estimate(BIG, read(QLORA), device="cpu", stack=AXOLOTL)
    assert found.total_gib == found.tensors_gib
    assert "context" not in found.components_gib
