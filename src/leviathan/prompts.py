"""Owns the prompt suite: its YAML, its checks, and the pass rate with an interval.

Does not load models (``models``): it takes a function from prompt to answer.
"""

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leviathan import config, yamlfile
from leviathan.errors import BadInput


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Strict):
    """One condition on an answer; exactly one of its keys is given."""

    contains: str | None = None
    """This text occurs, in any case."""
    not_contains: str | None = None
    """This text does not occur, in any case."""
    regex: str | None = None
    """This pattern is found (Python's re, multi-line)."""
    exact: str | None = None
    """The whole trimmed answer is this."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Check":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("a check has exactly one of contains, not_contains, regex, exact")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return self

    def holds(self, answer: str) -> bool:
        """Whether ``answer`` satisfies this check."""
        if self.contains is not None:
            return self.contains.lower() in answer.lower()
        if self.not_contains is not None:
            return self.not_contains.lower() not in answer.lower()
        if self.regex is not None:
            return re.search(self.regex, answer, re.MULTILINE) is not None
        return answer.strip() == (self.exact or "").strip()


class Case(_Strict):
    """One prompt and what its answer must satisfy."""

    name: str
    """Short name, shown in results."""
    prompt: str
    """What the user says."""
    checks: list[Check] = Field(min_length=1)
    """All must hold."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer generated, in tokens."""


class Suite(_Strict):
    """A file under ``configs/suites``."""

    description: str = ""
    """One line about what the suite asks."""
    cases: list[Case] = Field(min_length=1)
    """The prompts."""


@dataclass(frozen=True)
class Result:
    """One case with the tuned model's answer, and the base's where it was asked."""

    case: Case
    answer: str
    passed: bool
    base_answer: str | None = None
    base_passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``test --json``'s cases."""
        return {
            "name": self.case.name, "prompt": self.case.prompt, "passed": self.passed,
            "answer": self.answer, "base_passed": self.base_passed,
            "base_answer": self.base_answer,
        }  # fmt: skip


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


def judge(case: Case, answer: str) -> bool:
    """Whether every check of ``case`` holds."""
    return all(check.holds(answer) for check in case.checks)


def ask(
    suite: Suite,
    answer: Callable[[str, int], str],
    base: Callable[[str, int], str] | None = None,
) -> list[Result]:
    """Put every case to the model, and to the base model where given."""
    results = []
    for case in suite.cases:
        text = answer(case.prompt, case.max_new_tokens)
        other = base(case.prompt, case.max_new_tokens) if base else None
        results.append(
            Result(
                case,
                text,
                judge(case, text),
                other,
                judge(case, other) if other is not None else None,
            )
        )
    return results


def interval_pct(passed: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a pass rate, in percent (Wilson 1927)."""
    if total == 0:
        return 0.0, 100.0
    z, share = 1.959964, passed / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return 100 * max(0.0, (centre - spread) / scale), 100 * min(1.0, (centre + spread) / scale)


def summary(results: list[Result]) -> dict[str, Any]:
    """The document of ``test --json``."""
    passed, total = sum(r.passed for r in results), len(results)
    based = [r.base_passed for r in results if r.base_passed is not None]
    return {
        "passed": passed,
        "total": total,
        "pass_pct": round(100 * passed / total, 1) if total else 0.0,
        "interval_pct": [round(v, 1) for v in interval_pct(passed, total)],
        "base_pass_pct": round(100 * sum(based) / len(based), 1) if based else None,
        "cases": [r.to_json() for r in results],
    }
