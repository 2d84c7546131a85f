"""Pushing and pulling between directories: real rsync, real sh, every interruption."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leviathan import (
    checkpoints,
    evidence,
    files,
    landing,
    luggage,
    parcel,
    remote,
    runs,
    transfer,
    writer,
)
from leviathan.corpus import file_digest
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.transfer import Wishes

LEVIATHAN = str(Path(sys.executable).with_name("leviathan"))
HOSTILE = '-it\'s "far" $(touch pwned) ü;& `x` *'


@pytest.fixture(scope="module", autouse=True)
def _tools():
    assert shutil.which("rsync"), "run scripts/install_test_tools.sh: rsync is not here"


def make_run(project: Path, name: str = "r", steps=(10, 20), size=40_000, sessions=1) -> Path:
    """A run with committed checkpoints; the older one is the better."""
    run = project / "work/training" / name
    run.mkdir(parents=True)
    chance = random.Random(7)
    record = runs.RunRecord(
        name=name, recipe="tiny", profile="tiny", sample="full", overrides=[], settings={},
        tree={"base_model": "base"}, processes=1, corpus={}, base=None, versions={}, created=1.0,
        state="stopped", sessions=[runs.Session(n + 1, float(n), {}) for n in range(sessions)],
    )  # fmt: skip
    runs.write(runs.RunPaths(run), record)
    (run / "metrics.jsonl").write_text('{"step":1,"session":1}\n' * 20 * sessions)
    (run / "events.jsonl").write_text('{"event":"start"}\n')
    (run / "prepared").mkdir()
    (run / "prepared/rows.arrow").write_bytes(b"tokens")
    for step in steps:
        add_checkpoint(run, step, size, chance)
    return run


def add_checkpoint(run: Path, step: int, size: int, chance: random.Random) -> None:
    directory = run / f"checkpoint-{step}"
    (directory / "pytorch_model_fsdp_0").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "pytorch_model_fsdp_0/x.distcp"):
        (directory / name).write_bytes(chance.randbytes(size))
    for name in ("adapter_config.json", "trainer_state.json", "- a name; $(x)\n"):
        (directory / name).write_text("{}")
    checkpoints.commit(directory, {"step": step, "eval_loss": step / 10})


def push(run: Path, to: Path, **wishes) -> transfer.Report:
    place = remote.here(to)
    return transfer.push_run(
        runs.RunPaths(run), place, Wishes(**wishes), luggage.NOTHING, transfer.Told()
    )


def pull(run: Path, to: Path, **wishes) -> transfer.Report:
    return transfer.pull(remote.here(run), to, Wishes(**wishes), transfer.Told())


def digests(directory: Path) -> dict[str, str]:
    """Every file, hidden ones of transfers too, but for locks."""
    found = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(directory)): file_digest(p) for p in found}


def sound(run: Path) -> list[int]:
    """Steps of the checkpoints there, all of which verify."""
    found = [checkpoints.verify(c) for c in checkpoints.scan(run)]
    assert [c.problem for c in found] == [None] * len(found)
    return [c.step for c in found]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# --- what travels ------------------------------------------------------------------------


def test_a_run_goes_there_whole_and_comes_back(tmp_path):
    run, far = make_run(tmp_path / "here"), tmp_path / HOSTILE
    report = push(run, far)
    there = far / "work/training/r"
    assert sound(there) == [20]
    assert digests(there / "checkpoint-20") == digests(run / "checkpoint-20")
    own = {"run.json", "metrics.jsonl", "events.jsonl", ".lock", "checkpoint-20"}
    assert {path.name for path in there.iterdir()} == own
    assert (report.checkpoint, report.bytes > 120_000, report.there_already) == (20, True, False)
    assert {p.name for p in run.iterdir()} == {*own - {".lock"}, "prepared", "checkpoint-10"}

    again = push(run, far)
    assert (again.there_already, again.bytes < 5_000) == (True, True)

    back = pull(there, tmp_path / "back", purpose="resume")
    assert digests(tmp_path / "back/work/training/r") == digests(there)
    assert back.checkpoint == 20
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("way", ["push", "pull"])
def test_to_serve_only_the_best_adapter_travels(tmp_path, way):
    run, far = make_run(tmp_path / "here"), tmp_path / HOSTILE
    report = (push if way == "push" else pull)(run, far, purpose="serve")
    assert report.checkpoint == 10
    made = far / "models/r-checkpoint-10-adapter"
    names = {"adapter_model.safetensors", "adapter_config.json", "- a name; $(x)\n"}
    assert {p.name for p in made.iterdir()} == {*names, "transfer.json"}
    assert json.loads((made / "transfer.json").read_text())["checkpoint"] == 10
    assert not (far / "work").exists()
    again = (push if way == "push" else pull)(run, far, purpose="serve")
    assert again.there_already
    flip(made / "adapter_model.safetensors")
    with pytest.raises(Refused, match="is another"):
        (push if way == "push" else pull)(run, far, purpose="serve")


def test_a_dry_run_writes_nothing(tmp_path):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    before = digests(run)
    assert push(run, far, dry_run=True).files["checkpoint-20/optimizer.pt"] == 40_000
    assert pull(run, far, purpose="resume", dry_run=True).bytes > 120_000
    assert pull(run, far, purpose="serve", dry_run=True).checkpoint == 10
    assert not far.exists()
    assert digests(run) == before


def test_a_checkpoint_without_a_commit_record_never_travels(tmp_path):
    run = make_run(tmp_path / "here")
    (run / "checkpoint-20" / checkpoints.COMMIT).unlink()
    assert push(run, tmp_path / "far").checkpoint == 10
    assert pull(run, tmp_path / "back", purpose="resume").checkpoint == 10


def test_a_damaged_one_is_passed_over_and_told(tmp_path):
    run = make_run(tmp_path / "here")
    flip(run / "checkpoint-20/optimizer.pt")
    for report in (push(run, tmp_path / "far"), pull(run, tmp_path / "back", purpose="resume")):
        assert report.checkpoint == 10
        assert "checkpoint-20 is damaged" in report.notes[0]
    for to in ("far", "back"):
        assert sound(tmp_path / to / "work/training/r") == [10]


def test_damage_there_is_mended_and_kept_for_a_look(tmp_path):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    push(run, far)
    there = far / "work/training/r"
    flip(there / "checkpoint-20/optimizer.pt")
    report = push(run, far)
    assert report.notes == ["checkpoint-20 is damaged there: it goes into quarantine"]
    assert sound(there) == [20]
    assert len([*there.glob("quarantine/checkpoint-20.*")]) == 1
    flip(there / "checkpoint-20/optimizer.pt")
    shutil.copytree(run, tmp_path / "x/work/training/r")
    back = pull(run, far, purpose="resume")
    assert (back.there_already, sound(there)) == (False, [20])


def test_one_that_retention_takes_meanwhile(tmp_path, monkeypatch):
    """Linked first: what is taken afterwards is still in the snapshot; before, a newer serves."""
    run = make_run(tmp_path / "here", steps=(10,), size=200_000)
    real = remote.copy

    def taken(source, target, **options):
        shutil.rmtree(run / "checkpoint-10", ignore_errors=True)
        real(source, target, **options)

    monkeypatch.setattr(remote, "copy", taken)
    assert push(run, tmp_path / "far").checkpoint == 10
    assert sound(tmp_path / "far/work/training/r") == [10]

    chance = random.Random(1)
    add_checkpoint(run, 30, 1000, chance)
    seen = []

    def taken_at_once(source, target, **options):
        if not seen:
            seen.append(1)
            shutil.rmtree(run / "checkpoint-30")
            add_checkpoint(run, 40, 1000, chance)
        real(source, target, **options)

    monkeypatch.setattr(remote, "copy", taken_at_once)
    assert pull(run, tmp_path / "back", purpose="resume").checkpoint == 40
    assert sound(tmp_path / "back/work/training/r") == [40]


# --- who may be replaced -----------------------------------------------------------------


def change(run: Path, **values) -> None:
    record = runs.read(runs.RunPaths(run))
    for name, value in values.items():
        setattr(record, name, value)
    runs.write(runs.RunPaths(run), record)


def test_a_run_that_knows_more_is_never_replaced(tmp_path):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    push(run, far)
    there = far / "work/training/r"
    change(there, sessions=[runs.Session(1, 0.0, {}), runs.Session(2, 5.0, {}, resumed_from=10)])
    before = digests(there)
    with pytest.raises(Refused, match="trained further"):
        push(run, far)
    assert digests(there) == before
    assert pull(there, tmp_path / "here", purpose="resume").checkpoint == 20
    assert len(runs.read(runs.RunPaths(run)).sessions) == 2
    with (there / "metrics.jsonl").open("a") as more:
        more.write("{}\n")
    with pytest.raises(Refused, match="trained further"):
        push(run, far)
    change(there, created=2.0)
    with pytest.raises(Refused, match="another run of the same name"):
        push(run, far)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_steps_that_a_resume_rejected_are_set_aside_there(tmp_path, way):
    """At 20 here and there; here it went on from 10: there it must not go on from 20."""
    mine, theirs = make_run(tmp_path / "here"), tmp_path / "far/work/training/r"
    push(mine, tmp_path / "far")
    (twenty,) = [c for c in checkpoints.scan(mine) if c.step == 20]
    checkpoints.set_aside(twenty, "set-aside")
    change(mine, sessions=[runs.Session(1, 0.0, {}), runs.Session(2, 5.0, {}, resumed_from=10)])
    for step in (15, 20):  # the second: another one of the name
        add_checkpoint(mine, step, 1000, random.Random(step))
        if way == "push":
            push(mine, tmp_path / "far")
        else:
            pull(mine, tmp_path / "far", purpose="resume")
        assert sound(theirs) == ([15] if step == 15 else [15, 20])
    assert digests(theirs / "checkpoint-20") == digests(mine / "checkpoint-20")
    assert [p.name.partition(".")[0] for p in (theirs / "set-aside").iterdir()] == ["checkpoint-20"]


def test_what_is_there_already_needs_no_room(tmp_path, monkeypatch):
    there = make_run(tmp_path / "far")
    pull(there, tmp_path / "here", purpose="resume")
    monkeypatch.setattr(transfer, "_MARGIN_BYTES", 1 << 60)
    assert pull(there, tmp_path / "here", purpose="resume").there_already


def test_a_trainer_that_lost_its_supervisor_is_not_disturbed(tmp_path):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    push(run, far)
    add_checkpoint(run, 30, 1000, random.Random(3))
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "axolotl"])
    try:
        mark = far / "work/training/r/.plugin.json"
        mark.write_text(json.dumps({"started": 1.0, "pid": trainer.pid}))
        with pytest.raises(Refused, match="is being trained there"):
            push(run, far)
    finally:
        trainer.kill()
        trainer.wait()
    assert push(run, far).checkpoint == 30


def test_another_checkpoint_of_the_name_stays(tmp_path):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    push(run, far)
    there = far / "work/training/r"
    checkpoints.commit(there / "checkpoint-20", {"step": 20, "other": 1})
    with pytest.raises(Refused, match="another checkpoint-20"):
        push(run, far)
    with pytest.raises(Refused, match="another checkpoint-20"):
        pull(there, tmp_path / "here", purpose="resume")
    assert sound(run) == [10, 20]


@pytest.mark.parametrize("flock", [True, False])
def test_what_is_being_trained_there_is_not_touched(tmp_path, monkeypatch, flock):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    push(run, far)
    if not flock:
        (tmp_path / "bin").mkdir()
        for name in ("rsync", "sh", "sed", "df", "dirname", "cksum", "wc", "du", "find", "mkdir",
                     "touch", "mv", "rm", "sync", "cmp", "date"):  # fmt: skip
            (tmp_path / "bin" / name).symlink_to(shutil.which(name))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with (
        writer.locked(runs.RunPaths(far / "work/training/r")),
        pytest.raises(Refused, match="is being trained there"),
    ):
        push(run, far)
    with writer.locked(runs.RunPaths(run)):  # here it may be
        push(run, far)


def test_training_that_begins_during_the_copy_wins(tmp_path, monkeypatch):
    run, far = make_run(tmp_path / "here", steps=(10,)), tmp_path / "far"
    push(run, far)
    there = runs.RunPaths(far / "work/training/r")
    add_checkpoint(run, 30, 1000, random.Random(2))
    before, real = digests(there.directory), remote.differing

    def begun(*arguments, **options):
        change(there.directory, state="running")
        return real(*arguments, **options)

    monkeypatch.setattr(remote, "differing", begun)
    with pytest.raises(Refused, match="changed meanwhile"):
        push(run, far)
    assert sound(there.directory) == [10]
    assert before["metrics.jsonl"] == file_digest(there.metrics)


# --- interrupted -------------------------------------------------------------------------


def test_killed_at_any_moment_the_other_end_stays_sound(tmp_path):
    """SIGKILL to the whole process group, at moments spread over the command by a seed."""
    here, far = tmp_path / "here", tmp_path / "far"
    run = make_run(here, steps=(10,))
    push(run, far)
    there = far / "work/training/r"
    add_checkpoint(run, 30, 250_000, random.Random(3))
    change(run, sessions=[runs.Session(1, 0.0, {}), runs.Session(2, 5.0, {}, resumed_from=10)])
    old, new = digests(there), digests(run / "checkpoint-30")
    command = [LEVIATHAN, "cloud", "push", "r", str(far), "--no-sample", "--bwlimit", "2m"]
    begun = time.monotonic()
    whole = tmp_path / "whole"
    subprocess.run([*command[:4], str(whole), *command[5:]], cwd=here, check=True,
                   capture_output=True)  # fmt: skip
    lasts = time.monotonic() - begun
    chance, outcomes = random.Random(763), []
    for _ in range(12):
        child = subprocess.Popen(command, cwd=here, start_new_session=True,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(lasts * chance.uniform(0.25, 1.0))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        time.sleep(0.1)  # what gives the names ends by itself
        steps = sound(there)
        assert steps in ([10], [10, 30])
        assert len(runs.read(runs.RunPaths(there)).sessions) in ({1, 2} if 30 in steps else {1})
        if steps == [10]:
            shown = {n: d for n, d in digests(there).items() if not n.startswith(".transfer-")}
            assert shown == old
        left = sum(p.stat().st_size for p in there.glob(".transfer-*/**/*") if p.is_file())
        outcomes.append((steps, left > 0))
        if 30 in steps:
            shutil.rmtree(there)
            push(run, far, checkpoint="10")
            change(there, sessions=[runs.Session(1, 0.0, {})])
            old = digests(there)
    assert ([10], True) in outcomes  # some were cut off in the middle
    subprocess.run(command, cwd=here, check=True, capture_output=True)
    assert sound(there) == [10, 30]
    assert digests(there / "checkpoint-30") == new
    assert [p.name for p in (*there.glob(".transfer-*"), *run.glob(".outgoing-*"))] == []


DEADLY_MV = """#!/bin/sh
echo x >>"{count}"
[ "$(wc -l <"{count}")" -lt {fatal} ] || kill -9 $PPID
exec {real} "$@"
"""


@pytest.mark.parametrize("fresh", [True, False])
def test_power_lost_between_any_two_renames_leaves_a_sound_run(tmp_path, monkeypatch, fresh):
    """Never a run without its checkpoint, nor a checkpoint that is newer than its record."""
    (tmp_path / "bin").mkdir()
    mv, path = tmp_path / "bin/mv", os.environ["PATH"]
    for fatal in range(1, 5):
        here, far = tmp_path / f"here{fatal}", tmp_path / f"far{fatal}"
        run = make_run(here, steps=(10,), size=1000)
        there = far / "work/training/r"
        if not fresh:
            push(run, far)
        add_checkpoint(run, 30, 1000, random.Random(3))
        change(run, sessions=[runs.Session(1, 0.0, {}), runs.Session(2, 5.0, {}, resumed_from=10)])
        count = tmp_path / f"count{fatal}"
        mv.write_text(
            DEADLY_MV.format(count=count, fatal=fatal, real=shutil.which("mv", path=path))
        )
        mv.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{path}")
        with pytest.raises(LeviathanError):
            push(run, far)
        monkeypatch.setenv("PATH", path)
        steps, record = sound(there), there / "run.json"
        if fresh:
            assert steps == [30] or not record.exists()
        else:
            sessions = len(runs.read(runs.RunPaths(there)).sessions)
            assert (steps, sessions) in (([10], 1), ([10], 2), ([10, 30], 2))
        push(run, far)
        assert sound(there)[-1] == 30
        assert digests(there / "checkpoint-30") == digests(run / "checkpoint-30")


def test_names_are_given_under_the_runs_lock(tmp_path):
    run = make_run(tmp_path / "here")
    place = remote.here(run)
    landing.prepare(place, ".transfer-x")
    with writer.locked(runs.RunPaths(run)), pytest.raises(Refused, match="being trained"):
        landing.publish_run(place, ".transfer-x", "none")


FAKE_RSYNC = """#!/bin/sh
{real} "$@"
code=$?
for last; do :; done
case "$*" in *--dry-run*) ;; *)
    [ ! -f "$last/{name}" ] || {damage}
