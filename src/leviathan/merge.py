"""Owns making one model of base + adapter, and having it proven before it gets its name.

Does not compute weights (``fusion``) nor the comparison (``proof``): both are processes of
their own. What else is made of a merged model is ``exports``'.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import xxhash
import yaml

from leviathan import (
    basemodel,
    checkpoints,
    child,
    config,
    corpus,
    evaluate,
    evidence,
    files,
    models,
    prompts,
    proof,
    runs,
    signals,
)
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput, Refused

PROOF = evidence.PROOF
UNVERIFIED = "UNVERIFIED"
_PROBES = 8
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "vocab*", "merges.txt", "*.model",
)  # fmt: skip


# What a model's directory holds besides weights and tokenizer: code of its own (a model that
# was trusted to run it), and what turns images or sound into its input.
_COMPANIONS = ("generation_config.json", "*.py", "*processor_config.json")


@dataclass(frozen=True)
class Options:
    """How the merged model is to be written."""

    dtype: str | None = None
    """bf16, fp16 or fp32; None: each tensor as the base has it."""
    shard_gb: float = 5.0
    """Largest file, in 10^9 bytes."""


@dataclass(frozen=True)
class Merged:
    """A merged model on disk and what is proven of it."""

    directory: Path
    checkpoint: Checkpoint
    verdict: str
    reason: str
    comparison: dict[str, Any]


def plan(
    run: runs.RunPaths, which: str, output: Path | None, *, replace: bool = False
) -> tuple[Checkpoint, Path]:
    """The checkpoint to merge and where to; only reads.

    Raises:
        BadInput: no such checkpoint, it holds no adapter, or the output is taken by
            anything but an earlier merge that may be replaced.
    """
    checkpoint = checkpoints.choose(run.directory, which)
    if not (checkpoint.path / "adapter_config.json").exists():
        raise BadInput(f"{checkpoint.path} holds no adapter", "a full fine-tune needs no merge")
    directory = output or Path("models") / f"{run.directory.resolve().name}-merged"
    taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if taken and not (directory / PROOF).is_file():
        raise BadInput(f"{directory} exists and is no merged model", "choose another --output")
    if taken and not replace:
        raise BadInput(
            f"{directory} exists already", "choose another with --output, or --force to replace it"
        )
    return checkpoint, directory


def merge(
    run: runs.RunPaths,
    checkpoint: Checkpoint,
    directory: Path,
    tell: Callable[[str], None],
    options: Options | None = None,
) -> Merged:
    """Merge, prove, and only then give the result its name.

    Everything is made in a hidden directory beside ``directory``; a power cut leaves
    no half model under the real name, and the same merge goes on where it was. An earlier
    merge is replaced only by one that is proven; an unproven result goes to
    ``<directory>.unverified`` then.

    Raises:
        Refused: the base model is not the one trained on, the adapter cannot be merged, there
            is no room, or another merge is at work.
        LeviathanError: the merge or the proof itself failed to run.
    """
    job = prepare(run, checkpoint)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _alone(directory), _ended_by_signals(), _partial(directory, tell) as partial:
        made = partial / "merged"
        tell(f"merging {checkpoint.path.name} into {job.base.name}, shard by shard")
        _fuse(job, made, options or Options(), tell)
        _copy_companions(job.base, checkpoint.path, made)
        tell("proving: base, base + adapter and merged on the same probes")
        result = _prove(job, made, tell)
        files.fsync_tree(made)
        final = _put_in_place(made, directory, result.verdict)
    runs.event(run, "merge", session=None, step=checkpoint.step, verdict=result.verdict,
               to=str(final))  # fmt: skip
    return replace(result, directory=final)


@dataclass(frozen=True)
class Job:
    """What is merged: all that is read of the run before anything is written."""

    record: runs.RunRecord
    recipe: config.Recipe
    tree: dict[str, Any]
    """The configuration trained with; its base_model is where the base is now."""
    checkpoint: Checkpoint
    base: Path


def prepare(run: runs.RunPaths, checkpoint: Checkpoint) -> Job:
    """Find everything a merge reads.

    Raises:
        Refused: the base model is not here, or not the one trained on.
    """
    record = runs.read(run)
    name = models.local_or_hub(record.tree["base_model"])
    if record.base != models.fingerprint(name):
        raise Refused(
            f"the base model {record.tree['base_model']} has changed since training",
            "restore it: merged into another base the adapter means nothing",
        )
    tree: dict[str, Any] = yaml.safe_load(run.config.read_text())
    # The launch wrote an absolute path; the project may have moved since.
    tree["base_model"] = name
    base = basemodel.locate(tree, os.environ).directory
    if base is None:
        raise Refused(f"the base model {name} is not in the hub's cache", "download it again")
    return Job(record, evaluate.recipe_of(run, record), tree, checkpoint, base)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Be the only merge into ``directory``."""
    lock = filelock.FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Refused(f"another process is merging into {directory}", "wait for it") from error
    try:
        yield
    finally:
        lock.release()


