"""Owns the command ``infer``: one question, or a conversation, with a run or a model."""

from typing import TYPE_CHECKING, Annotated

import typer

from leviathan.cli_checkpoints import CheckpointOption
from leviathan.cli_config import JsonOption
from leviathan.cli_test import TargetArgument

if TYPE_CHECKING:
    from leviathan.chat import Chat, Voice
    from leviathan.interview import Partner


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("infer", short_help="Ask a run or a model, or chat with it.")(infer)


def infer(
    target: TargetArgument = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-q", help="One question; without it standard input, or a chat."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="The base model answers instead.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Both answer, the tuned model first.")
    ] = False,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    temperature: Annotated[
        float, typer.Option(min=0.0, max=5.0, help="0: always the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.01, max=1.0, help="Sampled among these likeliest.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    checkpoint: CheckpointOption = "best",
    model: Annotated[str, typer.Option("--model", help="Which of a server's models.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask a run, a merged model or a server; without a question, talk with it."""
    from dataclasses import asdict

    from leviathan import chat, interview, streaming, ui, ui_chat
    from leviathan.errors import BadInput

    if base and compare:
        raise BadInput("--base and --compare together", "--compare shows both already")
    question = _question(prompt, as_json=as_json)
    sampling = streaming.Sampling(temperature, top_p, seed)
    partner = interview.find(
        target, checkpoint, model, max_new_tokens, sampling, of_base=base or compare
    )
    if partner.caution:
        ui.warn(partner.caution)
    voice: Voice = "both" if compare else "base" if base else "tuned"
    conversation = chat.Chat(partner.has_base, partner.remembers, system, voice)
    if question is None:
        ui_chat.talk(partner, conversation)
    else:
        _once(partner, conversation, question, asdict(sampling), as_json=as_json)


def _question(prompt: str | None, *, as_json: bool) -> str | None:
    """What is asked; None: a person will type it."""
    import sys

    from leviathan import ui
    from leviathan.errors import BadInput

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is None and ui.is_terminal() and not as_json:
        return None
    if prompt is None or not prompt.strip():
        raise BadInput("nothing to ask: no --prompt and no terminal", "give --prompt TEXT")
    return prompt.strip()


def _once(
    partner: "Partner", chat: "Chat", question: str, sampled: dict[str, float], *, as_json: bool
) -> None:
    from leviathan import ui, ui_chat

    messages, said = chat.asked(question), {}
    for of_base in chat.voices:
        pieces, name = partner.stream(messages, of_base=of_base), "base" if of_base else "tuned"
        if as_json:
            said[name] = "".join(pieces).strip()
            continue
        _, whole = ui_chat.show(pieces, f"{name}: " if len(chat.voices) > 1 else "")
        if not whole:
            raise KeyboardInterrupt
    if as_json:
        ui.document({"messages": messages, "answers": said, **sampled})
