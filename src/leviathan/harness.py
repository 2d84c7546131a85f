"""Owns lm-eval's tasks put to a model: a child process, its scores, tuned beside base.

The library is called itself and not through ``axolotl lm-eval``: that starts lm_eval on a
directory as a whole model in 16 bits, and would measure another model than was trained wherever
the base is quantised, its vocabulary grew, or there is no GPU. Here ``models`` loads it.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leviathan import child, models
from leviathan.errors import BadInput

SEED = 1234
"""lm-eval's own default, of everything it draws."""


@dataclass(frozen=True)
class Score:
    """One metric of one task."""

    task: str
    metric: str
    """With lm-eval's filter, where there is one: exact_match,strict-match."""
    value: float
    stderr: float | None
    """lm-eval's standard error; None where it has none."""
    base_value: float | None
    """The base model's; None of a model without an adapter."""
    shots: int | None
    rows: int | None
    """Rows of the task that were put."""


def parse(tasks: str) -> list[tuple[str, int | None]]:
    """``a,b:5`` -> a as it comes, b with 5 examples before each question (as Axolotl spells it).

    Raises:
        BadInput: an empty name, or a number that is none.
    """
    found: list[tuple[str, int | None]] = []
    for entry in tasks.split(","):
        name, colon, shots = entry.strip().partition(":")
        if not name or (colon and not shots.isdecimal()):
            raise BadInput(f"--tasks {tasks!r} is no list of tasks", "as in arc_easy,piqa:5")
        if name in {other for other, _ in found}:
            raise BadInput(f"--tasks {tasks!r} has {name} twice", "name it once")
        found.append((name, int(shots) if colon else None))
    return found


def run(
    source: models.Source,
    tasks: Sequence[tuple[str, int | None]],
    directory: Path | None,
    batch_size: int,
    tell: child.Tell,
) -> list[Score]:
    """The scores of ``tasks``, which lm-eval brings or YAML files below ``directory`` describe.

    Raises:
        BadInput: no such directory or task, or lm-eval is not installed.
        LeviathanError: it failed; the message ends with its last words.
    """
    if directory is not None and not any(directory.rglob("*.yaml")):
        raise BadInput(f"--task-path {directory} has no task files", "a directory with YAML tasks")
    specification = {
        "source": asdict(source), "tasks": list(tasks), "batch_size": batch_size,
        "directory": str(directory.resolve()) if directory else None,
    }  # fmt: skip
    told = child.run("leviathan.harness", specification, tell, "lm-eval")
    if told.get("missing"):
        raise BadInput("lm-eval is not installed", "pip install lm_eval, or install [train]")
    for name, close in told.get("unknown", {}).items():
        nearest = f"did you mean {close}?" if close else "local ones: --task-path DIR"
        raise BadInput(f"lm-eval has no task {name!r}", nearest)
    return [Score(**score) for score in told["scores"]]


def _work(specification: dict[str, Any], tell: child.Tell) -> dict[str, Any]:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        return {"missing": True}
    manager = TaskManager(include_path=specification["directory"])
    known = list(manager.all_tasks)
    tasks = [(str(name), shots) for name, shots in specification["tasks"]]
    unknown = {
        name: next(iter(difflib.get_close_matches(name, known, n=1)), None)
        for name, _ in tasks
        if name not in known
    }
    if unknown:
        return {"unknown": unknown}
    written = specification["source"]
    adapter = Path(written["adapter"]) if written["adapter"] else None
    model = models.Model(models.Source(**{**written, "adapter": adapter}))
    scores = []
    for name, shots in tasks:
        tell(f"lm-eval: {name}")
        scores += [asdict(score) for score in _scores(model, name, shots, specification, manager)]
    return {"scores": scores}


def _scores(
    model: models.Model, name: str, shots: int | None, specification: dict[str, Any], manager: Any
) -> Iterator[Score]:
    tuned = _evaluated(model, name, shots, specification["batch_size"], manager)
    base: dict[str, Any] = {}
    if model.source.adapter:
        with model.without_adapter():
            base = _evaluated(model, name, shots, specification["batch_size"], manager)["results"]
    for task, metrics in tuned["results"].items():
        for metric, value in metrics.items():
            kind, _, chosen = metric.partition(",")
            if not isinstance(value, int | float) or kind.endswith("_stderr") or not chosen:
                continue
            error = metrics.get(f"{kind}_stderr,{chosen}")
            yield Score(
                task, kind if chosen == "none" else metric, float(value),
                float(error) if isinstance(error, int | float) else None,
                base.get(task, {}).get(metric), tuned["n-shot"].get(task),
                tuned.get("n-samples", {}).get(task, {}).get("effective"),
            )  # fmt: skip


def _evaluated(
    model: models.Model, name: str, shots: int | None, batch_size: int, manager: Any
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch_size)
    return dict(
        lm_eval.simple_evaluate(
            model=wrapped, tasks=[name], num_fewshot=shots, task_manager=manager,
            log_samples=False, random_seed=SEED, numpy_random_seed=SEED, torch_random_seed=SEED,
            fewshot_random_seed=SEED,
        )
    )  # fmt: skip


if __name__ == "__main__":
    child.serve(_work)
