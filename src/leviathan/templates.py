"""Owns the text a corpus row is trained as: Axolotl's alpaca, chat and completion formats.

Does not tokenise (``tokens``), read a row's messages (``conversations``) or choose a chat
template (``chat_templates``). Formats it cannot follow are rendered roughly, and say so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from leviathan import chat_templates, conversations, lessons, models
from leviathan.chat_templates import Template
from leviathan.conversations import Reading
from leviathan.errors import BadInput

# The prompt with an input, axolotl/prompters.py AlpacaPrompter (a test compares them).
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
)
_FOLLOWED = {
    "alpaca": {"type"},
    "completion": {"type", "field"},
    "chat_template": {
        "type", "chat_template", "chat_template_jinja", "train_on_eos", "train_on_eot",
        *conversations.FOLLOWED,
    },
}  # fmt: skip
_OTHERS = ("[[another]]", "zz other zz")  # they begin and end as Axolotl's, and differently
_ANYWHERE = {"path", "ds_type"}
UNFOLLOWED_KEYS = ("added_tokens_overrides", "tokenizer_use_mistral_common", "processor_type",
                    "dataset_exact_deduplication", "test_datasets",
                    "dataset_shard_num", "pretraining_dataset", "streaming", "rl")  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One message of a conversation in its text."""

    begin: int
    end: int
    """Characters of its content; ``begin`` where the text does not have it."""
    trained: bool


@dataclass(frozen=True)
class Ends:
    """Which of the tokens that end a turn are trained on."""

    tokens: tuple[str, ...] | None = None
    """``eot_tokens``; None: the tokenizer's eos token."""
    eot: str = "turn"
    """Of these: all, turn (of those that are trained), last, none."""
    eos: str = "turn"
    """Of the eos token."""


@dataclass(frozen=True)
class Text:
    """One row as text."""

    prompt: str
    """Comes first, tokenised by itself (alpaca's question); empty where there is none."""
    answer: str
    """Comes after it."""
    turns: tuple[Turn, ...] | None = None
    """Those in ``answer`` that decide what is trained on; None: all of it is."""
    prompt_trained: bool = False
    ends: Ends = Ends()


@dataclass(frozen=True)
class Format:
    """How the rows of one corpus become text."""

    kind: Literal["alpaca", "chat", "completion", "choices", "unknown"]
    required: tuple[str, ...]
    """Keys a row must have."""
    render: Callable[[dict[str, Any]], Text]
    unfollowed: tuple[str, ...]
    """Settings that change the rows in ways not followed here: figures are estimates then."""

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds BOS by itself: a chat template writes its own."""
        return self.kind != "chat"


def read(tree: dict[str, Any], special: dict[str, str], default_template: str | None) -> Format:
    """The format of the first dataset of a merged Axolotl ``tree``.

    Args:
        tree: merged configuration.
        special: ``bos_token`` and the like, for chat templates.
        default_template: the tokenizer's own chat template, if it has one.

    Raises:
        BadInput: the chat template asked for is not to be found.
    """
    entry, *others = tree["datasets"]
    kind = str(entry.get("type"))
    known = _FOLLOWED.get(kind, {"type"})
    unfollowed = [f"datasets.0.{key}" for key in entry if key not in known | _ANYWHERE]
    unfollowed += [f"datasets.{number}" for number, _ in enumerate(others, 1)]
    unfollowed += [key for key in UNFOLLOWED_KEYS if tree.get(key)]
    if kind == "alpaca":
        inputs = bool(tree.get("train_on_inputs"))
        return Format(
            "alpaca", ("instruction", "output"), lambda row: _alpaca(row, inputs), tuple(unfollowed)
        )
    if kind == "completion":
        field = str(entry.get("field") or "text")
        return Format(
            "completion", (field,), lambda row: Text("", _text(row, field)), tuple(unfollowed)
        )
    if kind == "chat_template":
        return _chat_format(tree, entry, special, default_template, unfollowed)
    if kind == lessons.TYPE:
        unfollowed = [key for key in unfollowed if key != "rl"]
        return _choices_format(tree, entry, special, default_template, unfollowed)
    unfollowed.append(f"datasets.0.type: {kind}")
    return Format("unknown", (), lambda row: Text("", "\n".join(_strings(row))), tuple(unfollowed))


def _text(row: dict[str, Any], field: str) -> str:
    """A field's text; absent and null are none, as for Axolotl.

    Raises:
        BadInput: it holds something else.
    """
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{field!r} holds {type(value).__name__}, not text", "every row needs text")
    return value or ""


def _alpaca(row: dict[str, Any], train_on_inputs: bool) -> Text:
    given = row.get("input")
    template = ALPACA_WITH_INPUT if given else models.ALPACA
    prompt = template.format(prompt=row.get("instruction"), input=given)
    return Text(prompt, _text(row, "output"), prompt_trained=train_on_inputs)


def _strings(value: Any) -> list[str]:
    """Every text below ``value``."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]


# --- chat ------------------------------------------------------------------------------


def _chat_format(
    tree: dict[str, Any],
    entry: dict[str, Any],
    special: dict[str, str],
    default_template: str | None,
    unfollowed: list[str],
) -> Format:
    reading, inputs = Reading.of(entry), bool(tree.get("train_on_inputs"))
    template, missing = _template(tree, entry, special, default_template)
    if template is None:
        unfollowed.append(missing)
        return Format(
            "chat", (reading.field,), lambda row: _plain_chat(row, reading, inputs),
            tuple(unfollowed),
        )  # fmt: skip
    ends = _ends(tree, entry, special, template.source)
    chat = _Chat(reading, template, ends, inputs, _name(tree))
    return Format("chat", (reading.field,), chat.text, tuple(unfollowed))


