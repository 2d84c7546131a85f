#!/usr/bin/env python3
"""Put the prompt suite to a trained adapter or a merged model: a thin call of ``leviathan test``.

python3 scripts/test_inference.py --adapter work/training/leviathan_10pct_a4000/checkpoint-500
python3 scripts/test_inference.py --model models/leviathan_10pct_a4000-merged
"""

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Translate the guide's options and return the CLI's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--adapter", type=Path, help="a run, or a checkpoint inside a run")
    what.add_argument("--model", type=Path, help="a merged model")
    known, rest = parser.parse_known_args()
    command = [
        sys.executable,
        "-m",
        "leviathan.cli",
        "test",
        *target(known.adapter, known.model),
        *rest,
    ]
    return subprocess.run(command, check=False).returncode


def target(adapter: Path | None, model: Path | None) -> list[str]:
    """Arguments naming what is tested; the guide's checkpoint-final means the latest."""
    if adapter is None:
        return [str(model)]
    if not adapter.name.startswith("checkpoint-"):
        return [str(adapter)]
    which = "latest" if adapter.name == "checkpoint-final" else adapter.name
    return [str(adapter.parent), "--checkpoint", which]


if __name__ == "__main__":
    sys.exit(main())
