"""Owns layering: recipe < profile < ``--set``, every value with the place that set it.

Does not read files (``config``) nor make the YAML that is launched (``render``).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from leviathan import lessons, redaction, reinforcement, samples, yamlfile
from leviathan.config import (
    Model,
    Profile,
    Recipe,
    SampleSettings,
    bad_inputs,
    load_profile,
    load_recipe,
    validated,
)
from leviathan.corpus import REQUIRED_FIELDS
from leviathan.errors import BadInput
from leviathan.yamlfile import KeyPath, YamlFile, dotted


@dataclass(frozen=True)
class Origin:
    """Who set a value: a layer, and the place in it."""

    layer: str
    where: str


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


RECIPE_KEYS = set(Recipe.model_fields) - {"axolotl", "samples", "description"}
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
    """``--name``, or ``<recipe>_<sample>_<profile>``.

    Raises:
        BadInput: a name that could leave ``work/training`` or hide a file.
    """
    chosen = name or f"{config.recipe_name}_{config.sample}_{config.profile_name}"
    what = "--name" if name else "the name made of recipe, sample and profile,"
    return checked_name(chosen, what)


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
    recipe_name: str, profile_name: str, sample: str, overrides: Iterable[str] = ()
) -> Config:
    """Load and merge recipe < profile < overrides.

    Raises:
        BadInput: anything wrong in the files, the sample or an override; all of a
            file's problems come in one error, a line each.
    """
    samples.parse(sample)
    asked = (recipe_name, profile_name)
    overrides = tuple(overrides)
    (recipe_name, recipe, recipe_file), (profile_name, profile, profile_file) = _load(*asked)
    sets = _parse_overrides(overrides)
    _refuse_secrets((recipe.axolotl, recipe_file), (profile.axolotl, profile_file), sets)
    recipe = _overridden(recipe, RECIPE_KEYS, sets)
    profile = _overridden(profile, PROFILE_KEYS, sets)
    merged, problems = _Merged(), list[str]()
    merged.add(_own_keys(recipe, sample), lambda key: _own_origin(recipe_file, key, sample))
    for layer, source, model in (
        ("recipe", recipe_file, recipe.axolotl),
        ("profile", profile_file, profile.axolotl),
    ):
        problems += _owned(model, lambda key, s=source: s.where(("axolotl", *key)))
        merged.add(
            model,
            lambda key, n=layer, s=source: Origin(n, s.where(("axolotl", *key))),
        )
    for key, value, text in sets:
        tree = _as_tree(key if key[0] != "epochs" else ("num_epochs",), value)
        if key[0] not in (RECIPE_KEYS | PROFILE_KEYS) - _AXOLOTL_TOO:
            problems += _owned(tree, lambda _, t=text: f"--set {t}")
            merged.add(tree, lambda _, t=text: Origin("--set", f"--set {t}"))
    _refuse_bad_datasets(merged)
    problems += _reinforced(merged, recipe.format, profile.hardware.processes)
    return Config(
        recipe_name, recipe, profile_name, profile, sample,
        tuple(overrides), *asked, merged.tree, merged.origins, tuple(problems),
        tuple(_rung_keys(profile, profile_file, sets)),
    )  # fmt: skip


def _reinforced(merged: "_Merged", row_format: str, processes: int) -> list[str]:
    """Make the merged keys fit for rewards, where they ask for them; what is wrong with them."""
    tree = merged.tree
    if reinforcement.rewarded(tree):
        for name in reinforcement.unfit(tree, processes):
            place = merged.origins.get((name,))
            if place and place.layer == "profile":  # made for supervised fine-tuning
                del tree[name], merged.origins[(name,)]
    found = list(reinforcement.problems(tree, processes, row_format))
    for key, value, why in [] if found else list(reinforcement.derived(tree, processes)):
        merged.add(_as_tree(key, value), lambda _, w=why: Origin("leviathan", w))
    return [f"{merged.where(key)}: {text}" for key, text in found]


def _refuse_secrets(
    recipe: tuple[dict[str, Any], YamlFile],
    profile: tuple[dict[str, Any], YamlFile],
    sets: list[tuple[KeyPath, Any, str]],
) -> None:
    """What is set ends in run.json, in axolotl.yaml, in logs and reports; a secret must not."""
    found = [
        (source.where(("axolotl", *key)), key, what)
        for tree, source in (recipe, profile)
        for key, what in redaction.secrets_in(tree)
    ]
    for key, value, _ in sets:  # the text itself is not shown
        inside = redaction.secrets_in(_as_tree(key, value))
        found += [(f"--set {dotted(key)}", place, what) for place, what in inside]
    if found:
        raise bad_inputs(
            f"{where}: {dotted(key)} holds {what}, which would end in files and logs; keep it "
            "in an environment variable (docs/tracking.md)"
            for where, key, what in found
        )


def _rung_keys(
    profile: Profile, source: YamlFile, sets: list[tuple[KeyPath, Any, str]]
) -> Iterator[tuple[str, str, Any]]:
    given = [f"--set {text}" for key, _, text in sets if key[0] == "out_of_memory"]
    for number, rung in enumerate(profile.out_of_memory.ladder):
        for name, value in rung.set.items():
            place: KeyPath = ("out_of_memory", "ladder", number, "set", name)
            yield given[-1] if given else source.where(place), name, value


def changed(config: Config, values: dict[str, Any], where: str) -> Config:
    """``config`` with top-level Axolotl keys set by the run itself, saying ``where``."""
    origins = {k: o for k, o in config.origins.items() if k[0] not in values}
    origins |= {(key,): Origin(_RUN, where) for key in values}
    return replace(config, tree={**config.tree, **values}, origins=origins)


def _refuse_bad_datasets(merged: "_Merged") -> None:
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


def _parse_overrides(texts: Iterable[str]) -> list[tuple[KeyPath, Any, str]]:
    parsed, problems = [], []
    for text in texts:
        try:
            parsed.append(_parse_override(text))
        except BadInput as error:
            problems.append(error.line)
    if problems:
        raise bad_inputs(problems)
    return parsed


def _parse_override(text: str) -> tuple[KeyPath, Any, str]:
    name, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_][\w.]*", name.strip()):
        raise BadInput(f"--set {text!r} is not key=value", "example: --set learning_rate=1e-4")
    key: KeyPath = tuple(
        int(part) if part.isdigit() else part for part in name.strip().split(".") if part
    )
    if key[0] == "axolotl" and len(key) > 1:
        key = key[1:]
    if key[0] == "notify" and "://" in value:
        raise BadInput("--set notify: a webhook's URL is a secret, and the run keeps its overrides",
                       "put it into the profile, or name its variable: webhook: $NAME")  # fmt: skip
    return key, yamlfile.parse_value(value), text


def _overridden(own: Model, keys: set[str], sets: list[tuple[KeyPath, Any, str]]) -> Model:
    """``own`` with those of its own keys that ``--set`` names; nested ones too."""
    tree = own.model_dump(exclude_unset=True)
    texts: dict[str | int, str] = {}
    for key, value, text in sets:
        if key[0] in keys:
            place: dict[str | int, Any] = tree  # type: ignore[assignment]
            for part in key[:-1]:
                inner = place.setdefault(part, {})
                place = inner if isinstance(inner, dict) else {}
            place[key[-1]] = value
            texts[key[0]] = text
    return validated(type(own), tree, lambda key: f"--set {texts.get(key[0], dotted(key))}")


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
        "base_model": recipe.base_model,
        "datasets": dataset_entries(recipe.format),
        "num_epochs": settings.epochs or recipe.epochs,
        "seed": recipe.seed,
    }


def _own_origin(source: YamlFile, key: KeyPath, sample: str) -> Origin:
    own: dict[str, KeyPath] = {
        "base_model": ("base_model",), "datasets": ("format",), "seed": ("seed",),
        "num_epochs": ("samples", sample, "epochs")
        if ("samples", sample, "epochs") in source.lines else ("epochs",),
        "rl": ("format",), "trl": ("format",),
    }  # fmt: skip
    place = own[str(key[0])]
    if place not in source.lines:
        return Origin("default", f"{place[0]} (not set in {source.path.name})")
    return Origin("recipe", source.where(place))


def _owned(tree: dict[str, Any], where: Any) -> list[str]:
    """Keys in ``tree`` that are Leviathan's own to write, a line each."""
    return [
        f"{where((name,))}: {name} is not yours to set here; {OWNED_KEYS[name]}"
        for name in tree
        if name in OWNED_KEYS
    ]


