"""A real merged model behind a real server, asked by the real OpenAI client."""

import json
import os
import re
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
            [LEVIATHAN, "serve", RUN, "--port", str(port), "-v"], cwd=directory, env=environment(),
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
    assert re.search(r"\d tokens/s: \d+ tokens of 1 answers in [\d.]+ s, one request at a", text)
    assert re.search(r"-merged was made of checkpoint-\d+\n", text)
    assert "INFO:     Uvicorn running on" in text  # -v: what the server itself prints


def test_what_was_merged_of_another_checkpoint_is_not_served(served):
    model, _, text = served
    made_of = re.search(r"was made of (checkpoint-\d+)\n", text)[1]
    project = Project(model.parents[1])
    done = project.run("serve", RUN, "--checkpoint", made_of, "--dry-run")
    assert (done.code, done.out) == (0, ""), done.err
    assert str(model) in done.err
    (other, *_) = {p.name for p in project.path(RUN).glob("checkpoint-*")} - {made_of}
    done = project.run("serve", RUN, "--checkpoint", other, "--dry-run")
    assert done.code == 3
    assert f"is of {made_of}, not of {other}; first: leviathan merge {RUN}" in done.err


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


TASK = """\
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
"""
GENERATES = """\
task: say
output_type: generate_until
generation_kwargs: {until: [" "], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSES = """\
task: choose
output_type: multiple_choice
doc_to_choice: ["alpha", "beta"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_lm_evals_tasks_put_to_the_server(served, tmp_path):
    """Answers are those of the client, and what it tells no probabilities for is refused."""
    import openai

    model, url, _ = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    rows = []
    for words in WORDS[:3]:
        asked = [{"role": "user", "content": f"Repeat: {words}"}]
        reply = client.chat.completions.create(
            model=str(model), messages=asked, max_tokens=12, temperature=0
        )
        said = reply.choices[0].message.content.partition(" ")[0]
        rows.append({"question": f"Repeat: {words}", "said": said if rows else f"not {said}"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("say", GENERATES), ("choose", CHOOSES)):
        common = TASK.replace("ROWS", str(tmp_path / "rows.jsonl"))
        (tmp_path / f"{name}.yaml").write_text(text + common)
    asked = ("test", url, "--model", str(model), "--task-path", str(tmp_path), "--json")
    done = Project(tmp_path).run(*asked, "--tasks", "say", "--chat-template")
    assert done.code == 0, done.err
    (score,) = json.loads(done.out)["lm_eval"]
    assert (score["value"], score["rows"]) == (pytest.approx(2 / 3), 3)
    done = Project(tmp_path).run(*asked, "--tasks", "say,choose")
    assert done.code == 3
    told = done.err.splitlines()[-1]
    assert "tells no log-probabilities of a prompt" in told
    assert "these tasks need them: choose" in told
