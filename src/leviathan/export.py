"""Owns what of a training goes to another machine: its command, configs, data, versions.

Finds and judges it; draws the sample where it lacks. Does not write the bundle (``bundle``)
nor know where it goes (``skypilot``, ``cluster``, ``remote``).
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from leviathan import config as configs
from leviathan import (
    corpus,
    files,
    hazards,
    hooks,
    labels,
    layers,
    machine,
    redaction,
    render,
    runs,
    samples,
    schema,
    scratch,
    trackers,
    yamlfile,
)
from leviathan.budget import Budget
from leviathan.config import bad_inputs
from leviathan.errors import BadInput
from leviathan.layers import Config
from leviathan.overrides import CHOICES
from leviathan.samples import Sample

GRACE_S = 600
"""Seconds a stop may take where no run tells: a step, then a save that is hashed and synced."""
_GRACE_LEAST_S, _GRACE_MOST_S = 120, 3600
_HUB_SECRET = "HF_TOKEN"  # noqa: S105 - the name of a variable
_TRACKER_SECRETS = {"wandb": "WANDB_API_KEY"}
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Carried:
    """A large file that training reads: listed in the bundle, copied only when asked for."""

    source: Path
    """Absolute, here."""
    name: str
    """Where training looks for it there, relative to the bundle's directory."""
    bytes: int
    known: str = ""
    """Its digest, where that is known already."""

    @property
    def digest(self) -> str:
        """``xxh3_128:<hex>``; of 16 GB it is made when it is asked for."""
        return self.known or corpus.known_digest(self.source)


@dataclass(frozen=True)
class Export:
    """One training, ready to be described for another machine."""

    run: str
    config: Config
    command: tuple[str, ...]
    """Words of the command that begins or goes on with it, ``leviathan`` the first."""
    texts: dict[str, bytes]
    """Small files by their place in the bundle: configs and the sample's manifest."""
    carried: tuple[Carried, ...]
    secrets: tuple[str, ...]
    """Names of the variables that training wants, never their values."""
    versions: dict[str, str]
    grace_s: int
    nodes: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one host; 0 for a CPU profile."""
        hardware = self.config.profile.hardware
        return hardware.count if hardware.device == "cuda" else 0


@dataclass(frozen=True)
class Wanted:
    """What was asked for: a run, or the options of a new one; unset options are the run's."""

    run: str | None = None
    profile: str | None = None
    recipe: str | None = None
    sample: str | None = None
    name: str | None = None
    sets: tuple[str, ...] = ()
    max_hours: float | None = None
    budget_usd: float | None = None
    usd_hour: float | None = None
    nodes: int | None = None
    """Hosts; None: the profile's."""
    more: tuple[str, ...] = ()
    """Other words of ``train``: --track, --shrink, --smoke."""
    secrets: tuple[str, ...] = ()
    grace_s: int | None = None


def of(wanted: Wanted, progress: corpus.Progress | None = None, *, draw: bool = True) -> Export:
    """Everything the other machine needs, found here.

    Args:
        wanted: the run or the plan.
        progress: told of reading the corpus, where the sample has yet to be drawn.
        draw: without it nothing is written, and a sample that was not drawn yet is not in it.

    Raises:
        BadInput: wrong names or keys, no corpus, a secret in what would go along.
    """
    paths = runs.find(wanted.run) if wanted.run else None
    record = runs.read(paths) if paths else None
    merged = _config(wanted, record)
    _refuse_several(merged)
    render.check_keys(merged, schema.load())
    Budget(wanted.max_hours, wanted.budget_usd, wanted.usd_hour or merged.profile.price_usd_hour)
    more_words = wanted.more or (repeated(record.again) if record else ())
    secrets = _secrets(merged, more_words, wanted.secrets)
    run = wanted.name or (record.name if record else layers.run_name(merged, None))
    run = layers.run_name(merged, run)
    texts, moved = _configs(merged)
    sample = _sample(merged, progress, draw=draw)
    carried, more, replaced = _data(merged, sample)
    texts |= more
    _refuse_secrets(texts)
    command = (*_command(run, merged, moved | replaced, wanted), *more_words)
    return Export(
        run, merged, command, texts,
        tuple(carried), secrets, record.versions if record else machine.versions(),
        wanted.grace_s or (_grace_s(paths) if paths else GRACE_S),
        merged.profile.hardware.nodes,
    )  # fmt: skip


def _refuse_several(config: Config) -> None:
    """A bundle is of one training: it carries one sample and one base model."""
    if config.stages and not any(text.startswith("stage=") for text in config.overrides):
        raise BadInput(
            f"{config.recipe_name} is trained in stages ({', '.join(config.stages)}), and a bundle "
            "is of one", f"say which: --set stage={config.stages[0]}",
        )  # fmt: skip
    if config.before and config.lacks_base:
        raise BadInput(
            f"stage {config.stage} begins with the model of {config.before}, which is not here",
            f"train that first, or pull its run: leviathan train --until {config.before}",
        )


