"""Owns model shapes: what a config.json says about a dense decoder, and its parameter counts.

Reads config.json files, loads no weights and no torch. What the counts cost in memory or
time is for ``memory`` and ``speed``.

The counts are those of transformers' own classes (models/<type>/modeling_<type>.py, 5.16) and
of PEFT's LoRA (0.20); tests/real/test_shapes.py builds both on the meta device and compares.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leviathan.errors import BadInput

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "dense"}


@dataclass(frozen=True)
class Linear:
    """One linear of one decoder layer; its weight is a matrix [out, into]."""

    name: str
    """The module's last name, as ``q_proj``."""
    out: int
    into: int
    bias: bool = False

    @property
    def path(self) -> str:
        """The module's name inside its layer, as ``self_attn.q_proj``."""
        return f"{'self_attn' if self.name in _ATTENTION else 'mlp'}.{self.name}"

    @property
    def weights(self) -> int:
        """Entries of the matrix."""
        return self.out * self.into

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.weights + self.out * self.bias

    def lora(self, rank: int) -> int:
        """Parameters of A [rank, into] and B [out, rank] (Hu et al. 2021, section 4.1)."""
        return rank * (self.out + self.into)


@dataclass(frozen=True)
class Norm:
    """One normalisation; ``parameters`` counts its weight and, for LayerNorm, its bias."""

    name: str
    """As ``input_layernorm``; inside attention, as ``self_attn.q_norm``."""
    parameters: int


@dataclass(frozen=True)
class Shape:
    """A dense decoder: equal layers between an embedding and an output head."""

    name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """The head is the embedding's own matrix."""
    linears: tuple[Linear, ...]
    """Those of one decoder layer."""
    norms: tuple[Norm, ...]
    """Those of one decoder layer."""
    final_norm: Norm
    head_bias: bool
    max_positions: int
    sliding_window: int | None
    """Tokens that a layer with windowed attention looks back; None where no layer has it."""

    @property
    def linear_parameters(self) -> int:
        """Weights of all decoder linears, all layers, without biases and head."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def embedding_parameters(self) -> int:
        """The input embedding [vocab, hidden]; the head, too, where it is tied."""
        return self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        """The output head's own weights; 0 when tied."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def bias_parameters(self) -> int:
        """Biases of all linears, the head included."""
        layer = sum(linear.out for linear in self.linears if linear.bias)
        return self.layers * layer + self.vocab * self.head_bias

    @property
    def other_parameters(self) -> int:
        """Normalisations, whole model."""
        return self.layers * sum(n.parameters for n in self.norms) + self.final_norm.parameters

    @property
    def parameters(self) -> int:
        """All of the model, a tied matrix counted once."""
        return (
            self.linear_parameters
            + self.embedding_parameters
            + self.head_parameters
            + self.bias_parameters
            + self.other_parameters
        )

    def lora_parameters(
        self,
        rank: int,
        targets: Iterable[str],
        all_linear: bool = False,
        modules_to_save: Iterable[str] = (),
    ) -> int:
        """What ``get_peft_model`` trains: the LoRA matrices and whole ``modules_to_save``."""
        wanted = set(targets)
        adapted = [x for x in self.linears if all_linear or x.name in wanted]
        saved = sum(
            self.vocab * self.hidden for x in modules_to_save if x in {"embed_tokens", "lm_head"}
        )
        return self.layers * sum(linear.lora(rank) for linear in adapted) + saved


