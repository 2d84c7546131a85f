"""Owns the text a corpus row is trained as: Axolotl's alpaca, chat and completion formats.

Does not tokenise (``tokens``) and does not import Axolotl: its chat templates are read as
files. Formats it cannot follow are rendered roughly, and say so.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from leviathan import models
from leviathan.errors import BadInput

# The prompt with an input, axolotl/prompters.py AlpacaPrompter (a test compares them).
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ROLES = {"human": "user", "gpt": "assistant"}  # the others keep their names
_FOLLOWED = {
    "alpaca": {"type"},
    "completion": {"type", "field"},
    "chat_template": {
        "type", "field_messages", "chat_template", "chat_template_jinja", "roles_to_train",
    },
}  # fmt: skip
_OTHERS = ("[[another]]", "zz other zz")  # they begin and end as Axolotl's, and differently
_ANYWHERE = {"path", "ds_type"}
UNFOLLOWED_KEYS = ("added_tokens_overrides", "tokenizer_use_mistral_common", "processor_type",
                    "chat_template_kwargs", "dataset_exact_deduplication", "test_datasets",
                    "dataset_shard_num", "pretraining_dataset", "streaming", "rl")  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One row as text."""

    prompt: str
    """Comes first, tokenised by itself (alpaca's question); empty where there is none."""
    answer: str
    """Comes after it."""
    trained: tuple[tuple[int, int], ...] | None = None
    """Spans of characters of ``answer`` with loss; None for all of it."""
    prompt_trained: bool = False


@dataclass(frozen=True)
class Format:
    """How the rows of one corpus become text."""

    kind: Literal["alpaca", "chat", "completion", "unknown"]
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
    field = str(entry.get("field_messages") or "messages")
    trained = {_ROLES.get(r, r) for r in entry.get("roles_to_train") or ["assistant"]}
    source = _chat_template(tree, entry, default_template)
    compiled = _compiled(source) if source else None
    if compiled is None:
        unfollowed.append("the chat template (none is at hand)" if not source else "jinja2")

    def render(row: dict[str, Any]) -> Text:
        turns = _turns(row, field)
        wanted = trained | {turn["role"] for turn in turns if tree.get("train_on_inputs")}
        if compiled is None:
            return _plain_chat(turns, wanted)

        def put(turns: list[dict[str, Any]]) -> str:
            return str(
                compiled.render(
                    messages=turns, tools=row.get("tools"), add_generation_prompt=False, **special
                )
            )

        try:
            text = put(turns)
            spans = tuple(_spans(text, turns, wanted, put))
        except Exception as error:  # a template is a program: it may raise anything
            raise BadInput(f"the chat template refuses it: {error}") from error
        return Text("", text, spans)

    return Format("chat", (field,), render, tuple(unfollowed))


def chat_text(tree: dict[str, Any], default_template: str | None) -> str | None:
    """The Jinja text that the rows of a merged ``tree`` go through; None where none does.

    Raises:
        BadInput: see ``read``.
    """
    entry = tree["datasets"][0]
    is_chat = entry.get("type") == "chat_template"
    return _chat_template(tree, entry, default_template) if is_chat else None


def _chat_template(
    tree: dict[str, Any], entry: dict[str, Any], default_template: str | None
) -> str | None:
    """The Jinja text, chosen as axolotl/utils/chat_templates/base.py chooses it."""
    for place in (entry, tree):
        choice, jinja = place.get("chat_template"), place.get("chat_template_jinja")
        if jinja and choice in {None, "jinja"}:
            return Path(jinja).read_text() if Path(jinja).is_file() else str(jinja)
        if choice and choice != "tokenizer_default":
            break
    else:
        return default_template
    name = str(choice)
    if name.startswith("tokenizer_default_fallback_"):
        if default_template:
            return default_template
        name = name.removeprefix("tokenizer_default_fallback_")
    return _shipped_template(name)


def _shipped_template(name: str) -> str | None:
    """A template that Axolotl ships; None where Axolotl is not installed."""
    spec = importlib.util.find_spec("axolotl")  # finds the package, imports nothing
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        folder = Path(root) / "utils/chat_templates/templates"
        if folder.is_dir():
            file = folder / f"{name}.jinja"
            if not file.is_file():
                names = ", ".join(sorted(path.stem for path in folder.glob("*.jinja")))
                raise BadInput(f"chat_template {name!r} is not one Axolotl knows", names)
            return file.read_text()
    return None


@cache
def _compiled(source: str) -> Any | None:
    """A Jinja template in the environment that transformers gives it; None without jinja2."""
    try:
        import jinja2.ext  # comes with the training stack, not with the base installation
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return None

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` blocks: what is inside them, unchanged."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            """The statements up to ``endgeneration``."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals |= {
        "raise_exception": refuse, "strftime_now": lambda _: "01 Jan 2026",  # any date's length
    }  # fmt: skip
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BadInput(f"the chat template is not Jinja: {error}") from error


def _turns(row: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The messages as Axolotl hands them to a template.

    Raises:
        BadInput: not a list of messages with role and content.
    """
    messages = row.get(field)
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            messages = None
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{field!r} is not a list of messages", "[{role: user, content: text}, ...]")
    turns = [_turn(message, field) for message in messages]
    if turns[0]["role"] != "system" and isinstance(row.get("system"), str):
        turns.insert(0, {"role": "system", "content": row["system"]})
    return turns


def _turn(message: Any, field: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadInput(f"a message in {field!r} has no role", "{role: user, content: text}")
    turn = {key: value for key, value in message.items() if value is not None}
    turn["role"] = _ROLES.get(turn["role"], turn["role"])
    if isinstance(turn.get("content"), list):
        turn["content"] = "".join(_strings([part.get("text", "") for part in turn["content"]]))
    return turn


def _spans(
    text: str,
    turns: list[dict[str, Any]],
    trained: set[str],
    put: Callable[[list[dict[str, Any]]], str],
) -> Iterator[tuple[int, int]]:
    """Where the trained turns' contents stand in the rendered ``text``.

    A content is what changes when another is put in its place. Two others, that begin and
    end differently: what one has in common with the content by chance, the other has not.
    """
    for index, turn in enumerate(turns):
        if turn["role"] not in trained:
            continue
        begin, end = len(text), 0
        for other in _OTHERS:
            changed = put([*turns[:index], {**turn, "content": other}, *turns[index + 1 :]])
            before = _shared(text, changed)
            after = _shared(text[before:][::-1], changed[before:][::-1])
            begin, end = min(begin, before), max(end, len(text) - after)
        if begin < end:
            yield begin, end


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


def _plain_chat(turns: list[dict[str, Any]], trained: set[str]) -> Text:
    """The messages with marks about as long as a template's, where there is no template."""
    text, spans = "", []
    for turn in turns:
        text += f"<|{turn['role']}|>\n"
        content = str(turn.get("content") or "")
        if content and turn["role"] in trained:
            spans.append((len(text), len(text) + len(content)))
        text += content + "\n"
    return Text("", text, tuple(spans))
