"""Tokenizers of our own making: what they know, that they come out the same, that files are kept."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from leviathan import corpus, formats, plaintext, vocabulary
from leviathan.errors import BadInput
from leviathan.vocabulary import SPECIAL_TOKENS, Wish

COMPLETION = formats.Shape("completion", "text")
WORDS = ("the leviathan swims below the keel", "a whale is no fish", "ahoy, the sea is wide")


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def prose(path: Path, rows: int = 300) -> Path:
    return write(path, [f"{WORDS[n % 3]} {n % 7} {WORDS[n % 2]}" for n in range(rows)])


def saved(learned: vocabulary.Learned, directory: Path):
    vocabulary.write(learned, directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_transformers_loads_it_and_text_survives(tmp_path, kind):
    wish = Wish(prose(tmp_path / "c.jsonl"), COMPLETION, kind, 400, ("<|tool|>",))
    loaded = saved(vocabulary.learn(wish), tmp_path / "tokenizer")
    assert len(loaded) == 400
    assert [loaded.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.bos_token_id) == (0, 1, None)
    text = "the whale swims,\nahoy"
    ids = loaded(text)["input_ids"]
    assert loaded.decode(ids) == text
    assert len(ids) == (len(text) if kind == "characters" else len(ids))
    # What the recipe names is one token, and is left out where special tokens are.
    turn = loaded("<|im_start|>a<|im_end|><|tool|>")["input_ids"]
    assert turn[0] == 2
    assert turn[2:] == [3, 4]
    assert loaded.decode(turn, skip_special_tokens=True) == "a"


def test_chatml_is_its_template(tmp_path):
    loaded = saved(
        vocabulary.learn(Wish(prose(tmp_path / "c.jsonl"), COMPLETION, "bpe", 300)), tmp_path / "t"
    )
    turns = [{"role": "user", "content": "ahoy"}]
    shown = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nahoy<|im_end|>\n<|im_start|>assistant\n"


def test_every_byte_has_a_token(tmp_path):
    words = vocabulary.learn(Wish(prose(tmp_path / "c.jsonl"), COMPLETION, "bpe", 300)).words
    strange = "žluťoučký 海 \x00 🐋"
    assert words.decode(words.encode(strange).ids) == strange


def test_characters_know_all_of_the_corpus_and_nothing_else(tmp_path):
    path = write(tmp_path / "c.jsonl", ["abc", "abd"] + ["ab"] * 200 + ["ž"])
    learned = vocabulary.learn(Wish(path, COMPLETION, "characters", 32))
    assert learned.used == len(SPECIAL_TOKENS) + 1 + len("abcdž\n")
    assert learned.unknown_share == 0
    assert learned.words.encode("abxž").tokens == ["a", "b", "<|unknown|>", "ž"]
    assert learned.words.get_vocab_size() == 32


def test_the_rarest_characters_give_way(tmp_path):
    path = write(tmp_path / "c.jsonl", ["aaaa", "bbb", "cc", "d"])
    learned = vocabulary.learn(Wish(path, COMPLETION, "characters", 8))
    known = set(learned.words.get_vocab()) - {*SPECIAL_TOKENS, "<|unknown|>"}
    assert known == {"\n", "a", "b"}
    assert learned.unknown_share == pytest.approx(3 / 11)  # c, c, d of all and a line feed


def test_every_format_is_read_and_packed_files_too(tmp_path):
    chat = {"messages": [{"role": "user", "content": "qqq"}, {"role": "assistant", "content": "www"}],
            "id": "zzz"}  # fmt: skip
    rows = {
        "chat": (chat, formats.Shape("chat", "messages"), set("qwuserainto")),
        "alpaca": ({"instruction": "qq", "input": "", "output": "ww", "id": "z"},
                   formats.Shape("alpaca"), set("qw")),
        "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "w"}]},
                     formats.Shape("sharegpt", "conversations", "from", "value"), set("qwuserainto")),
    }  # fmt: skip
    for name, (row, shape, letters) in rows.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
        learned = vocabulary.learn(Wish(path, shape, "characters", 64))
        known = {t for t in learned.words.get_vocab() if len(t) == 1} - {"\n"}
        assert known <= letters | set("system")
        assert {"q", "w"} <= known
        assert "z" not in known


def test_bytes_per_token_is_of_rows_not_learned_from(tmp_path):
    learned = vocabulary.learn(Wish(prose(tmp_path / "c.jsonl"), COMPLETION, "bpe", 400))
    assert learned.held_out
    assert learned.bytes_per_token > 3
    few = vocabulary.learn(Wish(prose(tmp_path / "few.jsonl", 20), COMPLETION, "bpe", 300))
    assert not few.held_out


def test_a_limit_takes_rows_from_all_over_the_corpus(tmp_path):
    path = write(tmp_path / "c.jsonl", ["a" * 40] * 500 + ["b" * 40] * 500)
    learned = vocabulary.learn(Wish(path, COMPLETION, "characters", 32, chars=4000))
    assert learned.chars <= 4000 + 40
    assert {"a", "b"} <= set(learned.words.get_vocab())


def test_two_processes_learn_the_same(tmp_path):
    path = prose(tmp_path / "c.jsonl", 2000)
    program = (
        "import sys; from pathlib import Path; from leviathan import formats, vocabulary as v;"
        "w = v.Wish(Path(sys.argv[1]), formats.Shape('completion', 'text'), 'bpe', 500);"
        "v.write(v.learn(w), Path(sys.argv[2]))"
    )
    made = []
    for name in "ab":
        subprocess.run([sys.executable, "-c", program, path, tmp_path / name], check=True)
        made.append({f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())})
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("text", "kind", "size", "says"),
    [
        ('{"text": ""}\n', "bpe", 300, "has no text to learn from"),
        ('{"text": "a"}\n', "bpe", 200, "a vocabulary of 200 is too small"),
        ('{"text": "a"\n', "bpe", 300, "c.jsonl:1: not JSON"),
        ("", "characters", 300, "has no text to learn from"),
    ],
)
def test_bad_input(tmp_path, text, kind, size, says):
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(BadInput) as error:
        vocabulary.learn(Wish(tmp_path / "c.jsonl", COMPLETION, kind, size))
    assert says in error.value.line


# --- plain text --------------------------------------------------------------------------


def texts(path: Path) -> list[str]:
    return [corpus.parse_row(row)["text"] for row in corpus.read_rows(path)]


def test_plain_text_is_a_corpus(tmp_path):
    paragraph = "word " * 400 + "\n\n"
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + (paragraph * 20).encode())
    rows = texts(tmp_path / "book.txt")
    assert len(rows) == 4
    assert "".join(rows).split() == (paragraph * 20).split()
    assert all(8000 < len(row) < 12000 for row in rows[:-1])
    assert not corpus.is_plain(tmp_path / "book.txt")


def test_documents_end_where_they_say(tmp_path):
    (tmp_path / "b.txt").write_text("one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree")
    assert texts(tmp_path / "b.txt") == ["one\ntwo", "three"]


@pytest.mark.parametrize("character", ["a", "ž", "海", "🐋"])
def test_a_line_without_end_is_cut_between_characters(tmp_path, character):
    text = "x" + character * 1_200_000
    (tmp_path / "b.txt").write_text(text)
    rows = texts(tmp_path / "b.txt")
    assert "".join(rows) == text
    assert max(len(row.encode()) for row in rows) <= 64 << 10


def test_text_that_is_no_utf_8_is_told(tmp_path):
    (tmp_path / "b.txt").write_bytes("žluť".encode("latin2"))
    with pytest.raises(BadInput, match="row 1 is not UTF-8"):
        texts(tmp_path / "b.txt")


def test_a_readme_beside_shards_is_no_data(tmp_path):
    (tmp_path / "README.md").write_text("# read me")
    assert texts(tmp_path) == ["# read me"]
    write(tmp_path / "a.jsonl", ["row"])
    assert texts(tmp_path) == ["row"]


def test_rows_of_json_in_a_text_file_stay_rows(tmp_path):
    write(tmp_path / "rows.txt", ["row"])
    assert texts(tmp_path / "rows.txt") == ["row"]
    assert corpus.is_plain(tmp_path / "rows.txt")


def test_blank_text_is_no_row():
    assert list(plaintext.rows([b"\n", b"  \n", b"<|endoftext|>\n", b"a\n"])) == [b"a"]
