"""Owns putting questions to a run or a model: finding it, loading it, examining it.

Does not define suites or checks (``prompts``) nor load weights itself (``models``).
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leviathan import (
    checkpoints,
    config,
    generation,
    grades,
    models,
    prompts,
    runs,
    scores,
    wholemodel,
)
from leviathan.endpoint import Endpoint, is_url
from leviathan.errors import BadInput
from leviathan.recipe import Recipe, Success


@dataclass(frozen=True)
class Examination:
    """A model, the suite it is asked, and the share it must pass."""

    source: models.Source | Endpoint
    suite: prompts.Suite
    min_pass_pct: float
    run: runs.RunPaths | None = None
    """Whose model it is; None of a directory that is no run."""
    suite_name: str = ""
    batch_size: int = 8
    """Cases asked at a time."""
    whole: bool = True
    """Not only the cases of some tags."""


def prepare(
    target: str | None,
    checkpoint: str,
    suite: str | None,
    min_pass: str | None,
    *,
    tags: Sequence[str] = (),
    batch_size: int = 8,
    model: str = "",
) -> Examination:
    """Resolve everything ``test`` needs before a model is loaded.

    Raises:
        BadInput: no such run, model, checkpoint, suite or tag, or a bad ``--min-pass``.
    """
    source: models.Source | Endpoint
    if target and is_url(target):
        source, recipe, run = Endpoint(target, model), None, None
    elif model:
        raise BadInput("--model names a server's model", "give the server's URL as the target")
    else:
        source, recipe, run = resolve(target, checkpoint)
    name = suite or (recipe.suite if recipe else None)
    if name is None:
        raise BadInput("which prompt suite?", "give --suite, or set suite: in the recipe")
    success = recipe.success if recipe else Success()
    wanted = parse_pct(min_pass) if min_pass else success.prompts_pass_pct
    path = prompts.find(name)
    asked = prompts.tagged(prompts.load(path), tags)
    return Examination(source, asked, wanted, run, path.stem, batch_size, not tags)


def parse_pct(text: str) -> float:
    """``75%`` or ``75`` -> 75.0.

    Raises:
        BadInput: not a percentage between 0 and 100.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:%|pct)?", text)
    if not match or float(match[1]) > 100:
        raise BadInput(f"--min-pass {text!r} is not a percentage", "use 75 or 75%")
    return float(match[1])


def suite_of(target: str | None, checkpoint: str, suite: str | None) -> str | None:
    """The suite that would be put to ``target``: the one named, else its recipe's.

    Raises:
        BadInput: no such run, model or checkpoint.
    """
    if suite or (target and is_url(target)):
        return suite
    recipe = resolve(target, checkpoint)[1]
    return recipe.suite if recipe else None


def examine(examination: Examination, lm_eval: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Ask every case, of the base model too where there is an adapter to switch off.

    ``lm_eval`` are scores of the same model (``harness``), to be kept with the result.

    A run's result is kept beside it (``grades``), unless only some cases were asked.
    """
    source, cases, size = examination.source, examination.suite.cases, examination.batch_size
    if isinstance(source, Endpoint):
        return scores.summary(scores.judged(cases, _served(source, cases, size)))
    model = models.Model(source)
    tuned = generation.answers(model, cases, size)
    base = None
    if source.adapter:
        with model.without_adapter():
            base = generation.answers(model, cases, size)
    summary = scores.summary(scores.judged(cases, tuned, base))
    if examination.run and examination.whole:
        asked = Path(source.adapter or source.model).name
        grades.note(examination.run, examination.suite_name, asked, summary, lm_eval)
    return summary


def _served(server: Endpoint, cases: Sequence[prompts.Case], at_once: int) -> list[prompts.Answer]:
    """A server's answers, in the order of ``cases``."""

    def ask(case: prompts.Case) -> prompts.Answer:
        text, why = server.chat(case.conversation, case.max_new_tokens)
        return prompts.Answer(text.strip(), why == "stop")

    server.name  # noqa: B018 - asked once, not by every thread
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, cases))


def resolve(
    target: str | None, checkpoint: str
) -> tuple[models.Source, Recipe | None, runs.RunPaths | None]:
    """The model that ``target`` means; of a run also its recipe and where it is.

    Raises:
        BadInput: no such run, model or checkpoint.
        Refused: the checkpoint is damaged, or its weights lie in pieces.
    """
    if target and (Path(target) / "config.json").is_file() and not is_run(Path(target)):
        return models.from_directory(Path(target)), None, None
    paths = runs.find(target)
    record = runs.read(paths)
    recipe = recipe_of(paths, record)
    chosen = checkpoints.choose(paths.directory, checkpoint)
    if wholemodel.is_whole(chosen.path):
        wholemodel.demand(chosen.path)
    tree = yaml.safe_load(paths.config.read_text())
    base = base_of(record, tree)
    return models.from_run(tree, base, chosen.path, recipe.format), recipe, paths


def base_of(record: runs.RunRecord, tree: dict[str, Any]) -> str:
    """Where a run's base model is now: as the run was begun, else where its newest session had it.

    Args:
        record: the run's.
        tree: its axolotl.yaml.

    Raises:
        BadInput: it is a directory, and at neither place.
    """
    begun = str(record.tree["base_model"])
    moved = record.base is not None and not Path(begun).is_dir()
    return models.local_or_hub(str(tree["base_model"]) if moved else begun)


def recipe_of(paths: runs.RunPaths, record: runs.RunRecord) -> Recipe:
    """The recipe's own keys as the run was begun with them."""
    return config.validated(Recipe, record.settings, lambda _: str(paths.record))


def is_run(directory: Path) -> bool:
    """Whether this is a run's directory."""
    return (directory / "run.json").is_file()
