"""Secrets and control characters: forms their makers document, and what only looks like them."""

import json

import pytest

from leviathan import hazards

LETTERS = "Ab3dEf6hIjK9mNoPqRsT2vWxYz5BcDeFgHiJkLmNoPqRsTuVwXyZ0123456789abcdefghijkl"


def kinds(text: str) -> list[str]:
    """Of a text in a JSON row as most writers escape it, and as others do."""
    found = [
        [kind for _, kind, _ in hazards.find(json.dumps({"t": text}, ensure_ascii=ascii).encode())]
        for ascii in (True, False)
    ]
    assert found[0] == found[1]
    return found[0]


SECRETS = [
    "AKIA" + "Q2" * 8,
    "ASIA" + "Q2" * 8,
    "ghp_" + LETTERS[:36],
    "ghs_" + LETTERS[:36],
    "github_pat_" + LETTERS[:22] + "_" + LETTERS[:59],
    "glpat-" + LETTERS[:20],
    "hf_" + LETTERS[:34],
    "sk-ant-api03-" + LETTERS[:40],
    "sk-proj-" + LETTERS[:40],
    "sk_live_" + LETTERS[:24],
    "xoxb-" + "123456789012-" + LETTERS[:24],
    "AIza" + LETTERS[:35],
    "npm_" + LETTERS[:36],
    "pypi-AgEIcHlwaS5vcmc" + LETTERS[:50],
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhki\n",
    "-----BEGIN RSA PRIVATE KEY-----\r\nMIIEvQIBADANBgkqhki\n",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + LETTERS[:43],
]


@pytest.mark.parametrize("secret", SECRETS, ids=[s.split("\n")[0][:12] for s in SECRETS])
@pytest.mark.parametrize("around", ["{}", "key={} ok", "first line\n{}\n", '"{}"', "\t{}", "é {}"])
def test_a_secret_is_found_wherever_it_stands(secret, around):
    assert kinds(around.format(secret)) == ["secret"]


@pytest.mark.parametrize(
    "text",
    [
        "AKIA is how they begin", "xAKIA" + "Q2" * 8, "AKIA" + "Q2" * 9, "task-based risk-taking",
        "ghp_short", "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhki", "eyJ.eyJ.x",
        "-----BEGIN PRIVATE KEY----- goes first", "an hf_ prefix", "the disk-proj-ector",
    ],
)  # fmt: skip
def test_what_only_looks_like_one_is_none(text):
    assert kinds(text) == []


def test_a_secret_is_not_told():
    ((_, _, shown),) = hazards.find(json.dumps({"t": SECRETS[2]}).encode())
    assert shown == "ghp_..."


@pytest.mark.parametrize("code", [*range(8), 14, 0x1B, 0x1F, 0xFFFD])
def test_a_control_character_is_found(code):
    assert kinds(f"a{chr(code)}b") == ["control"]


@pytest.mark.parametrize("escape", ["\\u007f", "\\u007F", "\\uFFFD", "\\u001b"])
def test_an_escape_is_found_in_either_case(escape):
    assert [kind for _, kind, _ in hazards.find(f'{{"t": "{escape}"}}'.encode())] == ["control"]


@pytest.mark.parametrize("text", ["tab\t line\n return\r", "C:\\u0000", "\\\\ufffd", "é€😀\u2028"])
def test_ordinary_text_is_not(text):
    assert kinds(text) == []


def test_the_place_is_where_it_begins():
    data = b'{"t": "ok"}\n{"t": "a\\u0000"}\n'
    assert [(data[:place].count(b"\n"), what) for place, _, what in hazards.find(data)] == [
        (1, "\\u0000")
    ]
