"""Owns finding a model's shape: in a config.json, the hub's cache or the shipped table.

Loads no weights and no torch. What a shape is made of is ``decoder``'s.
"""

import difflib
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from leviathan import basemodel, models
from leviathan.config import shipped_directory
from leviathan.decoder import Layers, Linear, Part, Shape
from leviathan.errors import BadInput

__all__ = [
    "Layers",
    "Linear",
    "Part",
    "Shape",
    "config",
    "entries",
    "from_config",
    "load",
    "shipped",
]

_MOST = 1 << 30  # of anything in a config.json: the largest we know of is 10,485,760 positions
_MOST_LAYERS = 1000


# --- from a config.json -----------------------------------------------------------


@dataclass(frozen=True)
class _Fields:
    """Typed reading of one config.json: every complaint names the file and the key."""

    values: dict[str, Any]
    where: str
    prefix: str = ""

    def number(self, key: str, *, absent: int | None = None, null: int | None = None) -> int:
        """A whole number of 1 or more, or what an absent key and a null one stand for."""
        value = self.values.get(key, absent)
        value = null if value is None else value
        most = _MOST_LAYERS if key == "num_hidden_layers" else _MOST
        if value is None:
            raise BadInput(f"{self.named(key)} is missing", "is this a language model's file?")
        if type(value) is not int or not 1 <= value <= most:
            raise BadInput(
                f"{self.named(key)} must be a whole number from 1 to {most:,} (found {value!r})",
                "correct it, or fetch the model's config.json again",
            )
        return value

    def window(self, absent: int | None = None) -> int | None:
        """``sliding_window``, a number that may be null."""
        if self.values.get("sliding_window", absent) is None:
            return None
        return self.number("sliding_window", absent=absent)

    def flag(self, key: str, absent: bool = False) -> bool:
        """True or false; ``absent`` stands for an absent key and for null."""
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            raise BadInput(
                f"{self.named(key)} must be true or false (found {value!r})",
                "correct it, or fetch the model's config.json again",
            )
        return absent if value is None else value

    def inside(self, key: str) -> "_Fields":
        """The nested mapping at ``key``."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise BadInput(f"{self.named(key)} must be a mapping (found {value!r})")
        return _Fields(value, self.where, f"{self.prefix}{key}.")

    def named(self, key: str) -> str:
        """``file: key`` for messages."""
        return f"{self.where}: {self.prefix}{key}"


@dataclass(frozen=True)
class _Sizes:
    """The numbers every family has."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int

    @property
    def q(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class _Family:
    """What distinguishes a model_type: its modules, and transformers' defaults for the keys
    that published config.json files leave out."""

    linears: Callable[[_Fields, _Sizes], list[Linear]]
    norms: Callable[[_Fields, _Sizes], list[Part]]
    window: Callable[[_Fields], int | None]
    absent: dict[str, int]
    tied: bool = False
    final_norm: str = "norm"
    layer_norm: bool = False
    """LayerNorm, whose bias doubles its parameters; and the head has a bias."""


def _sizes(fields: _Fields, absent: dict[str, int]) -> _Sizes:
    def number(key: str, null: int | None = None) -> int:
        return fields.number(key, absent=absent.get(key), null=null)

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    if "head_dim" not in absent and not fields.values.get("head_dim") and hidden % heads:
        raise BadInput(
            f"{fields.named('hidden_size')} {hidden} is not a multiple of num_attention_heads "
            f"{heads}, and head_dim is missing", "correct one of them",
        )  # fmt: skip
    sizes = _Sizes(
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", null=heads),
        head_dim=number("head_dim", null=hidden // heads),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
    )
    if heads % sizes.kv_heads:
        raise BadInput(
            f"{fields.named('num_attention_heads')} {heads} is not a multiple of "
            f"num_key_value_heads {sizes.kv_heads}", "correct one of them",
        )  # fmt: skip
    return sizes


def _attention(s: _Sizes, *, qkv_bias: bool, out_bias: bool, out: str = "o_proj") -> list[Linear]:
    return [
        Linear("q_proj", s.q, s.hidden, qkv_bias),
        Linear("k_proj", s.kv, s.hidden, qkv_bias),
        Linear("v_proj", s.kv, s.hidden, qkv_bias),
        Linear(out, s.hidden, s.q, out_bias),
    ]


def _gated(s: _Sizes, *, bias: bool = False) -> list[Linear]:
    return [
        Linear("gate_proj", s.intermediate, s.hidden, bias),
        Linear("up_proj", s.intermediate, s.hidden, bias),
        Linear("down_proj", s.hidden, s.intermediate, bias),
    ]


def _plain(hidden: int, intermediate: int) -> list[Linear]:
    return [Linear("fc1", intermediate, hidden, True), Linear("fc2", hidden, intermediate, True)]


def _separate(fields: _Fields, s: _Sizes) -> list[Linear]:
    """Llama, Qwen3, Gemma: biases where the config asks for them (mlp_bias is Llama's alone)."""
    bias = fields.flag("attention_bias")
    mlp_bias = fields.values.get("model_type") == "llama" and fields.flag("mlp_bias")
    return _attention(s, qkv_bias=bias, out_bias=bias) + _gated(s, bias=mlp_bias)


def _qwen2(fields: _Fields, s: _Sizes) -> list[Linear]:
    return _attention(s, qkv_bias=True, out_bias=False) + _gated(s)


def _mistral(fields: _Fields, s: _Sizes) -> list[Linear]:
    return _attention(s, qkv_bias=False, out_bias=False) + _gated(s)


def _phi(fields: _Fields, s: _Sizes) -> list[Linear]:
    attention = _attention(s, qkv_bias=True, out_bias=True, out="dense")
    return attention + _plain(s.hidden, s.intermediate)


def _phi3(fields: _Fields, s: _Sizes) -> list[Linear]:
    return [
        Linear("qkv_proj", s.q + 2 * s.kv, s.hidden),
        Linear("o_proj", s.hidden, s.q),
        Linear("gate_up_proj", 2 * s.intermediate, s.hidden),
        Linear("down_proj", s.hidden, s.intermediate),
    ]


def _two_norms(fields: _Fields, s: _Sizes) -> list[Part]:
    return [Part("input_layernorm", s.hidden), Part("post_attention_layernorm", s.hidden)]


def _four_norms(fields: _Fields, s: _Sizes) -> list[Part]:
    feedforward = [Part(f"{when}_feedforward_layernorm", s.hidden) for when in ("pre", "post")]
    return _two_norms(fields, s) + feedforward


def _head_norms(s: _Sizes) -> list[Part]:
    return [Part(f"self_attn.{which}_norm", s.head_dim) for which in "qk"]


def _phi_norms(fields: _Fields, s: _Sizes) -> list[Part]:
    per_head = 2 * (s.hidden // s.heads)
    heads = [Part(f"self_attn.{which}_layernorm", per_head) for which in "qk"]
    return [Part("input_layernorm", 2 * s.hidden), *(heads if fields.flag("qk_layernorm") else [])]


def _if_asked(fields: _Fields) -> int | None:
    return fields.window(4096) if fields.flag("use_sliding_window") else None


_GEMMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
_FAMILIES = {
    "llama": _Family(_separate, _two_norms, lambda fields: None, {}),
    "qwen2": _Family(_qwen2, _two_norms, _if_asked, {"num_key_value_heads": 32}),
    "qwen3": _Family(
        _separate,
        lambda fields, s: _two_norms(fields, s) + _head_norms(s),
        _if_asked,
        {"num_key_value_heads": 32, "head_dim": 128},
    ),
    "mistral": _Family(
        _mistral, _two_norms, lambda fields: fields.window(4096), {"num_key_value_heads": 8}
    ),
    "gemma2": _Family(
        _separate,
        _four_norms,
        lambda fields: fields.window(4096),
        {**_GEMMA, "vocab_size": 256000, "max_position_embeddings": 8192},
        tied=True,
    ),
    "gemma3_text": _Family(
        _separate,
        lambda fields, s: _four_norms(fields, s) + _head_norms(s),
        lambda fields: fields.window(4096),
        {**_GEMMA, "vocab_size": 262208, "max_position_embeddings": 131072},
        tied=True,
    ),
    "phi": _Family(
        _phi, _phi_norms, lambda fields: None, {}, final_norm="final_layernorm", layer_norm=True
    ),
    "phi3": _Family(_phi3, _two_norms, lambda fields: fields.window(), {}),
}


def from_config(values: dict[str, Any], name: str, where: str | None = None) -> Shape:
    """The shape that ``values``, the contents of a config.json, describe.

    ``where`` (else ``name``) stands before the key in complaints.

    Raises:
        BadInput: not a dense decoder of a known family, or a key missing or absurd.
    """
    fields = _Fields(values, where or name)
    model_type = values.get("model_type")
    if model_type == "gemma3":
        return _multimodal(fields, name)
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise _unknown(fields)
    tied = fields.flag("tie_word_embeddings", _FAMILIES[model_type].tied)
    return _decoder(fields, name, model_type, tied)


def _decoder(fields: _Fields, name: str, model_type: str, tied: bool) -> Shape:
    family = _FAMILIES[model_type]
    s = _sizes(fields, family.absent)
    return Shape(
        name=name,
        model_type=model_type,
        layers=s.layers,
        hidden=s.hidden,
        heads=s.heads,
        kv_heads=s.kv_heads,
        head_dim=s.head_dim,
        intermediate=s.intermediate,
        vocab=s.vocab,
        tied=tied,
        linears=tuple(family.linears(fields, s)),
        norms=tuple(family.norms(fields, s)),
        final_norm=Part(family.final_norm, s.hidden * (2 if family.layer_norm else 1)),
        head_bias=family.layer_norm,
        max_positions=s.max_positions,
        sliding_window=family.window(fields),
    )


def _multimodal(fields: _Fields, name: str) -> Shape:
    """Gemma 3 with its SigLIP tower, which Axolotl loads for text, too."""
    text, vision = fields.inside("text_config"), fields.inside("vision_config")
    if vision.flag("vision_use_head", True):
        raise BadInput(
            f"{vision.named('vision_use_head')} must be false", "Gemma 3 has no pooling head"
        )
    decoder = _decoder(text, name, "gemma3_text", fields.flag("tie_word_embeddings", True))
    hidden = vision.number("hidden_size")
    patch = vision.number("patch_size")
    places = (vision.number("image_size") // patch) ** 2
    pixels = vision.number("num_channels", absent=3) * patch**2
    attention = [Linear(f"{x}_proj", hidden, hidden, True) for x in ("q", "k", "v", "out")]
    tower = Layers(
        count=vision.number("num_hidden_layers"),
        path="model.vision_tower.encoder.layers",
        linears=(*attention, *_plain(hidden, vision.number("intermediate_size"))),
        norms=tuple(Part(f"layer_norm{x}", 2 * hidden) for x in "12"),
    )
    rest = (
        Part("model.vision_tower.embeddings.patch_embedding", (pixels + 1) * hidden),
        Part("model.vision_tower.embeddings.position_embedding", places * hidden),
        Part("model.vision_tower.post_layernorm", 2 * hidden),
        Part("model.multi_modal_projector.mm_input_projection", hidden * decoder.hidden),
        Part("model.multi_modal_projector.mm_soft_emb_norm", hidden),
    )
    return replace(
        decoder, model_type="gemma3", path="model.language_model", vision=tower, vision_rest=rest
    )


_TELLTALES = {
    "a mixture of experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "an encoder-decoder": ("is_encoder_decoder",),
    "a state-space model": ("state_size", "mamba_d_state", "ssm_cfg"),
    "a vision model": ("vision_config", "image_size"),
}


def _unknown(fields: _Fields) -> BadInput:
    known = f"shapes known: {', '.join(sorted({*_FAMILIES, 'gemma3'}))}"
    if "model_type" not in fields.values:
        return BadInput(f"{fields.named('model_type')} is missing", known)
    found = f"{fields.named('model_type')} {fields.values['model_type']!r}"
    for kind, keys in _TELLTALES.items():
        if any(fields.values.get(key) for key in keys):
            return BadInput(f"{found} is {kind}", known)
    return BadInput(f"{found} is none of the dense decoders known here", known)


# --- from a name ------------------------------------------------------------------


def load(base_model: str) -> Shape:
    """The shape of a local model, of one in the hub's cache, or of a shipped table's entry.

    Raises:
        BadInput: nothing is known of it, or its config.json is not that of a known shape.
    """
    values, where = _find(base_model)
    return from_config(values, base_model, where)


def config(base_model: str) -> dict[str, Any]:
    """The config.json of a model: the whole file, or the keys of the shipped table.

    Raises:
        BadInput: nothing is known of it.
    """
    return _find(base_model)[0]


def _find(base_model: str) -> tuple[dict[str, Any], str]:
    """A model's config.json, and what to call it in complaints."""
    models.local_or_hub(base_model)  # refuses a path where nothing is
    if Path(base_model).is_dir():
        return _read(Path(base_model) / "config.json")
    snapshot = basemodel.snapshot(base_model, os.environ)
    if snapshot and (snapshot / "config.json").is_file():
        return _read(snapshot / "config.json")
    table = shipped()
    if base_model in table:
        return table[base_model]["config"], base_model
    near = difflib.get_close_matches(base_model, table, n=1)
    fetch = f"fetch it: hf download {base_model} config.json"
    raise BadInput(
        f"the shape of {base_model} is unknown: it is neither in the hub's cache nor shipped",
        f"did you mean {near[0]}? else {fetch}" if near else fetch,
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{path.parent} has no config.json", "give a model's directory") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"cannot read {path}: {error}", "fetch it again") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path}: not a model's config: found {type(values).__name__}")
    return values, str(path)


@functools.cache
def entries() -> list[dict[str, Any]]:
    """Entries of the shipped configs/shapes.yaml: ``names``, ``parameters``, ``config``.

    Read by libyaml where PyYAML has it: a seventh of the time, and no user writes this file,
    so lines for complaints are not needed.
    """
    path = shipped_directory() / "shapes.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: list[dict[str, Any]] = yaml.load(path.read_bytes(), Loader=loader)["models"]  # noqa: S506 - both are safe
    return found


def shipped() -> dict[str, dict[str, Any]]:
    """Those entries by every name they answer to."""
    return {name: entry for entry in entries() for name in entry["names"]}
