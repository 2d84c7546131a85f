"""Owns lm-eval's tasks put to a model or a server: a child process, its scores, tuned beside base.

The library is called itself and not through ``axolotl lm-eval``: that starts lm_eval on a
directory as a whole model in 16 bits, and would measure another model than was trained wherever
the base is quantised, its vocabulary grew, or there is no GPU. Here ``models`` loads it.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from leviathan import child, models
from leviathan.endpoint import Endpoint
from leviathan.errors import BadInput, LeviathanError, Refused

SEED = 1234
"""lm-eval's own default, of everything it draws."""


@dataclass(frozen=True)
class Manner:
    """How tasks are put."""

    batch_size: int = 8
    """Of a server: requests at a time."""
    chat_template: bool = False
    """Questions are put as a user's message, examples as earlier turns."""
    limit: int | None = None
    """Only so many rows of each task, the first."""


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
    source: models.Source | Endpoint,
    tasks: Sequence[tuple[str, int | None]],
    directory: Path | None,
    manner: Manner,
    tell: child.Tell,
) -> list[Score]:
    """The scores of ``tasks``, which lm-eval brings or YAML files below ``directory`` describe.

    Raises:
        BadInput: no such directory or task, no chat template, or lm-eval is not installed.
        Refused: the server cannot tell what a task needs.
        LeviathanError: it failed; the message ends with its last words.
    """
    if directory is not None and not any(directory.rglob("*.yaml")):
        raise BadInput(f"--task-path {directory} has no task files", "a directory with YAML tasks")
    served = isinstance(source, Endpoint)
    specification = {
        "server": [source.url, source.name] if isinstance(source, Endpoint) else None,
        "source": None if served else asdict(source), "tasks": list(tasks), **asdict(manner),
        "directory": str(directory.resolve()) if directory else None,
    }  # fmt: skip
    told = child.run("leviathan.harness", specification, tell, "lm-eval")
    if "error" in told:
        kind = BadInput if told["code"] == BadInput.exit_code else LeviathanError
        raise kind(told["error"], told["hint"])
    return [Score(**score) for score in told["scores"]]


def _work(specification: dict[str, Any], tell: child.Tell) -> dict[str, Any]:
    """In the child. What is no refusal goes back as it is: ``child`` would make it one."""
    try:
        return {"scores": [asdict(score) for score in _all_scores(specification, tell)]}
    except Refused:
        raise
    except LeviathanError as error:
        return {"error": error.message, "hint": error.hint, "code": error.exit_code}


def _all_scores(specification: dict[str, Any], tell: child.Tell) -> Iterator[Score]:
    manager = _manager(specification["directory"])
    tasks = [(str(name), shots) for name, shots in specification["tasks"]]
    _refuse_unknown([name for name, _ in tasks], list(manager.all_tasks))
    manner = Manner(**{field.name: specification[field.name] for field in fields(Manner)})
    asked: _Subject
    if specification["server"]:
        asked = _Served(Endpoint(*specification["server"]), tasks, manager, manner)
    else:
        asked = _Loaded(specification["source"], manner)
    for name, shots in tasks:
        tell(f"lm-eval: {name}")
        yield from _scores(asked, name, shots, manner, manager)


def _manager(directory: str | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        hint = "pip install lm_eval, or install [train]"
        raise BadInput("lm-eval is not installed", hint) from error
    return TaskManager(include_path=directory)


def _refuse_unknown(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            close = next(iter(difflib.get_close_matches(name, known, n=1)), None)
            nearest = f"did you mean {close}?" if close else "local ones: --task-path DIR"
            raise BadInput(f"lm-eval has no task {name!r}", nearest)


class _Subject(Protocol):
    """Who is asked, as lm-eval's model; and its base, where there is one."""

    lm: Any

    def base(self) -> AbstractContextManager[bool]:
        """Inside the block the base answers; False: there is none."""
        ...


class _Loaded:
    """A model in this process."""

    def __init__(self, written: dict[str, Any], manner: Manner) -> None:
        adapter = Path(written["adapter"]) if written["adapter"] else None
        self._model = models.Model(models.Source(**{**written, "adapter": adapter}))
        tokenizer = self._model.tokenizer
        if manner.chat_template and not getattr(tokenizer, "chat_template", None):
            raise BadInput(
                f"{self._model.source.tokenizer} has no chat template", "leave --chat-template out"
            )
        from lm_eval.models.huggingface import HFLM

        self.lm: Any = HFLM(
            pretrained=self._model.model, tokenizer=tokenizer, batch_size=manner.batch_size
        )

    @contextmanager
    def base(self) -> Iterator[bool]:
        with self._model.without_adapter():
            yield self._model.source.adapter is not None


class _Served:
    """A server's model, which has no base to ask."""

    def __init__(
        self, server: Endpoint, tasks: Sequence[tuple[str, int | None]], manager: Any,
        manner: Manner,
    ) -> None:  # fmt: skip
        from leviathan import respondent  # where lm_eval is, and only there

        names = [name for name, _ in tasks]
        respondent.demand(server, names, manager, chat=manner.chat_template)
        self.lm: Any = respondent.Respondent(
            server, manner.batch_size, SEED, chat=manner.chat_template
        )

    def base(self) -> AbstractContextManager[bool]:
        return nullcontext(False)


def _scores(
    asked: _Subject, name: str, shots: int | None, manner: Manner, manager: Any
) -> Iterator[Score]:
    tuned = _evaluated(asked.lm, name, shots, manner, manager)
    base: dict[str, Any] = {}
    with asked.base() as exists:
        if exists:
            base = _evaluated(asked.lm, name, shots, manner, manager)["results"]
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
    lm: Any, name: str, shots: int | None, manner: Manner, manager: Any
) -> dict[str, Any]:
    import lm_eval

    return dict(
        lm_eval.simple_evaluate(
            model=lm, tasks=[name], num_fewshot=shots, task_manager=manager, limit=manner.limit,
            apply_chat_template=manner.chat_template, fewshot_as_multiturn=manner.chat_template,
            log_samples=False, random_seed=SEED, numpy_random_seed=SEED, torch_random_seed=SEED,
            fewshot_random_seed=SEED,
        )
    )  # fmt: skip


if __name__ == "__main__":
    child.serve(_work)
