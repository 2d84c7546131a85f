"""Owns serving parity: whether what vLLM and transformers will read of a model is what was trained.

Nine checks over a directory, each with its evidence and a fix; what files can repair is repaired
where that is asked for. Runs inside the proof's process (``proof``): it imports transformers.
The checks themselves: ``parity_settings``, ``parity_files``, ``parity_tokens``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leviathan import basemodel, files, models, parity_files, parity_settings, parity_tokens
from leviathan.errors import BadInput
from leviathan.parity_finding import Finding
from leviathan.parity_settings import GENERATION, Taught

_NO_WEIGHTS = (parity_files.TIED, parity_files.INDEX, parity_files.MISSING)
CHECKS = (
    parity_settings.STOPS, parity_settings.PADDING, parity_settings.SAMPLING,
    parity_files.VOCABULARY, parity_files.TIED, parity_files.INDEX, parity_files.MISSING,
    parity_tokens.TEMPLATE, parity_tokens.TOKENS,
)  # fmt: skip
"""Their names, in the order they are told."""


@dataclass(frozen=True)
class Subject:
    """What is to be served, and what it is compared with."""

    directory: Path
    """Of the finished model, or of an adapter with its tokenizer."""
    base: Path
    """The base model: an adapter is served with its weights and settings."""
    checkpoint: Path
    """The adapter as training saved it, with its tokenizer."""
    tree: dict[str, Any]
    """The configuration trained with; its base_model is where the base is now."""
    rows: tuple[dict[str, Any], ...]
    """Some of the sample trained on, parsed."""
    form: str = "merged"
    """merged, adapter or quantised: of the last two, weights have other checks than these."""
    repair: bool = True
    """Write what can be written right; else it fails."""

    @property
    def model(self) -> Path:
        """Where config.json lies that a server reads."""
        return self.base if self.form == "adapter" else self.directory


def check(subject: Subject) -> list[Finding]:
    """Every check that makes sense of the subject, in the order of ``CHECKS``.

    The template is looked at first: if it is put right, the tokens are those of the right one.
    """
    seen = _Seen(subject)
    checks: dict[str, Callable[[], Finding]] = {
        parity_tokens.TEMPLATE: seen.template,
        parity_settings.STOPS: seen.stops,
        parity_settings.PADDING: seen.padding,
        parity_settings.SAMPLING: lambda: parity_settings.sampling(seen.generation),
        parity_files.VOCABULARY: seen.vocabulary,
        parity_files.TIED: lambda: parity_files.tied(seen.built, seen.weights),
        parity_files.INDEX: lambda: parity_files.index(subject.directory, seen.weights),
        parity_files.MISSING: lambda: parity_files.missing(seen.built),
        parity_tokens.TOKENS: seen.tokens,
    }
    if subject.form != "merged":
        checks = {name: made for name, made in checks.items() if name not in _NO_WEIGHTS}
    found = {name: _made(name, one) for name, one in checks.items()}
    return [found[name] for name in CHECKS if name in found]


def _made(name: str, one: Callable[[], Finding]) -> Finding:
    """A check's finding: a directory that cannot be read fails, a lack of ours is told."""
    try:
        return one()
    except BadInput as error:
        return Finding(name, "warn", f"not compared: {error.line}", error.hint or "")
    except Exception as error:  # broken files, and whatever transformers makes of them
        text = (str(error).strip().splitlines() or [""])[0]
        return Finding(name, "fail", f"{type(error).__name__}: {text}", "merge again")


