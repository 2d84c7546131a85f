"""Owns what was measured: one record per bench or smoke test, kept in work/calibrations.jsonl.

Does not measure (``bench``) nor predict from what it finds (``speed``). The file only grows;
it may be copied from machine to machine, and lines that are damaged are passed over.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from leviathan import files, runs
from leviathan.knobs import Knobs

SCHEMA = 1
FILE = Path("work/calibrations.jsonl")

# How long and on which rows one trains changes neither the time of a step nor its memory.
_LENGTH = ("epochs", "max_steps", "val_set_size", "eval_steps", "save_steps", "seed")
# What a neighbour may differ in: sizes, whose effect on time and memory is nearly a line.
_SIZES = ("micro_batch_size", "eval_batch_size", "sequence_len", "rank",
          "gradient_accumulation_steps")  # fmt: skip
_ENOUGH_STEPS = 5
_KINDS = ("bench", "smoke")
# No figure of a training on this planet is smaller or larger, but for 0.
_LEAST, _MOST = 1e-9, 1e15


@dataclass(frozen=True)
class Calibration:
    """One measurement. Times are wall-clock seconds, memory GiB of one process' device."""

    time: float
    """When, in seconds since 1970."""
    kind: str
    """bench or smoke: the latter's few steps are all of the longest rows."""
    devices: tuple[str, ...]
    """Names the device answers to: the driver's, and the profile's where it is that card."""
    memory_gib: float
    """What the device has: one GPU, or the machine's RAM."""
    model: str
    """The recipe's base model."""
    parameters: int
    random: bool
    """Random weights of that architecture stood in for the real ones."""
    knobs: dict[str, Any]
    """``essential`` knobs, the processes among them."""
    fits: bool
    phase: str
    """Where memory ran out (start, load, train, eval or save); empty when it did not."""
    problem: str
    """What was said then."""
    steps: int
    """Steps measured after the warm-up."""
    tok_s: float | None
    """Tokens per second that are no padding, all processes together."""
    padded_tok_s: float | None
    """The same, padding included: what the device computes."""
    step_s: float | None
    """Median of an optimizer step with the knobs' accumulation."""
    step_low_s: float | None
    step_high_s: float | None
    """Quartiles of the steps measured."""
    eval_s_per_batch: float | None
    save_s: float | None
    """A checkpoint, with its hashes and fsyncs."""
    load_s: float | None
    """Base model from disk (or page cache) to the device."""
    peaks_gib: dict[str, float]
    """Most memory in each phase: reserved by torch plus the CUDA context, or resident in RAM."""
    allocated_gib: dict[str, float]
    """Most memory of tensors in each phase (CUDA only)."""
    versions: dict[str, str]
    capped: bool = False
    """``memory_gib`` is less than the device has: what is told of memory holds for
    ``as_card``, and speed for nothing, since an allocator in need is slow."""
    as_card: str = ""
    """The card that was imitated, if it was one of a profile."""
    schema: int = SCHEMA

    @property
    def peak_gib(self) -> float | None:
        """Most memory of all phases."""
        return max(self.peaks_gib.values(), default=None)

    @property
    def shape(self) -> str:
        """Digest of the model's shape, as ``shape_digest`` gives it."""
        return shape_digest(self.model, self.parameters)

    @property
    def text(self) -> str:
        """One line of evidence."""
        what = f"{self.kind} on {self.devices[0]}"
        if self.capped:
            card = self.as_card or "a smaller card"
            what += f" with the memory of {card} ({self.memory_gib:.3g} GiB), not its speed"
        if not self.fits:
            return f"{what}: out of memory in phase {self.phase}"
        speed = f"{self.tok_s:,.0f} tok/s, " if self.tok_s else ""
        steps = f"{self.steps} step{'s' * (self.steps != 1)}"
        peak = f", peak {self.peak_gib:.1f} GiB" if self.peak_gib is not None else ""
        weights = ", random weights" if self.random else ""
        return f"{what}: {speed}{steps} of {self.step_s or 0:.3g} s{peak}{weights}"

    @property
    def _rank(self) -> tuple[bool, float]:
        """Of two equal ones the better: measured over several steps, then the newer."""
        return self.kind == "bench" and self.steps >= _ENOUGH_STEPS, self.time


def shape_digest(model: str, parameters: int) -> str:
    """Identifies a model shape by the base model's name and its parameter count."""
    return xxhash.xxh3_64_hexdigest(f"{model.rstrip('/')}\0{parameters}".encode())


def essential(knobs: Knobs) -> dict[str, Any]:
    """The knobs that time and memory of a step depend on, as JSON keeps them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(knobs).items()
        if name not in _LENGTH
    }


def append(calibration: Calibration, path: Path = FILE) -> None:
    """Add one record, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.append_json(path, asdict(calibration))
    files.fsync_file(path)
    files.fsync_directory(path.parent)


def read(path: Path = FILE) -> list[Calibration]:
    """Every whole record of a schema we know, oldest first; an absent file has none."""
    return [found for line in files.read_json_lines(path) if (found := _parsed(line))]


def _parsed(line: dict[str, Any]) -> Calibration | None:
    if line.get("schema") != SCHEMA:
        return None
    try:
        found = Calibration(**{**line, "devices": tuple(line["devices"])})
    except (TypeError, KeyError):
        return None
    return found if _is_sound(found) else None


