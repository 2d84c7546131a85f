"""Fusing base and adapter: against PEFT's own runtime, under kill -9, and what is refused.

Adapters are made by PEFT with random weights; tests/real/test_merge.py trains them by Axolotl.
"""

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import tiny
from leviathan import fusion, models, quantisation, shards
from leviathan.errors import BadInput, Refused

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NF4 = {"adapter": "qlora", "load_in_4bit": True}
BOTH = {"modules_to_save": ["embed_tokens", "lm_head"]}


@dataclass(frozen=True)
class Made:
    """A base, an adapter on it, and how it was trained."""

    base: Path
    adapter: Path
    tree: dict

    def job(self, directory: Path, **changes) -> fusion.Job:
        directory.parent.mkdir(parents=True, exist_ok=True)
        job = fusion.Job(self.base, self.adapter, directory, "key", None, 100_000, self.tree)
        return replace(job, **changes)

    def source(self, adapter: Path | None = None) -> models.Source:
        told = json.loads((self.base / "config.json").read_text())
        return models.Source(
            str(self.base), adapter, train_dtype=quantisation.train_dtype(self.tree),
            quantised=quantisation.settings(self.tree, told["model_type"]),
        )  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 40)


def make(directory, rows, family="llama", tied=False, lora=None, tree=None, added=0) -> Made:
    """PEFT's own model, its adapter's weights all random, saved as training saves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny.write_model(directory / "base", rows, family, tied=tied, max_shard_size="100KB")
    made = Made(base, directory / "adapter", tree or {})
    loaded = models.Model(made.source(), precise=True)
    if added:
        loaded.model.resize_token_embeddings(512 + added)
    settings = {"r": 8, "lora_alpha": 16, "target_modules": LINEARS, "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(loaded.model, LoraConfig(**{**settings, **(lora or {})}))
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    wrapped.save_pretrained(made.adapter)
    loaded.tokenizer.save_pretrained(made.adapter)
    return made


def logits(source: models.Source):
    import torch

    model = models.Model(source, precise=True)
    ids = torch.arange(0, 512, 5)[None]
    with model.without_adapter():
        base = model.logits(ids)
    return model.logits(ids), base


CASES = {
    "llama": {},
    "qwen2, tied": {"family": "qwen2", "tied": True},
    "qwen3, tied": {"family": "qwen3", "tied": True},
    "gemma2, tied": {"family": "gemma2", "tied": True},
    "gemma3": {"family": "gemma3"},
    "ranks and alphas of their own": {"lora": {
        "use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}},
    "dora": {"lora": {"use_dora": True}},
    "lora on tied embeddings": {"tied": True, "lora": {"target_modules": ["embed_tokens"]}},
    "lora on a tied head": {"tied": True, "lora": {"target_modules": ["q_proj", "lm_head"]}},
    "tied embeddings trained apart": {"tied": True, "lora": BOTH},
    "tied embeddings trained as one": {"family": "qwen2", "tied": True, "lora": {
        "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}},
    "tied, only the input trained": {"tied": True, "lora": {"modules_to_save": ["embed_tokens"]}},
    "single tokens, tied": {"family": "gemma2", "tied": True,
                            "lora": {"trainable_token_indices": [5, 6]}},
    "added tokens": {"added": 5},
    "added tokens, tied": {"added": 5, "tied": True},
    "added tokens, trained, gemma": {"family": "gemma2", "tied": True, "added": 5, "lora": BOTH},
    "biases": {"lora": {"bias": "all"}},
    "nf4": {"tree": NF4},
    "nf4, gemma2, tied": {"family": "gemma2", "tied": True, "tree": NF4},
    "nf4 once, dora": {"tree": {**NF4, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}},
                       "lora": {"use_dora": True}},
    "nf4, trained in bf16": {"tree": {**NF4, "bf16": True}},
    "nf4, all trained, tokens added": {"family": "qwen2", "tied": True, "tree": NF4, "added": 5,
                                       "lora": BOTH},
}  # fmt: skip
APART = {"lora on tied embeddings", "lora on a tied head", "tied embeddings trained apart",
         "tied, only the input trained", "added tokens, trained, gemma",
         "nf4, all trained, tokens added"}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_is_the_one_that_peft_runs(tmp_path, rows, name):
    case = CASES[name]
    made = make(tmp_path, rows, **case)
    job = made.job(tmp_path / "work/model")
    result = fusion.fuse(job, print)
    assert len(result["shards"]) > 2
    shutil.copy(made.base / "tokenizer.json", job.directory)
    shutil.copy(made.base / "tokenizer_config.json", job.directory)
    wanted, base = logits(made.source(made.adapter))
    got, _ = logits(models.Source(str(job.directory)))
    effect = (wanted - base).abs().max() if wanted.shape == base.shape else 1
    # Rounding of a base held in bf16 is in "wanted" too, of embeddings and norms only.
    assert (wanted - got).abs().max() < (2e-2 if "bf16" in name else 4e-6) * effect
    told = json.loads((job.directory / "config.json").read_text())
    assert told["tie_word_embeddings"] == (case.get("tied", False) and name not in APART)
    assert told["vocab_size"] == 512 + case.get("added", 0)


def test_what_training_did_not_touch_is_copied_byte_for_byte(tmp_path, rows):
    made = make(tmp_path, rows, tree=NF4, lora={"target_modules": ["q_proj"]})
    job = made.job(tmp_path / "work/model", shard_bytes=10**9)
    result = fusion.fuse(job, print)
    assert list(result["shards"]) == ["model.safetensors"]
    before, after = shards.stored(made.base), shards.stored(job.directory)
    assert set(before) == set(after)
    changed = {n for n in before if b"".join(before[n].chunks()) != b"".join(after[n].chunks())}
    # Every linear that bitsandbytes quantises, adapted or not; never embeddings, head and norms.
    assert changed == {n for n in before if any(f"{linear}.weight" in n for linear in LINEARS)}


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32")])
def test_the_wanted_type_is_written_and_told(tmp_path, rows, dtype, stored):
    made = make(tmp_path, rows)
    job = made.job(tmp_path / "work/model", dtype=dtype)
    fusion.fuse(job, print)
    assert {tensor.dtype for tensor in shards.stored(job.directory).values()} == {stored}
    index = json.loads((job.directory / "model.safetensors.index.json").read_text())
    sizes = sum(tensor.bytes for tensor in shards.stored(job.directory).values())
    assert index["metadata"]["total_size"] == sizes
    told = json.loads((job.directory / "config.json").read_text())["dtype"]
    assert told == {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype]


# --- killed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged_once(tmp_path_factory, rows):
    """A QLoRA base and adapter, and the files of a merge that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    made = make(directory, rows, tree=NF4)
    job = made.job(directory / "work/model")
    fusion.fuse(job, print)
    return made, contents(job.directory)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def killed_at(job: fusion.Job, moment: int) -> bool:
    """Fuse in a process that is killed at its n-th sync or read of a tensor; whether it was."""
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left, fsync, load = [moment], os.fsync, shards.Stored.load

    def count():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = lambda fd: (count(), fsync(fd))[1]
    shards.Stored.load = lambda self: (count(), load(self))[1]
    try:
        fusion.fuse(job, lambda _text: None)
    finally:
        os._exit(0)


