"""Models made from nothing: counts, weights, that the same request gives the same bits."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from leviathan import config, files, formats, layers, scratch, shards, survey
from leviathan.blueprint import NewModel
from leviathan.errors import BadInput, Refused

ROOT = Path(__file__).parents[1]
SMALL = {"layers": 2, "width": 64, "heads": 4, "vocab_size": 512, "context": 64}
ROWS = formats.Shape("completion", "text")


def silent(_text: str) -> None: ...


def corpus(path: Path, more: str = "") -> Path:
    lines = [f"the whale number {n} swims in sea {n % 7}{more}" for n in range(300)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def request(directory: Path, seed: int = 42, **changed) -> scratch.Request:
    path = directory / "c.jsonl"
    if not path.exists():
        corpus(path)
    return scratch.Request(NewModel(**{**SMALL, **changed}), path, ROWS, seed)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scratch")
    return scratch.make(directory / "base", request(directory), silent)


# --- shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "vocabulary", "millions"),
    # nanochat's own MLP has two matrices of four widths, as many weights as three of 8/3.
    [(12, 32, 85.0), (20, 65536, 565), (24, 32, 680), (64, 32, 12_952), (3, 32, 1.34)],
)
def test_a_depth_is_a_shape(depth, vocabulary, millions):
    model = NewModel(depth=depth, tokenizer="characters", vocab_size=vocabulary)
    shape = scratch.shape(model, "it")
    assert (shape.layers, shape.hidden) == (depth, 64 * depth)
    assert shape.head_dim == (64 if depth % 2 else 128)
    assert shape.heads == shape.kv_heads == shape.hidden // shape.head_dim
    assert shape.parameters / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("size", "claimed"),
    [("tiny", 85e6), ("small", 178e6), ("medium", 374e6), ("medium-large", 401e6),
     ("large", 763e6), ("xlarge", 1.46e9)],
)  # fmt: skip
def test_a_size_is_as_large_as_the_guide_says(size, claimed):
    assert scratch.shape(NewModel(size=size), size).parameters == pytest.approx(claimed, rel=0.006)


def test_the_table_of_the_documentation_is_up_to_date():
    command = [sys.executable, ROOT / "scripts/make_scratch_table.py", "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run make_scratch_table.py"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base_model: x\nmodel: {depth: 4}", ":1: base_model and model are both given"),
        ("", ":1: base_model, or model for one made from nothing, is required"),
        ("model: {}", "model: value error, give depth, or size, or width, layers and heads (none"),
        ("model: {depth: 4, size: tiny}", "(depth, size given)"),
        ("model: {width: 64}", "a shape by hand needs layers, heads, too"),
        ("model: {size: huge}", "model.size: input should be 'tiny'"),
        ("model: {depth: 0}", "model.depth: input should be greater than or equal to 1"),
        ("model: {depth: 4, heds: 2}", "model.heds is not a known key; did you mean heads?"),
        ("model: {width: 60, layers: 1, heads: 4}", "width 60 is no even multiple of heads 4"),
        ("model: {depth: 4, kv_heads: 3}", "2 heads are no multiple of kv_heads 3"),
        ("model: {depth: 4, vocab_size: 200}", "vocab_size 200 is below 260"),
    ],
)
def test_bad_recipes(tmp_path, text, says):
    path = tmp_path / "r.yaml"
    path.write_text(f"corpus: c.jsonl\n{text}\n")
    with pytest.raises(BadInput) as error:
        config.load_recipe(str(path))
    assert says in error.value.line
    assert error.value.line.count("\n") == 0


# --- before anything is there ------------------------------------------------------------


RECIPE = """\
model: {model}
corpus: text.txt
format: completion
axolotl: {{learning_rate: 1e-3, val_set_size: 0}}
"""


def new_recipe(project: Path, model: str = "{layers: 2, width: 64, heads: 4}") -> None:
    (project / "configs/recipes/new.yaml").write_text(RECIPE.format(model=model))
    (project / "text.txt").write_text("the whale swims in the sea\n\n" * 900)


def test_everything_is_known_before_anything_is_there(project, run_cli):
    new_recipe(project, "{depth: 20}")
    common = ["-r", "new", "-p", "tiny", "-s", "full", "--set", "adapter=null"]
    planned = run_cli("plan", *common, "--json")
    document = json.loads(planned.stdout)
    assert document["base_model"] == "work/training/new_full_tiny/base"
    assert "a vocabulary of 65,536 is still to be learned" in document["evidence"]["tokens"]
    dry = run_cli("train", *common, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert (
        "work/training/new_full_tiny/base is made from nothing at the start, 1.1 GiB" in dry.output
    )
    shown = run_cli("render", *common)
    assert f"base_model: {project / 'work/training/new_full_tiny/base'}" in shown.output
    assert not (project / "work/training").exists()


def test_characters_are_counted_as_the_tokenizer_will(project):
    new_recipe(project, "{layers: 2, width: 64, heads: 4, tokenizer: characters}")
    asked = layers.build("new", "tiny", "full", ["adapter=null"])
    before = survey.take(asked)
    assert before.statistics.total_error == 0
    assert not before.statistics.exact
    scratch.make(Path(asked.tree["base_model"]), scratch.request(asked), silent)
    after = survey.take(asked)
    assert after.statistics.exact
    assert before.statistics.total_tokens == after.statistics.total_tokens
    assert before.shape.parameters == after.shape.parameters


def test_another_model_in_the_place_is_told_by_every_command(project, run_cli):
    new_recipe(project)
    asked = layers.build("new", "tiny", "full", [])
    scratch.make(Path(asked.tree["base_model"]), scratch.request(asked), silent)
    common = ["-r", "new", "-p", "tiny", "-s", "full", "--set", "adapter=null"]
    assert run_cli("train", *common, "--dry-run").exit_code == 0
    other = run_cli("train", *common, "--dry-run", "--set", "model.layers=3")
    assert other.exit_code == 2
    assert (
        "work/training/new_full_tiny/base holds another model: it was made with layers 2 instead of 3"
        in (other.output)
    )


# --- making it ---------------------------------------------------------------------------


def test_transformers_loads_it_and_it_knows_nothing_yet(made):
    model = AutoModelForCausalLM.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    shape = scratch.shape(NewModel(**SMALL), "it")
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert len(tokenizer) == 512 == model.config.vocab_size
    assert model.generation_config.eos_token_id == [0, 3]
    ids = tokenizer("the whale number 7 swims", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert float(loss) == pytest.approx(np.log(512), abs=0.2)


def test_weights_are_drawn_as_they_should_be(made):
    found = shards.stored(made)
    for name, tensor in found.items():
        values = tensor.load().float()
        if "norm" in name:
            assert (values == 1).all()
            continue
        expected = 0.02 / 2 if "o_proj" in name or "down_proj" in name else 0.02
        assert float(values.std()) == pytest.approx(expected, rel=0.03), name
        assert abs(float(values.mean())) < 4 * expected / values.numel() ** 0.5, name
    both = [found[f"model.layers.{n}.self_attn.q_proj.weight"].load() for n in (0, 1)]
    assert not torch.equal(*both)


def test_the_same_request_gives_the_same_bits_elsewhere(made, tmp_path):
    again = scratch.make(tmp_path / "other" / "name", request(tmp_path), silent)
    assert contents(again) == contents(made)


def test_another_seed_gives_another_model(made, tmp_path):
    other = scratch.make(tmp_path / "base", request(tmp_path, seed=1), silent)
    one, two = contents(made), contents(other)
    assert one["tokenizer.json"] == two["tokenizer.json"]
    assert one["model.safetensors"] != two["model.safetensors"]


def test_what_is_there_is_left_alone(tmp_path):
    wanted = request(tmp_path)
    base = scratch.make(tmp_path / "base", wanted, silent)
    before = [path.stat().st_mtime_ns for path in sorted(base.iterdir())]
    assert scratch.is_made(base, wanted)
    scratch.make(base, wanted, pytest.fail)
    os.utime(wanted.corpus)  # copied anew: the same text
    scratch.make(base, wanted, pytest.fail)
    assert [path.stat().st_mtime_ns for path in sorted(base.iterdir())] == before
    corpus(wanted.corpus, more="!")
    with pytest.raises(BadInput, match="is not what its tokenizer was learned from"):
        scratch.make(base, wanted, silent)
    with pytest.raises(BadInput, match=r"initial_std unset instead of 0\.06"):
        scratch.make(base, request(tmp_path, initial_std=0.06), silent)
    assert [path.stat().st_mtime_ns for path in sorted(base.iterdir())] == before
    scratch.make(base, wanted, silent, replace=True)
    assert scratch.is_made(base, wanted)


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/mine").write_text("x")
    for replace in (False, True):
        with pytest.raises(BadInput, match="it was not made from nothing"):
            scratch.make(tmp_path / "base", request(tmp_path), silent, replace=replace)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["mine"]


def test_a_disk_without_room_is_told_first(tmp_path):
    asked = request(tmp_path)
    huge = scratch.Request(NewModel(depth=200), asked.corpus, ROWS, 1)
    with pytest.raises(Refused, match="the model's first weights take 7"):
        scratch.make(tmp_path / "base", huge, silent)
    assert not (tmp_path / "base").exists()


def test_a_bad_row_is_the_users_to_mend(tmp_path):
    asked = request(tmp_path)
    files.write_text(asked.corpus, asked.corpus.read_text() + "{broken\n")
    with pytest.raises(BadInput, match=r"c.jsonl:301: not JSON"):
        scratch.make(tmp_path / "base", asked, silent)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_kill_leaves_no_half_model(tmp_path):
    corpus(tmp_path / "c.jsonl")
    program = (
        "import sys; from pathlib import Path; from leviathan import formats, scratch;"
        "from leviathan.blueprint import NewModel;"
        "r = scratch.Request(NewModel(size='medium', vocab_size=512), Path('c.jsonl'),"
        " formats.Shape('completion', 'text'), 1);"
        "scratch.make(Path('base'), r, lambda text: print(text, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "bytes a token" in line:  # the tokenizer is learned; weights come next
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "base").exists()
    asked = request(tmp_path)
    assert scratch.is_made(scratch.make(tmp_path / "base", asked, silent), asked)


def test_several_files_tied_heads_and_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "SHARD_BYTES", 100_000)
    asked = request(tmp_path, tie_embeddings=True, dtype="float32", kv_heads=2, initial_std=0.06)
    scratch._write(tmp_path / "base", asked, silent)
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == scratch.shape(asked.model, "").parameters


def test_bf16_is_rounded_as_torch_does():
    values = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
    values = np.concatenate([values, ties])
    ours = np.frombuffer(scratch._stored(values, "BF16"), np.uint16)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (ours == theirs).all()


def test_pieces_of_a_tensor_differ(monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "_CHUNK", 64)
    tensor = shards.Tensor("model.x.weight", "F32", (16, 16))
    pieces = [bytes(scratch._piece(tensor, place, 0.02, 42)) for place in range(0, 256, 64)]
    assert all(a != b for a, b in itertools.combinations(pieces, 2))


# --- a tokenizer alone -------------------------------------------------------------------


def test_the_command_learns_a_tokenizer(project, run_cli):
    done = run_cli("data", "tokenizer", "rows.jsonl", "--vocab-size", "400", "-o", "tok", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["size"], document["kind"], document["rows"]) == (400, "bpe", 72)
    assert len(AutoTokenizer.from_pretrained(project / "tok")) == 400
    again = run_cli(
        "data", "tokenizer", "rows.jsonl", "--vocab-size", "64", "--kind", "characters", "-o", "tok"
    )
    assert again.exit_code == 0, again.output
    assert len(AutoTokenizer.from_pretrained(project / "tok")) == 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rows.jsonl", "-o", "configs"], "configs is there already, and not written by this"),
        (["rows.jsonl", "-o", "rows.jsonl"], "rows.jsonl is there already"),
        (["nothing.jsonl", "-o", "t"], "corpus nothing.jsonl does not exist"),
        (["odd.jsonl", "-o", "t"], "the rows of odd.jsonl are of no known format; say which"),
        (["rows.jsonl", "-o", "t", "--format", "chat"], "no 'messages' in this row"),
        (["rows.jsonl", "-o", "t", "--vocab-size", "20"], "a vocabulary of 20 is too small"),
    ],
)
def test_the_command_refuses(project, run_cli, arguments, says):
    (project / "odd.jsonl").write_text('{"number": 1}\n')
    before = sorted(project.rglob("*"))
    done = run_cli("data", "tokenizer", "--vocab-size", "400", *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert [path for path in sorted(project.rglob("*")) if path.suffix != ".lock"] == before
