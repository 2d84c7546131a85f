"""What is seen at a glance is what a closer look sees, whatever is done to a row."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leviathan import audit, glance, identity, scrutiny
from leviathan.blocks import Block
from leviathan.corpus import Part
from leviathan.formats import Shape

relaxed = settings(max_examples=300, deadline=None)

ALPACA, TEXT = Shape("alpaca"), Shape("completion", "text")
CHAT = Shape("chat", "messages")
GPT = Shape("sharegpt", "conversations", "from", "value")
ROWS = {
    ALPACA: {"instruction": "Why, é?", "input": "", "output": "\"So\"\n\t\\ it is.", "id": [1, {}]},
    TEXT: {"text": "plain \u2028 text 😀", "meta": {"a": None}},
    CHAT: {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "a"},
                        {"role": "assistant", "content": "b\r\n"}]},
    GPT: {"conversations": [{"from": "human", "value": "ü"}, {"from": "gpt", "value": "\\"}]},
}  # fmt: skip
PIECES = [b'"', b"\\", b"{", b"}", b"[", b",", b":", b"\xff", b"\x00", b"\\ud83d", b"\\u00e9", b"\\/",
          b" ", b"\r", b"0", b"null", b"NaN", b"1e999", b"\xed\xa0\x80", b"\xef\xbb\xbf"]  # fmt: skip


def looked(lines: bytes, shape: Shape, **options) -> scrutiny.Looked:
    block = Block(Part(Path("x"), "plain", 0), True, 0, 0, lines, 0)
    return scrutiny.look(block, scrutiny.Wish(shape, **options))


def closer(lines: bytes, shape: Shape) -> scrutiny.Looked:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glance, "fingerprints", lambda *_: None)
        return looked(lines, shape)


@relaxed
@given(
    shape=st.sampled_from(list(ROWS)),
    ascii=st.booleans(),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from([b"", *PIECES])), max_size=3
    ),
    before=st.booleans(),
)
def test_a_damaged_row_is_judged_alike(shape, ascii, edits, before):
    line = json.dumps(ROWS[shape], ensure_ascii=ascii).encode()
    sound = line
    for place, cut, piece in edits:
        at = round(place * len(line))
        line = line[:at] + piece + line[at + cut :]
    lines = b"\n".join([sound, line] if before else [line, sound])
    fast, slow = looked(lines, shape), closer(lines, shape)
    assert fast.flags == slow.flags
    assert sorted(fast.examples) == sorted(slow.examples)
    same = [h == 0 for h in memoryview(fast.hashes).cast("Q")]
    assert same == [h == 0 for h in memoryview(slow.hashes).cast("Q")]


@pytest.mark.parametrize("shape", ROWS)
def test_a_sound_row_is_seen_at_a_glance(shape):
    line = json.dumps(ROWS[shape], ensure_ascii=False).encode() + b"\n"
    (seen,) = glance.fingerprints(line, shape)
    assert seen == identity.fingerprint(shape.texts(ROWS[shape]))
    assert closer(line, shape).hashes == looked(line, shape).hashes


@pytest.mark.parametrize("shape", ROWS)
def test_the_same_texts_have_one_fingerprint_whatever_stands_around_them(shape):
    row = ROWS[shape]
    turned = dict(reversed(row.items())) | {"other": "field"}
    lines = b"".join(msgspec.json.encode(r) + b"\n" for r in (row, turned))
    one, two = memoryview(looked(lines, shape).hashes).cast("Q")
    assert one == two != 0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b'{"a": "\xc3\xa9"}', False),
        (b'{"a": "\\u00e9"}', True),
        (b'{"a": "\\u0000 \\u001b"}', False),  # nobody can write them otherwise
        (b'{"a": "C:\\\\u00e9"}', False),  # a backslash, and letters
        (b'{"a": "' + b"x" * 10_000 + b'\\u20ac"}', True),
    ],
)
def test_escapes(lines, expected):
    assert glance.has_escapes(lines) == expected


def test_a_corpus_of_two_writers_is_compared_by_its_texts(tmp_path):
    row = {"instruction": "an é", "output": "an ü"}
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii) for ascii in (True, False)]
    path.write_text("\n".join(lines))
    wish = scrutiny.Wish(ALPACA)
    with audit.look(path, wish) as found:
        assert [f.kind for f in found.findings()] == ["duplicate"]
    path.write_text("\n".join(lines[:1] * 2))
    with audit.look(path, wish) as found:
        assert [f.kind for f in found.findings()] == ["duplicate"]
    assert looked(lines[0].encode(), ALPACA).hashes != looked(lines[1].encode(), ALPACA).hashes


def test_unknown_shapes_are_never_seen_at_a_glance():
    assert glance.fingerprints(b'{"a": 1}\n', Shape("unknown")) is None
