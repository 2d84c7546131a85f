"""Owns layering: recipe < profile < mode < stage < ``--set``, each value with its place.

Does not read files (``config``), compose a recipe with its stage (``composing``), nor make the
YAML that is launched (``render``).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leviathan import (
    composing,
    lessons,
    overrides,
    pace,
    redaction,
    reinforcement,
    runs,
    samples,
)
from leviathan.composing import Composition
from leviathan.config import Profile, bad_inputs, load_profile, load_recipe, validated
from leviathan.corpus import REQUIRED_FIELDS
from leviathan.errors import BadInput
from leviathan.origins import Origin, Tree
from leviathan.overrides import Override
from leviathan.recipe import Recipe, SampleSettings
from leviathan.yamlfile import KeyPath, YamlFile, dotted


@dataclass(frozen=True)
class Config:
    """Recipe, profile and overrides merged: raw Axolotl keys, each with its origin."""

    recipe_name: str
    recipe: Recipe
    profile_name: str
    profile: Profile
    sample: str
    overrides: tuple[str, ...]
    recipe_asked: str
    """What the user called the recipe: a name, an alias or a path."""
    profile_asked: str
    tree: dict[str, Any]
    origins: dict[KeyPath, Origin]
    problems: tuple[str, ...] = ()
    """Keys that are not the user's to set; told together with the unknown ones."""
    rung_keys: tuple[tuple[str, str, Any], ...] = ()
    """Place, Axolotl key and value of everything the out-of-memory ladder may set."""
    mode: str = ""
    stage: str = ""
    stages: tuple[str, ...] = ()
    """All stages of the recipe, in order; empty where it is one training."""
    starts: Literal["best", "latest"] = "best"
    """Which checkpoint of the stage before this stage begins with."""

    @property
    def before(self) -> str:
        """The stage before this one; "" for the first, and where there are none."""
        return self.stages[self.stages.index(self.stage) - 1] if self._follows else ""

    @property
    def _follows(self) -> bool:
        return bool(self.stage) and self.stage != self.stages[0]

    @property
    def makes_base(self) -> bool:
        """Whether Leviathan makes the base model itself, in the run directory (``handover``)."""
        given = any(text.startswith("base_model=") for text in self.overrides)
        return not given and (self._follows or self.recipe.model is not None)

    @property
    def lacks_base(self) -> bool:
        """Whether that is yet to be done."""
        return self.makes_base and not Path(self.tree["base_model"]).is_dir()

    @property
    def set_by_run(self) -> dict[str, Any]:
        """Axolotl keys that the run itself has set (``changed``), with their values."""
        keys = [str(key[0]) for key, origin in self.origins.items() if origin.layer == _RUN]
        return {key: self.tree[key] for key in keys}

    def origin(self, key: KeyPath) -> Origin:
        """Where the value at ``key``, or the block around it, was set."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return Origin("leviathan", "derived")


_RUN = "run"  # the layer above all others: what the out-of-memory ladder changed

DATASET_FORMATS: dict[str, dict[str, Any]] = {
    "alpaca": {"type": "alpaca"},
    "chat": {"type": "chat_template", "field_messages": "messages"},
    "sharegpt": {
        "type": "chat_template",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
    },
    "completion": {"type": "completion", "field": "text"},
    "choices": {"type": lessons.TYPE},
}

OWNED_KEYS = {
    "output_dir": "the run directory decides it; choose it with --name",
    "dataset_prepared_path": "it lives in the run directory",
    "resume_from_checkpoint": "use --resume checkpoint-N",
    "auto_resume_from_checkpoints": "resuming is Leviathan's work; use --resume",
    "save_total_limit": "use checkpoints.keep in the profile, which rotates by step",
    "save_only_model": "such checkpoints cannot be resumed exactly",
    "leviathan": "these keys are written by Leviathan itself",
}


# A recipe's checkpoints end in the profile's.
RECIPE_KEYS = set(Recipe.model_fields) - {"axolotl", "samples", "description", "stages", "modes",
                                          "checkpoints"}  # fmt: skip
PROFILE_KEYS = set(Profile.model_fields) - {"axolotl", "aliases", "description"}
# These recipe keys are Axolotl keys, too: an override goes into the rendered tree.
_AXOLOTL_TOO = {"epochs", "seed", "base_model"}


def dataset_entries(row_format: str) -> list[dict[str, Any]]:
    """Axolotl's ``datasets`` for a recipe's ``format``, without the path."""
    return [{"ds_type": "json", **DATASET_FORMATS[row_format]}]


def row_fields(config: Config) -> tuple[str, ...]:
    """Keys a row must have, where ``format``, not ``axolotl.datasets``, says what it holds."""
    standard = config.tree["datasets"] == dataset_entries(config.recipe.format)
    return REQUIRED_FIELDS[config.recipe.format] if standard else ()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_name(config: Config, name: str | None) -> str:
    """``--name``, or ``<recipe>_<sample>_<profile>``; of a stage ``<that>.<stage>``.

    Raises:
        BadInput: a name that could leave ``work/training`` or hide a file.
    """
    what = "--name" if name else "the name made of recipe, sample and profile,"
    whole = checked_name(whole_name(config, name), what)
    return f"{whole}.{config.stage}" if config.stage else whole


def whole_name(config: Config, name: str | None) -> str:
    """What all stages together are called; ``name`` may be that, or one of its stages' runs."""
    if name:
        return name.removesuffix(f".{config.stage}") if config.stage else name
    parts = [config.recipe_name, config.sample, config.profile_name, config.mode]
    return "_".join(part for part in parts if part)


