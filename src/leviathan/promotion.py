"""Owns promotion: an existing run goes on with another machine class, and trains the same.

Chooses what of the new profile may be taken, how the batch is split there, and makes the profile
that says so. Does not train (``train`` judges once more) nor send anything (``transfer``).
"""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import (
    checkpoints,
    compatibility,
    export,
    files,
    fit,
    layers,
    runs,
    survey,
    train,
    yamlfile,
)
from leviathan import config as configs
from leviathan.config import Profile
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.layers import Config
from leviathan.overrides import CHOICES
from leviathan.plan import Plan, Range

DIRECTORY = Path("configs/profiles")
_MADE = "# Made by leviathan cloud promote"
_MICRO, _ACCUMULATION = "micro_batch_size", "gradient_accumulation_steps"
_BATCH = (_MICRO, _ACCUMULATION)
# Free to change, and still the run's own: its course, its rhythm, where its curves go.
_KEPT = {"learning_rate", "save_steps", "saves_per_epoch", "evals_per_epoch", "logging_steps",
         "strict"}  # fmt: skip
_KEPT_PREFIXES = ("eval_", "use_", "wandb_", "mlflow_", "hf_mlflow_", "trackio_", "comet_",
                  "otel_metrics_", "hub_")  # fmt: skip
_MACHINES = {"eval_batch_size", "use_kernels"}
_RECIPES = ("base_model", "datasets", "num_epochs", "seed")
_SPEED_PLUGINS = ("liger", "cut_cross_entropy")


@dataclass(frozen=True)
class Row:
    """What becomes of one setting."""

    key: str
    run: Any
    profile: Any
    """What the new profile says; None where it says nothing."""
    then: Any
    verdict: str
    """kept or changed."""
    why: str


@dataclass(frozen=True)
class Promotion:
    """A run that can go on with another profile."""

    run: runs.RunPaths
    profile: str
    """What the new one is called."""
    text: str
    """Of its YAML file."""
    sets: tuple[str, ...]
    """The run's overrides that still say something."""
    config: Config
    rows: tuple[Row, ...]
    likeness: str
    """How near it comes to the run that is not promoted."""
    notes: tuple[str, ...]
    step: int
    max_steps: int | None
    plan: Plan | None
    words: tuple[str, ...]
    """More words of the command: --track, --shrink."""

    @property
    def path(self) -> Path:
        return DIRECTORY / f"{self.profile}.yaml"

    @property
    def left_h(self) -> Range | None:
        """Expected hours to the end on the new machine."""
        hours = self.plan.hours if self.plan else None
        if hours is None or not self.max_steps:
            return None
        return hours.scaled(max(self.max_steps - self.step, 0) / self.max_steps)

    @property
    def command(self) -> tuple[str, ...]:
        """What goes on with the run."""
        config = self.config
        words = ["leviathan", "train", "--profile", self.profile, "--recipe", config.recipe_asked]
        words += ["--sample", config.sample, "--name", self.run.directory.name]
        for text in self.sets:
            words += ["--set", text]
        return (*words, *self.words)

    @property
    def wanted(self) -> export.Wanted:
        """The same for another machine."""
        config = self.config
        return export.Wanted(
            None, str(self.path), config.recipe_asked, config.sample, self.run.directory.name,
            self.sets, more=self.words,
        )  # fmt: skip

    def write(self) -> None:
        """Write the profile.

        Raises:
            BadInput: a file of that name is there that was not made so.
        """
        if self.path.exists() and not self.path.read_text(encoding="utf-8").startswith(_MADE):
            raise BadInput(f"{self.path} is there, and was not made by promote", "move it away")
        files.write_text(self.path, self.text)

    def document(self) -> dict[str, Any]:
        """For --json."""
        made, left = self.plan, self.left_h
        return {
            "run": str(self.run.directory), "profile": str(self.path), "likeness": self.likeness,
            "settings": [vars(row) for row in self.rows], "notes": list(self.notes),
            "step": self.step, "max_steps": self.max_steps, "command": list(self.command),
            "memory_gib": made.memory.total_gib if made else None,
            "card_gib": made.card_gib if made else None,
            "verdict": made.verdict if made else None,
            "hours_left": {"low": left.low, "expected": left.mid, "high": left.high}
            if left else None,
        }  # fmt: skip


