"""Owns a bundle: the directory that goes to another machine, written whole or not at all.

Does not know what goes into it (``export``) or what the machine is (``skypilot``, ``cluster``,
``remote``). The same input gives the same bytes.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from leviathan import __version__, files, wheelhouse
from leviathan.errors import BadInput
from leviathan.export import Carried, Export

MANIFEST = "MANIFEST.json"
SCHEMA = 1
# Their exact builds (a CUDA build of torch) follow from the machine, not from where it ran first.
_LOCAL_BUILD = re.compile(r"\+.*")
_NOT_PINNED = {"python", wheelhouse.DISTRIBUTION, "torch", "flash-attn"}


@dataclass(frozen=True)
class Bundle:
    """Every file of a bundle, before it is written."""

    target: str
    export: Export
    files: dict[str, bytes]
    """By place; shell scripts are made executable."""
    carried: tuple[Carried, ...]
    """Copied in, beside being listed."""

    def manifest(self) -> dict[str, Any]:
        """What MANIFEST.json says: enough to check every byte of the bundle."""
        export = self.export
        inside = {one.name for one in self.carried}
        return {
            "schema": SCHEMA,
            "leviathan": __version__,
            "target": self.target,
            "run": export.run,
            "command": list(export.command),
            "versions": export.versions,
            "secrets": list(export.secrets),
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in sorted(self.files.items())
            },
            "data": [
                {
                    "source": str(one.source),
                    "name": one.name,
                    "bytes": one.bytes,
                    "digest": one.digest,
                    "included": one.name in inside,
                }
                for one in export.carried
            ],
        }


def common(export: Export) -> dict[str, bytes]:
    """What every bundle holds: configs, the sample's manifest, pins, this Leviathan."""
    name, data = wheelhouse.wheel()
    return {
        **export.texts,
        name: data,
        "requirements.txt": requirements(export.versions).encode(),
        "torch.txt": f"{torch_requirement(export.versions)}\n".encode(),
    }


def requirements(versions: Mapping[str, str]) -> str:
    """pip's requirements: the versions this was trained with, else the range it is tested on."""
    pinned = [
        f"{package}=={_LOCAL_BUILD.sub('', version)}"
        for package, version in sorted(versions.items())
        if package not in _NOT_PINNED
    ]
    if "axolotl" not in versions:
        pinned.append(f"{wheelhouse.DISTRIBUTION}[train]")
    return "".join(f"{line}\n" for line in pinned)


def torch_requirement(versions: Mapping[str, str]) -> str:
    """torch, which goes first: what is there when it comes is not replaced by another build."""
    version = versions.get("torch")
    return f"torch=={_LOCAL_BUILD.sub('', version)}" if version else "torch>=2.11,<2.14"


# --- writing -----------------------------------------------------------------------------


def write(bundle: Bundle, directory: Path) -> dict[str, Any]:
    """Write the bundle to ``directory``: a new one, an empty one, or an untouched earlier one.

    It is made beside it and renamed, so that no half of one is ever found there; an earlier
    one is moved aside first, and back if that fails.

    Returns:
        The manifest.

    Raises:
        BadInput: the directory holds something else, or an earlier bundle that was changed.
    """
    directory = directory.absolute()  # "." has no name to rename
    _recover(directory)
    _refuse_foreign(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    making = directory.with_name(f".{directory.name}.tmp")
    manifest = bundle.manifest()
    try:
        _fill(bundle, making, manifest)
        files.fsync_tree(making)
        _swap(making, directory)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def _fill(bundle: Bundle, directory: Path, manifest: dict[str, Any]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in bundle.files.items():
        path = directory / _safe(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if path.suffix == ".sh":
            path.chmod(0o755)
    for one in bundle.carried:
        _copy(one, directory / _safe(one.name))
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{name!r} would lie outside the bundle", "give it a path inside")
    return name


def _copy(one: Carried, path: Path) -> None:
    """A second name for the same bytes where the file system allows, else a copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(one.source, path)
    except OSError:
        shutil.copyfile(one.source, path)


def _recover(directory: Path) -> None:
    """Give an earlier bundle its name back, that a kill between two renames took from it."""
    old = directory.with_name(f".{directory.name}.old")
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def _swap(new: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old")
    had = directory.exists()
    if had:
        directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        if had:
            old.rename(directory)
        raise
    files.fsync_directory(directory.parent)
    if had:
        shutil.rmtree(old)


def _refuse_foreign(directory: Path) -> None:
    """Only what a bundle's own manifest names, unchanged, may be replaced by another."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise BadInput(f"{directory} is not a directory", "name another with -o")
    if not directory.exists() or not any(directory.iterdir()):
        return
    named = _named(directory)
    if named is None:
        raise BadInput(
            f"{directory} holds something else than a bundle", "name a new directory with -o"
        )
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or name == MANIFEST:
            continue
        if name not in named or not _is(path, named[name]):
            raise BadInput(
                f"{path} was not put there by cloud export, or was changed since",
                "move it away, or name a new directory with -o",
            )


def _named(directory: Path) -> dict[str, dict[str, Any]] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((directory / MANIFEST).read_bytes())
        if manifest["schema"] == SCHEMA:
            data = {one["name"]: one for one in manifest["data"]}
            return {**data, **manifest["files"]}
    return None


def _is(path: Path, entry: dict[str, Any]) -> bool:
    if path.stat().st_size != entry.get("bytes"):
        return False
    wanted = entry.get("sha256")  # of carried data the size is enough: it is here besides
    return wanted is None or hashlib.sha256(path.read_bytes()).hexdigest() == wanted
