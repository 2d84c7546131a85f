"""Near-duplicates: found from a margin above the threshold on, and nothing that is far below."""

import base64
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leviathan import neighbours, spill

WORDS = ["".join(random.Random(n).choices("etaoinshrdlu", k=2 + n % 8)) for n in range(5000)]


def text(seed: int, words: int = 300) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(original: str, edits: int, seed: int) -> str:
    draw, words = random.Random(seed), original.split(" ")
    for _ in range(edits):
        words[draw.randrange(len(words))] = draw.choice(WORDS)
    return " ".join(words)


def reference_shingles(text: str) -> set[bytes]:
    """By the definition in the module, one text at a time, without numpy."""
    data = text.encode("utf-8", "surrogatepass").lower()
    data = re.sub(rb"[^a-z0-9\x80-\xff]+", b" ", data).rstrip(b" ")
    begins = [
        at for at, byte in enumerate(data)
        if byte != 32 and (at == 0 or data[at - 1] == 32 or (byte >= 0xE0 and byte != 0xE2))
    ]  # fmt: skip
    long = []
    for begin, following in zip(begins, [*begins[1:], len(data)], strict=bool(begins)):
        end = min(following, data.find(b" ", begin) % (len(data) + 1))
        long += range(begin + 16, end, 16) if end - begin > 64 else ()
    return {data[at : at + 32].ljust(32, b"\0") for at in [*begins, *long]}


def jaccard(one: str, other: str) -> float:
    a, b = reference_shingles(one), reference_shingles(other)
    return len(a & b) / len(a | b)


def find(texts, threshold=neighbours.THRESHOLD, blocks=1):
    searched = neighbours.Neighbours(threshold)
    for block in np.array_split(neighbours.signatures(texts), blocks):
        searched.add(block)
    found = [tuple(pair) for pairs in searched.find() for pair in pairs.tolist()]
    searched.close()
    return found


mixed = st.text(st.sampled_from("aBc1 .,\n\t-é“汉字ไ\ud800"), max_size=120)
long_words = st.text(st.sampled_from("ab"), min_size=50, max_size=200)


@settings(max_examples=200, deadline=None)
@given(st.lists(mixed | long_words, min_size=1, max_size=40))
def check_shingles(texts):
    hashes, bounds = neighbours.shingles([t.encode("utf-8", "surrogatepass") for t in texts])
    assert bounds[0] == 0
    assert bounds[-1] == len(hashes)
    known: dict[int, bytes] = {}
    for number, given_text in enumerate(texts):
        found = set(hashes[int(bounds[number]) : int(bounds[number + 1])].tolist())
        expected = reference_shingles(given_text)
        assert len(found) == len(expected)
        for shingle in expected:  # one hash for one shingle, in whichever text it is
            hash_ = _hash(shingle)
            assert hash_ in found
            assert known.setdefault(hash_, shingle) == shingle


def _hash(shingle: bytes) -> int:
    hash_ = 0
    for at in range(0, 32, 8):
        hash_ ^= int.from_bytes(shingle[at : at + 8], "little")
        hash_ = hash_ * 0x9E3779B97F4A7C15 % 2**64
        hash_ ^= hash_ >> 32
    return hash_


def test_shingles_are_those_of_the_definition():
    check_shingles()


@pytest.fixture(scope="module")
def planted():
    """1,500 texts, then an edited copy of each; exact similarities of the copies."""
    originals = [text(seed) for seed in range(1500)]
    copies = [edited(original, n % 15, n) for n, original in enumerate(originals)]
    pairs = zip(originals, copies, strict=True)
    return originals + copies, np.array([jaccard(*pair) for pair in pairs])


def test_recall_and_precision_against_exact_similarities(planted):
    texts, exact = planted
    found = find(texts)
    assert all(row == earlier + 1500 for row, earlier, _ in found)
    hit = np.zeros(1500, dtype=bool)
    hit[[earlier for _, earlier, _ in found]] = True
    above, far_below = (exact >= 0.87) & (exact < 0.93), exact < 0.7
    assert above.sum() > 150
    assert far_below.sum() > 200
    assert hit[above].mean() >= 0.97
    assert hit[exact >= 0.93].all()
    assert hit[exact >= 0.8].mean() >= 0.85
    assert not hit[far_below].any()
    said = np.array([similarity for _, _, similarity in found])
    true = exact[[earlier for _, earlier, _ in found]]
    assert np.abs(said - true).max() < 0.15
    assert abs((said - true).mean()) < 0.015
    assert said.min() >= 0.8


@pytest.mark.parametrize("per_part", [64, 500])
def test_finds_the_same_in_many_small_parts(planted, monkeypatch, per_part):
    texts, _ = planted
    expected = find(texts)
    monkeypatch.setattr(spill, "PER_PART", per_part)
    monkeypatch.setattr(spill, "PIECE_BYTES", 4096)
    assert find(texts, blocks=7) == expected


