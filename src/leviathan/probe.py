"""Owns the short run that measures: the rows it trains on, worst first, and its own settings.

Reads the corpus and writes rows; ``overlay`` is pure. Does not run it (``bench``, ``smoke``)
nor measure inside it (``gauge``).
"""

import codecs
import heapq
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import config, corpus, files, trackers
from leviathan.errors import BadInput
from leviathan.knobs import Knobs
from leviathan.samples import Sample

WORST_STEPS = 2
"""Steps of the longest rows: only the second meets the optimizer's state in memory."""
EVAL_BATCHES = 4
"""The first of the longest rows, which shows the peak; the others for the time of a batch."""
SCAN_BYTES = 1 << 30

_TOKEN_BYTES = 4  # of English text and common tokenizers; too many rows do no harm
_ROOM = 1.5
_SEEN_FOR_MEAN = 1000
_NOT_MEASURED = ("rl", "reward_model", "process_reward_model", "pretraining_dataset", "streaming")
_REMOVED = ("saves_per_epoch", "evals_per_epoch", "save_strategy", "eval_strategy", "eval_steps",
            "early_stopping_patience", "load_best_model_at_end", "save_first_step",
            "group_by_length", "dataset_exact_deduplication", "hub_model_id",
            "loss_watchdog_threshold", "test_datasets", "use_otel_metrics")  # fmt: skip


@dataclass(frozen=True)
class Cap:
    """Less memory than the GPU has: as much as a smaller card would have."""

    gib: float
    """For this process, its CUDA context included."""
    held_gib: float
    """Held by others when it began; not counted."""


@dataclass(frozen=True)
class Probe:
    """A run that is made to be measured."""

    sample: Sample
    """The rows it trains on, which is the whole of them."""
    eval_rows: Path | None
    """Rows it is evaluated on; None where the training never evaluates."""
    warm_up: int
    """Steps before those that are measured."""
    steps: int
    """Steps measured."""
    worst_rows: int
    """So many of the longest come first."""
    accumulation: int
    """Most micro batches in a step. Two hold as much memory as many: gradients and the next
    activations; the time of a longer step follows from that of its micro batches."""
    base_model: str | None = None
    """Directory of random weights; None for the real base model."""
    cap: Cap | None = None
    """Only in a bench."""

    @property
    def total(self) -> int:
        """All steps."""
        return self.warm_up + self.steps


def unmeasurable(tree: dict[str, Any]) -> str:
    """Why a probe cannot choose the rows of such a training; empty where it can."""
    found = next((key for key in _NOT_MEASURED if tree.get(key)), None)
    why = "is set: only supervised fine-tuning of a JSONL corpus can be measured"
    return f"{found} {why}" if found else ""


def refuse_unmeasurable(tree: dict[str, Any]) -> None:
    """Raise BadInput for trainings whose rows a probe cannot choose."""
    why = unmeasurable(tree)
    if why:
        raise BadInput(why, "take it out, or train with --no-smoke")


def evaluates(tree: dict[str, Any]) -> bool:
    """Whether the training holds rows out and looks at them."""
    held_out = tree.get("val_set_size") or tree.get("test_datasets")
    return bool(held_out and (tree.get("eval_steps") or tree.get("evals_per_epoch")))


def overlay(tree: dict[str, Any], probe: Probe) -> tuple[dict[str, Any], list[str]]:
    """Axolotl keys that a probe sets over a rendered ``tree``, and those it takes out.

    Everything that memory and the time of a step depend on stays, but that rows longer than
    ``sequence_len``, which training drops, are cut to it: none can be longer.
    """
    dataset = tree["datasets"][0]
    wanted: dict[str, Any] = {
        "datasets": [dataset],
        "max_steps": probe.total,
        "save_steps": probe.total,
        "logging_steps": 1,
        "gradient_accumulation_steps": min(
            int(tree.get("gradient_accumulation_steps") or 1), probe.accumulation
        ),
        "val_set_size": 0,
        "curriculum_sampling": True,  # in the order of the file
        "shuffle_merged_datasets": False,
        "excess_length_strategy": "truncate",
    }
    if probe.eval_rows:
        wanted["eval_steps"] = probe.total
        wanted["test_datasets"] = [{**dataset, "path": str(probe.eval_rows), "split": "train"}]
    # A probe is no experiment to be tracked.
    gone = [k for k in tree if k not in wanted and (k in _REMOVED or trackers.is_key(k))]
    return wanted, gone


