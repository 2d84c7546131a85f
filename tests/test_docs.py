"""The documentation says what the code does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_configuration_reference_is_up_to_date():
    command = [sys.executable, ROOT / "scripts/make_config_reference.py", "--check"]
    assert subprocess.run(command, check=False).returncode == 0, (
        "run scripts/make_config_reference.py"
    )


def test_every_relative_link_leads_somewhere():
    import re

    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
