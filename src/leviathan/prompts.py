"""Owns the prompt suite: its YAML, its cases, and what an answer must satisfy.

Does not ask a model (``generation``, ``endpoint``) nor count what passed (``scores``).
"""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from leviathan import config, yamlfile
from leviathan.errors import BadInput

_FLAGS = re.MULTILINE


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    """Without special tokens, trimmed."""
    stopped: bool
    """It ended by a stop token, not for want of tokens."""


class Check(_Strict):
    """One condition on an answer; exactly one of its keys is given. Dashes do for underscores."""

    contains: str | None = None
    """This text occurs, in any case."""
    not_contains: str | None = None
    """This text does not occur, in any case."""
    regex: str | None = None
    """This pattern is found (Python's re, multi-line)."""
    exact: str | None = None
    """The whole trimmed answer is this."""
    json_schema: dict[str, Any] | None = None
    """The whole answer is JSON that this schema admits."""
    max_length: int | None = Field(None, ge=0)
    """The trimmed answer has at most so many characters."""
    stops_by_itself: bool | None = None
    """The answer ended by a stop token before max_new_tokens were up; false: it did not."""

    @model_validator(mode="before")
    @classmethod
    def _dashes(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        found = {str(key).replace("-", "_"): value for key, value in given.items()}
        if len(found) < len(given):
            raise ValueError("a check has exactly one key; one is here twice")
        return found

    @field_validator("regex")
    @classmethod
    def _pattern(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "", _FLAGS)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return regex

    @field_validator("json_schema")
    @classmethod
    def _schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        import jsonschema  # only suites that use it pay for it

        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from error
        return schema

    @model_validator(mode="after")
    def _one_kind(self) -> "Check":
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"a check has exactly one of {names}")
        return self

    def holds(self, answer: Answer) -> bool:
        """Whether ``answer`` satisfies this check.

        Raises:
            BadInput: the schema refers to one that is not in it.
        """
        text = answer.text.strip()
        if self.contains is not None:
            return self.contains.lower() in text.lower()
        if self.not_contains is not None:
            return self.not_contains.lower() not in text.lower()
        if self.regex is not None:
            return re.search(self.regex, answer.text, _FLAGS) is not None
        if self.json_schema is not None:
            return _admits(self.json_schema, text)
        if self.max_length is not None:
            return len(text) <= self.max_length
        if self.stops_by_itself is not None:
            return answer.stopped is self.stops_by_itself
        return text == (self.exact or "").strip()


def _admits(schema: dict[str, Any], text: str) -> bool:
    """Whether ``text`` is JSON of this schema; no other document is ever looked up."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    # An empty registry: jsonschema's own would ask the network for an unknown $ref.
    validator = jsonschema.validators.validator_for(schema)(schema, registry=Registry())
    try:
        return bool(validator.is_valid(value))
    except Unresolvable as error:
        raise BadInput(f"a json_schema refers to what is not in it: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class _Manner(_Strict):
    """What a case and the suite's defaults may both say."""

    system: str | None = None
    """System message put first."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer generated, in tokens."""
    temperature: float = Field(0.0, ge=0, le=5)
    """0: always the likeliest token. Above, tokens are drawn: the higher, the more evenly."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How much the case counts in the pass rate, beside the others."""
    tags: list[str] = []
    """Groups it belongs to: --tag selects, results have a rate for each."""


class Defaults(_Manner):
    """What every case of a suite says unless it says something else itself."""

    checks: list[Check] | None = Field(None, min_length=1)
    """Those of a case that has none of its own."""


class Case(_Manner):
    """One question and what its answer must satisfy."""

    name: str
    """Short name, shown in results."""
    prompt: str | None = None
    """What the user says; this or messages."""
    messages: list[Message] | None = Field(None, min_length=1)
    """A conversation that ends with what the user says; this or prompt."""
    checks: list[Check] = Field(min_length=1)
    """All must hold."""

    @model_validator(mode="after")
    def _one_question(self) -> "Case":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a case has exactly one of prompt, messages")
        turns = self.messages or []
        if turns and turns[-1].role != "user":
            raise ValueError("messages must end with the user's")
        if any(turn.role == "system" for turn in turns[0 if self.system is not None else 1 :]):
            raise ValueError("one system message at most, and first")
        return self

    @property
    def question(self) -> str:
        """What the user says last."""
        return self.messages[-1].content if self.messages else self.prompt or ""

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates and servers take them."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        if self.messages is None:
            return [*first, {"role": "user", "content": self.question}]
        return [*first, *(message.model_dump() for message in self.messages)]


class Suite(_Strict):
    """A file under ``configs/suites``."""

    description: str = ""
    """One line about what the suite asks."""
    defaults: Defaults = Defaults()
    """What cases have in common; a key of a case's own replaces it whole."""
    cases: list[Case] = Field(min_length=1)
    """The questions."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("cases"), list):
            return given
        shared = given.get("defaults")
        if not isinstance(shared, dict):
            return given
        # A mistake in defaults is told once, there, and not again with every case.
        wrong = _wrong_keys(shared)
        shared = {key: value for key, value in shared.items() if key not in wrong}
        return {**given, "cases": [_filled(case, shared) for case in given["cases"]]}


def _wrong_keys(shared: dict[Any, Any]) -> set[Any]:
    try:
        Defaults.model_validate(shared)
    except ValidationError as error:
        return {problem["loc"][0] for problem in error.errors()}
    return set()


def _filled(case: Any, shared: dict[Any, Any]) -> Any:
    """``case`` as its file has it, with what ``shared`` says and it does not."""
    if not isinstance(case, dict):
        return case
    turns = case.get("messages")
    begins = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(begins, dict) and begins.get("role") == "system":  # it brings its own
        shared = {key: value for key, value in shared.items() if key != "system"}
    return {**shared, **case}


def find(name: str) -> Path:
    """The file of the suite ``name`` (a name or a path).

    Raises:
        BadInput: there is none; the nearest name is offered.
    """
    if Path(name).is_file():
        return Path(name)
    known = config.names("suites")
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"no prompt suite called {name!r}", f"{hint}known: {', '.join(known)}")


def load(path: Path) -> Suite:
    """Read a suite.

    Raises:
        BadInput: every problem of the file, a line each with file:line.
    """
    source = yamlfile.load(path)
    return config.validated(Suite, source.data, source.where)


def tagged(suite: Suite, tags: Sequence[str]) -> Suite:
    """The cases that have one of ``tags``; all of them without tags.

    Raises:
        BadInput: no case has such a tag.
    """
    known = sorted({tag for case in suite.cases for tag in case.tags})
    for tag in tags:
        if tag not in known:
            raise BadInput(f"no case has the tag {tag!r}", f"known: {', '.join(known) or 'none'}")
    if not tags:
        return suite
    kept = [case for case in suite.cases if set(tags) & set(case.tags)]
    return suite.model_copy(update={"cases": kept})


def judge(case: Case, answer: Answer) -> bool:
    """Whether every check of ``case`` holds."""
    return all(check.holds(answer) for check in case.checks)
