"""Owns the Axolotl YAML: merged config + run paths + machine facts -> what is launched.

Pure: reads no file and asks no hardware. Does not merge layers; ``layers`` does.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leviathan import probe as probing
from leviathan.config import bad_inputs
from leviathan.layers import OWNED_KEYS, Config
from leviathan.origins import Origin
from leviathan.schema import AxolotlSchema
from leviathan.trackers import Tracking
from leviathan.yamlfile import KeyPath, dotted, dump

PLUGIN = "leviathan.plugin.LeviathanPlugin"

FLASH_ATTENTION = {"flash_attention_2", "flash_attention_3"}


@dataclass(frozen=True)
class Target:
    """Where one launch reads and writes."""

    run_dir: Path
    dataset: Path
    base_model: str
    session: int = 1
    resume_from: Path | None = None
    fingerprint: str = ""
    """Of the settings, for the commit records (``compatibility.fingerprint``)."""
    probe: probing.Probe | None = None
    """Makes it a run to be measured."""
    tracking: Tracking = field(default_factory=Tracking)
    """Where its curves go, besides its own files."""


@dataclass(frozen=True)
class Rendered:
    """The YAML to launch, and where each of its values comes from."""

    tree: dict[str, Any]
    origins: dict[KeyPath, Origin]
    notes: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    """What the training process needs besides."""

    def yaml(self) -> str:
        """The text Axolotl reads."""
        return dump(self.tree)

    def rows(self) -> list[tuple[str, Any, Origin]]:
        """Every leaf: dotted key, value, origin; for ``render --explain``."""
        return [(dotted(key), value, self._origin(key)) for key, value in leaves(self.tree)]

    def _origin(self, key: KeyPath) -> Origin:
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return Origin("leviathan", "derived")


def render(
    config: Config, target: Target, *, flash_attn: bool, gpu: bool, schema: AxolotlSchema | None
) -> Rendered:
    """The Axolotl configuration of one launch.

    Args:
        config: merged layers.
        target: paths of the launch.
        flash_attn: whether the flash_attn package is importable here.
        gpu: whether this machine has a CUDA GPU.
        schema: the installed Axolotl's keys; None skips the check and says so.

    Raises:
        BadInput: unknown keys or wrong types, all of them, a line each with file:line.
    """
    check_keys(config, schema)
    tree, origins = _copy(config.tree), dict(config.origins)
    notes = [] if schema else ["keys were not checked: axolotl is not installed here"]
    _fall_back(tree, origins, notes, flash_attn=flash_attn, gpu=gpu)
    _track(tree, origins, target.tracking)
    _place(tree, origins, config, target)
    return Rendered(tree, origins, tuple(notes), target.tracking.environment)


def check_keys(config: Config, schema: AxolotlSchema | None) -> None:
    """Refuse what Axolotl would drop, or do wrong, silently.

    Raises:
        BadInput: every unknown key and wrong type, a line each with file:line.
    """
    lines = [*config.problems, *(_unknown_keys(config, schema) if schema else ())]
    lines += _inexact_shards(config)
    if lines:
        raise bad_inputs(lines)


def _inexact_shards(config: Config) -> list[str]:
    """FSDP with whole states does not resume an adapter: it goes on from other weights.

    Measured with Axolotl 0.19 on two processes: PEFT puts whole tensors where the pieces are.
    """
    fsdp = config.tree.get("fsdp_config")
    if not fsdp or not isinstance(fsdp, dict) or not config.tree.get("adapter"):
        return []
    # Axolotl takes the older name with the prefix, too.
    if "SHARDED_STATE_DICT" in (fsdp.get("state_dict_type"), fsdp.get("fsdp_state_dict_type")):
        return []
    return [f"{config.origin(('fsdp_config', next(iter(fsdp)))).where}: with an adapter, "
            "fsdp_config needs state_dict_type: SHARDED_STATE_DICT; from whole states a resume "
            "goes wrong without a word"]  # fmt: skip


def _unknown_keys(config: Config, schema: AxolotlSchema) -> list[str]:
    plugins = [str(plugin) for plugin in config.tree.get("plugins") or []]
    foreign = any(not plugin.startswith("axolotl.integrations.") for plugin in plugins)
    problems = [
        problem
        for problem in schema.check(config.tree, plugins)
        # A plugin of the user's own may define any top-level key.
        if problem.key[0] not in OWNED_KEYS
        and not (foreign and len(problem.key) == 1 and "not a key" in problem.message)
    ]
    lines = [f"{config.origin(p.key).where}: {p.message}; {p.hint}" for p in problems]
    # A rung is taken days later, unattended: its keys are checked now.
    for where, name, value in config.rung_keys:
        found = schema.check({name: value}, plugins)
        lines += [f"{where}: {p.message}; {p.hint}" for p in found]
    return lines


def _fall_back(
    tree: dict[str, Any],
    origins: dict[KeyPath, Origin],
    notes: list[str],
    *,
    flash_attn: bool,
    gpu: bool,
) -> None:
    wanted = tree.get("attn_implementation")
    if wanted not in FLASH_ATTENTION or (flash_attn and gpu):
        return
    why = "flash-attn is not installed here" if gpu else "there is no GPU here"
    tree["attn_implementation"] = "sdpa"
    origins[("attn_implementation",)] = Origin("fallback", f"{why}; {wanted} was asked for")
    notes.append(f"attn_implementation falls back from {wanted} to sdpa: {why}")


def _track(tree: dict[str, Any], origins: dict[KeyPath, Origin], tracking: Tracking) -> None:
    for name in tracking.gone:
        del tree[name]
    for name, value in tracking.keys.items():
        if tree.get(name) != value:
            tree[name] = value
            origins[(name,)] = tracking.origin


def _place(
    tree: dict[str, Any], origins: dict[KeyPath, Origin], config: Config, target: Target
) -> None:
    run_dir = str(target.run_dir)
    tree["base_model"] = target.base_model
    for dataset in tree["datasets"][:1]:
        dataset.setdefault("path", str(target.dataset))
        dataset.setdefault("ds_type", "json")
    origins[("datasets", 0, "path")] = Origin("leviathan", f"sample {config.sample}")
    owned: dict[str, Any] = {
        "output_dir": run_dir,
        "dataset_prepared_path": str(target.run_dir / "prepared"),
        "plugins": [*(tree.get("plugins") or []), PLUGIN],
        "leviathan": {
            "run_dir": run_dir,
            "session": target.session,
            "keep": config.profile.checkpoints.keep,
            "fingerprint": target.fingerprint,
            "guards": config.profile.guards.model_dump(exclude_none=True),
        },
        # Retention is Leviathan's, by step (docs/checkpoints.md); Axolotl's default is 4.
        "save_total_limit": 1_000_000,
    }
    for name in ("whole", "every_hours"):
        if (value := getattr(config.profile.checkpoints, name)) is not None:
            owned["leviathan"][name] = value
    if target.resume_from:
        owned["resume_from_checkpoint"] = str(target.resume_from)
    for name, value in owned.items():
        tree[name] = value
        if name != "plugins" or (name,) not in origins:
            origins[(name,)] = Origin("leviathan", "run directory")
    origins["leviathan", "guards"] = Origin("profile", f"guards of {config.profile_name}")
    for name in config.profile.checkpoints.model_fields_set | {"keep"}:
        where = f"checkpoints.{name} of {config.profile_name}"
        origins["leviathan", name] = Origin("profile", where)
    if target.probe:
        _make_probe(tree, origins, target.probe)


def _make_probe(tree: dict[str, Any], origins: dict[KeyPath, Origin], probe: probing.Probe) -> None:
    wanted, gone = probing.overlay(tree, probe)
    for name in gone:
        del tree[name]
    for name, value in wanted.items():
        tree[name] = value
        origins[(name,)] = Origin("leviathan", "a probe's own")
    tree["leviathan"]["probe"] = {"warm_up": probe.warm_up, "worst_rows": probe.worst_rows}
    if probe.cap:
        tree["leviathan"]["probe"]["limit_gib"] = probe.cap.gib + probe.cap.held_gib


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _copy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def leaves(value: Any, key: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Every value of a tree that is no tree itself, with its place; plain lists are values."""
    if isinstance(value, dict) and value:
        return [leaf for name, item in value.items() for leaf in leaves(item, (*key, name))]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*key, i))]
    return [(key, value)]
