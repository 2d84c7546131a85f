"""Owns ``bench``: a short run on the worst rows through train's own launch path, and its result.

Does not choose the rows (``probe``) nor measure inside the training process (``gauge``).
"""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from leviathan import (
    calibrations,
    corpus,
    knobs,
    ladder,
    machine,
    preflight,
    probe,
    runs,
    schema,
    scratch,
    sessions,
    stand_in,
    writer,
)
from leviathan import render as rendering
from leviathan.calibrations import Calibration
from leviathan.config import Hardware, OutOfMemory, Recovery
from leviathan.errors import BadInput, Refused
from leviathan.layers import Config, dataset_entries, row_fields, run_name
from leviathan.probe import Cap, Probe
from leviathan.sessions import Ending
from leviathan.stand_in import StandIn
from leviathan.supervise import Listener
from leviathan.train import Decision

DIRECTORY = Path("work/bench")
ACCUMULATION = 4
_MEMORY = {"memory", "host_memory"}
_NEARLY = 0.9
"""Of its nominal size, what a card leaves to a process at least (ECC, display, driver)."""


@dataclass(frozen=True)
class Bench:
    """What one ``bench`` will do, found out without writing anything."""

    decision: Decision
    """Without its probe, whose rows are chosen when it is carried out."""
    stand_in: StandIn
    warm_up: int
    steps: int
    cap: Cap | None = None


@dataclass(frozen=True)
class Result:
    """How it went."""

    ending: Ending
    calibration: Calibration | None
    """None when it was killed, or failed for another reason than memory."""
    rows: str
    """Where its rows come from."""
    next_rung: str = ""
    """What the out-of-memory ladder would change first, where memory ran out."""


def decide(config: Config, *, steps: int, warm_up: int, cap_gib: float | None = None) -> Bench:
    """Everything that can be known before launching.

    Args:
        config: what would be trained.
        steps: to measure.
        warm_up: steps before those.
        cap_gib: run out of memory as a card of this size would; None for the GPU's own.

    Raises:
        BadInput: wrong keys, a training that cannot be measured, no such base model, a cap
            that is none.
    """
    keys, here = schema.load(), machine.probe()
    rendering.check_keys(config, keys)
    probe.refuse_unmeasurable(config.tree)
    if config.profile.hardware.nodes > 1:
        raise BadInput(
            "bench measures one host, and this profile has several", "--set hardware.nodes=1"
        )
    knobs.read(config.tree)
    cap = _cap(config.profile.hardware, here, cap_gib)
    path = Path(config.recipe.corpus)
    if path.exists():
        if not corpus.is_plain(path):
            raise BadInput(
                f"bench measures one plain JSONL file, and {path} is none",
                "leviathan data sample it to a file, and --set corpus=FILE",
            )
        corpus.check_head(path, row_fields(config))
    elif config.tree["datasets"] != dataset_entries(config.recipe.format):
        raise BadInput(
            f"corpus {path} does not exist, and rows for axolotl.datasets cannot be made up",
            "set corpus: in the recipe",
        )
    new = scratch.planned(config)
    found = stand_in.find(config.tree, new.config_json() if new else None)
    name = run_name(config, f"{config.recipe_name}_{config.profile_name}")
    paths = runs.RunPaths(DIRECTORY / name)
    subject = preflight.of_bench(config, here, paths, keys_read=keys is not None)
    checks = tuple(preflight.checks(subject))
    decision = Decision("start", config, paths, None, None, (), checks, here, keys)
    return Bench(decision, found, warm_up, steps, cap)


def _cap(hardware: Hardware, here: machine.Machine, gib: float | None) -> Cap | None:
    if gib is None:
        return None
    if hardware.device == "cpu" or not here.gpus:
        why = "the profile trains on the CPU" if hardware.device == "cpu" else "there is none here"
        raise BadInput(f"--cap-gib is for a GPU's memory, and {why}", "leave it out")
    gpu = here.gpus[0]
    if not 0 < gib <= gpu.free_gib:
        raise BadInput(
            f"--cap-gib {gib:g}: {gpu.name} has {gpu.free_gib:.1f} GiB free",
            "give a smaller card's memory, in GiB",
        )
    return Cap(gib, gpu.memory_gib - gpu.free_gib)


