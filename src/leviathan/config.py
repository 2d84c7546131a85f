"""Owns profiles and recipes: what their files may say, finding them, reading them.

Does not merge them (``layers``) nor know Axolotl's keys (``schema``). Both kinds of file
carry an ``axolotl:`` block of raw Axolotl keys; Leviathan's own keys live beside it.
"""

import difflib
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from leviathan import compatibility, schema, yamlfile
from leviathan.errors import BadInput
from leviathan.hooks import Hook
from leviathan.recipe import STRICT, Recipe
from leviathan.yamlfile import KeyPath, YamlFile, dotted

Kind = Literal["profiles", "recipes"]
Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = STRICT


class Variant(_Strict):
    """The same card in another form (PCIe instead of SXM); what it leaves out is as above it."""

    gpu: str
    """The form's name as people say it."""
    nvml_names: list[str] = Field(min_length=1)
    """Its names in nvidia-smi, like the card's own."""
    bf16_tflops: float | None = Field(None, gt=0)
    """Dense bf16 peak in TFLOPS, where it differs."""
    memory_gb_s: float | None = Field(None, gt=0)
    """Memory bandwidth in GB/s, where it differs."""
    power_w: float | None = Field(None, gt=0)
    """Power limit in watts, where it differs."""


class Hardware(_Strict):
    """What the machine class is, from its vendor's data sheet."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where training runs. A cuda profile is refused on a machine without such a GPU."""
    gpu: str | None = None
    """The card's name as people say it; for display."""
    count: int = Field(1, ge=1)
    """Processes to launch on one host: one per GPU."""
    nodes: int = Field(1, ge=1)
    """Hosts that train together, each such a machine (``train --nodes``)."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of one process (OMP_NUM_THREADS); unset, accelerate decides."""
    memory_gib: float | None = Field(None, gt=0)
    """Memory of one GPU in GiB: nvidia-smi's MiB / 1024, not the data sheet's GB."""
    bf16_tflops: float | None = Field(None, gt=0)
    """Dense bf16 peak of one GPU in TFLOPS with fp32 accumulation: not a data sheet's sparse
    figure, nor a GeForce card's twice as high one for fp16 accumulation. For a card without
    bf16 its fp16 peak."""
    memory_gb_s: float | None = Field(None, gt=0)
    """Memory bandwidth of one GPU in GB/s."""
    power_w: float | None = Field(None, gt=0)
    """Power limit of one GPU in watts."""
    system_power_w: float | None = Field(None, ge=0)
    """What the rest of the machine draws while training, in watts; for the cost of energy."""
    link_gb_s: float | None = Field(None, gt=0)
    """What one GPU sends to the others in GB/s, one direction (NVLink or PCIe)."""
    network_gb_s: float | None = Field(None, gt=0)
    """What one host sends to another in GB/s, one direction; counts with several nodes."""
    compute_capability: str | None = Field(None, pattern=r"^sm_\d+[a-z]?$")
    """CUDA architecture, as ``sm_86``."""
    nvml_names: list[str] = []
    """The card's names in nvidia-smi, without a leading NVIDIA; in any case, * for anything.
    ``profiles detect`` knows the card's facts by them."""
    variants: list[Variant] = []
    """Other forms of the card that suit the same knobs."""

    @property
    def processes(self) -> int:
        """Of all hosts: one per GPU."""
        return self.count * self.nodes


class Prices(_Strict):
    """What providers ask for such a machine; to be edited, prices move."""

    as_of: str = Field(pattern=r"^\d{4}(-\d\d(-\d\d)?)?$", coerce_numbers_to_str=True)
    """When these were the prices: 2025, 2025-11 or 2025-11-30."""
    usd_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Dollars an hour by provider, for one machine: all GPUs of one host."""


class CheckpointPolicy(_Strict):
    """How many checkpoints a run keeps, and how much of them."""

    keep: int = Field(3, ge=1)
    """Newest checkpoints kept on disk; the best one is kept besides."""
    whole: int | None = Field(None, ge=1)
    """So many of the newest keep their optimizer; older ones are slimmed: good for all but
    resuming (docs/checkpoints.md). Unset: all do."""
    every_hours: float | None = Field(None, gt=0)
    """Save at least every so many hours, besides ``save_steps``; unset: only at those."""


class Rung(_Strict):
    """One step down in memory: halve a size, or set Axolotl keys."""

    halve: Literal["micro_batch_size", "eval_batch_size", "sequence_len", "lora_r"] | None = None
    """Halve this, again at each failure until ``down_to``. Halving micro_batch_size doubles
    gradient_accumulation_steps; halving lora_r halves lora_alpha."""
    down_to: int = Field(1, ge=1)
    """Least value that halving reaches."""
    set: dict[str, Any] = {}
    """Axolotl keys to set; only such as may change between sessions (docs/reliability.md)."""
    when: list[Literal["train", "eval", "save"]] = ["train", "eval", "save"]
    """What ran out of memory: training steps, evaluation, saving. The rung is for these."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Rung":
        if bool(self.halve) == bool(self.set):
            raise ValueError("a rung has either halve or set")
        return self


