"""Owns reading YAML with positions: every key knows its file and line.

Does not know what any key means; ``config`` does.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leviathan.errors import BadInput

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: ``1e-4`` is a number, ``2026-11-21`` is text.

    PyYAML follows YAML 1.1, where a float needs a dot and a signed exponent, so the
    learning rates people write would arrive as text; and where a date becomes an
    object that JSON cannot hold.
    """


_YAML_1_1_TAGS = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_1_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: plain data, and the 1-based line of every key and list item."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(repr=False)

    def where(self, key: KeyPath) -> str:
        """``file:line`` of the deepest known part of ``key``."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return f"{self.path}:1"


def dotted(key: KeyPath) -> str:
    """A key path as people write it: ``axolotl.datasets.0.type``."""
    return ".".join(str(part) for part in key)


def parse_value(text: str) -> Any:
    """The value of ``--set key=TEXT``, read as YAML, so lists and booleans work.

    Raises:
        BadInput: ``text`` is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"cannot read {text!r} as a YAML value", "quote it") from error


def load(path: Path) -> YamlFile:
    """Read a YAML mapping from ``path``.

    Raises:
        BadInput: unreadable, not YAML, a key given twice, or not a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise BadInput(
            f"{path}: not valid YAML: {error.reason} (character {error.position})"
        ) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlFile(path, {}, {(): 1})
        lines: dict[KeyPath, int] = {}
        _Positions(path, loader, lines).collect(node, ())
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise BadInput(
            f"{path}:{line}: not valid YAML: {error.problem or error.context}",
            "check the indentation and the colons around that line",
        ) from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise BadInput(f"{path}:1: expected keys and values, found {type(data).__name__}")
    return YamlFile(path, data, lines)


class _Positions:
    """Walks the nodes of one file: notes lines, refuses what cannot become plain data."""

    def __init__(self, path: Path, loader: _Loader, lines: dict[KeyPath, int]) -> None:
        self.path, self.loader, self.lines = path, loader, lines
        self._open: list[int] = []

    def collect(self, node: yaml.Node, key: KeyPath) -> None:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        if id(node) in self._open:
            raise BadInput(f"{self.path}:{line}: not valid YAML: an alias contains itself")
        self._open.append(id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, key)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.collect(item, (*key, index))
        else:
            self._scalar(node, line)
        self._open.pop()

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name = str(key_node.value)
            line = key_node.start_mark.line + 1
            if name in seen and name != "<<":
                raise BadInput(
                    f"{self.path}:{line}: {dotted((*key, name))} is given twice",
                    "keep one; YAML would silently use the last",
                )
            seen.add(name)
            self.lines[(*key, name)] = line
            self.collect(value_node, (*key, name))

    def _scalar(self, node: yaml.Node, line: int) -> None:
        try:
            self.loader.construct_object(node)
        except ValueError as error:
            raise BadInput(f"{self.path}:{line}: not valid YAML: {error}") from error


class _Blocks(yaml.SafeDumper):
    """Texts of several lines as blocks, to be read; nothing refers to anything above it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Blocks.add_representer(str, _as_block)


def dump_blocks(data: Any) -> str:
    """``data`` as YAML for others' programs and for people: scripts and files in it are blocks."""
    return yaml.dump(data, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=1 << 20)


def dump(data: Any) -> str:
    """``data`` as YAML in the order given."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
