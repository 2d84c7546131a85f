"""``serve``: only what is proven, tried before it is called up, and nothing left behind."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import xxhash

from fakes.processes import LEVIATHAN, wait_for
from leviathan import models, runs, serve
from leviathan.errors import BadInput, Refused

FAKE = Path(__file__).parent / "fakes/vllm"


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A merged model without a weight in it, and its proof."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "models/r-merged"
    directory.mkdir(parents=True)
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
              "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
              "max_position_embeddings": 512}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    prove(directory, "equal")
    return directory


def prove(directory, verdict):
    hashes = {
        file.name: f"xxh3_128:{xxhash.xxh3_128_hexdigest(file.read_bytes())}"
        for file in directory.iterdir()
    }
    told = {"verdict": verdict, "reason": "because", "format": "chat", "hashes": hashes}
    (directory / "merge-proof.json").write_text(json.dumps(told))


def command(model, port, *more):
    return [LEVIATHAN, "serve", str(model), "--engine", "vllm", "--vllm", str(FAKE),
            "--port", str(port), *more]  # fmt: skip


def run(model, port, *more, mode=""):
    environment = {**os.environ, "FAKE_VLLM": mode, "COLUMNS": "200"}
    return subprocess.run(
        command(model, port, *more), cwd=model.parents[1], env=environment, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def left(model):
    """Processes of this test that live: all work in its directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(model.parents[1]) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def living(model, port):
    """A served model, once it has said how to stop it."""
    log = model.parents[1] / "out.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command(model, port), cwd=model.parents[1], stdout=stream, stderr=stream,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
    wait_for(lambda: "Ctrl+C stops it" in log.read_text(), 60)
    yield process
    process.kill()
    process.wait()
    for one in left(model):
        one.kill()


def test_it_answers_and_shows_what_to_type(model, port):
    done = run(model, port, "--check")
    assert done.returncode == 0, done.stderr
    assert "It is Paris." in done.stdout
    assert f"serving r-merged at http://127.0.0.1:{port}/v1" in done.stdout
    assert f"ssh -N -L {port}:127.0.0.1:{port}" in done.stdout
    assert f"$ {FAKE} serve {model} --host 127.0.0.1 --port {port}" in done.stderr
    assert left(model) == []


