"""The prompt suite: its checks, its file's errors, the pass rate and its interval."""

import json

import pytest

from leviathan import config, prompts
from leviathan.errors import BadInput


@pytest.mark.parametrize(
    ("check", "answer", "holds"),
    [
        ({"contains": "Paris"}, "It is PARIS.", True),
        ({"contains": "Paris"}, "Rome", False),
        ({"not_contains": "sorry"}, "Sorry, no", False),
        ({"not_contains": "sorry"}, "", True),
        ({"regex": r"\b42\b"}, "it is 42.", True),
        ({"regex": r"\b42\b"}, "1425", False),
        ({"regex": "^second"}, "first\nsecond", True),
        ({"exact": " yes "}, "yes\n", True),
        ({"exact": "yes"}, "Yes", False),
        ({"exact": ""}, "  \n", True),
    ],
)
def test_a_check_holds(check, answer, holds):
    assert prompts.Check.model_validate(check).holds(answer) is holds


def test_every_check_of_a_case_must_hold():
    case = prompts.Case.model_validate(
        {"name": "n", "prompt": "p", "checks": [{"contains": "a"}, {"contains": "b"}]}
    )
    assert [prompts.judge(case, answer) for answer in ("a b", "a", "b", "")] == [True, *[False] * 3]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("cases: []\n", [":1: cases: list should have at least 1 item"]),
        ("description: x\n", [":1: cases is required and missing"]),
        ("cases:\n  - {name: a, prompt: p, checks: []}\n", [":2: cases.0.checks: "]),
        ("cases:\n  - name: a\n    prompt: p\n    checks: [{contains: a, exact: b}]\n",
         [":4: cases.0.checks.0: value error, a check has exactly one of"]),
        ("cases:\n  - name: a\n    prompt: p\n    checks: [{}]\n", ["exactly one of"]),
        ("cases:\n  - name: a\n    prompt: p\n    checks: [{regex: '['}]\n",
         [":4: cases.0.checks.0: value error, not a regular expression"]),
        ("cases:\n  - nam: a\n    prompt: p\n    checks: [{exact: b}]\n",
         ["cases.0.name is required and missing", ":2: cases.0.nam is not a known key; did you mean name?"]),
        ("cases:\n  - {name: a, prompt: p, checks: [{exact: b}], max_new_tokens: 0}\n",
         [":2: cases.0.max_new_tokens: "]),
    ],
)  # fmt: skip
def test_every_problem_of_a_suite_is_named_with_its_line(tmp_path, text, messages):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        prompts.load(path)
    lines = caught.value.message.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(str(path))
        assert message in line


@pytest.mark.parametrize("name", sorted(config.names("suites")))
def test_shipped_suites_are_valid(name):
    suite = prompts.load(prompts.find(name))
    assert len({case.name for case in suite.cases}) == len(suite.cases)


def test_find_offers_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no prompt suite called 'leviatan'") as caught:
        prompts.find("leviatan")
    assert "did you mean leviathan?" in caught.value.hint
    (tmp_path / "mine.yaml").touch()
    assert str(prompts.find("mine.yaml")) == "mine.yaml"


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [  # Wilson 1927, as R's binom::binom.wilson gives them
        (0, 0, 0, 100), (0, 10, 0, 27.75), (10, 10, 72.25, 100), (5, 10, 23.66, 76.34),
        (75, 100, 65.70, 82.45), (1, 1, 20.65, 100),
    ],
)  # fmt: skip
def test_interval(passed, total, low, high):
    found = prompts.interval_pct(passed, total)
    assert found == pytest.approx((low, high), abs=0.01)


@pytest.fixture
def suite():
    case = {"prompt": "p", "checks": [{"contains": "yes"}], "max_new_tokens": 3}
    return prompts.Suite.model_validate({"cases": [{"name": n, **case} for n in ("a", "b", "c")]})


def test_summary_of_tuned_and_base_model(suite):
    answers = iter(["yes", "no", "yes"])
    results = prompts.ask(suite, lambda *_: next(answers), lambda prompt, limit: "no")
    summary = prompts.summary(results)
    assert {k: summary[k] for k in ("passed", "total", "pass_pct", "base_pass_pct")} == {
        "passed": 2, "total": 3, "pass_pct": 66.7, "base_pass_pct": 0.0,
    }  # fmt: skip
    assert [case["passed"] for case in summary["cases"]] == [True, False, True]
    assert all(case["base_passed"] is False for case in summary["cases"])
    low, high = summary["interval_pct"]
    assert low < 66.7 < high
    json.dumps(summary)


def test_summary_without_a_base_model(suite):
    asked = []
    results = prompts.ask(suite, lambda prompt, limit: asked.append((prompt, limit)) or "")
    summary = prompts.summary(results)
    assert asked == [("p", 3)] * 3
    assert summary["base_pass_pct"] is None
    assert summary["pass_pct"] == 0.0