# --- rows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """How many rows fill the batches of a probe."""

    worst: int
    """Longest rows, for the first steps."""
    ordinary: int
    eval_worst: int
    eval_ordinary: int


@dataclass(frozen=True)
class Rows:
    """Rows for a probe, as JSON lines, and where they come from."""

    train: list[bytes]
    evaluation: list[bytes]
    worst: int
    source: str
    """One line for people."""


def needs(knobs: Knobs, steps: int, accumulation: int, mean_bytes: float) -> Needs:
    """Rows for ``steps`` steps and an evaluation; packed rows are counted by their bytes.

    Args:
        knobs: of the training.
        steps: all of the probe.
        accumulation: most micro batches of a step.
        mean_bytes: of a row of the corpus.
    """
    micro = knobs.micro_batch_size * knobs.processes
    per_step = micro * min(knobs.gradient_accumulation_steps, accumulation)
    per_eval = knobs.eval_batch_size * knobs.processes
    worst, ordinary = WORST_STEPS * per_step, max(steps - WORST_STEPS, 0) * per_step
    first, others = per_eval, (EVAL_BATCHES - 1) * per_eval
    in_pack = max(knobs.sequence_len * _TOKEN_BYTES / max(mean_bytes, 1), 1) * _ROOM
    if knobs.packing:
        worst, ordinary = math.ceil(worst * in_pack), math.ceil(ordinary * in_pack)
    if knobs.eval_packing:
        first, others = math.ceil(first * in_pack), math.ceil(others * in_pack)
    return Needs(worst, ordinary, first, others)


def from_corpus(
    path: Path,
    knobs: Knobs,
    steps: int,
    accumulation: int,
    required: tuple[str, ...],
    limit_bytes: int | None = SCAN_BYTES,
) -> Rows:
    """Rows of a corpus: its longest (in bytes) first, then others drawn evenly by the seed.

    A small corpus gives its rows several times over, so that every batch is full.

    Args:
        path: the corpus.
        knobs: of the training.
        steps: all of the probe.
        accumulation: most micro batches of a step.
        required: keys a row must have.
        limit_bytes: how far the corpus is read; None for all of it.

    Raises:
        BadInput: a chosen row is bad (named by line), or there is none.
    """
    wanted = needs(knobs, steps, accumulation, _mean_bytes(path, knobs.sequence_len))
    longest = max(wanted.worst, wanted.eval_worst)
    others = max(wanted.ordinary, wanted.eval_ordinary)
    scan = _scan(path, longest, others, knobs.seed, limit_bytes)
    if not scan.longest:
        raise BadInput(f"corpus {path} is empty", "it needs one JSON object per line")
    worst = list(_read(path, scan.longest, required))
    ordinary = list(_read(path, scan.ordinary, required)) if others else []
    source = f"rows of {path}" + ("" if scan.whole else f", of its first {scan.read_bytes:,} bytes")
    return _rows(worst, ordinary, wanted, source)


def generated(row_format: str, knobs: Knobs, steps: int, accumulation: int) -> Rows:
    """Rows of the shipped documentation, each as long as a row can be: there is no corpus."""
    text = _shipped_text()
    size = knobs.sequence_len * _TOKEN_BYTES * 2
    wanted = needs(knobs, steps, accumulation, size)
    first = max(wanted.worst, wanted.eval_worst)
    count = first + max(wanted.ordinary, wanted.eval_ordinary)
    text *= math.ceil((size + count) / len(text)) + 1
    rows = [
        json.dumps(_row(row_format, text[at : at + size])).encode() + b"\n" for at in range(count)
    ]
    source = f"generated rows of sequence_len {knobs.sequence_len}: there is no corpus here"
    return _rows(rows[:first], rows[first:], wanted, source)