def _base(bench: Bench, tell: Callable[[str], None]) -> Path:
    """Random weights to measure with: the recipe's own, where the model is made from nothing."""
    config = bench.decision.config
    if scratch.planned(config) and Path(config.recipe.corpus).exists():
        directory = Path(config.tree["base_model"])
        return scratch.make(directory, scratch.request(config), tell).resolve()
    return stand_in.make(bench.stand_in, tell)


def run(bench: Bench, listener: Listener) -> Result:
    """Carry it out, and keep the result with the other calibrations.

    Raises:
        BadInput: a chosen row is bad.
        Refused: another bench of this name runs, or the disk has no room.
    """
    decision = bench.decision
    config = decision.config
    replace_directory(decision.paths)
    base = None if bench.stand_in.real else str(_base(bench, _notices(listener)))
    read = knobs.read(config.tree, config.profile.hardware.processes)
    total = bench.warm_up + bench.steps
    path = Path(config.recipe.corpus)
    if path.exists():
        required = row_fields(config)
        rows = probe.from_corpus(path, read, total, ACCUMULATION, required)
    else:
        rows = probe.generated(config.recipe.format, read, total, ACCUMULATION)
    sample, held_out = probe.write(
        rows, decision.paths.directory, evaluation=probe.evaluates(config.tree)
    )
    made = Probe(
        sample, held_out, bench.warm_up, bench.steps, rows.worst, ACCUMULATION, base, bench.cap
    )
    ending = sessions.run(replace(decision, probe=made, config=_alone(config)), listener)
    return _result(ending, bench.stand_in, rows.source, config.profile.out_of_memory)


def _alone(config: Config) -> Config:
    """``config`` without ladder and restarts: a bench tells, it does not mend."""
    alone = {"recovery": Recovery(restarts=0), "out_of_memory": OutOfMemory(ladder=[], shrink=[])}
    return replace(config, profile=config.profile.model_copy(update=alone))


def _result(ending: Ending, base: StandIn, source: str, policy: OutOfMemory) -> Result:
    calibration, rung = None, ""
    out_of_memory = ran_out_of_memory(ending)
    if ending.outcome.kind == "done" or out_of_memory:
        calibration = calibrate(ending, base, "bench")
        calibrations.append(calibration)
    if out_of_memory and ending.diagnosis:
        change = ladder.next_rung(
            policy, ending.decision.config.tree, ending.diagnosis.phase, "the bench"
        )
        rung = str(change or "")
    if ending.outcome.kind == "done":
        drop_weights(ending.decision.paths)
    return Result(ending, calibration, source, rung)


def ran_out_of_memory(ending: Ending) -> bool:
    """Whether that is how a probe failed."""
    return ending.diagnosis is not None and ending.diagnosis.kind in _MEMORY


def replace_directory(paths: runs.RunPaths) -> None:
    """Make room for a probe: its directory, empty.

    Raises:
        Refused: another process works in it.
    """
    if paths.directory.exists():
        if runs.orphan(paths):
            raise Refused(f"a training of {paths.directory} still runs", "wait for its end")
        with writer.locked(paths):
            pass
        shutil.rmtree(paths.directory)
    paths.directory.mkdir(parents=True)


def drop_weights(paths: runs.RunPaths) -> None:
    """What a probe saved was only saved to be measured; what it told stays."""
    for directory in (*paths.directory.glob("checkpoint-*"), paths.prepared):
        shutil.rmtree(directory, ignore_errors=True)
    for name in ("*.safetensors", "*.bin", "*rows.jsonl"):
        for path in paths.directory.glob(name):
            path.unlink()


def _notices(listener: Listener) -> Callable[[str], None]:
    return lambda text: listener("notice", {"text": text})


# --- what was measured --------------------------------------------------------------------


def calibrate(ending: Ending, base: StandIn, kind: str) -> Calibration:
    """The record of a probe that is over, whether it fitted or not."""
    decision, probing = ending.decision, ending.decision.probe
    cap = probing.cap if probing else None
    hardware = decision.config.profile.hardware
    phases = _phases(decision.paths)
    read = knobs_here(decision.config, decision.machine)
    failed = ending.diagnosis if ending.outcome.kind == "failed" else None
    peaks, allocated = _memory(phases, decision)
    return Calibration(
        time=time.time(),
        kind=kind,
        devices=devices(hardware, decision.machine),
        memory_gib=cap.gib if cap else _device_gib(decision),
        model=base.name,
        parameters=base.parameters,
        random=bool(probing and probing.base_model),
        knobs=calibrations.essential(read),
        fits=failed is None,
        phase=failed.phase if failed else "",
        problem=failed.text if failed else "",
        **speeds(phases.get("train", {}), read.gradient_accumulation_steps),
        eval_s_per_batch=phases.get("eval", {}).get("seconds_per_batch"),
        save_s=phases.get("save", {}).get("seconds"),
        load_s=phases.get("load", {}).get("seconds"),
        peaks_gib=peaks,
        allocated_gib=allocated,
        versions=decision.machine.versions,
        capped=cap is not None,
        as_card=_as_card(hardware, cap),
    )


