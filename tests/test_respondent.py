"""lm-eval's tasks put to a server: the scores are those of the model itself, or it says why not."""

import json
import math
import shutil
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import tiny
from leviathan import harness, models
from leviathan.endpoint import Declined, Endpoint
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.harness import Manner

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
UNTIL = "e"

COMMON = """\
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
"""
TASKS = {
    "choose": """\
output_type: multiple_choice
doc_to_text: "{{question}} "
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "say": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "chat": """\
output_type: generate_until
fewshot_split: test
fewshot_config: {sampler: first_n}
num_fewshot: 1
doc_to_text: "{{question}}"
doc_to_target: "{{chatted}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "read": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity, aggregation: weighted_perplexity}]
""",
}


class Handler(BaseHTTPRequestHandler):
    """Answers as the tiny model would; ``mode`` is what it cannot."""

    model: models.Model
    mode = ""
    asked: list[tuple[str, dict]] = []  # noqa: RUF012
    lock = threading.Lock()

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, asked))
        if self.mode == "refuses" and "logprobs" in asked:
            self.reply({"error": {"message": "unknown field logprobs"}}, 422)
        elif self.mode == "breaks" and len(self.asked) > 3:
            self.reply({"error": {"message": "out of memory"}}, 500)
        else:
            with self.lock:
                self.answer(asked)

    def answer(self, asked):
        text = asked.get("prompt")
        if "messages" in asked:
            text = rendered(asked["messages"])
        ids = self.model.tokenizer(text, return_tensors="pt")["input_ids"]
        made, _ = self.model.greedy(ids, asked["max_tokens"])
        said = self.model.tokenizer.decode(made)
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        if asked.get("echo") and self.mode != "deaf":
            choice["logprobs"] = self.scored([*ids[0].tolist(), *made])
            said = text + said
        message = {"role": "assistant", "content": said}
        choice |= {"message": message} if "messages" in asked else {"text": said}
        usage = {"prompt_tokens": ids.shape[1], "completion_tokens": len(made),
                 "total_tokens": ids.shape[1] + len(made)}  # fmt: skip
        self.reply({"id": "1", "object": "text_completion", "created": 1, "model": "m",
                    "choices": [choice], "usage": usage})  # fmt: skip

    def scored(self, ids):
        """As vLLM tells them: nothing of the first, and the likeliest beside each."""
        import torch

        told = self.model.logits(torch.tensor([ids])).log_softmax(-1)
        names = [self.model.tokenizer.decode([token]) for token in ids]
        values = [None, *(float(told[at, token]) for at, token in enumerate(ids[1:]))]
        tops = [None, *({names[at + 1]: values[at + 1], "<top>": float(told[at].max())}
                        for at in range(len(ids) - 1))]  # fmt: skip
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops,
                "text_offset": [0] * len(ids)}  # fmt: skip

    def reply(self, document, code=200):
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def rendered(messages):
    """As the template does."""
    return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant:"


def greedy(model, text):
    """The model's own answer, up to the text that ends it."""
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    return model.tokenizer.decode(model.greedy(ids, 12)[0]).partition(UNTIL)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("asked")
    corpus = tiny.write_rows(directory / "corpus.jsonl", 60)
    tiny.write_model(directory / "base", corpus)
    config = directory / "base/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return models.Model(models.Source(str(directory / "base")))


@pytest.fixture(scope="module")
def tasks(model, tmp_path_factory):
    """Ten rows, of whose answers every other one is right: by the model itself."""
    directory, rows = tmp_path_factory.mktemp("tasks"), []
    for at in range(10):
        question = f"Repeat: {' '.join(tiny.WORDS[at : at + 3])}"
        right = greedy(model, question)
        rows.append({"question": question, "answer": at % 3,
                     "choices": [tiny.WORDS[(at + n) % 15] for n in (3, 7, 11)],
                     "said": right if at % 2 else f"{right}?"})  # fmt: skip
    shown = {"role": "user", "content": rows[0]["question"]}
    rows[0]["chatted"] = "alpha"
    for at, row in enumerate(rows[1:], 1):
        turns = [shown, {"role": "assistant", "content": "alpha"},
                 {"role": "user", "content": row["question"]}]  # fmt: skip
        right = greedy(model, rendered(turns))
        row["chatted"] = right if at % 2 else f"{right}?"
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        common = COMMON.replace("ROWS", str(data))
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return directory


@pytest.fixture
def url(model, monkeypatch):
    monkeypatch.setattr(Handler, "model", model, raising=False)
    monkeypatch.setattr(Handler, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def put(target, tasks, names, **manner):
    listed = [(name, None) for name in names.split(",")]
    scores = harness.run(target, listed, tasks, Manner(4, **manner), lambda _: None)
    return {score.task: score for score in scores}


def test_a_server_scores_as_its_model_does(model, tasks, url):
    served = put(Endpoint(url), tasks, "choose,say,read")
    texts = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    assert served["say"].value == 0.5
    assert served["choose"].value == pytest.approx(right_choices(model, texts))
    assert 0 < served["choose"].value < 1
    assert (served["choose"].base_value, served["choose"].rows) == (None, 10)
    assert served["read"].value == pytest.approx(perplexity(model, texts), rel=1e-4)


def likelihoods(model, text, begin):
    """log p of each token of a text from its ``begin``-th on."""
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    told = model.logits(ids).log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])
    return told[begin - 1 :]


