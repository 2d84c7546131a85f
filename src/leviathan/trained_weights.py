"""Owns what training made of a base model's weights, one tensor at a time, as PEFT means it.

The model is built without a weight in it; PEFT loads the adapter into it;
each tensor of the base is then put into its module for as long as PEFT's own layer merges it
(rsLoRA, DoRA, patterns of ranks, embeddings, modules trained whole). Does not read or write
the model's files (``shards``, ``fusion``). Imports torch and peft inside its functions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from leviathan import models, quantisation
from leviathan.errors import Refused

INSTEAD = "serve the base with the adapter: --adapter-only"
# Others (pissa, olora, corda, loftq) take something away from the base when training begins,
# and what it was is nowhere in the adapter.
_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor of the base."""

    kind: str
    """lora, whole (a module trained as it is), tokens (some rows), plain (saved with the
    adapter) or rounded (only quantised)."""
    apply: Callable[[Any], Any]
    """The trained tensor from the base's, both float32."""
    whole: Any = None
    """The trained tensor where it does not depend on the base's."""
    tied: bool = False
    """PEFT itself gives this module the rows of the other embedding."""


@dataclass(frozen=True)
class Embeddings:
    """The input and output embeddings: names of their tensors, and their sizes."""

    input: str
    output: str
    base_rows: int
    rows: int
    """After training, which may have added tokens."""
    tied: bool
    """One matrix is both, after training too."""
    tied_in_base: bool


