"""What a power cut may leave, enumerated from a log of syncs (forked/record_syncs.py).

A file's bytes are durable as of its last fsync, a directory's names as of its own. What
was written since may be there or not: a state keeps some prefix of it, in the order it
was written, or all of it with one file absent, empty, halved, or zeros of full length.
Renames are atomic. Not modelled: disks that lie about a flush, torn sectors within
what an fsync covered.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Dirs = dict[str, dict[str, str]]
Files = dict[str, str]
VARIANTS = ("absent", "empty", "half", "zeros")


@dataclass(frozen=True)
class State:
    """One run directory a power cut may leave: paths below the root, and what is in them."""

    label: str
    files: tuple[tuple[str, str, str], ...]
    """Path, blob, and whole or one of VARIANTS."""
    promised: int
    """Newest step whose commit had returned by then: it must not be lost."""


class Log:
    """The recorded syncs, and which states they allow."""

    def __init__(self, directory: Path, kept: Path) -> None:
        self.blobs = directory / "blobs"
        self.kept = str(kept)
        """Only what is below this path, relative to the recorded root, makes a state."""
        lines = (directory / "syncs.jsonl").read_text().splitlines()
        self.syncs = _relabelled([json.loads(line) for line in lines])
        self.truth: dict[int, dict[str, str]] = {}
        """Of every step ever committed: the blob of each file."""
        for sync in self.syncs:
            self._learn(sync)

    def _learn(self, sync: dict) -> None:
        files = {i: blob for i, (blob, _) in sync["files"].items()}
        tree = _tree(sync["root"], sync["dirs"], files)
        for path in tree:
            folder, _, name = path.rpartition("/")
            if name == "leviathan-commit.json" and "/quarantine/" not in path:
                inside = {p[len(folder) + 1 :]: b for p, b in tree.items()
                          if p.startswith(folder + "/")}  # fmt: skip
                self.truth.setdefault(int(folder.rpartition("-")[2]), inside)

    def states(self) -> Iterator[State]:
        """Every state, once."""
        seen = set()
        dirs: Dirs = {self.syncs[0]["root"]: {}}
        files: Files = {}
        promised = 0
        for number, sync in enumerate(self.syncs):
            for label, found in self._around(dirs, files, sync):
                key = tuple(sorted(found))
                if key not in seen:
                    seen.add(key)
                    yield State(f"sync {number}: {label}", key, promised)
            _make_durable(dirs, files, sync)
            promised = max(promised, _committed_by(sync))

    def _around(self, dirs: Dirs, files: Files, sync: dict) -> Iterator[tuple[str, list]]:
        operations = _unsynced(dirs, files, sync)
        for count in range(len(operations) + 1):
            yield (
                f"{count} of {len(operations)} kept",
                self._applied(dirs, files, sync, operations[:count]),
            )
        whole = self._applied(dirs, files, sync, operations)
        volatile = {i: blob for i, (blob, _) in sync["files"].items()}
        unsynced = {
            path for path, inode in _paths(sync["root"], sync["dirs"]).items()
            if inode in volatile and files.get(inode) != volatile[inode]
        }  # fmt: skip
        for path in sorted(unsynced):
            for variant in VARIANTS:
                label = f"{path} {variant}"
                yield label, [(p, b, variant if p == self._inside(path) else w)
                              for p, b, w in whole]  # fmt: skip

    def _inside(self, path: str) -> str:
        return path[len(self.kept) + 1 :]

    def _applied(self, dirs: Dirs, files: Files, sync: dict, operations: list) -> list:
        """Paths below ``kept`` after these operations on top of what is durable."""
        dirs = {inode: dict(entries) for inode, entries in dirs.items()}
        now = dict(files)
        for kind, inode, name, value in operations:
            if kind == "content":
                now[inode] = value
            elif value is None:
                dirs.setdefault(inode, {}).pop(name, None)
            else:
                dirs.setdefault(inode, {})[name] = value
        known = {i: b for i, (b, _) in sync["files"].items()}
        found = []
        for path, inode in _paths(sync["root"], dirs).items():
            if inode in known | now and path.startswith(self.kept + "/"):
                whole = "whole" if inode in now else "empty"  # a name without its bytes
                found.append((self._inside(path), now.get(inode) or known[inode], whole))
        return found

    def write(self, state: State, target: Path, *, link: bool) -> None:
        """Make ``target`` this state; ``link`` where nobody will write to its files."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path, blob, how in state.files:
            source, file = self.blobs / blob, target / path
            if how == "absent":
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if how == "whole" and link:
                os.link(source, file)
            elif how == "whole":
                shutil.copyfile(source, file)
            else:
                data = source.read_bytes()
                damaged = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}
                file.write_bytes(damaged[how])


