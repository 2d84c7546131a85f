"""Owns where a run's curves go besides its own files: TensorBoard, wandb, Trackio, MLflow.

Says which Axolotl keys and environment variables that takes; pure, but for ``look``. Does not
render them (``render``), nor keep a failing tracker from ending training (``reporters``).
"""

import importlib.util
import json
import netrc
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xxhash

from leviathan.errors import BadInput
from leviathan.layers import Config
from leviathan.origins import Origin

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")
FOLDER = "tensorboard"
"""Of a run's directory: the event files of all its sessions, which TensorBoard draws as one."""

# Comet is not offered, but a user's own keys of it are respected.
_FAMILIES = {name: (f"use_{name}", f"{name}_") for name in (*NAMES, "comet")} | {
    "mlflow": ("use_mlflow", "mlflow_", "hf_mlflow_")
}
# Axolotl turns a tracker on that has one of these, whatever its switch says.
_TURNS_ON = {
    "wandb_project": "wandb",
    "trackio_project_name": "trackio",
    "mlflow_experiment_name": "mlflow",
    "comet_project_name": "comet",
}
_WANDB_OFFLINE = {"offline", "disabled", "dryrun"}
_LONGEST_TAG = 64  # wandb's limit
_WANDB_FINISH_S = 300


@dataclass(frozen=True)
class Here:
    """What this machine has for trackers."""

    installed: frozenset[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    wandb_login: bool = True
    wandb_workspace: bool = False
    """``wandb offline`` and the like left settings in this directory, which must be found."""


@dataclass(frozen=True)
class Run:
    """What of a run its trackers are told."""

    name: str
    directory: Path
    recipe: str
    profile: str
    sample: str
    begun: float | None = None
    """When; None before its record is written."""
    beginning: int = 1
    """How often it was begun anew, this time included."""

    @property
    def title(self) -> str:
        """Its name, told from those of earlier beginnings."""
        return self.name if self.beginning == 1 else f"{self.name}-{self.beginning}"

    @property
    def identity(self) -> str | None:
        """The same for all sessions that resume it, wherever they run; None while unknown."""
        if self.begun is None:
            return None
        digest = xxhash.xxh3_64_hexdigest(f"{self.name} {self.begun!r}".encode())
        return f"{self.name}-{digest[:8]}"

    @property
    def tags(self) -> dict[str, str]:
        return {"profile": self.profile, "recipe": self.recipe, "sample": self.sample}


@dataclass(frozen=True)
class Tracking:
    """What a launch needs so that its trackers record it."""

    on: tuple[str, ...] = ()
    why: str = ""
    """Who chose them."""
    keys: dict[str, Any] = field(default_factory=dict)
    """Axolotl keys to set."""
    gone: tuple[str, ...] = ()
    """Axolotl keys to take out: they would turn on what was not chosen."""
    environment: dict[str, str] = field(default_factory=dict)
    """For the training process; what the user has set in his own wins."""

    @property
    def origin(self) -> Origin:
        return Origin("track", self.why)


def parse(words: Iterable[str] | None) -> tuple[str, ...] | None:
    """The trackers named by ``--track``; none given at all is None, ``none`` is empty.

    Raises:
        BadInput: a name that is none.
    """
    named = [word.strip() for text in words or () for word in text.split(",")]
    if not named:
        return None
    wrong = next((word for word in named if word not in (*NAMES, "none")), None)
    if wrong is not None:
        raise BadInput(f"--track {wrong!r} is no tracker", f"choose from {', '.join(NAMES)}, none")
    if "none" in named and len(set(named)) > 1:
        raise BadInput("--track none excludes every other tracker", "give one or the other")
    return tuple(name for name in NAMES if name in named)


def look(environment: Mapping[str, str] = os.environ) -> Here:
    """Find out what this machine has, importing none of it."""
    found = frozenset(name for name in NAMES if importlib.util.find_spec(name))
    workspace = Path(environment.get("WANDB_DIR", "."), "wandb", "settings").exists()
    return Here(found, environment, workspace or _wandb_login(environment), workspace)


def _wandb_login(environment: Mapping[str, str]) -> bool:
    """Whether wandb would find a key without asking for one."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environment.get("HOME", "~")).expanduser()
    own = Path(environment.get("WANDB_CONFIG_DIR", home / ".config/wandb"), "settings")
    if own.exists():  # it may hold a key or another server: wandb knows
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    files = [environment["NETRC"]] if "NETRC" in environment else [home / ".netrc", home / "_netrc"]
    return any(_knows(Path(file).expanduser(), host) for file in files)


def _knows(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def is_key(key: str) -> bool:
    """Whether an Axolotl key is a tracker's."""
    return any(_is_of(key, family) for family in _FAMILIES)


def _is_of(key: str, family: str) -> bool:
    switch, *prefixes = _FAMILIES[family]
    return key == switch or key.startswith(tuple(prefixes))


def chosen(
    asked: tuple[str, ...] | None, tree: dict[str, Any], installed: frozenset[str]
) -> tuple[tuple[str, ...], str]:
    """The trackers of a run, and who chose them: ``--track``, the user's keys, or we."""
    if asked is not None:
        return asked, f"--track {','.join(asked) or 'none'}"
    if any(map(is_key, tree)):
        return tuple(name for name in NAMES if _is_on(name, tree)), "goes with the keys set"
    return (("tensorboard",), "installed here") if "tensorboard" in installed else ((), "")


def _is_on(name: str, tree: dict[str, Any]) -> bool:
    named = any(tree.get(key) for key, family in _TURNS_ON.items() if family == name)
    return bool(named or tree.get(f"use_{name}"))


def of(asked: tuple[str, ...] | None, config: Config, run: Run, here: Here) -> Tracking:
    """The keys and the environment of a run's trackers.

    A key the user has set, in YAML or by its environment variable, stays as it is; but with
    ``--track`` exactly the named trackers are on.
    """
    tree = config.tree
    on, why = chosen(asked, tree, here.installed)
    wanted: dict[str, Any] = {}
    environment: dict[str, str] = {}
    for name in on:
        keys, variables = _SETTINGS[name](run)
        wanted |= {f"use_{name}": True} | _unset(keys, tree, here.environment)
        environment |= variables
    if here.wandb_workspace:
        environment.pop("WANDB_DIR", None)
    off = [family for family in _FAMILIES if family not in on] if asked is not None else []
    gone = tuple(key for key in tree if any(_is_of(key, family) for family in off))
    return Tracking(on, why, wanted, gone, environment)


def _unset(
    keys: dict[str, Any], tree: dict[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    return {
        key: value
        for key, value in keys.items()
        if value is not None and tree.get(key) is None and not environment.get(key.upper())
    }


def _tensorboard(run: Run) -> tuple[dict[str, Any], dict[str, str]]:
    return {}, {"TENSORBOARD_LOGGING_DIR": str(run.directory / FOLDER)}


def _wandb(run: Run) -> tuple[dict[str, Any], dict[str, str]]:
    keys = {
        "wandb_project": run.recipe,
        "wandb_name": run.title,
        "wandb_run_id": run.identity,
    }
    tags = ",".join(tag.replace(",", " ")[:_LONGEST_TAG] for tag in run.tags.values())
    return keys, {
        "WANDB_RESUME": "allow",
        "WANDB_TAGS": tags,
        "WANDB_DIR": str(run.directory),
        # Without a network it would wait for ever at the end, which looks like a stall; what
        # is not sent stays in the directory.
        "WANDB_FINISH_TIMEOUT": str(_WANDB_FINISH_S),
    }


def _trackio(run: Run) -> tuple[dict[str, Any], dict[str, str]]:
    # It goes on with the run of the same name in the same project.
    return {"trackio_project_name": run.recipe, "trackio_run_name": run.title}, {}


def _mlflow(run: Run) -> tuple[dict[str, Any], dict[str, str]]:
    tags = {**run.tags, **({"leviathan.run": run.identity} if run.identity else {})}
    return (
        {"mlflow_experiment_name": run.recipe, "mlflow_run_name": run.title},
        {"MLFLOW_TAGS": json.dumps(tags)},
    )


_SETTINGS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}


def refuse_unusable(asked: tuple[str, ...] | None, tree: dict[str, Any], here: Here) -> None:
    """Say now what would fail once the model is loaded.

    Raises:
        BadInput: a tracker is not installed, or wandb would ask for a key.
    """
    on, why = chosen(asked, tree, here.installed)
    missing = [name for name in on if name not in here.installed]
    if missing:
        raise BadInput(
            f"{' and '.join(missing)} ({why}) {'are' if len(missing) > 1 else 'is'} not installed",
            f"pip install {' '.join(missing)}, or --track none",
        )
    if "wandb" in on and not here.wandb_login and not _wandb_stays_here(tree, here.environment):
        raise BadInput(
            "wandb has no key here and would ask for one",
            "wandb login, or export WANDB_API_KEY; WANDB_MODE=offline records into the run's "
            "directory instead",
        )


def _wandb_stays_here(tree: dict[str, Any], environment: Mapping[str, str]) -> bool:
    mode = tree.get("wandb_mode") or environment.get("WANDB_MODE") or ""
    return str(mode).lower() in _WANDB_OFFLINE
