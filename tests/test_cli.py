"""The command line as a whole: light, documented, layered, one line per error."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import leviathan
from fakes import fake_files
from fakes.processes import LEVIATHAN, listing
from leviathan import checkpoints, cli, runs

SOURCE = Path(leviathan.__file__).parent
HEAVY = {"torch", "transformers", "axolotl", "accelerate", "peft", "datasets", "bitsandbytes",
         "pydantic", "numpy", "textual", "matplotlib"}  # fmt: skip


def commands():
    """Every command path, as (words, click command)."""
    pending = [((), typer.main.get_command(cli.app))]
    while pending:
        words, command = pending.pop()
        yield words, command
        pending += [((*words, n), c) for n, c in getattr(command, "commands", {}).items()]


# --- weight -----------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import sys\nfrom leviathan import cli\n"
        f"sys.argv = ['leviathan', *{arguments}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"print('LOADED', code, sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "LOADED 0 []", done.stderr


def test_no_reading_command_loads_the_training_stack(project):
    """Everything but merge, test and infer must answer without importing torch."""
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom leviathan import cli\n"
        "for line in sys.argv[1:]:\n"
        "    done = CliRunner().invoke(cli.app, line.split())\n"
        "    print(line, done.exit_code, sorted({'torch', 'transformers', 'axolotl', 'peft',"
        " 'datasets'} & set(sys.modules)))"
    )
    lines = ["profiles list", "recipes show tiny", "data sample rows.jsonl -s 5", "checkpoints list x",
             "render -p tiny -r tiny", "train -p tiny -r tiny --dry-run", "doctor",
             "doctor -p tiny -r tiny"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *lines], capture_output=True, text=True, check=False
    )
    codes = {"checkpoints list x": 2}
    assert done.stdout.splitlines() == [f"{line} {codes.get(line, 0)} []" for line in lines]


# --- layers -----------------------------------------------------------------------


def imports() -> dict[str, set[str]]:
    """Every module and what it imports of leviathan, deferred imports included."""
    modules = {path.stem for path in SOURCE.glob("*.py")}
    found: dict[str, set[str]] = {}
    for name in modules:
        wanted: set[str] = set()
        for node in ast.walk(ast.parse((SOURCE / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "leviathan":
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("leviathan."):
                wanted.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                parts = [alias.name.split(".") for alias in node.names]
                wanted |= {p[1] for p in parts if p[0] == "leviathan" and len(p) > 1}
        found[name] = wanted & modules
    return found


def test_imports_form_a_dag():
    order = list(graphlib.TopologicalSorter(imports()).static_order())
    assert order.index("errors") < order.index("config") < order.index("cli")


def test_only_command_modules_import_ui_and_nothing_imports_them():
    for name, wanted in imports().items():
        is_command = name == "cli" or name.startswith("cli_")
        shows = is_command or name.startswith("ui_")
        assert shows or not any(w == "ui" or w.startswith("ui_") for w in wanted), name
        assert is_command or not any(w == "cli" or w.startswith("cli_") for w in wanted), name


def test_only_the_full_screen_view_knows_textual():
    using = {p.stem for p in SOURCE.glob("*.py") if "textual" in _libraries(p)}
    assert using == {"ui_watch"}
    assert {name for name, wanted in imports().items() if "ui_watch" in wanted} == {"cli_watch"}


def _libraries(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in named}


def test_what_runs_inside_the_training_process_is_imported_only_there():
    """It runs only inside the training process, by its name in the YAML: it imports torch."""
    assert not [name for name, wanted in imports().items() if "plugin" in wanted]
    inside = {"plugin", "callbacks", "safeguards", "sampler", "gauge", "gathering", "endings"}
    outside = {n: wanted for n, wanted in imports().items() if n not in inside}
    assert not [name for name, wanted in outside.items() if wanted & inside]


# --- every command ----------------------------------------------------------------


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_has_help(words):
    done = CliRunner().invoke(cli.app, [*words, "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.stdout
    assert dict(commands())[words].help


def test_every_option_says_what_it_does():
    silent = [
        f"{' '.join(words)} --{parameter.name}"
        for words, command in commands()
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.help
    ]
    assert silent == []


def test_version(project):
    done = subprocess.run([LEVIATHAN, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"leviathan {leviathan.__version__}\n")


def test_verbose_adds_the_traceback_and_keeps_the_line(run_cli):
    done = run_cli("-v", "profiles", "show", "nobody")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("leviathan: no profile called 'nobody'")


@pytest.mark.parametrize("arguments", [["profiles", "list"], ["profiles", "list", "--json"]])
def test_a_reader_that_goes_away_is_no_error(project, arguments):
    """leviathan ... | head -1"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [LEVIATHAN, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# --- reading commands -------------------------------------------------------------


