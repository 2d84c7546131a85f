"""The report: what it says of a run with a story, and that it is a page that needs nothing else."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from fakes.processes import listing
from leviathan import criteria, files, grades, incidents, page, report, runs, series, spelled
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput
from leviathan.recipe import Success
from leviathan.report import Comparison
from leviathan.series import Curve
from telling import STEP_S, Telling

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total "
    "capacity of 15.70 GiB"
)
SUCCESS = {"success": {"final_loss": 1.5, "prompts_pass_pct": 75.0}}
HOSTILE = '<script>alert("x")</script>'


def tell_story(directory):
    """400 steps: stopped at 60, killed by a power cut at 110, out of memory at 210, hot at 300."""
    t = Telling(directory, began=1_795_000_000.0, settings=SUCCESS)
    t.record.budget = {"max_hours": None, "budget_usd": 60.0, "usd_hour": 0.5}
    t.plan()
    t.begin()
    t.train(1, 60)
    t.save(60)
    t.end("stopped", "SIGINT", 60)
    t.clock += 3600
    t.begin(60)
    t.train(61, 110)
    t.record.sessions[-1].supervisor = {"pid": 1, "boot": "before the power cut"}
    t.clock += 7200
    t.begin(100)
    t.train(101, 210)
    t.end("failed", f"exit code 1: {OOM}", 210)
    t.clock += 1
    t.event("ladder", step=210, why=f"out of memory ({OOM})", changes={"micro_batch_size": 1},
            reason="next rung: micro_batch_size 2 -> 1")  # fmt: skip
    t.clock += 1
    t.begin(200)
    t.train(201, 300, gpu={"temperature_c": 84.0})
    t.event("pause", kind="heat", step=300, text="the GPU reached 84 C: training pauses")
    t.clock += 1800
    t.event("unpause", kind="heat", step=300, text="cooled to 74 C: training goes on")
    for step in (301, 302, 303):
        t.event("warning", kind="hot", step=step, text=f"the GPU reached 85 C at {step}")
    t.train(301, 400)
    t.end("done", "", 400)
    return t


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return tell_story(tmp_path_factory.mktemp("story") / "leviathan_10pct_a4000").paths


@pytest.fixture(scope="module")
def found(story):
    return report.gather(story)


@pytest.fixture
def told(project, story):
    """The story as the project's run ``r``."""
    shutil.copytree(story.directory, runs.TRAINING / "r")
    return runs.RunPaths(runs.TRAINING / "r")


# --- success criteria ----------------------------------------------------------------


def curve(*values):
    steps = np.arange(1, len(values) + 1)
    return Curve(steps, np.array(values, float), np.ones(len(values), np.int64), steps * 1.0)


@pytest.mark.parametrize(
    ("values", "goal", "over", "verdict"),
    [
        ([2.0] * 50 + [1.2] * 50, 1.5, True, "pass"),
        ([2.0] * 100, 1.5, True, "fail"),
        ([1.2] * 99 + [9.0], 1.5, True, "fail"),  # the last 5, not one
        ([1.2] * 999 + [1.9], 1.5, True, "pass"),  # the last 20
        ([1.2] * 100, 1.5, False, "open"),
        ([1.2] * 100, None, True, "unchecked"),
        ([], 1.5, True, "unchecked"),
        ([], 1.5, False, "open"),
    ],
)
def test_the_final_loss_is_a_mean_of_the_last_lines(values, goal, over, verdict):
    found = criteria.final_loss(curve(*values), Success(final_loss=goal), over=over)
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("rate", "verdict"), [(75.0, "pass"), (74.9, "fail"), (None, "unchecked")]
)  # fmt: skip
def test_prompts_are_judged_by_the_last_examination(rate, verdict):
    grade = grades.Grade(0.0, "demo", "checkpoint-9", 3, 4, rate or 0.0, (30.1, 95.4), 25.0)
    found = criteria.prompts(grade if rate else None, Success(), "leviathan test r")
    assert found.verdict == verdict
    wanted = "leviathan test r" if rate is None else "3 of 4 of demo, checkpoint-9"
    assert found.evidence.startswith(wanted)


def checkpoint(tmp_path, step, problem=None, where="run"):
    return Checkpoint(step, tmp_path, 1.0, 1.0, 1.0, 10, 0.0, True, problem, where=where)


