"""What a notification hook may say, and where it leads; its address stays a secret."""

import json
from pathlib import Path

import pytest

import tiny
from leviathan import check_shell, config, hooks
from leviathan.checkup import Subject
from leviathan.config import Profile
from leviathan.hooks import Hook, target
from leviathan.machine import Host, Machine

ADDRESS = "https://hooks.example.com/services/T0/B0/s3cret"
BAD = {
    "neither": ("- every_min: 5", "14: notify.0: value error, a hook has either webhook or command"),
    "both": ("- webhook: $A\n  command: [a]", "14: notify.0: value error, a hook has either"),
    "a file": ("- webhook: file:///etc/passwd", "14: notify.0.webhook: value error, it is neither an http(s) url"),
    "no scheme": ("- webhook: hooks.example.com/s3cret", "14: notify.0.webhook: value error, it is neither"),
    "a password": ("- webhook: https://me:s3cret@example.com/", "14: notify.0.webhook: value error, it is neither"),
    "a line in it": ('- webhook: "https://a/s3cret\\nb"', "14: notify.0.webhook: value error, it is neither"),
    "no name": ("- webhook: $", "14: notify.0.webhook: value error, it is neither"),
    "unknown kind": ("- when: [finishd]\n  webhook: $A", "14: notify.0.when.0: input should be 'finished'"),
    "no kind": ("- when: []\n  webhook: $A", "14: notify.0.when: list should have at least 1 item"),
    "on": ("- on: [finished]\n  webhook: https://a/s3cret", "14: notify.0: value error, yaml reads on as true"),
    "a shell line": ("- command: notify-send s3cret", "14: notify.0.command: input should be a valid list"),
    "no program": ("- command: []", "14: notify.0.command: list should have at least 1 item"),
    "an empty program": ("- command: ['', s3cret]", "14: notify.0.command: value error, the first word"),
    "NUL": ('- command: [a, "s3cret\\0"]', "14: notify.0.command: value error, the first word"),
    "unknown key": ("- webhook: $A\n  wehn: [oom]", "15: notify.0.wehn is not a known key; did you mean when?"),
    "negative": ("- webhook: $A\n  every_min: -1", "15: notify.0.every_min: input should be greater"),
    "unknown body": ("- webhook: $A\n  body: xml", "15: notify.0.body: input should be 'json' or 'text'"),
    "a URL alone": ("- https://a/s3cret", "14: notify.0: input should be a valid dictionary"),
}  # fmt: skip


def profile_with(text):
    """The tiny profile with this under ``notify:``, from line 14 on."""
    head, _, tail = tiny.PROFILE.partition("axolotl:\n")
    head = head + "#\n" * (12 - head.count("\n")) + "notify:\n"
    Path("configs/profiles/tiny.yaml").write_text(f"{head}{text}\naxolotl:\n{tail}")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_its_place_and_no_secret(run_cli, name):
    text, expected = BAD[name]
    profile_with(text)
    done = run_cli("notify", "-p", "tiny")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"leviathan: configs/profiles/tiny.yaml:{expected}")
    assert "s3cret" not in line


def test_a_url_is_not_given_by_set_for_the_run_keeps_that(run_cli):
    override = f"notify=[{{webhook: '{ADDRESS}'}}]"
    done = run_cli("train", "-p", "tiny", "-r", "tiny", "-s", "full", "--set", override)
    assert done.exit_code == 2
    assert done.stderr.startswith("leviathan: --set notify: a webhook's URL is a secret")
    assert "s3cret" not in done.stderr


def test_a_url_is_hidden_wherever_a_profile_is_shown(run_cli):
    profile_with(f"- webhook: {ADDRESS}")
    shown = run_cli("profiles", "show", "tiny", "--json")
    assert "s3cret" not in shown.stdout
    assert json.loads(shown.stdout)["notify"][0]["every_min"] == 10
    assert "s3cret" not in run_cli("profiles", "diff", "tiny", "cpu").stdout
    _, profile, _ = config.load_profile("tiny")
    assert "s3cret" not in repr(profile)
    assert "s3cret" not in repr(target(profile.notify[0], {}))


def test_an_override_of_another_key_leaves_the_url_whole(project):
    from leviathan import layers

    profile_with(f"- webhook: {ADDRESS}")
    merged = layers.build("tiny", "tiny", "full", ["checkpoints.keep=2"])
    assert target(merged.profile.notify[0], {}).url == ADDRESS
    assert layers.build("tiny", "tiny", "full", ["notify=[]"]).profile.notify == []


@pytest.mark.parametrize(
    ("hook", "environment", "label", "problem"),
    [
        ({"webhook": ADDRESS}, {}, "https://hooks.example.com/...", ""),
        ({"webhook": "http://127.0.0.1:80?s3cret"}, {}, "http://127.0.0.1:80/...", ""),
        ({"webhook": "$HOOK"}, {"HOOK": f" {ADDRESS}\n"}, "$HOOK (https://hooks.example.com/...)", ""),
        ({"webhook": "${HOOK}"}, {"HOOK": ADDRESS}, "$HOOK (https://hooks.example.com/...)", ""),
        ({"webhook": "$HOOK"}, {}, "$HOOK", "$HOOK is not set"),
        ({"webhook": "$HOOK"}, {"HOOK": " "}, "$HOOK", "$HOOK is not set"),
        ({"webhook": "$HOOK"}, {"HOOK": "file:///s3cret"}, "$HOOK", "$HOOK holds no http(s) URL"),
        ({"command": ["sh", "-c", "s3cret"]}, {"PATH": "/bin"}, "command sh", ""),
        ({"command": ["no-such-program"]}, {"PATH": "/bin"}, "command no-such-program", "there is no program no-such-program"),
    ],
)  # fmt: skip
def test_where_a_hook_leads(hook, environment, label, problem):
    found = target(Hook.model_validate(hook), environment)
    assert (found.label, found.problem) == (label, problem)
    assert bool(found.fix) == bool(problem)
    assert "s3cret" not in repr(found)


def test_left_out_everything_is_told():
    assert Hook.model_validate({"command": ["true"]}).when == list(hooks.KINDS)


@pytest.mark.parametrize(
    ("notify", "environment", "expected"),
    [
        ([], {}, None),
        ([{"webhook": ADDRESS}], {}, ("pass", "https://hooks.example.com/...", "")),
        ([{"webhook": "$A"}, {"webhook": "$A", "when": ["oom"]}], {}, (
            "warn", "$A is not set: nobody is told by it", "export A=https://...")),
        ([{"webhook": "$A"}, {"command": ["no-such"]}], {"A": ADDRESS}, (
            "warn", "there is no program no-such: nobody is told by it", "install it, or give its whole path")),
    ],
)  # fmt: skip
def test_the_check_before_a_launch(notify, environment, expected):
    profile = Profile.model_validate({"notify": notify})
    check = check_shell.notify(Subject(Machine((), {}, False, Host()), environment, profile))
    assert (check and (check.state, check.evidence, check.fix)) == expected