def json_of(done):
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_profiles_as_json(run_cli):
    listed = {
        profile["name"]: profile for profile in json_of(run_cli("profiles", "list", "--json"))
    }
    assert {"a4000", "a100-80gb", "cpu", "tiny"} <= set(listed)
    shown = json_of(run_cli("profiles", "show", "a100", "--json"))
    assert shown["name"] == "a100-80gb"
    assert shown["hardware"]["compute_capability"] == "sm_80"
    assert shown["axolotl"]["lora_r"] == 64
    assert {"key": "axolotl.adapter", "a4000": "qlora", "a100-80gb": "lora"} in json_of(
        run_cli("profiles", "diff", "a4000", "a100", "--json")
    )


def test_show_prints_the_file_itself(run_cli, project):
    done = run_cli("recipes", "show", "tiny")
    assert done.stdout == (project / "configs/recipes/tiny.yaml").read_text()
    assert done.stderr == "configs/recipes/tiny.yaml\n"


def test_data_sample(run_cli, project):
    document = json_of(run_cli("data", "sample", "rows.jsonl", "--sample", "25pct", "--json"))
    assert {"rows": 18, "of_rows": 72, "seed": 42, "sample": "25pct"}.items() <= document.items()
    assert re.fullmatch(r"work/data/rows-\w{6}_25pct_seed42\.jsonl", document["path"])
    assert Path(document["path"]).stat().st_size == document["bytes"]
    plain = run_cli("data", "sample", "rows.jsonl", "--sample", "25pct")
    assert plain.stdout.startswith(f"{document['path']}: 18 of 72 rows, ")


def test_render_writes_only_the_file_asked_for(run_cli, project):
    before = listing(project)
    to_stdout = run_cli("render", "-p", "tiny", "-r", "tiny")
    assert to_stdout.exit_code == 0
    assert listing(project) == before
    to_file = run_cli("render", "-p", "tiny", "-r", "tiny", "-o", "out/x.yaml")
    assert to_file.stdout == ""
    assert Path("out/x.yaml").read_text() == to_stdout.stdout
    assert json_of(run_cli("render", "-p", "tiny", "-r", "tiny", "--json"))["lora_r"] == 8


def test_render_explain(run_cli):
    rows = json_of(
        run_cli("render", "-p", "tiny", "-r", "tiny", "--set", "lora_r=4", "--explain", "--json")
    )
    assert {"key": "lora_r", "value": 4, "layer": "--set", "from": "--set lora_r=4"} in rows
    table = run_cli("render", "-p", "tiny", "-r", "tiny", "--explain").stdout.splitlines()
    assert table[0].split() == ["key", "value", "layer", "from"]
    assert len(table) == len(rows) + 1
    (line,) = [row.split() for row in table if row.startswith("lora_alpha ")]
    assert line == ["lora_alpha", "16", "profile", "configs/profiles/tiny.yaml:11"]


# --- checkpoints ------------------------------------------------------------------


