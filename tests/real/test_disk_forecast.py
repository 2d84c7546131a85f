"""Forecasts against what training really writes."""

import io
import os
import warnings

import pytest
from project import RUN, TINY

from leviathan import disk, layers

pytestmark = pytest.mark.real

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIMIZERS = ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit",
              "paged_adamw_32bit", "adafactor", "lion_32bit", "lion_8bit", "adagrad", "rmsprop",
              "rmsprop_bnb_8bit", "ademamix", "ademamix_8bit", "sgd"]  # fmt: skip


def written(directory, but=()):
    return sum(p.stat().st_size for p in directory.iterdir() if p.name not in but)


def predicted(project, *overrides):
    """As ``train`` asks for it, in the project's directory."""
    before = os.getcwd()  # noqa: PTH109 - to go back to
    os.chdir(project.directory)
    try:
        tree = layers.build("tiny", "tiny", "full", list(overrides)).tree
        return disk.forecast(tree, str(tree["base_model"]), [])
    finally:
        os.chdir(before)


def test_a_checkpoint_takes_what_was_forecast(reference):
    last = max(reference.path(RUN).glob("checkpoint-*"))
    # The Trainer's log grows with every step, and is no part of the forecast.
    actual = written(last, but=["trainer_state.json"])
    assert predicted(reference).checkpoint == pytest.approx(actual, rel=0.05)


def test_a_model_trained_whole_takes_what_was_forecast(forked_project):
    whole = ["adapter=null", "lora_r=null", "lora_alpha=null", "lora_dropout=null",
             "lora_target_modules=null", "max_steps=3", "save_steps=3"]  # fmt: skip
    done = forked_project.run(*TINY, *(part for text in whole for part in ("--set", text)))
    assert done.code == 0, done.err
    actual = written(forked_project.path(RUN) / "checkpoint-3", but=["trainer_state.json"])
    assert predicted(forked_project, *whole).checkpoint == pytest.approx(actual, rel=0.05)


def state(model, optimizer):
    """Size of what ``optimizer`` would be saved as after a step."""
    import torch
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir="/nowhere", optim=optimizer, use_cpu=True, report_to=[]
    )
    made = Trainer(model=model, args=arguments).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    made.step()
    saved = io.BytesIO()
    torch.save(made.state_dict(), saved)
    return saved.tell()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rank", [16, None], ids=["lora", "whole"])
def test_every_optimizers_state_is_as_large_as_it_really_is(optimizer, rank):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from leviathan import knobs, shapes

    sizes = LlamaConfig(hidden_size=1024, intermediate_size=2048, num_hidden_layers=2,
                        num_attention_heads=8, num_key_value_heads=2, vocab_size=512)  # fmt: skip
    model = LlamaForCausalLM(sizes)
    tree = {"optimizer": optimizer, "bf16": False}
    if rank:
        lora = LoraConfig(r=rank, target_modules=ADAPTED, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
        tree |= {"adapter": "lora", "lora_r": rank, "lora_target_modules": ADAPTED}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actual = 4 * trained + state(model, optimizer)
    shape = shapes.from_config(sizes.to_dict(), "made here")
    forecast = disk.planned(shape, knobs.read(tree), tokenizer=0).checkpoint
    assert forecast == pytest.approx(actual, rel=0.05)
