"""The commands of servers: which engine, which flags for which card."""

import json
from pathlib import Path

import pytest

from leviathan import engines
from leviathan.engines import Card, Offer
from leviathan.errors import BadInput, Refused

LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}  # fmt: skip
PROGRAM = Path("/opt/vllm/bin/vllm")


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_8B))
    return Offer("m", directory)


@pytest.fixture
def with_adapter(model, tmp_path):
    def make(**config):
        directory = tmp_path / "a"
        directory.mkdir()
        (directory / "adapter_config.json").write_text(json.dumps({"r": 24, **config}))
        return Offer("m", model.model, directory)

    return make


def flag(command, name):
    return command.arguments[command.arguments.index(name) + 1]


def test_the_whole_command_for_an_a100(model):
    command = engines.vllm_command(
        PROGRAM, model, "127.0.0.1", 8000, Card("A100", 79.2), limit=None
    )
    # 71.3 GiB to use, 15.0 of weights (2 bytes x 8.03 B parameters), 2 in reserve; 128 KiB a token.
    assert command.arguments == [
        "/opt/vllm/bin/vllm", "serve", str(model.model), "--host", "127.0.0.1", "--port", "8000",
        "--served-model-name", "m", "--dtype", "bfloat16", "--max-model-len", "131072",
        "--gpu-memory-utilization", "0.9",
    ]  # fmt: skip
    assert command.notes == (
        "A100: 15.0 GiB of weights, 128 KiB a token: room for 445,008 tokens at once, by formula",
    )
    assert command.model == "m"


def test_a_small_card_gets_a_shorter_context_and_several_share_the_model(model):
    small = engines.vllm_command(PROGRAM, model, "::1", 1, Card("24 GB", 23.0), None)
    assert flag(small, "--max-model-len") == "30656"
    both = engines.vllm_command(PROGRAM, model, "::1", 1, Card("16 GB", 16.0, 2), None)
    assert flag(both, "--tensor-parallel-size") == "2"
    assert flag(both, "--max-model-len") == "80624"


def test_heads_that_cards_cannot_share(model):
    def change(**config):
        (model.model / "config.json").write_text(json.dumps({**LLAMA_8B, **config}))

    change(num_attention_heads=28, num_key_value_heads=4, hidden_size=3584)
    with pytest.raises(Refused, match="28 attention heads among 8 cards") as told:
        engines.vllm_command(PROGRAM, model, "::1", 1, Card("A100", 79.2, 8), None)
    assert "with 7 or 4" in str(told.value.hint)
    # 2 kv heads on 4 cards: each has one whole, so a token takes as much as with 4 heads.
    change(num_key_value_heads=2)
    (note,) = engines.vllm_command(PROGRAM, model, "::1", 1, Card("A100", 79.2, 4), None).notes
    assert "64 KiB a token" in note


def test_what_does_not_fit_is_refused_with_the_figures(model):
    with pytest.raises(Refused, match=r"m does not fit A4000: 15.0 GiB .* room for 0 tokens"):
        engines.vllm_command(PROGRAM, model, "::1", 1, Card("A4000", 15.99), None)
    with pytest.raises(Refused, match="does not fit"):
        engines.vllm_command(PROGRAM, model, "::1", 1, Card("24 GB", 23.0), 40000)
    with pytest.raises(BadInput, match="knows 131,072 positions"):
        engines.vllm_command(PROGRAM, model, "::1", 1, Card("A100", 79.2), 200000)


def test_an_adapter_is_served_beside_its_base_with_its_own_template(with_adapter):
    offer = with_adapter(rank_pattern={"q_proj": 40})
    (offer.adapter / "chat_template.jinja").write_text("{{ messages }}")
    command = engines.vllm_command(PROGRAM, offer, "::1", 1, Card("A100", 79.2), 4096)
    assert flag(command, "--served-model-name") == "m-base"
    assert flag(command, "--lora-modules") == f"m={offer.adapter}"
    assert flag(command, "--max-lora-rank") == "64"
    assert flag(command, "--tokenizer") == str(offer.adapter)
    assert flag(command, "--chat-template") == str(offer.adapter / "chat_template.jinja")
    assert command.model == "m"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, "it trained whole modules"),
        ({"use_dora": True}, "it is DoRA"),
        ({"trainable_token_indices": [3]}, "it trained embeddings of tokens"),
        ({"r": 1024}, "its rank is 1024, vLLM takes up to 512"),
    ],
)
def test_adapters_that_vllm_cannot_put_on_are_refused(with_adapter, config, reason):
    with pytest.raises(Refused, match=reason):
        engines.vllm_command(PROGRAM, with_adapter(**config), "::1", 1, Card("A100", 79.2), None)


def test_transformers_takes_no_adapter_and_no_at_sign(with_adapter, model, tmp_path):
    with pytest.raises(Refused, match="cannot put the adapter"):
        engines.transformers_command(with_adapter(), "127.0.0.1", 1, has_gpu=False)
    with pytest.raises(BadInput, match="revision"):
        engines.transformers_command(Offer("m", tmp_path / "m@2"), "127.0.0.1", 1, has_gpu=False)
    whole = engines.transformers_command(model, "127.0.0.1", 8001, has_gpu=False)
    assert whole.arguments[3:] == [
        "serve", str(model.model), "--host", "127.0.0.1", "--port", "8001", "--device", "cpu",
    ]  # fmt: skip
    assert whole.model == str(model.model)


def test_the_engine_is_vllm_only_where_it_can_run():
    assert engines.choose(None, PROGRAM, has_gpu=True)[0] == "vllm"
    assert engines.choose(None, PROGRAM, has_gpu=False) == (
        "transformers",
        "no GPU is here for vLLM",
    )
    assert engines.choose(None, None, has_gpu=True) == ("transformers", "vLLM is not installed")
    with pytest.raises(BadInput, match="vLLM is not found"):
        engines.choose("vllm", None, has_gpu=True)
    with pytest.raises(BadInput, match="--engine 'ollama' is unknown"):
        engines.choose("ollama", PROGRAM, has_gpu=True)


def test_where_vllm_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert engines.find_vllm(None) is None
    beside, named = tmp_path / ".venv-vllm/bin/vllm", tmp_path / "mine"
    for program in (beside, named, tmp_path / "bin/vllm"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
    with pytest.raises(BadInput, match="is no program"):
        engines.find_vllm(named)
    beside.chmod(0o755)
    assert engines.find_vllm(None) == beside
    (tmp_path / "bin/vllm").chmod(0o755)
    assert engines.find_vllm(None) == tmp_path / "bin/vllm"
    named.chmod(0o755)
    monkeypatch.setenv("LEVIATHAN_VLLM", str(named))
    assert engines.find_vllm(None) == named
