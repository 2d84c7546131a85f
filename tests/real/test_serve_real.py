"""A real merged model behind a real server, asked by the real OpenAI client."""

import json
import os
import shutil
import signal
import socket
import subprocess

import pytest
from project import LEVIATHAN, RUN, Project, environment

from fakes.processes import wait_for
from leviathan import models

pytestmark = pytest.mark.real

# What it was trained with, as a template: else it could only be asked for completions.
# (Jinja drops a template's last newline.)
TEMPLATE = models.ALPACA.format(prompt="{{ messages[-1]['content'] }}") + "\n"
WORDS = ["alpha beta", "gamma", "kappa mu nu", "xi omicron pi", "delta epsilon zeta eta"]


@pytest.fixture(scope="module")
def served(reference, tmp_path_factory):
    """The reference run's merged model, with a template so that it can chat; its server's URL."""
    directory = tmp_path_factory.mktemp("served") / "project"
    shutil.copytree(reference.directory, directory)
    project = Project(directory)
    for checkpoint in project.path(RUN).glob("checkpoint-*"):
        (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
        (checkpoint / "leviathan-commit.json").unlink()
    done = project.run("merge")
    assert done.code == 0, done.err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = directory / "serve.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [LEVIATHAN, "serve", RUN, "--port", str(port)], cwd=directory, env=environment(),
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: "Ctrl+C stops it" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield directory / "models" / f"{RUN}-merged", f"http://127.0.0.1:{port}", log.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert [p for p in project.processes() if p != os.getpid()] == []


def test_it_says_which_engine_and_tries_it(served):
    _, url, text = served
    assert "engine transformers: vLLM is not installed" in text
    assert f"at {url}/v1" in text
    assert "Say hello in one sentence." in text


def test_the_openai_client_chats_and_streams(served):
    import openai

    model, url, _ = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    asked = {"model": str(model), "messages": [{"role": "user", "content": "Repeat: alpha beta"}],
             "max_tokens": 12, "temperature": 0}  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].message.content
    parts = client.chat.completions.create(**asked, stream=True)
    streamed = "".join(c.choices[0].delta.content or "" for c in parts if c.choices)
    assert streamed == whole
    assert whole


def test_the_suite_put_to_the_server_has_the_verdicts_of_the_model_itself(served, tmp_path):
    model, url, _ = served
    cases = [
        {"name": w, "prompt": f"Repeat: {w}", "checks": [{"contains": w}, {"stops_by_itself": True}],
         "max_new_tokens": 16}
        for w in WORDS
    ]  # fmt: skip
    cases.append({"name": "short", "prompt": "Repeat: mu", "checks": [{"max_length": 1000}]})
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"cases": cases}))
    told = []
    for target in ((url, "--model", str(model)), (str(model),)):
        done = Project(tmp_path).run(
            "test", *target, "--suite", str(suite), "--min-pass", "0", "--json"
        )
        assert done.code == 0, done.err
        told.append([(c["name"], c["answer"], c["passed"]) for c in json.loads(done.out)["cases"]])
    assert told[0] == told[1]
    assert {passed for _, _, passed in told[0]} == {True, False}
