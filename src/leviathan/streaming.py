"""Owns an answer of a loaded model as it is made: token by token, sampled or not, ended early.

Imports torch inside its functions. Batches and stop tokens are ``generation``'s.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leviathan import generation, models

_CUT = "\ufffd"
"""What a decoder makes of half a character."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0: always the likeliest."""
    top_p: float = 1.0
    """Sampled among the likeliest that have this share together."""
    seed: int = 0


def stream(
    model: models.Model, messages: generation.Messages, max_new_tokens: int, sampling: Sampling
) -> Iterator[str]:
    """Pieces of the answer to ``messages``; closing the iterator ends it early.

    Raises:
        BadInput: the model's chat template has no place for these messages.
    """
    text = generation.rendered(model, messages)  # before the first piece is asked for
    return _pieces(model, model.token_ids(text), max_new_tokens, sampling)


def _pieces(
    model: models.Model, ids: Any, max_new_tokens: int, sampling: Sampling
) -> Iterator[str]:
    import torch

    told, ended = _Told(model), threading.Event()
    settings = {
        **generation.settings(model, max_new_tokens),
        **_chosen(sampling),
        "streamer": told,
        "stopping_criteria": [
            # One answer per row, as generate wants it: whether that row is over.
            lambda rows, _scores: torch.full((len(rows),), ended.is_set(), device=rows.device)
        ],
    }

    def work() -> None:
        try:
            torch.manual_seed(sampling.seed)
            with torch.no_grad():
                model.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        except Exception as error:
            told.pieces.put(error)
        told.pieces.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := told.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:  # also when the reader had enough: an adapter must not be switched under it
        ended.set()
        thread.join()


def _chosen(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        return {}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}


class _Told:
    """What generate takes for a streamer: tokens in, whole characters out.

    transformers' own streamers show a stop token that the tokenizer does not call special.
    """

    def __init__(self, model: models.Model) -> None:
        self.pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._tokenizer = model.tokenizer
        self._ending = set(generation.stops(model))
        self._tokens: list[int] = []
        self._shown = 0
        self._prompt = True

    def put(self, value: Any) -> None:
        """The prompt first, then each new token."""
        if self._prompt:
            self._prompt = False
            return
        self._tokens += [token for token in value.flatten().tolist() if token not in self._ending]
        self._show(whole=False)

    def end(self) -> None:
        """No more tokens come."""
        self._show(whole=True)

    def _show(self, *, whole: bool) -> None:
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if text.endswith(_CUT) and not whole:
            return
        if len(text) > self._shown:
            self.pieces.put(text[self._shown :])
        self._shown = len(text)
        if text.endswith("\n"):  # a new line begins anew, else long answers get slow
            # Its last token stays: some decoders drop a space at the very beginning.
            self._tokens = self._tokens[-1:]
            self._shown = len(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