def _make_durable(dirs: Dirs, files: Files, sync: dict) -> None:
    volatile = {inode: blob for inode, (blob, _) in sync["files"].items()}
    inode = sync["inode"]
    if sync["what"] == "all":
        dirs.update({i: dict(entries) for i, entries in sync["dirs"].items()})
        files.update(volatile)
    elif sync["what"] == "dir" and inode in sync["dirs"]:
        dirs[inode] = dict(sync["dirs"][inode])
    elif sync["what"] == "file" and inode in volatile:
        files[inode] = volatile[inode]


def _unsynced(dirs: Dirs, files: Files, sync: dict) -> list[tuple]:
    """What was done since it was durable, in the order of the files' times; removals last."""
    content, adds, removals = [], [], []
    times = {inode: time for inode, (_, time) in sync["files"].items()}
    for inode, (blob, time) in sync["files"].items():
        if files.get(inode) != blob:
            content.append((time, 1, ("content", inode, "", blob)))
    for inode, entries in sync["dirs"].items():
        durable = dirs.get(inode, {})
        for name, child in entries.items():
            if durable.get(name) != child:
                inner = [times[i] for i in sync["dirs"].get(child, {}).values() if i in times]
                time = times.get(child) or min(inner, default=0)
                adds.append((time, 0, ("entry", inode, name, child)))
        removals += [("entry", inode, name, None) for name in durable if name not in entries]
    return [operation for *_, operation in sorted(content + adds)] + removals


def _paths(inode: str, dirs: Dirs, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, child in dirs.get(inode, {}).items():
        found[prefix + name] = child
        found |= _paths(child, dirs, f"{prefix}{name}/")
    return found


def _tree(root: str, dirs: Dirs, files: Files) -> dict[str, str]:
    return {path: files[i] for path, i in _paths(root, dirs).items() if i in files}


def _committed_by(sync: dict) -> int:
    """The step whose commit ends with this sync: of the directory that holds the record."""
    if sync["what"] != "dir" or "leviathan-commit.json" not in sync["dirs"].get(sync["inode"], {}):
        return 0
    path = next(p for p, i in _paths(sync["root"], sync["dirs"]).items() if i == sync["inode"])
    return int(path.rpartition("-")[2]) if "/quarantine/" not in path else 0


def _relabelled(syncs: list[dict]) -> list[dict]:
    """Inode numbers are used again after a removal: give every file a number of its own."""
    labels: dict[str, str] = {}
    before: dict[str, tuple] = {}
    found, count = [], 0
    for sync in syncs:
        places = {inode: path for path, inode in _paths(sync["root"], sync["dirs"]).items()}
        now = {i: (places.get(i), sync["files"].get(i) or sync["dirs"].get(i))
               for i in [*sync["files"], *sync["dirs"]]}  # fmt: skip
        for inode, (place, what) in now.items():
            old = before.get(inode)
            if old is None or (old[0] != place and old[1] != what):
                count += 1
                labels[inode] = f"{count}"
        before = now
        found.append({
            **sync,
            "root": labels[sync["root"]],
            "inode": labels.get(sync["inode"], ""),
            "dirs": {labels[i]: {name: labels[c] for name, c in entries.items() if c in labels}
                     for i, entries in sync["dirs"].items()},
            "files": {labels[i]: entry for i, entry in sync["files"].items()},
        })  # fmt: skip
        labels = {i: label for i, label in labels.items() if i in now}
    return found
