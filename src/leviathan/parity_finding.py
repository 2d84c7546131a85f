"""Owns one finding of the serving-parity checks, and what several of them come to.

Does not find any (``parity``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "fixed", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check of a model's directory came to."""

    check: str
    state: State
    """ok; fixed (was wrong, and was written right); warn (told); fail (not to be served)."""
    evidence: str
    """One line: what was seen."""
    fix: str = ""
    """What to do, or what was done; empty of one that is ok."""


def failed(findings: Iterable[Finding]) -> Finding | None:
    """The first one that forbids serving."""
    return next((one for one in findings if one.state == "fail"), None)


def lines(findings: Sequence[Finding]) -> list[str]:
    """A line that says how many checks pass, and one for each that is not simply ok."""
    passed = sum(one.state in ("ok", "fixed") for one in findings)
    told = [
        f"  {one.check}, {one.state}: {one.evidence}" + (f"; {one.fix}" if one.fix else "")
        for one in findings
        if one.state != "ok"
    ]
    return [f"serving parity: {passed} of {len(findings)} checks pass", *told]


def read(documents: Iterable[dict[str, Any]]) -> tuple[Finding, ...]:
    """Findings from their JSON."""
    return tuple(Finding(**document) for document in documents)
