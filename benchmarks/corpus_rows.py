"""Rows for the corpus benchmark: a generated corpus, and whether a sample of it is one.

    python benchmarks/corpus_rows.py make FILE GB [SEED]
    python benchmarks/corpus_rows.py judge CORPUS SAMPLE ROWS

Alpaca rows of prose, 1.8 to 2.3 KB, with escapes and letters outside ASCII; the same for the
same seed. Every row begins with its number, so that no two are alike. ``judge`` prints whether
a sample has exactly so many rows, in the corpus's order, byte for byte.
"""

import argparse
import json
import os
import random
import sys
from array import array
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

COMMON = (
    "the of and to a in is that it was for on are as with his they at be this from have or by "
    "one had not but what all were when we there can an your which their said if do will each "
    "about how up out them then she many some so these would other into has more her two like "
    "him see time could no make than first been its who now people my made over did down only "
    "way find use may water long little very after words called just where most know"
)
OPENINGS = (
    "Explain", "Describe", "Compare", "Summarise", "Write a short text on", "Give three reasons for"
)  # fmt: skip
SYLLABLES = (
    "ba co di er fo gra hin is jo ka lu men nor op pre qui ra sti tor un ver wis ex yo zen chi "
    "pla the ment tion ing al ity ous ive ard ship"
)
ABROAD = (
    "café",
    "naïve",
    "Zürich",
    "Łódź",
    "Αθήνα",
    "Москва",
    "東京",
    "déjà vu",
    "€ 12",
    "½",
    "🌊",
)
ENDS = (".", ".", ".", ".", "?", "!", ";", ".\n", ".\n\n", ':\n- "', ".\t")
ROW_BYTES = (1800, 2300)
_WRITTEN = 8 << 20


def _vocabulary(draw: random.Random) -> list[str]:
    syllables = SYLLABLES.split()
    made = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 4)))) for _ in range(8000)]
    return [*COMMON.split(), *made]


def _sentences(draw: random.Random, count: int = 5000) -> list[str]:
    """As they stand inside a JSON string. Common words come up as often as in English."""
    words = _vocabulary(draw)
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    found = []
    for _ in range(count):
        chosen = draw.choices(words, cum_weights=weights, k=draw.randint(5, 18))
        if draw.random() < 0.15:
            chosen[draw.randrange(len(chosen))] = draw.choice(ABROAD)
        text = " ".join(chosen).capitalize() + draw.choice(ENDS)
        found.append(json.dumps(text, ensure_ascii=False)[1:-1])  # one writer, one habit
    return found


def rows(seed: int) -> Iterator[bytes]:
    """JSONL rows without end."""
    draw = random.Random(seed)  # noqa: S311
    sentences = [(text, len(text.encode())) for text in _sentences(draw)]
    number = 0
    while True:
        wanted = draw.randint(*ROW_BYTES) - 80
        topic, context = (draw.choice(sentences)[0] for _ in range(2))
        # Two thirds of alpaca's rows have no input.
        context = context if draw.random() < 1 / 3 else ""
        chosen = []
        size = len(topic) + len(context)
        for text, length in draw.choices(sentences, k=40):
            if size + length > wanted:
                break
            chosen.append(text)
            size += length + 1
        text = (
            f'{{"instruction": "{number}. {draw.choice(OPENINGS)}: {topic}", '
            f'"input": "{context}", "output": "{" ".join(chosen)}", '
            f'"quality": {draw.randint(0, 100) / 100:.2f}}}\n'  # parsers make 0.9 of 0.90
        )
        yield text.encode()
        number += 1


def make(path: Path, size: int, seed: int = 42) -> int:
    """Write about ``size`` bytes of rows, a multiple of ten of them; how many."""
    written = number = 0
    with path.open("wb", buffering=_WRITTEN) as stream:
        for number, row in enumerate(rows(seed)):
            if written >= size and number % 10 == 0:
                break
            written += stream.write(row)
    return number


def judge(corpus: Path, sample: Path, wanted: int) -> dict[str, bool]:
    """Whether ``sample`` has ``wanted`` rows of ``corpus``, in order, byte for byte."""
    begins = array("Q", [0])
    with corpus.open("rb") as stream:
        begins.extend(accumulate(map(len, stream)))
    count, last = 0, -1
    ordered = identical = True
    with sample.open("rb") as stream, corpus.open("rb") as source:
        for count, line in enumerate(stream, 1):  # noqa: B007
            number = int(json.loads(line)["instruction"].split(".", 1)[0])
            ordered &= number > last
            last = number
            size = begins[number + 1] - begins[number]
            identical &= os.pread(source.fileno(), size, begins[number]) == line
    return {"count": count == wanted, "order": ordered, "bytes": identical}


def main() -> None:
    """Make a corpus, or judge a sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("file", type=Path)
    making.add_argument("gb", type=float)
    making.add_argument("seed", type=int, nargs="?", default=42)
    judging = commands.add_parser("judge")
    judging.add_argument("corpus", type=Path)
    judging.add_argument("sample", type=Path)
    judging.add_argument("rows", type=int)
    options = parser.parse_args()
    if options.command == "make":
        print(make(options.file, int(options.gb * 1e9), options.seed))
    else:
        json.dump(judge(options.corpus, options.sample, options.rows), sys.stdout)


if __name__ == "__main__":
    main()