@pytest.mark.parametrize(
    ("problem", "count", "over", "verdict"),
    [(None, 2, True, "pass"), (None, 2, False, "open"), ("cut short", 2, True, "fail"),
     ("cut short", 2, False, "fail"), (None, 0, True, "unchecked"), (None, 0, False, "open")],
)  # fmt: skip
def test_checkpoints_are_sound_or_named(tmp_path, problem, count, over, verdict):
    saved = [checkpoint(tmp_path, 5, problem), checkpoint(tmp_path, 6)][:count]
    aside = [checkpoint(tmp_path, 4, where="quarantine")]
    found = criteria.sound_checkpoints(saved, aside, over=over)
    assert found.verdict == verdict
    assert "1 other quarantined" in found.evidence
    assert ("checkpoint-5 (cut short)" in found.evidence) == (verdict == "fail")


def test_the_criteria_of_the_story(found):
    assert [(c.name, c.verdict) for c in found.criteria] == [
        ("final loss", "pass"), ("out of memory", "fail"), ("checkpoints", "pass"),
        ("temperature", "pass"), ("prompts", "unchecked"),
    ]  # fmt: skip
    by_name = {c.name: c for c in found.criteria}
    assert by_name["out of memory"].actual == "once"
    assert by_name["out of memory"].evidence == "at step 210; next rung: micro_batch_size 2 -> 1"
    assert by_name["temperature"].actual == "84 °C"
    assert "3 of 5 criteria met; failed: out of memory; unchecked: prompts." in found.headline


def test_a_gpu_at_the_limit_fails_even_before_the_end():
    def sample(celsius):
        from leviathan import machine, telemetry

        gpu = machine.GpuState(0, None, None, None, celsius, None, None, None)
        return telemetry.Sample(0.0, 1, (gpu,), None, None)

    assert criteria.temperature([sample(85.0)], 85.0, over=False).verdict == "fail"
    assert criteria.temperature([sample(84.9)], 85.0, over=False).verdict == "open"
    assert criteria.temperature([], 85.0, over=True).verdict == "unchecked"


# --- what went wrong and what it cost -----------------------------------------------------


def test_every_incident_has_its_cost(found):
    kinds = [(i.kind, i.step, i.steps_lost) for i in found.incidents]
    assert kinds == [("power", 110, 10), ("oom", 210, 10), ("pause", 300, 0), ("warning", 301, 0)]
    power, oom, pause, warning = found.incidents
    # Two hours without power, a minute of starting, one step, and ten steps once more.
    assert power.lost_s == pytest.approx(7200 + 60 + 11 * STEP_S, rel=0.05)
    assert oom.lost_s == pytest.approx(60 + 11 * STEP_S, rel=0.2)
    assert pause.lost_s == pytest.approx(1800)
    assert (warning.lost_s, warning.after) == (0.0, "3 warnings of this kind")
    assert warning.text.endswith("85 C at 303")


def test_a_stop_that_a_person_asked_for_is_no_incident(found):
    assert not [i for i in found.incidents if i.session == 1]
    assert found.sittings[0].outcome == "stopped"


@pytest.mark.parametrize(
    ("outcome", "reason", "kind"),
    [
        ("failed", "exit code 1: ValueError: no", "crash"),
        ("failed", f"exit code 1: {OOM}", "oom"),
        ("killed", "killed by a second Ctrl+C", "kill"),
        ("stopped", "the budget is used up", "stop"),
        ("stopped", "SIGTERM, before training began", None),
        ("stopped", "stop file", None),
        ("done", "", None),
        (None, "", "kill"),
    ],
)
def test_how_a_session_ended_decides_what_it_was(tmp_path, outcome, reason, kind):
    t = Telling(tmp_path / "r")
    t.begin()
    t.train(1, 5)
    t.end(outcome, reason, 5)
    t.record.sessions[-1].outcome = outcome
    events = [e for e in runs.events(t.paths) if outcome or e["event"] != "session_end"]
    curves = series.read(t.paths)
    found = incidents.find(t.record, events, curves, running=False)
    assert [i.kind for i in found] == ([kind] if kind else [])