class _Fields:
    """Typed reading of one config.json: every complaint names the file and the key."""

    def __init__(self, config: dict[str, Any], name: str, defaults: dict[str, Any]) -> None:
        self.config, self.name, self.defaults = config, name, defaults

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of 1 or more; ``default`` stands in for an absent or null key."""
        value = self.config.get(key, self.defaults.get(key))
        if value is None and default is not None:
            return default
        if value is None:
            raise BadInput(f"{self.name}: {key} is missing", "is this a model's config.json?")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"{self.name}: {key} must be a whole number above 0 (found {value!r})")
        return value

    def window(self, key: str) -> int | None:
        """A number that may be null or absent."""
        value = self.config.get(key, self.defaults.get(key))
        return None if value is None else self.number(key)

    def flag(self, key: str) -> bool:
        """True or false; absent is the family's default, else false."""
        value = self.config.get(key, self.defaults.get(key, False))
        if not isinstance(value, bool):
            raise BadInput(f"{self.name}: {key} must be true or false (found {value!r})")
        return value


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

    @property
    def q(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim


def _sizes(fields: _Fields) -> _Sizes:
    hidden, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    return _Sizes(
        layers=fields.number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=fields.number("num_key_value_heads", heads),
        head_dim=fields.number("head_dim", hidden // heads),
        intermediate=fields.number("intermediate_size"),
        vocab=fields.number("vocab_size"),
    )


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


def _llama(fields: _Fields, s: _Sizes) -> list[Linear]:
    bias = fields.flag("attention_bias")
    mlp_bias = fields.flag("mlp_bias")
    return _attention(s, qkv_bias=bias, out_bias=bias) + _gated(s, bias=mlp_bias)


def _qwen2(fields: _Fields, s: _Sizes) -> list[Linear]:
    return _attention(s, qkv_bias=True, out_bias=False) + _gated(s)


def _qwen3(fields: _Fields, s: _Sizes) -> list[Linear]:
    bias = fields.flag("attention_bias")
    return _attention(s, qkv_bias=bias, out_bias=bias) + _gated(s)


def _mistral(fields: _Fields, s: _Sizes) -> list[Linear]:
    return _attention(s, qkv_bias=False, out_bias=False) + _gated(s)


def _norms(s: _Sizes, names: Sequence[str], *, per_head: bool = False) -> tuple[Norm, ...]:
    found = [Norm(name, s.hidden) for name in names]
    if per_head:
        found += [Norm(f"self_attn.{x}_norm", s.head_dim) for x in "qk"]
    return tuple(found)


_TWO = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class _Family:
    """What distinguishes a model_type."""

    linears: Callable[[_Fields, _Sizes], list[Linear]]
    norms: Callable[[_Sizes], tuple[Norm, ...]]
    defaults: dict[str, Any]
    """transformers' defaults of keys that published config.json files leave out."""


_FAMILIES = {
    "llama": _Family(_llama, partial(_norms, names=_TWO), {}),
    "qwen2": _Family(
        _qwen2, partial(_norms, names=_TWO), {"num_key_value_heads": 32, "sliding_window": 4096}
    ),
    "qwen3": _Family(
        _qwen3,
        partial(_norms, names=_TWO, per_head=True),
        {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    ),
    "mistral": _Family(
        _mistral, partial(_norms, names=_TWO), {"num_key_value_heads": 8, "sliding_window": 4096}
    ),
}


def from_config(config: dict[str, Any], name: str) -> Shape:
    """The shape that the contents of a config.json describe; ``name`` is for messages, too.

    Raises:
        BadInput: not a dense decoder of a known family, or a key missing or absurd.
    """
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise BadInput(
            f"{name}: model_type {model_type!r} has no known shape",
            f"known: {', '.join(_FAMILIES)}",
        )
    family = _FAMILIES[model_type]
    fields = _Fields(config, name, family.defaults)
    sizes = _sizes(fields)
    return Shape(
        name=name,
        model_type=model_type,
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate=sizes.intermediate,
        vocab=sizes.vocab,
        tied=fields.flag("tie_word_embeddings"),
        linears=tuple(family.linears(fields, sizes)),
        norms=family.norms(sizes),
        final_norm=Norm("norm", sizes.hidden),
        head_bias=False,
        max_positions=fields.number("max_position_embeddings"),
        sliding_window=_window(fields, model_type),
    )


def _window(fields: _Fields, model_type: str) -> int | None:
    if model_type in {"qwen2", "qwen3"} and not fields.flag("use_sliding_window"):
        return None
    return fields.window("sliding_window") if model_type != "llama" else None


def load(base_model: str) -> Shape:
    """The shape of a local model directory.

    Raises:
        BadInput: no config.json, or not one of a known shape.
    """
    path = Path(base_model) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    return from_config(config, base_model)