class OutOfMemory(_Strict):
    """What to do when memory runs out, one rung a failure, resuming after each."""

    ladder: list[Rung] = [
        Rung(set={"eval_batch_size": 1}, when=["eval"]),
        Rung(set={"eval_sample_packing": False}, when=["eval"]),
        Rung(halve="micro_batch_size"),
        Rung(set={"eval_batch_size": 1}),
        Rung(set={"gradient_checkpointing": True}),
        Rung(set={"activation_offloading": True}),
    ]
    """Rungs from the top; the model that is trained stays the same."""
    shrink: list[Rung] = [
        Rung(halve="sequence_len", down_to=256),
        Rung(halve="lora_r", down_to=8),
    ]
    """Only with ``train --shrink``: another training, so a new run is begun."""

    @model_validator(mode="after")
    def _ladder_can_be_resumed(self) -> "OutOfMemory":
        for rung in self.ladder:
            if rung.halve in {"sequence_len", "lora_r"}:
                raise ValueError(f"halving {rung.halve} cannot be resumed; it belongs under shrink")
            for key in rung.set:
                if not compatibility.is_free(key):
                    raise ValueError(f"{key} cannot change within a run; rungs may set free keys")
        return self


class Recovery(_Strict):
    """What follows an unexpected death of the training process."""

    restarts: int = Field(3, ge=0)
    """Restarts without a new checkpoint in between before giving up; 0 turns them off."""
    backoff_s: float = Field(10.0, ge=0)
    """Seconds before the first restart; doubled for each further one, at most 5 minutes."""
    silent_s: float = Field(60.0, ge=2)
    """Several hosts: seconds without a word from one of them until it counts as lost and the
    session ends on the others."""


class Guards(_Strict):
    """What is watched while training."""

    loss_jump: float = Field(0.5, gt=0)
    """Warn when the loss after a resume is this much (nats) above the loss before it."""
    divergence: float = Field(1.0, gt=0)
    """Act when the smoothed loss (mean of 20 log lines) is this much (nats) above its lowest."""
    on_divergence: Literal["warn", "stop"] = "warn"
    """stop ends the session with a checkpoint, resumable."""
    hot_c: float = Field(85.0, gt=0)
    """Warn when a GPU reaches this temperature (Celsius)."""
    pause_above_c: float | None = Field(None, gt=0)
    """Pause training above this temperature until ``resume_below_c``; unset: never."""
    resume_below_c: float = Field(75.0, gt=0)
    """Where a pause for heat ends."""
    stall_factor: float = Field(10.0, gt=1)
    """Restart when nothing (step, evaluation batch, save) happens for this many usual steps."""
    stall_min_s: float = Field(900.0, gt=0)
    """Seconds below which nothing counts as a stall."""
    disk_reserve_gib: float = Field(0.5, ge=0)
    """Disk space a save must leave free."""

    @model_validator(mode="after")
    def _a_pause_cools(self) -> "Guards":
        if self.pause_above_c is not None and self.pause_above_c <= self.resume_below_c:
            raise ValueError("pause_above_c must be above resume_below_c")
        return self


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
    price_usd_hour: float | None = Field(None, ge=0)
    """What you pay for an hour of this machine, for ``--budget-usd``; all its GPUs together."""
    prices: Prices | None = None
    """What providers ask for an hour, to compare; absent where no price is known."""
    electricity_usd_kwh: float | None = Field(None, ge=0)
    """What you pay for a kilowatt hour, where the machine is your own."""
    out_of_memory: OutOfMemory = OutOfMemory()
    """The ladder walked when memory runs out."""
    recovery: Recovery = Recovery()
    """Restarts after a crash."""
    guards: Guards = Guards()
    """What is watched while training, and the limits."""
    notify: list[Hook] = []
    """Who is told when something happens (docs/notifications.md)."""
    smoke_test: bool = False
    """Begin a new run with two steps, an evaluation and a save of its longest rows, so that
    what would run out of memory later does so at once (``train --no-smoke`` leaves it out)."""
    axolotl: dict[str, Any] = {}
    """Raw Axolotl keys; its documentation applies as it is."""


