"""How rows will be read: by Leviathan's own rendering, by a fake of Axolotl's process, on screen."""

import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from leviathan import cli_preview, inspection, preview, schema, ui
from leviathan.errors import BadInput
from leviathan.layers import DATASET_FORMATS
from leviathan.preview import Preview, Previewed, Token

ROWS = {
    "alpaca": {"instruction": "alpha", "input": "", "output": "beta 日"},
    "chat": {"messages": [{"role": "user", "content": "alpha"},
                          {"role": "assistant", "content": "beta 日"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "alpha"},
                                   {"from": "gpt", "value": "beta 日"}]},
    "completion": {"text": "beta 日"},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    return tiny.write_tokenizer(directory, tiny.write_rows(directory / "rows.jsonl", 50))


@pytest.fixture
def tree(base):
    return {"base_model": str(base), "sequence_len": 256, "datasets": [{"type": "alpaca"}],
            "chat_template": "chatml", "eot_tokens": ["<|im_end|>"]}  # fmt: skip


@pytest.fixture
def no_axolotl(monkeypatch):
    monkeypatch.setattr(schema, "installed_version", lambda: None)


@pytest.fixture
def axolotl(tmp_path, monkeypatch):
    """A process that answers instead of Axolotl: a shell script that is given the answer's path."""

    def answers(script):
        file = tmp_path / "python"
        file.write_text(f'#!/bin/sh\nquestion="$3" answer="$4"\n{script}\n')
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    monkeypatch.setattr(schema, "installed_version", lambda: "0.0")
    return answers


def read(tree, *rows):
    with preview.start(tree, rows) as pending:
        return pending.result()


def text(row, *, trained=None):
    return "".join(t.text for t in row.tokens if trained in {None, t.trained})


# --- by Leviathan alone -----------------------------------------------------------------


@pytest.mark.parametrize("row_format", ROWS)
def test_every_format_without_axolotl(tree, no_axolotl, row_format):
    found = read({**tree, "datasets": [DATASET_FORMATS[row_format]]}, ROWS[row_format])
    (row,) = found.rows
    assert (found.by, found.reason, found.agrees) == ("leviathan", "axolotl is not installed", None)
    end = "<|im_end|>" if "messages" in str(DATASET_FORMATS[row_format]) else "<|endoftext|>"
    assert text(row, trained=True) == f"beta 日{end}"
    assert row.left == (len(row.tokens),)
    assert row.trained + row.masked == len(row.tokens)
    assert {t.text for t in row.tokens if t.special} <= {
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    }
    asked = {"alpaca": "alpha\n\n### Response:\n", "completion": ""}
    assert text(row, trained=False).endswith(asked.get(row_format, "<|im_start|>assistant\n\n"))


@pytest.mark.parametrize(("entry", "settings", "tokens", "left", "problem"), [
    ("completion", {}, 602, (256, 256, 90), ""),
    ("completion", {"min_sample_len": 91}, 602, (256, 256), ""),
    ("alpaca", {}, 715, (), ""),
    ("alpaca", {"excess_length_strategy": "truncate"}, 715, (256,), ""),
    ("alpaca", {"excess_length_strategy": "raise"}, 715, (), "715 tokens, sequence_len is 256"),
    ("alpaca", {"sequence_len": 715}, 715, (715,), ""),
])  # fmt: skip
def test_what_is_left_of_a_long_row(tree, no_axolotl, entry, settings, tokens, left, problem):
    words = "alpha\n" * 300
    long = {"text": words + "al", "instruction": "x", "output": words}
    found = read({**tree, **settings, "datasets": [{"type": entry}]}, long)
    (row,) = found.rows
    assert (len(row.tokens), row.left, row.problem) == (tokens, left, problem)
    assert row.trained + row.masked == sum(left)


def test_a_bad_row_is_told_and_the_others_are_read(tree, no_axolotl):
    found = read(tree, {"instruction": "a", "output": 3}, {"instruction": "a", "output": "b"})
    assert [row.problem for row in found.rows] == [
        "'output' holds int, not text; every row needs text", ""
    ]  # fmt: skip
    assert not found.rows[0].tokens


@pytest.mark.parametrize(("change", "reason"), [
    ({"base_model": "no/where"}, "axolotl is not installed; no tokenizer of no/where here"),
    ({"datasets": [{"type": "chat_template", "chat_template": "nonsense"}]},
     "axolotl is not installed; chat_template 'nonsense' is not one Axolotl knows; "),
    ({"rl": "dpo"}, "rl is set: only supervised fine-tuning is shown"),
])  # fmt: skip
def test_where_nothing_can_be_shown_it_says_why(tree, no_axolotl, change, reason):
    found = read({**tree, **change}, ROWS["alpaca"])
    assert (found.rows, found.agrees) == ((), None)
    assert found.reason.startswith(reason)


def test_no_rows(tree):
    assert read(tree) == Preview((), "leviathan", "there are no rows", 256)


def test_without_a_tokenizer_axolotl_is_not_asked(tree, axolotl):
    axolotl("touch started")
    found = read({**tree, "base_model": "no/where"}, ROWS["alpaca"])
    assert found.reason == "no tokenizer of no/where here"


def test_a_size_that_is_none_is_the_users_error(tree):
    with pytest.raises(BadInput, match="sequence_len is 0"):
        preview.start({**tree, "sequence_len": 0}, [])


# --- by Axolotl's process ---------------------------------------------------------------


def answer_of(tree, row, change=lambda tokens: tokens):
    """The answer that agrees with Leviathan, as a script that gives it; ``change`` spoils it."""
    (own,), reason = preview._rendered(tree, [row], tree["sequence_len"])
    assert not reason
    tokens = change([[t.text, t.id, t.trained, t.special] for t in own.tokens])
    document = {"rows": [{"tokens": tokens, "left": [len(tokens)]}]}
    return f"cat > \"$answer\" <<'END'\n{json.dumps(document)}\nEND"


def masked(tokens):
    return [[text, number, False, special] for text, number, _, special in tokens]


@pytest.mark.parametrize(("change", "agrees"), [
    (lambda tokens: tokens, True), (masked, False), (lambda tokens: tokens[1:], False),
    (lambda tokens: [["x", 9, False, False], *tokens[1:]], False),
])  # fmt: skip
def test_both_are_compared(tree, axolotl, change, agrees):
    axolotl(answer_of(tree, ROWS["alpaca"], change))
    found = read(tree, ROWS["alpaca"])
    assert (found.by, found.reason) == ("axolotl 0.0", "")
    assert (found.agrees, found.rows[0].agrees) == (agrees, agrees)


def test_what_is_left_is_compared(tree, axolotl):
    axolotl(answer_of(tree, ROWS["alpaca"]).replace('"left": [', '"left": [5, '))
    assert read(tree, ROWS["alpaca"]).agrees is False


def test_of_a_row_too_long_what_is_behind_the_limit_is_not_compared(tree, axolotl):
    tree["sequence_len"] = 130
    row = {"instruction": "a", "output": "alpha beta " * 60}
    for cut, agrees in ((131, True), (129, False)):
        script = answer_of(tree, row, lambda tokens, cut=cut: tokens[:cut])
        axolotl(script.replace(f'"left": [{cut}]', '"left": []'))
        assert read(tree, row).agrees is agrees


def test_axolotl_gets_the_tree_and_the_rows(tree, axolotl, tmp_path):
    axolotl(f'cp "$question" {tmp_path}/asked; env > {tmp_path}/environment; exit 3')
    read(tree, ROWS["alpaca"])
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked == {"tree": tree, "rows": [ROWS["alpaca"]]}
    environment = (tmp_path / "environment").read_text().splitlines()
    assert {"AXOLOTL_DO_NOT_TRACK=1", "HF_HUB_OFFLINE=1", "CUDA_VISIBLE_DEVICES="} <= set(
        environment
    )


@pytest.mark.parametrize(("script", "reason"), [
    ("echo one >&2; printf '10%%\\r two\\n\\n' >&2; exit 3", "axolotl's process ended with code 3: two"),
    ("kill -9 $$", "axolotl's process ended with code -9"),
    ('echo "{" > "$answer"', "axolotl's process ended with code 0"),
    ("echo '{\"problem\": \"axolotl refuses it\"}' > \"$answer\"", "axolotl refuses it"),
    ("exec sleep 60", "axolotl did not answer within 1 s"),
])  # fmt: skip
def test_where_axolotl_does_not_answer_leviathan_does(tree, axolotl, monkeypatch, script, reason):
    monkeypatch.setattr(preview, "_LONGEST_S", 1.0)
    axolotl(script)
    found = read(tree, ROWS["alpaca"])
    assert (found.by, found.reason, found.agrees) == ("leviathan", reason, None)
    assert text(found.rows[0], trained=True) == "beta 日<|endoftext|>"


def interrupted(tree, pid):
    """Ctrl+C while the child runs."""
    with preview.start(tree, [ROWS["alpaca"]]):
        until = time.monotonic() + 10
        while not pid.exists() or not pid.read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        raise KeyboardInterrupt


def test_the_caller_goes_on_meanwhile_and_nothing_is_left(tree, axolotl, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    axolotl(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted(tree, tmp_path / "pid")
    assert time.monotonic() - began < 10
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()
    assert not list(tmp_path.glob("leviathan-preview-*"))


def test_a_row_refused_for_what_others_have_is_explained(tree, axolotl):
    problem = "TypeError: no text"
    rows = [ROWS["chat"], {**ROWS["chat"], "system": "be kind"}]
    document = {"rows": [{"problem": problem}, {"problem": problem}]}
    axolotl(f"echo '{json.dumps(document)}' > \"$answer\"")
    found = read({**tree, "datasets": [DATASET_FORMATS["chat"]]}, *rows)
    assert [row.problem for row in found.rows] == [
        f"{problem} (other rows have 'system', this one has not: Axolotl gives it one without text)",
        problem,
    ]
    assert found.agrees is False  # Leviathan reads each row by itself


def test_the_first_rows_that_can_be_parsed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\nno JSON\n{"a": 2}\n{"a": 3}\n')
    assert [(row.number, row.line) for row in inspection._first(path, 2)] == [
        (1, b'{"a": 1}\n'), (4, b'{"a": 2}\n'),
    ]  # fmt: skip
    assert len(inspection._first(path, 9)) == 3
    assert inspection._first(path, 0) == []


# --- on screen --------------------------------------------------------------------------


SHOWN = Preview(
    (
        Previewed((Token("<s>", 1, False, True), Token("Say it:\n\n", 2, False),
                   Token("it,\n", 3, True), Token("twice", 4, True), Token("</s>", 5, True, True)),
                  (5,), agrees=True),
        Previewed(problem="KeyError: 'instruction'", agrees=True),
        Previewed((Token("a", 1, False),), (1,), agrees=True),
        Previewed((Token("a", 1, True),) * 30, (), agrees=True),
        Previewed((Token("a", 1, True),), (), agrees=True),
        Previewed((), (), agrees=True),
        Previewed((Token("a", 1, True),) * 30, (20,), agrees=True),
        Previewed((Token("a", 1, True),) * 30, (20, 10), agrees=True),
    ),
    "axolotl 0.0", "", 20,
)  # fmt: skip
SCREEN = """
As axolotl 0.0 reads the first 8 rows
what is trained on stands between ⟦ and ⟧, the rest is masked

rows:1: 5 tokens, 3 trained, 2 masked
  <s>Say it:↵↵
  ⟦it,↵
  twice</s>⟧

rows:2: refused
  a training would end here: KeyError: 'instruction'

rows:3: 1 token, 0 trained, 1 masked
  nothing in it is trained on
  a

rows:4: 30 tokens
  dropped: longer than sequence_len 20
  ⟦aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa⟧

rows:5: 1 token
  dropped: too short
  ⟦a⟧

rows:6: 0 tokens
  dropped: it has no token

rows:7: 30 tokens, 20 trained, 0 masked
  cut to its first 20 tokens
  ⟦aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa⟧

rows:8: 30 tokens, 30 trained, 0 masked
  split into 2 rows of up to 20 tokens
  ⟦aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa⟧

leviathan reads these rows the same: tokens, mask, and what is cut or dropped
"""
PLACES = [f"rows:{number}" for number in range(1, 9)]


def screen(monkeypatch, found, places=PLACES, **options):
    """What is printed, out and err together."""
    file = io.StringIO()
    for name in ("_out", "_err"):
        console = Console(file=file, highlight=False, soft_wrap=True, width=80, **options)
        monkeypatch.setattr(ui, name, console)
    cli_preview.show(found, places[: len(found.rows)])
    return file.getvalue()


def test_the_screen_in_a_pipe(monkeypatch):
    assert screen(monkeypatch, SHOWN) == SCREEN


def test_the_screen_in_colour(monkeypatch):
    first = Preview(SHOWN.rows[:1], "axolotl 0.0", "", 20)
    drawn = screen(monkeypatch, first, force_terminal=True, color_system="standard")
    assert "\x1b[1;32mgreen\x1b[0m is trained on" in drawn
    assert "  \x1b[4m<s>\x1b[0mSay it:↵↵\n" in drawn
    assert "  \x1b[1;32mit,↵\x1b[0m\n  \x1b[1;32mtwice\x1b[0m\x1b[1;4;32m</s>\x1b[0m\n" in drawn
    assert "⟦" not in drawn
    drawn = screen(monkeypatch, first, force_terminal=True, no_color=True)
    assert "  <s>Say it:↵↵\n  ⟦it,↵\n  twice</s>⟧\n" in drawn


def test_long_rows_wrap_and_say_what_is_left_out(monkeypatch):
    tokens = tuple(Token("word ", n, n >= 900) for n in range(1800))
    found = Preview((Previewed(tokens, (1800,)),), "leviathan", "axolotl is not installed", 2048)
    lines = screen(monkeypatch, found, ["rows:1"]).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 30
    gaps = [line for line in lines if line.startswith("  ⋯")]
    assert [line.split()[2:] for line in gaps] == [["more", "masked", "tokens", "⋯"],
                                                   ["more", "trained", "tokens", "⋯"]]  # fmt: skip
    assert lines[1] == "As leviathan itself reads the first row"
    assert lines[-1] == "axolotl has not read them: axolotl is not installed"


@pytest.mark.parametrize(("found", "said"), [
    (Preview((), "leviathan", "no tokenizer of x here"),
     "warning: how rows are read cannot be shown: no tokenizer of x here\n"),
    (Preview((Previewed(agrees=False), Previewed(agrees=True)), "axolotl 0.0"),
     "warning: leviathan reads rows:1 otherwise; what plan and data stats say is an estimate\n"),
    (Preview((Previewed(),), "axolotl 0.0"), "no tokenizer.json here to count by\n"),
])  # fmt: skip
def test_what_is_said_in_the_end(monkeypatch, found, said):
    assert screen(monkeypatch, found).endswith(said)


def test_the_document(tree, no_axolotl):
    found = preview.as_document(
        read({**tree, "datasets": [{"type": "completion"}]}, {"text": "al"})
    )
    assert json.loads(json.dumps(found)) == {
        "by": "leviathan", "reason": "axolotl is not installed", "agrees": None, "sequence_len": 256,
        "rows": [{"tokens": 2, "trained": 2, "masked": 0, "left": [2], "problem": "", "agrees": None,
                  "pieces": [["al", found["rows"][0]["pieces"][0][1], True, False],
                             ["<|endoftext|>", 0, True, True]]}],
    }  # fmt: skip
