"""Predicted bytes against real tensors: Axolotl's loader, PEFT, bitsandbytes, on the CPU."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leviathan import knobs, shapes
from leviathan.activations import activations
from leviathan.residents import AXOLOTL, residents

pytestmark = pytest.mark.real

MIDDLE = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
          "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
          "vocab_size": 2048, "max_position_embeddings": 4096}  # fmt: skip
BIASED = {**MIDDLE, "model_type": "qwen2", "num_hidden_layers": 2, "tie_word_embeddings": True}
TINY = {**MIDDLE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 512}  # fmt: skip
QWEN3 = {**MIDDLE, "model_type": "qwen3", "head_dim": 64}
PHI3 = {**MIDDLE, "model_type": "phi3", "pad_token_id": 0}
GEMMA2 = {**MIDDLE, "model_type": "gemma2", "head_dim": 64, "vocab_size": 8000,
          "num_hidden_layers": 2}  # fmt: skip
LORA = {"adapter": "lora", "lora_r": 8, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
NESTED = {**QLORA, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}
EIGHT = {**LORA, "load_in_8bit": True}
SOME = {"lora_target_linear": False, "lora_target_modules": ["q_proj", "v_proj"]}
BF16 = {"bf16": True}

RESIDENT = {
    "lora bf16": (MIDDLE, {**LORA, **BF16, "optimizer": "adamw_torch"}),
    "lora fp32": (MIDDLE, {**LORA, "optimizer": "adamw_8bit"}),
    "lora, some linears": (MIDDLE, {**LORA, **BF16, **SOME, "optimizer": "adamw_torch_fused"}),
    "lora, tiny": (TINY, {**LORA, **BF16, "optimizer": "adamw_8bit"}),
    "lora, whole head": (
        MIDDLE,
        {**LORA, **BF16, "lora_modules_to_save": ["lm_head"], "optimizer": "adamw_torch"},
    ),
    "lora, biases and tied": (BIASED, {**LORA, **BF16, "optimizer": "lion_8bit"}),
    "qlora": (MIDDLE, {**QLORA, **BF16, "optimizer": "paged_adamw_8bit"}),
    "qlora, no upcast": (
        MIDDLE,
        {**QLORA, **BF16, "embeddings_skip_upcast": True, "optimizer": "paged_adamw_32bit"},
    ),
    "qlora, one quantisation": (MIDDLE, {**NESTED, **BF16, "optimizer": "adamw_8bit"}),
    "qlora, biases and tied": (BIASED, {**QLORA, **BF16, "optimizer": "adamw_torch"}),
    "8 bits": (MIDDLE, {**EIGHT, **BF16, "optimizer": "ademamix_8bit"}),
    "8 bits, biases and tied": (BIASED, {**EIGHT, **BF16, "optimizer": "lion_32bit"}),
    "full bf16, sdpa": (
        MIDDLE,
        {**BF16, "attn_implementation": "sdpa", "optimizer": "adamw_torch_fused"},
    ),
    "full bf16, tiny": (
        TINY,
        {**BF16, "attn_implementation": "sdpa", "optimizer": "paged_adamw_8bit"},
    ),
    "full fp32": (MIDDLE, {"attn_implementation": "sdpa", "optimizer": "adafactor"}),
    "full fp32, sgd": (TINY, {"attn_implementation": "sdpa", "optimizer": "sgd"}),
}
ROWS = {**BF16, "micro_batch_size": 2, "sequence_len": 512, "attn_implementation": "sdpa"}
AGAIN = {"gradient_checkpointing": True}
WIDE = {**MIDDLE, "num_hidden_layers": 2, "vocab_size": 32000}
STEPS = {
    "lora": (MIDDLE, {**ROWS, **LORA}),
    "lora, checkpoints": (MIDDLE, {**ROWS, **LORA, **AGAIN}),
    "lora, some linears": (MIDDLE, {**ROWS, **LORA, **SOME}),
    "lora, some linears, checkpoints": (MIDDLE, {**ROWS, **LORA, **SOME, **AGAIN}),
    "lora, logits": (WIDE, {**ROWS, **LORA, **AGAIN}),
    "lora, eager": (MIDDLE, {**ROWS, **LORA, "attn_implementation": "eager"}),
    "full": (MIDDLE, {**ROWS}),
    "full, checkpoints": (MIDDLE, {**ROWS, **AGAIN}),
    "full, logits": (WIDE, {**ROWS, **AGAIN}),
    "qlora": (MIDDLE, {**ROWS, **QLORA}),
    "qlora, checkpoints": (MIDDLE, {**ROWS, **QLORA, **AGAIN}),
    "qlora, qwen3": (QWEN3, {**ROWS, **QLORA}),
    "phi3, lora": (PHI3, {**ROWS, **LORA}),
    "gemma2, lora": (GEMMA2, {**ROWS, **LORA}),
}


@functools.cache
def weighed(directory: Path) -> dict[str, dict[str, int]]:
    """Every case's real bytes; one process, since importing Axolotl is most of the time."""
    cases = {
        **{f"r {k}": v for k, v in RESIDENT.items()},
        **{f"s {k}": v for k, v in STEPS.items()},
    }
    given = [
        {"directory": str(directory / str(index)), "config": config, "tree": tree}
        for index, (config, tree) in enumerate(cases.values())
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("weigh.py"))],
        input=json.dumps(given), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> dict[str, dict[str, int]]:
    return weighed(tmp_path_factory.mktemp("weighed"))


@pytest.mark.parametrize("name", RESIDENT)
def test_what_stays_is_predicted_within_2_percent(name, real):
    config, tree = RESIDENT[name]
    shape = shapes.from_config(config, name)
    ours = residents(shape, knobs.read(tree), AXOLOTL)
    found = real[f"r {name}"]
    ours = {key: getattr(ours, key) for key in found}
    assert ours == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_adds_is_predicted_within_10_percent(name, real):
    config, tree = STEPS[name]
    found = activations(shapes.from_config(config, name), knobs.read(tree), AXOLOTL)
    ours = found.kept + max(found.layer, found.head + found.logits)
    assert ours == pytest.approx(real[f"s {name}"]["step"], rel=0.10)
