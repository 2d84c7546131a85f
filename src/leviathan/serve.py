"""Owns serving a finished model: what is served, its server's life, the questions that try it.

Does not know the servers' flags (``engines``) nor speak their API (``endpoint``).
"""

import json
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leviathan import basemodel, evaluate, evidence, leash, models, prompts, runs, tokenizer
from leviathan.diagnosis import last_error
from leviathan.endpoint import Endpoint
from leviathan.engines import KEY_VARIABLE, Command, Offer
from leviathan.errors import BadInput, LeviathanError, Refused

PORT = 8000
LOGS = Path("work/serving")
_POLL_S = 0.2
_NEUTRAL = prompts.Suite(
    cases=[
        prompts.Case(
            name="hello", prompt="Say hello in one sentence.", checks=[prompts.Check(regex=r"\S")]
        )
    ]
)


@dataclass(frozen=True)
class Reply:
    """What came of one prompt that was put to the server."""

    name: str
    prompt: str
    answer: str
    finish_reason: str
    """stop, or length where it ran into its limit."""
    seconds: float
    passed: bool
    """Whether the case's checks hold."""
    tokens: int | None = None
    """Of the answer, as the server counts them."""


def offer(target: str | None, *, adapter: bool, force: bool) -> tuple[Offer, str]:
    """What is to be served, and the format that its proof says it was trained in.

    ``target`` is a directory that ``merge`` made, or a run: then its merged model, or with
    ``adapter`` its adapter made ready by ``merge --adapter-only``.

    Raises:
        BadInput: there is no such model, or the run was not merged yet.
        Refused: it is not proven, has changed since, or its base is not here; unless ``force``.
    """
    directory = Path(target) if target and Path(target).is_dir() else None
    if directory is None or evaluate.is_run(directory):
        directory = _of_run(runs.find(target), adapter=adapter)
    found = evidence.demand(directory, force=force)
    name = directory.resolve().name
    row_format = str(found.told.get("format", "alpaca"))
    if (directory / "config.json").is_file():
        return Offer(name, directory), row_format
    base = str(found.told.get("base_model", ""))
    if not base:
        raise Refused(f"{directory} does not say what it was trained on", "pull the run instead")
    place = basemodel.locate({"base_model": models.local_or_hub(base)}, os.environ).directory
    if place is None:
        raise Refused(f"the base model {base} is not here", "download it")
    proven = found.told.get("base_digest")  # None: a hub's snapshot, which never changes
    if not force and proven and proven != models.fingerprint(str(place)):
        raise Refused(f"{place} is not the base model that was proven", "restore it, or --force")
    return Offer(name, place, directory), row_format


def _of_run(run: runs.RunPaths, *, adapter: bool) -> Path:
    name = run.directory.resolve().name
    directory = Path("models") / f"{name}-{'adapter' if adapter else 'merged'}"
    if directory.is_dir():
        return directory
    option = " --adapter-only" if adapter else ""
    raise BadInput(f"there is no {directory}", f"first: leviathan merge {name}{option}")


def questions(suite: str | None, count: int) -> list[prompts.Case]:
    """The prompts that try a server: the first of a suite, or a neutral one.

    Raises:
        BadInput: no such suite.
    """
    return (prompts.load(prompts.find(suite)) if suite else _NEUTRAL).cases[:count]


def suite_of(target: str | None) -> str | None:
    """The suite of the run that is served; None of a bare directory."""
    if target and Path(target).is_dir() and not evaluate.is_run(Path(target)):
        return None
    run = runs.find(target)
    return evaluate.recipe_of(run, runs.read(run)).suite


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    command: Command
    pid: int
    log: Path
    ended: Callable[[], int | None]
    """Its exit code; None while it runs."""