def _rows(worst: list[bytes], ordinary: list[bytes], wanted: Needs, source: str) -> Rows:
    other = ordinary or worst
    train = [*_filled(worst, wanted.worst), *_filled(other, wanted.ordinary)]
    evaluation = [*_filled(worst, wanted.eval_worst), *_filled(other, wanted.eval_ordinary)]
    return Rows(train, evaluation, wanted.worst, source)


def _filled(rows: list[bytes], count: int) -> Iterator[bytes]:
    return (rows[number % len(rows)] for number in range(count))


def write(rows: Rows, directory: Path, *, evaluation: bool) -> tuple[Sample, Path | None]:
    """Put the rows into ``directory``: what is trained on, as a sample, and what is evaluated."""
    train, held_out = directory / "rows.jsonl", directory / "eval_rows.jsonl"
    _write(train, rows.train)
    if evaluation:
        _write(held_out, rows.evaluation)
    stat = train.stat()
    sample = Sample(
        str(train), len(rows.train), len(rows.train), stat.st_size, 0, "full",
        corpus.file_digest(train), str(train), stat.st_size, stat.st_mtime_ns, stat.st_mtime_ns,
        method=rows.source,
    )  # fmt: skip
    return sample, held_out if evaluation else None


def _write(path: Path, lines: Iterable[bytes]) -> None:
    with files.replaced(path) as out:
        out.writelines(lines)


@dataclass(frozen=True)
class _Place:
    number: int
    offset: int
    size: int


@dataclass(frozen=True)
class _Scan:
    longest: list[_Place]
    ordinary: list[_Place]
    read_bytes: int
    whole: bool


def _mean_bytes(path: Path, sequence_len: int) -> float:
    """Of the first rows, of each no more than training can take."""
    total, count = 0, 0
    for row in corpus.read_rows(path):
        total, count = total + min(len(row.line), sequence_len * _TOKEN_BYTES), count + 1
        if count == _SEEN_FOR_MEAN:
            break
    return total / max(count, 1)


def _scan(path: Path, longest: int, others: int, seed: int, limit_bytes: int | None) -> _Scan:
    """Places of the longest rows and of an even draw, in one pass that keeps no rows.

    The draw is reservoir sampling (Vitter 1985, algorithm R).
    """
    chance = random.Random(seed).random  # noqa: S311 - a sample, not a secret
    heap: list[tuple[int, int, int]] = []
    drawn: list[_Place] = []
    offset = rows = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            size, at = len(line), offset
            offset += size
            if line.isspace():
                continue
            rows += 1
            if len(heap) < longest:
                heapq.heappush(heap, (size, -number, at))
            elif size > heap[0][0]:
                heapq.heapreplace(heap, (size, -number, at))
            if len(drawn) < others:
                drawn.append(_Place(number, at, size))
            elif others and (slot := int(chance() * rows)) < others:
                drawn[slot] = _Place(number, at, size)
            if limit_bytes is not None and offset >= limit_bytes:
                break
    whole = offset >= path.stat().st_size
    places = [_Place(-number, at, size) for size, number, at in sorted(heap, reverse=True)]
    return _Scan(places, drawn, offset, whole)


def _read(path: Path, places: list[_Place], required: tuple[str, ...]) -> Iterator[bytes]:
    with path.open("rb") as stream:
        for place in places:
            stream.seek(place.offset)
            line = stream.read(place.size)
            corpus.parse_row(corpus.Row(path, place.number, line), required)
            yield line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") + b"\n"


def _row(row_format: str, text: str) -> dict[str, Any]:
    if row_format == "alpaca":
        return {"instruction": "Go on.", "input": "", "output": text}
    if row_format == "chat":
        asked, answer = {"role": "user", "content": "Go on."}, {"role": "assistant"}
        return {"messages": [asked, {**answer, "content": text}]}
    if row_format == "sharegpt":
        asked, answer = {"from": "human", "value": "Go on."}, {"from": "gpt", "value": text}
        return {"conversations": [asked, answer]}
    if row_format == "choices":
        return {"question": text, "choices": ["yes", "no"], "answer": 0}
    return {"text": text}


def _shipped_text() -> str:
    lines = (config.directories("demo")[-1] / "stdlib.jsonl").read_bytes().splitlines()
    texts = (json.loads(line).get("text") for line in lines)
    return "\n".join(text for text in texts if isinstance(text, str))
