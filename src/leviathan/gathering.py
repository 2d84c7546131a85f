"""Owns what FSDP leaves out of a checkpoint in pieces: the adapter whole, and the tokenizer.

Imported only inside the training process. A resume reads the pieces; merging, testing and
serving read these.
"""

from typing import Any

from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan.journal import Journal


class WholeAdapterCallback(TrainerCallback):
    """Gathers the adapter at each save; registered before the commit, which covers it."""

    def __init__(self, journal: Journal) -> None:
        self.paths = journal.paths

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        model = parts.get("model")
        if not isinstance(model, PeftModel):
            return
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not any(isinstance(p, DTensor) for p in trained.values()):
            return
        # Every rank in the same order: each gathering waits for all of them.
        whole = {
            n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu()
            for n, p in trained.items()
        }
        if not state.is_world_process_zero:
            return
        directory = self.paths.directory / f"checkpoint-{state.global_step}"
        model.save_pretrained(str(directory), state_dict=whole)
        tokenizer = parts.get("processing_class")
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))
