"""Owns what a prompt suite's answers add up to: rates, intervals, tuned against base.

Pure arithmetic. Does not judge an answer (``prompts``) nor keep a result (``grades``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leviathan import prompts

_BEYOND_CHANCE = 0.05


@dataclass(frozen=True)
class Result:
    """One case with the tuned model's answer, and the base's where it was asked."""

    case: prompts.Case
    answer: prompts.Answer
    passed: bool
    base_answer: prompts.Answer | None = None
    base_passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``test --json``'s cases."""
        base = self.base_answer
        return {
            "name": self.case.name, "prompt": self.case.question, "tags": self.case.tags,
            "weight": self.case.weight, "temperature": self.case.temperature,
            "passed": self.passed, "answer": self.answer.text,
            "stopped": self.answer.stopped, "base_passed": self.base_passed,
            "base_answer": base and base.text, "base_stopped": base and base.stopped,
        }  # fmt: skip


def judged(
    cases: Sequence[prompts.Case],
    answers: Sequence[prompts.Answer],
    base: Sequence[prompts.Answer] | None = None,
) -> list[Result]:
    """The answers to ``cases``, in their order, each with whether it passed."""
    if base is None:
        pairs = zip(cases, answers, strict=True)
        return [Result(case, answer, prompts.judge(case, answer)) for case, answer in pairs]
    return [
        Result(case, answer, prompts.judge(case, answer), other, prompts.judge(case, other))
        for case, answer, other in zip(cases, answers, base, strict=True)
    ]


def interval_pct(passed: float, total: float) -> tuple[float, float]:
    """95 % interval of a pass rate, in percent (Wilson 1927, JASA 22).

    With weights ``total`` is the effective number of cases, ``passed`` the rate's share of it.
    """
    if total == 0:
        return 0.0, 100.0
    z, share = 1.959964, min(passed / total, 1.0)
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return 100 * max(0.0, (centre - spread) / scale), 100 * min(1.0, (centre + spread) / scale)


def effective(weights: Sequence[float]) -> float:
    """How many equally weighted cases say as much (Kish 1965, Survey Sampling)."""
    most = max(weights, default=1.0)  # scaled: the squares of large weights must not overflow
    scaled = [weight / most for weight in weights]
    return sum(scaled) ** 2 / sum(w * w for w in scaled) if scaled else 0.0


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that as many cases are gained as lost (McNemar 1947).

    Args:
        gained: cases that only the tuned model passes.
        lost: cases that only the base passes.
    """
    parted, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(parted, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << parted))


def summary(results: Sequence[Result], seed: int | None = None) -> dict[str, Any]:
    """The document of ``test --json``; ``seed`` is what sampled answers were drawn by."""
    based = [result for result in results if result.base_passed is not None]
    tags = sorted({tag for result in results for tag in result.case.tags})
    base = [(bool(r.base_passed), r.case.weight) for r in based]
    return {
        **_rate([(r.passed, r.case.weight) for r in results]),
        "seed": seed,
        "base_pass_pct": _rate(base)["pass_pct"] if base else None,
        "versus_base": versus([(r.passed, bool(r.base_passed)) for r in based]) if based else None,
        "tags": {
            tag: _rate([(r.passed, r.case.weight) for r in results if tag in r.case.tags])
            for tag in tags
        },
        "cases": [result.to_json() for result in results],
    }


def _rate(marks: Sequence[tuple[bool, float]]) -> dict[str, Any]:
    """The rate of (passed, weight) with its interval."""
    weights = [weight for _, weight in marks]
    most = max(weights, default=1.0)
    whole = sum(weight / most for weight in weights)
    share = sum(weight / most for passed, weight in marks if passed) / whole if marks else 0.0
    size = effective(weights)
    return {
        "passed": sum(passed for passed, _ in marks),
        "total": len(marks),
        "pass_pct": round(100 * share, 1),
        "pass_share": share,  # what decides: 99.96 % is not 100
        "interval_pct": [round(value, 1) for value in interval_pct(share * size, size)],
        "effective_total": round(size, 1),
    }


def versus(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Cases won and lost of (passed, passed by the other), and whether that is beyond chance.

    Without weights.
    """
    gained = sum(passed and not other for passed, other in pairs)
    lost = sum(other and not passed for passed, other in pairs)
    chance = mcnemar(gained, lost)
    word = "better" if gained > lost else "worse"
    return {
        "gained": gained, "lost": lost, "p_value": float(f"{chance:.3g}"),
        "verdict": word if chance < _BEYOND_CHANCE else "not beyond chance",
    }  # fmt: skip
