"""Owns plain text as rows: where one ends, and each as a line of JSON, ``{"text": ...}``.

Does not know which files are text (``corpus``).

A document ends where a line says ``<|endoftext|>``. What is longer than a row is cut behind a
paragraph, a line, or at worst a character: after training each row ends with the end token.
"""

from collections.abc import Iterable, Iterator

from leviathan.errors import BadInput

_END = b"<|endoftext|>"
_ROW_BYTES = 8 << 10
"""A row ends with the first paragraph that reaches this,"""
_LINE_BYTES = 32 << 10
"""or with the first line that reaches this,"""
_MOST_BYTES = 64 << 10
"""or here, between two characters."""
_BLOCK_BYTES = 1 << 20


def blocks(lines: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Text, line by line or in pieces of lines, as blocks of JSON lines, about a MiB each.

    Raises:
        BadInput: it is not UTF-8; ``name`` stands before that.
    """
    import msgspec

    found: list[bytes] = []
    size = 0
    for number, text in enumerate(rows(lines), 1):
        try:
            line = msgspec.json.encode({"text": text.decode()}) + b"\n"
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{name}: row {number} is not UTF-8 ({error.reason})",
                "convert it, as with iconv -t UTF-8",
            ) from error
        found.append(line)
        size += len(line)
        if size >= _BLOCK_BYTES:
            yield b"".join(found)
            found, size = [], 0
    if found:
        yield b"".join(found)


def rows(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The text of each row, blank ends cut off; what is blank is no row."""
    row: list[bytes] = []
    size = 0
    for line in _cut(lines):
        ends = line.strip() == _END
        if not ends:
            row.append(line)
            size += len(line)
        paragraph = size >= _ROW_BYTES and line.isspace()
        if ends or paragraph or size >= _LINE_BYTES:
            yield from _text(row)
            row, size = [], 0
    yield from _text(row)


def _text(row: list[bytes]) -> Iterator[bytes]:
    text = b"".join(row).strip(b"\r\n")
    if text and not text.isspace():
        yield text


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines again, those that are too long in pieces that end with a character."""
    left = b""
    for piece in pieces:
        line = left + piece
        while len(line) > _MOST_BYTES:
            end = _MOST_BYTES
            while end > 1 and line[end] & 0xC0 == 0x80:  # in the middle of a UTF-8 sequence
                end -= 1
            yield line[:end]
            line = line[end:]
        left = b"" if line.endswith(b"\n") else line
        if not left:
            yield line
    if left:
        yield left