def of(paths: runs.RunPaths, profile: str, micro_batch: int | str | None = None) -> Promotion:
    """How a run goes on with ``profile``; only reads.

    Args:
        paths: the run, which has a sound checkpoint.
        profile: the new machine class.
        micro_batch: rows of one pass; ``fit``: as many as fit; None: the run's own. Only that is
            exact: Axolotl 0.19 takes the mean of the micro batches' means, and packs by them.

    Raises:
        BadInput: no such run or profile; a micro batch that cannot be.
        Refused: the effective batch cannot be had there, it does not fit, or what the run was
            begun with is no longer what its recipe says.
    """
    record = runs.read(paths)
    newest, _ = checkpoints.newest_sound(paths.directory)
    if newest is None:
        raise Refused(f"{record.name} has no sound checkpoint to go on from",
                      f"begin it there: leviathan train --profile {profile}")  # fmt: skip
    name, new, _ = configs.load_profile(profile)
    asked = export.asked(record)
    overrides = export.overrides(record)
    mine = _mine(record, asked, overrides)
    tree, notes = _tree(mine, new)
    effective = compatibility.effective_batch({**record.tree, "processes": record.processes})
    sizes = _sizes(effective, new.hardware.processes, record.name)
    draft = _Draft(record, f"{record.name}-on-{name}", new, asked["recipe"], overrides)
    micro = _micro(draft, tree, sizes, mine, micro_batch)
    tree |= {_MICRO: micro, _ACCUMULATION: effective // new.hardware.processes // micro}
    config, text, sets = draft.built(tree)
    _demand_compatible(record, config)
    made = _planned(config)
    _demand_room(made)
    if made is None:
        notes.append("whether it fits could not be told here: the base model or the rows lack")
    if record.adjustments:
        notes.append("the old card's memory was short; its rungs count where their keys still do")
    lines = runs.metrics(paths)
    return Promotion(
        paths, draft.name, text, sets, config,
        tuple(_rows(mine | {"processes": record.processes}, new, config)),
        _likeness(record, config), tuple(notes), newest.step,
        next((m["max_steps"] for m in reversed(lines) if runs.is_whole(m.get("max_steps"))), None),
        made, export.repeated(record.again),
    )  # fmt: skip


# --- what is taken -----------------------------------------------------------------------


def _mine(record: runs.RunRecord, asked: dict[str, str], overrides: list[str]) -> dict[str, Any]:
    """The run's Axolotl keys; of those free to change, as its newest session had them."""
    tree = dict(record.tree)
    with suppress(LeviathanError):  # its profile is no longer here: as it was begun
        now = layers.build(asked["recipe"], asked["profile"], record.sample, overrides).tree
        free = {key for key in (*tree, *now) if compatibility.is_free(key)}
        tree = {k: v for k, v in tree.items() if k not in free}
        tree |= {key: now[key] for key in free if key in now}
    return tree


def is_machines(key: str) -> bool:
    """Whether a setting follows the machine: free to change, and none of the run's own."""
    kept = key in _KEPT or key.startswith(_KEPT_PREFIXES)
    return compatibility.is_free(key) and (key in _MACHINES or not kept)


def _tree(mine: dict[str, Any], new: Profile) -> tuple[dict[str, Any], list[str]]:
    """The run's keys, with the machine's own out of the new profile."""
    tree = {key: value for key, value in mine.items() if not is_machines(key)}
    taken = {key: value for key, value in new.axolotl.items() if is_machines(key)}
    notes = []
    kernels = [key for key in taken if key.startswith("lora_") and key.endswith("_kernel")]
    if mine.get("lora_dropout") and any(taken[key] for key in kernels):
        notes.append("the LoRA kernels want lora_dropout 0: they stay off")
        taken |= dict.fromkeys(kernels, False)
    own = [p for p in mine.get("plugins") or [] if not any(s in p for s in _SPEED_PLUGINS)]
    plugins = [*own, *(p for p in taken.get("plugins") or [] if p not in own)]
    taken = {**taken, "plugins": plugins or None}
    return tree | {key: value for key, value in taken.items() if value is not None}, notes


# --- the batch ---------------------------------------------------------------------------


def _sizes(effective: int, processes: int, run: str) -> list[int]:
    """Micro batches that make the same effective batch, the largest first."""
    each, rest = divmod(effective, processes)
    if rest:
        raise Refused(
            f"{run} has {effective} rows in a batch, which {processes} processes cannot share",
            f"choose a machine class of 1 to {effective} GPUs that divides it",
        )
    return [size for size in range(each, 0, -1) if each % size == 0]


def _micro(
    draft: "_Draft", tree: dict[str, Any], sizes: list[int], mine: dict[str, Any],
    asked: int | str | None,
) -> int:  # fmt: skip
    old = int(mine.get(_MICRO) or 1)
    if isinstance(asked, int):
        if asked not in sizes:
            raise BadInput(f"--micro-batch {asked} cannot keep the effective batch",
                           f"choose of {', '.join(map(str, sorted(sizes)))}")  # fmt: skip
        return asked
    if asked is None:
        if old not in sizes:
            raise Refused(
                f"its micro batch of {old} rows cannot be kept there, where {sizes[0]} make a step "
                "of one process",
                f"--micro-batch {sizes[0]} goes on, though not exactly (docs/cloud.md)",
            )
        return old
    config, _, _ = draft.built({**tree, _MICRO: 1, _ACCUMULATION: sizes[0]})
    made = _planned(config)
    card = fit.card_of(made) if made else None
    if card is None:  # nothing tells what fits
        largest = max(old, int(draft.new.axolotl.get(_MICRO) or 1))
        return next(size for size in (*sizes, 1) if size <= largest)
    accumulation = {size: sizes[0] // size for size in sizes}
    trees = {s: {**config.tree, _MICRO: s, _ACCUMULATION: accumulation[s]} for s in sizes}
    return next((size for size in sizes if card.holds(trees[size])), 1)


def _planned(config: Config) -> Plan | None:
    try:
        return survey.take(config).plan()
    except LeviathanError:
        return None


def _demand_room(made: Plan | None) -> None:
    if made is None or made.verdict != "does_not_fit" or made.card_gib is None:
        return
    card = fit.card_of(made)
    change = fit.cheapest_change(card, made.config.tree) if card else None
    hint = f"by arithmetic it would with {change.text}" if change and change.same_model else None
    raise Refused(
        f"it does not fit: {made.memory.total_gib:.1f} GiB of {made.card_gib:g}",
        hint or "choose a larger machine class",
    )


# --- the profile -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """All but the batch of the profile that is made."""

    record: runs.RunRecord
    name: str
    new: Profile
    recipe: str
    overrides: list[str]

    def built(self, tree: dict[str, Any]) -> tuple[Config, str, tuple[str, ...]]:
        """The merged configuration, the profile's text and what is left of the overrides."""
        _, recipe, _ = configs.load_recipe(self.recipe)
        sets = tuple(text for text in self.overrides if self._says_something(text))
        own = {k: v for k, v in tree.items() if k not in _RECIPES}
        own |= {key: None for key in recipe.axolotl if key not in tree}
        text = self._text(own)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, f"{self.name}.yaml")
            path.write_text(text, encoding="utf-8")
            config = layers.build(self.recipe, str(path), self.record.sample, sets)
            # A stage's own batch is over any profile's: only an override is over that.
            over = (f"{key}={tree[key]}" for key in _BATCH
                    if key in tree and config.tree.get(key) != tree[key])  # fmt: skip
            if said := tuple(over):
                sets += said
                config = layers.build(self.recipe, str(path), self.record.sample, sets)
        return layers.based(config, self.record.name), text, sets

    def _says_something(self, text: str) -> bool:
        """Whether an override is neither in the profile now nor about the old machine."""
        key = text.partition("=")[0].strip().removeprefix("axolotl.").split(".")[0]
        return key in _RECIPES or key in layers.RECIPE_KEYS or key in CHOICES

    def _text(self, tree: dict[str, Any]) -> str:
        machine = self.new.model_dump(
            mode="json", exclude_unset=True, exclude={"axolotl", "aliases", "description"}
        )
        described = f"{self.record.name} goes on: {self.new.description or self.name}"
        body = yamlfile.dump({"description": described, **machine, "axolotl": tree})
        return f"{_MADE}: the run {self.record.name} on another machine class.\n\n{body}"


def _demand_compatible(record: runs.RunRecord, config: Config) -> None:
    refused = [d for d in train.differences(record, config) if d.verdict == "refused"]
    if refused:
        raise Refused(
            f"{record.name} cannot go on so: {'; '.join(f'{d} ({d.reason})' for d in refused)}",
            "its recipe has changed since it was begun, most likely: restore it",
        )


def _likeness(record: runs.RunRecord, config: Config) -> str:
    found = train.differences(record, config)
    changed = {d.key for d in found}
    if _MICRO in changed and config.tree.get("sample_packing"):
        return "rows are packed anew: some of this epoch come twice and others not"
    if _MICRO in changed:
        return "the same rows in every step, whose mean is taken over other micro batches"
    if changed - {"save_steps", "logging_steps"}:
        return "the same rows in every step; another card and its kernels round otherwise"
    return "the same rows and sums; another card rounds otherwise"


def _rows(mine: dict[str, Any], new: Profile, config: Config) -> Iterator[Row]:
    """Every setting that the run and the new profile see differently."""
    then = {**config.tree, "processes": config.profile.hardware.processes}
    theirs = {**new.axolotl, "processes": new.hardware.processes}
    before = {k: v for k, v in mine.items() if k not in _RECIPES}
    for key in sorted({*before, *theirs}):
        old, offered, result = mine.get(key), theirs.get(key), then.get(key)
        if result != old:
            why = "of the new machine" if is_machines(key) or key == "processes" else "same batch"
            yield Row(key, old, offered, result, "changed", why)
        elif key in theirs and offered != old:
            reason = compatibility.reason(key)
            yield Row(key, old, offered, result, "kept", reason)
