"""Secrets are blanked wherever text is shown, and found in settings without being told."""

import pytest

from leviathan import redaction

LONG = "Zx9" * 14


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"token hf_{'a' * 34} rejected", "token [redacted] rejected"),
        (f"export WANDB_API_KEY={LONG}", "export WANDB_API_KEY=[redacted]"),
        (f"comet_api_key: '{LONG}'", "comet_api_key: '[redacted]'"),
        (f'{{"hub_token": "{LONG}"}}', '{"hub_token": "[redacted]"}'),
        ("password = hunter2!", "password = [redacted]"),
        ("https://me:pw@mlflow.example/x", "https://[redacted]@mlflow.example/x"),
        (f"https://{LONG}@git.example", "https://[redacted]@git.example"),
        (f"Authorization: Bearer {LONG}", "Authorization: Bearer [redacted]"),
        (f"wandb_v1_{'A' * 30}", "[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nxyz\n-----END RSA PRIVATE KEY-----\nafter",
         "[redacted]\nafter"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7 cut", "[redacted]"),
    ],
)  # fmt: skip
def test_secrets_are_blanked(text, left):
    assert redaction.redact(text) == left
    assert redaction.redact(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "eos_token: <|im_end|>", "bos_token=<s>", "hf_use_auth_token: true", "token: 512",
        "tokens/total: 6144", "max_tokens=4096", "hub_token: <HUB_TOKEN>", "api_key: null",
        "see https://docs.example/a@b", "loss: 1.25e-3", "a mail to me@example.org",
        "secretary: Ann", "keys were not checked",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert redaction.redact(text) == text


def test_places_of_secrets_are_told_without_them():
    tree = {
        "comet_api_key": LONG,
        "special_tokens": {"pad_token": "<pad>", "access_token": "<a>"},
        "eot_tokens": ["</s>"],
        "hf_use_auth_token": True,
        "swanlab_api_key": "",
        "datasets": [{"path": f"https://u:{LONG}@host/x"}, {"path": "https://host/x"}],
        "trl": {"vllm": {"api_key": LONG}},
        "note": f"use hf_{'b' * 36}",
    }
    found = redaction.secrets_in(tree)
    assert [key for key, _ in found] == [
        ("comet_api_key",), ("datasets", 0, "path"), ("trl", "vllm", "api_key"), ("note",),
    ]  # fmt: skip
    assert LONG not in str(found)