@pytest.fixture
def run_dir(project):
    """A run ``r`` with checkpoints 5, 10, 15, of which 10 is the best."""
    directory = project / runs.TRAINING / "r"
    for step, eval_loss in ((5, 1.5), (10, 1.2), (15, 1.3)):
        path = fake_files.write_checkpoint(directory, step, eval_loss=eval_loss)
        state = json.loads((path / "trainer_state.json").read_text())
        checkpoints.commit(path, checkpoints.facts_from_history(state))
    record = runs.RunRecord(
        "r", "tiny", "tiny", "full", [], {}, {}, 1, {}, None, {}, 0.0, state="stopped"
    )
    runs.write(runs.RunPaths(directory), record)
    return directory


def test_checkpoints_list(run_cli, run_dir):
    documents = json_of(run_cli("checkpoints", "list", "--json"))
    assert [(d["step"], d["best"], d["sound"]) for d in documents] == [
        (5, False, True), (10, True, True), (15, False, True),
    ]  # fmt: skip
    table = run_cli("checkpoints", "list", "r").stdout.splitlines()
    assert len(table) == 4
    assert table[2].split()[-1] == "best"


def test_checkpoints_best_latest_and_show(run_cli, run_dir):
    assert json_of(run_cli("checkpoints", "best", "--json"))["step"] == 10
    assert json_of(run_cli("checkpoints", "latest", "--json"))["step"] == 15
    assert (
        "optimizer.pt" in json_of(run_cli("checkpoints", "show", "r", "-c", "5", "--json"))["files"]
    )


def test_checkpoints_verify_says_what_is_damaged_and_exits_3(run_cli, run_dir):
    assert run_cli("checkpoints", "verify").stdout.endswith("3 checkpoints, all sound\n")
    file = run_dir / "checkpoint-10/optimizer.pt"
    file.write_bytes(b"\0" * file.stat().st_size)
    done = run_cli("checkpoints", "verify")
    assert done.exit_code == 3
    assert done.stderr.startswith(
        "leviathan: checkpoint-10: optimizer.pt is not what was committed"
    )
    assert len(done.stderr.splitlines()) == 1


def test_cleanup_reads_every_byte_before_it_lets_an_older_one_go(run_cli, run_dir):
    for step in (10, 15):
        file = run_dir / f"checkpoint-{step}/optimizer.pt"
        file.write_bytes(b"\0" * file.stat().st_size)
    done = run_cli("checkpoints", "cleanup", "--keep", "1", "--drop-best", "--yes")
    assert (done.exit_code, done.stdout) == (0, "nothing to delete\n")
    assert (run_dir / "checkpoint-5/optimizer.pt").exists()


def test_cleanup_asks_first_and_keeps_the_best(run_cli, run_dir):
    before = listing(run_dir)
    asked = run_cli("checkpoints", "cleanup", "--keep", "1")
    assert asked.exit_code == 2
    assert (
        asked.stderr == "leviathan: nothing was deleted; these would go: checkpoint-5; say --yes\n"
    )
    assert {k for k in listing(run_dir) if ".lock" not in k} == set(before)
    assert run_cli("checkpoints", "cleanup", "--keep", "1", "--yes").exit_code == 0
    assert [c.step for c in checkpoints.scan(run_dir)] == [10, 15]
    document = json_of(
        run_cli("checkpoints", "cleanup", "--keep", "1", "--drop-best", "--yes", "--json")
    )
    assert (document["deleted"], [c["step"] for c in document["checkpoints"]]) == (True, [10])


def test_json_stays_json_when_a_loss_is_not_a_number(run_cli, run_dir):
    """A diverged run is when the list is read most; NaN is no JSON."""
    path = fake_files.write_checkpoint(run_dir, 20, eval_loss=float("nan"))
    state = json.loads((path / "trainer_state.json").read_text())
    checkpoints.commit(path, checkpoints.facts_from_history(state))

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    json.loads(run_cli("checkpoints", "list", "--json").stdout, parse_constant=refuse)


