"""Owns fusing base and adapter into a new model's files, shard by shard.

Runs as ``python -m leviathan.fusion``, a ``child``, so that its memory goes back. Writes
weights, their index and config.json; what each weight becomes is ``trained_weights``' to say,
tokenizer, proof and the final name are ``merge``'s.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from leviathan import child, corpus, files, quantisation, shards, spelled
from leviathan.errors import Refused
from leviathan.shards import Shard, Stored, Tensor
from leviathan.trained_weights import INSTEAD, TrainedWeights

PROGRESS = "progress.json"
DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""The names of --dtype, and the format's."""
UNFOLLOWED = ("quantize_moe_experts", "model_quantization_config", "gptq")
"""Axolotl's keys that quantise the base in other ways than ``quantisation`` knows."""
_MARGIN_BYTES = 4 << 20  # index, proof and logs


@dataclass(frozen=True)
class Job:
    """One merge, as it comes in."""

    base: Path
    adapter: Path
    directory: Path
    """Of the new model's files; the progress record lies beside it."""
    key: str
    """Of everything the result depends on."""
    dtype: str | None
    """bf16, fp16, fp32; None: each tensor as in the base."""
    shard_bytes: int
    tree: dict[str, Any]
    """The run's Axolotl configuration."""


def fuse(job: Job, tell: child.Tell) -> dict[str, Any]:
    """Write the model, going on behind the last finished shard of a merge that was killed.

    Raises:
        Refused: no merge of this kind, or not enough room.
    """
    for key in UNFOLLOWED:
        if job.tree.get(key):
            raise Refused(f"trained with {key}: no merge here follows what that quantises", INSTEAD)
    config = json.loads((job.base / "config.json").read_bytes())
    quantised = quantisation.settings(job.tree, str(config.get("model_type")))
    stored = shards.stored(job.base)
    trained = TrainedWeights(
        job.base, job.adapter,
        quantised=quantised,
        train_dtype=quantisation.train_dtype(job.tree),
        tokenizer_size=_tokenizer_size(job),
        trust_remote_code=bool(job.tree.get("trust_remote_code")),
    )  # fmt: skip
    wanted = shards.layout(_tensors(stored, trained, job.dtype), job.shard_bytes)
    finished = _finished(job, wanted)
    _demand_room(job, [shard for shard in wanted if shard.name not in finished])
    if finished:
        tell(f"going on behind {len(finished)} of {len(wanted)} shards")
    for number, shard in enumerate(wanted, 1):
        if shard.name not in finished:
            content = _Content(stored, trained)
            finished[shard.name] = shards.write(job.directory / shard.name, shard, content)
            files.write_json(_progress(job), {"key": job.key, "shards": finished})
            tell(f"shard {number} of {len(wanted)}: {spelled.size(shard.bytes)}")
    shards.write_index(job.directory, wanted)
    files.write_json(job.directory / "config.json", _config(config, trained, job.dtype))
    return {"shards": finished}


def _tokenizer_size(job: Job) -> int:
    """Tokens of the trained tokenizer; 0 where there is none beside the adapter."""
    from transformers import AutoTokenizer

    if not (job.adapter / "tokenizer_config.json").is_file():
        return 0
    trust = bool(job.tree.get("trust_remote_code"))
    return len(AutoTokenizer.from_pretrained(job.adapter, trust_remote_code=trust))


def _tensors(
    stored: dict[str, Stored], trained: TrainedWeights, dtype: str | None
) -> Iterator[Tensor]:
    """What the new model holds, in the base's order; a head that is one no more, at the end."""
    both = trained.embeddings
    lacking = sorted(n for n in trained.changes if trained.source(n) not in stored)
    if lacking:
        raise Refused(
            f"the base model's files have no {lacking[0]}, which training changed: transformers "
            "loads this architecture under other names than it is stored",
            INSTEAD,
        )
    names = [n for n in stored if not (n == both.output and both.tied_in_base)]
    if both.tied_in_base and not both.tied:
        names.append(both.output)
    for name in names:
        source = stored[trained.source(name)]
        kept = source.dtype not in shards.FLOATS or dtype is None
        shape = source.shape
        if name in (both.input, both.output) and both.rows != both.base_rows:
            shape = (both.rows, *shape[1:])
        yield Tensor(name, source.dtype if kept else DTYPES[dtype or ""], shape)


