"""Owns writing the clean corpus: the rows an audit found nothing against, and the others apart.

Does not judge rows (``audit``).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from leviathan import blocks, corpus, files, findings, samples
from leviathan.audit import Audit
from leviathan.corpus import Part, Progress
from leviathan.errors import BadInput
from leviathan.findings import BITS, BLANK, KINDS

REJECTED = frozenset(
    [*(kind for kind, (severity, _) in KINDS.items() if severity == "error"), "duplicate"]
)
"""Kinds that are left out of the clean corpus unless told otherwise."""


@dataclass(frozen=True)
class Mended:
    """What was written."""

    path: str
    rows: int
    rejects: str
    """JSON lines: path, line, kinds and the row as it was."""
    rejected: int


def kinds(more: list[str], fewer: list[str]) -> frozenset[str]:
    """The kinds to reject.

    Raises:
        BadInput: one of them is none.
    """
    for kind in (*more, *fewer):
        if kind not in KINDS:
            raise BadInput(f"{kind!r} is no kind of finding", f"known: {', '.join(KINDS)}")
    return REJECTED.union(more).difference(fewer)


def rejects_path(path: Path) -> Path:
    """Where the rejected rows of a clean corpus go."""
    return Path(f"{path}.rejects.jsonl")


def manifest_path(path: Path) -> Path:
    """Where it is written what a clean corpus was made of."""
    return Path(f"{path}.manifest.json")


def refuse(path: Path, source: Path) -> None:
    """Raise BadInput where the clean corpus would overwrite what Leviathan did not write."""
    samples.refuse_overwriting(path, manifest_path(path), source)


def mend(
    audit: Audit, path: Path, reject: frozenset[str], progress: Progress | None = None
) -> Mended:
    """Write the rows without these findings to ``path``, bytes unchanged, the others beside it.

    Both files appear whole or not at all.

    Raises:
        LeviathanError: the corpus has changed since it was looked at.
    """
    unwanted = findings.flags(reject)
    with ExitStack() as both:
        out = both.enter_context(files.replaced(path))
        rejects = both.enter_context(files.replaced(rejects_path(path)))
        kept = rejected = done = 0
        for part, number, data, flags in _blocks(audit):
            bad = np.flatnonzero(flags & unwanted)
            kept += _write_kept(out, data, flags & np.uint32(unwanted | BLANK))
            _write_rejects(rejects, part, number, data, flags, bad)
            rejected += len(bad)
            done += len(data)
            if progress:
                progress("writing", done, audit.size)
        if corpus.state(audit.path) != audit.state:
            raise corpus.changed(audit.path)
    made = Mended(str(path), kept, str(rejects_path(path)), rejected)
    document = {**vars(made), "source": str(audit.path), "source_bytes": audit.state[0],
                "source_mtime_ns": audit.state[1], "reject": sorted(reject)}  # fmt: skip
    files.write_json(manifest_path(path), document)
    return made


def _blocks(audit: Audit) -> Iterator[tuple[Part, int, bytes, NDArray[np.uint32]]]:
    """Each block's part, the lines of the part before it, its lines, and their flags."""
    seen = line = 0
    for block in blocks.of(audit.parts):
        data = block.read()
        if block.first:
            line = 0
            data = data if block.part == audit.parts[0] else data.removeprefix(corpus.BOM)
        count = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
        flags = audit.flags.read(seen, count)
        if len(flags) != count:
            raise corpus.changed(audit.path)
        if count and not data.endswith(b"\n"):
            data += b"\n"
        yield block.part, line, data, flags
        seen, line = seen + count, line + count


def _write_kept(out: IO[bytes], data: bytes, left_out: NDArray[np.uint32]) -> int:
    if not left_out.any():
        out.write(data)
        return len(left_out)
    lines = list(corpus.lines_of(data))
    kept = [lines[number] for number in np.flatnonzero(left_out == 0)]
    out.writelines(kept)
    return len(kept)


def _write_rejects(
    out: IO[bytes], part: Part, before: int, data: bytes, flags: NDArray[np.uint32],
    bad: NDArray[np.int64],
) -> None:  # fmt: skip
    if not len(bad):
        return
    lines = list(corpus.lines_of(data))
    for number in bad.tolist():
        found = [kind for kind in KINDS if flags[number] & BITS[kind]]
        row = lines[number].rstrip(b"\r\n").decode(errors="backslashreplace")
        document = {"path": str(part.path), "line": before + number + 1, "kinds": found, "row": row}
        out.write(msgspec.json.encode(document) + b"\n")
