"""Owns the group of commands ``cloud``: the same run elsewhere."""

import typer

from leviathan import cli_export, cli_transfer


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    cloud = typer.Typer(no_args_is_help=True, help="Train the same run on another machine.")
    cli_export.register(cloud)
    cli_transfer.register(cloud)
    app.add_typer(cloud, name="cloud")