def knobs_here(config: Config, here: machine.Machine) -> knobs.Knobs:
    """The knobs as this machine can have them: without flash-attn, attention is another."""
    tree = config.tree
    wanted = tree.get("attn_implementation")
    if wanted in rendering.FLASH_ATTENTION and not (here.flash_attn and here.gpus):
        tree = {**tree, "attn_implementation": "sdpa"}
    return knobs.read(tree, config.profile.hardware.processes)


def _phases(paths: runs.RunPaths) -> dict[str, dict[str, Any]]:
    """What the last session measured, by phase."""
    found = [e for e in runs.events(paths) if e["event"] == "measured"]
    last = max((e["session"] for e in found), default=0)
    return {e["phase"]: e for e in found if e["session"] == last}


def speeds(measured: dict[str, Any], accumulation: int) -> dict[str, Any]:
    """Times and token rates of a step with the knobs' own accumulation.

    A step of more micro batches than were measured takes that many more of their median.
    """
    steps, micro = measured.get("steps") or [], measured.get("micro_s") or []
    usual_micro = statistics.median(micro) if micro else 0.0
    times = [s["seconds"] + (accumulation - s["micro_batches"]) * usual_micro for s in steps]
    if not times:
        return {"steps": 0, "tok_s": None, "padded_tok_s": None, "step_s": None,
                "step_low_s": None, "step_high_s": None}  # fmt: skip
    low, middle, high = _quartiles(times)
    batches = sum(s["micro_batches"] for s in steps)
    each = {name: accumulation * sum(s[name] for s in steps) / batches
            for name in ("tokens", "padded")}  # fmt: skip
    mean = statistics.mean(times)
    return {
        "steps": len(times), "tok_s": each["tokens"] / mean, "padded_tok_s": each["padded"] / mean,
        "step_s": middle, "step_low_s": low, "step_high_s": high,
    }  # fmt: skip


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _memory(
    phases: dict[str, dict[str, Any]], decision: Decision
) -> tuple[dict[str, float], dict[str, float]]:
    """Peaks and tensors' peaks by phase, in GiB; a GPU's peaks with the CUDA context."""
    beside = phases.get("load", {}).get("beside_gib") or 0.0
    gpus = decision.machine.gpus
    others = gpus[0].memory_gib - gpus[0].free_gib if gpus else 0.0
    context = max(beside - others, 0.0)
    peaks = {
        name: p["resident_gib"] if "resident_gib" in p else p["reserved_gib"] + context
        for name, p in phases.items()
    }
    tensors = {name: p["allocated_gib"] for name, p in phases.items() if "allocated_gib" in p}
    return peaks, tensors


def _as_card(hardware: Hardware, cap: Cap | None) -> str:
    """The profile's card, if the cap leaves about what it has."""
    size = hardware.memory_gib or 0.0
    return hardware.gpu or "" if cap and _NEARLY * size <= cap.gib <= size else ""


def _device_gib(decision: Decision) -> float:
    on_gpu = decision.config.profile.hardware.device == "cuda" and decision.machine.gpus
    return decision.machine.gpus[0].memory_gib if on_gpu else machine.ram_gib()


def devices(hardware: Hardware, here: machine.Machine) -> tuple[str, ...]:
    """Names of what is trained on here: the driver's, and the profile's if it is that card."""
    if hardware.device == "cpu" or not here.gpus:
        return (machine.cpu_name(),)
    name = here.gpus[0].name
    short = name.removeprefix("NVIDIA ").lower()
    forms: list[tuple[str | None, list[str]]] = [(hardware.gpu, hardware.nvml_names)]
    forms += [(variant.gpu, variant.nvml_names) for variant in hardware.variants]
    known = [g for g, patterns in forms if g and any(fnmatch(short, p.lower()) for p in patterns)]
    return (name, *known[:1])
