"""Owns importing reward functions to see whether they are there; run in a child process.

    python -m leviathan.reward_probe MODULE.FUNCTION...

One JSON line on stdout, the last: ``{name: "" or what is wrong}``. As in training (``-m``), the
directory it is started in comes first on the path. Does not judge (``check_rewards``).
"""

import importlib
import inspect
import json
import sys

_FEWEST = 2  # prompts and completions: Axolotl refuses others (core/trainers/grpo/__init__.py)


def problem(name: str) -> str:
    """Why ``module.function`` cannot be had; empty where it can."""
    module, _, function = name.rpartition(".")
    if not module:
        return "it is no module.function"
    try:
        found = getattr(importlib.import_module(module), function, None)
    except BaseException as error:  # whatever a foreign module raises, SystemExit too
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if found is None:
        return f"module {module} has no {function}"
    if not callable(found):
        return f"it is {type(found).__name__}, no function"
    if len(inspect.signature(found).parameters) < _FEWEST:
        return "it takes fewer than two arguments: prompts, completions, **columns"
    return ""


if __name__ == "__main__":
    answer = {name: problem(name) for name in sys.argv[1:]}
    print("\n" + json.dumps(answer))