def based(config: Config, name: str) -> Config:
    """``config`` with the base model that Leviathan makes inside the run called ``name``."""
    if not config.makes_base:
        return config
    key: KeyPath = ("base_model",)
    made = f"the model of stage {config.before}" if config.before else "made from nothing"
    origin = Origin("leviathan", made)
    return replace(config, tree={**config.tree, "base_model": _base_in(name)},
                   origins={**config.origins, key: origin})  # fmt: skip


def _base_in(name: str) -> str:
    return str(runs.RunPaths(runs.TRAINING / name).base)


def checked_name(name: str, what: str = "RUN") -> str:
    """``name``, which can be a run's.

    Raises:
        BadInput: it could leave ``work/training`` or hide a file.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadInput(
            f"{what} {name!r} cannot be a run's name",
            "give --name letters, digits, dot, dash and underscore; no slash, no ..",
        )
    return name


def build(
    recipe_name: str, profile_name: str, sample: str | None, texts: Iterable[str] = ()
) -> Config:
    """Load and merge recipe < profile < mode < stage < overrides.

    Args:
        recipe_name: a recipe's name, or its file.
        profile_name: a profile's name or alias, or its file.
        sample: which part of the corpus; None for what mode or recipe say.
        texts: overrides, ``key=value``; ``mode`` and ``stage`` among them choose those.

    Raises:
        BadInput: anything wrong in the files, the sample or an override; all of a
            file's problems come in one error, a line each.
    """
    if sample is not None:
        samples.parse(sample)
    asked = (recipe_name, profile_name)
    texts = tuple(texts)
    (recipe_name, recipe, recipe_file), (profile_name, profile, profile_file) = _load(*asked)
    sets = overrides.parse(texts)
    _refuse_secrets(recipe, recipe_file, profile, profile_file, sets)
    chosen = [overrides.choice(kind, sets) for kind in overrides.CHOICES]
    composed = composing.compose(recipe_file, recipe, *chosen)
    stage = next((s for s in recipe.stages if s.name == composed.stage), None)
    mode = recipe.modes.get(composed.mode)
    recipe = _composed(composed, recipe_file)
    if any(o.key == ("base_model",) for o in sets):
        recipe = recipe.model_copy(update={"model": None})
    recipe = overrides.overridden(recipe, RECIPE_KEYS, sets)
    profile = _with_checkpoints(profile, recipe.checkpoints, composed, recipe_file)
    profile = overrides.overridden(profile, PROFILE_KEYS, sets)
    said = [o.value for o in sets if o.key == ("sample",)]
    sample = sample or (recipe.sample if said else (mode and mode.sample) or recipe.sample)
    samples.parse(sample)
    stack = _Stack(recipe, recipe_file, profile, profile_file, composed, sets, sample)
    merged, problems = stack.merged()
    config = Config(
        recipe_name, recipe, profile_name, profile, sample, texts, *asked, merged.tree,
        merged.origins, tuple(problems), tuple(_rung_keys(profile, profile_file, sets)),
        composed.mode, composed.stage, composed.stages, stage.start if stage else "best",
    )  # fmt: skip
    return based(config, run_name(config, None)) if config.makes_base else config


def _composed(composed: Composition, source: YamlFile) -> Recipe:
    def where(key: KeyPath) -> str:
        _, place = composed.places.get(str(key[0]), ("", (key[0],)))
        return source.where((*place, *key[1:]))

    return validated(Recipe, composed.data, where)


def _with_checkpoints(
    profile: Profile, recipes: dict[str, Any], composed: Composition, source: YamlFile
) -> Profile:
    """The profile with the retention that the recipe, mode and stage ask for."""
    asked = [(layer, layer.data["checkpoints"]) for layer in composed.layers
             if layer.data.get("checkpoints")]  # fmt: skip
    if not asked and not recipes:
        return profile
    tree = profile.model_dump(exclude_unset=True)
    tree["checkpoints"] = {**recipes, **tree.get("checkpoints", {})}
    for _, checkpoints in asked:
        tree["checkpoints"] = {**tree["checkpoints"], **checkpoints}
    place = (*asked[-1][0].place,) if asked else ()
    return validated(Profile, tree, lambda key: source.where((*place, *key)))


class _Stack:
    """The layers of one configuration, put on each other."""

    def __init__(
        self, recipe: Recipe, recipe_file: YamlFile, profile: Profile, profile_file: YamlFile,
        composed: Composition, sets: list[Override], sample: str,
    ) -> None:  # fmt: skip
        self.recipe, self.recipe_file = recipe, recipe_file
        self.profile, self.profile_file = profile, profile_file
        self.composed, self.sets, self.sample = composed, sets, sample
        self.tree, self.problems = Tree(), list[str]()

    def merged(self) -> tuple[Tree, list[str]]:
        """The tree with its origins, and the keys in it that are not the user's to set."""
        self.tree.add(_own_keys(self.recipe, self.sample), self._own_origin)
        self._add("recipe", self.recipe_file, ("axolotl",), self.recipe.axolotl)
        self._add("profile", self.profile_file, ("axolotl",), self.profile.axolotl)
        if self.recipe.train == "full":
            self._forget_adapter()
        for layer in self.composed.layers:
            self._add(layer.name, self.recipe_file, (*layer.place, "axolotl"), layer.axolotl)
        for override in self.sets:
            self._override(override)
        _refuse_bad_datasets(self.tree)
        if self.recipe.train == "full":
            self._refuse_adapter()
        self._suit_rewards()
        self._convert_tokens()
        self._derive_rewards()
        return self.tree, self.problems

    def _add(self, name: str, source: YamlFile, prefix: KeyPath, values: dict[str, Any]) -> None:
        self.problems += _owned(values, lambda key: source.where((*prefix, *key)))
        self.tree.add(values, lambda key: Origin(name, source.where((*prefix, *key))))

    def _override(self, override: Override) -> None:
        first, text = override.key[0], override.text
        if first in overrides.CHOICES or first in (RECIPE_KEYS | PROFILE_KEYS) - _AXOLOTL_TOO:
            return
        tree = override.tree
        if first == "epochs":
            tree = overrides.as_tree(("num_epochs", *override.key[1:]), override.value)
        self.problems += _owned(tree, lambda _: f"--set {text}")
        self.tree.add(tree, lambda _: Origin("--set", f"--set {text}"))

    def _forget_adapter(self) -> None:
        """A profile's keys of adapters mean nothing to a training of every weight."""
        for key in [key for key in self.tree.tree if _is_of_adapters(key)]:
            self.tree.drop(key)

    def _refuse_adapter(self) -> None:
        for key in self.tree.tree:
            if _is_of_adapters(key):
                where = self.tree.origins.get((key,))
                raise BadInput(
                    f"{where.where if where else key}: {key} belongs to an adapter, and "
                    "train: full trains every weight", "take it out, or set train: adapter",
                )  # fmt: skip

    # --- rewards ----------------------------------------------------------------------

    def _suit_rewards(self) -> None:
        """Take out what a profile has for supervised fine-tuning."""
        if not reinforcement.rewarded(self.tree.tree):
            return
        for name in reinforcement.unfit(self.tree.tree, self.profile.hardware.processes):
            place = self.tree.origins.get((name,))
            if place and place.layer == "profile":
                self.tree.drop(name)

    def _derive_rewards(self) -> None:
        """What follows for a training by rewards, or what is wrong with its keys."""
        tree, processes = self.tree.tree, self.profile.hardware.processes
        found = list(reinforcement.problems(tree, processes, self.recipe.format))
        for key, value, why in [] if found else list(reinforcement.derived(tree, processes)):
            origin = Origin("leviathan", why)
            self.tree.add(overrides.as_tree(key, value), lambda _, o=origin: o)  # type: ignore[misc]
        self.problems += [f"{self.tree.where(key)}: {text}" for key, text in found]

    # --- tokens into steps ------------------------------------------------------------

    def _convert_tokens(self) -> None:
        processes = self.profile.hardware.processes
        for source, key, convert in (
            ("global_batch_tokens", "gradient_accumulation_steps", pace.batch),
            ("total_tokens", "max_steps", pace.total),
            ("warmup_tokens", "warmup_steps", pace.warm_up),
        ):
            tokens = getattr(self.recipe, source)
            layer, where = self._own_place(source)
            if tokens is None or self._is_said_above(key, source, layer, where):
                continue
            step = convert(self.tree.tree, processes, tokens, where)
            origin = Origin(layer, f"{where}: {source} {step.why}")
            self.tree.add({key: step.value}, lambda _, o=origin: o)  # type: ignore[misc]
            if key == "warmup_steps":
                self.tree.drop("warmup_ratio")

    def _is_said_above(self, key: str, source: str, layer: str, where: str) -> bool:
        """Whether a layer that counts more than ``layer`` sets ``key`` itself.

        A profile does not: its accumulation suits another training's batch.
        """
        origin = self.tree.origins.get((key,))
        if origin is None or origin.layer == "profile":
            return False
        order = ["default", "recipe", *(one.name for one in self.composed.layers), "--set"]
        if origin.layer == layer:
            raise BadInput(f"{where}: {source} and {key} ({origin.where}) say the same twice",
                           "leave one of them out")  # fmt: skip
        return order.index(origin.layer) > order.index(layer)

    def _own_place(self, key: str) -> tuple[str, str]:
        """The layer that set one of the recipe's own keys, and where."""
        said = [o.text for o in self.sets if o.key[0] == key]
        if said:
            return "--set", f"--set {said[-1]}"
        layer, place = self.composed.places.get(key, ("default", (key,)))
        return layer, self.recipe_file.where(place)

    def _own_origin(self, key: KeyPath) -> Origin:
        name = _FOLLOWS_FROM.get(str(key[0]), str(key[0]))
        if name == "base_model" and self.recipe.model:
            name = "model"
        if name == "epochs" and self.recipe.samples.get(self.sample, SampleSettings()).epochs:
            layer, place = self.composed.places.get("samples", ("recipe", ("samples",)))
            return Origin(layer, self.recipe_file.where((*place, self.sample, "epochs")))
        if name not in self.composed.places:
            return Origin("default", f"{name} (not set in {self.recipe_file.path.name})")
        layer, place = self.composed.places[name]
        return Origin(layer, self.recipe_file.where(place))


