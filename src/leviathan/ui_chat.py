"""Owns a conversation in a terminal: lines in, answers out as they come.

What the lines mean is ``chat``'s, who answers ``interview``'s.
"""

from collections.abc import Iterator
from contextlib import suppress

from leviathan import ui
from leviathan.chat import Chat
from leviathan.errors import LeviathanError
from leviathan.interview import Partner
from leviathan.spelled import plain

_NAMES = {False: "tuned", True: "base"}


def talk(partner: Partner, chat: Chat) -> None:
    """Until /quit or the end of input; Ctrl+C ends an answer, not the conversation."""
    with suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and a history of lines come with the import
    ui.notice("/help lists the commands; /quit or Ctrl+D ends")
    if not chat.remembers:
        ui.notice("the model has no chat template: each question stands for itself")
    while not chat.ended:
        try:
            line = input("> ")
        except EOFError:
            ui.say()
            return
        except KeyboardInterrupt:
            ui.notice("\n/quit or Ctrl+D ends")
            continue
        if line.strip():
            _turn(partner, chat, line)


def _turn(partner: Partner, chat: Chat, line: str) -> None:
    try:
        if line.startswith("/"):
            if said := chat.command(line):
                ui.notice(said)
            return
        # All before the first is kept: a second voice must not hear the first one's answer.
        messages, kept = chat.asked(line.strip()), None
        for of_base in chat.voices:
            label = f"{_NAMES[of_base]}: " if len(chat.voices) > 1 else ""
            answer, whole = show(partner.stream(messages, of_base=of_base), label)
            kept = answer if kept is None else kept
            if not whole:
                break
        chat.keep(line.strip(), kept or "")
    except LeviathanError as problem:  # a wrong command or a server that is gone: go on
        ui.error(problem, verbose=False)


def show(pieces: Iterator[str], label: str = "") -> tuple[str, bool]:
    """Show an answer as it comes; its text, and whether it was not cut off by Ctrl+C."""
    found: list[str] = []
    whole = True
    ui.raw(label)
    try:
        for piece in pieces:
            shown = piece if found else piece.lstrip()
            if shown:
                found.append(shown)
                ui.raw(plain(shown))
    except KeyboardInterrupt:
        whole = False
    finally:
        getattr(pieces, "close", lambda: None)()
    ui.raw("\n" if whole else " …\n")
    return "".join(found).strip(), whole