class _Seen:
    """What several checks look at, read once."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.trust = bool(subject.tree.get("trust_remote_code"))

    @cached_property
    def generation(self) -> dict[str, Any] | None:
        return _document(self.subject.model / GENERATION)

    @cached_property
    def config(self) -> dict[str, Any]:
        found = _document(self.subject.model / "config.json")
        if found is None:
            raise FileNotFoundError("there is no config.json")
        return found

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        directory = self.subject.directory
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=self.trust)

    @cached_property
    def trained(self) -> parity_tokens.Trained:
        subject = self.subject
        try:
            return parity_tokens.read(subject.tree, subject.checkpoint, subject.rows)
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            raise BadInput(f"training's rows cannot be read: {error!r}") from error

    @cached_property
    def taught(self) -> Taught:
        return parity_tokens.taught(self.trained)

    @cached_property
    def weights(self) -> parity_files.Weights:
        return parity_files.weights(self.subject.directory)

    @cached_property
    def built(self) -> parity_files.Architecture:
        return parity_files.architecture(self.subject.model, trust_remote_code=self.trust)

    @cached_property
    def vocab_size(self) -> int:
        """Of config.json, in its text part where it has one."""
        text = self.config.get("text_config")
        place = text if isinstance(text, dict) and "vocab_size" in text else self.config
        return int(place["vocab_size"])

    def template(self) -> Finding:
        return self._template

    @cached_property
    def _template(self) -> Finding:
        directory = self.subject.directory
        return parity_tokens.chat_template(directory, self.trained, repair=self.subject.repair)

    def tokens(self) -> Finding:
        is_explained = self._template.state in ("warn", "fail")
        ask = None if is_explained else parity_tokens.by_axolotl
        return parity_tokens.tokens(self.tokenizer, self.trained, ask)

    def stops(self) -> Finding:
        subject = self.subject
        right = parity_settings.stop_ids(self.generation, self.config, self.taught, self.vocab_size)
        found = right.finding
        if (other := self._other_eos()) is not None:
            return other
        if found.state != "fixed":
            return found
        if subject.form == "adapter":
            fix = "merge it, which writes them, or send stop_token_ids in every request"
            return replace(found, state="warn", fix=fix)
        if not subject.repair:
            return replace(found, state="fail", fix="merge again, which writes the right ones")
        for name, before, after in ((GENERATION, self.generation, right.generation),
                                    ("config.json", self.config, right.config)):  # fmt: skip
            if before != after:
                files.write_json(subject.directory / name, after)
        return found

    def _other_eos(self) -> Finding | None:
        """A tokenizer with another eos token than training's: vLLM ends answers there too."""
        own = self.trained.made.special.get("eos_token")
        served = self.tokenizer.eos_token
        if own is None or served == own:
            return None
        evidence = f"the tokenizer's eos token is {served}, training's {own}"
        fix = "ship the tokenizer of the checkpoint: merge again"
        return Finding(parity_settings.STOPS, "fail", evidence, fix)

    def padding(self) -> Finding:
        made = self.tokenizer
        number = made.pad_token_id
        pad = None if number is None else (int(number), str(made.pad_token))
        told = (self.generation or {}).get("pad_token_id")
        return parity_settings.padding(pad, self.taught.ends, told, self.vocab_size)

    def vocabulary(self) -> Finding:
        subject, served = self.subject, self.tokenizer
        lost = parity_tokens.lost(served, subject.checkpoint, trust_remote_code=self.trust)
        if lost:
            fix = "ship the tokenizer of the checkpoint: merge again"
            return Finding(parity_files.VOCABULARY, "fail", lost, fix)
        highest = max(served.get_vocab().values())
        rows, size = self._rows()
        return parity_files.vocabulary(highest, len(served), rows, size)

    def _rows(self) -> tuple[Mapping[str, int], int]:
        """Rows of embeddings and head, and how many a server makes room for."""
        if self.subject.form == "quantised":
            return {}, self.vocab_size
        if self.subject.form == "adapter":
            return {}, self._rows_of_adapter() or self.built.vocab_size
        names = (self.built.input, self.built.output)
        places = {name: self.weights.places.get(name) for name in names}
        rows = {name: place.shape[0] for name, place in places.items() if place}
        return rows, self.built.vocab_size

    def _rows_of_adapter(self) -> int | None:
        header = basemodel.safetensors_header(self.subject.directory / "adapter_model.safetensors")
        shapes = {
            name: tuple(entry["shape"]) for name, entry in (header[1] if header else {}).items()
        }
        return models.embedding_rows(shapes, self.built.input.removesuffix(".weight"))


def _document(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file.

    Raises:
        ValueError: something else is in it.
    """
    if not path.is_file():
        return None
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


def subject_of(document: dict[str, Any]) -> Subject:
    """A subject from its JSON."""
    paths = {name: Path(document[name]) for name in ("directory", "base", "checkpoint")}
    return Subject(**{**document, **paths, "rows": tuple(document["rows"])})
