#!/usr/bin/env python3
"""Have SkyPilot's own loader read the tasks that the tests export, and record what it made of them.

    python -m venv /tmp/sky && /tmp/sky/bin/pip install skypilot==0.14.0
    /tmp/sky/bin/python scripts/check_skypilot.py

Runs in an environment of SkyPilot's own, offline. tests/test_skypilot.py holds what is exported
against tests/recorded/skypilot, and says when it has to be recorded anew.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "tests/recorded/skypilot"
PLACE = "/PROJECT"
"""In the recorded tasks: the directory that was exported from."""


def main() -> int:
    """Read every recorded task; exit with 1 where one is refused."""
    os.environ["SKYPILOT_DISABLE_USAGE_COLLECTION"] = "1"
    os.environ["HOME"] = tempfile.mkdtemp()  # it keeps a database there
    import sky

    tasks = {path.name: read(sky, path) for path in sorted(RECORDED.glob("*.yaml"))}
    verdict = {"skypilot": sky.__version__, "tasks": tasks}
    text = json.dumps(verdict, indent=2, ensure_ascii=False) + "\n"
    (RECORDED / "verdict.json").write_text(text)
    sys.stdout.write(text)
    return int(any("refused" in task for task in tasks.values()))


def read(sky: object, path: Path) -> dict[str, object]:
    """What the loader understood, with the digest of the text it read."""
    text = path.read_text()
    found: dict[str, object] = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for source in sources(text):  # a mount's source has to be there
            file = Path(source.replace(PLACE, directory))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        Path("task.yaml").write_text(text.replace(PLACE, directory))
        try:
            task = sky.Task.from_yaml("task.yaml")  # type: ignore[attr-defined]
        except Exception as error:  # whatever it is, it is the verdict
            return {**found, "refused": f"{type(error).__name__}: {error}"}
        finally:
            os.chdir("/")
        (resources,) = task.resources
        mounts = {to: here.replace(directory, PLACE) for to, here in task.file_mounts.items()}
        return {
            **found,
            "name": task.name,
            "accelerators": resources.accelerators,
            "spot": resources.use_spot,
            "recovery": resources.job_recovery,
            "autostop": resources.autostop_config.idle_minutes,
            "nodes": task.num_nodes,
            "mounts": mounts,
            "volumes": dict(task.volumes),
            "buckets": {to: storage.mode.value for to, storage in task.storage_mounts.items()},
        }


def sources(text: str) -> list[str]:
    """Files here that the task mounts."""
    import yaml

    mounts = yaml.safe_load(text).get("file_mounts", {})
    return [source for source in mounts.values() if isinstance(source, str)]


if __name__ == "__main__":
    sys.exit(main())
