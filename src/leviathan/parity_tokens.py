"""Owns the parity of a conversation's tokens: how training read rows, how a server renders them.

Training's side is Leviathan's own reading of rows (``templates``, ``tokenizer``), from the base
model's tokenizer and the run's configuration: proven equal to Axolotl's, and no child process.
The server's side is transformers' tokenizer of the directory that is to be served, which vLLM
uses too. Does not know weights (``parity_files``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import (
    chat_templates,
    conversations,
    files,
    preview,
    reinforcement,
    templates,
    tokenizer,
)
from leviathan.conversations import Reading
from leviathan.errors import BadInput
from leviathan.parity_finding import Finding
from leviathan.parity_settings import Taught
from leviathan.tokenizer import Spelled, Tokenizer

TEMPLATE, TOKENS = "chat template", "rendered tokens"
REWARDS = "rewards"
JINJA = "chat_template.jinja"
_UNFOLLOWED_HERE = "added_tokens_overrides"
Asked = Callable[["Trained"], list[list[int]] | None]
_TRAIN = "train again with the template that is to be served"


@dataclass(frozen=True)
class Row:
    """One row as training reads it."""

    row: dict[str, Any]
    text: templates.Text
    spelled: Spelled


@dataclass(frozen=True)
class Trained:
    """How training read the rows of its corpus."""

    kind: str
    """alpaca, chat, completion, rewards or unknown."""
    rows: tuple[Row, ...]
    template: str | None
    """The Jinja text that conversations went through; None: none did, or none is at hand."""
    ends: tuple[str, ...]
    """Tokens declared to end an answer, the eos token first."""
    unsure: str
    """Why this reading may not be training's; empty where it is."""
    made: Tokenizer
    tree: dict[str, Any]


def read(tree: dict[str, Any], checkpoint: Path, rows: Sequence[dict[str, Any]]) -> Trained:
    """Read ``rows`` as the training did whose configuration is ``tree``.

    Raises:
        BadInput: it read no such rows, or there is no tokenizer.json or template to read them with.
    """
    if not tree.get("datasets"):
        raise BadInput("training read no rows of a dataset")
    # Where it renamed tokens, training wrote tokenizer files of its own: the checkpoint has them.
    base = None if tree.get(_UNFOLLOWED_HERE) else tokenizer.find(tree)
    file = base or checkpoint / "tokenizer.json"
    if not file.is_file():
        raise BadInput("training's tokenizer has no tokenizer.json to compare with")
    tree = {key: value for key, value in tree.items() if key != _UNFOLLOWED_HERE}
    special, own = tokenizer.special_tokens(file, tree), tokenizer.chat_template(file)
    form, made = templates.read(tree, special, own), Tokenizer(file, tree)
    template = templates.chat_text(tree, own)
    eot = (tree.get("eot_tokens") or []) if form.kind == "chat" else []
    turn_ends = [text for text in eot if text in (template or "")]
    eos = [special["eos_token"]] if special.get("eos_token") else []
    # Answers that earn rewards are the model's own: no row shows how one ends.
    kind, shown = (REWARDS, ()) if reinforcement.rewarded(tree) else (form.kind, rows)
    return Trained(
        kind, tuple(_rows(form, made, shown)), template,
        tuple(dict.fromkeys([*eos, *turn_ends])), ", ".join(form.unfollowed), made, tree,
    )  # fmt: skip