def test_pin_is_shown_and_saves_from_cleanup(run_cli, run_dir):
    pinned = run_cli("checkpoints", "pin", "-c", "5")
    assert (pinned.exit_code, pinned.stdout) == (0, "checkpoint-5 is pinned\n")
    assert run_cli("checkpoints", "pin", "-c", "5").stdout == "checkpoint-5 is pinned already\n"
    assert run_cli("checkpoints", "list").stdout.splitlines()[1].split()[-1] == "pinned"
    assert run_cli("checkpoints", "verify").exit_code == 0
    run_cli("checkpoints", "cleanup", "--keep", "1", "--drop-best", "--yes")
    assert [c.step for c in checkpoints.scan(run_dir)] == [5, 15]
    document = json_of(run_cli("checkpoints", "unpin", "r", "-c", "checkpoint-5", "--json"))
    assert (document["step"], document["pinned"], document["changed"]) == (5, False, True)
    assert run_cli("checkpoints", "unpin", "-c", "5").stdout == "checkpoint-5 is not pinned\n"


@pytest.mark.parametrize(
    ("which", "code", "line"),
    [
        ("10", 3, "checkpoint-10 is damaged: optimizer.pt"),
        ("7", 2, "no checkpoint '7' in work/training/r"),
        ("nice", 2, "'nice' names no checkpoint"),
    ],
)
def test_what_cannot_be_pinned(run_cli, run_dir, which, code, line):
    (run_dir / "checkpoint-10/optimizer.pt").write_bytes(b"half")
    done = run_cli("checkpoints", "pin", "-c", which)
    assert done.exit_code == code
    assert done.stderr.startswith(f"leviathan: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_pinned_checkpoint_can_be_unpinned(run_cli, run_dir):
    run_cli("checkpoints", "pin", "-c", "10")
    (run_dir / "checkpoint-10/optimizer.pt").write_bytes(b"half")
    assert run_cli("checkpoints", "unpin", "-c", "10").stdout == "checkpoint-10 is unpinned\n"


def test_what_lies_aside_is_mentioned_listed_and_deleted_only_on_explicit_wish(run_cli, run_dir):
    five, ten, _ = checkpoints.scan(run_dir)
    (ten.path / "optimizer.pt").write_bytes(b"half")
    paths = runs.RunPaths(run_dir)
    for checkpoint, folder in ((five, "set-aside"), (ten, "quarantine")):
        target = checkpoints.set_aside(checkpoint, folder)
        kind = folder.replace("-", "_")
        runs.event(paths, kind, session=2, step=checkpoint.step, reason="so it is", to=str(target))

    plain = run_cli("checkpoints", "list")
    assert "besides: 1 in quarantine/ and 1 in set-aside/, " in plain.stderr
    assert len(plain.stdout.splitlines()) == 2
    rows = run_cli("checkpoints", "list", "--all").stdout.splitlines()[-2:]
    assert re.match(r"5 .* set-aside/checkpoint-5\.\d+T\d+ +so it is$", rows[0].strip())
    assert re.match(r"10 .* quarantine/checkpoint-10\.\d+T\d+ +so it is$", rows[1].strip())
    assert [d["step"] for d in json_of(run_cli("checkpoints", "list", "--json"))] == [15]
    everything = json_of(run_cli("checkpoints", "list", "--all", "--json"))
    assert [(d["step"], d["where"]) for d in everything] == [
        (15, "run"), (5, "set-aside"), (10, "quarantine"),
    ]  # fmt: skip

    run_cli("checkpoints", "cleanup", "--keep", "1", "--drop-best", "--yes")
    assert len(checkpoints.aside(run_dir)) == 2
    asked = run_cli("checkpoints", "cleanup", "--set-aside")
    assert asked.exit_code == 2
    assert asked.stderr.startswith("leviathan: nothing was deleted; these would go: checkpoint-5.")
    assert len(checkpoints.aside(run_dir)) == 2
    document = json_of(run_cli("checkpoints", "cleanup", "--set-aside", "--yes", "--json"))
    assert [c["step"] for c in document["checkpoints"]] == [5, 10]
    assert checkpoints.aside(run_dir) == []
    assert [c.step for c in checkpoints.scan(run_dir)] == [15]
