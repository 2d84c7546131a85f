"""The order of a mix: the definition, row by row, beside what is done in blocks."""

import heapq
import io
import json
from contextlib import ExitStack
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import xxhash

from leviathan import index, interleave, ledger
from leviathan.holdout import Split
from leviathan.stock import Stock


def everything(chunk):
    return np.ones(len(chunk.spans), bool)


def stock(stack, directory, number, data, tokens):
    """A source of these bytes, counted as having these tokens."""
    path, kept = directory / f"{number}.jsonl", directory / f"{number}.counts"
    path.write_bytes(data)
    records = np.zeros(len(tokens), [("tokens", "<u4"), ("identity", "<u8")])
    records["tokens"] = tokens
    kept.write_bytes(records.tobytes())
    found = stack.enter_context(index.build(path))
    return Stock(path, number, found, ledger.Ledger(kept, 0.0), Split(Fraction(0), 1).held)


def written(stocks, turns, totals):
    out, told = io.BytesIO(), []
    made = interleave.write(out, stocks, turns, totals, told.append)
    assert made.bytes == len(out.getvalue()) == told[-1]
    assert made.digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(out.getvalue())}"
    lines = out.getvalue().splitlines(keepends=True)
    assert made.rows == len(lines)
    return lines


def defined(rows, tokens, passes, totals):
    """Row by row: whoever has given the smallest share of its total comes next."""

    def keyed(number):
        given = 0
        for _ in range(passes[number]):
            for row, size in zip(rows[number], tokens[number], strict=True):
                yield given / totals[number], number, row
                given += size

    return [row for _, _, row in heapq.merge(*map(keyed, range(len(rows))))]


@pytest.mark.parametrize("block", [1, 300, 256 << 10])
@pytest.mark.parametrize("seed", range(8))
def test_rows_come_in_the_order_that_is_defined(tmp_path, monkeypatch, block, seed):
    """Whatever the blocks they are read in; rows of no tokens at all are among them."""
    monkeypatch.setattr(interleave, "_READ_BYTES", block)
    chance = Random(seed)
    rows, tokens, passes, stocks = [], [], [], []
    with ExitStack() as stack:
        for number in range(chance.randint(1, 4)):
            count = chance.randint(1, 60)
            texts = [f"{number}.{n} " + "x" * chance.randint(0, 90) for n in range(count)]
            rows.append([json.dumps({"t": text}).encode() + b"\n" for text in texts])
            tokens.append([chance.choice([0, 0, 1, 5, 5, 40]) for _ in range(count)])
            passes.append(chance.randint(1, 3))
            stocks.append(stock(stack, tmp_path, number, b"".join(rows[-1]), tokens[-1]))
        totals = [max(1, n * sum(t)) for n, t in zip(passes, tokens, strict=True)]
        lines = written(stocks, [[everything] * n for n in passes], totals)
    assert lines == defined(rows, tokens, passes, totals)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n{"b": 2}\n',
        b'{"a": 1}\n{"b": 2}',
        b'{"a": 1}\r\n{"b": 2}\r\n',
        b'{"a": 1}\r\n{"b": 2}\r',
        b'\xef\xbb\xbf{"a": 1}\n\n \n{"b": 2}\n\n',
        b'\xef\xbb\xbf{"a": 1}\r\n{"b": 2}',
    ],
)
@pytest.mark.parametrize("block", [1, 256 << 10])
def test_every_row_ends_in_one_line_feed(tmp_path, monkeypatch, data, block):
    monkeypatch.setattr(interleave, "_READ_BYTES", block)
    with ExitStack() as stack:
        lines = written([stock(stack, tmp_path, 0, data, [3, 3])], [[everything, everything]], [12])
    assert lines == [b'{"a": 1}\n', b'{"b": 2}\n'] * 2


def test_a_source_that_gives_nothing_is_passed_over(tmp_path):
    with ExitStack() as stack:
        one = stock(stack, tmp_path, 0, b'{"a": 1}\n', [3])
        two = stock(stack, tmp_path, 1, b'{"b": 2}\n', [3])
        assert written([one, two], [[one.part.of], [everything]], [0, 3]) == [b'{"b": 2}\n']
