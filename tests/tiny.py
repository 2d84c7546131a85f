"""A tiny random Llama with its own tokenizer, and rows to train it on: real files, no download."""

import json
import random
from pathlib import Path

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def write_rows(path: Path, count: int, seed: int = 1) -> Path:
    """Alpaca rows with a pattern a small model can pick up."""
    chance = random.Random(seed)
    with path.open("w") as out:
        for _ in range(count):
            words = chance.sample(WORDS, chance.randint(2, 6))
            row = {
                "instruction": "Repeat: " + " ".join(words),
                "input": "",
                "output": " ".join(words),
            }
            out.write(json.dumps(row) + "\n")
    return path


def write_tokenizer(directory: Path, corpus: Path, *, begins: bool = False) -> Path:
    """A byte-level BPE tokenizer; with ``begins`` it puts a token before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(corpus)], trainer)
    bos = SPECIAL[1] if begins else SPECIAL[0]
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], bos_token=bos, pad_token=SPECIAL[3]
    )
    wrapped.save_pretrained(directory)
    return directory


def write_model(
    directory: Path, corpus: Path, family: str = "llama", *, tied: bool = False,
    vocabulary: int = 512, **save: object,
) -> Path:  # fmt: skip
    """Save a 2-layer, 64-wide random model of a family and its tokenizer."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        Gemma3TextConfig,
        LlamaConfig,
        Qwen2Config,
        Qwen3Config,
    )

    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
             "gemma2": Gemma2Config, "gemma3": Gemma3TextConfig}  # fmt: skip
    torch.manual_seed(0)
    more = {} if family in {"llama", "qwen2"} else {"head_dim": 16}
    config = kinds[family](
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=0, pad_token_id=3, tie_word_embeddings=tied, **more,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(directory, **save)
    return write_tokenizer(directory, corpus)


RECIPE = """\
description: tiny, for tests
base_model: base
corpus: rows.jsonl
format: alpaca
epochs: 1
seed: 42
axolotl:
  learning_rate: 1e-2
  lr_scheduler: cosine
  warmup_steps: 2
  val_set_size: 8
"""

PROFILE = """\
description: tiny, for tests
hardware: {device: cpu}
checkpoints: {keep: 5}
axolotl:
  adapter: lora
  sequence_len: 256
  micro_batch_size: 4
  gradient_accumulation_steps: 1
  optimizer: adamw_torch
  lora_r: 8
  lora_alpha: 16
  lora_dropout: 0
  lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
  attn_implementation: sdpa
  bf16: false
  fp16: false
  tf32: false
  lora_mlp_kernel: false
  lora_qkv_kernel: false
  lora_o_kernel: false
  lora_embedding_kernel: false
  dataloader_num_workers: 0
  save_steps: 5
  eval_steps: 5
  logging_steps: 1
recovery: {restarts: 0}
guards: {disk_reserve_gib: 0}
"""


def write_project(directory: Path, rows: int = 72) -> Path:
    """A working directory with a recipe, a profile, a corpus and (if asked later) a base."""
    for kind in ("recipes", "profiles"):
        (directory / "configs" / kind).mkdir(parents=True, exist_ok=True)
    (directory / "configs/recipes/tiny.yaml").write_text(RECIPE)
    (directory / "configs/profiles/tiny.yaml").write_text(PROFILE)
    write_rows(directory / "rows.jsonl", rows)
    return directory


def write_hub_cache(cache: Path) -> None:
    """A base model ``base`` in the hub's cache under XDG_CACHE_HOME=``cache``.

    What is launched here is fake and loads nothing; the checks before it want a whole model.
    """
    model = cache / "huggingface/hub/models--base"
    write_hollow_model(model / "snapshots/abc")
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs/main").write_text("abc")


def write_hollow_model(directory: Path) -> Path:
    """Every file of a model, without a weight in it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (directory / name).write_text("{}")
    (directory / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return directory


def write_more(directory: Path) -> None:
    """A recipe of two epochs without evaluation; profiles that keep all, and of two processes."""
    recipe = RECIPE.replace("epochs: 1", "epochs: 2").replace("val_set_size: 8", "val_set_size: 0")
    (directory / "configs/recipes/two-epochs.yaml").write_text(recipe)
    long = PROFILE.replace("keep: 5", "keep: 100")
    (directory / "configs/profiles/long.yaml").write_text(long)
    two = long.replace("{device: cpu}", "{device: cpu, count: 2}")
    (directory / "configs/profiles/two.yaml").write_text(two)