def test_what_it_shows_can_be_typed(model, port, living):
    text = (model.parents[1] / "out.txt").read_text()
    curl = next(line for line in text.splitlines() if line.startswith("curl "))
    done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "It is Paris."
    python = text[text.index("from openai") : text.index("try it: ")]
    done = subprocess.run(
        [sys.executable, "-c", python], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "It is Paris."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_however_it_ends(model, living, number):
    assert len(left(model)) == 4  # leviathan, the leash, the server, its worker
    living.send_signal(number)
    code = living.wait(30)
    assert code == (-9 if number == signal.SIGKILL else 0)
    wait_for(lambda: left(model) == [], 30)


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize("server", ["time.sleep(60)", DEAF])
def test_a_worker_deaf_to_sigterm_is_ended_though_nobody_waits(tmp_path, server):
    worker = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {DEAF!r}])"
    (tmp_path / "server.py").write_text(f"{worker}\nopen('up', 'w').close()\n{server}")
    impatient = "from leviathan import leash; leash.PATIENCE_S = 1; leash.main()"
    leash = subprocess.Popen(
        [sys.executable, "-c", impatient, sys.executable, "server.py"],
        cwd=tmp_path, stdin=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    group = [leash.pid]
    try:
        wait_for((tmp_path / "up").exists, 20)
        time.sleep(0.3)  # the worker has to have become deaf
        group += [p.pid for p in psutil.Process(leash.pid).children(recursive=True)]
        assert len(group) == 3
        leash.stdin.close()
        assert leash.wait(20) == 1
        wait_for(lambda: not any(map(psutil.pid_exists, group)), 5)
    finally:
        for pid in filter(psutil.pid_exists, group):
            os.kill(pid, signal.SIGKILL)


def test_a_server_that_ends_by_itself_is_told(model, living):
    (server,) = (p for p in left(model) if p.cmdline()[1:3] == [str(FAKE), "serve"])
    server.kill()
    assert living.wait(30) == 1
    assert "the server ended" in (model.parents[1] / "out.txt").read_text()
    wait_for(lambda: left(model) == [], 30)


def test_a_server_that_does_not_come_up(model, port):
    done = run(model, port, mode="crash")
    assert done.returncode == 1
    assert "ended before it answered: ValueError: the KV cache is too small; log: " in done.stderr
    done = run(model, port, "--timeout", "2", mode="mute")
    assert done.returncode == 1
    assert "does not answer after 2 s" in done.stderr
    assert left(model) == []


def test_a_server_without_an_answer_fails_the_check(model, port):
    done = run(model, port, "--check", mode="dumb")
    assert done.returncode == 1
    assert "no answer to hello" in done.stderr


def test_json_and_dry_run(model, port):
    done = run(model, port, "--check", "--json")
    told = json.loads(done.stdout)
    assert told["url"] == f"http://127.0.0.1:{port}/v1"
    (reply,) = told["smoke"]
    assert (reply["answer"], reply["finish_reason"], reply["passed"]) == (
        "It is Paris.",
        "stop",
        True,
    )
    done = run(model, port, "--dry-run", "--json", mode="crash")
    assert json.loads(done.stdout)["command"][0] == str(FAKE)


def test_what_is_not_proven_is_not_served(model, port):
    prove(model, "different")
    done = run(model, port, "--check")
    assert done.returncode == 3
    assert f"{model} is not proven: because; merge it again" in done.stderr
    assert run(model, port, "--check", "--force").returncode == 0
    prove(model, "equal")
    (model / "chat_template.jinja").write_text("another")
    done = run(model, port, "--check")
    assert done.returncode == 3
    assert "has changed since it was proven: chat_template.jinja" in done.stderr


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--host", "::"], 3, "whoever reaches :: could use this server"),
        (["--host", "no.such.host.invalid"], 2, "--host no.such.host.invalid is no address"),
        (["--suite", "nonsense"], 2, "no prompt suite called 'nonsense'"),
        (["--context", "9999"], 2, "the model knows 512 positions"),
        (["--engine", "ollama"], 2, "--engine 'ollama' is unknown"),
        (["-p", "nonsense"], 2, "nonsense"),
        (["--engine", "transformers", "--context", "64"], 2, "--context and --profile are vLLM's"),
        (["--engine", "transformers", "-p", "a4000"], 2, "--context and --profile are vLLM's"),
        (["--host", "192.0.2.1"], 2, "--host 192.0.2.1 is no address of this machine"),
    ],
)
def test_bad_input(model, port, more, code, said):
    done = run(model, port, *more)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not (model.parents[1] / "work").exists()


def test_a_taken_port_is_one_line(model, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = run(model, port)
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr


def test_a_run_that_was_not_merged_says_how(crashed):
    for adapter, option in ((False, ""), (True, " --adapter-only")):
        with pytest.raises(BadInput) as told:
            serve.offer("tiny_full_tiny", adapter=adapter, force=False)
        assert told.value.hint == f"first: leviathan merge tiny_full_tiny{option}"


def merged_of(run_dir, checkpoint, place):
    """A model that says it was merged of a checkpoint of the run."""
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    prove(place, "equal")
    told = json.loads((place / "merge-proof.json").read_text())
    weights = run_dir / checkpoint / "adapter_model.safetensors"
    digest = f"xxh3_128:{xxhash.xxh3_128_hexdigest(weights.read_bytes())}"
    told["hashes"]["checkpoint/adapter_model.safetensors"] = digest
    told |= {"run": run_dir.name, "checkpoint": checkpoint}
    (place / "merge-proof.json").write_text(json.dumps(told))
    return place


def offered(checkpoint):
    return serve.offer("tiny_full_tiny", adapter=False, force=False, checkpoint=checkpoint)[0]


def test_what_was_merged_of_a_checkpoint_is_found_or_the_other_one_named(crashed, monkeypatch):
    monkeypatch.chdir(crashed.project)
    run, usual = crashed.run_dir, Path("models/tiny_full_tiny-merged")
    with pytest.raises(Refused, match="nothing was merged of checkpoint-5") as told:
        offered("5")
    assert told.value.hint == "first: leviathan merge tiny_full_tiny --checkpoint checkpoint-5"
    merged_of(run, "checkpoint-10", usual)
    for which in ("10", "checkpoint-10", "latest"):
        assert (offered(which).model, offered(which).checkpoint) == (usual, "checkpoint-10")
    with pytest.raises(Refused, match=f"{usual} is of checkpoint-10, not of checkpoint-5") as told:
        offered("5")
    output = shlex.split(told.value.hint)[-1]
    assert output == "models/tiny_full_tiny-merged-checkpoint-5"
    merged_of(run, "checkpoint-5", Path(output))
    assert offered("5").model == Path(output)
    elsewhere = Path(output).rename("elsewhere")
    runs.event(runs.RunPaths(run), "merge", step=5, verdict="equal", to=str(elsewhere))
    assert offered("5").model == elsewhere
    weights = run / "checkpoint-10/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")  # as after a resume from checkpoint-5
    with pytest.raises(Refused, match="was made of an earlier checkpoint-10, with other weights"):
        offered("10")
    shutil.rmtree(run / "checkpoint-10")  # retention: what was merged of it outlives it
    assert offered("10").model == usual
    with pytest.raises(BadInput, match="'first' names no checkpoint"):
        offered("first")


