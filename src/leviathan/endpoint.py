"""Owns talking to an OpenAI-compatible server: which models it has, completions, chats.

Does not start one (``serve``). The official client does the talking; it is imported
when the first question is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leviathan.errors import BadInput, LeviathanError

_TIMEOUT_S = 600.0


def is_url(target: str) -> bool:
    """Whether a server is meant."""
    return target.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Said:
    """What a server answered."""

    text: str
    why: str
    """It ended so: stop, or length where it ran into its limit."""
    tokens: int | None = None
    """Of the answer, as the server counts them; None of one that does not."""


@dataclass(frozen=True)
class Scored:
    """A text's tokens, as the model expects them."""

    logprobs: tuple[float | None, ...]
    """log p of each after those before it, natural log; None of a first one."""
    likeliest: tuple[bool, ...]
    """Whether no other token was likelier."""


class Declined(LeviathanError):  # noqa: N818 - no failure: an answer
    """The server answers, but does not do what is asked."""


_DECLINING = {400, 404, 405, 415, 422, 501}


def _said(text: str | None, why: object, usage: Any) -> Said:
    tokens = getattr(usage, "completion_tokens", None)
    return Said(str(text or ""), str(why), tokens if isinstance(tokens, int) else None)


@dataclass(frozen=True)
class Endpoint:
    """A server's API, and the model that is asked there."""

    url: str
    """As http://127.0.0.1:8000/v1; a missing /v1 is added."""
    model: str = ""
    """Empty: the only one that the server lists."""
    api_key: str = ""
    """Empty: OPENAI_API_KEY, else a placeholder, as local servers take any."""

    @cached_property
    def client(self) -> Any:
        """The official client for this server."""
        import os
        from urllib.parse import urlsplit

        import openai

        base = self.url.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        key = self.api_key or os.environ.get("OPENAI_API_KEY") or "none"
        # A proxy of the environment does not lead to this machine.
        own = urlsplit(base).hostname in ("127.0.0.1", "localhost", "::1")
        http = openai.DefaultHttpxClient(trust_env=False) if own else None
        return openai.OpenAI(
            base_url=base, api_key=key, timeout=_TIMEOUT_S, max_retries=0, http_client=http
        )

    def models(self) -> list[str]:
        """Names of the models that the server lists.

        Raises:
            LeviathanError: it does not answer, or with an error.
        """
        try:
            return [str(entry.id) for entry in self._ask(lambda: self.client.models.list().data)]
        except AttributeError as error:  # what a web page makes of the client
            raise LeviathanError(f"{self.url} is no OpenAI-compatible server") from error

    @cached_property
    def name(self) -> str:
        """The model asked.

        Raises:
            BadInput: the server has several and none was chosen.
            LeviathanError: it does not answer, or has none.
        """
        if self.model:
            return self.model
        known = self.models()
        if not known:
            raise LeviathanError(f"{self.url} serves no model")
        if len(known) > 1:
            raise BadInput(f"{self.url} serves several models", f"--model: {', '.join(known)}")
        return known[0]

    def chat(
        self, messages: list[dict[str, str]], max_tokens: int, temperature: float = 0,
        seed: int = 0, stop: Sequence[str] = (),
    ) -> Said:  # fmt: skip
        """The answer to messages, greedy unless there is a temperature; it ends at a ``stop``.

        Raises:
            LeviathanError: the server does not answer, or with an error.
        """
        reply = self._ask(
            lambda: self.client.chat.completions.create(
                model=self.name, messages=messages, max_tokens=max_tokens,
                temperature=temperature, seed=seed, **_stopping(stop),
            )
        )  # fmt: skip
        choice = reply.choices[0]
        return _said(choice.message.content, choice.finish_reason, reply.usage)

    def stream(
        self, messages: list[dict[str, str]], max_tokens: int, temperature: float, top_p: float,
        seed: int,
    ) -> Iterator[str]:  # fmt: skip
        """Pieces of the answer to messages; closing the iterator ends it early.

        Raises:
            LeviathanError: the server does not answer, or with an error.
        """
        told = self._ask(
            lambda: self.client.chat.completions.create(
                model=self.name, messages=messages, max_tokens=max_tokens, stream=True,
                temperature=temperature, top_p=top_p, seed=seed,
            )
        )  # fmt: skip
        with told:
            pieces = iter(told)
            while (chunk := self._ask(lambda: next(pieces, None))) is not None:
                for choice in chunk.choices:
                    yield str(choice.delta.content or "")

    def complete(
        self, text: str, max_tokens: int, temperature: float = 0, seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Said:  # fmt: skip
        """The continuation of rendered text, as ``chat`` answers messages.

        Raises:
            LeviathanError: the server does not answer, or with an error.
        """
        reply = self._completed(
            text, max_tokens=max_tokens, temperature=temperature, seed=seed, **_stopping(stop)
        )
        choice = reply.choices[0]
        return _said(choice.text, choice.finish_reason, reply.usage)

    def count(self, text: str) -> int:
        """Tokens of a text, with what the server puts before one.

        Raises:
            Declined: the server does not count.
            LeviathanError: it does not answer, or with an error.
        """
        usage = self._completed(text, max_tokens=1, temperature=0).usage
        if usage is None or not usage.prompt_tokens:
            raise Declined("it does not say how many tokens a prompt has")
        return int(usage.prompt_tokens)

    def score(self, text: str) -> Scored:
        """How the model expects a text, token by token.

        Asked as a completion of one token more that repeats its prompt (``echo``): some servers
        refuse one of no token.

        Raises:
            Declined: the server tells no log-probabilities of a prompt.
            LeviathanError: it does not answer, or with an error.
        """
        reply = self._completed(text, max_tokens=1, temperature=0, echo=True, logprobs=1)
        told = reply.choices[0].logprobs
        values = (told and told.token_logprobs) or []
        tops = (told and told.top_logprobs) or []
        count = reply.usage.prompt_tokens if reply.usage else 0
        if not count or min(len(values), len(tops)) < count:
            raise Declined(f"of a prompt's {count} tokens it told {len(values)}")
        pairs = list(zip(values, tops, strict=False))[:count]
        return Scored(
            tuple(value for value, _ in pairs),
            tuple(value is None or value >= max(top.values()) for value, top in pairs),
        )

    def _completed(self, text: str, **asked: Any) -> Any:
        return self._ask(
            lambda: self.client.completions.create(model=self.name, prompt=text, **asked)
        )

    def _ask(self, question: Any) -> Any:
        import openai

        try:
            return question()
        except openai.APIConnectionError as error:
            raise LeviathanError(f"{self.url} does not answer", "is the server up?") from error
        except openai.APIStatusError as error:
            kind = Declined if error.status_code in _DECLINING else LeviathanError
            raise kind(f"{self.url}: {error.status_code} {error.message}") from error
        except openai.APIError as error:
            raise LeviathanError(f"{self.url}: {error.message}") from error


def _stopping(stop: Sequence[str]) -> dict[str, Any]:
    """Left out where there is nothing: not every server takes an empty list."""
    return {"stop": list(stop)} if stop else {}