def _is_sound(found: Calibration) -> bool:
    numbers = [found.time, found.memory_gib, found.parameters, found.steps]
    numbers += [v for v in (found.tok_s, found.padded_tok_s, found.step_s, found.step_low_s,
                            found.step_high_s, found.eval_s_per_batch, found.save_s,
                            found.load_s) if v is not None]  # fmt: skip
    maps = (found.peaks_gib, found.allocated_gib, found.knobs, found.versions)
    if not all(isinstance(m, dict) for m in maps):
        return False
    numbers += [*found.peaks_gib.values(), *found.allocated_gib.values()]
    texts = [found.model, found.phase, found.problem, found.as_card, *found.devices]
    return (
        found.kind in _KINDS
        and all(isinstance(text, str) for text in texts)
        and all(text.isprintable() for text in (found.phase, *found.devices))
        and bool(found.devices)
        and all(_is_number(n) for n in numbers)
        and isinstance(found.fits, bool)
        and isinstance(found.capped, bool)
    )


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and (value == 0 or _LEAST <= value <= _MOST)


def find(
    records: Iterable[Calibration], device: str, shape: str, knobs: Knobs
) -> Calibration | None:
    """The measurement to go by; None when there is none.

    That of the very knobs, a bench of several steps before a smoke test and the newest of
    equals; else the nearest whose knobs differ only in micro batches, sequence length, rank,
    accumulation and attention, by the sum of the ratios' logarithms. Attention may differ
    because a profile names the fastest, and training takes another where that is not installed.

    Args:
        records: as ``read`` gives them; those that did not fit are passed over, and those
            whose memory was capped.
        device: name of the GPU or CPU, the driver's or the profile's.
        shape: ``shape_digest`` of the base model.
        knobs: of what is to be predicted.
    """
    wanted = essential(knobs)
    whole = [c for c in records if c.fits and not c.capped]
    same = [c for c in whole if c.shape == shape and answers_to(c, device)]
    near = [(d, c) for c in same if (d := _distance(c.knobs, wanted)) is not None]
    if not near:
        return None
    least = min(distance for distance, _ in near)
    return max((c for distance, c in near if distance == least), key=lambda c: c._rank)


def is_exact(calibration: Calibration, knobs: Knobs) -> bool:
    """Whether it was measured with these very knobs."""
    return calibration.knobs == essential(knobs)


def holds_as_much(calibration: Calibration, knobs: Knobs) -> bool:
    """Whether memory was measured with these knobs: attention may be another, as in ``find``."""
    wanted = essential(knobs)
    return {**calibration.knobs, "attention": wanted["attention"]} == wanted


def distance(calibration: Calibration, knobs: Knobs) -> float:
    """How far its sizes are from ``knobs``, in doublings; infinite where more differs."""
    found = _distance(calibration.knobs, essential(knobs))
    return math.inf if found is None else found


def refuting(
    records: Iterable[Calibration], device: str, shape: str, knobs: Knobs
) -> Calibration | None:
    """The newest measurement that ``holds_as_much``, if memory ran out in it.

    Of measurements on the card itself if there are any, else of those with its memory only.
    """
    here = [c for c in records if c.shape == shape and answers_to(c, device)]
    same = [c for c in here if holds_as_much(c, knobs)]
    newest = max(same, key=lambda c: (not c.capped, c.time), default=None)
    return newest if newest and not newest.fits else None


def _distance(measured: dict[str, Any], wanted: dict[str, Any]) -> float | None:
    """How far apart in sizes; None where anything else differs."""
    soft = (*_SIZES, "attention")
    if measured.keys() != wanted.keys():  # another version's
        return None
    if any(measured[name] != value for name, value in wanted.items() if name not in soft):
        return None
    if not all(runs.is_whole(measured[name]) and 0 <= measured[name] <= _MOST for name in _SIZES):
        return None
    ratios = (max(measured[name], 1) / max(wanted[name], 1) for name in _SIZES)
    other = measured.get("attention") != wanted["attention"]
    return sum((abs(math.log2(ratio)) for ratio in ratios), float(other))


def answers_to(calibration: Calibration, device: str) -> bool:
    """Whether it tells of such a device: measured on one, or with its memory cut to one's."""
    names = (calibration.as_card,) if calibration.capped else calibration.devices
    return any(same_device(name, device) for name in names)


def same_device(one: str, two: str) -> bool:
    """Whether two names mean the same card, as ``NVIDIA RTX A4000`` and ``RTX A4000``.

    Every word of the shorter is one of the longer.
    """
    short, long = sorted((_words(one), _words(two)), key=len)
    return bool(short) and short <= long


def _words(name: str) -> set[str]:
    words = re.findall(r"[a-z0-9]+", name.lower())
    return {"sxm" if word.startswith("sxm") else word for word in words}  # drivers say SXM4


def as_document(calibration: Calibration) -> dict[str, Any]:
    """The document of ``bench --json``."""
    document = json.loads(json.dumps(asdict(calibration)))
    verdict = "fits" if calibration.fits else "does_not_fit"
    return {"verdict": verdict, "peak_gib": calibration.peak_gib, **document}
