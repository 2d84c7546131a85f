"""Owns chat templates: which one a configuration asks for, and running it.

Axolotl is not imported: its templates are read as files. Does not know a row's messages
(``conversations``) nor what is trained (``templates``).
"""

import importlib.util
import json
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from leviathan.errors import BadInput

_DEFAULT = "tokenizer_default"
_FALLBACK = "tokenizer_default_fallback_"


def chosen(tree: dict[str, Any], entry: dict[str, Any], own: str | None) -> str | None:
    """The Jinja text for one dataset, as axolotl/utils/chat_templates/base.py chooses it.

    A dataset without ``chat_template`` takes the tokenizer's, even if it has a
    ``chat_template_jinja`` (schemas/datasets.py); the tokenizer's is the configuration's,
    where that has one (loaders/tokenizer.py).

    Args:
        tree: merged configuration.
        entry: of the dataset.
        own: the template that came with the tokenizer.
    """
    jinja = tree.get("chat_template_jinja")
    general = _text(tree.get("chat_template") or ("jinja" if jinja else _DEFAULT), jinja, own)
    return _text(entry.get("chat_template") or _DEFAULT, entry.get("chat_template_jinja"), general)


def _text(choice: str, jinja: str | None, default: str | None) -> str | None:
    if choice == _DEFAULT or (choice.startswith(_FALLBACK) and default):
        return default
    if choice == "jinja":
        if not jinja:
            raise BadInput("chat_template is jinja, and there is none", "set chat_template_jinja")
        return Path(jinja).read_text() if _is_file(jinja) else jinja
    return _shipped(choice.removeprefix(_FALLBACK))


def _is_file(jinja: str) -> bool:
    try:
        return Path(jinja).is_file()
    except OSError:  # too long for a name: it is the template itself
        return False


def shipped() -> dict[str, Path]:
    """The templates that Axolotl ships, by name; none where it is not installed."""
    spec = importlib.util.find_spec("axolotl")  # finds the package, imports nothing
    roots = list(spec.submodule_search_locations or []) if spec else []
    folders = [Path(root) / "utils/chat_templates/templates" for root in roots]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.jinja"))}


def _shipped(name: str) -> str | None:
    known = shipped()
    if known and name not in known:
        raise BadInput(f"chat_template {name!r} is not one Axolotl knows", ", ".join(known))
    return known[name].read_text() if known else None


class Template:
    """A chat template, compiled in the environment that transformers gives it."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        """Compile ``source``; ``variables`` are there beside messages and tools.

        Raises:
            ImportError: jinja2 is not installed; it comes with the training stack.
            BadInput: not Jinja.
        """
        self.source = source
        self._variables = variables
        self._compiled, self.keys = _compiled(source)
        """``keys``: of a message, those Axolotl hands on beside the mapped ones."""

    def render(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, *, asks: bool = False
    ) -> str:
        """The conversation as text, with ``asks`` up to where the answer begins.

        Raises whatever the template raises.
        """
        made = self._compiled.render(
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=asks,
            **self._variables,
        )
        return str(made)


@cache
def _compiled(source: str) -> tuple[Any, frozenset[str]]:
    import jinja2

    environment = _environment()
    try:
        return environment.from_string(source), _keys(environment.parse(source))
    except jinja2.TemplateError as error:
        raise BadInput(f"the chat template is not Jinja: {error}") from error


def _keys(parsed: Any) -> frozenset[str]:
    """Every name looked up on a variable called ``message``.

    That is what prompt_strategies/jinja_template_analyzer.py comes to: a template that calls
    its loop variable otherwise gets role and content, and no tool_calls.
    """
    from jinja2 import nodes

    def base(node: Any) -> str | None:
        while isinstance(node, nodes.Getattr | nodes.Getitem):
            node = node.node
        return node.name if isinstance(node, nodes.Name) else None

    found: set[str] = set()
    for node in parsed.find_all((nodes.Getattr, nodes.Getitem)):
        if base(node.node) != "message":
            continue
        if isinstance(node, nodes.Getattr):
            found.add(node.attr)
        elif isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            found.add(node.arg.value)
    return frozenset(found)


def _environment() -> Any:
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` blocks: what is inside them, unchanged."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            """The statements up to ``endgeneration``."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _today}
    return environment


def _refuse(message: str) -> None:
    raise ValueError(message)


_today: Callable[[str], str] = lambda form: datetime.now().strftime(form)  # noqa: E731