esac
exit $code
"""


@pytest.mark.parametrize("always", [False, True])
def test_bytes_that_change_on_their_way_are_found(tmp_path, monkeypatch, always):
    """A bit flips after rsync has ended: once, it is sent again; always, nothing gets its name."""
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    once = tmp_path / "once"
    flips = f'{sys.executable} -c \'import sys; f = open(sys.argv[1], "r+b"); f.write(b"?")\''
    damage = f'{{ [ -e "{once}" ] || {flips} "$last/checkpoint-20/optimizer.pt"; }}'
    damage += "" if always else f'; touch "{once}"'
    text = FAKE_RSYNC.format(
        real=shutil.which("rsync"), name="checkpoint-20/optimizer.pt", damage=f"{{ {damage}; }}"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rsync").write_text(text)
    (tmp_path / "bin/rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    if not always:
        push(run, far)
        assert sound(far / "work/training/r") == [20]
        return
    with pytest.raises(LeviathanError, match=r"does not hold what was sent: .*optimizer"):
        push(run, far)
    assert not (far / "work/training/r/run.json").exists()
    assert sound(far / "work/training/r") == []


def test_what_does_not_fit_is_refused_before_anything_is_sent(tmp_path, monkeypatch):
    run, far = make_run(tmp_path / "here"), tmp_path / "far"
    real = landing.look
    monkeypatch.setattr(
        landing, "look",
        lambda *a: landing.State(**{**vars(real(*a)), "free_bytes": 100_000}),
    )  # fmt: skip
    with pytest.raises(Refused, match="do not fit"):
        push(run, far)
    with pytest.raises(Refused, match="do not fit"):
        pull(run, far)
    assert not far.exists()


# --- models ------------------------------------------------------------------------------


def make_model(directory: Path, verdict: str = "equal") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights" * 1000)
    hashes = {path.name: file_digest(path) for path in directory.iterdir()}
    proof = {"verdict": verdict, "reason": "because", "hashes": hashes}
    files.write_json(directory / evidence.PROOF, proof)
    return directory


def test_a_proven_model_goes_and_comes_with_its_proof(tmp_path):
    model, far = make_model(tmp_path / "m -x"), remote.here(tmp_path / HOSTILE)
    report = transfer.push_model(model, far, Wishes(), transfer.Told())
    there = tmp_path / HOSTILE / "models/m -x"
    assert digests(there) == digests(model)
    assert not report.there_already
    assert transfer.push_model(model, far, Wishes(), transfer.Told()).there_already
    assert pull(there, tmp_path / "back").what == "model"
    assert digests(tmp_path / "back/models/m -x") == digests(model)
    flip(there / "model.safetensors")
    with pytest.raises(Refused, match="has changed since it was proven"):
        pull(there, tmp_path / "other")
    assert not (tmp_path / "other/models/m -x").exists()
    flip(model / "model.safetensors")
    with pytest.raises(Refused, match="has changed since it was proven"):
        transfer.push_model(model, remote.here(tmp_path / "new"), Wishes(), transfer.Told())


def test_an_unproven_model_goes_only_by_force(tmp_path):
    model, far = make_model(tmp_path / "m", "different"), remote.here(tmp_path / "far")
    with pytest.raises(Refused, match="is not proven: because"):
        transfer.push_model(model, far, Wishes(), transfer.Told())
    assert not (tmp_path / "far").exists()
    report = transfer.push_model(model, far, Wishes(force=True), transfer.Told())
    assert report.notes == ["not proven: because"]
    with pytest.raises(Refused, match="is not proven"):
        pull(tmp_path / "far/models/m", tmp_path / "back")


# --- names and words ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "directory"),
    [
        ("me@gpu:project", "me@gpu", "project"),
        ("gpu:/data/a b", "gpu", "/data/a b"),
        ("gpu:", "gpu", "."),
        ("gpu:~/x", "gpu", "x"),
        ("me@[fe80::1]:x", "me@[fe80::1]", "x"),
        ("/a:b", "", "/a:b"),
    ],
)
def test_places(text, host, directory):
    place = remote.place(text)
    assert (place.host, place.directory) == (host, directory)


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("-oProxyCommand=x:y", {}, "would be an option of ssh"),
        ("", {}, "is no place"),
        ("a\nb", {}, "is no place"),
        ("/here", {"port": 22}, "is on this machine"),
        ("h:x", {"options": ["-F x"]}, "is none"),
    ],
)
def test_what_is_no_place(text, options, line):
    with pytest.raises(BadInput, match=line):
        remote.place(text, **options)


@pytest.mark.parametrize("word", ["plain", "a b", "it's", 'say "x"', "$(x) `y` \\ ''"])
def test_rsync_takes_the_words_of_its_shell_apart_as_they_were(tmp_path, word):
    shell, told = tmp_path / "shell", tmp_path / "told"
    shell.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >"{told}"\nexit 1\n')
    shell.chmod(0o755)
    rsh = " ".join(map(remote.rsh_word, [str(shell), word]))
    subprocess.run(["rsync", f"--rsh={rsh}", "host:x", "."], check=False, capture_output=True)
    assert told.read_text() == f"{word}\n"


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("root@h: Permission denied (publickey).", "--key FILE"),
        ("ssh: Could not resolve hostname h: no", "host's name"),
        ("ssh: connect to host h port 22: Connection refused", "another --port"),
        ("odd", "try: ssh h"),
    ],
)
def test_a_host_that_does_not_answer_is_one_line(told, line):
    problem = remote.unreachable(remote.Place("h", "x"), f"Warning: x\n{told}\n")
    assert line in problem.line
    assert "\n" not in problem.line


def test_a_foreign_commit_record_names_no_file_outside(tmp_path):
    for name in ("/etc/passwd", "../x", "a/../../x"):
        record = json.dumps({"files": {name: {"bytes": 1, "xxh3_64": ""}}}).encode()
        with pytest.raises(LeviathanError, match="is damaged"):
            parcel.parcel(1, record, served=False)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("push", "none", "far"), 2, "no run 'none'"),
        (("push", "r", "far", "--for", "fun"), 2, "neither resume nor serve"),
        (("push", "r", "far", "-c", "x"), 2, "names none"),
        (("push", "r", "far", "-c", "99"), 2, "no committed checkpoint '99'"),
        (("push", "r", "far", "--bwlimit", "fast"), 2, "is no rate"),
        (("pull", "nowhere"), 2, "there is no"),
        (("pull", "work"), 2, "neither a run nor a model"),
    ],
)
def test_bad_input(run_cli, project, arguments, code, line):
    make_run(project)
    result = run_cli("cloud", *arguments)
    assert (result.exit_code, line in result.stderr) == (code, True), result.stderr
    assert not (project / "far").exists()


def test_json(run_cli, project):
    make_run(project)
    result = run_cli("cloud", "push", "r", project / "far", "--json")
    document = json.loads(result.stdout)
    assert (document["checkpoint"], document["there_already"]) == (20, False)
    assert "--name r" in " ".join(document["command"])
    assert (project / "far/configs/profiles/tiny.yaml").is_file()