_FOLLOWS_FROM = {"datasets": "format", "num_epochs": "epochs", "rl": "format", "trl": "format"}
_ADAPTER_KEYS = {"adapter", "load_in_4bit", "load_in_8bit", "embeddings_skip_upcast",
                 "bnb_config_kwargs", "lora", "qlora_sharded_model_loading"}  # fmt: skip


def _is_of_adapters(key: str) -> bool:
    return key in _ADAPTER_KEYS or key.startswith(("lora_", "loraplus_", "peft_", "relora"))


def _refuse_secrets(
    recipe: Recipe,
    recipe_file: YamlFile,
    profile: Profile,
    profile_file: YamlFile,
    sets: list[Override],
) -> None:
    """What is set ends in run.json, in axolotl.yaml, in logs and reports; a secret must not."""
    blocks = [(recipe_file, prefix, tree) for prefix, tree in composing.axolotl_blocks(recipe)]
    blocks.append((profile_file, ("axolotl",), profile.axolotl))
    found = [
        (source.where((*prefix, *key)), key, what)
        for source, prefix, tree in blocks
        for key, what in redaction.secrets_in(tree)
    ]
    for override in sets:  # the text itself is not shown
        inside = redaction.secrets_in(override.tree)
        found += [(f"--set {dotted(override.key)}", place, what) for place, what in inside]
    if found:
        raise bad_inputs(
            f"{where}: {dotted(key)} holds {what}, which would end in files and logs; keep it "
            "in an environment variable (docs/tracking.md)"
            for where, key, what in found
        )


