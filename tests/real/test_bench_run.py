"""Bench and smoke test with the real Axolotl: measured, worst first, and no trace in the run."""

import json
import shutil

import pytest
from project import RUN, TINY, Project

from leviathan import calibrations, stand_in
from leviathan.errors import BadInput, Refused

pytestmark = pytest.mark.real

BENCH = ("bench", "-p", "tiny", "-r", "tiny", "--steps", "4", "--warm-up", "2", "--json")
SHAPE = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 512,
}  # fmt: skip
# As torch words it, for batches of more rows than the made-up card holds.
SHORT_OF_MEMORY = """
import torch, transformers
train, look = transformers.Trainer.training_step, transformers.Trainer.prediction_step

def limited(self, model, inputs, *rest, **named):
    if len(inputs["input_ids"]) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return train(self, model, inputs, *rest, **named)

def looking(self, model, inputs, *rest, **named):
    if len(inputs["input_ids"]) > 8:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 MiB.")
    return look(self, model, inputs, *rest, **named)

transformers.Trainer.training_step = limited
transformers.Trainer.prediction_step = looking
"""


def told(project: Project, *arguments: str, **env: str) -> dict:
    done = project.run(*BENCH, *arguments, **env)
    assert done.code == 0, done.err
    return json.loads(done.out)


def step_tokens(project: Project) -> list[int]:
    """Tokens (with padding) of each step of the bench."""
    lines = (project.directory / "work/bench/tiny_tiny/metrics.jsonl").read_text().splitlines()
    totals = [m["tokens/total"] for m in map(json.loads, lines) if "tokens/total" in m]
    return [after - before for before, after in zip([0, *totals], totals, strict=False)]


@pytest.fixture
def uneven(forked_project) -> Project:
    """Rows of 30 lengths, the longest in the middle of the corpus; one is longer than any can be."""
    rows = [{"instruction": "Repeat.", "input": "", "output": "alpha " * (3 + n % 30)}
            for n in range(200)]  # fmt: skip
    rows[100]["output"] = "omega " * 2000
    path = forked_project.directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return forked_project


def test_a_bench_measures_each_phase_worst_rows_first(uneven):
    found = told(uneven)
    assert set(found["peaks_gib"]) == {"load", "train", "eval", "save"}
    assert all(gib > 0.1 for gib in found["peaks_gib"].values())
    assert found["steps"] == 4
    assert 0 < found["tok_s"] < found["padded_tok_s"]
    assert all(found[name] > 0 for name in ("step_s", "eval_s_per_batch", "save_s", "load_s"))
    steps = step_tokens(uneven)
    # The row that training would drop is cut to sequence_len, and pads the first batch.
    assert steps[0] == 4 * 256
    assert steps[0] > steps[1] >= max(steps[2:])
    (record,) = calibrations.read(uneven.directory / calibrations.FILE)
    assert record.tok_s == found["tok_s"]
    assert not record.random
    assert not (uneven.directory / "work/training").exists()


def test_tokens_not_bytes_say_which_row_is_the_longest(forked_project):
    """Five of the eight longest by bytes: four of few tokens before one of many."""
    outputs = [*["alpha " * 40] * 4, "0123456789" * 22, *["beta " * 25] * 40]
    rows = [{"instruction": "Repeat.", "input": "", "output": output} for output in outputs]
    path = forked_project.directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told(forked_project)
    steps = step_tokens(forked_project)
    assert steps[0] > steps[1]


def test_packed_steps_are_full(uneven):
    found = told(uneven, "--set", "sample_packing=true", "--set", "micro_batch_size=2",
                 "--set", "dataset_num_proc=1", "--set", "sequence_len=1024")  # fmt: skip
    assert set(step_tokens(uneven)) == {2 * 1024}
    assert found["tok_s"] > 0.9 * found["padded_tok_s"]


@pytest.fixture(scope="session")
def config_only(make_project) -> Project:
    """A project whose base model is nothing but a config.json; its random weights, made once."""
    project = make_project("config-only")
    base = project.directory / "base"
    kept = (base / "config.json").read_bytes()
    shutil.rmtree(base)
    base.mkdir()
    (base / "config.json").write_bytes(kept)
    return project


