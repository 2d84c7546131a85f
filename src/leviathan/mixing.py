"""Owns making a mix: count the sources, share the tokens out, draw, write.

What a mix is, and whether there is one already, is ``mixture``'s.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import IO

from leviathan import corpus, files, holdout, index, interleave, ledger, mixture, selection, stock
from leviathan.corpus import Progress
from leviathan.counter import Counter
from leviathan.errors import BadInput, Refused
from leviathan.holdout import Split
from leviathan.ledger import Ledger
from leviathan.mixture import Held, Mixture, Portion, Wish
from leviathan.stock import Stock, Sums

_WORTH_KEEPING_S = 10.0
_LENGTHS = tuple(2**power for power in range(7, 18))


def mix(wish: Wish, progress: Progress | None = None) -> Mixture:
    """The mix: as many tokens of each source as its weight says, repeated where it is short.

    It is kept with a manifest, and given again while everything is as it was.

    Args:
        wish: what to mix.
        progress: called as bytes are read and written.

    Raises:
        BadInput: a source that cannot be read, or has rows of another format or none; nothing
            to train on, or to hold out; the output is a file that no manifest speaks of.
        Refused: there is no room for it.
    """
    if known := mixture.already_mixed(wish):
        return known
    mixture.refuse(wish)
    counter = Counter(wish.tree)
    paths = [source.path for source in wish.sources]
    states = [corpus.state(path) for path in paths]
    for path in paths:
        corpus.check_head(path, counter.form.required)
    with (
        files.new_directories_kept_on_success(wish.directory),
        files.new_directories_kept_on_success(wish.path.parent),
        _counted(wish, counter, progress) as stocks,
    ):
        _draw(wish, stocks)
        sums = [each.taken() for each in stocks]
        shown = [_shown(each) for each in stocks]
        _refuse_nothing(wish, sums, shown)
        _refuse_full(wish.path.parent, [*sums, *shown])
        return _Making(wish, counter, stocks, sums, shown, states, progress).write()


# --- counting and drawing ------------------------------------------------------------------


@contextmanager
def _counted(wish: Wish, counter: Counter, progress: Progress | None) -> Iterator[list[Stock]]:
    """Every source, counted. What was counted at once is not kept where the mix fails."""
    split = Split(wish.holdout, wish.seed)
    with ExitStack() as stack:
        found = []
        for source in wish.sources:
            what = f"reading {source.path.name}"
            found.append(stack.enter_context(index.build(source.path, what, progress)))
        made: list[Ledger] = []
        try:
            for source, rows in zip(wish.sources, found, strict=True):
                made.append(ledger.of(source.path, rows, counter, wish.directory, progress))
            counter.close()
            lengths = sorted({*_LENGTHS, int(wish.tree.get("sequence_len") or _LENGTHS[0])})
            yield [
                Stock(source.path, number, found[number], made[number], split.held, lengths)
                for number, source in enumerate(wish.sources)
            ]
        except BaseException:
            for each in made:
                if each.seconds and each.seconds < _WORTH_KEEPING_S:
                    each.path.unlink(missing_ok=True)
            raise


def _draw(wish: Wish, stocks: Sequence[Stock]) -> None:
    for each in stocks:
        if each.trained.tokens == 0:
            raise _nothing_in(each, wish)
    if wish.rows is None:
        tokens = [source.weight * (wish.tokens or 0) for source in wish.sources]
        stock.take_tokens(stocks, tokens, wish.seed)
    else:
        rows = _rows(wish, stocks)
        stock.take_rows(stocks, rows, wish.seed)
        there = [each.trained for each in stocks]
        tokens = [Fraction(n * t.tokens, t.rows) for n, t in zip(rows, there, strict=True)]
    if wish.holdout:
        holdout.choose(stocks, Split(wish.holdout, wish.seed), tokens)


def _rows(wish: Wish, stocks: Sequence[Stock]) -> list[int]:
    """Of ``wish.rows``, how many each source gives, so that the weights hold in tokens."""
    per_row = {
        each.number: source.weight * each.trained.rows / each.trained.tokens
        for source, each in zip(wish.sources, stocks, strict=True)
    }
    shares = selection.shares(wish.rows or 0, per_row)
    return [shares[number] for number in range(len(stocks))]


def _shown(each: Stock) -> Sums:
    sums = Sums()
    for chunk in each.chunks():
        sums.add(chunk, each.shown.of(chunk))
    return sums


def _nothing_in(each: Stock, wish: Wish) -> BadInput:
    if not each.trained.rows and each.index.rows:
        share = f"{float(100 * wish.holdout):g}pct"
        return BadInput(f"--holdout {share} takes every row of {each.path}", "ask for less")
    return BadInput(f"corpus {each.path} has no text to train on", "look at its fields")


def _refuse_nothing(wish: Wish, sums: Sequence[Sums], shown: Sequence[Sums]) -> None:
    if not sum(each.rows for each in sums):
        raise BadInput(f"--tokens {wish.tokens} is less than a row", "ask for more")
    if wish.holdout and not sum(each.rows for each in shown):
        share = f"{float(100 * wish.holdout):g}pct"
        raise BadInput(f"--holdout {share} of so few rows is none", "ask for more")


def _refuse_full(directory: Path, sums: Sequence[Sums]) -> None:
    """Raise Refused where the files will not fit; an old mix stays until the new one is whole."""
    wanted = sum(each.bytes + each.rows for each in sums)  # a line end may be added
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise Refused(
            f"the mix takes {wanted / 1e9:.3g} GB, and {there} has {free / 1e9:.3g} GB free",
            f"make room for {(wanted - free) / 1e9:.3g} GB, or put it elsewhere with -o",
        )


# --- writing -------------------------------------------------------------------------------


class _Making:
    """A mix that is drawn, being written."""

    def __init__(
        self, wish: Wish, counter: Counter, stocks: Sequence[Stock], sums: Sequence[Sums],
        shown: Sequence[Sums], states: Sequence[tuple[int, int]], progress: Progress | None,
    ) -> None:  # fmt: skip
        self._wish, self._counter, self._stocks, self._sums = wish, counter, stocks, sums
        self._shown, self._states, self._progress = shown, states, progress
        self._total = sum(each.bytes for each in (*sums, *shown))

    def write(self) -> Mixture:
        """Both files and the manifest. Whoever is stopped leaves the old mix, or the new one.

        The old holdout goes before the new mix comes, so that no two are ever beside each other
        that may share rows. The manifest comes before the files: what it does not fit is made
        anew, and is still known to be ours.
        """
        wish = self._wish
        with ExitStack() as both:
            held_out = both.enter_context(files.replaced(wish.held_path)) if wish.holdout else None
            out = both.enter_context(files.replaced(wish.path))
            held = self._held(held_out) if held_out else None
            made = self._mixture(out, held)
            self._refuse_changed()
            if str(wish.held_path) in mixture.paths(wish.manifest):
                wish.held_path.unlink(missing_ok=True)
                files.fsync_directory(wish.path.parent)
            files.write_json(wish.manifest, asdict(made))
        return made

    def _held(self, out: IO[bytes]) -> Held:
        turns = [[each.shown.of] for each in self._stocks]
        tokens = [each.tokens for each in self._shown]
        written = interleave.write(out, self._stocks, turns, tokens, self._tell)
        total = sum(tokens)
        return Held(
            str(self._wish.held_path), float(self._wish.holdout), written.rows, total,
            written.bytes, written.digest, _synced(out),
            tuple(count / (total or 1) for count in tokens),
            sum(each.index.rows - each.trained.rows for each in self._stocks),
        )  # fmt: skip

    def _mixture(self, out: IO[bytes], held: Held | None) -> Mixture:
        wish, before = self._wish, held.bytes if held else 0
        turns = [each.turns() for each in self._stocks]
        tokens = [each.tokens for each in self._sums]
        written = interleave.write(
            out, self._stocks, turns, tokens, lambda size: self._tell(before + size)
        )
        if self._progress:
            self._progress("mixing", self._total, self._total)
        return Mixture(
            str(wish.path), written.rows, sum(tokens), written.bytes, written.digest, _synced(out),
            wish.seed, wish.request, self._counter.how, self._counter.has_tokenizer,
            self._counter.unfollowed,
            tuple(self._portion(number, sum(tokens)) for number in range(len(tokens))), held,
        )  # fmt: skip

    def _portion(self, number: int, total: int) -> Portion:
        each, taken, source = self._stocks[number], self._sums[number], self._wish.sources[number]
        there = each.trained
        return Portion(
            str(source.path), float(source.weight), taken.tokens / total, taken.rows, taken.tokens,
            taken.tokens / there.tokens, there.rows, there.tokens,
            {str(length): part / there.tokens for length, part in each.longer.items()},
            {str(length): part / there.tokens for length, part in each.beyond.items()},
            each.index.digest, *self._states[number],
        )  # fmt: skip

    def _tell(self, size: int) -> None:
        if self._progress:
            self._progress("mixing", min(size, self._total - 1), self._total)

    def _refuse_changed(self) -> None:
        for source, state in zip(self._wish.sources, self._states, strict=True):
            if corpus.state(source.path) != state:
                raise corpus.changed(source.path)


def _synced(out: IO[bytes]) -> int:
    """Make what was written durable; when it was written."""
    out.flush()
    os.fsync(out.fileno())
    return os.fstat(out.fileno()).st_mtime_ns
