"""Owns a run's events in words: a line for each that a person would want to know of.

Does not read them (``runs``) nor judge what they add up to (``verdicts``).
"""

from collections.abc import Mapping
from typing import Any

from leviathan import files, spelled


def line(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """How grave it is (good, note, warn or bad) and what it is; None for what is only noise."""
    kind = event.get("event")
    facts = _Facts(event)
    grade, template = _WORDS.get(str(kind), ("", ""))
    if kind == "session_end":
        grade = {"done": "good", "failed": "bad"}.get(str(event.get("outcome")), "note")
    elif kind == "merge":
        grade = "good" if event.get("verdict") == "equal" else "warn"
    elif kind == "eval" and files.number(event.get("eval_loss")) is None:
        return None
    if not template:
        return None
    text = spelled.plain(" ".join(template.format_map(facts).split()).rstrip(" :;,"))
    return (grade, text) if text else None


# Other kinds tell of nothing new: train_begin, waited, measured, save_asked.
_WORDS = {
    "start": ("note", "session {session} starts from the base model"),
    "resume": ("note", "session {session} resumes from checkpoint-{step}"),
    "eval": ("note", "step {step}: eval loss {eval_loss}"),
    "save": ("good", "saved checkpoint-{step}"),
    "remove": ("note", "removed checkpoint-{step} ({reason})"),
    "slim": ("note", "took the optimizer out of checkpoint-{step} ({reason})"),
    "early_stop": ("note", "early stopping: {text}"),
    "warning": ("warn", "{text}"),
    "guard": ("bad", "{text}"),
    "kill": ("bad", "{text}"),
    "pause": ("warn", "paused: {text}"),
    "unpause": ("note", "goes on: {text}"),
    "stop": ("warn", "stopping: {text}"),
    "stop_asked": ("note", "asked to stop ({by})"),
    "restart": ("warn", "{why}; {reason}"),
    "ladder": ("warn", "{why}; {reason}"),
    "rung_refused": ("warn", "rung refused: {why}"),
    "shrink": ("warn", "goes on as {to}"),
    "quarantine": ("warn", "checkpoint-{step} quarantined: {reason}"),
    "set_aside": ("note", "checkpoint-{step} set aside: {reason}"),
    "session_end": ("note", "session ended, {outcome}: {reason}"),
    "merge": ("note", "merged: {verdict}"),
}


class _Facts(dict[str, Any]):
    """What an event tells, for people; what it does not tell is empty."""

    def __getitem__(self, name: str) -> Any:
        value = super().get(name)
        if value is None:
            return ""
        return f"{value:.4g}" if isinstance(value, float) else value
