"""Owns this Leviathan as a file that pip installs: a wheel made of the installation that runs.

Needs no build backend and no network, and the same installation gives the same bytes: what
trains elsewhere is what ran here, published or not.
"""

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from functools import cache
from pathlib import Path

from leviathan.config import shipped_directory
from leviathan.errors import LeviathanError

DISTRIBUTION = "leviathan-train"
_PACKAGE = "leviathan"
_TAG = "py3-none-any"
_WHEEL = f"Wheel-Version: 1.0\nGenerator: leviathan\nRoot-Is-Purelib: true\nTag: {_TAG}\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip file can name


@cache
def wheel() -> tuple[str, bytes]:
    """The wheel's file name and its bytes (PyPA, Binary distribution format).

    Raises:
        LeviathanError: Leviathan runs from a source tree that was never installed.
    """
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise LeviathanError(
            f"{DISTRIBUTION} is not installed, so there is nothing to take along",
            "pip install it, from its source tree if you like",
        ) from error
    stem = f"{DISTRIBUTION.replace('-', '_')}-{installed.version}"
    info = f"{stem}.dist-info"
    entries = _package_files()
    for name in ("METADATA", "entry_points.txt"):
        text = installed.read_text(name)
        if text is None:
            raise LeviathanError(f"the installed {DISTRIBUTION} lacks {name}", "install it anew")
        entries[f"{info}/{name}"] = text.encode()
    entries[f"{info}/WHEEL"] = _WHEEL.encode()
    record = "".join(f"{name},{_hash(data)},{len(data)}\n" for name, data in entries.items())
    entries[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return f"{stem}-{_TAG}.whl", _zipped(entries)


def _package_files() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for root, prefix in (
        (Path(__file__).parent, _PACKAGE),
        (shipped_directory(), f"{_PACKAGE}/configs"),
    ):
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found[f"{prefix}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return dict(sorted(found.items()))


def _hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _zipped(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return out.getvalue()
