"""Owns who is asked in a free conversation: a loaded model, its base, or a server's.

Suites are put by ``evaluate``; what was said before is ``chat``'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from leviathan import evaluate, generation, models, streaming
from leviathan.endpoint import Endpoint, is_url
from leviathan.errors import BadInput


class Partner(Protocol):
    """One that answers."""

    @property
    def caution(self) -> str:
        """What is to be said before it is believed; empty mostly."""
        ...

    @property
    def has_base(self) -> bool:
        """Whether its adapter can be switched off."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether it takes conversations, not only a single prompt."""
        ...

    def stream(self, messages: generation.Messages, *, of_base: bool) -> Iterator[str]:
        """Pieces of the answer; closing the iterator ends it early."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A model in this process."""

    model: models.Model
    max_new_tokens: int
    sampling: streaming.Sampling

    @property
    def caution(self) -> str:
        """Of an adapter that no run vouches for."""
        return self.model.source.caution

    @property
    def has_base(self) -> bool:
        """Whether there is an adapter to switch off."""
        return self.model.source.adapter is not None

    @property
    def remembers(self) -> bool:
        """Whether it has a chat template."""
        return generation.takes_conversations(self.model)

    def stream(self, messages: generation.Messages, *, of_base: bool) -> Iterator[str]:
        """Pieces of the answer.

        Raises:
            BadInput: the model's chat template has no place for these messages.
        """
        pieces = streaming.stream(self.model, messages, self.max_new_tokens, self.sampling)
        return self._of_base(pieces) if of_base else pieces

    def _of_base(self, pieces: Iterator[str]) -> Iterator[str]:
        # The model computes while it is read: the adapter stays off until it has ended.
        with self.model.without_adapter():
            yield from pieces


@dataclass(frozen=True)
class Served:
    """A server's model."""

    endpoint: Endpoint
    max_new_tokens: int
    sampling: streaming.Sampling
    has_base: bool = False
    remembers: bool = True
    caution: str = ""

    def stream(self, messages: generation.Messages, *, of_base: bool) -> Iterator[str]:
        """Pieces of the answer.

        Raises:
            LeviathanError: the server does not answer, or with an error.
        """
        if of_base:
            raise AssertionError
        chosen = self.sampling
        return self.endpoint.stream(
            messages, self.max_new_tokens, chosen.temperature, chosen.top_p, chosen.seed
        )


def find(
    target: str | None,
    checkpoint: str,
    model: str,
    max_new_tokens: int,
    sampling: streaming.Sampling,
    *,
    of_base: bool,
) -> Partner:
    """Who answers for ``target``, ready to be asked.

    Raises:
        BadInput: no such run, model or checkpoint; or the base is wanted of one that has none.
        LeviathanError: the server does not answer.
    """
    if target and is_url(target):
        if of_base:
            raise BadInput("a server has no adapter to switch off", "ask the run with --base")
        endpoint = Endpoint(target, model)
        endpoint.name  # noqa: B018 - a server that is not up is told before a question is typed
        return Served(endpoint, max_new_tokens, sampling)
    if model:
        raise BadInput("--model names a server's model", "give the server's URL as the target")
    source, _, _ = evaluate.resolve(target, checkpoint)
    if of_base and source.adapter is None:
        raise BadInput(f"{source.model} has no adapter to switch off", "ask the run with --base")
    return Loaded(models.Model(source), max_new_tokens, sampling)
