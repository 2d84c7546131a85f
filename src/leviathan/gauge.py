"""Owns measuring inside the training process: seconds, tokens and memory, phase by phase.

Imported only there, and at work only in probes (``probe``). Writes ``measured`` events, one a
phase, as soon as the phase is over: what runs out of memory leaves those before it.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan.journal import Journal


class Gauge(TrainerCallback):
    """Measures loading, steps, one evaluation and one save. Registered last.

    Durations are rank 0's, between moments when the GPU has nothing left to do; memory is
    that of the rank that needs most, tokens are those of all ranks.
    """

    def __init__(self, journal: Journal, warm_up: int) -> None:
        self.journal, self.warm_up = journal, warm_up
        self.load_s: float | None = None
        """Set by the plugin, which sees loading begin and end."""
        self._mark = time.perf_counter()
        self._micro: list[float] = []
        self._micros: list[float] = []
        self._steps: list[dict[str, float]] = []
        self._real: list[torch.Tensor | int] = []
        self._padded = 0
        self._batches = 0
        self._in_eval = 0.0

    # --- what is counted --------------------------------------------------------------

    def install(self, trainer: Any) -> None:
        """Count the tokens of every micro batch that ``trainer`` trains on."""
        step = trainer.training_step
        pad = getattr(trainer.processing_class, "pad_token_id", None)

        def counting(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            self.count(inputs, pad)
            return step(model, inputs, *rest, **named)

        trainer.training_step = counting

    def count(self, inputs: dict[str, Any], pad: int | None) -> None:
        """Note one micro batch; on a GPU the counting itself waits for nobody."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        self._padded += ids.numel()
        real = mask if mask is not None else (ids != pad)
        self._real.append(torch.count_nonzero(real))

    # --- when -------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._write(state, "load", seconds=self.load_s, beside_gib=_beside_gib())
        self._lap()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._micro.append(self._lap())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        last = self._lap()
        real, padded = self._tokens()
        if state.global_step > self.warm_up:
            self._micros += self._micro
            self._steps.append(
                {"seconds": sum(self._micro) + last, "micro_batches": len(self._micro) + 1,
                 "tokens": real, "padded": padded}
            )  # fmt: skip
        self._micro = []
        if state.global_step == state.max_steps:
            self._write(state, "train", steps=self._steps, micro_s=self._micros)
            self._lap()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # The first batch pays for what is made once; its memory counts, its time does not.
        self._batches += 1
        lap = self._lap()
        self._in_eval += lap if self._batches > 1 else 0.0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        each = self._in_eval / (self._batches - 1) if self._batches > 1 else None
        self._write(state, "eval", batches=self._batches, seconds_per_batch=each)
        self._lap()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._write(state, "save", seconds=self._lap())

    def _lap(self) -> float:
        """Seconds since the last lap, the GPU's work included."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def _tokens(self) -> tuple[int, int]:
        """Tokens of this step over all ranks, without padding and with it."""
        real = sum(int(count) for count in self._real)
        padded, self._real, self._padded = self._padded, [], 0
        return int(_over_ranks(real, "SUM")), int(_over_ranks(padded, "SUM"))

    def _write(self, state: TrainerState, phase: str, **facts: Any) -> None:
        peaks = {name: _over_ranks(value, "MAX") for name, value in peak_gib().items()}
        if state.is_world_process_zero:
            self.journal.event("measured", phase=phase, step=state.global_step, **peaks, **facts)


def peak_gib() -> dict[str, float]:
    """Most memory since the last call: of this process on its GPU, or in RAM. Begins anew.

    Keys: ``allocated_gib`` and ``reserved_gib`` (torch's tensors, torch's share of the GPU),
    or ``resident_gib``.
    """
    if torch.cuda.is_available():
        found = {
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
        torch.cuda.reset_peak_memory_stats()
        return found
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    with suppress(OSError):  # not allowed in some containers: then peaks only grow
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
    return {"resident_gib": int(peak) / 2**20}


def limit(gib: float) -> None:
    """Run out of memory, in this process, as on a GPU of ``gib`` GiB: torch's share is less by
    what lies beside it, the CUDA context first of all.

    Not counted: managed memory, where the paged optimizers of bitsandbytes keep their state.
    """
    torch.empty(1, device="cuda")  # makes the context
    beside, (_, total) = _beside_gib() or 0.0, torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(share(gib, beside, total / 2**30))


def share(limit_gib: float, beside_gib: float, total_gib: float) -> float:
    """The part of a GPU of ``total_gib`` that is torch's, between 0 and 1."""
    return min(max(limit_gib - beside_gib, 0.0) / total_gib, 1.0)


def _beside_gib() -> float | None:
    """What lies on the GPU beside torch's share: the CUDA context, and other processes."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return float(total - free - torch.cuda.memory_reserved()) / 2**30


def _over_ranks(value: float, operation: str) -> float:
    """One number over all ranks, each of which calls this at the same moment."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    number = torch.tensor([float(value)], dtype=torch.float64, device=device)
    distributed.all_reduce(number, op=getattr(distributed.ReduceOp, operation))
    return float(number.item())


def worst_first(lengths: list[int], worst: int) -> list[int]:
    """Row numbers: the ``worst`` longest first, longest in front; then the others as before."""
    longest = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))[:worst]
    chosen = set(longest)
    return [*longest, *(row for row in range(len(lengths)) if row not in chosen)]


def order(trainer: Any, worst: int) -> None:
    """Have ``trainer`` begin with the rows of most tokens, now that they are counted."""
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    trainer.train_dataset = trainer.train_dataset.select(worst_first(lengths, worst))