def test_case_punctuation_and_spaces_do_not_count():
    one = text(1)
    other = "  " + one.upper().replace(" ", ",\n ") + ".\n"
    assert find([one, other]) == [(1, 0, 1.0)]


def test_rows_of_one_cluster_are_reported_against_earlier_ones():
    texts = [text(2), text(3), *(edited(text(2), 1, seed) for seed in range(8)), text(3)]
    found = find(texts)
    assert [row for row, _, _ in found] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert all(earlier < row for row, earlier, _ in found)
    assert found[-1] == (10, 1, 1.0)


def test_pairs_are_found_among_others_that_share_their_only_band():
    """Twelve pairs, alike in 113 of 128 slots, that agree with one another in one band only."""
    originals = np.random.default_rng(1).integers(0, 256, (12, 128), dtype=np.uint8)
    originals[:, :8] = 7
    copies = originals.copy()
    copies[:, 8::8] += 1
    searched = neighbours.Neighbours()
    searched.add(np.concatenate([originals, copies]))
    found = np.concatenate(list(searched.find()))
    assert found["row"].tolist() == list(range(12, 24))
    assert found["earlier"].tolist() == list(range(12))
    assert found["similarity"] == pytest.approx([0.8824] * 12, abs=1e-3)


def test_a_long_beginning_in_common_makes_no_neighbours():
    head = text(4, 200)
    originals = [f"{head} {text(seed, 100)}" for seed in range(100, 1100)]
    copies = [edited(original, 2, n) for n, original in enumerate(originals)]
    found = find(originals + copies)
    assert [(row - 1000) for row, _, _ in found] == [earlier for _, earlier, _ in found]
    assert len(found) >= 990


def test_short_and_empty_texts():
    texts = ["", "...", "What is Rust?", "what is rust", "What is Go?", "", "x", "...", "X!"]
    assert find(texts) == [(3, 2, 1.0), (8, 6, 1.0)]
    assert not neighbours.signatures(["", " .\n", b"\0"]).any()
    assert neighbours.signatures([]).shape == (0, 128)


def test_scripts_without_spaces():
    sentence = "".join(chr(0x4E00 + random.Random(n).randrange(5000)) for n in range(600))
    near, far = sentence[:300] + "人" + sentence[301:], sentence[::-1]
    assert [(row, earlier) for row, earlier, _ in find([sentence, far, near])] == [(2, 0)]


def test_long_words_are_no_single_shingle():
    head = "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4"
    blobs = [head + base64.b64encode(random.Random(n).randbytes(900)).decode() for n in (1, 2)]
    assert find(blobs) == []
    assert find([blobs[0], blobs[0]]) == [(1, 0, 1.0)]


def test_bytes_and_text_have_the_same_signature_in_any_company():
    texts = [text(seed) + " naïve 汉字" for seed in range(70)]
    texts += ["a" * length for length in range(20, 80, 6)] + ["", "."]
    together = neighbours.signatures(texts)
    assert (together == neighbours.signatures([t.encode() for t in texts])).all()
    alone = [neighbours.signatures([t])[0] for t in texts]
    assert (together == alone).all()


def test_a_huge_row_is_judged_by_its_beginning():
    huge = text(5, 20_000)
    assert find([huge, huge[:100_000], huge + text(6, 50_000)]) == [(1, 0, 1.0), (2, 0, 1.0)]


def test_signatures_never_change():
    """Pinned: those of two processes, or of two versions, must be comparable."""
    assert neighbours.signatures([text(6)])[0, :8].tolist() == PINNED


PINNED = [152, 68, 85, 103, 235, 87, 212, 51]


def test_no_threads_are_started():
    """Whatever the rows: callers are worker processes, which may have been forked."""
    code = ("import os; from leviathan import neighbours; "
            "neighbours.signatures([c * n for c in ('a ', '\u6c49') for n in (9, 9999, 99999)] * 9); "
            "print(len(os.listdir('/proc/self/task')))")  # fmt: skip
    environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert int(said) == 1


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = [int(subprocess.check_output([sys.executable, "-c", GROWTH, str(rows), tmp_path]))
             for rows in (100_000, 600_000)]  # fmt: skip
    assert peaks[1] - peaks[0] < 32 << 20  # 64 MB of signatures more


GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from leviathan.neighbours import Neighbours
rows, directory = int(sys.argv[1]), Path(sys.argv[2])
searched, stream = Neighbours(directory=directory), np.random.default_rng(1)
common = stream.integers(0, 256, (5, 128), dtype=np.uint8)
for _ in range(0, rows, 10_000):
    signed = stream.integers(0, 256, (10_000, 128), dtype=np.uint8)
    signed[::4] = common[stream.integers(0, 5, 2_500)]
    searched.add(signed)
found = sum(len(pairs) for pairs in searched.find())
assert found == rows // 4 - 5, found
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
