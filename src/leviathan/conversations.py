"""Owns the messages of a row: what Axolotl's ``chat_template`` strategy makes of them.

Field names, mapped keys and roles as axolotl/prompt_strategies/chat_template.py takes them.
Does not render them (``chat_templates``, ``templates``).
"""

import json
from dataclasses import dataclass
from typing import Any

from leviathan.errors import BadInput

ROLES = {"human": "user", "gpt": "assistant"}
"""Axolotl's own mapping; other roles keep their names."""
FOLLOWED = {
    "field_messages", "message_property_mappings", "message_field_role", "message_field_content",
    "message_field_training", "roles", "roles_to_train", "drop_system_message",
}  # fmt: skip
"""Keys of a dataset that are followed here."""
_SYSTEM, _TOOLS, _THINKING = "system", "tools", "reasoning_content"  # field_tools has no effect
_TRAINING = "training"


@dataclass(frozen=True)
class Reading:
    """How one dataset's rows are read."""

    field: str
    properties: dict[str, str]
    """Where a message's role, content and so on stand in it."""
    roles: dict[str, str]
    to_train: frozenset[str]
    training: str | None
    """Key of a message that says whether it is trained on."""
    drops_system: bool

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Reading":
        """By the dataset's ``entry`` in the configuration."""
        mapped = {"role": "role", "content": "content"} | (
            entry.get("message_property_mappings") or {}
        )
        for name in mapped:
            mapped[name] = entry.get(f"message_field_{name}") or mapped[name]  # the older way
        given = entry.get("roles")
        roles = {s: role for role, sources in given.items() for s in sources} if given else ROLES
        to_train = entry.get("roles_to_train")
        return cls(
            str(entry.get("field_messages") or "messages"),
            mapped,
            roles,
            frozenset(roles.get(r, r) for r in (["assistant"] if to_train is None else to_train)),
            entry.get("message_field_training"),
            bool(entry.get("drop_system_message")),
        )

    def turns(self, row: dict[str, Any], keys: frozenset[str]) -> list[dict[str, Any]]:
        """The messages of ``row`` as a template gets them, and the row's system prompt.

        Args:
            row: of the corpus.
            keys: what the template looks up on a message.

        Raises:
            BadInput: not a list of messages with a role.
        """
        turns = [self._turn(message, keys) for message in self._messages(row)]
        if turns[0]["role"] != "system" and _SYSTEM in row:
            # Even null: the rows of a dataset have all columns, and Axolotl tests for this one.
            turns.insert(0, {"role": "system", "content": row[_SYSTEM]})
        return turns[1:] if self.drops_system and turns[0]["role"] == "system" else turns

    def trains(self, turn: dict[str, Any], *, inputs: bool) -> bool:
        """Whether there is loss on a turn; ``inputs``: ``train_on_inputs``."""
        if _TRAINING in turn:
            return bool(turn[_TRAINING])
        return inputs or turn["role"] in self.to_train

    def _messages(self, row: dict[str, Any]) -> list[Any]:
        messages = row.get(self.field)
        if isinstance(messages, str):
            try:
                messages = json.loads(messages)
            except ValueError:
                messages = None
        if not isinstance(messages, list) or not messages:
            raise BadInput(f"{self.field!r} is not a list of messages", f"[{self._form()}, ...]")
        return messages

    def _turn(self, message: Any, keys: frozenset[str]) -> dict[str, Any]:
        role = self.properties["role"]
        if not isinstance(message, dict) or not isinstance(message.get(role), str):
            raise BadInput(f"a message in {self.field!r} has no {role!r}", self._form())
        there = {key: value for key, value in message.items() if value is not None}
        turn = {name: there[key] for name, key in self.properties.items() if key in there}
        turn["role"] = self.roles.get(turn["role"], turn["role"])
        rest = there.keys() - self.properties.values()
        turn |= {key: there[key] for key in keys & rest}
        if self.training in there:
            turn[_TRAINING] = there[self.training]
        for name in ("content", _THINKING):
            if isinstance(turn.get(name), list):
                turn[name] = "".join(_part(part) for part in turn[name])
        if turn.get("tool_calls"):
            turn["tool_calls"] = [_call(call) for call in turn["tool_calls"]]
        return turn

    def _form(self) -> str:
        role, content = self.properties["role"], self.properties["content"]
        return f"{{{role}: user, {content}: text}}"


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return ""
    return str(part.get("text") or part.get("content") or part.get("value") or "")


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object, where they are JSON in a string."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": _json(function["arguments"])}}


def tools(row: dict[str, Any]) -> list[Any] | None:
    """The tools a row offers its assistant.

    Raises:
        BadInput: neither a list nor JSON of one.
    """
    found = row.get(_TOOLS)
    found = _json(found) if isinstance(found, str) else found
    if found is None or isinstance(found, list):
        return [_tool(tool) for tool in found or []] or None
    raise BadInput(f"{_TOOLS!r} holds {type(found).__name__}", "it must be a list of tools")


def _tool(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("parameters"), str):
        return tool
    return {**tool, "function": {**function, "parameters": _json(function["parameters"])}}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"tools or their arguments are not JSON: {error}") from error
