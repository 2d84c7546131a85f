"""Owns which settings may change between the sessions of one run, and why others may not.

Pure. Does not read the run (``runs``) nor refuse anything itself (``train``).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

# How often to save, look and log; how to compute the same numbers faster or smaller; and
# the peak learning rate. Everything else gives another model, other data, or optimizer
# state that no longer belongs to what is trained.
FREE_KEYS = {"learning_rate", "save_steps", "saves_per_epoch", "evals_per_epoch", "logging_steps",
             "attn_implementation", "activation_offloading", "layer_offloading", "gc_steps",
             "selective_checkpointing", "plugins", "strict", "dataset_num_proc",
             "include_tkps", "low_cpu_mem_usage", "dataloader_num_workers",
             "dataloader_pin_memory", "dataloader_prefetch_factor", "use_wandb", "use_mlflow",
             "use_comet", "use_trackio", "use_tensorboard", "use_otel_metrics",
             "use_kernels"}  # fmt: skip
FREE_PREFIXES = ("eval_", "gradient_checkpointing", "liger_", "tiled_mlp", "wandb_", "mlflow_",
                 "hf_mlflow_", "trackio_", "comet_", "otel_metrics_", "hub_",
                 "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel",
                 "lora_embedding_kernel", "ddp_", "cut_cross_entropy",
                 "chunked_cross_entropy")  # fmt: skip

_ACCUMULATION = "gradient_accumulation_steps"
_MICRO_BATCH = "micro_batch_size"
BATCH_KEYS = (_MICRO_BATCH, _ACCUMULATION, "processes")
"""Their product is the effective batch: rows behind one optimizer step."""

_REASONS = {
    "the base model is another one": {"base_model", "model_type", "revision_of_model"},
    "the saved adapter has another shape or scale": {
        "adapter", "lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear",
        "lora_modules_to_save", "peft_layers_to_transform", "peft_use_dora", "load_in_4bit",
        "load_in_8bit"},
    "the rows, or their order, would be others": {
        "sequence_len", "sample", "datasets", "seed", "sample_packing", "curriculum_sampling",
        "val_set_size", "train_on_inputs", "chat_template", "group_by_length",
        "multipack_real_batches", "special_tokens"},
    "the learning rate schedule is computed from it": {
        "num_epochs", "max_steps", "lr_scheduler", "warmup_steps", "warmup_ratio",
        "cosine_min_lr_ratio", "cosine_constant_lr_ratio"},
    "the saved optimizer state belongs to the old one": {
        "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "optim_args"},
}  # fmt: skip
_OTHER_REASON = "it changes what is trained"

# Numerics of these reach the loss; the rest of the recorded versions do not.
_NUMERIC_PACKAGES = ("axolotl", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Difference:
    """One setting that is not what the run was begun with."""

    key: str
    old: Any
    new: Any
    verdict: str
    """free, arithmetic (allowed: the effective batch is the same) or refused."""
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    """Everything that differs between two trees of settings, judged, by key.

    Both hold Axolotl's keys plus ``sample`` and ``processes``.
    """
    return [
        Difference(key, old.get(key), new.get(key), *_judge(key, old, new))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _judge(key: str, old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    if is_free(key):
        return "free", "may change between sessions"
    if key in BATCH_KEYS:
        return _judge_batch(old, new)
    return "refused", reason(key)


def reason(key: str) -> str:
    """Why a run keeps this setting."""
    if is_free(key):
        return "the run's own"
    if key in BATCH_KEYS:
        return "the effective batch stays"
    return next((why for why, keys in _REASONS.items() if key in keys), _OTHER_REASON)


def _judge_batch(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    before, after = effective_batch(old), effective_batch(new)
    if before != after:
        wanted, rest = divmod(before, effective_batch({**new, _ACCUMULATION: 1}))
        hint = "" if rest else f"; {_ACCUMULATION}={wanted} keeps it"
        return "refused", f"the effective batch would be {after} rows instead of {before}{hint}"
    return "arithmetic", "; ".join([f"the effective batch stays {after} rows", *_inexact(old, new)])


def _inexact(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What is not bit for bit the same although the effective batch is."""
    if old.get(_MICRO_BATCH) != new.get(_MICRO_BATCH):
        if new.get("sample_packing"):
            yield "rows are packed anew, so some of this epoch come twice and others not"
        else:
            yield "its mean is taken over other micro batches, so losses differ a little"
    if old.get("processes") != new.get("processes"):
        yield "its gradients are summed in another order, and dropout draws anew"


def effective_batch(tree: dict[str, Any]) -> int:
    """Rows (packed ones with sample packing) behind one optimizer step."""
    product = 1
    for key in BATCH_KEYS:
        product *= int(tree.get(key) or 1)
    return product


def fingerprint(tree: dict[str, Any]) -> str:
    """Identifies what a checkpoint was trained with: everything that a resume must not change.

    Equal for settings that ``differences`` allows: free keys, and the same effective batch.
    """
    fixed = {k: v for k, v in tree.items() if not is_free(k) and k not in BATCH_KEYS}
    fixed["effective batch"] = effective_batch(tree)
    return xxhash.xxh3_64_hexdigest(json.dumps(fixed, sort_keys=True, default=str).encode())


def is_free(key: str) -> bool:
    """Whether a run may be resumed with another value of this Axolotl key."""
    return key in FREE_KEYS or key.startswith(FREE_PREFIXES)


def version_changes(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """``package old -> new`` for packages whose numerics reach the loss."""
    for package in _NUMERIC_PACKAGES:
        if package in old and old[package] != new.get(package):
            yield f"{package} {old[package]} -> {new.get(package, 'gone')}"
