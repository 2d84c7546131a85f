"""Owns the knobs that memory, steps and time depend on, read from a merged configuration.

Pure. Does not predict anything itself (``memory``, ``steps``, ``speed``).
"""

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from leviathan.errors import BadInput

Method = Literal["lora", "qlora", "lora_8bit", "full"]
Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp"]

# What Axolotl takes where a key is absent (its schema's defaults, 0.19 to 0.21).
_DEFAULTS: dict[str, Any] = {
    "sequence_len": 512,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1.0,
    "val_set_size": 0.0,
    "optimizer": "adamw_torch_fused",
}
# Each never holds a batch's whole logits in fp32 (facts: Axolotl takes exactly one).
_FUSED_CROSS_ENTROPY = (
    "liger_fused_linear_cross_entropy",
    "cut_cross_entropy",
    "chunked_cross_entropy",
)


@dataclass(frozen=True)
class Knobs:
    """One training's knobs. Sizes are per process unless said otherwise."""

    method: Method
    rank: int
    """LoRA rank; 0 for full fine-tuning."""
    targets: tuple[str, ...]
    """Names of the adapted linear modules; empty with ``all_linear``."""
    all_linear: bool
    """Every linear of the decoder layers is adapted (lora_target_linear)."""
    modules_to_save: tuple[str, ...]
    """Modules trained whole beside the adapter, as ``embed_tokens``."""
    sequence_len: int
    micro_batch_size: int
    eval_batch_size: int
    gradient_accumulation_steps: int
    processes: int
    """GPUs (or CPU processes) of all hosts."""
    strategy: Strategy
    offload: bool
    """Parameters or optimizer state in RAM (FSDP or ZeRO offload)."""
    packing: bool
    eval_packing: bool
    gradient_checkpointing: bool
    activation_offloading: bool
    fused_cross_entropy: bool
    attention: str
    dtype: Literal["bf16", "fp16", "fp32"]
    """What the forward pass computes in."""
    double_quant: bool
    """4-bit only: the quantisation constants are quantised, too (bitsandbytes)."""
    skip_upcast: bool
    """4-bit only: embeddings and head are not cast to fp32 and back while the model is loaded."""
    optimizer: str
    epochs: float
    max_steps: int | None
    val_set_size: float
    """Rows held out when 1 or more, else a share of the rows."""
    eval_steps: float | None
    """Steps between evaluations; below 1 a share of all steps; None where none is asked for."""
    save_steps: float | None
    """Steps between saves, likewise."""
    seed: int
    fused_norm: bool = False
    """Liger's RMSNorm, which keeps no fp32 copy of its input for the backward pass."""
    fused_glu: bool = False
    """Liger's gated MLP, which keeps gate and up and recomputes their product."""
    lora_kernels: bool = False
    """Axolotl's LoRA kernels: adapted linears share their inputs, the MLP is fused."""

    @property
    def rows_per_step(self) -> int:
        """Rows (packed ones count as one) of one optimizer step over all processes."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.processes

    @property
    def tokens_per_step(self) -> int:
        """Most tokens one optimizer step can take: the effective batch in tokens."""
        return self.rows_per_step * self.sequence_len

    @property
    def quantised(self) -> bool:
        """Whether the decoder's linears are stored in 4 or 8 bits."""
        return self.method in {"qlora", "lora_8bit"}