def shipped_directory() -> Path:
    """The configs that come with Leviathan."""
    package = Path(__file__).parent
    shipped = package / "configs"
    # An editable install: the checkout's own folder.
    return shipped if shipped.is_dir() else package.parents[1] / "configs"


def directories(kind: str) -> list[Path]:
    """Where configs of ``kind`` are looked up, first match wins."""
    return [Path("configs") / kind, shipped_directory() / kind]


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
        for alias in aliases if isinstance(aliases, list) else []:
            if found.setdefault(str(alias), name) != name:
                raise BadInput(
                    f"{path} and {known[found[str(alias)]]} both have the alias {alias}",
                    "take it out of one",
                )
    return found


def load_profile(name: str) -> tuple[str, Profile, YamlFile]:
    """Read and check the profile ``name``: its canonical name, values and source."""
    source = yamlfile.load(find("profiles", name))
    return source.path.stem, _validated(Profile, source), source


def parse_profile(text: str) -> Profile:
    """The profile that ``text`` is the YAML of."""
    return validated(Profile, yamlfile.parse_value(text), dotted)


def load_recipe(name: str) -> tuple[str, Recipe, YamlFile]:
    """Read and check the recipe ``name``: its canonical name, values and source."""
    source = yamlfile.load(find("recipes", name))
    return source.path.stem, _validated(Recipe, source), source


def _validated(model: type[Model], source: YamlFile) -> Model:
    try:
        return validated(model, source.data, source.where)
    except BadInput as error:
        raise bad_inputs([error.line, *_axolotl_problems(source)]) from error


def _axolotl_problems(source: YamlFile) -> list[str]:
    """What is wrong under ``axolotl:`` in a file that is wrong elsewhere, to say it all at once."""
    block = source.data.get("axolotl")
    keys = schema.load() if isinstance(block, dict) else None
    if keys is None or not isinstance(block, dict):
        return []
    plugins = [str(p) for p in block.get("plugins") or []]
    return [
        f"{source.where(('axolotl', *p.key))}: {p.message}; {p.hint}"
        for p in keys.check(block, plugins)
        if "plugin" not in p.message
    ]


def validated(model: type[Model], data: Any, where: Callable[[KeyPath], str]) -> Model:
    """``data`` as a model.

    Raises:
        BadInput: every problem, a line each, at the place ``where`` gives for its key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise bad_inputs(_describe(model, where, e) for e in error.errors()) from error


def _describe(model: type[BaseModel], place: Callable[[KeyPath], str], error: Any) -> str:
    key: KeyPath = tuple(error["loc"])
    where = f"{place(key)}: {dotted(key)}"
    if not key:  # about the whole: what stands there is the file
        return f"{place(key)}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "extra_forbidden":
        return f"{where} is not a known key; {_nearest_field(model, key)}"
    if error["type"] == "missing":
        return f"{where} is required and missing"
    return f"{where}: {error['msg'].lower()}{_found(key, error['input'])}"


def _found(key: KeyPath, value: Any) -> str:
    """What stands there, unless it may hold a secret: a hook's address."""
    secret = key[:1] == ("notify",) and key[2:3] not in (("when",), ("body",), ("every_min",))
    return "" if secret else f" (found {value!r})"


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
    if "axolotl" in model.model_fields:
        return "Axolotl's own keys belong under axolotl:"
    return f"known: {', '.join(known)}"


def _model_in(annotation: Any) -> Any:
    """The pydantic model in ``Model``, ``list[Model]`` or ``dict[str, Model]``."""
    return next((a for a in typing.get_args(annotation) if hasattr(a, "model_fields")), annotation)


def bad_inputs(problems: Iterable[str]) -> BadInput:
    """One error carrying every problem, a line each."""
    return BadInput("\n".join(problems))
