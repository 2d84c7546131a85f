"""Owns gathering what a plan needs: model shape, token statistics, calibrations, this RAM.

Reads files and asks the machine. Does not predict (``plan``).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from leviathan import calibrations, machine, plan, shapes, tokens, train
from leviathan.calibrations import Calibration
from leviathan.corpus import Progress
from leviathan.decoder import Shape
from leviathan.layers import Config
from leviathan.plan import Plan
from leviathan.tokens import Source, Statistics


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

    def keep(self) -> None:
        """Keep the statistics for the next plan: called when nothing was refused."""
        if self.source:
            tokens.keep(self.source, self.statistics)

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
        )


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
    source = tokens.Source(path, config.sample, recipe.seed, train.DATA, config.tree)
    shape = shapes.load(str(config.tree["base_model"]))
    if not path.exists() and recipe.corpus_size and not exact:
        size = recipe.corpus_size
        statistics = tokens.assumed(recipe.corpus, size.rows, size.bytes, config.sample)
        measured_at = None
    else:
        statistics = tokens.measure(source, exact=exact, progress=progress, kept=False)
        measured_at = source
    known = tuple(calibrations.read())
    return Survey(config, shape, statistics, known, machine.ram_gib(), measured_at)