@dataclass(frozen=True)
class _Content:
    """The bytes of each tensor of the new model; one tensor in memory at a time."""

    stored: dict[str, Stored]
    trained: TrainedWeights

    def __call__(self, tensor: Tensor) -> Iterable[shards.Bytes]:
        source = self.stored[self.trained.source(tensor.name)]
        if tensor.name in self.trained.changes:
            return self._bytes(tensor, self.trained.value(tensor.name, source.load()))
        if source.dtype == tensor.dtype:
            return source.chunks()
        return self._bytes(tensor, source.load())

    @staticmethod
    def _bytes(tensor: Tensor, value: Any) -> Iterable[shards.Bytes]:
        import torch

        if tuple(value.shape) != tensor.shape:
            raise Refused(
                f"{tensor.name} has the shape {tuple(value.shape)} after training, not "
                f"{tensor.shape}"
            )
        cast = value.to(shards.torch_dtype(tensor.dtype)).contiguous()
        if cast.is_floating_point() and not bool(torch.isfinite(cast).all()):
            raise Refused(f"{tensor.name} exceeds the range of {tensor.dtype}", "use --dtype bf16")
        return [memoryview(cast.view(-1).view(torch.uint8).numpy())]


def _progress(job: Job) -> Path:
    return job.directory.parent / PROGRESS


def _finished(job: Job, wanted: list[Shard]) -> dict[str, str]:
    """Shards that an earlier merge of the same finished, by their bytes on disk."""
    try:
        record = json.loads(_progress(job).read_bytes())
        known = dict(record["shards"]) if record["key"] == job.key else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    if not known:
        shutil.rmtree(job.directory, ignore_errors=True)
    job.directory.mkdir(exist_ok=True)
    kept = {}
    for shard in wanted:
        path = job.directory / shard.name
        if path.is_file() and shard.name in known and corpus.file_digest(path) == known[shard.name]:
            kept[shard.name] = known[shard.name]
    return kept


def _demand_room(job: Job, wanted: list[Shard]) -> None:
    place = job.directory.parent
    tokenizer = sum(file.stat().st_size for file in job.adapter.glob("tokenizer*"))
    needed = sum(shard.bytes for shard in wanted) + tokenizer + _MARGIN_BYTES
    free = shutil.disk_usage(place).free
    if needed > free:
        raise Refused(
            f"not enough disk space in {place.parent}: the merged model takes "
            f"{spelled.size(needed)}, {spelled.size(free)} are free",
            "make room, or choose another place with --output",
        )


def _config(config: dict[str, Any], trained: TrainedWeights, dtype: str | None) -> dict[str, Any]:
    """The base's config.json with what the merge changed."""
    both, changed = trained.embeddings, dict(config)
    text = changed.get("text_config")
    places = [changed, *([text] if isinstance(text, dict) else [])]
    for place in places:
        if dtype:
            key = "torch_dtype" if "torch_dtype" in place else "dtype"
            place[key] = str(shards.torch_dtype(DTYPES[dtype])).removeprefix("torch.")
        if both.rows != both.base_rows and "vocab_size" in place:
            place["vocab_size"] = both.rows
    if both.tied != both.tied_in_base:
        changed["tie_word_embeddings"] = both.tied
        if isinstance(text, dict) and "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = both.tied
    return changed


def _work(specification: dict[str, Any], tell: child.Tell) -> dict[str, Any]:
    given = {field.name: specification[field.name] for field in fields(Job)}
    paths = {name: Path(given[name]) for name in ("base", "adapter", "directory")}
    return fuse(Job(**{**given, **paths}), tell)


if __name__ == "__main__":
    child.serve(_work)
