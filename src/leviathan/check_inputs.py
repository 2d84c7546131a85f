"""Owns the verdicts on what a training reads and on where it writes: models, rows, disk, RAM.

Does not look for them (``basemodel``, ``corpus``) nor forecast sizes (``disk``).
"""

from leviathan import basemodel, corpus, models
from leviathan.checkup import Check, Inputs, State, Subject
from leviathan.disk import TEXT_BYTES_PER_TOKEN, Volume
from leviathan.errors import BadInput

_FEW_GIB = 10.0
# Families whose licence has to be accepted on the hub before anything can be downloaded.
_GATED = ("meta-llama/", "google/gemma")


def base_model(subject: Subject) -> Check | None:
    """Whether the base model is here and whole, or can be downloaded."""
    base = subject.inputs.base if subject.inputs else None
    if base is None:
        return None
    if base.to_be_made:
        return Check("base model", "pass", f"{base.name} is made from nothing at the start, "
                     f"{_size(base.weight_bytes)} of weights")  # fmt: skip
    try:
        models.local_or_hub(base.name)
    except BadInput as error:
        return Check("base model", "fail", error.message, error.hint or "")
    if base.directory is None:
        return _absent(base.name, subject)
    where = f"{base.name}, {'local' if base.is_local else 'in the hub cache'}"
    if base.missing:
        evidence = f"{where}, lacks or has cut short: {', '.join(base.missing)}"
        if base.is_local:
            return Check("base model", "fail", evidence, f"complete {base.directory}")
        if basemodel.is_offline(subject.environment):
            return Check("base model", "fail", f"{evidence}, and HF_HUB_OFFLINE is set",
                         "unset HF_HUB_OFFLINE")  # fmt: skip
        return Check("base model", "pass", f"{evidence}: fetched at the start")
    return Check("base model", "pass", f"{where}, {_size(base.weight_bytes)} of weights")


def _absent(name: str, subject: Subject) -> Check:
    if basemodel.is_offline(subject.environment):
        return Check(
            "base model", "fail", f"{name} is not on this machine, and HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or set base_model to a local directory",
        )  # fmt: skip
    if name.startswith(_GATED) and not basemodel.has_token(subject.environment):
        return Check(
            "base model", "warn", f"{name} is gated, and there is no token to download it with",
            "accept its licence on the hub, then export HF_TOKEN=...",
        )  # fmt: skip
    return Check("base model", "pass", f"{name} is not here yet: downloaded at the start")


def rows(subject: Subject) -> Check | None:
    """Whether the corpus can be read and its first rows are what the recipe says."""
    path = subject.inputs.corpus if subject.inputs else None
    if subject.inputs is None or path is None:
        return None
    fields = subject.inputs.fields
    try:
        looked_at = corpus.check_head(path, fields)
    except BadInput as error:
        return Check("corpus", "fail", error.message, error.hint or "mend the corpus")
    has = f" have {', '.join(fields)}" if fields else " are JSON objects"
    return Check(
        "corpus", "pass", f"{path}, {_size(corpus.state(path)[0])}; the first {looked_at} rows{has}"
    )


def disk(subject: Subject) -> Check | None:
    """Fail when a first save would not fit, warn when what the run will write later does not."""
    if subject.inputs is None or subject.profile is None:
        return None
    reserve, inputs = subject.profile.guards.disk_reserve_gib, subject.inputs
    verdicts = [_volume(volume, reserve) for volume in inputs.volumes]
    for wanted in ("fail", "warn"):
        for volume, verdict in zip(inputs.volumes, verdicts, strict=True):
            if verdict == wanted:
                return Check(
                    "disk", verdict, _budget(volume, inputs, reserve), _room(volume, verdict)
                )
    evidence = "; ".join(_budget(v, inputs, reserve) for v in inputs.volumes)
    smallest = min(volume.free_bytes for volume in inputs.volumes) / 2**30
    if inputs.forecast.checkpoint is None and smallest < _FEW_GIB:
        return Check("disk", "warn", evidence, "free some space: how much is needed is not known")
    return Check("disk", "pass", evidence)


def _volume(volume: Volume, reserve_gib: float) -> State:
    reserve = int(reserve_gib * 2**30)
    if volume.free_bytes < volume.total(soon=True) + reserve:
        return "fail"
    return "warn" if volume.free_bytes < volume.total() + reserve else "pass"


def _budget(volume: Volume, inputs: Inputs, reserve_gib: float) -> str:
    """What is free and what it is wanted for, with the source of every estimate."""
    wanted = [f"{need.what} {_size(need.bytes)}" for need in volume.needs if need.bytes]
    if reserve_gib:
        wanted.append(f"{reserve_gib:g} GiB kept free")
    total = _size(volume.total() + reserve_gib * 2**30)
    text = f"{_size(volume.free_bytes)} free for {volume.path}"
    text += f", {total} wanted: {', '.join(wanted)}" if wanted else ""
    sources = []
    if any(need.what == "prepared data" and need.bytes for need in volume.needs):
        sources.append(f"{TEXT_BYTES_PER_TOKEN:g} bytes of text a token")
    if any("checkpoint" in need.what for need in volume.needs):
        known = f"by {inputs.source}" if inputs.forecast.checkpoint else "of unknown size"
        sources.append(f"checkpoints {known}")
    return text + (f" ({', '.join(sources)})" if sources else "")


def _room(volume: Volume, state: State) -> str:
    if state == "fail":
        return f"free some space for {volume.path}: a save must never be cut short"
    return f"free some space for {volume.path}, or lower checkpoints.keep"


def _size(count: float) -> str:
    unit, name = (2**30, "GiB") if count >= 0.1 * 2**30 else (2**20, "MiB")
    return f"{count / unit:.2g} {name}" if count < 100 * unit else f"{count / unit:.0f} {name}"


def ram(subject: Subject) -> Check:
    """Whether the base model's weights find room while they are loaded."""
    host = subject.machine.host
    if host.ram_gib is None or host.ram_available_gib is None:
        return Check("ram", "pass", "unknown")
    evidence = f"{host.ram_available_gib:.1f} of {host.ram_gib:.1f} GiB available"
    base = subject.inputs.base if subject.inputs else None
    weights = base.weight_bytes / 2**30 if base else 0.0
    if not weights:
        return Check("ram", "pass", evidence + ("; the base is unknown" if base else ""))
    evidence += f"; the base's weights are {weights:.2g}"
    if not subject.on_gpu and weights * subject.processes > host.ram_gib:
        return Check("ram", "fail", evidence, "choose a smaller base model, or a machine with more")
    if weights > host.ram_available_gib:
        return Check("ram", "warn", f"{evidence}: loading them will swap, or be killed",
                     "end what takes memory, or add swap")  # fmt: skip
    return Check("ram", "pass", evidence)
