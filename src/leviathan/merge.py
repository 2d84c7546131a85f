"""Owns making one model of base + adapter, by the real Axolotl, and having it proven.

Does not do the arithmetic of LoRA (Axolotl does) nor of the comparison (``proof``).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import yaml

from leviathan import (
    checkpoints,
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
from leviathan.diagnosis import last_error
from leviathan.errors import BadInput, LeviathanError, Refused

PROOF = evidence.PROOF
UNVERIFIED = "UNVERIFIED"
_PROBES = 8
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "vocab*", "merges.txt", "*.model",
)  # fmt: skip


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
) -> Merged:
    """Merge, prove, and only then give the result its name.

    Everything is made in a hidden directory beside ``directory``; a power cut leaves
    no half model under the real name. An earlier merge is replaced only by one that
    is proven; an unproven result goes to ``<directory>.unverified`` then.

    Raises:
        Refused: the base model is not the one trained on, or another merge is at work.
        LeviathanError: Axolotl's merge or the proof itself failed to run.
    """
    record = runs.read(run)
    recipe = evaluate.recipe_of(run, record)
    if record.base != models.fingerprint(models.local_or_hub(record.tree["base_model"])):
        raise Refused(
            f"the base model {record.tree['base_model']} has changed since training",
            "restore it: merged into another base the adapter means nothing",
        )
    partial = directory.with_name(f".{directory.name}.partial")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _alone(directory), _ended_by_signals():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            tell(f"merging {checkpoint.path.name} with axolotl merge-lora")
            tree = _axolotl_merge(run, record, checkpoint, partial)
            made = partial / "merged"
            _restore_unquantised(tree, made)
            _copy_trained_tokenizer(checkpoint.path, made)
            tell("proving: base, base + adapter and merged on the same probes")
            result = _prove(record, recipe, tree, checkpoint, made, partial)
            files.fsync_tree(made)  # Axolotl's merge syncs nothing
            final = _put_in_place(made, directory, result.verdict)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    runs.event(run, "merge", session=None, step=checkpoint.step, verdict=result.verdict,
               to=str(final))  # fmt: skip
    return replace(result, directory=final)


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


def _axolotl_merge(
    run: runs.RunPaths, record: runs.RunRecord, checkpoint: Checkpoint, partial: Path
) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(run.config.read_text())
    # The launch wrote an absolute path; the project may have moved since.
    tree["base_model"] = models.local_or_hub(record.tree["base_model"])
    launched = dict(tree)
    # Our plugin would write a heartbeat; Liger would patch a model that is never run.
    launched["plugins"] = []
    for key in [k for k in launched if k == "leviathan" or k.startswith("liger_")]:
        del launched[key]
    if tree.get("load_in_4bit"):
        # Training quantises twice by default; 0.19's merge reads the unset key as "no" and
        # would round to other weights than those trained on.
        double = {"bnb_4bit_use_double_quant": True, **(tree.get("bnb_config_kwargs") or {})}
        launched["bnb_config_kwargs"] = double
    launched["output_dir"] = str(partial.resolve())
    path = partial / "merge.yaml"
    files.write_text(path, yaml.safe_dump(launched, sort_keys=False))
    log = partial / "merge.log"
    command = [sys.executable, "-m", "axolotl.cli.merge_lora", str(path),
               f"--lora_model_dir={checkpoint.path.resolve()}"]  # fmt: skip
    _run(command, log, "axolotl's merge")
    if not list((partial / "merged").glob("*.safetensors")):
        raise LeviathanError(f"axolotl's merge wrote no weights: {last_error(log)}")
    return tree


def _run(command: list[str], log: Path, what: str) -> None:
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=environment, check=False,
        )  # fmt: skip
    if done.returncode:
        raise LeviathanError(f"{what} failed (exit code {done.returncode}): {last_error(log)}")


def _restore_unquantised(tree: dict[str, Any], merged: Path) -> None:
    """Give a QLoRA merge back what the runtime never quantised.

    Axolotl 0.19 sends every matrix through NF4 to mimic training, embeddings and head
    too, though bitsandbytes quantises neither: 18 % of the likeliest tokens change.
    """
    base = Path(tree["base_model"])
    if not tree.get("load_in_4bit"):
        return
    if not base.is_dir():
        from huggingface_hub import snapshot_download

        base = Path(snapshot_download(tree["base_model"], local_files_only=True))
    for shard in sorted(merged.glob("*.safetensors")):
        _restore_shard(shard, base)


def _restore_shard(shard: Path, base: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    originals = _unquantised(base)
    tensors = load_file(shard)
    wanted = [name for name in tensors if name in originals]
    for name in wanted:
        with safe_open(originals[name], framework="pt") as stream:
            original = stream.get_tensor(name)
        if original.shape == tensors[name].shape:
            tensors[name] = original
    if wanted:
        save_file(tensors, shard, metadata={"format": "pt"})


def _unquantised(base: Path) -> dict[str, Path]:
    """Tensors of the base that bitsandbytes leaves alone, and the file each is in."""
    from safetensors import safe_open

    found = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - not a dict
                if name.endswith(("embed_tokens.weight", "lm_head.weight", "norm.weight")):
                    found[name] = file
    return found


def _copy_trained_tokenizer(checkpoint: Path, merged: Path) -> None:
    """Axolotl copies the base's tokenizer: the chat template trained with would be lost."""
    trained = [f for pattern in _TOKENIZER_FILES for f in checkpoint.glob(pattern)]
    for pattern in _TOKENIZER_FILES if trained else ():
        for stale in merged.glob(pattern):
            stale.unlink()
    for file in trained:
        shutil.copyfile(file, merged / file.name)


def _prove(
    record: runs.RunRecord,
    recipe: config.Recipe,
    tree: dict[str, Any],
    checkpoint: Checkpoint,
    merged: Path,
    partial: Path,
) -> Merged:
    trained = models.from_run(tree, tree["base_model"], checkpoint.path.resolve(), recipe.format)
    whole = models.Source(str(merged.resolve()), row_format=recipe.format)
    source, probes = _probes(record, recipe)
    spec = {"trained": asdict(trained), "merged": asdict(whole), "probes": probes}
    files.write_text(partial / "spec.json", json.dumps(spec, default=str))
    out = partial / "comparison.json"
    command = [sys.executable, "-m", "leviathan.proof", str(partial / "spec.json"), str(out)]
    _run(command, partial / "proof.log", "the proof")
    found = proof.Comparison(**json.loads(out.read_text()))
    limits = recipe.merge
    word, reason = proof.verdict(found, limits.argmax_agreement, limits.relative_error)
    files.write_json(
        merged / PROOF,
        {
            "verdict": word,
            "reason": reason,
            **asdict(found),
            "probes": {"from": source, "count": len(probes)},
            "limits": limits.model_dump(),
            "checkpoint": checkpoint.path.name,
            "run": record.name,
            "base_model": tree["base_model"],
            "base_digest": record.base,
            "format": recipe.format,
            "versions": record.versions,
            "hashes": _hashes(checkpoint.path, merged),
        },
    )
    if word != "equal":
        files.write_text(merged / UNVERIFIED, f"{reason}\n")
    return Merged(merged, checkpoint, word, reason, asdict(found))


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
