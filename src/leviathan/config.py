"""Owns profiles and recipes: finding them, reading them, layering them, with provenance.

Does not know Axolotl's keys (``schema``) nor make the YAML that is launched (``render``).

Layers, later wins: recipe < profile < ``--set``. Both kinds of file carry an
``axolotl:`` block of raw Axolotl keys; Leviathan's own keys live beside it.
"""

import difflib
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leviathan import yamlfile
from leviathan.errors import BadInput
from leviathan.yamlfile import KeyPath, YamlFile, dotted

Kind = Literal["profiles", "recipes"]
Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Hardware(_Strict):
    """What the machine class is, from its vendor's data sheet."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where training runs. A cuda profile is refused on a machine without such a GPU."""
    gpu: str | None = None
    """The card's name as people say it; for display."""
    count: int = Field(1, ge=1)
    """Processes to launch: one per GPU."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of one process (OMP_NUM_THREADS); unset, accelerate decides."""
    memory_gib: float | None = Field(None, gt=0)
    """Memory of one GPU in GiB."""
    bf16_tflops: float | None = Field(None, gt=0)
    """Dense bf16 peak in TFLOPS (not the sparse figure of the data sheet)."""
    memory_gb_s: float | None = Field(None, gt=0)
    """Memory bandwidth in GB/s."""
    power_w: float | None = Field(None, gt=0)
    """Board power limit in watts."""
    compute_capability: str | None = Field(None, pattern=r"^sm_\d+[a-z]?$")
    """CUDA architecture, as ``sm_86``."""


class CheckpointPolicy(_Strict):
    """How many checkpoints a run keeps."""

    keep: int = Field(3, ge=1)
    """Newest checkpoints kept on disk; the best one is kept besides."""


class Profile(_Strict):
    """A machine class and the training knobs that suit it."""

    description: str = ""
    """One line for ``profiles list``."""
    aliases: list[str] = []
    """Other names this profile answers to."""
    hardware: Hardware = Hardware()
    """Facts about the machine."""
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    """Retention. Replaces Axolotl's save_total_limit, which rotates by file time."""
    axolotl: dict[str, Any] = {}
    """Raw Axolotl keys; its documentation applies as it is."""


class SampleSettings(_Strict):
    """What differs for one sample of the corpus."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the sample; overrides the recipe's ``epochs``."""


class Success(_Strict):
    """When the owner calls a run a success."""

    final_loss: float | None = Field(None, gt=0)
    """Training loss (nats per token) the run should end below."""
    prompts_pass_pct: float = Field(75.0, ge=0, le=100)
    """Share of the prompt suite that must pass, in percent."""


class MergeLimits(_Strict):
    """How close a merged model must be to base + adapter (docs/merging.md)."""

    argmax_agreement: float = Field(0.98, ge=0, le=1)
    """Least share of probe positions whose likeliest token is the same."""
    relative_error: float = Field(0.1, gt=0)
    """Largest distance merged to trained, as a share of the distance trained to base: L2
    norms over all probe logits."""