@pytest.fixture
def random_base(config_only, tmp_path, monkeypatch, fork_server) -> Project:
    monkeypatch.chdir(config_only.directory)
    tree = {"base_model": "base", "special_tokens": {"pad_token": "<|filler|>"}}
    assert not stand_in.find(tree).real
    stand_in.make(stand_in.find(tree), lambda _: None)
    shutil.copytree(config_only.directory, tmp_path / "project")
    return Project(tmp_path / "project", fork_server)


def test_random_weights_of_the_real_architecture_stand_in_for_the_base(random_base):
    directory = random_base.directory / "work/bench/models/base"
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == model.config.vocab_size == 512
    assert tokenizer.convert_tokens_to_ids("<|filler|>") < 512
    assert tokenizer.decode(tokenizer("json.dumps(x)")["input_ids"]) == "json.dumps(x)"
    weight = model.model.layers[1].mlp.up_proj.weight
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    with safe_open(directory / next(iter(index["weight_map"].values())), "pt") as shard:
        assert shard.get_tensor("lm_head.weight").dtype.itemsize == 2
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in model.parameters())


def test_random_weights_are_made_anew_only_for_another_architecture(random_base, monkeypatch):
    monkeypatch.chdir(random_base.directory)
    tree = {"base_model": "base", "special_tokens": {"pad_token": "<|filler|>"}}
    told = []
    stand_in.make(stand_in.find(tree), told.append)
    assert not told
    config = random_base.directory / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))
    directory = stand_in.make(stand_in.find(tree), told.append)
    assert "making random weights" in told[0]
    assert json.loads((directory / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("change", "kind", "complaint"),
    [
        ({"vocab_size": 1_000_000_000, "hidden_size": 8192}, Refused, "random weights take"),
        ({"vocab_size": 100}, BadInput, "has no room for 256 bytes"),
        ({"hidden_act": "unheard-of"}, BadInput, "transformers cannot make this architecture"),
    ],
)
def test_random_weights_that_cannot_be_are_one_line_and_leave_nothing(
    tmp_path, monkeypatch, change, kind, complaint
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps({**SHAPE, **change}))
    with pytest.raises(kind, match=complaint) as told:
        stand_in.make(stand_in.find({"base_model": "base"}), lambda _: None)
    assert "\n" not in told.value.line
    assert not list((tmp_path / "work/bench/models").iterdir())


def test_a_4_bit_bench_on_random_weights(random_base):
    found = told(random_base, "--set", "adapter=qlora", "--set", "load_in_4bit=true",
                 "--set", "special_tokens.pad_token=<|filler|>")  # fmt: skip
    assert found["random"]
    assert found["knobs"]["method"] == "qlora"
    assert found["tok_s"] > 0


def test_a_smoke_test_leaves_the_run_bit_for_bit_the_same(forked_project, reference):
    done = forked_project.run(*TINY, "--smoke")
    assert done.code == 0, done.err
    assert "smoke on " in done.err
    assert forked_project.curve(RUN) == reference.curve(RUN)
    assert forked_project.adapter(RUN) == reference.adapter(RUN)


def test_memory_that_runs_out_in_the_smoke_test_walks_the_ladder_there(forked_project):
    hook = forked_project.directory / "short_of_memory.py"
    hook.write_text(SHORT_OF_MEMORY)
    done = forked_project.run(*TINY, "--smoke", "--set", "micro_batch_size=16", FORK_HOOK=str(hook))
    assert done.code == 0, done.err
    record = json.loads((forked_project.path(RUN) / "run.json").read_text())
    # Training fails first and takes what is in the ladder: then it does not evaluate 16 rows.
    assert [a["after"] for a in record["adjustments"]] == [
        {"micro_batch_size": 8, "gradient_accumulation_steps": 2},
        {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
    ]
    assert [session["outcome"] for session in record["sessions"]] == ["done"]
    (kept,) = calibrations.read(forked_project.directory / calibrations.FILE)
    assert (kept.kind, kept.fits, kept.knobs["micro_batch_size"]) == ("smoke", True, 4)


def test_memory_that_runs_out_in_the_evaluation_is_found_there(forked_project):
    hook = forked_project.directory / "short_of_memory.py"
    hook.write_text(SHORT_OF_MEMORY)
    done = forked_project.run(*TINY, "--smoke", "--set", "eval_batch_size=32", FORK_HOOK=str(hook))
    assert done.code == 0, done.err
    record = json.loads((forked_project.path(RUN) / "run.json").read_text())
    assert [a["after"] for a in record["adjustments"]] == [{"eval_batch_size": 1}]
    assert "in phase eval" in record["adjustments"][0]["why"]
