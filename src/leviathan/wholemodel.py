"""Owns the model of a training of every weight: nothing to merge, its files as they are or cast.

What is served is compared with the checkpoint bit for bit, and with the base, from which it must
differ. Writing and comparing run as ``python -m leviathan.wholemodel``, a ``child``. What else
lies beside the weights and the final name are ``merge``'s, logits ``proof``'s.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leviathan import child, corpus, files, shards, spelled
from leviathan.errors import Refused
from leviathan.shards import Stored, Tensor

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
_SHARD_GB = 5.0
_MARGIN_BYTES = 4 << 20  # index, proof and logs


@dataclass(frozen=True)
class Weights:
    """What was found of the weights that are to be served."""

    tensors: int
    equal: int
    """Those that are the checkpoint's bit for bit, or its rounding in the type asked for."""
    compared_with_base: int
    """Those that the base has, too; 0 of a model that was made from nothing."""
    changed: int
    """Those of them that training changed, in the checkpoint's type."""
    max_rounding: float
    """Largest |served - trained|; 0 where nothing is converted."""
    linked: bool
    """Whether the files are the checkpoint's own, under a second name."""

    def verdict(self, word: str, reason: str) -> tuple[str, str]:
        """The merge's verdict: ``word`` and ``reason`` are that of the logits."""
        if self.equal != self.tensors:
            return "different", (
                f"{self.tensors - self.equal} of {self.tensors} tensors are not the checkpoint's"
            )
        if self.compared_with_base and not self.changed:
            return "unproven", "training changed nothing: every weight is the base's"
        if word != "equal":
            return word, reason.replace("adapter changes nothing", "training changes no answer")
        how = "rounded" if self.max_rounding else "bit for bit"
        of_base = f"differ from the base's in {self.changed} of {self.compared_with_base} tensors"
        if not self.compared_with_base:
            of_base = "were made from nothing"
        return "equal", f"the weights are the checkpoint's, {how}, and {of_base}"


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is a model, not an adapter."""
    return not (checkpoint / "adapter_config.json").exists()


def demand(checkpoint: Path) -> None:
    """See that the weights of a whole model lie there as they are served.

    Raises:
        Refused: they lie in pieces.
    """
    name = checkpoint.name
    if (checkpoint / shards.SINGLE).is_file() or (checkpoint / shards.INDEX).is_file():
        return
    pieces = next(checkpoint.glob("pytorch_model_fsdp_*"), None)
    if pieces:
        raise Refused(
            f"{name} holds its weights in FSDP's pieces, not as a model",
            f"accelerate merge-weights {pieces} {checkpoint}, then the same command again",
        )
    if (checkpoint / "latest").is_file():
        raise Refused(
            f"{name} holds its weights in DeepSpeed's parts, not as a model",
            f"python {checkpoint}/zero_to_fp32.py {checkpoint} {checkpoint} --safe_serialization, "
            "then the same command again",
        )
    raise Refused(f"{name} holds no {shards.SINGLE}", "choose another with --checkpoint")


def write(
    checkpoint: Path, base: Path | None, made: Path, dtype: str | None, shard_gb: float | None,
    tell: child.Tell,
) -> tuple[Weights, dict[str, str]]:  # fmt: skip
    """Put the checkpoint's weights and config.json into ``made``; digests of files with weights.

    Args:
        checkpoint: a whole model.
        base: what was trained; None where it was made from nothing.
        made: the directory that is to be served; made anew.
        dtype: bf16, fp16 or fp32; None: the files as they are.
        shard_gb: largest file, in 10^9 bytes; None: as they are, or 5.
        tell: called with one line for the person who waits.

    Raises:
        Refused: the weights lie in pieces, exceed the type's range, or find no room.
    """
    demand(checkpoint)
    specification = {
        "checkpoint": str(checkpoint.resolve()), "base": str(base.resolve()) if base else None,
        "made": str(made.resolve()), "dtype": dtype,
        "shard_bytes": int(shard_gb * 1e9) if shard_gb else None,
    }  # fmt: skip
    found = child.run("leviathan.wholemodel", specification, tell, "the writing of the model")
    return Weights(**found["weights"]), dict(found["digests"])


def _work(specification: dict[str, Any], tell: child.Tell) -> dict[str, Any]:
    checkpoint, made = Path(specification["checkpoint"]), Path(specification["made"])
    base, dtype = specification["base"], specification["dtype"]
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    trained = shards.stored(checkpoint)
    linked = False
    if dtype is None and specification["shard_bytes"] is None:
        linked = _place(trained, checkpoint, made)
        tell("the checkpoint's files, " + ("linked" if linked else "copied"))
    else:
        size = specification["shard_bytes"] or int(_SHARD_GB * 1e9)
        _convert(trained, made, dtype and DTYPES[dtype], size, tell)
    _write_config(checkpoint, made, Path(base) if base else None, dtype)
    weights = _compare(made, trained, shards.stored(Path(base)) if base else {}, linked=linked)
    names = sorted(made.glob("*.safetensors"))
    digests = {path.name: corpus.file_digest(path) for path in names}
    return {"weights": asdict(weights), "digests": digests}


def _place(trained: Mapping[str, Stored], checkpoint: Path, made: Path) -> bool:
    """The files under a second name, which takes no room; copies where the disk is another.

    Nobody writes into a checkpoint's files again, and what removes either name leaves the other.
    """
    linked = True
    sources = sorted({tensor.file for tensor in trained.values()})
    if (checkpoint / shards.INDEX).is_file():
        shutil.copyfile(checkpoint / shards.INDEX, made / shards.INDEX)
    for source in sources:
        try:
            os.link(source.resolve(), made / source.name)
        except OSError:
            linked = False
            _demand_room(made, source.stat().st_size)
            shutil.copyfile(source, made / source.name)
    return linked


def _convert(
    trained: Mapping[str, Stored], made: Path, dtype: str | None, shard_bytes: int, tell: child.Tell
) -> None:
    wanted = shards.layout(
        (Tensor(t.name, dtype if dtype and t.dtype in shards.FLOATS else t.dtype, t.shape)
         for t in trained.values()), shard_bytes,
    )  # fmt: skip
    _demand_room(made, sum(shard.bytes for shard in wanted))

    def content(tensor: Tensor) -> Iterable[shards.Bytes]:
        source = trained[tensor.name]
        return source.chunks() if source.dtype == tensor.dtype else [_cast(source, tensor.dtype)]

    for number, shard in enumerate(wanted, 1):
        shards.write(made / shard.name, shard, content)
        tell(f"shard {number} of {len(wanted)}: {spelled.size(shard.bytes)}")
    shards.write_index(made, wanted)


def _cast(source: Stored, dtype: str) -> memoryview:
    import torch

    cast = source.load().to(shards.torch_dtype(dtype)).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise Refused(f"{source.name} exceeds the range of {dtype}", "use --dtype bf16")
    return memoryview(cast.view(-1).view(torch.uint8).numpy())


def _demand_room(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed + _MARGIN_BYTES > free:
        raise Refused(
            f"not enough disk space in {place.parent.parent}: the model takes "
            f"{spelled.size(needed)}, {spelled.size(free)} are free",
            "make room, or choose another place with --output",
        )


def _write_config(checkpoint: Path, made: Path, base: Path | None, dtype: str | None) -> None:
    places = [checkpoint / "config.json", *([base / "config.json"] if base else [])]
    source = next((place for place in places if place.is_file()), None)
    if source is None:
        raise Refused(f"{checkpoint.name} holds no config.json", "restore it from the base model")
    config = json.loads(source.read_bytes())
    if dtype:
        for place in (config, config.get("text_config")):
            if isinstance(place, dict):
                key = "torch_dtype" if "torch_dtype" in place else "dtype"
                place[key] = str(shards.torch_dtype(DTYPES[dtype])).removeprefix("torch.")
    files.write_json(made / "config.json", config)


def _compare(
    made: Path, trained: Mapping[str, Stored], base: Mapping[str, Stored], *, linked: bool
) -> Weights:
    """Every tensor of what is served against the checkpoint's and the base's, one at a time."""
    served = shards.stored(made)
    equal = compared = changed = 0
    rounding = 0.0
    for name in {**trained, **served}:
        if name not in served or name not in trained:
            continue
        value = trained[name].load()
        if linked:
            equal += 1
        else:
            there = served[name].load()
            equal += _same(value.to(there.dtype), there)
            if there.dtype != value.dtype:
                rounding = max(rounding, float((there.double() - value.double()).abs().max()))
        if name in base:
            compared += 1
            changed += not _same(*_common(base[name].load().to(value.dtype), value))
    count = len({**trained, **served})
    return Weights(count, equal, compared, changed, rounding, linked)


def _same(one: Any, other: Any) -> bool:
    """Bit for bit, NaN or not."""
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (t.contiguous().view(-1).view(torch.uint8) for t in (one, other))
    return bool(torch.equal(first, second))


def _common(base: Any, trained: Any) -> tuple[Any, Any]:
    """The rows that both have: a vocabulary that grew is no training."""
    rows = min(base.shape[0], trained.shape[0]) if base.dim() and trained.dim() else None
    return (base[:rows], trained[:rows]) if rows is not None else (base, trained)


if __name__ == "__main__":
    child.serve(_work)
