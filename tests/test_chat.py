"""A conversation: what is remembered, the commands, streaming; once in a real terminal."""

import json
import shutil
import time

import pytest
from typer.testing import CliRunner

import tiny
from fakes.processes import LEVIATHAN, wait_for
from fakes.terminal import Terminal
from leviathan import chat, cli, generation, interview, models, streaming
from leviathan.errors import BadInput

# What comes before is in the prompt: an answer shows whether it was told again.
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
GREEDY = streaming.Sampling()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("chat")
    tiny.write_model(directory / "base", tiny.write_rows(directory / "rows.jsonl", 60))
    (directory / "base/chat_template.jinja").write_text(TEMPLATE)
    weights = directory / "base/model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"][: len(tiny.SPECIAL)] = 0  # it never stops by itself
    save_file(tensors, weights, {"format": "pt"})
    return directory / "base"


@pytest.fixture(scope="module")
def tuned(base):
    """A model with an adapter that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = models.Model(models.Source(str(base))).model
    torch.manual_seed(7)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"],
                        init_lora_weights=False)  # fmt: skip
    adapter = base.parent / "adapter"
    get_peft_model(model, config).save_pretrained(adapter)
    for file in [*base.glob("tokenizer*"), base / "chat_template.jinja"]:
        shutil.copy(file, adapter)
    return models.Model(models.Source(str(base), adapter))


def user(text):
    return [{"role": "user", "content": text}]


def whole(model, text, limit):
    case = {"name": "n", "prompt": text, "checks": [{"max_length": 9}], "max_new_tokens": limit}
    return generation.answers(model, [generation.prompts.Case.model_validate(case)])[0].text


def test_the_pieces_of_a_stream_are_the_answer(tuned):
    pieces = list(streaming.stream(tuned, user("alpha beta"), 30, GREEDY))
    assert len(pieces) > 5
    assert "".join(pieces).strip() == whole(tuned, "alpha beta", 30)


def test_a_stop_token_ends_it_and_is_not_shown(tuned):
    """Also one that the tokenizer does not call special."""
    words = tuned.tokenizer.convert_ids_to_tokens
    said = whole(tuned, "alpha beta", 30)
    ids = tuned.tokenizer(said, add_special_tokens=False)["input_ids"]
    place = next(at for at, token in enumerate(ids) if token not in ids[:at] and at > 3)
    told = tuned.model.generation_config.eos_token_id
    tuned.model.generation_config.eos_token_id = [ids[place]]
    try:
        got = "".join(streaming.stream(tuned, user("alpha beta"), 30, GREEDY))
        assert got.strip() == whole(tuned, "alpha beta", 30)
        assert tuned.tokenizer.decode([ids[place]]) not in got[-3:], words(ids[place])
    finally:
        tuned.model.generation_config.eos_token_id = told


def test_characters_come_whole_and_lines_go_on(tuned):
    text = "alpha\n\n  beta ü 中 😀\ngamma"
    told = streaming._Told(tuned)
    told.put(tuned.token_ids("the prompt"))
    for token in tuned.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][
        0
    ]:
        told.put(token[None])
    told.end()
    pieces = []
    while not told.pieces.empty():
        pieces.append(told.pieces.get())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_seed_repeats_what_was_sampled(tuned):
    def sampled(seed):
        chosen = streaming.Sampling(1.5, 0.95, seed)
        return "".join(streaming.stream(tuned, user("alpha"), 20, chosen))

    assert sampled(1) == sampled(1) != sampled(2)


def test_closing_a_stream_ends_its_generation(tuned):
    pieces = streaming.stream(tuned, user("alpha"), 100_000, GREEDY)
    next(pieces)
    pieces.close()  # returns only when the thread has ended


def test_the_base_answers_while_it_is_asked_and_no_longer(tuned):
    partner = interview.Loaded(tuned, 20, GREEDY)
    before = "".join(partner.stream(user("mu nu"), of_base=False))
    based = "".join(partner.stream(user("mu nu"), of_base=True))
    with tuned.without_adapter():
        assert based.strip() == whole(tuned, "mu nu", 20)
    stopped = partner.stream(user("mu nu"), of_base=True)
    next(stopped)
    stopped.close()
    assert "".join(partner.stream(user("mu nu"), of_base=False)) == before != based


def test_what_fails_while_generating_is_not_swallowed(tuned):
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(streaming._pieces(tuned, tuned.token_ids("alpha"), -5, GREEDY))


def test_earlier_turns_are_told_again_until_reset():
    talk = chat.Chat(has_base=True, remembers=True)
    talk.keep("a", "b")
    assert [m["content"] for m in talk.asked("c")] == ["a", "b", "c"]
    assert talk.command("/system be brief") == "system: be brief"
    assert [(m["role"], m["content"]) for m in talk.asked("c")] == [
        ("system", "be brief"), ("user", "c"),
    ]  # fmt: skip
    talk.keep("c", "d")
    talk.command("/reset")
    assert len(talk.asked("e")) == 2
    talk.command("/system")
    assert talk.asked("e") == user("e")


def test_who_speaks():
    talk = chat.Chat(has_base=True, remembers=True)
    assert talk.voices == (False,)
    talk.command("/both")
    assert talk.voices == (False, True)
    talk.command("/base")
    assert talk.voices == (True,)
    talk.command("/tuned")
    assert talk.voices == (False,)


def test_without_a_template_nothing_is_remembered():
    talk = chat.Chat(has_base=False, remembers=False)
    talk.keep("a", "b")
    assert talk.asked("c") == user("c")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/base", "no adapter to switch off"),
        ("/both", "no adapter to switch off"),
        ("/system x", "no chat template"),
        ("/bse", "/bse is no command"),
        ("/", "/ is no command"),
    ],
)
def test_a_command_that_makes_no_sense_changes_nothing(line, problem):
    talk = chat.Chat(has_base=False, remembers=False)
    with pytest.raises(BadInput, match=problem):
        talk.command(line)
    assert (talk.voice, talk.system, talk.ended) == ("tuned", "", False)


def infer(base, *arguments, stdin=""):
    return CliRunner().invoke(cli.app, ["infer", str(base), *arguments], input=stdin)


def test_one_question_by_standard_input(base):
    done = infer(base, "--json", "--system", "s", "--max-new-tokens", "8", stdin="alpha beta\n")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [m["content"] for m in told["messages"]] == ["s", "alpha beta"]
    assert list(told["answers"]) == ["tuned"]
    assert (told["temperature"], told["top_p"], told["seed"]) == (0.0, 1.0, 0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-q", "x", "--base"], "has no adapter to switch off"),
        (["-q", "x", "--base", "--compare"], "--base and --compare together"),
        (["-q", "x", "--model", "m"], "--model names a server's model"),
        (["-q", " "], "nothing to ask"),
        ([], "nothing to ask"),
    ],
)
def test_bad_input(base, arguments, problem):
    done = infer(base, *arguments)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_conversation_in_a_real_terminal(base):
    """Answers come; Ctrl+C ends one that is long and not the conversation; Ctrl+D ends that."""
    command = [LEVIATHAN, "infer", str(base), "--max-new-tokens", "480"]
    with Terminal(command, base, "100x30") as terminal:
        terminal.until("/help lists the commands", ">", seconds=60)
        terminal.press("/help", "Enter")
        terminal.until("forgets what was said")
        terminal.press("/base", "Enter")
        terminal.until("no adapter to switch off")
        terminal.press("alpha beta", "Enter")
        terminal.until("> alpha beta")
        time.sleep(0.3)
        terminal.press("C-c")
        terminal.until("…", seconds=30)
        terminal.press("/reset", "Enter")
        terminal.until("forgot what was said")
        terminal.press("C-c")
        terminal.until("/quit or Ctrl+D ends")
        assert not terminal.ended
        terminal.press("C-d")
        wait_for(lambda: terminal.ended)
        assert "Traceback" not in terminal.printed