def test_a_session_that_runs_has_not_ended_badly(tmp_path):
    t = Telling(tmp_path / "r")
    t.begin()
    t.train(1, 5)
    curves = series.read(t.paths)
    assert incidents.find(t.record, runs.events(t.paths), curves, running=True) == []


def test_sessions_without_a_step_count_their_time_once(tmp_path):
    """Three launches that fail while loading, then one that trains."""
    t = Telling(tmp_path / "r")
    t.begin()
    t.train(1, 10)
    t.end("failed", "exit code 1: a", 10)
    left = t.clock
    for _ in range(3):
        t.clock += 40
        t.begin(10)
        t.end("failed", "exit code 1: ImportError: b", 10)
    t.clock += 40
    t.begin(10)
    t.train(11, 20)
    t.end("done", "", 20)
    found = incidents.find(t.record, runs.events(t.paths), series.read(t.paths), running=False)
    assert [i.kind for i in found] == ["crash"] * 4
    went_on = series.read(t.paths).parts[-1].began_s
    assert sum(i.lost_s for i in found) == pytest.approx(went_on - left, abs=1)


# --- against the plan -------------------------------------------------------------------


def test_what_the_machine_did_while_a_session_started_is_not_drawn(tmp_path):
    t = Telling(tmp_path / "r")
    for first, last in ((1, 20), (21, 40)):
        t.begin(first - 1 or None)
        t.sample({"used_gib": 0.5})
        t.train(first, last)
    drawn = report.gather(t.paths).machine["used_gib"]
    assert set(drawn.value.tolist()) == {13.2}
    assert len(drawn) == 40


@pytest.mark.parametrize(
    ("expected", "actual", "verdict"),
    [((1, 2, 3), 2.5, "as planned"), ((1, 2, 3), 3.1, "above"), ((1, 2, 3), 0.5, "below"),
     (None, 2, ""), ((1, 2, 3), None, "")],
)  # fmt: skip
def test_comparison_with_the_plan(expected, actual, verdict):
    assert Comparison("x", "h", expected, actual).verdict == verdict


def test_the_plan_beside_what_became_of_it(found):
    rows = {c.name: (c.actual, c.verdict) for c in found.comparisons}
    assert rows["steps"] == (400, "as planned")
    assert rows["tokens a second"][0] == pytest.approx(65_536 / STEP_S, rel=0.02)
    assert rows["tokens a second"][1] == "as planned"
    assert rows["GPU memory, peak"] == (13.2, "above")
    assert rows["hours"][0] == pytest.approx(found.summary.hours)


def test_a_run_that_goes_on_is_compared_at_its_pace(tmp_path):
    t = Telling(tmp_path / "r")
    t.plan()
    t.begin()
    t.train(1, 100)
    t.end("stopped", "SIGINT", 100)
    hours = next(c for c in report.gather(t.paths).comparisons if c.name == "hours")
    assert hours.actual == pytest.approx(100 * STEP_S / 3600 * 4, rel=0.1)
    assert hours.note == "at the pace so far"


# --- the page ------------------------------------------------------------------------------

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags that match, and everything a browser could fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            local = (value or "").startswith("#")
            if name in {"src", "href", "srcset", "data", "action", "poster"} and not local:
                self.fetched.append((tag, name, value))
            assert not name.startswith("on"), name
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_well_formed_and_needs_nothing_else(found):
    text = page.html(found)
    parsed = Page(text)
    assert parsed.fetched == []
    assert not {"script", "iframe", "object", "embed", "link", "base"} & set(parsed.tags)
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert len(text) < 1_000_000
    for expected in ("power loss", "out of memory", "10 steps", "$", "as planned", "OOM", "#2"):
        assert expected in text


def test_what_the_run_tells_cannot_become_markup(tmp_path):
    t = Telling(tmp_path / "<b>run", settings=SUCCESS)
    t.record.recipe = t.record.tree["base_model"] = t.record.versions["axolotl"] = HOSTILE
    t.begin()
    t.train(1, 30)
    t.event("warning", kind="x", step=3, text=HOSTILE)
    t.end("failed", f"exit code 1: {HOSTILE}", 30)
    files.write_json(
        t.paths.provenance, [dict.fromkeys(("key", "value", "layer", "where"), HOSTILE)]
    )
    found = report.gather(t.paths)
    text = page.html(found)
    assert "script" not in Page(text).tags
    assert "b" not in Page(text).tags
    assert text.count("&lt;script&gt;") > 5
    assert not re.search(r"(?<!\\)[<>]", page.markdown(found))


