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
    parity_finding,
    prompts,
    proof,
    runs,
    wholemodel,
)
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput, Refused
from leviathan.parity_finding import Finding
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
    parity: tuple[Finding, ...] = ()
    """What was looked at of its files."""


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
    rows: tuple[dict[str, Any], ...] = ()
    """Rows of the sample trained on; none where it is gone."""


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
    source, probes, rows = _probes(record, recipe)
    return Job(record, recipe, tree, checkpoint, base, probes, source, tuple(rows))


def prove(
    job: Job,
    made: Path,
    tell: Callable[[str], None],
    served: models.Source | None = None,
    told: dict[str, Any] | None = None,
    digests: Mapping[str, str] | None = None,
    weights: wholemodel.Weights | None = None,
    form: str = "merged",
) -> Merged:
    """Compare the model in ``made`` with the trained one, and write its proof beside it.

    What its files lost on the way from training, and can be written, is written (``parity``).

    ``served`` is how it is loaded, if it is not a whole model; ``told`` goes into the proof;
    ``digests`` are those of files that are known already; ``weights`` what was found of the
    weights of a model that was trained whole; ``form`` is ``parity``'s.

    Raises:
        LeviathanError: the comparison failed to run.
    """
    for stale in (evidence.PROOF, UNVERIFIED):  # of a merge that was killed after its proof
        (made / stale).unlink(missing_ok=True)
    record, recipe, checkpoint = job.record, job.recipe, job.checkpoint.path
    whole_base = bool(weights and weights.compared_with_base)
    specification = _specification(job, made, served, whole_base=whole_base)
    specification["subject"] = subject(job, made, form)
    answer = child.run("leviathan.proof", specification, tell, "the proof")
    found, parity = answer["comparison"], parity_finding.read(answer["parity"])
    limits = recipe.merge
    word, reason = proof.verdict(proof.read(found), limits.argmax_agreement, limits.relative_error)
    if weights:
        word, reason = weights.verdict(word, reason)
        told = {"kind": "whole", "weights": asdict(weights), **(told or {})}
    fault = parity_finding.failed(parity)
    if word == "equal" and fault:
        word, reason = "different", f"it would be served otherwise: {fault.check}: {fault.evidence}"
    files.write_json(
        made / evidence.PROOF,
        {
            "verdict": word,
            "reason": reason,
            **found,
            "serving_parity": answer["parity"],
            "probes": {"from": job.probes_from, "count": len(job.probes)},
            "limits": limits.model_dump(),
            "checkpoint": checkpoint.name,
            "run": record.name,
            "base_model": job.tree["base_model"],
            "base_digest": record.base,
            "format": recipe.format,
            "versions": record.versions,
            **(told or {}),
            "hashes": _hashes(checkpoint, made, digests or {}),
        },
    )
    if word != "equal":
        files.write_text(made / UNVERIFIED, f"{reason}\n")
    return Merged(made, job.checkpoint, word, reason, found, job, parity)


def _specification(
    job: Job, made: Path, served: models.Source | None, *, whole_base: bool
) -> dict[str, Any]:
    """The models that are compared; ``whole_base``: the base is one by itself."""
    kind, checkpoint = job.recipe.format, job.checkpoint.path.resolve()
    trained = models.from_run(job.tree, job.tree["base_model"], checkpoint, kind)
    trust = trained.trust_remote_code
    whole = served or models.Source(
        str(made.resolve()), row_format=kind, trust_remote_code=trust
    )  # fmt: skip
    asked = {"trained": asdict(trained), "merged": asdict(whole), "probes": job.probes}
    if whole_base:
        asked["base"] = asdict(models.Source(
            str(job.base.resolve()), row_format=kind, trust_remote_code=trust,
            tokenizer_from=trained.tokenizer,
        ))  # fmt: skip
    return asked


def subject(job: Job, made: Path, form: str) -> dict[str, Any]:
    """``parity.Subject`` as JSON."""
    return {
        "directory": str(made.resolve()),
        "base": str(job.base.resolve()),
        "checkpoint": str(job.checkpoint.path.resolve()),
        "tree": job.tree,
        "rows": job.rows,
        "form": form,
    }


def _hashes(checkpoint: Path, merged: Path, known: Mapping[str, str]) -> dict[str, str]:
    named = {f"checkpoint/{p.name}": p for p in checkpoint.glob("adapter_model*")}
    named |= {p.name: p for p in sorted(merged.iterdir()) if p.is_file()}
    return {name: known.get(name) or corpus.file_digest(path) for name, path in named.items()}


def _probes(record: runs.RunRecord, recipe: Recipe) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Where probes come from, their texts, and their rows: spread over the sample trained on.

    Where the sample is gone (a rented machine), the recipe's prompt suite stands in.

    Raises:
        BadInput: neither is here, and a proof on nothing would prove nothing.
    """
    path = Path(record.corpus["path"])
    if path.is_file():
        rows = _spread_rows(path, int(record.corpus["rows"]))
        return str(path), [_text(row) for row in rows], [r for r in rows if isinstance(r, dict)]
    if recipe.suite:
        suite = prompts.find(recipe.suite)
        return str(suite), [case.question for case in prompts.load(suite).cases], []
    raise BadInput(
        f"nothing to prove the merge with: {path} is gone and the recipe has no suite",
        "restore the sample, or draw it again with leviathan data sample",
    )


def _spread_rows(path: Path, count: int) -> list[Any]:
    wanted = {round(i * (count - 1) / (_PROBES - 1)) for i in range(_PROBES)}
    rows = []
    for index, row in enumerate(corpus.read_rows(path)):
        if index in wanted:
            rows.append(corpus.parse_row(row))
        if index >= max(wanted):
            break
    return rows


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(filter(None, (_text(item) for item in value.values())))
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    return str(value)
