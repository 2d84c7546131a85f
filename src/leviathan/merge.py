"""Owns making one model of base + adapter, and having it proven before it gets its name.

Does not compute weights (``fusion``) nor the proof (``proving``), nor what else can be made
of the model (``exports``).
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from leviathan import checkpoints, child, corpus, fusion, proving, runs, staging, wholemodel
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput
from leviathan.proving import Job, Merged

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "vocab*", "merges.txt", "*.model",
)  # fmt: skip
_SHARD_GB = 5.0
# What a model's directory holds besides weights and tokenizer: code of its own (of a model that
# was trusted to run it), and what turns images or sound into its input.
_COMPANIONS = ("generation_config.json", "*.py", "*processor_config.json")


@dataclass(frozen=True)
class Options:
    """How the merged model is to be written.

    Raises:
        BadInput: not a type or a size.
    """

    dtype: str | None = None
    """bf16, fp16 or fp32; None: each tensor as the base has it."""
    shard_gb: float | None = None
    """Largest file, in 10^9 bytes; None: 5, and a model that was trained whole as it is."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in fusion.DTYPES:
            known = ", ".join(fusion.DTYPES)
            raise BadInput(f"--dtype {self.dtype!r} is no type to merge in", f"use one of {known}")
        if self.shard_gb is not None and not 0.001 <= self.shard_gb <= 1000:
            raise BadInput(f"--shard-gb {self.shard_gb:g} is no size of a file", "use 5, say")


def plan(
    run: runs.RunPaths,
    which: str,
    output: Path | None,
    *,
    replace: bool = False,
    suffix: str = "merged",
) -> tuple[Checkpoint, Path]:
    """The checkpoint to merge and where to; only reads.

    Raises:
        BadInput: no such checkpoint, it holds no adapter where one is wanted, or the output is
            taken by anything but an earlier merge that may be replaced.
        Refused: its weights lie in pieces.
    """
    checkpoint = checkpoints.choose(run.directory, which)
    if wholemodel.is_whole(checkpoint.path):
        if suffix == "adapter":
            raise BadInput(f"{checkpoint.path} holds no adapter", "leave out --adapter-only")
        wholemodel.demand(checkpoint.path)
    if output is not None and not output.name:
        raise BadInput(f"--output {output} has no name to give", "name a new directory")
    directory = output or Path("models") / f"{run.directory.resolve().name}-{suffix}"
    staging.demand_name(directory, replace=replace)
    return checkpoint, directory


def merge(
    run: runs.RunPaths,
    checkpoint: Checkpoint,
    directory: Path,
    tell: Callable[[str], None],
    options: Options | None = None,
) -> Merged:
    """Merge, prove, and only then give the result its name.

    Everything is made in a hidden directory beside ``directory``. The same merge goes on where a
    killed one was.

    Raises:
        Refused: the base model is not the one trained on, the adapter cannot be merged, there
            is no room, or another merge is at work.
        LeviathanError: the merge or the proof itself failed to run.
    """
    job = proving.prepare(run, checkpoint)
    options, weights = options or Options(), None
    with staging.aside(directory, tell) as partial:
        made = partial / "merged"
        if wholemodel.is_whole(checkpoint.path):
            tell(f"{checkpoint.path.name} is a whole model: nothing to merge")
            # Not there: it was made from nothing, and there is nothing to differ from.
            base = None if job.tree.get("reinit_weights") else job.base
            weights, digests = wholemodel.write(
                checkpoint.path, base, made, options.dtype, options.shard_gb, tell
            )
        else:
            tell(f"merging {checkpoint.path.name} into {job.base.name}, shard by shard")
            digests = _fuse(job, made, options, tell)
        copy_companions(job.base, checkpoint.path, made)
        tell(f"proving: base, {'trained' if weights else 'base + adapter'} and "
             f"{'served' if weights else 'merged'} on the same probes")  # fmt: skip
        result = proving.prove(job, made, tell, digests=digests, weights=weights)
        final = staging.put_in_place(made, directory, result.verdict)
    runs.event(run, "merge", session=None, step=checkpoint.step, verdict=result.verdict,
               to=str(final))  # fmt: skip
    return replace(result, directory=final)


def _fuse(job: Job, made: Path, options: Options, tell: Callable[[str], None]) -> dict[str, str]:
    """Write the model's files; digests of those with weights."""
    specification: dict[str, Any] = {
        "base": str(job.base.resolve()),
        "adapter": str(job.checkpoint.path.resolve()),
        "directory": str(made.resolve()),
        "dtype": options.dtype,
        "shard_bytes": int((options.shard_gb or _SHARD_GB) * 1e9),
        "tree": {key: value for key, value in job.tree.items() if key in _DECIDING},
    }
    key = {**specification, "base": _stamp(job), "adapter": _hashes_of(job.checkpoint.path),
           "versions": {name: _version(name) for name in _ARITHMETIC}}  # fmt: skip
    key.pop("directory")
    text = json.dumps(key, sort_keys=True, default=str)
    specification["key"] = xxhash.xxh3_128_hexdigest(text.encode())
    return dict(child.run("leviathan.fusion", specification, tell, "the merge")["shards"])


_ARITHMETIC = ("leviathan", "torch", "peft", "bitsandbytes", "transformers")
_DECIDING = {
    "bf16", "bfloat16", "fp16", "float16", "load_in_4bit", "load_in_8bit", "bnb_config_kwargs",
    "adapter", "trust_remote_code", *fusion.UNFOLLOWED,
}  # fmt: skip


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _stamp(job: Job) -> str:
    """What tells this base from another: its bytes; of a hub's snapshot, which never changes, its
    name, which is a commit."""
    return job.record.base or f"{job.tree['base_model']}@{job.base.name}"


def _hashes_of(checkpoint: Path) -> dict[str, str]:
    wanted = [*checkpoint.glob("adapter_*"), *checkpoint.glob("tokenizer*")]
    return {path.name: corpus.file_digest(path) for path in sorted(wanted)}


def copy_companions(base: Path, checkpoint: Path, merged: Path) -> None:
    """What a checkpoint does not hold comes from the base, the tokenizer from the checkpoint."""
    for pattern in _COMPANIONS:
        for file in (*base.glob(pattern), *checkpoint.glob(pattern)):
            # DeepSpeed's own script is no code of the model's.
            if file.name != "zero_to_fp32.py":
                shutil.copyfile(file, merged / file.name)
    copy_tokenizer(base, checkpoint, merged)


def copy_tokenizer(base: Path, checkpoint: Path, directory: Path) -> None:
    """The tokenizer that was trained with, and its chat template; else the base's."""
    trained = any(f for pattern in _TOKENIZER_FILES for f in checkpoint.glob(pattern))
    for pattern in _TOKENIZER_FILES:
        for file in (checkpoint if trained else base).glob(pattern):
            shutil.copyfile(file, directory / file.name)
