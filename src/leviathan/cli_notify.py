"""Owns the ``notify`` command."""

from typing import Annotated, Any

import typer

from leviathan.cli_config import JsonOption, ProfileOption


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("notify", short_help="Send a test message by every notification hook.")(notify)


def notify(
    profile: ProfileOption = "a4000",
    kind: Annotated[
        str | None, typer.Option(help="Only by hooks that tell of this: finished, crashed, ...")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a test message by every hook of the profile's notify; exit code 1 if one fails."""
    import os

    from leviathan import config, delivery, hooks, ui

    known = _known(kind)
    name, loaded, _ = config.load_profile(profile)
    wanted = [hook for hook in loaded.notify if known is None or known in hook.when]
    rows = []
    for hook in wanted:
        target = hooks.target(hook, os.environ)
        failure = delivery.send(hook, target, _message(known or "test"))
        rows.append({"hook": target.label, "sent": not failure,
                     "problem": failure.text if failure else "", "fix": target.fix})  # fmt: skip
    if as_json:
        ui.document(rows)
    else:
        _show(rows, name, known)
    if not all(row["sent"] for row in rows):
        raise typer.Exit(1)


def _known(kind: str | None) -> str | None:
    import difflib

    from leviathan import hooks
    from leviathan.errors import BadInput

    if kind is None or kind in hooks.KINDS:
        return kind
    close = difflib.get_close_matches(kind, hooks.KINDS, n=1)
    offer = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"--kind {kind!r} is nothing that is told",
                   f"{offer}known: {', '.join(hooks.KINDS)}")  # fmt: skip


def _message(kind: str) -> Any:
    import socket
    import time

    from leviathan.delivery import Message

    return Message(
        (kind,), "test", "sent by leviathan notify, no run is concerned", socket.gethostname(),
        time.time(),
    )  # fmt: skip


def _show(rows: list[dict[str, Any]], profile: str, kind: str | None) -> None:
    from leviathan import ui

    if not rows:
        of = f" of {kind}" if kind else ""
        ui.say(f"profile {profile} tells nobody{of}: it has no such hook under notify:")
    for row in rows:
        if row["sent"]:
            ui.say(f"sent    {row['hook']}")
            continue
        fix = f"; {row['fix']}" if row["fix"] else ""
        ui.say(f"failed  {row['hook']}: {row['problem']}{fix}")
