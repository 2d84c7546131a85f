"""Owns the screen of rows as they will be read: ``data check --show``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leviathan.preview import Preview, Previewed


def show(found: "Preview", places: Sequence[str]) -> None:
    """Draw every row; ``places`` says where each of them stands, as file:line."""
    from leviathan import excerpt, ui

    if not found.rows:
        ui.warn(f"how rows are read cannot be shown: {found.reason}")
        return
    ui.heading(f"As {_reader(found.by)} reads {_rows(len(found.rows))}")
    ui.token_legend()
    for place, row in zip(places, found.rows, strict=True):
        ui.say()
        ui.say(f"{place}: {_figures(row)}", "bold")
        remark = _remark(row, found.sequence_len)
        if remark:
            ui.remark(remark)
        ui.tokens(excerpt.parts(row.tokens))
    _judge(found, places)


def _judge(found: "Preview", places: Sequence[str]) -> None:
    from leviathan import ui

    ui.say()
    if found.reason:
        ui.notice(f"axolotl has not read them: {found.reason}")
    elif found.agrees:
        ui.say("leviathan reads these rows the same: tokens, mask, and what is cut or dropped")
    elif found.agrees is None:
        ui.notice("plan and data stats have no tokenizer.json here to count by")
    else:
        pairs = zip(places, found.rows, strict=True)
        others = ", ".join(place for place, row in pairs if row.agrees is False)
        ui.warn(f"leviathan reads {others} otherwise; what plan and data stats say is an estimate")


def _reader(by: str) -> str:
    return f"{by} itself" if by == "leviathan" else by


def _rows(count: int) -> str:
    return "the first row" if count == 1 else f"the first {count} rows"


def _figures(row: "Previewed") -> str:
    if row.problem and not row.tokens:
        return "refused"
    tokens = "1 token" if len(row.tokens) == 1 else f"{len(row.tokens):,} tokens"
    return tokens if not row.left else f"{tokens}, {row.trained:,} trained, {row.masked:,} masked"


def _remark(row: "Previewed", limit: int) -> str:
    """What becomes of the row, where that is not simply trained on; empty otherwise."""
    if row.problem:
        return f"a training would end here: {row.problem}"
    if not row.tokens:
        return "dropped: it has no token"
    if not row.left:
        long = len(row.tokens) > limit
        return f"dropped: {f'longer than sequence_len {limit:,}' if long else 'too short'}"
    if len(row.left) > 1:
        return f"split into {len(row.left)} rows of up to {limit:,} tokens"
    if row.left[0] < len(row.tokens):
        return f"cut to its first {row.left[0]:,} tokens"
    return "" if row.trained else "nothing in it is trained on"
