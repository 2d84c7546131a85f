"""Owns what a loaded model says: prompts rendered, answers in batches.

Imports torch inside its functions. Does not load a model (``models``) nor judge (``prompts``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xxhash

from leviathan import models, prompts
from leviathan.errors import BadInput

Messages = list[dict[str, str]]

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


def takes_conversations(model: models.Model) -> bool:
    """Whether it has a chat template; without one there is a single question and no more."""
    return bool(getattr(model.tokenizer, "chat_template", None))


def rendered(model: models.Model, messages: Messages) -> str:
    """The text before an answer, as training put it.

    Raises:
        BadInput: the model's template has no place for these messages, or there is none.
    """
    if not takes_conversations(model):
        if len(messages) != 1:
            raise BadInput(
                f"{model.source.tokenizer} has no chat template",
                "it takes one prompt, without a system message or earlier turns",
            )
        return model.render(messages[0]["content"])
    import jinja2

    try:
        return str(
            model.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )
    except jinja2.TemplateError as error:
        raise BadInput(f"the model's chat template refuses these messages: {error}") from error


def stops(model: models.Model) -> list[int]:
    """Tokens that end an answer: the tokenizer's, generation_config's, known ends of a turn."""
    vocabulary = model.tokenizer.get_vocab()
    names = [model.tokenizer.eos_token, *_TURN_ENDS]
    told = model.model.generation_config.eos_token_id
    listed = told if isinstance(told, list) else [] if told is None else [told]
    return sorted({vocabulary[name] for name in names if name in vocabulary} | set(listed))


@dataclass
class _Row:
    """One case on its way: its tokens, its limit, and its own dice."""

    tokens: list[int]
    case: prompts.Case
    seed: int
    """Of the suite."""

    @cached_property
    def dice(self) -> Any:
        """torch's generator on the CPU; seeded by suite and case alone.

        So a case's answer depends neither on the others of its batch nor on how many there are.
        """
        import torch

        told = json.dumps([self.seed, self.case.name, self.case.conversation])
        return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(told.encode()) >> 1)


def answers(
    model: models.Model, cases: Sequence[prompts.Case], batch_size: int = 8, seed: int = 0
) -> list[prompts.Answer]:
    """The answers to ``cases``, in their order, ``batch_size`` of them at a time.

    Greedy, but for cases with a temperature: ``seed`` decides those.

    Raises:
        BadInput: a case does not suit the model's chat template.
    """
    rows = [
        _Row(model.token_ids(rendered(model, case.conversation))[0].tolist(), case, seed)
        for case in cases
    ]  # all first: what cannot be asked is told before an hour of answers
    # Alike beside each other: a batch is as long as its longest prompt and answer.
    order = sorted(
        range(len(cases)), key=lambda at: (cases[at].max_new_tokens, len(rows[at].tokens))
    )
    found: dict[int, prompts.Answer] = {}
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        made = _continued(model, [rows[at] for at in batch])
        found.update(zip(batch, made, strict=True))
    return [found[at] for at in range(len(cases))]


def _continued(model: models.Model, rows: list[_Row]) -> list[prompts.Answer]:
    """Continuations of token rows, each within its own limit.

    Padding stands on the left and is masked, so that positions count from each row's first
    own token: what is generated is what the row alone would give, to rounding.
    """
    import torch

    width, pad = max(len(row.tokens) for row in rows), _pad(model)
    ids = torch.tensor([[pad] * (width - len(row.tokens)) + row.tokens for row in rows])
    mask = torch.tensor([[0] * (width - len(row.tokens)) + [1] * len(row.tokens) for row in rows])
    limits, ending = [row.case.max_new_tokens for row in rows], set(stops(model))
    drawn = {"logits_processor": [_drawn(rows)]} if any(r.case.temperature for r in rows) else {}
    with torch.no_grad():
        out = model.model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
            **settings(model, max(limits)), **drawn,
        )  # fmt: skip
    made = out[:, width:].tolist()
    return [_cut(model, row[:limit], ending) for row, limit in zip(made, limits, strict=True)]


def _drawn(rows: list[_Row]) -> Any:
    """What makes greedy choice a draw: a logits processor for rows that have a temperature.

    The likeliest after Gumbel noise is a draw from the softmax (Gumbel 1954; Maddison et al.
    2014, section 2). Each row's noise comes from its own dice, which generate's sampling
    has no place for: it draws a whole batch from one generator.
    """
    import torch

    def noisy(_ids: Any, scores: Any) -> Any:
        changed = scores.double()
        for place, row in enumerate(rows):
            if row.case.temperature:
                even = torch.rand(scores.shape[-1], generator=row.dice, dtype=torch.float64)
                noise = -torch.log(-torch.log(even.clamp_min(torch.finfo(torch.float64).tiny)))
                changed[place] = changed[place] / row.case.temperature + noise.to(scores.device)
        return changed

    return noisy


def _cut(model: models.Model, tokens: list[int], ending: set[int]) -> prompts.Answer:
    """The answer up to its first stop token."""
    end = next((at for at, token in enumerate(tokens) if token in ending), None)
    text = model.tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return prompts.Answer(str(text).strip(), end is not None)


def _pad(model: models.Model) -> int:
    """Any token does: it is masked."""
    pad = model.tokenizer.pad_token_id
    return int(pad if pad is not None else (stops(model) or [0])[0])


def settings(model: models.Model, max_new_tokens: int) -> dict[str, Any]:
    """What generate is told for a greedy answer of at most so many tokens."""
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "eos_token_id": stops(model) or None,
        "pad_token_id": _pad(model),
    }
