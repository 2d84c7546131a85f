"""Owns the proof of one run's models: what is compared, on which probes, and what is written.

Does not compare (``proof``) nor make the models (``merge``, ``exports``).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from leviathan import (
    basemodel,
    child,
    corpus,
    evaluate,
    evidence,
    files,
    models,
    prompts,
    proof,
    runs,
    wholemodel,
)
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput, Refused
from leviathan.recipe import Recipe

UNVERIFIED = "UNVERIFIED"
_PROBES = 8


@dataclass(frozen=True)
class Merged:
    """A merged model on disk and what is proven of it."""

    directory: Path
    checkpoint: Checkpoint
    verdict: str
    reason: str
    comparison: dict[str, Any]
    job: "Job"


@dataclass(frozen=True)
class Job:
    """What is merged: all that is read of the run before anything is written."""

    record: runs.RunRecord
    recipe: Recipe
    tree: dict[str, Any]
    """The configuration trained with; its base_model is where the base is now."""
    checkpoint: Checkpoint
    base: Path
    probes: list[str]
    """Texts that the models are compared on."""
    probes_from: str


def prepare(run: runs.RunPaths, checkpoint: Checkpoint) -> Job:
    """Find everything a merge reads.

    Raises:
        BadInput: there is nothing left to prove a merge with.
        Refused: the base model is not here, or not the one trained on.
    """
    record = runs.read(run)
    tree: dict[str, Any] = yaml.safe_load(run.config.read_text())
    name = evaluate.base_of(record, tree)
    if record.base != models.fingerprint(name):
        raise Refused(
            f"the base model {record.tree['base_model']} has changed since training",
            "restore it: merged into another base the adapter means nothing",
        )
    tree["base_model"] = name
    base = basemodel.locate(tree, os.environ).directory
    if base is None:
        raise Refused(f"the base model {name} is not in the hub's cache", "download it again")
    recipe = evaluate.recipe_of(run, record)
    source, probes = _probes(record, recipe)
    return Job(record, recipe, tree, checkpoint, base, probes, source)


def prove(
    job: Job,
    made: Path,
    tell: Callable[[str], None],
    served: models.Source | None = None,
    told: dict[str, Any] | None = None,
    digests: Mapping[str, str] | None = None,
    weights: wholemodel.Weights | None = None,
) -> Merged:
    """Compare the model in ``made`` with the trained one, and write its proof beside it.

    ``served`` is how it is loaded, if it is not a whole model; ``told`` goes into the proof;
    ``digests`` are those of files that are known already; ``weights`` what was found of the
    weights of a model that was trained whole.

    Raises:
        LeviathanError: the comparison failed to run.
    """
    for stale in (evidence.PROOF, UNVERIFIED):  # of a merge that was killed after its proof
        (made / stale).unlink(missing_ok=True)
    record, recipe, tree = job.record, job.recipe, job.tree
    checkpoint = job.checkpoint.path
    trained = models.from_run(tree, tree["base_model"], checkpoint.resolve(), recipe.format)
    whole = served or models.Source(
        str(made.resolve()), row_format=recipe.format,
        trust_remote_code=trained.trust_remote_code,
    )  # fmt: skip
    specification = {"trained": asdict(trained), "merged": asdict(whole), "probes": job.probes}
    if weights and weights.compared_with_base:
        base = models.Source(
            str(job.base.resolve()), row_format=recipe.format,
            trust_remote_code=trained.trust_remote_code, tokenizer_from=trained.tokenizer,
        )  # fmt: skip
        specification["base"] = asdict(base)
    found = child.run("leviathan.proof", specification, tell, "the proof")
    comparison = proof.read(found)
    limits = recipe.merge
    word, reason = proof.verdict(comparison, limits.argmax_agreement, limits.relative_error)
    if weights:
        word, reason = weights.verdict(word, reason)
        told = {"kind": "whole", "weights": asdict(weights), **(told or {})}
    files.write_json(
        made / evidence.PROOF,
        {
            "verdict": word,
            "reason": reason,
            **found,
            "probes": {"from": job.probes_from, "count": len(job.probes)},
            "limits": limits.model_dump(),
            "checkpoint": checkpoint.name,
            "run": record.name,
            "base_model": tree["base_model"],
            "base_digest": record.base,
            "format": recipe.format,
            "versions": record.versions,
            **(told or {}),
            "hashes": _hashes(checkpoint, made, digests or {}),
        },
    )
    if word != "equal":
        files.write_text(made / UNVERIFIED, f"{reason}\n")
    return Merged(made, job.checkpoint, word, reason, found, job)


def _hashes(checkpoint: Path, merged: Path, known: Mapping[str, str]) -> dict[str, str]:
    named = {f"checkpoint/{p.name}": p for p in checkpoint.glob("adapter_model*")}
    named |= {p.name: p for p in sorted(merged.iterdir()) if p.is_file()}
    return {name: known.get(name) or corpus.file_digest(path) for name, path in named.items()}


def _probes(record: runs.RunRecord, recipe: Recipe) -> tuple[str, list[str]]:
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
        return str(suite), [case.question for case in prompts.load(suite).cases]
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
