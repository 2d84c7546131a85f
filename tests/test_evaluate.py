"""The suite put to an OpenAI-compatible server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from leviathan import evaluate, interview, streaming
from leviathan.errors import BadInput, LeviathanError

ASKED: list[dict] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._reply({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ASKED.append(asked)
        said = asked["messages"][-1]["content"]
        if asked.get("stream"):
            self._stream([*said.split(), str(asked["seed"])])
            return
        why = "length" if said == "long" else "stop"
        message = {"role": "assistant", "content": f" {said}!\n"}
        self._reply({"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                     "choices": [{"index": 0, "finish_reason": why, "message": message}]})  # fmt: skip

    def _stream(self, pieces):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                     "choices": [{"index": 0, "delta": {"content": piece}}]}  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _reply(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_servers_answer_as_it_is_made(url):
    partner = interview.find(url, "best", "", 9, streaming.Sampling(seed=7), of_base=False)
    told = partner.stream([{"role": "user", "content": "a b c"}], of_base=False)
    assert list(told) == ["a", "b", "c", "7"]
    assert (partner.has_base, partner.remembers) == (False, True)
    with pytest.raises(BadInput, match="a server has no adapter"):
        interview.find(url, "best", "", 9, streaming.Sampling(), of_base=True)
    with pytest.raises(LeviathanError, match="does not answer"):
        interview.find("http://127.0.0.1:9", "best", "", 9, streaming.Sampling(), of_base=False)


def test_a_servers_answers_and_why_they_ended(tmp_path, url):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "cases:\n"
        "  - {name: a, prompt: short, checks: [{exact: short!}, {stops-by-itself: true}]}\n"
        "  - {name: b, prompt: long, checks: [{stops-by-itself: true}]}\n"
    )
    summary = evaluate.examine(evaluate.prepare(url, "best", str(suite), None))
    assert [case["passed"] for case in summary["cases"]] == [True, False]
    assert summary["base_pass_pct"] is None


def test_a_web_page_and_a_proxy(url, monkeypatch):
    from leviathan.endpoint import Endpoint

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # leads nowhere: not to this machine
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Endpoint(url).models() == ["m"]
    monkeypatch.setattr(Handler, "do_GET", lambda self: self._reply("<html>"))
    with pytest.raises(LeviathanError, match="is no OpenAI-compatible server"):
        Endpoint(url).models()


def test_a_rate_is_not_rounded_up_to_what_was_wanted(tmp_path, url, run_cli):
    """One of little weight fails: 99.975 % is shown as 100.0 and is not 100."""
    cases = [{"name": str(n), "prompt": "a", "checks": [{"exact": "a!"}]} for n in range(20)]
    cases.append({"name": "x", "prompt": "a", "checks": [{"exact": "b!"}], "weight": 0.005})
    (tmp_path / "s.yaml").write_text(json.dumps({"cases": cases}))
    asked = ("test", url, "--suite", str(tmp_path / "s.yaml"))
    done = run_cli(*asked, "--min-pass", "100%")
    assert done.exit_code == 3
    assert run_cli(*asked, "--min-pass", "99.9%").exit_code == 0
    done = run_cli("test", str(tmp_path), "--tasks", "x", "--min-pass", "bogus")
    assert done.exit_code == 2


def test_seed_and_temperature_reach_the_server_and_the_result(tmp_path, url, run_cli):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "defaults: {temperature: 0.8, checks: [{max-length: 99}]}\n"
        "cases:\n  - {name: a, prompt: a}\n  - {name: b, prompt: b, temperature: 0}\n"
    )
    asked = ("test", url, "--suite", str(suite), "--min-pass", "0", "--json")
    for more, seed in (((), 42), (("--seed", "7"), 7)):
        ASKED.clear()
        told = json.loads(run_cli(*asked, *more).stdout)
        assert told["seed"] == seed
        assert [case["temperature"] for case in told["cases"]] == [0.8, 0]
        sent = {a["messages"][-1]["content"]: (a["temperature"], a["seed"]) for a in ASKED}
        assert sent == {"a": (0.8, seed), "b": (0, seed)}
    assert run_cli(*asked, "--seed", "-1").exit_code == 2


def test_a_runs_answers_are_drawn_by_its_recipes_seed(crashed, monkeypatch):
    monkeypatch.chdir(crashed.project)
    (crashed.project / "s.yaml").write_text("cases: [{name: a, prompt: a, checks: [{exact: a}]}]")
    record = json.loads((crashed.run_dir / "run.json").read_text())
    record["settings"]["seed"] = 7
    (crashed.run_dir / "run.json").write_text(json.dumps(record))
    asked = (crashed.run_dir.name, "5", "s.yaml", None)
    assert evaluate.prepare(*asked).seed == 7
    assert evaluate.prepare(*asked, seed=0).seed == 0
