"""Owns what FSDP leaves out of a checkpoint in pieces: adapter or model whole, and the tokenizer.

Imported only inside the training process. A resume reads the pieces; merging, testing and
serving read these.
"""

from typing import Any

from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan.callbacks import any_rank
from leviathan.journal import Journal


class WholeCallback(TrainerCallback):
    """Gathers what is trained at each save; registered before the commit, which covers it."""

    def __init__(self, journal: Journal) -> None:
        self.paths = journal.paths

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        model: Any = parts.get("model")
        if model is None or not any(isinstance(p, DTensor) for p in model.parameters()):
            return
        directory = self.paths.directory / f"checkpoint-{state.global_step}"
        if any_rank((directory / "model.safetensors").exists()):  # FSDP was told to: whole states
            return
        whole = {}
        for name, part in _trained(model).items():
            # Every rank in the same order: each gathering waits for all of them.
            full = part.full_tensor() if isinstance(part, DTensor) else part
            if state.is_world_process_zero:  # one copy on the host, not one a rank
                whole[name] = full.detach().cpu()
        if not state.is_world_process_zero:
            return
        model.save_pretrained(str(directory), state_dict=whole)
        tokenizer = parts.get("processing_class")
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))


def _trained(model: Any) -> dict[str, Any]:
    """The adapter's parameters, or all that a whole model's file holds; tied ones once."""
    if isinstance(model, PeftModel):
        return {n: p for n, p in model.named_parameters() if p.requires_grad}
    parameters = dict(model.named_parameters())
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return parameters | {n: t for n, t in model.state_dict().items() if n not in every}