def _config(wanted: Wanted, record: runs.RunRecord | None) -> Config:
    told = asked(record) if record else {}
    nodes = [] if wanted.nodes is None else [f"hardware.nodes={wanted.nodes}"]
    return layers.build(
        wanted.recipe or told.get("recipe", "leviathan"),
        wanted.profile or told.get("profile", "a4000"),
        wanted.sample or (record.sample if record else None),
        [*(overrides(record) if record else []), *wanted.sets, *nodes],
    )


def overrides(record: runs.RunRecord) -> list[str]:
    """Those of the newest session, whose command is kept."""
    words = shlex.split(record.again)
    told = [after for before, after in pairwise(words) if before == "--set"]
    chosen = [text for text in record.overrides if text.partition("=")[0] in CHOICES]
    return [*told, *chosen] if words else list(record.overrides)


def asked(record: runs.RunRecord) -> dict[str, str]:
    """What the run's profile and recipe were called: a file's path is in its command only."""
    found = {"recipe": record.recipe, "profile": record.profile}
    words = shlex.split(record.again)
    for option, value in pairwise(words):
        name = option.removeprefix("--")
        if name in found:
            found[name] = value
    return found


def repeated(again: str) -> tuple[str, ...]:
    """Of the command that goes on with a run, what ``train`` was told beside its settings."""
    words, kept = shlex.split(again), list[str]()
    for number, word in enumerate(words):
        if word in {"--shrink", "--smoke", "--no-smoke"}:
            kept.append(word)
        elif word == "--track":
            kept += words[number : number + 2]
    return tuple(kept)


# --- the command -------------------------------------------------------------------------


def _command(run: str, config: Config, replaced: dict[str, str], wanted: Wanted) -> tuple[str, ...]:
    words = ["leviathan", "train"]
    for name, value in (
        ("--profile", _plain(config.profile_name)),
        ("--recipe", _plain(config.recipe_name)),
        ("--sample", config.sample),
        ("--name", run),
    ):
        words += [name, value]
    for text in config.overrides:
        if text.partition("=")[0].strip().removeprefix("axolotl.") not in replaced:
            words += ["--set", text]
    for key, value in replaced.items():
        words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    limits = {"--max-hours": wanted.max_hours, "--budget-usd": wanted.budget_usd,
              "--usd-hour": wanted.usd_hour}  # fmt: skip
    for name, limit in limits.items():
        if limit is not None:
            words += [name, f"{limit:.15g}"]
    return tuple(words)


# --- configs -----------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A config's name for a file anywhere: a ConfigMap's key, a mount, a shell's word."""
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    return name if plain else labels.label(name)


def _configs(config: Config) -> tuple[dict[str, bytes], dict[str, str]]:
    """Copies of the profile, the recipe and the suite, and settings that name them anew."""
    profile = configs.find("profiles", config.profile_asked)
    recipe = configs.find("recipes", config.recipe_asked)
    texts = {
        f"configs/profiles/{_plain(config.profile_name)}.yaml": profile.read_bytes(),
        f"configs/recipes/{_plain(config.recipe_name)}.yaml": recipe.read_bytes(),
    }
    suite = config.recipe.suite
    if suite is None:
        return texts, {}
    path = _suite(suite)
    if path is None:  # training reads none
        return texts, {}
    texts[f"configs/suites/{_plain(path.stem)}.yaml"] = path.read_bytes()
    return texts, {} if suite == _plain(path.stem) else {"suite": _plain(path.stem)}


def _suite(name: str) -> Path | None:
    if name.endswith((".yaml", ".yml")):
        return Path(name) if Path(name).is_file() else None
    return configs.names("suites").get(name)


# --- secrets -----------------------------------------------------------------------------


def _secrets(config: Config, words: Iterable[str], named: Iterable[str]) -> tuple[str, ...]:
    """Variables that training wants there: the hub's token, hooks' addresses, trackers' keys.

    Raises:
        BadInput: something that is no variable's name, most likely the secret itself.
    """
    for name in named:
        if not _VARIABLE_NAME.fullmatch(name) or redaction.redact(name) != name:
            raise BadInput(
                "--secret takes the name of a variable, not its value", "example: --secret HF_TOKEN"
            )
    found = set(named)
    base = str(config.tree["base_model"])
    if scratch.path_or_hub(config) == base:
        found.add(_HUB_SECRET)
    told = list(words)
    named_here = [told[at + 1] for at, word in enumerate(told) if word == "--track"]
    on, _ = trackers.chosen(trackers.parse(named_here), config.tree, frozenset())
    found |= {key for tracker, key in _TRACKER_SECRETS.items() if tracker in on}
    for number, hook in enumerate(config.profile.notify):
        found |= _hook_variable(hook, number)
    return tuple(sorted(found))


