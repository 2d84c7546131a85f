"""Owns the parity of a model's settings: what ends an answer, what pads, how servers sample.

Pure: JSON documents in, a finding and the documents as they should be out. Servers take
``eos_token_id`` and sampling defaults from generation_config.json, from config.json only where
that file is not there (transformers' ``from_pretrained``; vLLM's ``try_get_generation_config``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leviathan.parity_finding import Finding

STOPS, PADDING, SAMPLING = "stop ids", "padding", "sampling defaults"
GENERATION = "generation_config.json"
Document = dict[str, Any]
_SAMPLERS = ("temperature", "top_p", "top_k", "min_p", "typical_p")
# transformers' own defaults: with these a value changes nothing where nothing is sampled.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1.0,), "top_p": (1.0,), "top_k": (0, 50), "min_p": (), "typical_p": (1.0,),
}  # fmt: skip
_UNTOLD = "transformers is greedy, vLLM samples at temperature 1"
_OLD_MAX_LENGTH = 20  # written by old versions of transformers; also what they take without one


@dataclass(frozen=True)
class Taught:
    """The tokens that training knows an answer to end with."""

    ends: Mapping[int, str]
    """Their ids and texts; the trained tokenizer's eos token first."""
    seen: bool
    """Whether rows showed loss on one of them; False: the model was not taught to stop."""
    inside: Mapping[int, str]
    """Trained tokens of rows that went on behind them: none of these may end an answer."""
    rows: int
    """How many rows that is known of; 0: none was at hand."""


@dataclass(frozen=True)
class Stops:
    """What is to be said of stop ids, and both documents with the right ones."""

    finding: Finding
    generation: Document
    config: Document


def stop_ids(
    generation: Document | None, config: Document, taught: Taught, vocab_size: int
) -> Stops:
    """What servers end an answer at."""
    source = GENERATION if generation is not None else "config.json"
    known = _ids((_place(config) if generation is None else generation).get("eos_token_id"))
    wrong = [n for n in known if n in taught.inside or not 0 <= n < vocab_size]
    right = [*taught.ends, *(n for n in known if n not in taught.ends and n not in wrong)]
    problems = [*_problems(source, known, taught, vocab_size), *_agreement(config, taught)]
    if problems:
        finding = Finding(STOPS, "fixed", "; ".join(problems), f"eos_token_id is now {right}")
    elif taught.rows and not taught.seen:
        finding = Finding(
            STOPS, "warn", "no row trains on a token that ends an answer",
            "set eot_tokens, or special_tokens.eos_token, to the token that ends a turn, and train",
        )  # fmt: skip
    else:
        finding = Finding(STOPS, "ok", f"{source} ends answers at {_named(known, taught.ends)}")
    return Stops(
        finding, _generation(generation, config, right), _config(config, right, taught.ends)
    )


def _problems(source: str, known: list[int], taught: Taught, vocab_size: int) -> list[str]:
    lacking = [n for n in taught.ends if n not in known]
    cutting = [n for n in known if n in taught.inside]
    outside = [n for n in known if not 0 <= n < vocab_size]
    told: tuple[tuple[list[int], str, Mapping[int, str]], ...] = (
        (lacking, "{} does not end answers at {}, training did", taught.ends),
        (cutting, "{} ends them at {}, inside answers trained on", taught.inside),
        (outside, "{} ends them at {}, outside the vocabulary", {}),
    )
    return [text.format(source, _named(which, names)) for which, text, names in told if which]


def _agreement(config: Document, taught: Taught) -> list[str]:
    """What config.json says of the end, where no id of it is one that was trained."""
    known = _ids(_place(config).get("eos_token_id"))
    if not known or not taught.ends or set(known) & taught.ends.keys():
        return []
    return [f"config.json says eos_token_id {known}, training {list(taught.ends)}"]


def _generation(generation: Document | None, config: Document, right: list[int]) -> Document:
    """The document with the right ids; made of config.json's where there is none."""
    names, place = ("bos_token_id", "eos_token_id", "pad_token_id"), _place(config)
    made = {name: place[name] for name in names if place.get(name) is not None}
    made = made if generation is None else generation
    if set(_ids(made.get("eos_token_id"))) == set(right):
        return made
    return {**made, "eos_token_id": right[0] if len(right) == 1 else right}


