"""Every state that a power cut may leave of a real training goes on by itself, unharmed."""

import random
import shutil
from collections import Counter
from pathlib import Path

import powerloss
import pytest
import xxhash
from project import RUN, Project

from leviathan import layers, runs, train

pytestmark = pytest.mark.real

HOOK = Path(__file__).parents[1] / "forked" / "record_syncs.py"
SETTINGS = ("save_steps=2", "eval_steps=4", "max_steps=12")
COMMAND = ("train", "--profile", "tiny", "--recipe", "tiny", "--sample", "full",
           *(f"--set={s}" for s in SETTINGS))  # fmt: skip


@pytest.fixture(scope="module")
def recorded(make_project, fork_server, tmp_path_factory) -> tuple[Project, powerloss.Log]:
    """A run killed in the commit of step 6 and resumed, with all its syncs."""
    project = make_project("recorded")
    project.server = fork_server
    profile = project.directory / "configs/profiles/tiny.yaml"
    profile.write_text(profile.read_text().replace("keep: 5", "keep: 2"))
    log, hook = tmp_path_factory.mktemp("log"), tmp_path_factory.mktemp("hook")
    shutil.copy(HOOK, hook / "sitecustomize.py")
    root = project.directory / "work"
    root.mkdir()
    env = fork_server.environment()
    env |= {"FORK_HOOK": str(HOOK), "PYTHONPATH": f"{hook}:{env['PYTHONPATH']}",
            "RECORD_ROOT": str(root), "RECORD_TO": str(log),
            "RECORD_KILL_AT": "checkpoint-6/.leviathan-commit"}  # fmt: skip
    for _ in range(4):  # a supervisor that restarts by itself needs one
        done = project.run(*COMMAND, **env)
        if done.code == 0:
            break
    assert done.code == 0, done.err
    assert (log / "killed").exists()
    return project, powerloss.Log(log, Path("training") / RUN)


@pytest.fixture
def cut(recorded, tmp_path, monkeypatch):
    """Put a state where the run was; decide about it."""
    project, log = recorded
    shutil.copytree(project.directory, tmp_path / "cut", ignore=shutil.ignore_patterns("work"))
    monkeypatch.chdir(tmp_path / "cut")

    def put(state: powerloss.State, *, link: bool = True) -> Path:
        target = runs.TRAINING / RUN
        log.write(state, target, link=link)
        return target

    return put


def judged(state: powerloss.State, log: powerloss.Log, run: Path) -> str:
    """What ``train`` would do; an assertion if that would lose or use anything wrong."""
    if (run / "run.json").exists():
        runs.read(runs.RunPaths(run))
    decision = train.decide(layers.build("tiny", "tiny", "full", list(SETTINGS)))
    if decision.action == "nothing":
        assert state.promised == 12
        return "nothing"
    step = decision.resume_from.step if decision.resume_from else 0
    assert step >= state.promised
    if step:
        truth = {n: b for n, b in log.truth[step].items()
                 if n not in {"README.md", "training_args.bin", "leviathan-commit.json"}}  # fmt: skip
        found = {n: xxhash.xxh3_64_hexdigest((decision.resume_from.path / n).read_bytes())
                 for n in truth}  # fmt: skip
        assert found == truth
    return decision.action


def test_every_state_is_resumed_from_what_was_promised(recorded, cut):
    _, log = recorded
    actions: Counter[str] = Counter()
    for state in log.states():
        run = cut(state)
        try:
            actions[judged(state, log, run)] += 1
        except Exception as error:
            raise AssertionError(f"{state.label}, promised {state.promised}: {error!r}") from error
    assert actions["resume"] > 1000, actions
    assert actions["start"] > 100, actions


def test_a_few_states_really_end_with_the_same_weights(recorded, cut, fork_server):
    """Those whose newest checkpoint was cut, drawn at random; the resume is a real one."""
    project, log = recorded
    chance = random.Random(3)
    late = [s for s in log.states() if 4 <= s.promised < 12]
    torn = [s for s in late if any(how in ("half", "zeros") for *_, how in s.files)]
    for state in [*chance.sample(torn, 2), *chance.sample(late, 2)]:
        cut(state, link=False)
        again = Project(Path.cwd(), fork_server)
        done = again.run(*COMMAND)
        assert done.code == 0, f"{state.label}: {done.err}"
        assert again.adapter(RUN) == project.adapter(RUN), state.label
