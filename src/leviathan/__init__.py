"""Leviathan: config-driven LoRA fine-tuning on Axolotl."""

from typing import Any

__version__ = "0.1.0"


def choices(cfg: Any, **options: Any) -> Any:
    """``lessons.choices`` where Axolotl finds it: it loads a transform from top-level modules only.

    (axolotl/prompt_strategies/base.py imports the last name but one of ``type`` as a module.)
    """
    from leviathan import lessons  # every command imports this package; few need lessons

    return lessons.choices(cfg, **options)