def _config(config: Document, right: list[int], ends: Mapping[int, str]) -> Document:
    """config.json with the right ids; an id stays an id, as some architectures allow no list."""
    place = _place(config)
    old = place.get("eos_token_id")
    if isinstance(old, list) and set(old) != set(right):
        place = {**place, "eos_token_id": right}
    elif isinstance(old, int) and ends and old not in ends:
        place = {**place, "eos_token_id": next(iter(ends))}
    return place if _place(config) is config else {**config, "text_config": place}


def _place(config: Document) -> Document:
    """Where the ids stand: of a model of several parts, in its text part."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and "eos_token_id" not in config else config


def _ids(told: Any) -> list[int]:
    """An id, a list of them, or none.

    Raises:
        ValueError: something else.
    """
    listed = told if isinstance(told, list) else [] if told is None else [told]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in listed):
        raise ValueError(f"eos_token_id {told!r} is no id and no list of them")
    return listed


def _named(numbers: list[int], names: Mapping[int, str]) -> str:
    named = (f"{names[n]} ({n})" if n in names else str(n) for n in numbers)
    return ", ".join(named) or "none"


def padding(
    pad: tuple[int, str] | None, ends: Mapping[int, str], told: int | None, vocab_size: int
) -> Finding:
    """The token that fills up short rows of a batch.

    Args:
        pad: the tokenizer's id and text.
        ends: ids that end an answer.
        told: pad_token_id of generation_config.json.
        vocab_size: of config.json.
    """
    own = pad[0] if pad else None
    if own is not None and not 0 <= own < vocab_size:
        evidence = f"pad token {own} is outside the vocabulary of {vocab_size}"
        return Finding(PADDING, "fail", evidence, "set special_tokens.pad_token, and train")
    if pad is None:
        return Finding(PADDING, "ok", "no pad token: transformers takes eos, vLLM does not pad")
    if own in ends:
        return Finding(
            PADDING, "warn", f"pad token {pad[1]} ({own}) is also what ends an answer",
            "harmless to serve; to train further, special_tokens.pad_token: another token",
        )  # fmt: skip
    if told is not None and told != own:
        evidence = f"{GENERATION} pads with {told}, the tokenizer with {pad[1]} ({own})"
        return Finding(PADDING, "warn", evidence, "give generate() the tokenizer's pad_token_id")
    return Finding(PADDING, "ok", f"{pad[1]} ({own}), which ends no answer")


def sampling(generation: Document | None) -> Finding:
    """How answers are sampled where a request does not say."""
    if generation is None:
        return Finding(SAMPLING, "ok", f"no {GENERATION}: {_UNTOLD}")
    wrong = [
        f"{key} is {generation[key]!r}" for key in (*_SAMPLERS, "max_length", "max_new_tokens")
        if generation.get(key) is not None and not _is_number(generation[key])
    ]  # fmt: skip
    if wrong:
        return Finding(SAMPLING, "fail", f"{', '.join(wrong)}: no number", f"correct {GENERATION}")
    given = {key: generation[key] for key in _SAMPLERS if generation.get(key) is not None}
    samples = bool(generation.get("do_sample"))
    problems = []
    idle = [f"{k} {v}" for k, v in given.items() if not samples and v not in _NEUTRAL[k]]
    if idle:
        problems.append(
            f"{', '.join(idle)} without do_sample: transformers ignores it, vLLM samples so"
        )
    if samples and given.get("temperature", 1) <= 0:
        problems.append(f"do_sample with temperature {given['temperature']}")
    if not 0 < given.get("top_p", 1) <= 1:
        problems.append(f"top_p {given['top_p']} is no share")
    problems += _short(generation)
    if problems:
        fix = "say in every request how to sample, and max_tokens"
        return Finding(SAMPLING, "warn", "; ".join(problems), fix)
    how = ", ".join(f"{k} {v}" for k, v in given.items()) or "temperature 1"
    told = f"unless a request says otherwise, {how if samples else _UNTOLD}"
    return Finding(SAMPLING, "ok", told)


def _short(generation: Document) -> list[str]:
    """Limits that cut answers where a request has none."""
    limits = {key: generation.get(key) for key in ("max_length", "max_new_tokens")}
    return [
        f"{key} {value} cuts answers short by default"
        for key, value in limits.items()
        if value is not None and (key, value) != ("max_length", _OLD_MAX_LENGTH)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
