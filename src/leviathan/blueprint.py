"""Owns what a recipe may say of a model made from nothing, and the config.json that follows.

Pure. Does not make it (``scratch``) nor train its tokenizer (``vocabulary``). The architecture
is Llama's, which Axolotl, vLLM and GGUF converters know.
"""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leviathan import vocabulary

_DEPTH_WIDTH = 64
"""Width for each layer of depth (nanochat's aspect ratio)."""
_HEAD = 128
_ROUND = 128
_VOCABULARY, _GPT2_VOCABULARY, _CHARACTERS = 65536, 50304, 256
_DEEPEST = 200


class _Size(NamedTuple):
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int


# Layers and widths are the pure-transformer guide's; the rest was solved for, as its counts fit
# 50,304 tokens, an untied head, keys and values for every third or fourth head, and a feed-forward
# of 2.67 to 2.75 widths: within 0.6 % of each count that the guide gives (docs/scratch-models.md).
_SIZES = {
    "tiny": _Size(12, 512, 8, 2, 1408),
    "small": _Size(16, 768, 12, 4, 2048),
    "medium": _Size(24, 1024, 16, 4, 2816),
    "medium-large": _Size(20, 1152, 18, 6, 3072),
    "large": _Size(24, 1536, 24, 6, 4224),
    "xlarge": _Size(32, 1920, 30, 10, 5120),
}
_BY_HAND = ("width", "layers", "heads")
"""Needed where neither depth nor size says it."""


class NewModel(BaseModel):
    """A model made from nothing: seeded random weights and a tokenizer of the corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int | None = Field(None, ge=1, le=_DEEPEST)
    """Layers; the width is 64 times as much, heads are 128 wide (64 where the depth is odd), as
    in nanochat."""
    size: Literal["tiny", "small", "medium", "medium-large", "large", "xlarge"] | None = None
    """Instead of ``depth``: a shape by name, 85 M to 1.46 B parameters (docs/scratch-models.md)."""
    layers: int | None = Field(None, ge=1, le=1000)
    """Instead of both, with ``width`` and ``heads``: a shape by hand."""
    width: int | None = Field(None, ge=8)
    """Numbers that stand for a token between the layers; a multiple of ``heads``."""
    heads: int | None = Field(None, ge=1)
    """Attention heads."""
    kv_heads: int | None = Field(None, ge=1)
    """Heads of keys and values: fewer save memory when the model answers. Unset: as many as
    ``heads``, of a ``size`` as in its table."""
    feed_forward: int | None = Field(None, ge=8)
    """Width inside a layer's MLP. Unset: 8/3 of the width, up to a multiple of 128 (Llama's)."""
    vocab_size: int | None = Field(None, ge=32, le=1 << 20)
    """Tokens, the special ones included. Unset: 65,536 (of a ``size`` 50,304), of characters 256.
    What the corpus does not fill is reserved."""
    tokenizer: Literal["bpe", "characters"] = "bpe"
    """Byte-level BPE learned from the corpus, or its characters, the rarest left out where
    ``vocab_size`` has no room."""
    tokenizer_chars: int = Field(500_000_000, ge=1000)
    """Characters of the corpus that the tokenizer is learned from at most, evenly spread."""
    context: int = Field(2048, ge=8)
    """Positions the model knows (max_position_embeddings); ``sequence_len`` must not be more."""
    tie_embeddings: bool = False
    """The output head is the embedding's own matrix."""
    initial_std: float = Field(0.02, gt=0, lt=1)
    """Standard deviation of the weights; those that end a layer's two branches get it divided by
    the square root of twice the layers (GPT-2). Widths of 64 to 128 learn faster with 0.06."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """In which the first weights are stored; what training computes in is Axolotl's to say."""

    @model_validator(mode="after")
    def _one_shape(self) -> "NewModel":
        by_hand = [name for name in _BY_HAND if getattr(self, name) is not None]
        chosen = [name for name in ("depth", "size") if getattr(self, name) is not None]
        if len(chosen) + bool(by_hand) != 1:
            given = ", ".join([*chosen, *by_hand]) or "none of them"
            raise ValueError(f"give depth, or size, or width, layers and heads ({given} given)")
        if by_hand and len(by_hand) < len(_BY_HAND):
            missing = ", ".join(name for name in _BY_HAND if name not in by_hand)
            raise ValueError(f"a shape by hand needs {missing}, too")
        shape = _sizes(self)
        if shape.width % (2 * shape.heads):
            raise ValueError(f"width {shape.width} is no even multiple of heads {shape.heads}")
        if shape.heads % shape.kv_heads:
            raise ValueError(f"{shape.heads} heads are no multiple of kv_heads {shape.kv_heads}")
        least = vocabulary.least(self.tokenizer)
        if self.vocabulary_size < least:
            raise ValueError(f"vocab_size {self.vocabulary_size} is below {least}: every byte "
                             "and special token needs its own")  # fmt: skip
        return self

    @property
    def vocabulary_size(self) -> int:
        """``vocab_size``, or what stands for it."""
        if self.vocab_size is not None:
            return self.vocab_size
        if self.tokenizer == "characters":
            return _CHARACTERS
        return _GPT2_VOCABULARY if self.size else _VOCABULARY

    def config_json(self) -> dict[str, Any]:
        """The model's config.json, as ``LlamaForCausalLM`` reads it."""
        shape = _sizes(self)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary_size,
            "hidden_size": shape.width,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.width // shape.heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "initializer_range": self.initial_std,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie_embeddings,
            "use_cache": True,
            "bos_token_id": None,
            "eos_token_id": vocabulary.SPECIAL_TOKENS.index(vocabulary.END_OF_TEXT),
            "pad_token_id": vocabulary.SPECIAL_TOKENS.index(vocabulary.PAD),
            "dtype": self.dtype,
        }


def _sizes(model: NewModel) -> _Size:
    """The shape's numbers: of the table, of the depth, or by hand."""
    if model.size:
        base = _SIZES[model.size]
    elif model.depth:
        width = _DEPTH_WIDTH * model.depth
        heads = width // (_HEAD if width % _HEAD == 0 else _HEAD // 2)
        base = _Size(model.depth, width, heads, heads, _gated(width))
    else:
        layers, width, heads = model.layers or 1, model.width or 1, model.heads or 1
        base = _Size(layers, width, heads, heads, _gated(width))
    return base._replace(
        kv_heads=model.kv_heads or base.kv_heads,
        feed_forward=model.feed_forward or base.feed_forward,
    )


def _gated(width: int) -> int:
    """8/3 of the width: three such matrices weigh as much as two of four widths (Llama)."""
    return -(-8 * width // (3 * _ROUND)) * _ROUND
