"""Owns the command ``serve``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leviathan.cli_config import JsonOption

if TYPE_CHECKING:
    from leviathan.engines import Command, Offer
    from leviathan.prompts import Case
    from leviathan.serve import Reply, Server


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("serve", short_help="Serve a proven model, OpenAI-compatible.")(serve)


ServedArgument = Annotated[
    str | None, typer.Argument(help="A model's directory, or a run that was merged.")
]
EngineOption = Annotated[
    str | None,
    typer.Option(help="vllm or transformers. Default: vLLM where it and a GPU are found."),
]
AdapterOption = Annotated[
    bool,
    typer.Option("--adapter", help="Base and adapter, unmerged (merge --adapter-only; vLLM)."),
]
MergedOfOption = Annotated[
    str | None,
    typer.Option("--checkpoint", "-c", help="What was merged of it: best, latest or N."),
]
LogOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show what the server prints, on stderr.")
]
VllmOption = Annotated[
    Path | None, typer.Option("--vllm", help="vLLM's program. Default $LEVIATHAN_VLLM, PATH.")
]


def serve(
    called: typer.Context,
    target: ServedArgument = None,
    engine: EngineOption = None,
    adapter: AdapterOption = False,
    checkpoint: MergedOfOption = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="The card to fit; default this machine's.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=16, help="Longest conversation, in tokens; vLLM only.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free from 8000.")
    ] = None,
    vllm: VllmOption = None,
    suite: Annotated[
        str | None, typer.Option(help="Prompt suite to try it with; default the run's.")
    ] = None,
    smoke: Annotated[int, typer.Option(min=0, help="How many prompts try it.")] = 3,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for it.")] = 900,
    check: Annotated[
        bool, typer.Option("--check", help="End after the prompts; exit 1 if one is unanswered.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Serve what is not proven, or to other machines.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the command.")] = False,
    verbose: LogOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a proven model by vLLM or transformers, try it, and stop it with Ctrl+C."""
    import shlex

    from leviathan import loopback, ui
    from leviathan import serve as serving

    offered, row_format = serving.offer(target, adapter=adapter, force=force, checkpoint=checkpoint)
    if offered.checkpoint:
        ui.notice(f"{offered.adapter or offered.model} was made of {offered.checkpoint}")
    if force:
        ui.warn("--force: what is served was not compared with its proof")
    cases = serving.questions(suite or serving.suite_of(target), smoke)
    free = loopback.free_port(port, serving.PORT, host)
    command = _command(offered, engine, vllm, profile, context, host, free, force=force)
    ui.notice(f"$ {shlex.join(command.arguments)}")
    for note in command.notes:
        ui.notice(note)
    if dry_run:
        if as_json:
            ui.document({"command": command.arguments, "model": command.model})
        return
    chat = serving.has_chat_template(offered)
    verbose = verbose or bool(called.parent and called.parent.params.get("verbose"))
    _live(command, host, free, timeout, cases, None if chat else row_format, check=check,
          as_json=as_json, verbose=verbose)  # fmt: skip


def _command(
    offered: "Offer", wanted: str | None, vllm: Path | None, profile: str | None,
    context: int | None, host: str, port: int, *, force: bool,
) -> "Command":  # fmt: skip
    import os

    from leviathan import config, engines, machine, ui
    from leviathan.errors import BadInput, Refused

    gpus = machine.probe().gpus
    executable = engines.find_vllm(vllm)
    name, why = engines.choose(wanted, executable, has_gpu=bool(gpus))
    ui.notice(f"engine {name}: {why}")
    locked = name == engines.VLLM and os.environ.get(engines.KEY_VARIABLE)
    if host not in ("127.0.0.1", "localhost", "::1") and not (force or locked):
        raise Refused(
            f"whoever reaches {host} could use this server, without a password",
            f"leave --host out and use the SSH tunnel, or set {engines.KEY_VARIABLE} for vLLM",
        )
    if name == engines.TRANSFORMERS or executable is None:
        if context or profile:
            raise BadInput("--context and --profile are vLLM's", "leave them out, or --engine vllm")
        return engines.transformers_command(offered, host, port, has_gpu=bool(gpus))
    card = None
    if profile:
        hardware = config.load_profile(profile)[1].hardware
        if hardware.memory_gib:
            card = engines.Card(hardware.gpu or profile, hardware.memory_gib, hardware.count)
    elif gpus:
        card = engines.Card(gpus[0].name, gpus[0].memory_gib)
    return engines.vllm_command(executable, offered, host, port, card, context)


def _live(
    command: "Command", host: str, port: int, timeout: float, cases: "list[Case]",
    row_format: str | None,
    *, check: bool, as_json: bool, verbose: bool,
) -> None:  # fmt: skip
    from leviathan import serve as serving
    from leviathan import signals, ui
    from leviathan.errors import LeviathanError

    with signals.interrupting():
        try:
            tell = ui.notice if verbose else None
            with serving.serving(command, host, port, timeout, tell) as server:
                replies = serving.try_out(server, cases, row_format=row_format)
                _show(server, replies, host, port, chat=row_format is None, as_json=as_json)
                unanswered = [reply.name for reply in replies if not reply.answer]
                if check and unanswered:
                    raise LeviathanError(f"no answer to {', '.join(unanswered)}")
                if check:
                    return
                _wait(server)
        except KeyboardInterrupt:
            ui.notice("stopped")


def _show(
    server: "Server", replies: "list[Reply]", host: str, port: int, *, chat: bool, as_json: bool
) -> None:
    from leviathan import loopback, ui
    from leviathan import serve as serving

    if as_json:
        ui.document(serving.summary(server, replies))
        return
    for reply in replies:
        ui.say(f"{reply.prompt}")
        ui.say(f"  {reply.answer or '(no answer)'}", style="dim")
        ui.say(f"  {reply.finish_reason}, {reply.seconds:.1f} s", style="dim")
        if not reply.answer:
            ui.warn(f"no answer to {reply.name}")
        elif reply.finish_reason == "length":
            ui.warn(f"{reply.name} did not stop by itself")
    if pace := serving.pace(replies):
        ui.say(
            f"{pace['tok_s']:.1f} tokens/s: {pace['tokens']:.0f} tokens of {pace['answers']:.0f} "
            f"answers in {pace['seconds']:.1f} s, one request at a time, reading prompts included"
        )
    elif replies:
        ui.say("no tokens/s: the server does not say how many tokens an answer has")
    curl, python = serving.examples(server, chat=chat)
    ui.say(f"serving {server.command.model} at {server.url}/v1")
    if not chat:
        ui.say("it has no chat template: send rendered prompts to /v1/completions")
    ui.say()
    ui.raw(f"{curl}\n\n{python}\n\n")
    if chat:
        ui.say(f"try it: {serving.test_line(server)}")
    if host in ("127.0.0.1", "localhost"):
        ui.say(f"from elsewhere: {loopback.tunnel(port)}")
    ui.say(f"log {server.log}; Ctrl+C stops it")


def _wait(server: "Server") -> None:
    import time

    from leviathan.diagnosis import last_error
    from leviathan.errors import LeviathanError

    while server.ended() is None:
        time.sleep(0.5)
    raise LeviathanError(f"the server ended: {last_error(server.log)}", f"log: {server.log}")