@contextmanager
def serving(command: Command, host: str, port: int, timeout_s: float) -> Iterator[Server]:
    """The server, answering, until the block ends; then nothing of it is left.

    Raises:
        LeviathanError: it ended, or did not answer within ``timeout_s`` seconds.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{time.strftime('%Y%m%dT%H%M%S')}-{port}.log"
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    url = f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
    with log.open("wb") as stream:
        environment = {**os.environ, **command.environment}
        process = leash.start(command.arguments, stream.fileno(), environment)
    try:
        deadline = time.monotonic() + timeout_s
        while not _is_healthy(url):
            if process.poll() is not None:
                raise LeviathanError(
                    f"the server ended before it answered: {last_error(log)}", f"log: {log}"
                )
            if time.monotonic() > deadline:
                raise LeviathanError(
                    f"the server does not answer after {timeout_s:g} s",
                    f"log: {log}; or give it longer with --timeout",
                )
            time.sleep(_POLL_S)
        yield Server(url, command, process.pid, log, process.poll)
    finally:
        leash.end(process)


def _is_healthy(url: str) -> bool:
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def try_out(server: Server, cases: list[prompts.Case], *, row_format: str | None) -> list[Reply]:
    """Put prompts to the server as a client would.

    ``row_format`` is the format trained in where the model has no chat template: what a client
    then has to send is a completion of the rendered prompt. None: it has one.

    Raises:
        LeviathanError: the server answers with an error.
    """
    endpoint = Endpoint(server.url, server.command.model, os.environ.get(KEY_VARIABLE, ""))
    replies = []
    for case in cases:
        if row_format is not None and len(case.conversation) > 1:
            continue  # without a template there is a single question and no more
        began = time.monotonic()
        if row_format is None:
            said = endpoint.chat(case.conversation, case.max_new_tokens)
        else:
            text = models.rendered(case.question, row_format)
            said = endpoint.complete(text, case.max_new_tokens)
        seconds = round(time.monotonic() - began, 3)
        answer = said.text.strip()
        passed = prompts.judge(case, prompts.Answer(answer, said.why == "stop"))
        replies.append(
            Reply(case.name, case.question, answer, said.why, seconds, passed, said.tokens)
        )
    return replies


def has_chat_template(offered: Offer) -> bool:
    """Whether a server can take conversations: the tokenizer brings a template."""
    directory = offered.adapter or offered.model
    return bool(tokenizer.chat_template(directory / "tokenizer.json"))


def examples(server: Server, *, chat: bool) -> tuple[str, str]:
    """Lines to copy: for curl, and for Python's openai."""
    model = server.command.model
    asked: dict[str, Any] = {"model": model, "max_tokens": 100}
    if chat:
        path, call = "chat/completions", "chat.completions"
        asked["messages"] = [{"role": "user", "content": "Hello"}]
        text = "message.content"
    else:
        path, call = "completions", "completions"
        asked["prompt"] = "Hello"
        text = "text"
    # JSON in single quotes: what could end them is written as an escape.
    body = json.dumps(asked).replace("'", "\\u0027")
    secret = f' -H "authorization: Bearer ${KEY_VARIABLE}"' if os.environ.get(KEY_VARIABLE) else ""
    curl = f"curl {server.url}/v1/{path} -H 'content-type: application/json'{secret} -d '{body}'"
    arguments = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    key = f'os.environ["{KEY_VARIABLE}"]' if secret else '"none"'
    python = "\n".join(
        [
            *(["import os"] if secret else []),
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{server.url}/v1", api_key={key})',
            f"reply = client.{call}.create({arguments})",
            f"print(reply.choices[0].{text})",
        ]
    )
    return curl, python


def test_line(server: Server) -> str:
    """How a prompt suite is put to this server; it names the model, as not every server does."""
    key = f"OPENAI_API_KEY=${KEY_VARIABLE} " if os.environ.get(KEY_VARIABLE) else ""
    words = ["leviathan", "test", server.url, "--model", server.command.model, "--suite", "NAME"]
    return key + shlex.join(words)


def summary(server: Server, replies: list[Reply]) -> dict[str, Any]:
    """The document of ``serve --json``."""
    return {
        "url": f"{server.url}/v1",
        "model": server.command.model,
        "pid": server.pid,
        "log": str(server.log),
        "command": server.command.arguments,
        "smoke": [asdict(reply) for reply in replies],
    }