def _ended_by_signals() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP unwind like Ctrl+C: the child is killed, the partial directory removed."""
    return signals.taken(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP)


def _put_in_place(made: Path, directory: Path, verdict: str) -> Path:
    """Give the merge its name; returns the name it got."""
    aside = directory.with_name(f".{directory.name}.old")
    taken = directory.exists() and any(directory.iterdir())
    if taken and verdict != "equal":
        directory = directory.with_name(f"{directory.name}.unverified")
        shutil.rmtree(directory, ignore_errors=True)
    elif directory.exists():
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
    made.rename(directory)
    files.fsync_directory(directory.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return directory


@contextmanager
def _partial(directory: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """The hidden directory that all is made in. Signals and failures leave it to go on from.

    Not so a merge that was refused or found the disk full: what cannot go on takes no room.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    partial.mkdir(exist_ok=True)
    try:
        yield partial
    except (Refused, BadInput, child.DiskFull, OSError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except BaseException:
        kept = files.directory_bytes(partial) / 1e9
        tell(f"{kept:.2f} GB are kept in {partial}: the same command goes on from there")
        raise
    shutil.rmtree(partial, ignore_errors=True)


def _fuse(job: Job, made: Path, options: Options, tell: Callable[[str], None]) -> None:
    specification = {
        "base": str(job.base.resolve()),
        "adapter": str(job.checkpoint.path.resolve()),
        "directory": str(made.resolve()),
        "dtype": options.dtype,
        "shard_bytes": int(options.shard_gb * 1e9),
        "tree": {key: value for key, value in job.tree.items() if key in _DECIDING},
    }
    key = {**specification, "base": _stamp(job), "adapter": _hashes_of(job.checkpoint.path),
           "versions": {name: _version(name) for name in _ARITHMETIC}}  # fmt: skip
    key.pop("directory")
    text = json.dumps(key, sort_keys=True, default=str)
    specification["key"] = xxhash.xxh3_128_hexdigest(text.encode())
    child.run("leviathan.fusion", specification, tell, "the merge")


_ARITHMETIC = ("leviathan", "torch", "peft", "bitsandbytes", "transformers")
_DECIDING = {
    "bf16", "bfloat16", "fp16", "float16", "load_in_4bit", "load_in_8bit", "bnb_config_kwargs",
    "quantize_moe_experts", "trust_remote_code",
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


def _copy_companions(base: Path, checkpoint: Path, merged: Path) -> None:
    """What training did not change comes from the base, the tokenizer from the checkpoint."""
    for pattern in _COMPANIONS:
        for file in base.glob(pattern):
            shutil.copyfile(file, merged / file.name)
    trained = [f for pattern in _TOKENIZER_FILES for f in checkpoint.glob(pattern)]
    source = checkpoint if trained else base
    for pattern in _TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, merged / file.name)


def _prove(job: Job, merged: Path, tell: Callable[[str], None]) -> Merged:
    record, recipe, tree = job.record, job.recipe, job.tree
    checkpoint = job.checkpoint.path
    trained = models.from_run(tree, tree["base_model"], checkpoint.resolve(), recipe.format)
    whole = models.Source(
        str(merged.resolve()), row_format=recipe.format,
        trust_remote_code=trained.trust_remote_code,
    )  # fmt: skip
    source, probes = _probes(record, recipe)
    specification = {"trained": asdict(trained), "merged": asdict(whole), "probes": probes}
    found = child.run("leviathan.proof", specification, tell, "the proof")
    comparison = proof.read(found)
    limits = recipe.merge
    word, reason = proof.verdict(comparison, limits.argmax_agreement, limits.relative_error)
    files.write_json(
        merged / PROOF,
        {
            "verdict": word,
            "reason": reason,
            **found,
            "probes": {"from": source, "count": len(probes)},
            "limits": limits.model_dump(),
            "checkpoint": checkpoint.name,
            "run": record.name,
            "base_model": tree["base_model"],
            "base_digest": record.base,
            "format": recipe.format,
            "versions": record.versions,
            "hashes": _hashes(checkpoint, merged),
        },
    )
    if word != "equal":
        files.write_text(merged / UNVERIFIED, f"{reason}\n")
    return Merged(merged, job.checkpoint, word, reason, found)


def _hashes(checkpoint: Path, merged: Path) -> dict[str, str]:
    named = {f"checkpoint/{p.name}": p for p in checkpoint.glob("adapter_model*")}
    named |= {p.name: p for p in sorted(merged.iterdir()) if p.is_file()}
    return {name: corpus.file_digest(path) for name, path in named.items()}


def _probes(record: runs.RunRecord, recipe: config.Recipe) -> tuple[str, list[str]]:
    """Where probes come from, and their texts: rows spread over the sample trained on.

    Where the sample is gone (a rented machine), the recipe's prompt suite stands in.

    Raises:
        BadInput: neither is here, and a proof on nothing would prove nothing.
    """
    path = Path(record.corpus["path"])
    if path.is_file():
        return str(path), _spread_rows(path, int(record.corpus["rows"]))
    if recipe.suite:
        suite = prompts.find(recipe.suite)
        return str(suite), [case.prompt for case in prompts.load(suite).cases]
    raise BadInput(
        f"nothing to prove the merge with: {path} is gone and the recipe has no suite",
        "restore the sample, or draw it again with leviathan data sample",
    )


def _spread_rows(path: Path, count: int) -> list[str]:
    wanted = {round(i * (count - 1) / (_PROBES - 1)) for i in range(_PROBES)}
    rows = []
    for index, row in enumerate(corpus.read_rows(path)):
        if index in wanted:
            rows.append(_text(corpus.parse_row(row)))
        if index >= max(wanted):
            break
    return rows


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(filter(None, (_text(item) for item in value.values())))
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    return str(value)
