"""Owns one whole look at a corpus: its format, every row, lengths, a preview, the clean copy.

Brings together what ``audit``, ``survey``, ``preview`` and ``mending`` know; judges nothing
itself.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leviathan import audit, corpus, figures, formats, lengths, mending, preview, survey
from leviathan.audit import Audit, Finding
from leviathan.corpus import Progress, Row
from leviathan.errors import BadInput
from leviathan.figures import Source
from leviathan.formats import Shape
from leviathan.layers import Config
from leviathan.lengths import Report
from leviathan.mending import Mended
from leviathan.preview import Preview
from leviathan.scrutiny import Wish


@dataclass(frozen=True)
class Request:
    """What to look for, and what to write."""

    exact: bool = False
    """Tokenise every row."""
    near: float | None = None
    """Similarity from which rows count as near-duplicates; None: not looked for."""
    shown: int = 0
    """So many first rows are read as a training would read them."""
    clean: Path | None = None
    """Where to write the clean corpus."""
    reject: frozenset[str] = mending.REJECTED
    """Kinds of findings that are left out of it."""


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    corpus: Path
    shape: Shape
    surprise: str
    """What to say where the recipe calls the rows something else; else empty."""
    rows: int
    bytes: int
    findings: tuple[Finding, ...]
    lengths: Report | str
    """Or why they were not looked at."""
    preview: Preview
    places: tuple[str, ...]
    """Where the rows of ``preview`` stand."""
    mended: Mended | None

    @property
    def sound(self) -> bool:
        """Nothing in it breaks a training, or should not be trained on."""
        return not any(finding.severity == "error" for finding in self.findings)


def inspect(
    configure: Callable[[Sequence[str]], Config], request: Request, progress: Progress | None = None
) -> Inspection:
    """Look at the corpus of a configuration.

    Args:
        configure: the merged configuration, given overrides for the format that rows turn out
            to have.
        request: what is wanted.
        progress: told of bytes read.

    Raises:
        BadInput: no corpus, an empty one, or a clean copy that would overwrite another file.
    """
    config = configure(())
    source = Path(config.recipe.corpus)
    if request.clean:
        mending.refuse(request.clean, source)
    shape, surprise = _shape(config, source)
    if surprise:
        config = configure(formats.settings(shape))
    first = _first(source, request.shown)
    tree = [corpus.parse_row(row) for row in first]
    with preview.start(config.tree, tree) as pending, ThreadPoolExecutor(1) as aside:
        # While other processes look at rows this one has time.
        early = None if request.exact else aside.submit(_lengths, config, shape)
        with audit.look(source, Wish(shape, request.near), progress) as looked:
            measured = early.result() if early else _lengths(config, shape, progress)
            if isinstance(measured, str):
                told: Report | str = measured
            else:
                asked, told = measured
                figures.keep(asked, told.statistics)
                if request.exact:
                    looked.mark_lengths(told)
            return Inspection(
                corpus=source,
                shape=shape,
                surprise=surprise,
                rows=looked.rows(),
                bytes=looked.size,
                findings=looked.findings(),
                lengths=told,
                mended=_mended(looked, request, progress),
                preview=pending.result(),
                places=tuple(f"{row.path}:{row.number}" for row in first),
            )


def _shape(config: Config, source: Path) -> tuple[Shape, str]:
    """How the rows are to be read, and what to say where the recipe says otherwise."""
    said, seen = formats.of(config.tree), formats.detect(corpus.first_rows(source))
    known = "unknown" not in {said.kind, seen.kind}
    if not known or seen == said or said.kind == seen.kind == "completion":
        return said, ""
    return seen, (
        f"these rows are {seen.kind}, and recipe {config.recipe_name} says {said.kind}: checked "
        f"as {seen.kind}; to train on them: --set {' --set '.join(formats.settings(seen))}"
    )


def _first(source: Path, count: int) -> list[Row]:
    """The first rows that can be parsed."""
    found = list[Row]()
    for row in itertools.takewhile(lambda _: len(found) < count, corpus.read_rows(source)):
        with suppress(BadInput):
            corpus.parse_row(row)
            found.append(row)
    return found


def _lengths(
    config: Config, shape: Shape, progress: Progress | None = None
) -> tuple[Source, Report] | str:
    """How long rows are in tokens: of all of them where ``progress`` is told, else of some."""
    if shape.kind != formats.of(config.tree).kind:
        return f"the recipe does not read {shape.kind} rows"
    exact = progress is not None
    try:
        return survey.lengths_of(config, exact=exact, closer=False, progress=progress)
    except BadInput as error:
        return error.message


def _mended(looked: Audit, request: Request, progress: Progress | None) -> Mended | None:
    if request.clean is None:
        return None
    return mending.mend(looked, request.clean, request.reject, progress)


def as_document(found: Inspection) -> dict[str, Any]:
    """The document of ``data check --json``."""
    told = found.lengths
    return {
        "corpus": str(found.corpus),
        "format": found.shape.kind,
        "format_differs": found.surprise or None,
        "rows": found.rows,
        "bytes": found.bytes,
        "sound": found.sound,
        "findings": [asdict(finding) for finding in found.findings],
        "lengths": told if isinstance(told, str) else lengths.as_document(told, None),
        "preview": preview.as_document(found.preview),
        "fixed": asdict(found.mended) if found.mended else None,
    }
