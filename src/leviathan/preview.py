"""Owns how rows will be read: their tokens, trained or masked, by Axolotl itself where it is here.

Axolotl is asked in a child process (``preview_probe``), as it imports torch; meanwhile the caller
goes on. Without it the rows are rendered as ``plan`` and ``data stats`` do, and where both
answer they are compared. Does not choose the rows, nor draw them (``ui``).
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import basemodel, knobs, schema, steps, templates, tokenizer
from leviathan.errors import BadInput
from leviathan.tokenizer import Tokenizer

LEVIATHAN = "leviathan"
_LONGEST_S = 300.0  # a cold import of torch from a network disk takes minutes
_ANOTHER_KIND = ("rl", "reward_model", "process_reward_model", "pretraining_dataset", "streaming")


@dataclass(frozen=True)
class Token:
    """One token of a row."""

    text: str
    """All of a row together are its text: a character of several tokens stands at the last."""
    id: int
    trained: bool
    special: bool = False
    """One of the tokenizer's own, not text that looks like it."""


@dataclass(frozen=True)
class Previewed:
    """One row, as it is trained on."""

    tokens: tuple[Token, ...] = ()
    left: tuple[int, ...] = ()
    """Lengths of the rows it becomes, once those too long (or short) are dropped, cut or split."""
    problem: str = ""
    """Why it is refused."""
    agrees: bool | None = None
    """Whether Leviathan counts the same tokens and mask as Axolotl; None: not compared."""

    @property
    def trained(self) -> int:
        """Tokens with loss, of those that are left."""
        return sum(token.trained for token in self.tokens[: sum(self.left)])

    @property
    def masked(self) -> int:
        """Tokens without loss, of those that are left."""
        return sum(self.left) - self.trained


@dataclass(frozen=True)
class Preview:
    """Several rows, and who read them."""

    rows: tuple[Previewed, ...]
    by: str
    """``axolotl <version>``, or ``leviathan``."""
    reason: str = ""
    """Why not by Axolotl; without rows, why not at all."""
    sequence_len: int = 0

    @property
    def agrees(self) -> bool | None:
        """Whether Leviathan reads all of them the same; None: not compared."""
        compared = [row.agrees for row in self.rows if row.agrees is not None]
        return all(compared) if compared else None


def as_document(found: Preview) -> dict[str, Any]:
    """The preview in ``data check --json``."""
    rows = [
        {
            "tokens": len(row.tokens),
            "trained": row.trained,
            "masked": row.masked,
            "left": row.left,
            "problem": row.problem,
            "agrees": row.agrees,
            "pieces": [astuple(token) for token in row.tokens],
        }
        for row in found.rows
    ]
    return {
        "by": found.by,
        "reason": found.reason,
        "agrees": found.agrees,
        "sequence_len": found.sequence_len,
        "rows": rows,
    }


# --- asking ------------------------------------------------------------------------------


def start(tree: dict[str, Any], rows: Sequence[dict[str, Any]]) -> "Pending":
    """Begin to read ``rows`` as a training with this configuration would; returns at once.

    Args:
        tree: merged Axolotl configuration.
        rows: of the corpus, parsed.

    Raises:
        BadInput: a size of the configuration is no size.
    """
    limit = knobs.read(tree).sequence_len
    other = next((key for key in _ANOTHER_KIND if tree.get(key)), None)
    if other or not rows:
        wrong = f"{other} is set: only supervised fine-tuning is shown"
        return Pending(tree, (), limit, None, wrong if other else "there are no rows")
    reason = _unaskable(tree)
    return Pending(tree, rows, limit, None if reason else _Child(tree, rows), reason)


def _unaskable(tree: dict[str, Any]) -> str:
    """Why Axolotl is not asked; empty where it is."""
    if schema.installed_version() is None:
        return "axolotl is not installed"
    name, revision = _name(tree), str(tree.get("revision_of_model") or "main")
    if not Path(name).is_dir() and basemodel.snapshot(name, os.environ, revision) is None:
        return f"no tokenizer of {name} here"
    return ""


def _name(tree: dict[str, Any]) -> str:
    """Of the model whose tokenizer it is."""
    return str(tree.get("tokenizer_config") or tree["base_model"])


class Pending:
    """Rows that are being read; to be used in a ``with`` block, which ends the child."""

    def __init__(
        self,
        tree: dict[str, Any],
        rows: Sequence[dict[str, Any]],
        limit: int,
        child: "_Child | None",
        reason: str,
    ) -> None:
        self._tree, self._rows, self._limit = tree, rows, limit
        self._child, self._reason = child, reason

    def __enter__(self) -> "Pending":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.end()

    def result(self) -> Preview:
        """The rows, once they are read; by Leviathan alone where Axolotl cannot be asked."""
        limit = self._limit
        theirs, reason = self._child.answer() if self._child else (None, self._reason)
        own, missing = _rendered(self._tree, self._rows, limit) if self._rows else ([], "")
        if theirs is None:
            reason = "; ".join(dict.fromkeys(text for text in (reason, missing) if text))
            return Preview(tuple(own), LEVIATHAN, reason, limit)
        if own:
            pairs = zip(theirs, own, strict=True)
            theirs = [replace(one, agrees=_same(one, other, limit)) for one, other in pairs]
        if self._tree["datasets"][0].get("type") == "chat_template":
            theirs = list(map(_explained, theirs, self._rows, itertools.repeat(self._rows)))
        return Preview(tuple(theirs), f"axolotl {schema.installed_version()}", "", limit)