def _rows(form: templates.Format, made: Tokenizer, rows: Sequence[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        try:
            text = form.render(row)
        except BadInput:  # training dropped it, or failed on it
            continue
        yield Row(row, text, made.spell(text, adds_special_tokens=form.adds_special_tokens))


def taught(trained: Trained) -> Taught:
    """The tokens that rows were trained to end with, and those they went on behind."""
    declared = {trained.made.number(text): text for text in trained.ends}
    ends = {number: text for number, text in declared.items() if number is not None}
    seen: dict[int, str] = {}
    inside: set[int] = set()
    rows = trained.rows if trained.kind != "unknown" else ()
    for row in rows:
        ids, has_loss = row.spelled.ids, (*row.spelled.trained, False)
        for place, number in enumerate(ids):
            if not has_loss[place]:
                continue
            if has_loss[place + 1]:
                inside.add(number)
            elif number in ends or number in trained.made.own:
                seen[number] = trained.made.text(number)
    ends |= {number: text for number, text in seen.items() if number not in ends}
    # Of settings that are not followed the reading is too rough to call an id wrong.
    cut = set() if trained.unsure else inside - ends.keys()
    named = {number: trained.made.text(number) for number in cut}
    return Taught(ends, bool(seen), named, len(rows))


def lost(served: Any, checkpoint: Path, *, trust_remote_code: bool) -> str:
    """Tokens of training's tokenizer that are not in the served one under the same id; or empty."""
    from transformers import AutoTokenizer

    if not (checkpoint / "tokenizer_config.json").is_file():
        return ""
    ours = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    theirs = served.get_vocab()
    found = [token for token, number in ours.get_vocab().items() if theirs.get(token) != number]
    count = f"{len(found)} of training's {len(ours)} tokens"
    return f"{count} are not in the tokenizer, {found[0]!r} for one" if found else ""


# --- the template ------------------------------------------------------------------------


def chat_template(directory: Path, trained: Trained, *, repair: bool) -> Finding:
    """The directory brings the template that training put conversations through."""
    served = tokenizer.chat_template(directory / "tokenizer.json")
    if trained.kind not in ("chat", REWARDS) or (trained.kind == REWARDS and not trained.template):
        return _without_conversations(served, trained.kind)
    if trained.template is None:
        evidence = "training's template is not at hand: Axolotl is not installed"
        return Finding(TEMPLATE, "warn", evidence, "pip install 'leviathan[train]', merge again")
    if served == trained.template:
        return Finding(TEMPLATE, "ok", f"training's, {len(served)} characters")
    if served and _renders_as_trained(served, trained):
        return Finding(TEMPLATE, "ok", "not training's text, but it renders rows the same")
    wrong = "another one than training's" if served else "training's is not there"
    if not repair:
        return Finding(TEMPLATE, "fail", wrong, "merge again: it writes training's")
    files.write_text(directory / JINJA, trained.template)
    return Finding(TEMPLATE, "fixed", wrong, f"{JINJA} is training's now")


def _without_conversations(served: str | None, kind: str) -> Finding:
    if served is None or kind == "unknown":
        how = (
            "put prompts as Axolotl's alpaca does: Below is an instruction ... ### Response:"
            if kind == "alpaca" else "give text to go on from"
        )  # fmt: skip
        there = "none is there" if served is None else "the base model's is there"
        return Finding(TEMPLATE, "ok", f"training used none, {there}: {how}")
    return Finding(
        TEMPLATE, "warn",
        f"the tokenizer brings one that training did not use: it read {kind} rows",
        f"use /v1/completions and put prompts as {kind} rows are, or train with format: chat",
    )  # fmt: skip


def _renders_as_trained(served: str, trained: Trained) -> bool:
    reading = Reading.of(trained.tree["datasets"][0])
    special = tokenizer.special_tokens(trained.made.file, trained.tree)
    try:
        made = chat_templates.Template(served, special)
        texts = [
            made.render(reading.turns(r.row, made.keys), conversations.tools(r.row))
            for r in trained.rows
        ]
    except Exception:  # a template is a program: it may raise anything
        return False
    return bool(texts) and texts == [row.text.answer for row in trained.rows]


# --- the tokens --------------------------------------------------------------------------


def tokens(served: Any, trained: Trained, ask: Asked | None = None) -> Finding:
    """What a server makes of rows is, token by token, what training read.

    Args:
        served: transformers' tokenizer of the directory.
        trained: how training read the same rows.
        ask: who knows better, if they differ.
    """
    if trained.kind == REWARDS:
        evidence = "trained by rewards: questions went through the tokenizer's own template"
        return Finding(TOKENS, "ok", evidence)
    if trained.kind == "unknown" or not trained.rows:
        why = trained.unsure if trained.kind == "unknown" else "no row of the sample is here"
        return Finding(TOKENS, "warn", f"not compared: {why}", "compare a prompt by hand")
    sides = [_served(served, row, trained, {}) for row in trained.rows]
    problem = _first_difference(served, trained, sides)
    if problem is None:
        return _compared(served, trained)
    asked = ask(trained) if ask else None
    if asked == sides:
        return Finding(TOKENS, "ok", f"{len(sides)} rows: equal to those that Axolotl makes")
    options = trained.tree.get("chat_template_kwargs")
    if options and trained.kind == "chat":
        with_them = [_served(served, row, trained, options) for row in trained.rows]
        if _first_difference(served, trained, with_them) is None:
            return Finding(
                TOKENS, "warn", f"equal only with chat_template_kwargs {options}",
                "send chat_template_kwargs in every request",
            )  # fmt: skip
    if trained.unsure and asked is None:
        evidence = f"{problem}; but {trained.unsure} is not followed here"
        return Finding(TOKENS, "warn", evidence, "compare with leviathan data check")
    return Finding(TOKENS, "fail", problem, "ship training's tokenizer and template: merge again")


def by_axolotl(trained: Trained) -> list[list[int]] | None:
    """The rows' tokens by Axolotl, in a process of its own; None where it cannot be asked."""
    with preview.start(trained.tree, [row.row for row in trained.rows]) as pending:
        found = pending.result()
    if found.by == preview.LEVIATHAN or any(row.problem for row in found.rows):
        return None
    return [[token.id for token in row.tokens] for row in found.rows]


def _served(served: Any, row: Row, trained: Trained, options: dict[str, Any]) -> list[int]:
    """The tokens of a whole row as a server makes them: the prompt, then the answer."""
    if trained.kind == "chat":
        turns, tools = _conversation(row, trained)
        found = served.apply_chat_template(
            turns, tools=tools, tokenize=True, return_dict=False, **options
        )
        return [int(number) for number in found]
    prompt = list(served(row.text.prompt)["input_ids"]) if row.text.prompt else []
    answer = list(served(row.text.answer)["input_ids"]) if row.text.answer else []
    if answer and answer[-1] != served.eos_token_id:
        answer.append(served.eos_token_id)  # where a server stops
    if prompt and answer and answer[0] == served.bos_token_id:
        del answer[0]  # it goes on from the prompt
    return prompt + answer


def _conversation(row: Row, trained: Trained) -> tuple[list[dict[str, Any]], list[Any] | None]:
    reading = Reading.of(trained.tree["datasets"][0])
    keys = chat_templates.Template(trained.template or "", {}).keys
    turns = reading.turns(row.row, keys)
    return turns, conversations.tools(row.row)


def _first_difference(served: Any, trained: Trained, sides: Sequence[list[int]]) -> str | None:
    for number, (row, theirs) in enumerate(zip(trained.rows, sides, strict=True), 1):
        ours = list(row.spelled.ids)
        if theirs == ours:
            continue
        pairs = zip(ours, theirs, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        one = _token(trained.made.text, ours, place)
        other = _token(served.convert_ids_to_tokens, theirs, place)
        return f"row {number} parts at token {place + 1}: trained on {one}, served {other}"
    return None


def _token(spell: Callable[[int], str], ids: list[int], place: int) -> str:
    return f"{spell(ids[place])!r} ({ids[place]})" if place < len(ids) else "nothing more"


def _compared(served: Any, trained: Trained) -> Finding:
    """They are equal; is what a server puts before an answer what stood before one?"""
    count = sum(len(row.spelled.ids) for row in trained.rows)
    told = f"{len(trained.rows)} rows, {count} tokens: equal to those trained on"
    if trained.kind == "chat":
        for number, row in enumerate(trained.rows, 1):
            if (problem := _prompt_problem(served, row, trained)) is not None:
                return Finding(TOKENS, "warn", f"{told}; row {number}: {problem}", _TRAIN)
    return Finding(TOKENS, "ok", told)


def _prompt_problem(served: Any, row: Row, trained: Trained) -> str | None:
    """Why the prompt of a row's last answer is no beginning of the row."""
    turns, tools = _conversation(row, trained)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    prompt = str(served.apply_chat_template(
        turns[:-1], tools=tools, tokenize=False, add_generation_prompt=True
    ))  # fmt: skip
    if row.text.answer.startswith(prompt):
        return None
    pairs = zip(prompt, row.text.answer, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(row.text.answer))
    theirs, ours = prompt[at : at + 30], row.text.answer[at : at + 30]
    return f"a server's prompt goes on with {theirs!r}, training with {ours!r}"