class Recipe(_Strict):
    """What is trained: base model, corpus, epochs, seed, success."""

    description: str = ""
    """One line for ``recipes list``."""
    base_model: str
    """Hub name or local directory of the model the adapter is trained on."""
    corpus: str
    """JSONL file, relative to the directory Leviathan is started in."""
    format: Literal["alpaca", "chat", "completion"] = "alpaca"
    """Shape of a row: alpaca {instruction, input, output}, chat {messages: [{role,
    content}]}, completion {text}. Finer control: ``axolotl.datasets``."""
    epochs: float = Field(1, gt=0)
    """Passes over the sample."""
    samples: dict[str, SampleSettings] = {}
    """Settings per sample name (10pct, full, ...)."""
    seed: int = Field(42, ge=0)
    """Seeds sampling, adapter initialisation, shuffling and dropout."""
    suite: str | None = None
    """Prompt suite: a name under ``configs/suites`` or a YAML file."""
    success: Success = Success()
    """Criteria shown by reports and used by ``test``."""
    merge: MergeLimits = MergeLimits()
    """Limits of the merge proof."""
    axolotl: dict[str, Any] = {}
    """Raw Axolotl keys."""


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

    def origin(self, key: KeyPath) -> Origin:
        """Where the value at ``key``, or the block around it, was set."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return Origin("leviathan", "derived")


DATASET_FORMATS: dict[str, dict[str, Any]] = {
    "alpaca": {"type": "alpaca"},
    "chat": {"type": "chat_template", "field_messages": "messages"},
    "completion": {"type": "completion", "field": "text"},
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


def dataset_entries(row_format: str) -> list[dict[str, Any]]:
    """Axolotl's ``datasets`` for a recipe's ``format``, without the path."""
    return [{"ds_type": "json", **DATASET_FORMATS[row_format]}]


def directories(kind: str) -> list[Path]:
    """Where configs of ``kind`` are looked up, first match wins."""
    package = Path(__file__).parent
    shipped = package / "configs"
    if not shipped.is_dir():  # an editable install: the checkout's own folder
        shipped = package.parents[1] / "configs"
    return [Path("configs") / kind, shipped / kind]


def names(kind: str) -> dict[str, Path]:
    """Every config of ``kind`` by name, the working directory's hiding the shipped."""
    found: dict[str, Path] = {}
    for directory in directories(kind):
        for path in sorted(directory.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def differences(one: BaseModel, two: BaseModel) -> list[tuple[str, Any, Any]]:
    """Every dotted key whose value differs between two configs; None where absent."""
    left, right = _flat(one.model_dump(), ()), _flat(two.model_dump(), ())
    return [
        (dotted(key), left.get(key), right.get(key))
        for key in [*left, *(key for key in right if key not in left)]
        if left.get(key) != right.get(key)
    ]


def _flat(tree: dict[str, Any], prefix: KeyPath) -> dict[KeyPath, Any]:
    found: dict[KeyPath, Any] = {}
    for name, value in tree.items():
        key = (*prefix, name)
        found |= _flat(value, key) if isinstance(value, dict) and value else {key: value}
    return found


def find(kind: Kind, name: str) -> Path:
    """The file of the profile or recipe called ``name``, alias or path.

    Raises:
        BadInput: nothing is called that; the message offers the nearest name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        raise BadInput(f"{kind[:-1]} file {name} does not exist", "check the path")
    known = names(kind)
    if name in known:
        return known[name]
    aliases = _aliases(known) if kind == "profiles" else {}
    if name in aliases:
        return known[aliases[name]]
    close = difflib.get_close_matches(name, [*known, *aliases], n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"no {kind[:-1]} called {name!r}", f"{hint}known: {', '.join(known) or 'none'}")


def _aliases(known: dict[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in known.items():
        try:
            aliases = yamlfile.load(path).data.get("aliases")
        except BadInput:
            continue  # broken, and not the one that was asked for
        found |= {str(alias): name for alias in (aliases if isinstance(aliases, list) else [])}
    return found


def load_profile(name: str) -> tuple[str, Profile, YamlFile]:
    """Read and check the profile ``name``: its canonical name, values and source."""
    source = yamlfile.load(find("profiles", name))
    return source.path.stem, _validated(Profile, source), source


def load_recipe(name: str) -> tuple[str, Recipe, YamlFile]:
    """Read and check the recipe ``name``: its canonical name, values and source."""
    source = yamlfile.load(find("recipes", name))
    return source.path.stem, _validated(Recipe, source), source


def _validated(model: type[Model], source: YamlFile) -> Model:
    try:
        return model.model_validate(source.data)
    except ValidationError as error:
        raise bad_inputs(_describe(model, source, e) for e in error.errors()) from error


def _describe(model: type[BaseModel], source: YamlFile, error: Any) -> str:
    key: KeyPath = tuple(error["loc"])
    where = f"{source.where(key)}: {dotted(key)}"
    if error["type"] == "extra_forbidden":
        return f"{where} is not a known key; {_nearest_field(model, key)}"
    if error["type"] == "missing":
        return f"{where} is required and missing"
    return f"{where}: {error['msg'].lower()} (found {error['input']!r})"


def _nearest_field(model: type[BaseModel], key: KeyPath) -> str:
    current: Any = model
    for part in key[:-1]:
        info = getattr(current, "model_fields", {}).get(part)
        if info:  # else: an index of a list, or a name in a mapping of models
            current = _model_in(info.annotation)
    known = list(getattr(current, "model_fields", {}))
    close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return "Axolotl's own keys belong under axolotl:"


def _model_in(annotation: Any) -> Any:
    """The pydantic model in ``Model``, ``list[Model]`` or ``dict[str, Model]``."""
    return next((a for a in typing.get_args(annotation) if hasattr(a, "model_fields")), annotation)


def bad_inputs(problems: Iterable[str]) -> BadInput:
    """One error carrying every problem, a line each."""
    return BadInput("\n".join(problems))


def parse_sample(text: str) -> float | int | None:
    """``10pct`` -> 0.1 (a share), ``5000`` -> 5000 (rows), ``full`` -> None.

    Raises:
        BadInput: not a sample, or outside 0..100 percent.
    """
    hint = "use a share like 10pct or 0.5pct, a row count like 5000, or full"
    if text == "full":
        return None
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return int(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)pct", text)
    if match and 0 < float(match[1]) <= 100:
        return float(match[1]) / 100
    raise BadInput(f"--sample {text!r} is not a sample", hint)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_name(config: Config, name: str | None) -> str:
    """``--name``, or ``<recipe>_<sample>_<profile>``.

    Raises:
        BadInput: a name that could leave ``work/training`` or hide a file.
    """
    chosen = name or f"{config.recipe_name}_{config.sample}_{config.profile_name}"
    if not _NAME.fullmatch(chosen) or ".." in chosen:
        raise BadInput(
            f"--name {chosen!r} cannot be a run's name",
            "use letters, digits, dot, dash and underscore; no slash, no ..",
        )
    return chosen


def build(
    recipe_name: str, profile_name: str, sample: str, overrides: Iterable[str] = ()
) -> Config:
    """Load and merge recipe < profile < overrides.

    Raises:
        BadInput: anything wrong in the files, the sample or an override; all of a
            file's problems come in one error, a line each.
    """
    parse_sample(sample)
    asked = (recipe_name, profile_name)
    recipe_name, recipe, recipe_file = load_recipe(recipe_name)
    profile_name, profile, profile_file = load_profile(profile_name)
    sets = [_parse_override(text) for text in overrides]
    recipe = _overridden(recipe, sets)
    merged = _Merged()
    merged.add(_own_keys(recipe, sample), lambda key: _own_origin(recipe_file, key, sample))
    for layer, source, model in (
        ("recipe", recipe_file, recipe.axolotl),
        ("profile", profile_file, profile.axolotl),
    ):
        _refuse_owned(model, lambda key, s=source: s.where(("axolotl", *key)))
        merged.add(
            model,
            lambda key, n=layer, s=source: Origin(n, s.where(("axolotl", *key))),
        )
    for key, value, text in sets:
        tree = _as_tree(key if key[0] != "epochs" else ("num_epochs",), value)
        if key[0] not in _RECIPE_ONLY:
            _refuse_owned(tree, lambda _, t=text: f"--set {t}")
            merged.add(tree, lambda _, t=text: Origin("--set", f"--set {t}"))
    _refuse_bad_datasets(merged)
    return Config(
        recipe_name, recipe, profile_name, profile, sample,
        tuple(overrides), *asked, merged.tree, merged.origins,
    )  # fmt: skip


def _refuse_bad_datasets(merged: "_Merged") -> None:
    datasets = merged.tree.get("datasets")
    if isinstance(datasets, list) and datasets and all(isinstance(d, dict) for d in datasets):
        return
    where = merged.origins[("datasets",)].where if ("datasets",) in merged.origins else "--set"
    raise BadInput(
        f"{where}: datasets must be a list of mappings, found {datasets!r}",
        "leave it out to use the recipe's corpus and format",
    )


_RECIPE_ONLY = {"corpus", "format", "suite"}


def _parse_override(text: str) -> tuple[KeyPath, Any, str]:
    name, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_][\w.]*", name.strip()):
        raise BadInput(f"--set {text!r} is not key=value", "example: --set learning_rate=1e-4")
    key: KeyPath = tuple(
        int(part) if part.isdigit() else part for part in name.strip().split(".") if part
    )
    if key[0] == "axolotl" and len(key) > 1:
        key = key[1:]
    return key, yamlfile.parse_value(value), text


def _overridden(recipe: Recipe, sets: list[tuple[KeyPath, Any, str]]) -> Recipe:
    own = {"epochs", "seed", "base_model", *_RECIPE_ONLY}
    changes = {str(key[0]): value for key, value, _ in sets if key[0] in own and len(key) == 1}
    try:
        return Recipe.model_validate({**recipe.model_dump(exclude_unset=True), **changes})
    except ValidationError as error:
        raise bad_inputs(
            f"--set {dotted(tuple(e['loc']))}: {e['msg'].lower()} (found {e['input']!r})"
            for e in error.errors()
        ) from error


def _own_keys(recipe: Recipe, sample: str) -> dict[str, Any]:
    settings = recipe.samples.get(sample, SampleSettings())
    return {
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
    }  # fmt: skip
    place = own[str(key[0])]
    if place not in source.lines:
        return Origin("default", f"{place[0]} (not set in {source.path.name})")
    return Origin("recipe", source.where(place))


def _refuse_owned(tree: dict[str, Any], where: Any) -> None:
    problems = [
        f"{where((name,))}: {name} is not yours to set here; {OWNED_KEYS[name]}"
        for name in tree
        if name in OWNED_KEYS
    ]
    if problems:
        raise bad_inputs(problems)


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
