"""Owns what a dense decoder is made of: its modules and their parameter counts.

Pure. Does not know where the numbers come from (``shapes``) or what they cost (``memory``,
``disk``, ``speed``).

The counts are those of transformers' own classes (models/<type>/modeling_<type>.py, 5.16) and
of PEFT's LoRA (0.20); tests/real/test_exact_counts.py builds both on the meta device and compares.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from leviathan.errors import BadInput

_IN_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "dense"}


@dataclass(frozen=True)
class Linear:
    """One linear of one layer; its weight is a matrix [out, into]."""

    name: str
    """The module's last name, as ``q_proj``."""
    out: int
    into: int
    bias: bool = False

    @property
    def path(self) -> str:
        """The module's name inside its layer, as ``self_attn.q_proj``."""
        return f"{'self_attn' if self.name in _IN_ATTENTION else 'mlp'}.{self.name}"

    @property
    def weights(self) -> int:
        """Entries of the matrix."""
        return self.out * self.into

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.weights + self.out * self.bias


@dataclass(frozen=True)
class Part:
    """One module with parameters of its own and no children."""

    path: str
    """Its name as PEFT sees it, as ``model.layers.0.self_attn.q_proj``."""
    parameters: int
    sides: tuple[int, int] | None = None
    """A linear's (out, into), an embedding's (vocab, hidden): what LoRA can adapt."""

    @property
    def tensors(self) -> list[tuple[int, ...]]:
        """Shapes of its parameters; those of several vectors are counted as one."""
        rest = self.parameters - (self.sides[0] * self.sides[1] if self.sides else 0)
        return [*([self.sides] if self.sides else []), *([(rest,)] if rest else [])]

    def lora(self, rank: int) -> list[tuple[int, ...]]:
        """A [rank, into] and B [out, rank] (Hu et al. 2021, section 4.1)."""
        return [(rank, self.sides[1]), (self.sides[0], rank)] if self.sides else []

    def beneath(self, prefix: str) -> "Part":
        """The same module inside ``prefix``."""
        return Part(f"{prefix}.{self.path}", self.parameters, self.sides)

    def is_within(self, names: Iterable[str]) -> bool:
        """Whether this is, or lies inside, a module of these names: out of LoRA's reach."""
        return any(f".{name}." in f".{self.path}." for name in names)

    def is_saved(self, names: Iterable[str]) -> bool:
        """Whether this is, or lies inside, a module whose name ends so (PEFT: modules_to_save)."""
        steps = self.path.split(".")
        whole = [".".join(steps[:length]) for length in range(1, len(steps) + 1)]
        return any(path.endswith(name) for name in names for path in whole)

    def is_targeted(self, targets: tuple[str, ...]) -> bool:
        """PEFT's match: the end of the path in whole names, or one expression for all of it."""
        if any(f".{self.path}".endswith(f".{target}") for target in targets):
            return True
        return len(targets) == 1 and re.fullmatch(targets[0], self.path) is not None


@dataclass(frozen=True)
class Layers:
    """A stack of equal layers."""

    count: int
    path: str
    """Where the stack lies, as ``model.layers``."""
    linears: tuple[Linear, ...]
    """Those of one layer."""
    norms: tuple[Part, ...]
    """Those of one layer; paths inside it."""

    def parts(self) -> Iterator[Part]:
        """Every module of every layer."""
        linears = [Part(x.path, x.parameters, (x.out, x.into)) for x in self.linears]
        for index in range(self.count):
            for part in (*linears, *self.norms):
                yield part.beneath(f"{self.path}.{index}")


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
    norms: tuple[Part, ...]
    """Those of one decoder layer."""
    final_norm: Part
    head_bias: bool
    max_positions: int
    sliding_window: int | None
    """Tokens that a layer with windowed attention looks back; None where no layer has it."""
    path: str = "model"
    """The decoder's own name in the whole model."""
    vision: Layers | None = None
    """Layers of the vision tower that a multimodal checkpoint loads, text or not."""
    vision_rest: tuple[Part, ...] = ()
    """What else belongs to that tower: its embeddings and the projector."""

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
        """Biases of all decoder linears and of the head."""
        layer = sum(linear.out for linear in self.linears if linear.bias)
        return self.layers * layer + self.vocab * self.head_bias

    @property
    def vision_parameters(self) -> int:
        """A multimodal checkpoint's vision tower and projector; else 0."""
        layers = self.vision.parts() if self.vision else ()
        return sum(part.parameters for part in (*layers, *self.vision_rest))

    @property
    def other_parameters(self) -> int:
        """Normalisations of the whole model, and the vision tower."""
        norms = self.layers * sum(norm.parameters for norm in self.norms)
        return norms + self.final_norm.parameters + self.vision_parameters

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

    def parts(self) -> Iterator[Part]:
        """Every module that has parameters; a tied head is one, too, sharing its matrix."""
        embedding, sides = self.vocab * self.hidden, (self.vocab, self.hidden)
        yield Part(f"{self.path}.embed_tokens", embedding, sides)
        yield from Layers(self.layers, f"{self.path}.layers", self.linears, self.norms).parts()
        yield self.final_norm.beneath(self.path)
        yield from self.vision.parts() if self.vision else ()
        yield from self.vision_rest
        yield Part("lm_head", embedding + self.vocab * self.head_bias, sides)

    def lora_parameters(
        self,
        rank: int,
        targets: Iterable[str],
        all_linear: bool = False,
        modules_to_save: Iterable[str] = (),
    ) -> int:
        """What training an adapter trains: the LoRA matrices and whole ``modules_to_save``.

        Raises:
            BadInput: nothing is called what ``targets`` name.
        """
        tensors = self.lora_tensors(rank, targets, all_linear, modules_to_save)
        return sum(math.prod(tensor) for tensor in tensors)

    def lora_tensors(
        self,
        rank: int,
        targets: Iterable[str],
        all_linear: bool = False,
        modules_to_save: Iterable[str] = (),
    ) -> list[tuple[int, ...]]:
        """Shapes of the tensors that an adapter consists of.

        ``all_linear`` is Axolotl's lora_target_linear: every linear but the head, a vision
        tower's included, besides ``targets`` (axolotl.loaders.adapter.find_all_linear_names).

        Raises:
            BadInput: nothing is called what ``targets`` name.
        """
        saved, wanted = tuple(modules_to_save), tuple(targets)
        linears = {x.name for x in (*self.linears, *(self.vision.linears if self.vision else ()))}
        if all_linear:
            wanted = (*wanted, *sorted(linears))
        adapted = [
            tensor
            for part in self.parts()
            if part.sides and not part.is_within(saved) and part.is_targeted(wanted)
            for tensor in part.lora(rank)
        ]
        if not adapted:
            raise BadInput(
                f"lora_target_modules: {', '.join(wanted) or 'nothing'} names no linear of "
                f"{self.name}", f"known: {', '.join(sorted(linears))}",
            )  # fmt: skip
        whole = [tensor for p in self.parts() if p.is_saved(saved) for tensor in p.tensors]
        return adapted + whole

    def tensors(self) -> list[tuple[int, ...]]:
        """Shapes of all parameters of the model, a tied matrix once."""
        parts = [p for p in self.parts() if not (self.tied and p.path == "lm_head")]
        return [tensor for part in parts for tensor in part.tensors]