def read(tree: dict[str, Any], processes: int = 1) -> Knobs:
    """The knobs of a merged Axolotl ``tree`` launched as ``processes`` processes.

    Raises:
        BadInput: a size is not a positive whole number, or an epoch count not positive.
    """
    get = {**_DEFAULTS, **{k: v for k, v in tree.items() if v is not None}}.get
    method = _method(tree)
    micro = _whole(tree, "micro_batch_size")
    targets = get("lora_target_modules") or ()
    packing = bool(get("sample_packing"))
    return Knobs(
        method=method,
        rank=0 if method == "full" else _whole(tree, "lora_r"),
        targets=(targets,) if isinstance(targets, str) else tuple(map(str, targets)),
        all_linear=bool(get("lora_target_linear")) or targets == "all-linear",
        modules_to_save=tuple(get("lora_modules_to_save") or ()),
        sequence_len=_whole(tree, "sequence_len"),
        micro_batch_size=micro,
        eval_batch_size=_whole(tree, "eval_batch_size") if get("eval_batch_size") else micro,
        gradient_accumulation_steps=_whole(tree, "gradient_accumulation_steps"),
        processes=processes,
        strategy=_strategy(tree, processes),
        offload=_offload(tree),
        packing=packing,
        eval_packing=bool(get("eval_sample_packing", packing)),
        gradient_checkpointing=bool(get("gradient_checkpointing")),
        activation_offloading=bool(get("activation_offloading")),
        fused_cross_entropy=any(get(key) for key in _FUSED_CROSS_ENTROPY),
        attention=str(get("attn_implementation") or "sdpa"),
        dtype=_dtype(tree),
        double_quant=bool((get("bnb_config_kwargs") or {}).get("bnb_4bit_use_double_quant", True)),
        skip_upcast=bool(get("embeddings_skip_upcast")),
        optimizer=str(get("optimizer")),
        epochs=_positive(tree, "num_epochs"),
        max_steps=_whole(tree, "max_steps") if get("max_steps") else None,
        val_set_size=_held_out(tree),
        eval_steps=_interval(tree, "eval_steps", "evals_per_epoch"),
        save_steps=_interval(tree, "save_steps", "saves_per_epoch"),
        seed=int(get("seed") or 42),
        fused_norm=bool(get("liger_rms_norm")),
        fused_glu=bool(get("liger_glu_activation")),
        lora_kernels=bool(get("lora_mlp_kernel") and get("lora_qkv_kernel")),
    )


def _method(tree: dict[str, Any]) -> Method:
    if not tree.get("adapter"):
        return "full"
    if tree.get("load_in_4bit") or tree["adapter"] == "qlora":
        return "qlora"
    return "lora_8bit" if tree.get("load_in_8bit") else "lora"


def _strategy(tree: dict[str, Any], processes: int) -> Strategy:
    """DeepSpeed's stage is told by its mapping, or its file's name, as in ``zero3_bf16.json``."""
    deepspeed = tree.get("deepspeed")
    if deepspeed:
        if isinstance(deepspeed, str):
            name = PurePath(deepspeed).name.lower()
        else:
            zero = deepspeed.get("zero_optimization")
            name = f"zero{zero.get('stage')}" if isinstance(zero, dict) else ""
        stage = next((s for s in "321" if f"zero{s}" in name), None)
        return {"3": "zero3", "2": "zero2", "1": "zero1", None: "ddp"}[stage]  # type: ignore[return-value]
    if tree.get("fsdp_config") or tree.get("fsdp"):
        return "fsdp"
    return "ddp" if processes > 1 else "single"


def _offload(tree: dict[str, Any]) -> bool:
    fsdp = tree.get("fsdp_config") or {}
    keys = ("offload_params", "fsdp_offload_params", "cpu_offload")
    return any(fsdp.get(key) for key in keys) or "offload" in str(tree.get("deepspeed") or "")


def _dtype(tree: dict[str, Any]) -> Literal["bf16", "fp16", "fp32"]:
    if tree.get("bf16"):
        return "bf16"
    return "fp16" if tree.get("fp16") else "fp32"


def _whole(tree: dict[str, Any], key: str) -> int:
    value = tree.get(key, _DEFAULTS.get(key))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{key} is {value!r}", "it needs a whole number, 1 or more")
    return value


def _positive(tree: dict[str, Any], key: str) -> float:
    value = tree.get(key, _DEFAULTS.get(key))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise BadInput(f"{key} is {value!r}", "it needs a number above 0, below a million")
    return float(value)


def _held_out(tree: dict[str, Any]) -> float:
    value = tree.get("val_set_size") or 0.0
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise BadInput(
            f"val_set_size is {value!r}", "it needs a share below 1, or a number of rows from 2"
        )
    return float(value)


def _interval(tree: dict[str, Any], key: str, per_epoch: str) -> float | None:
    """Steps, or a share of all, as Axolotl makes of ``per_epoch``: none where it is the whole."""
    if tree.get(key):
        return _positive(tree, key)
    if tree.get(per_epoch):
        share = 1 / (_positive(tree, per_epoch) * _positive(tree, "num_epochs"))
        return share if share < 1 else None
    return None
