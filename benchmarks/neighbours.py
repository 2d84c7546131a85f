"""Near-duplicates: CPU time of the signatures, what is found, memory; beside datasketch.

    python benchmarks/neighbours.py [--texts 1000] [--rows 5500000]

Texts are compared with edited copies of themselves, whose exact similarity is known. Then as
many random signatures as ``--rows``, half of them near-duplicates, are searched in a process
that does nothing else. datasketch, the usual library, is measured where it is installed: a
MinHash of 128 permutations of the same five-word shingles, its own LSH, the same threshold.
"""

import argparse
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from leviathan import neighbours

THRESHOLD = neighbours.THRESHOLD
BOUNDS = (0.6, 0.7, 0.75, 0.78, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 1.0)
_MOST_EDITS = 14


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Texts of 300 words, about 2 KB, and copies with up to 14 words replaced."""
    draw = random.Random(1)  # noqa: S311
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    originals = [draw.choices(words, k=300) for _ in range(count)]
    copies = [list(text) for text in originals]
    for number, text in enumerate(copies):
        for _ in range(number % (_MOST_EDITS + 1)):
            text[draw.randrange(len(text))] = draw.choice(words)
    return [" ".join(text) for text in originals], [" ".join(text) for text in copies]


def shingled(text: str) -> list[bytes]:
    """Five words each."""
    words = text.encode().split()
    return [b" ".join(words[at : at + 5]) for at in range(len(words) - 4)]


def ours(originals: list[str], copies: list[str]) -> tuple[float, set[int]]:
    """CPU seconds for the signatures of all, and the pairs that are found."""
    began = time.process_time()
    signed = neighbours.signatures([*originals, *copies])
    took = time.process_time() - began
    searched = neighbours.Neighbours()
    searched.add(signed)
    found = [pair for some in searched.find() for pair in some.tolist()]
    wrong = [pair for pair in found if pair[0] - pair[1] != len(originals)]
    print(f"reported that are no pair: {len(wrong)}")
    return took, {earlier for _, earlier, _ in found}


def datasketch(originals: list[str], copies: list[str]) -> tuple[float, float, set[int]]:
    """CPU seconds for the shingles and for their signatures, and the pairs that are found."""
    from datasketch import MinHash, MinHashLSH
    from xxhash import xxh32_intdigest

    began = time.process_time()
    shingles = [shingled(text) for text in (*originals, *copies)]
    between = time.process_time()
    signed = list(MinHash.generator(shingles, num_perm=128, hashfunc=xxh32_intdigest))
    ended = time.process_time()
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    count = len(originals)
    for number in range(count):
        index.insert(number, signed[number])
    found = {
        number for number in range(count)
        if number in index.query(signed[count + number])
        and signed[number].jaccard(signed[count + number]) >= THRESHOLD
    }  # fmt: skip
    return between - began, ended - between, found


def recall(originals: list[str], copies: list[str], found: Sequence[set[int]]) -> None:
    """The share found in each range of exact similarity."""
    exact = []
    for one, other in zip(originals, copies, strict=True):
        a, b = set(shingled(one)), set(shingled(other))
        exact.append(len(a & b) / len(a | b))
    for low, high in pairwise(BOUNDS):
        within = [number for number, value in enumerate(exact) if low <= value < high]
        shares = [sum(n in each for n in within) / max(1, len(within)) for each in found]
        print(f"{low:.2f} to {high:.2f}: {len(within):4} pairs, found "
              + ", ".join(f"{100 * share:.1f} %" for share in shares))  # fmt: skip


def search(rows: int) -> None:
    """Search that many random signatures."""
    stream, searched = np.random.default_rng(1), neighbours.Neighbours()
    common = stream.integers(0, 256, (5000, neighbours.SLOTS), dtype=np.uint8)
    for _ in range(0, rows, 10_000):
        signed = stream.integers(0, 256, (10_000, neighbours.SLOTS), dtype=np.uint8)
        near = common[stream.integers(0, len(common), 5000)]
        near[stream.random(near.shape) < 0.05] = 7
        signed[::2] = near
        searched.add(signed)
    began = time.process_time()
    found = sum(len(some) for some in searched.find())
    took = time.process_time() - began
    # Not getrusage: that counts the parent's memory, too, as long as this was a copy of it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(f"{rows:,} rows, {found:,} found: {took:.1f} s of CPU, peak {peak:.0f} MiB")


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=5_500_000)
    parser.add_argument("--search-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search_only:
        search(options.rows)
        return
    originals, copies = pairs(options.texts)
    rows = 2 * options.texts / 1e6
    took, found = ours(originals, copies)
    print(f"signatures: ours {took / rows:.0f} us of CPU a row of {len(originals[0])} bytes")
    all_found = [found]
    if importlib.util.find_spec("datasketch"):
        shingles, signed, theirs = datasketch(originals, copies)
        print(f"datasketch {signed / rows:.0f} us, after {shingles / rows:.0f} us of shingles")
        all_found.append(theirs)
    recall(originals, copies, all_found)
    again = [sys.executable, __file__, "--search-only", "--rows"]
    for count in (options.rows // 10, options.rows):
        subprocess.run([*again, str(count)], check=True)


if __name__ == "__main__":
    main()
