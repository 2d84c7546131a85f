"""Owns the ``dash`` command: TensorBoard over the runs of this directory."""

from typing import Annotated

import typer

RunArgument = Annotated[
    str | None, typer.Argument(help="A run's name or directory; every run when left out.")
]


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("dash", short_help="TensorBoard on this machine only, and the tunnel to it.")(dash)


def dash(
    run: RunArgument = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free from 6006.")
    ] = None,
) -> None:
    """Open TensorBoard on 127.0.0.1 until Ctrl+C; nothing of it stays behind."""
    from leviathan import dashboard, loopback, runs, signals, ui
    from leviathan.errors import LeviathanError

    directory = dashboard.folder(runs.find(run) if run else None)
    chosen = loopback.free_port(port, dashboard.PORT)

    with signals.interrupting():
        try:
            with dashboard.serving(directory, chosen) as process:
                ui.say(f"TensorBoard: http://{loopback.HOST}:{chosen}/ (Ctrl+C ends it)")
                ui.say(f"from elsewhere: {loopback.tunnel(chosen)}")
                process.wait()
        except KeyboardInterrupt:
            return
    raise LeviathanError("TensorBoard ended by itself", "run the same command again")