def test_no_secret_is_shown(tmp_path):
    """Neither what looks like one, nor the value of a key that is called so."""
    form, named = "hf_" + "a1B2c3D4e5" * 4, "correcthorse"
    t = Telling(tmp_path / "r", settings=SUCCESS)
    t.begin()
    t.train(1, 5)
    t.event("warning", kind="x", step=3, text=f"refused: {form}")
    t.end("failed", f"exit code 1: no access with {form}", 5)
    told = {
        "hub_token": named,
        "env": [f"X={form}"],
        "datasets.0.path": f"https://me:{named}@host/x",
    }
    settings = [{"key": k, "value": v, "layer": "set", "where": f"--set {k}={form}"}
                for k, v in told.items()]  # fmt: skip
    files.write_json(t.paths.provenance, settings)
    found = report.gather(t.paths)
    shown = (page.html(found), page.markdown(found), json.dumps(found.to_json()))
    for text in shown:
        assert form not in text
        assert named not in text
        assert "redacted" in text


def test_the_fewest_files_make_a_page(tmp_path):
    """A run that was decided on and did nothing yet."""
    t = Telling(tmp_path / "r")
    found = report.gather(t.paths)
    assert "Nothing was logged yet." in page.html(found)
    assert Page(page.html(found))
    assert page.markdown(found).startswith("# r: stopped")


def test_a_run_that_crashed_all_night_makes_no_page_of_megabytes(tmp_path):
    t = Telling(tmp_path / "r")
    for _ in range(1500):
        t.session += 1
        t.record.sessions.append(
            runs.Session(t.session, t.clock, {}, 0, t.clock + 9, "failed", 9.0)
        )
        t.clock += 10
    t.write()
    text = page.html(report.gather(t.paths))
    assert "1\u202f300 before" in text
    assert len(text) < 200_000


def test_markdown_tells_the_same(found):
    text = page.markdown(found)
    for part in ("# leviathan\\_10pct\\_a4000: done", "## Success criteria", "## Curves",
                 "## Expected and actual", "## What went wrong", "| power loss |", "▁",
                 "Next: `leviathan merge "):  # fmt: skip
        assert part in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    unescaped = {re.sub(r"\\.", "", line).count("|") for line in tables}
    assert unescaped <= {3, 4, 5, 6, 7, 8, 9}


# --- damaged files ----------------------------------------------------------------------------

GARBAGE = [
    b"\0" * 1000, b"\xff\xfe garbage\n" * 50, b"[" * 100_000, b"{}\n[1]\nnull\n",
    b'{"session": [2], "step": {}}\n' * 9,
]  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE)
def test_a_metrics_file_of_garbage_is_one_line_and_a_page_without_curves(told, run_cli, content):
    told.metrics.write_bytes(content)
    done = run_cli("report")
    assert (done.exit_code, done.stdout) == (0, "work/training/r/report.html\n")
    (line,) = done.stderr.splitlines()
    assert "metrics.jsonl can be read" in line
    text = told.report.read_text()
    assert Page(text)
    assert line.partition("warning: ")[2] in text


@pytest.mark.parametrize("content", [*GARBAGE, b""])
def test_other_damaged_files_are_done_without(tmp_path, content):
    t = Telling(tmp_path / "r", settings=SUCCESS)
    t.plan()
    t.begin()
    t.train(1, 30)
    t.end("done", "", 30)
    for name in ("gpu.jsonl", "plan.json", "provenance.json", "tests.json", "events.jsonl"):
        (t.paths.directory / name).write_bytes(content)
        found = report.gather(t.paths)
        assert found.remarks == ()
        assert Page(page.html(found))
        json.dumps(found.to_json())