def _as_tree(key: KeyPath, value: Any) -> dict[str, Any]:
    for part in reversed(key[1:]):
        value = {part: value}
    return {str(key[0]): value}


class _Merged:
    """A tree under construction: dicts merge, everything else is replaced."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[KeyPath, Origin] = {}

    def add(self, layer: dict[str, Any], origin: Any) -> None:
        self._merge(self.tree, layer, (), origin)

    def where(self, key: KeyPath) -> str:
        """The place that set ``key``, or something in it, or the block around it."""
        exact = self.origins.get(key)
        inside = (o for k, o in self.origins.items() if k[: len(key)] == key)
        around = (self.origins.get(key[:n]) for n in range(len(key) - 1, 0, -1))
        found = exact or next(inside, None) or next(filter(None, around), None)
        return found.where if found else dotted(key)

    def _merge(self, into: Any, layer: dict[Any, Any], prefix: KeyPath, origin: Any) -> None:
        for name, value in layer.items():
            key = (*prefix, name)
            old = _item(into, name)
            if isinstance(value, dict) and isinstance(old, dict | list):
                self._merge(old, value, key, origin)
                continue
            self.origins = {k: o for k, o in self.origins.items() if k[: len(key)] != key}
            if value is None and isinstance(into, dict):
                into.pop(name, None)  # null takes back what a lower layer set
                continue
            self._set(into, name, value, key, origin)

    def _set(self, into: Any, name: Any, value: Any, key: KeyPath, origin: Any) -> None:
        if isinstance(into, list) and not (isinstance(name, int) and name < len(into)):
            raise BadInput(
                f"{dotted(key)} is not in the list it names", f"it has {len(into)} items"
            )
        if isinstance(value, dict) and value:
            into[name] = {}
            self._merge(into[name], value, key, origin)
            return
        into[name] = list(value) if isinstance(value, list) else value
        self.origins[key] = origin(key)
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    into[name][index] = {}
                    self._merge(into[name][index], item, (*key, index), origin)


def _item(container: Any, name: Any) -> Any:
    if isinstance(container, dict):
        return container.get(name)
    return container[name] if isinstance(name, int) and name < len(container) else None
