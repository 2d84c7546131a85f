"""Owns lm-eval's questions put to an OpenAI-compatible server, as a model of lm-eval's.

Imported only inside ``harness``'s child, where lm_eval is. Talking to the server is
``endpoint``'s. lm-eval's own local-completions wants a package more and the model's tokenizer,
and goes on after a server's error with an empty answer.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lm_eval.api.model import LM
from lm_eval.evaluator_utils import get_task_list
from lm_eval.tasks import get_task_dict

from leviathan.endpoint import Declined, Endpoint
from leviathan.errors import BadInput, Refused

_Asked = TypeVar("_Asked")
_Told = TypeVar("_Told")

_MOST_STOPS = 4
"""So many the API admits; all of them are looked for in the answer besides."""
_USUAL_TOKENS = 256
"""Of an answer to a task that sets no limit; lm-eval's own default."""
_PROBE = "The capital of France is Paris."


class Respondent(LM):
    """A server's model as lm-eval asks one."""

    def __init__(self, server: Endpoint, at_once: int, seed: int, *, chat: bool) -> None:
        """``at_once`` requests are under way at a time; ``seed`` goes with every one.

        ``chat``: contexts are what ``apply_chat_template`` made of messages.
        """
        super().__init__()
        self.server, self.at_once, self.seed, self.chat = server, at_once, seed, chat

    @property
    def tokenizer_name(self) -> str:
        """lm-eval wants one beside a chat template: here it names who applies it."""
        return self.server.url

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages themselves: the server applies its template.

        Raises:
            BadInput: the task begins the answer itself, and a server would begin another.
        """
        if not add_generation_prompt:
            raise BadInput(
                "a task begins the answer itself (gen_prefix), which no server goes on from",
                "leave --chat-template out, or name the model's directory",
            )
        return json.dumps(chat_history)

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Answers, each up to the first of its stop texts."""
        return self._each(lambda request: self._generated(*request.args), requests)

    def _generated(self, context: str, wanted: dict[str, Any]) -> str:
        until = wanted.get("until") or []
        until = [until] if isinstance(until, str) else [text for text in until if text]
        limit = wanted.get("max_gen_toks") or wanted.get("max_new_tokens") or _USUAL_TOKENS
        drawn = wanted.get("do_sample") or "do_sample" not in wanted
        temperature = float(wanted.get("temperature") or 0) if drawn else 0.0
        how = (int(limit), temperature, self.seed, until[:_MOST_STOPS])
        if self.chat:
            said = self.server.chat(json.loads(context), *how)
        else:
            said = self.server.complete(context, *how)
        ends = [at for text in until if (at := said.text.find(text)) >= 0]
        return said.text[: min(ends, default=None)]

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """For each context and continuation: log p(continuation | context), natural log, and
        whether every token of it was the likeliest.

        Where the continuation begins is known by counting the tokens of the context alone, as
        lm-eval does it with a tokenizer; its spaces at the end belong to the continuation.
        """
        pairs = [_parted(*request.args) for request in requests]
        contexts = sorted({context for context, _ in pairs if context})
        counted = dict(zip(contexts, self._each(self.server.count, contexts), strict=True))

        def likelihood(pair: tuple[str, str]) -> tuple[float, bool]:
            context, continuation = pair
            scored = self.server.score(context + continuation)
            # At least one token: the border may lie inside of one.
            begin = min(counted.get(context, 0), len(scored.logprobs) - 1)
            return _summed(scored.logprobs[begin:]), all(scored.likeliest[begin:])

        return self._each(likelihood, pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """log p of whole texts, natural log; a first token that nothing precedes is left out."""
        return self._each(
            lambda request: _summed(self.server.score(request.args[0]).logprobs), requests
        )

    def _each(self, ask: Callable[[_Asked], _Told], asked: Iterable[_Asked]) -> list[_Told]:
        with ThreadPoolExecutor(self.at_once) as pool:
            waiting = [pool.submit(ask, one) for one in asked]
            try:
                return [one.result() for one in waiting]
            except BaseException:  # the first failure is told, not after a thousand more
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def demand(server: Endpoint, tasks: Sequence[str], manager: Any, *, chat: bool) -> None:
    """Find out whether the server can answer these tasks, before any is put.

    Raises:
        BadInput: with a chat template, log-likelihoods are wanted.
        Refused: they are, and it tells none.
        LeviathanError: it does not answer.
    """
    listed = [each for name in tasks for each in get_task_list(get_task_dict([name], manager))]
    needing = sorted({t.task_name for t in listed if t.task.OUTPUT_TYPE != "generate_until"})
    if not needing:
        return
    named = ", ".join(needing)
    if chat:
        raise BadInput(
            f"no server tells log-probabilities of a conversation, and they need them: {named}",
            "leave --chat-template out, or name the model's directory",
        )
    try:
        server.score(_PROBE)
    except Declined as error:
        raise Refused(
            f"{server.url} tells no log-probabilities of a prompt ({error.message}), and these "
            f"tasks need them: {named}",
            "name the model's directory, or a server with echo and logprobs, as vLLM",
        ) from error


def _parted(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of the context are tokens of the continuation."""
    text = context.rstrip()
    return text, context[len(text) :] + continuation


def _summed(logprobs: Sequence[float | None]) -> float:
    return sum(value for value in logprobs if value is not None)