def _choices_format(
    tree: dict[str, Any],
    entry: dict[str, Any],
    special: dict[str, str],
    default_template: str | None,
    unfollowed: list[str],
) -> Format:
    """Questions with choices: the question is all there is to count, the answer is yet to be."""
    required = ("question", "choices", "answer")
    template, _ = _template(tree, entry, special, default_template)
    if template is None:
        return Format(
            "choices", required, lambda row: Text(_asked(row), "", prompt_trained=True),
            tuple(unfollowed),
        )  # fmt: skip

    def render(row: dict[str, Any]) -> Text:
        _refuse_unsound(row)
        try:
            text = template.render(lessons.messages(row), None, asks=True)
        except Exception as error:  # a template is a program: it may raise anything
            raise BadInput(f"the chat template refuses it: {error}") from error
        return Text("", text, (Turn(0, len(text), True),))

    return Format("chat", required, render, tuple(unfollowed))


def _asked(row: dict[str, Any]) -> str:
    _refuse_unsound(row)
    return lessons.text(row)


def _refuse_unsound(row: dict[str, Any]) -> None:
    for _, what in lessons.problems(row):
        raise BadInput(what, "leviathan data check tells every such row")


def chat_text(tree: dict[str, Any], default_template: str | None) -> str | None:
    """The Jinja text that the rows of a merged ``tree`` go through; None where none does.

    Raises:
        BadInput: see ``read``.
    """
    entry = tree["datasets"][0]
    is_chat = entry.get("type") in {"chat_template", lessons.TYPE}
    return chat_templates.chosen(tree, entry, default_template) if is_chat else None


def _template(
    tree: dict[str, Any], entry: dict[str, Any], special: dict[str, str], own: str | None
) -> tuple[Template | None, str]:
    """The chat template, or why it cannot be followed."""
    source = chat_templates.chosen(tree, entry, own)
    if not source:
        return None, "the chat template (none is at hand)"
    try:
        return Template(source, {**special, **(tree.get("chat_template_kwargs") or {})}), ""
    except ImportError:
        return None, "jinja2"


def _ends(
    tree: dict[str, Any], entry: dict[str, Any], special: dict[str, str], source: str
) -> Ends:
    eos = str(entry.get("train_on_eos") or "turn")
    eot = str(entry.get("train_on_eot") or eos)
    given = tree.get("eot_tokens")
    if given is None or given == [special.get("eos_token")]:
        return Ends(None, eot, eos)
    return Ends(tuple(text for text in given if text in source), eot, eos)


def _name(tree: dict[str, Any]) -> str:
    names = (tree.get(key) for key in ("tokenizer_config", "base_model_config", "base_model"))
    return str(next((name for name in names if name), ""))


@dataclass(frozen=True)
class _Chat:
    """Rows of messages, rendered by a template."""

    reading: Reading
    template: Template
    ends: Ends
    inputs: bool
    tokenizer: str

    def text(self, row: dict[str, Any]) -> Text:
        """One row.

        Raises:
            BadInput: its messages are none, or the template refuses them.
        """
        turns = self.reading.turns(row, self.template.keys)
        tools = conversations.tools(row)

        def put(turns: list[dict[str, Any]]) -> str:
            return self.template.render(turns, tools)

        try:
            text = put(turns)
            return Text("", text, tuple(self._found(text, turns, put)), ends=self.ends)
        except Exception as error:  # a template is a program: it may raise anything
            raise BadInput(f"the chat template refuses it: {error}") from error

    def _found(
        self,
        text: str,
        turns: list[dict[str, Any]],
        put: Callable[[list[dict[str, Any]]], str],
    ) -> Iterator[Turn]:
        every = "all" in {self.ends.eot, self.ends.eos}
        for index, turn in enumerate(turns):
            trained = self.reading.trains(turn, inputs=self.inputs)
            if not (trained or every):
                continue
            if index == 0 and turn["role"] == "system" and "mistral" in self.tokenizer.lower():
                yield Turn(0, 0, trained)  # Axolotl does not look for it there
                continue
            yield Turn(*_span(text, turns, index, put), trained)


def _span(
    text: str, turns: list[dict[str, Any]], index: int, put: Callable[[list[dict[str, Any]]], str]
) -> tuple[int, int]:
    """Where a turn's content stands in the rendered ``text``; nowhere: an empty span.

    A content is what changes when another is put in its place (and, as Axolotl does it,
    all else that the turn has, is left out). Two others, that begin and end differently: what
    one has in common with the content by chance, the other has not.
    """
    begin, end = len(text), 0
    for other in _OTHERS:
        dummy = {"role": turns[index]["role"], "content": other}
        changed = put([*turns[:index], dummy, *turns[index + 1 :]])
        before = _shared(text, changed)
        after = _shared(text[before:][::-1], changed[before:][::-1])
        begin, end = min(begin, before), max(end, len(text) - after)
    return begin, max(begin, end)


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _plain_chat(row: dict[str, Any], reading: Reading, inputs: bool) -> Text:
    """The messages with marks about as long as a template's, where there is no template."""
    text, turns = "", []
    for turn in reading.turns(row, frozenset()):
        text += f"<|{turn['role']}|>\n"
        content = str(turn.get("content") or "")
        if content and reading.trains(turn, inputs=inputs):
            turns.append(Turn(len(text), len(text) + len(content), trained=True))
        text += content + "\n"
    return Text("", text, tuple(turns))