def _rung_keys(
    profile: Profile, source: YamlFile, sets: list[Override]
) -> Iterator[tuple[str, str, Any]]:
    given = [f"--set {o.text}" for o in sets if o.key[0] == "out_of_memory"]
    for number, rung in enumerate(profile.out_of_memory.ladder):
        for name, value in rung.set.items():
            place: KeyPath = ("out_of_memory", "ladder", number, "set", name)
            yield given[-1] if given else source.where(place), name, value


def changed(config: Config, values: dict[str, Any], where: str) -> Config:
    """``config`` with top-level Axolotl keys set by the run itself, saying ``where``."""
    origins = {k: o for k, o in config.origins.items() if k[0] not in values}
    origins |= {(key,): Origin(_RUN, where) for key in values}
    return replace(config, tree={**config.tree, **values}, origins=origins)


def _refuse_bad_datasets(merged: Tree) -> None:
    datasets = merged.tree.get("datasets")
    if isinstance(datasets, list) and datasets and "path" in (datasets[0] or {}):
        key: KeyPath = ("datasets", 0, "path")
        place = merged.origins.get(key) or merged.origins[("datasets",)]
        raise BadInput(
            f"{place.where}: datasets.0.path is where the sample is put",
            "set the recipe's corpus, or --set corpus=FILE",
        )
    if isinstance(datasets, list) and datasets and all(isinstance(d, dict) for d in datasets):
        return
    where = merged.origins[("datasets",)].where if ("datasets",) in merged.origins else "--set"
    raise BadInput(
        f"{where}: datasets must be a list of mappings, found {datasets!r}",
        "leave it out to use the recipe's corpus and format",
    )


def _load(
    recipe: str, profile: str
) -> tuple[tuple[str, Recipe, YamlFile], tuple[str, Profile, YamlFile]]:
    """Both files; where both are wrong, the problems of both in one error."""
    try:
        loaded = load_recipe(recipe)
    except BadInput as first:
        try:
            load_profile(profile)
        except BadInput as second:
            raise bad_inputs([first.line, second.line]) from second
        raise
    return loaded, load_profile(profile)


def _own_keys(recipe: Recipe, sample: str) -> dict[str, Any]:
    settings = recipe.samples.get(sample, SampleSettings())
    return {
        **(reinforcement.DEFAULTS if recipe.format == "choices" else {}),
        "base_model": recipe.base_model or "",  # Leviathan makes it (``based``)
        "datasets": dataset_entries(recipe.format),
        "num_epochs": settings.epochs or recipe.epochs,
        "seed": recipe.seed,
    }


def _owned(tree: dict[str, Any], where: Any) -> list[str]:
    """Keys in ``tree`` that are Leviathan's own to write, a line each."""
    return [
        f"{where((name,))}: {name} is not yours to set here; {OWNED_KEYS[name]}"
        for name in tree
        if name in OWNED_KEYS
    ]