def test_killed_anywhere_it_goes_on_and_ends_in_the_same_bytes(tmp_path, merged_once):
    made, whole = merged_once
    job, kills, kept = made.job(tmp_path / "work/model"), 0, 0
    for moment in range(1, 60, 3):
        shutil.rmtree(job.directory.parent)
        job.directory.parent.mkdir()
        if not killed_at(job, moment):
            break
        kills += 1
        # A second death of the one that went on.
        killed_at(job, 4)
        left = contents(job.directory) if job.directory.exists() else {}
        assert all(whole[name] == left[name] for name in left if not name.startswith("."))
        inodes = {name: (job.directory / name).stat().st_ino for name in left}
        told = []
        fusion.fuse(job, told.append)
        assert contents(job.directory) == whole
        finished = [name for name in inodes if name.endswith(".safetensors") and name[0] != "."]
        recorded = [n for n in finished if (job.directory / n).stat().st_ino == inodes[n]]
        assert len(recorded) >= len(finished) - 1  # one may have been renamed and not recorded
        kept += len(recorded)
        assert any("going on behind" in line for line in told) == bool(recorded)
    assert kills > 10
    assert kept > 10


def test_another_key_or_a_changed_shard_is_not_gone_on_from(tmp_path, merged_once):
    made, whole = merged_once
    job = made.job(tmp_path / "work/model")
    fusion.fuse(job, print)
    first = next(name for name in whole if name.startswith("model-00001"))
    data = bytearray((job.directory / first).read_bytes())
    data[-1] ^= 1
    (job.directory / first).write_bytes(data)
    told = []
    fusion.fuse(job, told.append)
    assert contents(job.directory) == whole
    assert sum(line.startswith("shard ") for line in told) == 1
    told.clear()
    result = fusion.fuse(replace(job, key="other"), told.append)
    assert sum(line.startswith("shard ") for line in told) == len(result["shards"])


# --- refused -----------------------------------------------------------------------


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil(change):
    """A change of the adapter's tensors."""

    def apply(made: Made) -> None:
        from safetensors.torch import load_file, save_file

        path = made.adapter / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return apply


def config_of(where: str, **changes):
    return lambda made: edit(getattr(made, where) / (
        "adapter_config.json" if where == "adapter" else "config.json"), **changes)  # fmt: skip


def cut(made: Made) -> None:
    path = made.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def half_base(made: Made) -> None:
    next(made.base.glob("model-00002*")).unlink()


def pickled_base(made: Made) -> None:
    for path in [*made.base.glob("*.safetensors"), made.base / shards.INDEX]:
        path.unlink()
    (made.base / "pytorch_model.bin").write_bytes(b"x")


