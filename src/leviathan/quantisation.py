"""Owns how training holds a quantised base: bitsandbytes' settings as Axolotl makes them.

And what they leave of a weight. Does not load models (``models``) nor add adapters.
Imports torch inside its functions.
"""

from typing import Any

from leviathan.errors import Refused

# axolotl 0.19, loaders/model.py, _set_quantization_config.
_NF4 = {
    "load_in_4bit": True,
    "llm_int8_threshold": 6.0,
    "llm_int8_has_fp16_weight": False,
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "bfloat16",
}
_SKIPPED = {"falcon_h1": ["out_proj"]}
_SKIPPED_8BIT = {**_SKIPPED, "jamba": ["mamba"]}


def train_dtype(tree: dict[str, Any]) -> str:
    """torch's name of the type that training held the base in.

    ``bf16: auto`` is taken for bf16: every card since Ampere has it.
    """
    if tree.get("bf16") or tree.get("bfloat16"):
        return "bfloat16"
    return "float16" if tree.get("fp16") or tree.get("float16") else "float32"


def settings(tree: dict[str, Any], model_type: str) -> dict[str, Any] | None:
    """BitsAndBytesConfig's arguments but for the compute type; None where nothing is quantised."""
    own = dict(tree.get("bnb_config_kwargs") or {})
    # Axolotl heeds the keys with these adapters only: load_in_4bit beside lora does nothing.
    if tree.get("load_in_4bit") and tree.get("adapter") == "qlora":
        skipped = {"llm_int8_skip_modules": _SKIPPED[model_type]} if model_type in _SKIPPED else {}
        return {**_NF4, **skipped, **own}
    if tree.get("load_in_8bit") and tree.get("adapter") == "lora":
        eight = {"llm_int8_skip_modules": _SKIPPED_8BIT.get(model_type)}
        return {"load_in_8bit": True, **(eight if model_type in _SKIPPED_8BIT else {})}
    return None


def bitsandbytes(settings: dict[str, Any], compute_dtype: Any) -> Any:
    """transformers' BitsAndBytesConfig of these settings."""
    from transformers import BitsAndBytesConfig

    if not settings.get("load_in_4bit"):
        return BitsAndBytesConfig(**settings)
    return BitsAndBytesConfig(**{"bnb_4bit_compute_dtype": compute_dtype, **settings})


def linears(model: Any, settings: dict[str, Any]) -> set[str]:
    """Names of the modules that the runtime quantises, by transformers' own rules.

    ``model``, on the meta device, is used up.
    """
    import bitsandbytes as bnb
    import torch
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import AutoHfQuantizer

    conv = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    quantizer = AutoHfQuantizer.from_config(
        bitsandbytes(settings, torch.float32), pre_quantized=False
    )
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    found = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    if conv & found:
        raise Refused(
            f"{min(conv & found)} is quantised and stored transposed, as in GPT-2: not supported",
            "serve the base with the adapter: --adapter-only",
        )
    return found


def round_trip(weight: Any, settings: dict[str, Any], dtype: str) -> Any:
    """What a linear's weight is to the runtime: quantised and taken back, in float32.

    ``dtype`` is the type training held it in before: the way back ends in it too. Computed
    on the CPU by bitsandbytes itself.
    """
    import bitsandbytes as bnb
    import torch
    from bitsandbytes import functional

    held = weight.to(getattr(torch, dtype)).contiguous()
    if settings.get("load_in_4bit"):
        storage = settings.get("bnb_4bit_quant_storage", "uint8")
        packed = bnb.nn.Params4bit(
            held,
            requires_grad=False,
            compress_statistics=settings.get("bnb_4bit_use_double_quant", False),
            quant_type=settings.get("bnb_4bit_quant_type", "fp4"),
            quant_storage=getattr(torch, storage) if isinstance(storage, str) else storage,
        ).to("cpu")
        return functional.dequantize_4bit(packed.data, packed.quant_state).float()
    codes, scales, _ = functional.int8_vectorwise_quant(held.half())
    return codes.float() * (scales.float()[:, None] / 127)