def test_a_checkpoint_is_of_a_run(model, port):
    done = run(model, port, "--checkpoint", "5")
    assert done.returncode == 2
    assert "--checkpoint is about a run; name the run, not a model" in done.stderr


def test_what_the_server_prints_is_shown_as_it_comes(model, port):
    for arguments in (("--check", "-v"), ("--check",)):
        done = run(model, port, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("INFO: answered") == ("-v" in arguments)
    done = run(model, port, "-v", mode="crash")
    assert "ValueError: the KV cache is too small\nleviathan: the server ended" in done.stderr


def test_a_servers_pace_is_told_where_it_counts(model, port):
    done = run(model, port, "--check")
    assert "tokens/s: 4 tokens of 1 answers in" in done.stdout
    assert "one request at a time" in done.stdout
    done = run(model, port, "--check", mode="uncounted")
    assert "the server does not say how many tokens an answer has" in done.stdout


def test_pace_is_tokens_over_seconds():
    replies = [serve.Reply(str(n), "p", "a", "stop", 0.5, True, tokens=n) for n in (10, 30)]
    uncounted = serve.Reply("x", "p", "a", "stop", 9.0, True)
    assert serve.pace([*replies, uncounted]) == {
        "tok_s": 40.0, "tokens": 40, "seconds": 1.0, "answers": 2,
    }  # fmt: skip
    assert serve.pace([uncounted]) is None
    assert serve.pace([]) is None


def test_an_adapter_is_offered_with_its_base(model, tmp_path):
    directory = tmp_path / "models/r-adapter"
    directory.mkdir()
    (directory / "adapter_config.json").write_text("{}")
    prove(directory, "equal")
    told = json.loads((directory / "merge-proof.json").read_text())
    (directory / "merge-proof.json").write_text(json.dumps({**told, "base_model": str(model)}))
    offered, _ = serve.offer(str(directory), adapter=False, force=False)
    assert (offered.name, offered.model, offered.adapter) == ("r-adapter", model, directory)
    told = {**told, "base_model": str(model), "base_digest": models.fingerprint(str(model))}
    (directory / "merge-proof.json").write_text(json.dumps(told))
    assert serve.offer(str(directory), adapter=False, force=False)[0].model == model
    (model / "model.safetensors").write_bytes(b"another")
    with pytest.raises(Refused, match="is not the base model that was proven"):
        serve.offer(str(directory), adapter=False, force=False)
    assert serve.offer(str(directory), adapter=False, force=True)
    model.rename(model.with_name("gone"))
    with pytest.raises(BadInput, match="does not exist"):
        serve.offer(str(directory), adapter=False, force=False)


def test_examples_survive_the_shell(model):
    name = 'it\'s $(touch x) `y` "z"'
    server = serve.Server("http://h:1", serve.Command([], name), 1, Path("l"), lambda: None)
    curl, _ = serve.examples(server, chat=True)
    assert shlex.split(serve.test_line(server))[4] == name
    body = shlex.split(curl)[-1]
    assert json.loads(body)["model"] == name


def test_examples_take_the_key_from_the_environment(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    server = serve.Server("http://h:1", serve.Command([], "m"), 1, Path("l"), lambda: None)
    for text in serve.examples(server, chat=True):
        assert "VLLM_API_KEY" in text
        assert "s3cret" not in text
