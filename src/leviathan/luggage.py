"""Owns what a run needs beside itself at another place: configs, sample, base model.

What is there already stays, whatever it holds: nothing of another project is replaced. Does not
send the run (``transfer``).
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import xxhash

from leviathan import export, landing, remote
from leviathan.errors import LeviathanError
from leviathan.export import Export
from leviathan.landing import STAGE
from leviathan.remote import Place


@dataclass(frozen=True)
class Luggage:
    """Files of this project, by their place in the other."""

    texts: dict[str, bytes]
    """Configs, and the sample's manifest."""
    data: dict[str, Path]
    left_out_bytes: int = 0
    """Of the base model, which travels only when asked for."""
    command: tuple[str, ...] = ()
    """What goes on with the run there."""

    def sizes(self) -> dict[str, int]:
        """Bytes by name."""
        texts = {name: len(text) for name, text in self.texts.items()}
        return texts | {name: path.stat().st_size for name, path in self.data.items()}


NOTHING = Luggage({}, {})


def of_run(run: Path, *, sample: bool, base: bool) -> tuple[Luggage, list[str]]:
    """What a run needs; and a line of why that is nothing, where it cannot be told here."""
    try:
        exported = export.of(export.Wanted(str(run)), draw=False)
    except LeviathanError as error:
        return NOTHING, [f"configs and sample stay here: {error.message}"]
    return of(exported, sample=sample, base=base), []


def of(exported: Export, *, sample: bool, base: bool) -> Luggage:
    """What of an export travels.

    Args:
        exported: of the run.
        sample: also its sample, or the corpus that serves as one.
        base: also its base model, where that is a directory.
    """
    own = PurePosixPath(str(exported.config.tree["base_model"])).as_posix()
    below = (f"{own}/", "base_model/") if Path(own).is_dir() else ()
    is_base = {c.name: c.name.startswith(below) for c in exported.carried}
    data = {c.name: c.source for c in exported.carried if (base if is_base[c.name] else sample)}
    left = sum(c.bytes for c in exported.carried if is_base[c.name] and not base)
    texts = {
        name: text for name, text in exported.texts.items()
        if sample or not name.startswith("work/")
    }  # fmt: skip
    return Luggage(texts, data, left, exported.command)


def pack(luggage: Luggage, project: Place, sizes: dict[str, int], notes: list[str]) -> list[str]:
    """Names of what will travel, also added to ``sizes``; what differs there and stays goes into
    ``notes``."""
    if not luggage.texts and not luggage.data:
        return []
    with _gathered(luggage) as directory:
        fresh, other = _compared(directory, project, luggage)
    every = luggage.sizes()
    sizes |= {name: every[name] for name in fresh}
    notes += [f"{name} is another there, and stays" for name in other]
    return fresh


def staged_bytes(luggage: Luggage, project: Place, fresh: list[str]) -> int:
    """What of it an interrupted attempt has brought there already."""
    return landing.look(project, project / _stage(luggage)).staged_bytes if fresh else 0


def _stage(luggage: Luggage) -> str:
    return STAGE + xxhash.xxh3_64_hexdigest(repr(sorted(luggage.sizes().items())).encode())


def send(
    luggage: Luggage, fresh: list[str], project: Place, bwlimit: str, tell: Callable[[str], None],
    progress: remote.Progress,
) -> None:  # fmt: skip
    """Send what the other place lacks (``pack``); compared there before it gets its name.

    Raises:
        LeviathanError: see ``transfer.push_run``.
    """
    if not fresh:
        return
    with _gathered(luggage) as directory:
        for name in luggage.sizes().keys() - set(fresh):
            (directory / name).unlink()
        source = remote.here(directory)
        stage = landing.prepare(project, _stage(luggage))
        tell(f"sending what training reads: {', '.join(fresh)}")
        remote.copy(source, stage, bwlimit=bwlimit, progress=progress)
        wrong = remote.differing(source, stage)
        if wrong:
            raise LeviathanError(f"{stage} does not hold what was sent: {', '.join(wrong)}",
                                 "run the same again")  # fmt: skip
        landing.publish_files(project, _stage(luggage), fresh)


def _compared(directory: Path, project: Place, luggage: Luggage) -> tuple[list[str], list[str]]:
    """Names that lack there, and those that are another file there."""
    names = [*luggage.sizes()]
    there = landing.existing(project, names)
    if not there:
        return names, []
    differing = set(remote.differing(remote.here(directory), project))
    lacking = [name for name in names if name not in there]
    return lacking, [name for name in names if name in differing and name in there]


@contextmanager
def _gathered(luggage: Luggage) -> Iterator[Path]:
    """A directory that looks as the other project will: links, which rsync follows."""
    with tempfile.TemporaryDirectory() as made:
        for name in luggage.sizes():
            path = Path(made) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in luggage.texts:
                path.write_bytes(luggage.texts[name])
                os.utime(path, (0, 0))
            else:
                path.symlink_to(luggage.data[name].absolute())
        yield Path(made)
