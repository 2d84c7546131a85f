"""Owns what GRPO asks of a configuration: defaults, keys it cannot be had with, batch arithmetic.

Pure. Does not write rewards (``rewards``) nor import a user's (``check_rewards``). The rules are
those of TRL 1.9 (trl/trainer/grpo_config.py) and of Axolotl 0.19 (utils/schemas/validation.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

SHIPPED = "leviathan.rewards."
DEFAULTS: dict[str, Any] = {
    "rl": "grpo",
    "trl": {
        "reward_funcs": [f"{SHIPPED}correct_choice", f"{SHIPPED}answers_at_once"],
        "num_generations": 8,
        "max_completion_length": 16,
    },
}
"""What ``format: choices`` brings along, below everything that a recipe or profile sets."""
_KINDS = ("grpo", "gdpo")
_OWN_GENERATIONS, _OWN_LENGTH = 8, 256  # TRL's, where nobody says otherwise
SUPERVISED = (
    "sample_packing", "eval_sample_packing", "pad_to_sequence_len", "curriculum_sampling",
    "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel",
    "liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy",
)  # fmt: skip
"""Keys of a profile that are for supervised fine-tuning: Axolotl refuses packing with rewards,
does not know its LoRA kernels to work there, and no fused loss is used."""
# What is not in a checkpoint, so that a resume would go on from something else.
_LOST = {
    "sync_ref_model": "the moving reference model is not in a checkpoint",
    "async_prefetch": "answers that were written ahead are not in a checkpoint",
    "use_data_producer": "answers that were written ahead are not in a checkpoint",
    "replay_buffer_size": "the replay buffer is not in a checkpoint",
}


def rewarded(tree: dict[str, Any]) -> bool:
    """Whether answers are written and rewarded: ``rl: grpo``, or gdpo, its variant."""
    return tree.get("rl") in _KINDS  # a text, or Axolotl's enumeration, which equals it


@dataclass(frozen=True)
class Groups:
    """How questions become batches of answers."""

    generations: int
    """Answers to each question: what one earns is held against the others."""
    completion: int
    """Most tokens of an answer."""
    answers: int
    """Written at once, over all processes."""
    per_generation: int
    """Micro batches that these are trained in."""
    iterations: int
    """How often they are gone through."""

    @property
    def questions(self) -> int:
        """Questions that are answered at once."""
        return self.answers // self.generations


def groups(tree: dict[str, Any], processes: int) -> Groups:
    """The groups of a merged Axolotl ``tree`` that ``problems`` has found nothing wrong with."""
    trl = tree.get("trl") or {}
    micro = _count(tree, "micro_batch_size", 1) * processes
    accumulation = _count(tree, "gradient_accumulation_steps", 1)
    answers = _count(trl, "generation_batch_size", micro * accumulation)
    return Groups(
        generations=_count(trl, "num_generations", _OWN_GENERATIONS),
        completion=_count(trl, "max_completion_length", _OWN_LENGTH),
        answers=answers,
        per_generation=max(answers // micro, 1),
        iterations=_count(trl, "num_iterations", 1),
    )


def _count(tree: dict[str, Any], name: str, absent: int) -> int:
    value = tree.get(name)
    return value if _is_count(value) else absent


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


Key = tuple[str | int, ...]


def derived(tree: dict[str, Any], processes: int) -> Iterator[tuple[Key, Any, str]]:
    """Keys that follow from the others, where nobody has set them: place, value and why.

    ``generation_batch_size``: Axolotl's own check leaves the other processes' answers out, and
    would refuse what TRL takes.
    """
    if not rewarded(tree):
        return
    found = groups(tree, processes)
    if processes > 1 and not (tree.get("trl") or {}).get("generation_batch_size"):
        why = "micro_batch_size x gradient_accumulation_steps x processes"
        yield ("trl", "generation_batch_size"), found.answers, why
    micro = _count(tree, "micro_batch_size", 1)
    if _evaluates(tree) and not tree.get("eval_batch_size"):
        least = found.generations // math.gcd(found.generations, processes)
        if micro % least:
            yield ("eval_batch_size",), least, "whole groups of trl.num_generations answers"


def _evaluates(tree: dict[str, Any]) -> bool:
    held_out = tree.get("val_set_size") or tree.get("test_datasets")
    return bool(held_out and (tree.get("eval_steps") or tree.get("evals_per_epoch")))


def problems(tree: dict[str, Any], processes: int, row_format: str) -> Iterator[tuple[Key, str]]:
    """What is wrong with a merged tree, as the key's place and words.

    Args:
        tree: merged Axolotl keys.
        processes: GPUs (or CPU processes) of all hosts.
        row_format: the recipe's ``format``.
    """
    if row_format == "choices" and not rewarded(tree):
        yield ("rl",), "format: choices is trained by rewards; set rl: grpo"
    if not rewarded(tree):
        return
    trl = tree.get("trl")
    if not isinstance(trl, dict) or not trl.get("reward_funcs"):
        yield ("trl",), "rl: grpo needs trl.reward_funcs, a list of module.function"
        return
    if tree.get("sample_packing"):
        yield ("sample_packing",), "sample_packing does not go with rl: grpo; take it out"
    held_out = tree.get("val_set_size")
    if isinstance(held_out, int | float) and held_out >= 1:
        # Axolotl hands it on as a float, which train_test_split takes for a share.
        text = f"val_set_size is {held_out}; rl: grpo takes a share below 1 only"
        yield ("val_set_size",), text
    yield from _unresumable(trl)
    wrong = list(_numbers(trl))
    yield from wrong or _batches(tree, processes)


def _unresumable(trl: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    for name, why in _LOST.items():
        if trl.get(name):
            yield ("trl", name), f"trl.{name} cannot be resumed exactly: {why}; take it out"


def _numbers(trl: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    names = ("num_generations", "max_completion_length", "generation_batch_size", "num_iterations")
    for name in names:
        value = trl.get(name)
        if value is not None and not _is_count(value):
            yield ("trl", name), f"trl.{name} is {value!r}; it needs a whole number, 1 or more"
    if trl.get("num_generations") == 1:
        yield (
            ("trl", "num_generations"),
            (
                "trl.num_generations is 1; it needs 2 or more, since an answer is held against the "
                "others to its question"
            ),
        )


def _batches(tree: dict[str, Any], processes: int) -> Iterator[tuple[Key, str]]:
    found, explicit = groups(tree, processes), (tree.get("trl") or {}).get("generation_batch_size")
    micro = _count(tree, "micro_batch_size", 1)
    accumulation = _count(tree, "gradient_accumulation_steps", 1)
    each, trained_in = micro * processes, found.per_generation * found.iterations
    asked = f"trl.num_generations is {found.generations}"
    made = (
        f"micro_batch_size {micro} x gradient_accumulation_steps {accumulation} x {processes} "
        f"process{'es' * (processes != 1)} = {found.answers}"
    )
    how = f"trl.generation_batch_size {explicit}" if explicit else made
    if explicit and found.answers % each:
        text = f"{how} is no multiple of micro_batch_size x processes = {each}"
        yield ("trl", "generation_batch_size"), text
    elif found.answers % found.generations:
        text = f"{asked}, which does not divide {how}; {_mend(found.generations, each)}"
        yield ("trl", "num_generations"), text
    elif processes > 1 and found.answers < found.generations * processes:
        # Axolotl's rule, not TRL's (check_grpo_batch_size_divisibility).
        text = f"{asked}, and Axolotl wants as many answers for each process: {how} is less than "
        text += f"{found.generations * processes}; {_mend(found.generations * processes, each)}"
        yield ("trl", "num_generations"), text
    elif accumulation % trained_in:
        text = f"answers are trained on in {trained_in} micro batches, a step has {accumulation}: "
        text += "a stop in between could not be resumed exactly; raise gradient_accumulation_steps "
        text += "to a multiple"
        yield ("trl", "num_iterations" if found.iterations > 1 else "generation_batch_size"), text
    evaluated = _count(tree, "eval_batch_size", micro) * processes
    if _evaluates(tree) and tree.get("eval_batch_size") and evaluated % found.generations:
        text = f"{asked}, which does not divide eval_batch_size x processes = {evaluated}"
        yield ("eval_batch_size",), f"{text}; set a multiple"


def _mend(answers: int, each: int) -> str:
    """The smallest accumulation that makes a multiple of ``answers``."""
    least = math.lcm(answers, each) // each
    return f"set gradient_accumulation_steps to {least} or a multiple of it"
