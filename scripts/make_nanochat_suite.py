#!/usr/bin/env python3
"""Write configs/suites/nanochat.yaml from the shipped corpus."""

from pathlib import Path

from leviathan import classroom

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    text = classroom.suite(ROOT / "configs/demo/stdlib.jsonl")
    (ROOT / "configs/suites/nanochat.yaml").write_text(text, encoding="utf-8")
