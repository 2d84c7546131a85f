"""Owns a training as its stages: the runs it is made of, and what of it is asked for.

Does not make the model that a stage begins with (``handover``), nor train (``sessions``).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from leviathan import classroom, corpus, layers, runs, samples, schema, tidings
from leviathan import render as rendering
from leviathan.budget import Budget
from leviathan.errors import BadInput
from leviathan.layers import Config
from leviathan.runs import RunPaths


@dataclass(frozen=True)
class Leg:
    """One stage of a training, and its run."""

    config: Config
    paths: RunPaths
    before: RunPaths | None
    """The run of the stage before; None for the first."""

    @property
    def stage(self) -> str:
        return self.config.stage


def legs(config: Config, name: str | None = None) -> tuple[Leg, ...]:
    """Every stage of ``config``'s recipe in order, each with its run; one, where there are none.

    Raises:
        BadInput: a stage's settings cannot be; see ``layers.build``.
    """
    found: list[Leg] = []
    if not config.stages:
        run = layers.run_name(config, name)
        return (Leg(layers.based(config, run), RunPaths(runs.TRAINING / run), None),)
    for stage in config.stages:
        asked = [*_without_stage(config), f"stage={stage}"]
        one = layers.build(config.recipe_asked, config.profile_asked, config.sample, asked)
        run = layers.run_name(one, name)
        paths = RunPaths(runs.TRAINING / run)
        found.append(Leg(layers.based(one, run), paths, found[-1].paths if found else None))
    return tuple(found)


def _without_stage(config: Config) -> list[str]:
    return [text for text in config.overrides if not text.startswith("stage=")]


def select(all_legs: tuple[Leg, ...], stage: str | None, until: str | None) -> tuple[Leg, ...]:
    """The stages asked for: one of them, or all up to one; shipped corpora are put in their place.

    Raises:
        BadInput: there is none of that name, or both were given.
    """
    names = [leg.stage for leg in all_legs if leg.stage]
    if stage and until:
        raise BadInput("--stage is one stage and --until all up to one", "leave one of them out")
    for option, asked in (("--stage", stage), ("--until", until)):
        if asked and asked not in names:
            raise BadInput(f"{option} {asked!r} is no stage of this recipe",
                           f"stages: {', '.join(names) or 'none'}")  # fmt: skip
    last = stage or until
    first = names.index(stage) if stage else 0
    end = names.index(last) + 1 if last else len(all_legs)
    for leg in (chosen := all_legs[first:end]):
        classroom.provide(leg.config.recipe.corpus)
    return chosen


def check(chosen: tuple[Leg, ...]) -> None:
    """Look at every stage's keys and corpus before the first one trains for days.

    Raises:
        BadInput: something in one of them is wrong.
    """
    keys = schema.load()
    for leg in chosen:
        rendering.check_keys(leg.config, keys)
        recipe = leg.config.recipe
        wish = samples.Wish(Path(recipe.corpus), leg.config.sample, recipe.seed, samples.DIRECTORY)
        corpus.check_head(samples.readable(wish), layers.row_fields(leg.config))


def trained(paths: RunPaths) -> RunPaths:
    """The run that was trained for this stage: the smaller one where ``--shrink`` began one."""
    return _tried(paths)[-1]


def _tried(paths: RunPaths) -> list[RunPaths]:
    """A stage's run, and the smaller ones that took its place one after the other."""
    found = [paths]
    while found[-1].record.exists() and (successor := runs.read(found[-1]).successor):
        found.append(RunPaths(runs.TRAINING / successor["name"]))
    return found


def budget_for(leg: Leg, all_legs: tuple[Leg, ...], whole: Budget) -> Budget:
    """What the other stages have left of a budget over all of them; never below zero."""
    others = sum(_spent_s(other.paths) for other in all_legs if other.stage != leg.stage)
    hours, usd_hour = others / 3600, whole.usd_hour or 0.0
    return replace(
        whole,
        max_hours=None if whole.max_hours is None else max(whole.max_hours - hours, 0.0),
        budget_usd=None
        if whole.budget_usd is None
        else max(whole.budget_usd - hours * usd_hour, 0.0),
    )


def _spent_s(paths: RunPaths) -> float:
    """Seconds that a stage took so far, in all the runs that were tried for it."""
    begun = [(run, runs.read(run)) for run in _tried(paths) if run.record.exists()]
    return sum(runs.seconds(record, tidings.heard(run, record)) for run, record in begun)
