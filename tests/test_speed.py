"""Floating-point work and ceilings against published figures and hand arithmetic."""

from dataclasses import replace

import pytest

from leviathan import knobs, layers, shapes, speed
from leviathan.config import Hardware

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 32, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return shapes.from_config(LLAMA_8B, "Llama-3.1-8B")


def of(profile, *sets):
    config = layers.build("leviathan", profile, "10pct", list(sets))
    hardware = config.profile.hardware
    return knobs.read(config.tree, hardware.count), hardware


@pytest.mark.parametrize(
    ("length", "checkpointing", "gflop"),
    # By hand from the linears' 6.979 G and the head's 0.525 G weights, rank 16 on all linears.
    [(2048, False, 31.9), (2048, True, 46.5), (8192, False, 36.7), (8192, True, 52.9)],
)
def test_work_of_a_token(llama, length, checkpointing, gflop):
    chosen, _ = of("a100", "lora_r=16")
    varied = replace(chosen, gradient_checkpointing=checkpointing)
    assert speed.train_flops_per_token(llama, varied, length) / 1e9 == pytest.approx(
        gflop, rel=0.005
    )


def test_full_fine_tuning_is_6n_and_8n(llama):
    chosen, _ = of("a100", "adapter=null", "lora_r=null", "lora_target_modules=null")
    matrices = llama.linear_parameters + llama.head_parameters
    plain = replace(chosen, gradient_checkpointing=False)
    assert speed.train_flops_per_token(llama, plain, 0) == 6 * matrices
    again = speed.train_flops_per_token(llama, replace(plain, gradient_checkpointing=True), 0)
    assert again == 6 * matrices + 2 * llama.linear_parameters


@pytest.mark.parametrize(
    ("profile", "checkpointing", "tok_s"),
    [("a4000", True, 1651), ("a4000", False, 2406), ("a100", True, 6715), ("a100", False, 9786),
     ("h100-80gb", True, 21287), ("h100-80gb", False, 31022)],
)  # fmt: skip
def test_ceilings(llama, profile, checkpointing, tok_s):
    """Nothing is faster than its data sheet: rank 16, rows of 2048."""
    chosen, hardware = of(profile, "lora_r=16")
    varied = replace(chosen, gradient_checkpointing=checkpointing)
    found = speed.ceiling_tok_s(llama, varied, hardware, 2048)
    assert found == pytest.approx(tok_s, rel=0.01)


@pytest.mark.parametrize(
    ("profile", "sets", "published"),
    [
        # NeMo AutoModel, Llama-3-8B, LoRA r16, 1 x H100, rows of 4096, no checkpointing.
        ("h100-80gb", ["lora_r=16", "gradient_checkpointing=false"], 12_473),
        # LLaMA-Factory, Llama-2-7B LoRA, A100, FlashAttention-2.
        ("a100", ["lora_r=8", "sequence_len=1024"], 2_954),
    ],
)
def test_published_speeds_lie_in_the_interval(llama, profile, sets, published):
    chosen, hardware = of(profile, *sets)
    found = speed.by_formula(llama, chosen, hardware, chosen.sequence_len)
    assert found.low_tok_s < published < found.high_tok_s


def test_unpacking_slows_four_bits(llama):
    """At least the bytes over the bandwidth: 17 GB three times at 448 GB/s for 2048 tokens."""
    chosen, hardware = of("a4000")
    four = speed.by_formula(llama, chosen, hardware, 2048)
    sixteen = speed.by_formula(llama, replace(chosen, method="lora"), hardware, 2048)
    slower = 2048 / four.mid_tok_s - 2048 / sixteen.mid_tok_s
    assert slower == pytest.approx(3 * 2.5 * llama.linear_parameters / 448e9, rel=1e-6)


def test_links_cost_most_where_weights_are_sharded(llama):
    chosen, hardware = of("h100x8")
    spread = {}
    for strategy in ("ddp", "fsdp"):
        varied = replace(chosen, strategy=strategy)
        found = speed.by_formula(llama, varied, hardware, 4096)
        spread[strategy] = found.high_tok_s / found.low_tok_s
    single = speed.REACHED[-1] / speed.REACHED[0]
    assert single < spread["ddp"] < spread["fsdp"]


def test_no_peak_no_speed(llama):
    chosen, _ = of("cpu")
    assert speed.by_formula(llama, chosen, Hardware(device="cpu"), 192) is None
    assert speed.ceiling_tok_s(llama, chosen, Hardware(device="cpu"), 192) is None


def test_a_window_bounds_attention(llama):
    chosen, _ = of("a100")
    windowed = replace(llama, sliding_window=4096)
    long = speed.train_flops_per_token(windowed, chosen, 32768)
    assert long == speed.train_flops_per_token(llama, chosen, 4096)