class _Child:
    """The process that imports Axolotl."""

    def __init__(self, tree: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="leviathan-preview-")
        folder = Path(self._directory.name)
        self._answer, self._told = folder / "answer.json", folder / "told"
        question = folder / "question.json"
        question.write_text(json.dumps({"tree": tree, "rows": rows}, default=str))
        environment = {
            **os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "cache"),
        }  # fmt: skip
        command = [sys.executable, "-m", "leviathan.preview_probe", str(question)]
        self._until = time.monotonic() + _LONGEST_S
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                [*command, str(self._answer)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told,
            )  # fmt: skip

    def answer(self) -> tuple[list[Previewed] | None, str]:
        """What Axolotl makes of the rows, or why it cannot be told."""
        try:
            code = self._process.wait(max(0.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None, f"axolotl did not answer within {_LONGEST_S:.0f} s"
        try:
            found = json.loads(self._answer.read_bytes())
        except (OSError, ValueError):
            told = self._told.read_text(errors="replace").replace("\r", "\n").split("\n")
            last = [line.strip() for line in told if line.strip()][-1:]
            return None, ": ".join([f"axolotl's process ended with code {code}", *last])
        if "problem" in found:
            return None, str(found["problem"])
        return [_previewed(row) for row in found["rows"]], ""

    def end(self) -> None:
        """Kill it if it is still there, and remove its files."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._directory.cleanup()


def _explained(found: Previewed, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Previewed:
    """A row that is refused as other rows have a column that Axolotl asks for by its presence."""
    if not found.problem or "system" in row or not any("system" in other for other in rows):
        return found
    why = "other rows have 'system', this one has not: Axolotl gives it one without text"
    return replace(found, problem=f"{found.problem} ({why})")


def _previewed(row: dict[str, Any]) -> Previewed:
    tokens = tuple(Token(*token) for token in row.get("tokens", ()))
    return Previewed(tokens, tuple(row.get("left", ())), str(row.get("problem", "")))


# --- by Leviathan alone ------------------------------------------------------------------


def _rendered(
    tree: dict[str, Any], rows: Sequence[dict[str, Any]], limit: int
) -> tuple[list[Previewed], str]:
    """Every row by ``templates`` and ``tokenizer``; or none, and why."""
    file = tokenizer.find(tree)
    if file is None:
        return [], f"no tokenizer of {_name(tree)} here"
    special, template = tokenizer.special_tokens(file, tree), tokenizer.chat_template(file)
    try:
        form, made = templates.read(tree, special, template), Tokenizer(file, tree)
    except ImportError:
        return [], "the tokenizers library is not installed"
    except BadInput as error:
        return [], error.line
    return list(_each(form, made, steps.rules(tree), rows, limit)), ""


def _each(
    form: templates.Format,
    made: Tokenizer,
    rules: steps.Rules,
    rows: Sequence[dict[str, Any]],
    limit: int,
) -> Iterator[Previewed]:
    for row in rows:
        try:
            spelled = made.spell(form.render(row), adds_special_tokens=form.adds_special_tokens)
        except BadInput as error:
            yield Previewed(problem=error.line)
            continue
        texts = made.pieces(spelled.ids)
        own = (number in made.own for number in spelled.ids)
        tokens = tuple(map(Token, texts, spelled.ids, spelled.trained, own))
        yield _kept(tokens, rules, limit, splits=form.kind == "completion")


def _kept(tokens: tuple[Token, ...], rules: steps.Rules, limit: int, *, splits: bool) -> Previewed:
    """A row and what is left of it."""
    pieces = _pieces(len(tokens), limit) if splits else [len(tokens)] * bool(tokens)
    long = any(piece > limit for piece in pieces)
    if long and rules.excess_length == "raise":
        return Previewed(tokens, problem=f"{len(tokens):,} tokens, sequence_len is {limit:,}")
    if rules.excess_length == "truncate":
        pieces = [min(piece, limit) for piece in pieces]
    left = (piece for piece in pieces if rules.min_tokens <= piece <= limit)
    return Previewed(tokens, tuple(left))


def _pieces(count: int, limit: int) -> list[int]:
    """A completion's text, cut to so many pieces of ``limit`` tokens at most."""
    whole, rest = divmod(min(count, steps.COMPLETION_PIECES * limit), limit)
    return [limit] * whole + [rest] * bool(rest)


def _same(theirs: Previewed, own: Previewed, limit: int) -> bool:
    """Whether both read a row alike.

    Of one longer than ``limit``, Axolotl may have cut prompt and answer each by itself: what is
    behind the limit is not trained on, and not compared.
    """
    if bool(theirs.problem) != bool(own.problem) or theirs.left != own.left:
        return False
    some = limit if len(theirs.tokens) != len(own.tokens) else None
    return [(t.id, t.trained) for t in theirs.tokens[:some]] == [
        (t.id, t.trained) for t in own.tokens[:some]
    ]