def _hook_variable(hook: hooks.Hook, number: int) -> set[str]:
    address = hook.webhook.get_secret_value() if hook.webhook else ""
    if not address:
        return set()
    variable = hooks.VARIABLE.fullmatch(address)
    if variable is None:
        raise BadInput(
            f"notify.{number}.webhook is an address, and whoever has it can write there",
            "name its variable in the profile, webhook: $NAME; the bundle then names that",
        )
    return {variable[1] or variable[2]}


def _refuse_secrets(texts: dict[str, bytes]) -> None:
    """Nothing that looks like a secret leaves, wherever in a file it stands, comments too."""
    problems = []
    for name, data in texts.items():
        for begin, kind, shown in hazards.find(data):
            line = data.count(b"\n", 0, begin) + 1
            if kind == "secret":
                problems.append(f"{name}:{line}: what looks like a key ({shown})")
        if name.endswith(".yaml"):
            tree = yamlfile.parse_value(data.decode())
            problems += [
                f"{name}: {yamlfile.dotted(key)} holds {what}"
                for key, what in redaction.secrets_in(tree)
                if key[0] != "notify"
            ]
    if problems:
        raise bad_inputs(
            f"{problem}; a bundle holds no secret: keep it in a variable, and name that "
            "with --secret" for problem in problems
        )  # fmt: skip


# --- data --------------------------------------------------------------------------------


def _wish(config: Config) -> samples.Wish:
    recipe = config.recipe
    return samples.Wish(Path(recipe.corpus), config.sample, recipe.seed, samples.DIRECTORY)


def _sample(config: Config, progress: corpus.Progress | None, *, draw: bool) -> Sample | None:
    wish, fields = _wish(config), layers.row_fields(config)
    if draw:
        return samples.draw(wish, fields, progress)
    corpus.check_head(samples.readable(wish), fields)
    return samples.already_drawn(wish)


def _data(
    config: Config, sample: Sample | None
) -> tuple[list[Carried], dict[str, bytes], dict[str, str]]:
    """The sample and the local base model; the sample's manifest; paths that must change."""
    more, moved = _base_model(config)
    if sample is None:
        return more, {}, moved
    wish = _wish(config)
    path, drawn = wish.corpus, Path(sample.path)
    replaced, texts = dict[str, str](), dict[str, bytes]()
    if drawn == path:
        name = _inside(path)
        if name is None:
            name = replaced["corpus"] = f"corpus/{_plain(path.stem)}{path.suffix}"
    else:
        name = drawn.as_posix()
        # Its times say nothing there: it is known by its bytes (``samples``).
        manifest = {**samples.as_document(sample), "mtime_ns": 0, "source_mtime_ns": 0}
        document = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        texts[wish.manifest.as_posix()] = document.encode()
    carried = [Carried(drawn.resolve(), name, sample.bytes, sample.digest)]
    return carried + more, texts, replaced | moved


def _base_model(config: Config) -> tuple[list[Carried], dict[str, str]]:
    directory = Path(config.tree["base_model"])
    if not directory.is_dir():
        return [], {}
    name, moved = _inside(directory), dict[str, str]()
    if name and config.makes_base:  # there it is given: the stage before is not there
        moved["base_model"] = name
    if name is None:
        name = moved["base_model"] = f"base_model/{_plain(directory.resolve().name)}"
    found = [
        Carried(path.resolve(), f"{name}/{path.relative_to(directory).as_posix()}",
                path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not _hidden(path.relative_to(directory))
    ]  # fmt: skip
    return found, moved


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _inside(path: Path) -> str | None:
    """``path`` as a place below the bundle's directory; None where it can be none."""
    pure = PurePosixPath(path.as_posix())
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        return None
    return None if any("\n" in part or "\0" in part for part in pure.parts) else str(pure)


# --- how long a stop takes ---------------------------------------------------------------


def _grace_s(paths: runs.RunPaths) -> int:
    """Seconds in which this run's longest step ends and its longest save commits, twice over."""
    step_s = max(_steps_s(runs.metrics(paths)), default=0.0)
    saves = [files.number(e.get("save_s")) for e in runs.events(paths) if e["event"] == "save"]
    save_s = max((s for s in saves if s), default=0.0)
    if not step_s and not save_s:
        return GRACE_S
    return min(max(math.ceil(2 * (step_s + save_s) + 60), _GRACE_LEAST_S), _GRACE_MOST_S)


def _steps_s(lines: Sequence[dict[str, Any]]) -> Iterable[float]:
    """Seconds of each logged step, an evaluation before it included: a stop waits for that, too."""
    for before, after in pairwise(lines):
        begin, end = (files.number(line.get("monotonic_s")) for line in (before, after))
        steps = after["step"] - before["step"]
        if begin and end and end > begin and steps > 0 and _same_session(before, after):
            yield (end - begin) / steps


def _same_session(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.get("session") == after.get("session")
