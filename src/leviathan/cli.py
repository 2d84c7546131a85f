"""Owns the command line: the application, its commands' order, and the one error boundary.

The command modules (cli_*) parse, call one public function and print. They import
their library inside each command: ``--help`` must answer in a blink, so importing
this module loads typer and nothing heavy (benchmarks/startup.py, tests/test_cli.py).
"""

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from leviathan import __version__
from leviathan.errors import BadInput, LeviathanError

# What the file system refuses is the user's to mend; these are wrong paths: exit code 2.
_USER_ERRNOS = dict.fromkeys(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
    ),
    2,
)


class _Boundary(TyperGroup):
    """The one place where a LeviathanError becomes a line and an exit code."""

    def main(
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; a wrong option or argument is one line like every other mistake."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            # Typer 0.26+ brings its own click: its errors are known by what they can do.
            if not hasattr(error, "format_message"):
                raise
            self._usage_error(error)
            code = 2
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def _usage_error(self, error: Any) -> None:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return
        from leviathan import ui

        place = error.ctx.command_path if getattr(error, "ctx", None) else "leviathan"
        # Typer and click each append their own "Did you mean".
        message = " Did you mean".join(error.format_message().split(" Did you mean")[:2])
        ui.error(BadInput(message.rstrip(".?"), f"see {place} --help"), False)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LeviathanError as error:
            from leviathan import ui

            ui.error(error, bool(ctx.params.get("verbose")))
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:  # `leviathan ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno is None:
                raise
            from leviathan import ui

            where = error.filename2 or error.filename or "the disk"
            ui.error(LeviathanError(f"{where}: {error.strerror}"), bool(ctx.params.get("verbose")))
            raise typer.Exit(_USER_ERRNOS.get(error.errno, 1)) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Boundary,
    no_args_is_help=True,
    # Plain help: rich's boxes cost a third of the start-up (benchmarks/startup.py).
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="LoRA fine-tuning on Axolotl that survives power cuts and proves what it ships.",
)


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"leviathan {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """LoRA fine-tuning on Axolotl that survives power cuts and proves what it ships."""


def _register() -> None:
    from leviathan import (
        cli_bench,
        cli_check,
        cli_checkpoints,
        cli_cloud,
        cli_config,
        cli_dash,
        cli_data,
        cli_demo,
        cli_doctor,
        cli_infer,
        cli_merge,
        cli_mix,
        cli_notify,
        cli_plan,
        cli_report,
        cli_runs,
        cli_serve,
        cli_slim,
        cli_status,
        cli_test,
        cli_train,
        cli_vocabulary,
        cli_watch,
    )

    cli_doctor.register(app)
    cli_config.register(app)
    cli_data.register(app)
    cli_check.register(app)
    cli_mix.register(app)
    cli_vocabulary.register(app)
    cli_plan.register(app)
    cli_bench.register(app)
    cli_train.register(app)
    cli_status.register(app)
    cli_runs.register(app)
    cli_report.register(app)
    cli_watch.register(app)
    cli_notify.register(app)
    cli_dash.register(app)
    cli_checkpoints.register(app)
    cli_slim.register(app)
    cli_merge.register(app)
    cli_test.register(app)
    cli_infer.register(app)
    cli_serve.register(app)
    cli_cloud.register(app)
    cli_demo.register(app)


_register()


def main() -> None:
    """The ``leviathan`` console script."""
    app()


if __name__ == "__main__":
    main()