def more_tokens(made: Made) -> None:
    """As if tokens had been added, and the adapter held no embeddings."""
    path = made.adapter / "tokenizer.json"
    told = json.loads(path.read_text())
    kind = told["added_tokens"][0]
    told["added_tokens"] += [{**kind, "id": i, "content": f"<|{i}|>"} for i in range(300, 600)]
    path.write_text(json.dumps(told))


REFUSED = {
    "adapter cut off": (cut, "cannot be read"),
    "NaN in the adapter": (spoil(lambda t: {k: v * float("nan") for k, v in t.items()}),
                           "is broken: .* is not finite"),
    "half of the adapter": (spoil(lambda t: {k: v for k, v in t.items() if "layers.1" not in k}),
                            "the adapter lacks what its configuration promises for model.layers.1"),
    "of another base": (spoil(lambda t: {k.replace("layers.1", "layers.7"): v
                                         for k, v in t.items()}), "has no place for"),
    "of a wider base": (spoil(lambda t: {k: v.repeat(1, 2) if "q_proj.lora_A" in k else v
                                         for k, v in t.items()}), "does not fit this base model"),
    "pissa": (config_of("adapter", init_lora_weights="pissa"), "init_lora_weights: pissa"),
    "not lora": (config_of("adapter", peft_type="LOHA"), "a LOHA adapter cannot be merged"),
    "layers repeated": (config_of("adapter", layer_replication=[[0, 1]]), "layer_replication"),
    "a base that is quantised": (config_of("base", quantization_config={
        "quant_method": "bitsandbytes", "load_in_4bit": True}), "is quantised itself"),
    "a shard of the base gone": (half_base, "lacks model-00002"),
    "a base of pickles": (pickled_base, "only pickled .bin files"),
    "tokens whose embeddings are lost": (more_tokens, "the new tokens were trained with is lost"),
}  # fmt: skip


@pytest.mark.parametrize("key", fusion.UNFOLLOWED)
def test_a_base_quantised_in_another_way_is_refused(tmp_path, plain, key):
    job = plain.job(tmp_path / "work/model", tree={key: True})
    with pytest.raises(Refused, match=f"trained with {key}: no merge here follows"):
        fusion.fuse(job, print)


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        ({"adapter": "qlora", "load_in_4bit": True}, "load_in_4bit"),
        ({"adapter": "lora", "load_in_8bit": True}, "load_in_8bit"),
        ({"adapter": "lora", "load_in_4bit": True}, None),  # Axolotl 0.19 loads it as it is
        ({"adapter": "qlora"}, None),
        ({}, None),
    ],
)
def test_what_is_quantised_is_what_axolotl_quantises(tree, kind):
    found = quantisation.settings(tree, "llama")
    assert found is None if kind is None else found[kind] is True


def test_the_settings_are_axolotls_with_the_runs_own_over_them():
    own = {"bnb_4bit_quant_type": "fp4", "llm_int8_skip_modules": ["down_proj"]}
    tree = {"adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": own}
    found = quantisation.settings(tree, "falcon_h1")
    assert {**found, **own} == found
    assert found["bnb_4bit_use_double_quant"] is True
    del tree["bnb_config_kwargs"]
    assert quantisation.settings(tree, "falcon_h1")["llm_int8_skip_modules"] == ["out_proj"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, rows):
    return make(tmp_path_factory.mktemp("plain"), rows)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_faithfully_is_refused_in_one_line(tmp_path, plain, name):
    change, reason = REFUSED[name]
    shutil.copytree(plain.base.parent, tmp_path / "copy")
    made = Made(tmp_path / "copy/base", tmp_path / "copy/adapter", {})
    change(made)
    job = made.job(tmp_path / "work/model")
    with pytest.raises((Refused, BadInput), match=reason) as error:
        fusion.fuse(job, print)
    assert "\n" not in error.value.line
    assert not list(tmp_path.glob("work/**/*.safetensors"))


def test_what_does_not_fit_the_disk_is_refused_before_it_is_written(tmp_path, plain, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=4_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    job = plain.job(tmp_path / "work/model")
    with pytest.raises(Refused, match=r"the merged model takes 4\.76 MB, 4\.5 MB are free"):
        fusion.fuse(job, print)
    assert not list(tmp_path.glob("work/**/*.safetensors"))


def test_fp16_that_would_overflow_is_refused(tmp_path, plain):
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain.base.parent, tmp_path / "copy")
    made = Made(tmp_path / "copy/base", tmp_path / "copy/adapter", {})
    shard = next(made.base.glob("model-00001*"))
    save_file({k: v * 1e9 for k, v in load_file(shard).items()}, shard)
    with pytest.raises(Refused, match="exceeds the range of F16") as error:
        fusion.fuse(made.job(tmp_path / "work/model", dtype="fp16"), print)
    assert error.value.hint == "use --dtype bf16"
