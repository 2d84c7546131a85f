"""Events in words."""

import pytest

from leviathan import story


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "start", "session": 1, "step": 0},
         ("note", "session 1 starts from the base model")),
        ({"event": "resume", "session": 2, "step": 40},
         ("note", "session 2 resumes from checkpoint-40")),
        ({"event": "save", "step": 50, "save_s": 1.5}, ("good", "saved checkpoint-50")),
        ({"event": "eval", "step": 50, "eval_loss": 1.23456}, ("note", "step 50: eval loss 1.235")),
        ({"event": "eval", "step": 50}, None),
        ({"event": "ladder", "why": "memory ran out", "reason": "next rung: micro_batch_size 4 -> 2"},
         ("warn", "memory ran out; next rung: micro_batch_size 4 -> 2")),
        ({"event": "guard", "kind": "nan", "text": "the gradient is nan"},
         ("bad", "the gradient is nan")),
        ({"event": "session_end", "outcome": "done", "reason": ""}, ("good", "session ended, done")),
        ({"event": "session_end", "outcome": "failed", "reason": "exit code 1"},
         ("bad", "session ended, failed: exit code 1")),
        ({"event": "warning", "text": None}, None),
        ({"event": "warning", "text": "two\n lines"}, ("warn", "two lines")),
        ({"event": "train_begin", "step": 0}, None),
        ({"event": "of a later version", "step": 0}, None),
        ({"event": ["strange"]}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_line(event, line):
    assert story.line(event) == line


def test_what_a_terminal_would_obey_is_not_in_it():
    assert story.line({"event": "warning", "text": "a\x1b[2Jb\x9bc"}) == ("warn", "a?[2Jb?c")