def right_choices(model, rows):
    """Share of rows whose right choice is the likeliest, counted without lm-eval."""
    right = 0
    for row in rows:
        begin = len(model.tokenizer(row["question"])["input_ids"])
        told = [
            float(likelihoods(model, f"{row['question']}  {choice}", begin).sum())
            for choice in row["choices"]
        ]  # lm-eval puts a space between, and the task has one already
        right += told.index(max(told)) == row["answer"]
    return right / len(rows)


def perplexity(model, rows):
    """Per byte, over all rows; the first token of each is not counted."""
    total = sum(float(likelihoods(model, row["question"], 1).sum()) for row in rows)
    return math.exp(-total / sum(len(row["question"].encode()) for row in rows))


def test_a_conversation_is_the_servers_to_render_and_a_limit_is_kept(model, tasks, url, run_cli):
    done = run_cli("test", url, "--tasks", "chat", "--task-path", str(tasks), "--chat-template",
                   "--limit", "6", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (served,) = json.loads(done.stdout)["lm_eval"]
    (path, asked), *others = Handler.asked
    assert (path, len(others)) == ("/v1/chat/completions", 5)
    assert [turn["role"] for turn in asked["messages"]] == ["user", "assistant", "user"]
    assert (asked["seed"], asked["stop"], asked["temperature"]) == (harness.SEED, [UNTIL], 0)
    own = put(model.source, tasks, "chat", chat_template=True, limit=6)
    assert (served["rows"], served["value"]) == (6, own["chat"].value)
    assert served["value"] == 0.5


def test_a_server_without_log_probabilities_is_one_line(tasks, url, monkeypatch):
    monkeypatch.setattr(Handler, "mode", "deaf")
    with pytest.raises(Refused, match="of a prompt's 29 tokens it told 0") as caught:
        put(Endpoint(url), tasks, "say,choose,read")
    assert caught.value.message.endswith("these tasks need them: choose, read")
    assert "\n" not in str(caught.value)
    assert len(Handler.asked) == 1  # nothing was put in vain


def test_what_a_server_tells_of_a_text(model, url, monkeypatch):
    found = Endpoint(url).score("alpha beta")
    assert len(found.logprobs) == Endpoint(url).count("alpha beta") > 1
    assert found.logprobs[0] is None
    assert found.logprobs[1:] == pytest.approx(likelihoods(model, "alpha beta", 1)[:, 0].tolist())
    assert False in found.likeliest
    monkeypatch.setattr(Handler, "mode", "refuses")
    with pytest.raises(Declined, match=r"422 .*unknown field logprobs"):
        Endpoint(url).score("alpha beta")


def test_an_error_of_the_server_is_told_and_not_scored(tasks, url, monkeypatch):
    monkeypatch.setattr(Handler, "mode", "breaks")
    with pytest.raises(LeviathanError, match=r"500 .*out of memory") as caught:
        put(Endpoint(url), tasks, "say")
    assert caught.value.exit_code == 1


def test_a_model_without_a_template_has_no_conversations(model, tmp_path):
    shutil.copytree(model.source.model, tmp_path / "plain")
    (tmp_path / "plain/chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "plain/tokenizer_config.json"
    told = json.loads(config.read_text())
    del told["chat_template"]
    config.write_text(json.dumps(told))
    with pytest.raises(BadInput, match="plain has no chat template"):
        harness._Loaded(asdict(models.Source(str(tmp_path / "plain"))), Manner(chat_template=True))


def test_a_conversation_has_no_log_probabilities(tasks, url):
    with pytest.raises(BadInput, match=r"tells log-probabilities of a conversation.*: choose$"):
        put(Endpoint(url), tasks, "choose", chat_template=True)
    assert Handler.asked == []


def test_options_of_tasks_need_tasks(run_cli, tasks, url):
    for option in (("--limit", "3"), ("--chat-template",), ("--task-path", str(tasks))):
        done = run_cli("test", url, "--suite", "demo", *option)
        assert done.exit_code == 2
        assert f"{option[0]} without --tasks" in done.stderr