def test_half_a_last_line_and_fields_of_later_versions_are_normal(told, run_cli):
    before = report.gather(told).to_json()["curves"]
    with told.metrics.open("a") as out:
        out.write(
            '{"time":1,"session":4,"step":401,"loss":1.0,"new":{"x":[1]}}\n{"time":17950, "st'
        )
    done = run_cli("report")
    assert (done.exit_code, done.stderr) == (0, "")
    after = report.gather(told).to_json()["curves"]
    assert after["eval_loss"] == before["eval_loss"]
    assert (after["loss"]["step"][-1], after["loss"]["value"][-1]) == (401, 1.0)


@pytest.mark.parametrize("settings", [{}, {"success": None}, {"success": {"final_loss": "low"}},
                                      {"success": {"later": 1}}])  # fmt: skip
def test_criteria_of_another_version_are_the_defaults(tmp_path, settings):
    found = report.gather(Telling(tmp_path / "r", settings=settings).paths)
    assert found.success == Success()


# --- what runs keep for it -----------------------------------------------------------------------


def test_a_launch_keeps_where_its_settings_came_from(trainings, run_cli):
    trainings.run("--set", "lora_r=4")
    shown = json.loads(run_cli("report", "--json").stdout)
    settings = {s["key"]: (s["value"], s["layer"], s["where"]) for s in shown["settings"]}
    assert settings["lora_r"] == (4, "--set", "--set lora_r=4")
    line = 1 + (trainings.project / "configs/recipes/tiny.yaml").read_text().split("\n").index(
        "  learning_rate: 1e-2"
    )
    layer, where = settings["learning_rate"][1:]
    assert layer == "recipe"
    assert where.endswith(f"recipes/tiny.yaml:{line}")


def test_the_newest_launch_counts(trainings, run_cli):
    """After a rung of the ladder the settings are those it went on with."""
    trainings.run("--set", "recovery.restarts=1", mode="oom", fits=2)
    shown = json.loads(run_cli("report", "--json").stdout)
    setting = next(s for s in shown["settings"] if s["key"] == "micro_batch_size")
    assert setting["where"].startswith("out of memory: ")
    oom = next(c for c in shown["criteria"] if c["name"] == "out of memory")
    assert oom["verdict"] == "fail"


def test_an_older_run_has_its_keys_without_origins(story):
    assert [(s.key, s.layer) for s in report.gather(story).settings] == [("learning_rate", "")]


def test_a_grade_is_kept_and_read_and_damage_is_none(story):
    summary = {"passed": 3, "total": 4, "pass_pct": 75.0, "interval_pct": [30.1, 95.4],
               "base_pass_pct": None, "cases": [{"answer": "long"}]}  # fmt: skip
    grades.note(story, "demo", "checkpoint-400", summary)
    try:
        assert "long" not in story.tests.read_text()
        kept = grades.read(story)
        assert (kept.suite, kept.pass_pct, kept.base_pass_pct) == ("demo", 75.0, None)
        prompts = report.gather(story).criteria[-1]
        assert (prompts.verdict, prompts.actual) == ("pass", "75 %")
        story.tests.write_text('{"passed": 3}')
        assert grades.read(story) is None
    finally:
        story.tests.unlink()


def test_the_proof_of_the_merged_model_is_found(project, run_cli):
    t = Telling(runs.TRAINING / "r")
    assert report.gather(t.paths).proof is None
    proof = project / "models/r-merged/merge-proof.json"
    files.write_json(proof, {"verdict": "equal", "reason": "it is", "run": "r", "checkpoint": "c"})
    assert report.gather(t.paths).proof["verdict"] == "equal"
    assert "models/r-merged (c) is equal: it is" in page.html(report.gather(t.paths))
    files.write_json(proof, {"verdict": "equal", "run": "another"})
    assert report.gather(t.paths).proof is None


# --- the command ---------------------------------------------------------------------------------


def test_where_it_goes(project, told, run_cli):
    assert run_cli("report", "r").stdout == "work/training/r/report.html\n"
    assert run_cli("report", "r", "-o", "a/b.html").stdout == "a/b.html\n"
    assert (project / "a/b.html").read_text().startswith("<!doctype html>")
    assert run_cli("report", "r", "-o", "-").stdout.startswith("<!doctype html>")
    assert run_cli("report", "r", "--markdown").stdout.startswith("# r: done")
    assert run_cli("report", "r", "--markdown", "-o", "r.md").stdout == "r.md\n"
    assert (project / "r.md").read_text().startswith("# r: done")
    assert run_cli("report", "r", "--json", "-o", "r.json").stdout == "r.json\n"
    assert json.loads((project / "r.json").read_text())["summary"]["name"] == "r"
    assert not list(told.directory.glob(".*.tmp"))


