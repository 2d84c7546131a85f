"""The prompt suite: its checks, its file's errors, the pass rate and its interval."""

import json

import pytest

from leviathan import config, prompts, scores
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
        ({"not-contains": "sorry"}, "Sorry, no", False),
        ({"max-length": 3}, " abc ", True),
        ({"max_length": 3}, "abcd", False),
        ({"stops-by-itself": True}, "x", True),
        ({"stops-by-itself": False}, "x", False),
        ({"json-schema": {"required": ["a"]}}, '{"a": 1}', True),
        ({"json-schema": {"required": ["a"]}}, '{"b": 1}', False),
        ({"json-schema": {"type": "number"}}, "NaN", False),
        ({"json-schema": {}}, "{", False),
    ],
)
def test_a_check_holds(check, answer, holds):
    assert prompts.Check.model_validate(check).holds(prompts.Answer(answer, True)) is holds


def test_every_check_of_a_case_must_hold():
    case = prompts.Case.model_validate(
        {"name": "n", "prompt": "p", "checks": [{"contains": "a"}, {"contains": "b"}]}
    )
    assert [
        prompts.judge(case, prompts.Answer(answer, True)) for answer in ("a b", "a", "b", "")
    ] == [True, *[False] * 3]


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
         [":4: cases.0.checks.0.regex: value error, not a regular expression"]),
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
    found = scores.interval_pct(passed, total)
    assert found == pytest.approx((low, high), abs=0.01)


@pytest.fixture
def suite():
    case = {"prompt": "p", "checks": [{"contains": "yes"}], "max_new_tokens": 3}
    return prompts.Suite.model_validate({"cases": [{"name": n, **case} for n in ("a", "b", "c")]})


def answered(*texts):
    return [prompts.Answer(text, True) for text in texts]


def test_summary_of_tuned_and_base_model(suite):
    results = scores.judged(suite.cases, answered("yes", "no", "yes"), answered(*["no"] * 3))
    summary = scores.summary(results)
    assert {k: summary[k] for k in ("passed", "total", "pass_pct", "base_pass_pct")} == {
        "passed": 2, "total": 3, "pass_pct": 66.7, "base_pass_pct": 0.0,
    }  # fmt: skip
    assert [case["passed"] for case in summary["cases"]] == [True, False, True]
    assert summary["versus_base"] == {
        "gained": 2, "lost": 0, "p_value": 0.5, "verdict": "not beyond chance",
    }  # fmt: skip
    json.dumps(summary)


def test_summary_without_a_base_model(suite):
    summary = scores.summary(scores.judged(suite.cases, answered("", "", "")))
    assert (summary["base_pass_pct"], summary["versus_base"]) == (None, None)
    assert summary["pass_pct"] == 0.0


def test_weights_and_tags():
    cases = [
        prompts.Case.model_validate(
            {"name": n, "prompt": "p", "checks": [{"exact": "yes"}], "weight": w, "tags": [t]}
        )
        for n, w, t in (("a", 3, "x"), ("b", 1, "y"))
    ]
    summary = scores.summary(scores.judged(cases, answered("yes", "no")))
    assert (summary["pass_pct"], summary["effective_total"]) == (75.0, 1.6)
    assert summary["tags"]["y"]["pass_pct"] == 0
    kept = prompts.tagged(prompts.Suite(cases=cases), ["x"])
    assert [case.name for case in kept.cases] == ["a"]
    with pytest.raises(BadInput, match="no case has the tag 'z'"):
        prompts.tagged(kept, ["z"])


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1), (6, 0, 0.03125), (9, 1, 0.021484375)])
def test_mcnemar(gained, lost, p):
    assert scores.mcnemar(gained, lost) == pytest.approx(p)


def suite_in(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return prompts.load(path)


DEFAULTS = """\
defaults:
  system: Be short.
  max_new_tokens: 20
  temperature: 0.5
  weight: 2
  tags: [common]
  checks: [{stops-by-itself: true}]
"""


def test_a_case_says_what_the_defaults_do_not(tmp_path):
    suite = suite_in(
        tmp_path,
        DEFAULTS + "cases:\n"
        "  - {name: plain, prompt: p}\n"
        "  - {name: own, prompt: p, system: null, max_new_tokens: 3, temperature: 0, weight: 1,\n"
        "     tags: [], checks: [{exact: a}]}\n"
        "  - name: brings its own\n"
        "    messages: [{role: system, content: s}, {role: user, content: u}]\n",
    )
    plain, own, third = suite.cases
    assert (plain.max_new_tokens, plain.temperature, plain.weight) == (20, 0.5, 2)
    assert (plain.tags, plain.checks) == (["common"], [prompts.Check(stops_by_itself=True)])
    assert plain.conversation[0] == {"role": "system", "content": "Be short."}
    assert (own.max_new_tokens, own.temperature, own.weight, own.tags) == (3, 0, 1, [])
    assert (own.system, own.checks) == (None, [prompts.Check(exact="a")])
    assert [turn["content"] for turn in third.conversation] == ["s", "u"]
    assert third.temperature == 0.5


def test_without_defaults_answers_are_greedy(suite):
    assert {case.temperature for case in suite.cases} == {0.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("temperature: -1", ":2: defaults.temperature: input should be greater than or equal to 0"),
        ("max_tokens: 9", ":2: defaults.max_tokens is not a known key; did you mean max_new_tokens?"),
        ("prompt: p", ":2: defaults.prompt is not a known key"),
        ("checks: [{}]", ":2: defaults.checks.0: value error, a check has exactly one of"),
        ("weight: heavy", ":2: defaults.weight: input should be a valid number"),
    ],
)  # fmt: skip
def test_a_mistake_in_defaults_is_told_once_and_there(tmp_path, line, message):
    cases = "cases:\n" + "  - {name: a, prompt: p, checks: [{exact: b}]}\n" * 2
    with pytest.raises(BadInput) as caught:
        suite_in(tmp_path, f"defaults:\n  {line}\n{cases}")
    (told,) = caught.value.message.splitlines()
    assert message in told


def test_a_case_without_any_check_and_one_too_hot(tmp_path):
    with pytest.raises(BadInput) as caught:
        suite_in(tmp_path, "cases:\n  - {name: a, prompt: p}\n"
                           "  - {name: b, prompt: p, checks: [{exact: x}], temperature: 9}\n")  # fmt: skip
    first, second = caught.value.message.splitlines()
    assert ":2: cases.0.checks is required and missing" in first
    assert ":3: cases.1.temperature: input should be less than or equal to 5" in second
