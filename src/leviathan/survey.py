"""Owns gathering what a plan needs, or a report on lengths: model shape, token statistics,
calibrations, this RAM.

Reads files and asks the machine. Does not predict (``plan``).
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import (
    calibrations,
    figures,
    files,
    formats,
    knobs,
    layers,
    lengths,
    machine,
    plan,
    runs,
    samples,
    scratch,
    shapes,
    status,
    steps,
    tokens,
    vocabulary,
)
from leviathan.blueprint import NewModel
from leviathan.calibrations import Calibration
from leviathan.corpus import Progress
from leviathan.decoder import Shape
from leviathan.errors import LeviathanError
from leviathan.eta import History
from leviathan.figures import Source, Statistics
from leviathan.layers import Config
from leviathan.lengths import Report
from leviathan.plan import Plan
from leviathan.tokenizer import ASSUMED, Assumption


@dataclass(frozen=True)
class Survey:
    """What was found for one recipe and sample; plans for any profile follow from it."""

    config: Config
    shape: Shape
    statistics: Statistics
    calibrations: tuple[Calibration, ...]
    ram_gib: float
    source: Source | None
    """Where the statistics were measured; None where they are assumed."""
    history: tuple[dict[str, Any], History] | None = None
    """What the run of this name has shown here, and the knobs it was begun with."""

    def keep(self) -> None:
        """Keep the statistics for the next plan: called when nothing was refused."""
        if self.source:
            figures.keep(self.source, self.statistics)

    def plan(self, config: Config | None = None, *, rows: int | None = None) -> Plan:
        """The plan for ``config`` (default: the one asked for) on ``rows`` of its rows.

        Raises:
            BadInput: its knobs or its validation split cannot be.
        """
        config = config or self.config
        hardware = config.profile.hardware
        statistics = self.statistics
        if rows is not None and rows != statistics.rows:
            statistics = replace(statistics, rows=rows, exact=False)
        return plan.make(
            config,
            self.shape,
            statistics,
            known=self.calibrations,
            device=machine.cpu_name() if hardware.device == "cpu" else hardware.gpu or "",
            ram_gib=self.ram_gib,
            history=self._history(config),
        )

    def _history(self, config: Config) -> History | None:
        """The run's own, where it trains what is planned on the machine that is planned for."""
        if self.history is None or config.profile_name != self.config.profile_name:
            return None
        begun_with, history = self.history
        asked = knobs.read(config.tree, config.profile.hardware.processes)
        return history if calibrations.essential(asked) == begun_with else None


def take(config: Config, *, exact: bool = False, progress: Progress | None = None) -> Survey:
    """Look at the base model, the corpus, what bench has measured and this machine.

    Args:
        config: what is planned.
        exact: tokenise every row instead of some.
        progress: called as bytes are read.

    Raises:
        BadInput: an unknown model shape, or a corpus that cannot be trained on; where it
            is not at hand and the recipe does not say how large it is, that.
    """
    recipe = config.recipe
    path = Path(recipe.corpus)
    source = _source(config)
    shape = scratch.shape_of(config)
    size = recipe.corpus_size if _is_the_recipes(config) else None
    if not path.exists() and size and not exact:
        statistics = figures.assumed(
            recipe.corpus, size.rows, size.bytes, config.sample, source.assumed,
            splits=formats.of(config.tree).kind == "completion",
        )  # fmt: skip
        measured_at = None
    else:
        statistics = tokens.measure(source, exact=exact, progress=progress, kept=False)
        measured_at = source
    known = tuple(calibrations.read())
    ram_gib = machine.ram_gib()
    return Survey(config, shape, statistics, known, ram_gib, measured_at, _begun(config))


def expect(config: Config, paths: runs.RunPaths) -> None:
    """Keep the plan of a run that begins beside it, to be held against it (``expected``).

    Training does not depend on it: what cannot be planned is told by those it matters to.
    """
    paths.plan.unlink(missing_ok=True)  # of a run that is begun anew
    with suppress(LeviathanError), files.unless_full():
        files.write_json(paths.plan, plan.as_document(take(config).plan()))


def lengths_of(
    config: Config,
    path: Path | None = None,
    *,
    exact: bool = False,
    closer: bool = True,
    progress: Progress | None = None,
) -> tuple[Source, Report]:
    """The lengths of a corpus' rows, told for ``config``, and what was measured. Keeps nothing.

    Args:
        config: format, tokenizer, sample and seed, and the settings of its profile.
        path: the corpus; None for the recipe's.
        exact: tokenise every row.
        closer: see ``tokens.measure``.
        progress: called as bytes are read.

    Raises:
        BadInput: see ``tokens.measure`` and ``knobs.read``.
    """
    source = _source(config, path)
    scratch.path_or_hub(config)
    chosen = knobs.read(config.tree, config.profile.hardware.processes)
    rules = steps.rules(config.tree)
    found = tokens.measure(source, exact=exact, closer=closer, progress=progress, kept=False)
    return source, lengths.describe(found, chosen, rules, _positions(config))


def _source(config: Config, path: Path | None = None) -> Source:
    """The rows of a training, and how they are counted where no tokenizer is made yet.

    Args:
        config: what is trained.
        path: another corpus than the recipe's.
    """
    model, recipe = scratch.planned(config), config.recipe
    how = ASSUMED if model is None else _assumption(model)
    corpus_ = path or Path(recipe.corpus)
    return Source(corpus_, config.sample, recipe.seed, samples.DIRECTORY, config.tree, how)


def _assumption(model: NewModel) -> Assumption:
    """How long texts will be in the tokens of a tokenizer that is still to be learned."""
    if model.tokenizer == "characters":
        return Assumption(characters=True, error=0.0, why="the tokenizer will be made of them")
    size = model.vocabulary_size
    each = vocabulary.expected_bytes_per_token(size)
    return Assumption(round(each, 2), why=f"a vocabulary of {size:,} is still to be learned")


def _positions(config: Config) -> int | None:
    """Tokens a row of the base model can have at most, where that is known."""
    if model := scratch.planned(config):
        return model.context
    try:
        found = shapes.config(str(config.tree["base_model"])).get("max_position_embeddings")
    except LeviathanError:
        return None
    return found if isinstance(found, int) and found > 0 else None


def _begun(config: Config) -> tuple[dict[str, Any], History] | None:
    """The knobs and the history of the run that ``config`` names, if it was begun."""
    paths = runs.RunPaths(runs.TRAINING / layers.run_name(config, None))
    if not paths.record.exists():
        return None
    try:
        record = runs.read(paths)
        begun_with = calibrations.essential(knobs.read(record.tree, record.processes))
    except LeviathanError:
        return None  # a damaged record is told by who needs it
    return (begun_with, status.history(paths)) if not record.adjustments else None


def _is_the_recipes(config: Config) -> bool:
    """Whether the recipe's ``corpus_size`` is that of its corpus: not if another was named."""
    keys = {text.split("=", 1)[0].strip() for text in config.overrides}
    return "corpus" not in keys or any(key.split(".")[0] == "corpus_size" for key in keys)
