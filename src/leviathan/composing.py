"""Owns composing a recipe with its mode and its stage: whose word counts for which key.

Pure. Does not read files (``config``), nor bring profile and ``--set`` in (``layers``).
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from leviathan.errors import BadInput
from leviathan.recipe import Recipe
from leviathan.yamlfile import KeyPath, YamlFile

# What an overlay says of itself, not of the training.
_ABOUT_ITSELF = {"name", "description", "start", "sample", "stages", "axolotl", "checkpoints"}
WHOLE = "full"
"""The mode that every recipe has: itself, unless it calls one of its own so."""
_INSTEAD = ({"epochs"}, {"total_tokens"})  # each of them says how long; the upper one counts


@dataclass(frozen=True)
class Layer:
    """What one overlay says: below ``--set``, above the profile."""

    name: str
    place: KeyPath
    """Where in the recipe's file it stands."""
    data: dict[str, Any]

    @property
    def axolotl(self) -> dict[str, Any]:
        """Its raw Axolotl keys."""
        return dict(self.data.get("axolotl") or {})

    @property
    def own(self) -> dict[str, Any]:
        """Its keys of the recipe."""
        return {key: value for key, value in self.data.items() if key not in _ABOUT_ITSELF}


@dataclass(frozen=True)
class Composition:
    """A recipe for one stage in one mode."""

    data: dict[str, Any]
    """The recipe's keys as they are for it; without ``stages`` and ``modes``."""
    layers: tuple[Layer, ...]
    """The overlays in it, lowest first."""
    places: dict[str, tuple[str, KeyPath]]
    """Layer and place of every top-level key."""
    mode: str
    stage: str
    stages: tuple[str, ...]
    """All stages of the recipe, in order."""


def compose(source: YamlFile, recipe: Recipe, mode: str, stage: str) -> Composition:
    """The recipe in ``source`` for a mode and a stage; "" for none, and for the first stage.

    Mode full is none, too.

    Raises:
        BadInput: no such mode or stage; the message names those there are.
    """
    stages = tuple(s.name for s in recipe.stages)
    mode = "" if mode == WHOLE and mode not in recipe.modes else mode
    _refuse_unknown(source, "mode", mode, recipe.modes)
    _refuse_unknown(source, "stage", stage, stages)
    stage = stage or (stages[0] if stages else "")
    layers = tuple(_layers(source.data, stages, mode, stage))
    data = {k: v for k, v in source.data.items() if k not in ("stages", "modes")}
    places: dict[str, tuple[str, KeyPath]] = {key: ("recipe", (key,)) for key in data}
    for layer in layers:
        for key, value in layer.own.items():
            # A model's keys belong together: depth and width of two models make no third one.
            data[key] = value if key == "model" else merged(data.get(key), value)
            places[key] = (layer.name, (*layer.place, key))
        _drop_replaced(data, layer.own)
    return Composition(data, layers, places, mode, stage, stages)


def axolotl_blocks(recipe: Recipe) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Every block of raw Axolotl keys in a recipe's file, with its place."""
    yield ("axolotl",), recipe.axolotl
    for number, stage in enumerate(recipe.stages):
        yield ("stages", number, "axolotl"), stage.axolotl
    for name, mode in recipe.modes.items():
        yield ("modes", name, "axolotl"), mode.axolotl
        for stage_name, overlay in mode.stages.items():
            yield ("modes", name, "stages", stage_name, "axolotl"), overlay.axolotl


def merged(lower: Any, upper: Any) -> Any:
    """``upper`` over ``lower``: mappings key by key, anything else replaced."""
    if not (isinstance(lower, dict) and isinstance(upper, dict)):
        return upper
    both = {**lower, **upper}
    return {key: merged(lower.get(key), both[key]) if key in upper else both[key] for key in both}


def _drop_replaced(data: dict[str, Any], own: dict[str, Any]) -> None:
    for one, other in (_INSTEAD, _INSTEAD[::-1]):
        if one & set(own) and not other & set(own):
            for key in other:
                data.pop(key, None)


def _layers(
    data: dict[str, Any], stages: tuple[str, ...], mode: str, stage: str
) -> Iterator[Layer]:
    if mode:
        yield Layer(f"mode {mode}", ("modes", mode), data["modes"][mode] or {})
    if stage:
        index = stages.index(stage)
        yield Layer(f"stage {stage}", ("stages", index), data["stages"][index])
    of_both = ((data["modes"][mode] or {}).get("stages") or {} if mode else {}).get(stage)
    if of_both:
        name = f"mode {mode}, stage {stage}"
        yield Layer(name, ("modes", mode, "stages", stage), of_both)


def _refuse_unknown(source: YamlFile, kind: str, asked: str, known: Iterable[str]) -> None:
    names = list(known)
    if not asked or asked in names:
        return
    if not names:
        raise BadInput(f"{source.path} has no {kind}s, and {asked} was asked for",
                       f"leave out --{kind}")  # fmt: skip
    close = difflib.get_close_matches(asked, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"{source.path} has no {kind} {asked!r}", f"{hint}it has: {', '.join(names)}")