def test_json_writes_nothing_and_holds_everything(project, told, run_cli):
    before = listing(project)
    shown = json.loads(run_cli("report", "--json").stdout)
    assert listing(project) == before
    assert {"summary", "criteria", "verdicts", "comparisons", "sessions", "incidents", "curves",
            "checkpoints", "settings", "environment"} <= set(shown)  # fmt: skip
    assert shown["curves"]["temperature_c"]["step"][-1] <= 400
    assert not told.report.exists()


@pytest.mark.parametrize("arguments", ["nobody", "damaged", "damaged --json", "r -o /proc/no/x", "r -o .", "r -o work",
                                       "r -o /dev/full", "r --json --markdown"])  # fmt: skip
def test_bad_input_is_one_line(project, run_cli, arguments):
    Telling(runs.TRAINING / "r")
    broken = Telling(runs.TRAINING / "damaged").paths
    broken.record.write_text('{"schema": 1, "na')
    done = run_cli("report", *arguments.split())
    assert done.exit_code in {1, 2}
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_directory_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(BadInput):
        report.gather(runs.RunPaths(tmp_path))


# --- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.html(found))
    return path


def test_the_browser_of_these_tests_hears_errors(browser, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<script>console.error("oh no")</script><img src="https://example.com/x.png">'
    )
    browser.console.clear()
    browser.ask(broken, "doc.title")
    assert "oh no" in browser.console[0]


def test_a_browser_shows_it_light_and_dark_and_complains_of_nothing(browser, written, tmp_path):
    browser.console.clear()
    light = browser.screenshot(written, tmp_path / "light.png")
    dark = browser.screenshot(written, tmp_path / "dark.png", dark=True)
    assert browser.console == []
    assert (light.width, light.height) == (1100, 1400)
    assert min(light.pixel(3, 3)) > 240
    assert max(dark.pixel(3, 3)) < 40
    for picture in (light, dark):
        assert picture.colours() > 50  # text and cards, not a blank page


def test_nothing_sticks_out_of_a_narrow_window(browser, written):
    width = "doc.documentElement.scrollWidth"
    shown = "[...doc.querySelectorAll('figure svg[role]')].filter(s => s.clientWidth).length"
    figures = "doc.querySelectorAll('figure').length"
    for pixels in (400, 1000):
        asked = f"{width} + ' ' + {shown} + ' ' + {figures}"
        wide, charts, wanted = map(int, browser.ask(written, asked, width=pixels).split())
        assert wide <= pixels
        assert charts == wanted == 8  # the loss is drawn twice, for either width


def test_it_prints_whole(browser, written, tmp_path):
    data = browser.pdf(written, tmp_path / "report.pdf")
    assert data.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 6
    style = "getComputedStyle(doc.querySelector('details'), '::details-content').contentVisibility"
    # On paper nobody can open it: the style sheet does.
    assert browser.ask(written, style) == "hidden"
    assert "details::details-content { content-visibility: visible" in written.read_text()


# --- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.7, "1 min"), (3600, "1 h"), (3661, "1 h 1 min"),
     (86_400 + 59, "1 d"), (90_000, "1 d 1 h"), (float("nan"), "?")],
)  # fmt: skip
def test_durations(seconds, text):
    assert spelled.duration(seconds) == text


@pytest.mark.parametrize(
    ("spell", "value", "text"),
    [
        (spelled.count, 12_345, "12\u202f345"), (spelled.count, 2_345_678, "2.35 M"),
        (spelled.figure, 0.00002, "2e-05"), (spelled.figure, 1.23456, "1.235"),
        (spelled.figure, 12_345.6, "12\u202f346"), (spelled.usd, 0.421, "$0.42"),
        (spelled.usd, 1234, "$1\u202f234"), (spelled.size, 1.3e9, "1.3 GB"),
        (spelled.moment, 1e30, "?"), (spelled.times, 2, "twice"),
    ],
)  # fmt: skip
def test_figures(spell, value, text):
    assert spell(value) == text