class TrainedWeights:
    """The weights of base + adapter, computed when they are asked for.

    Raises:
        Refused: the adapter cannot be merged, or is not one of this base.
    """

    def __init__(
        self,
        base: Path,
        adapter: Path,
        *,
        quantised: dict[str, Any] | None,
        train_dtype: str,
        tokenizer_size: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        models.quiet()
        model = skeleton(base, trust_remote_code=trust_remote_code)
        if getattr(model.config, "quantization_config", None):
            raise Refused(
                f"{base} is quantised itself: a merge would have to quantise it again",
                "merge into the model it was made of, or " + INSTEAD,
            )
        state = _read(adapter)
        self.embeddings = _embeddings(model, state, tokenizer_size)
        changes = dict(_changes(_with_adapter(model, adapter, state)))
        self.embeddings, self.changes = _settle_tie(self.embeddings, changes)
        if quantised:
            whole = skeleton(base, trust_remote_code=trust_remote_code)
            self._round(quantisation.linears(whole, quantised), quantised, train_dtype)

    def _round(self, linears: set[str], quantised: dict[str, Any], train_dtype: str) -> None:
        """What the runtime quantised is rounded first, whether an adapter sits on it or not."""
        trip = partial(quantisation.round_trip, settings=quantised, dtype=train_dtype)
        names = {f"{name}.weight" for name in linears}
        for name in names:
            before = self.changes.get(name)
            if before is None:
                self.changes[name] = Change("rounded", trip)
            elif before.whole is None:
                self.changes[name] = Change(before.kind, partial(_in_turn, trip, before.apply))

    def source(self, name: str) -> str:
        """The tensor of the base that ``name`` is made from: a head that was tied, embeddings."""
        both = self.embeddings
        return both.input if name == both.output and both.tied_in_base else name

    def value(self, name: str, base: Any) -> Any:
        """The trained tensor in float32.

        Raises:
            Refused: it holds NaN or infinity, or PEFT cannot merge it.
        """
        import torch

        try:
            with torch.no_grad():
                found = self.changes[name].apply(base.float())
        except (ValueError, RuntimeError, NotImplementedError, IndexError) as error:
            raise Refused(f"{name} cannot be merged: {_first_line(error)}", INSTEAD) from error
        if not bool(torch.isfinite(found).all()):
            raise Refused(f"{name} would not be finite after the merge")
        return found


def skeleton(base: Path, *, trust_remote_code: bool) -> Any:
    """The base model on the meta device: every module, no weight."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _in_turn(first: Callable[[Any], Any], then: Callable[[Any], Any], base: Any) -> Any:
    return then(first(base))


def _read(adapter: Path) -> dict[str, Any]:
    from peft.utils.save_and_load import load_peft_weights

    try:
        found = dict(load_peft_weights(str(adapter), device="cpu"))
    except Exception as error:  # safetensors' own, pickle's, zip's
        raise Refused(f"{adapter} cannot be read: {_first_line(error)}") from error
    for name, tensor in found.items():
        if not bool(tensor.isfinite().all()):
            raise Refused(f"{adapter} is broken: {name} is not finite")
    # Resized embeddings that are trained whole too are saved twice; PEFT loads the first.
    twice = ".modules_to_save.weight"
    once = {name for name in found if f"{name.removesuffix('.weight')}{twice}" in found}
    return {
        name: tensor for name, tensor in found.items()
        if not (name.endswith(twice) and f"{name.removesuffix(twice)}.weight" in once)
    }  # fmt: skip


def _embeddings(model: Any, state: dict[str, Any], tokenizer_size: int) -> Embeddings:
    """Resize as training did. New rows were random then: the adapter must hold them."""
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    named = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    rows = into.num_embeddings
    tied = out is not None and out.weight is into.weight
    input_name = named[id(into)]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wanted = models.embedding_rows(shapes, input_name.removesuffix(".weight"))
    if wanted is None and tokenizer_size > rows:
        raise Refused(
            f"the tokenizer has {tokenizer_size} tokens, the base {rows} embeddings, and the "
            "adapter holds none: what the new tokens were trained with is lost",
            "train with lora_modules_to_save: [embed_tokens, lm_head]",
        )
    if wanted not in (None, rows):
        model.resize_token_embeddings(wanted, mean_resizing=False)
    output_name = named[id(out)] if out is not None else ""
    return Embeddings(input_name, output_name, rows, wanted or rows, tied, tied)


def _with_adapter(model: Any, adapter: Path, state: dict[str, Any]) -> Any:
    """The model with PEFT's layers in it, the adapter's tensors loaded, the rest on meta."""
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(adapter))
    _check(config)
    config.inference_mode = True
    _hollow(model)
    try:
        wrapped = PeftModel(model, config, low_cpu_mem_usage=True)
        loaded = set_peft_model_state_dict(wrapped, state, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError, KeyError) as error:
        said = next((s for s in str(error).splitlines() if "size mismatch" in s), str(error))
        raise Refused(f"the adapter does not fit this base model: {said.strip()}") from error
    if loaded.unexpected_keys:
        raise Refused(
            f"the adapter is not of this base model: it has no place for "
            f"{loaded.unexpected_keys[0]} and {len(loaded.unexpected_keys) - 1} more"
        )
    return wrapped


def _hollow(model: Any) -> None:
    """Give every weight its shape on the CPU, of one zero that stands for all.

    On the meta device PEFT would move the adapter there too.
    """
    import torch

    made: dict[int, Any] = {}  # tied ones stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            # Of one number nothing can be hollow: it stays on the meta device.
            if parameter is not None and parameter.numel() > 1:
                shape = parameter.shape
                made.setdefault(id(parameter), torch.nn.Parameter(
                    torch.zeros(1).expand(shape), requires_grad=False))  # fmt: skip
                module._parameters[name] = made[id(parameter)]


def _is_hollow(tensor: Any) -> bool:
    return bool(
        tensor.is_meta or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()
    )


def _check(config: Any) -> None:
    """Refuse what a merge would silently get wrong."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    init = getattr(config, "init_lora_weights", True)
    reasons = [
        (kind != "LORA", f"a {kind} adapter cannot be merged"),
        (init not in _KEEP_THE_BASE, f"init_lora_weights: {init} changes the base's own weights "
         "when training begins, and the adapter does not tell how"),
        (getattr(config, "layer_replication", None), "layer_replication makes another base model"),
        (getattr(config, "target_parameters", None),
         "LoRA on bare parameters (experts of a mixture) is not supported"),
        (getattr(config, "lora_bias", False), "lora_bias is not supported"),
        (getattr(config, "alora_invocation_tokens", None),
         "an activated LoRA acts on some tokens only"),
    ]  # fmt: skip
    for is_so, reason in reasons:
        if is_so:
            raise Refused(f"{reason}: nothing is merged", INSTEAD)


def _changes(wrapped: Any) -> Iterator[tuple[str, Change]]:
    """What becomes of which tensor of the base, by the names in the base's files."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    inner = wrapped.base_model.model
    yield from _plain(inner)
    for name, module in inner.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for leaf, tensor in module.modules_to_save["default"].named_parameters():
                yield f"{name}.{leaf}", _whole("whole", f"{name}.{leaf}", tensor)
        elif isinstance(module, TrainableTokensWrapper):
            yield f"{name}.weight", _tokens(name, module.token_adapter)
        elif isinstance(module, LoraLayer):
            yield f"{name}.weight", _lora(name, module)


def _plain(inner: Any) -> Iterator[tuple[str, Change]]:
    """Tensors of the base itself that were saved with the adapter: resized embeddings, biases."""
    for name, tensor in inner.named_parameters():
        parts = name.split(".")
        is_adapters = any(p.startswith(("lora_", "modules_to_save", "trainable_")) for p in parts)
        if not _is_hollow(tensor) and not is_adapters:
            real = ".".join(p for p in parts if p not in {"base_layer", "original_module"})
            yield real, _whole("plain", real, tensor)


def _whole(kind: str, name: str, tensor: Any) -> Change:
    _demand(name, tensor)
    return Change(kind, lambda _base: tensor.detach().float(), whole=tensor.detach())


def _demand(name: str, *tensors: Any) -> None:
    if any(_is_hollow(tensor) for tensor in tensors):
        raise Refused(f"the adapter lacks what its configuration promises for {name}")


def _tokens(name: str, layer: Any) -> Change:
    import torch

    owner = layer.tied_adapter or layer
    rows = owner.trainable_tokens_delta["default"]
    _demand(name, rows)
    index = torch.tensor(owner.token_indices["default"])

    def apply(base: Any) -> Any:
        return base.index_copy(0, index, rows.detach().to(base))

    return Change("tokens", apply, tied=layer.tied_adapter is not None)


def _lora(name: str, layer: Any) -> Change:
    from peft.tuners.lora.layer import Embedding, Linear

    if type(layer) not in (Linear, Embedding):
        raise Refused(f"LoRA on {name}, a {type(layer).__name__}, cannot be merged", INSTEAD)
    variant = layer.lora_variant.get("default")
    if variant is not None and "dora" not in type(variant).__name__.lower():
        raise Refused(f"{name} has a {type(variant).__name__}: no merge here follows it", INSTEAD)
    _demand(name, *(p for key, p in layer.named_parameters() if ".default" in key))
    return Change("lora", partial(_merged_by_peft, layer))


def _merged_by_peft(layer: Any, base: Any) -> Any:
    """PEFT's own merge of one layer, in float32, and the layer as it was again."""
    import torch

    module = layer.get_base_layer()
    held = module.weight
    # Embeddings under LoRA are saved with the adapter, resized perhaps.
    start = base if _is_hollow(held) else held.detach().float()
    module.weight = torch.nn.Parameter(start, requires_grad=False)
    adapters = {key: p for key, p in layer.named_parameters() if ".default" in key}
    types = {key: p.dtype for key, p in adapters.items()}
    try:
        for parameter in adapters.values():
            parameter.data = parameter.data.float()
        layer.merge(safe_merge=True)
        return module.weight.data
    finally:
        layer.merged_adapters.clear()
        module.weight = held
        for key, parameter in adapters.items():
            parameter.data = parameter.data.to(types[key])


def _settle_tie(
    both: Embeddings, changes: dict[str, Change]
) -> tuple[Embeddings, dict[str, Change]]:
    """PEFT trains copies of tied embeddings apart from each other: then they are two."""
    if not both.tied:
        return both, changes
    into, out = changes.get(both.input), changes.get(both.output)
    if _is_one(into, out):
        changes.pop(both.output, None)
        if into is None and out is not None:
            changes[both.input] = out
        return both, changes
    # The one that was not trained stays what the base's was.
    same = Change("plain", lambda base: base)
    return replace(both, tied=False), {both.output: same, both.input: same, **changes}


def _is_one(into: Change | None, out: Change | None) -> bool:
    import torch

    kinds = {change.kind for change in (into, out) if change}
    if kinds <= {"plain"}:
        return True
    if into is None or out is None:
        return False
    if into.whole is not None and out.whole is not None:
        return bool(torch.equal(into.whole, out.whole))
    return kinds == {"tokens"} and out.tied
