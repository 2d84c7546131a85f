"""Owns serving a finished model: what is served, its server's life, the questions that try it.

Does not know the servers' flags (``engines``) nor speak their API (``endpoint``).
"""

import json
import os
import re
import shlex
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leviathan import (
    basemodel,
    checkpoints,
    corpus,
    evaluate,
    evidence,
    leash,
    models,
    prompts,
    runs,
    tokenizer,
)
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


def offer(
    target: str | None, *, adapter: bool, force: bool, checkpoint: str | None = None
) -> tuple[Offer, str]:
    """What is to be served, and the format that its proof says it was trained in.

    ``target`` is a directory that ``merge`` made, or a run: then its merged model, or with
    ``adapter`` its adapter made ready by ``merge --adapter-only``; the one made of
    ``checkpoint`` (best, latest, N or checkpoint-N), if that is given.

    Raises:
        BadInput: there is no such model, or the run was not merged yet.
        Refused: it is not proven, has changed since, or its base is not here; unless ``force``.
            Or nothing was made of that checkpoint.
    """
    directory = Path(target) if target and Path(target).is_dir() else None
    if directory is None or evaluate.is_run(directory):
        directory = _of_run(runs.find(target), checkpoint, adapter=adapter)
    elif checkpoint:
        raise BadInput("--checkpoint is about a run", "name the run, not a model")
    found = evidence.demand(directory, force=force)
    name = directory.resolve().name
    row_format = str(found.told.get("format", "alpaca"))
    made_of = str(found.told.get("checkpoint", ""))
    if (directory / "config.json").is_file():
        return Offer(name, directory, checkpoint=made_of), row_format
    base = str(found.told.get("base_model", ""))
    if not base:
        raise Refused(f"{directory} does not say what it was trained on", "pull the run instead")
    place = basemodel.locate({"base_model": models.local_or_hub(base)}, os.environ).directory
    if place is None:
        raise Refused(f"the base model {base} is not here", "download it")
    proven = found.told.get("base_digest")  # None: a hub's snapshot, which never changes
    if not force and proven and proven != models.fingerprint(str(place)):
        raise Refused(f"{place} is not the base model that was proven", "restore it, or --force")
    return Offer(name, place, directory, made_of), row_format


def _of_run(run: runs.RunPaths, which: str | None, *, adapter: bool) -> Path:
    name = run.directory.resolve().name
    usual = Path("models") / f"{name}-{'adapter' if adapter else 'merged'}"
    option = " --adapter-only" if adapter else ""
    if which is not None:
        return _made_of(run, which, usual, option)
    if usual.is_dir():
        return usual
    raise BadInput(f"there is no {usual}", f"first: leviathan merge {name}{option}")


def _made_of(run: runs.RunPaths, which: str, usual: Path, option: str) -> Path:
    """The model that was merged of a checkpoint of the run: at its usual place, or beside it, or
    where a merge has told to have put it."""
    checkpoint = _called(run, which)
    told = [Path(str(e["to"])) for e in runs.events(run) if e["event"] == "merge" and "to" in e]
    kind = "adapter_config.json" if option else "config.json"
    places = dict.fromkeys([usual, *sorted(usual.parent.glob("*")), *reversed(told)])
    models_here = [place for place in places if (place / kind).is_file()]
    stale = ""
    for place in models_here:
        proof = evidence.of(place).told
        if (proof.get("run"), proof.get("checkpoint")) != (runs.read(run).name, checkpoint.name):
            continue
        if _is_same(checkpoint, proof):
            return place
        stale = f"{place} was made of an earlier {checkpoint.name}, with other weights"
    name = run.directory.resolve().name
    again = f"leviathan merge {name} --checkpoint {checkpoint.name}{option}"
    if stale:
        raise Refused(stale, f"first: {again}")
    if usual not in models_here:
        raise Refused(f"nothing was merged of {checkpoint.name}", f"first: {again}")
    other = evidence.of(usual).told.get("checkpoint", "another checkpoint")
    beside = usual.with_name(f"{usual.name}-{checkpoint.name}")
    raise Refused(
        f"{usual} is of {other}, not of {checkpoint.name}", f"first: {again} --output {beside}"
    )


def _called(run: runs.RunPaths, which: str) -> Path:
    """A checkpoint's directory; a numbered one may be gone, its model outlives it."""
    number = re.fullmatch(r"(?:checkpoint-)?(\d+)", which)
    if number:
        return run.directory / f"checkpoint-{number[1]}"
    return checkpoints.choose(run.directory, which).path


def _is_same(checkpoint: Path, proof: dict[str, Any]) -> bool:
    """Whether its weights, if they are still here, are those that were merged.

    A run that resumed further back writes a checkpoint of the same name anew.
    """
    hashes = proof.get("hashes")
    known = hashes.items() if isinstance(hashes, dict) else ()
    weights = [
        (checkpoint / name.partition("/")[2], digest)
        for name, digest in known if name.startswith("checkpoint/")
    ]  # fmt: skip
    return all(corpus.file_digest(file) == d for file, d in weights if file.is_file())


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
def serving(
    command: Command, host: str, port: int, timeout_s: float,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Server]:  # fmt: skip
    """The server, answering, until the block ends; then nothing of it is left.

    ``tell`` is called with each line that the server prints, as it comes.

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
    with _followed(log, tell) if tell else nullcontext():
        try:
            _await(process.poll, url, log, timeout_s)
            yield Server(url, command, process.pid, log, process.poll)
        finally:
            leash.end(process)


def _await(ended: Callable[[], int | None], url: str, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_healthy(url):
        if ended() is not None:
            raise LeviathanError(
                f"the server ended before it answered: {last_error(log)}", f"log: {log}"
            )
        if time.monotonic() > deadline:
            raise LeviathanError(
                f"the server does not answer after {timeout_s:g} s",
                f"log: {log}; or give it longer with --timeout",
            )
        time.sleep(_POLL_S)


@contextmanager
def _followed(log: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Lines of a growing log are told until the block ends, its last ones too."""
    over = threading.Event()

    def follow() -> None:
        half = b""
        with log.open("rb") as stream:
            while True:
                last = over.is_set()  # before reading: what was printed until then counts
                *whole, half = (half + stream.read()).split(b"\n")
                for line in [*whole, half] if last and half else whole:
                    tell(line.decode(errors="replace"))
                if last:
                    return
                over.wait(_POLL_S)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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


def pace(replies: Sequence[Reply]) -> dict[str, float] | None:
    """Tokens a second over answers that were asked for one at a time; None: nobody counted.

    The seconds are the client's, so reading the prompt and the way there are in them.
    """
    counted = [reply for reply in replies if reply.tokens]
    tokens, seconds = sum(r.tokens or 0 for r in counted), sum(r.seconds for r in counted)
    if not counted or seconds <= 0:
        return None
    return {"tok_s": tokens / seconds, "tokens": tokens, "seconds": seconds,
            "answers": len(counted)}  # fmt: skip


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
        "pace": pace(replies),
    }
