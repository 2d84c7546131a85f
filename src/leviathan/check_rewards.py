"""Owns the verdict on a user's reward functions: that training will find and can call them.

Their module is imported in a child process (``reward_probe``): it may be slow, or end it. Does
not write any (``rewards``), nor judge the batch (``reinforcement``).
"""

import json
import os
import subprocess
import sys

from leviathan import reinforcement
from leviathan.checkup import Check, Subject

_LONGEST_S = 120.0
_FIX = (
    "name module.function of a file beside configs/, or of an installed package (trl.reward_funcs)"
)


def rewards(subject: Subject) -> Check | None:
    """Whether every function in ``trl.reward_funcs`` can be imported and called."""
    tree = dict(subject.tree)
    if not reinforcement.rewarded(tree):
        return None
    names = [str(name) for name in (tree.get("trl") or {}).get("reward_funcs") or []]
    # A path or a hub's name is a reward model, Axolotl's to load.
    theirs = [n for n in names if not n.startswith(reinforcement.SHIPPED) and "/" not in n]
    found = _probe(theirs) if theirs else {}
    wrong = [f"reward function {name}: {problem}" for name, problem in found.items() if problem]
    if wrong:
        return Check("rewards", "fail", "; ".join(wrong), _FIX)
    return Check("rewards", "pass", ", ".join(names))


def _probe(names: list[str]) -> dict[str, str]:
    command = [sys.executable, "-m", "leviathan.reward_probe", *names]
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=_LONGEST_S,
        )  # fmt: skip
        told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {names[0]: f"importing it took more than {_LONGEST_S:.0f} s"}
    except (OSError, ValueError, IndexError):
        return {names[0]: "importing it ended the process"}
    return told
