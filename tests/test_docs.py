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


def test_every_test_that_is_named_as_a_proof_exists():
    import re

    text = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"`((?:real/)?test_\w+\.py)::(\w+)`", text)
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
