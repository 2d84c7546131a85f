"""Child process: weighs the tensors of real trainings on the CPU and prints them as JSON.

Models come out of Axolotl's own loader, optimizers out of transformers' Trainer. What a step
allocates is read by a dispatch mode that watches every storage from birth to death.
"""

import json
import sys
import weakref
from pathlib import Path

import torch
from accelerate.utils import convert_outputs_to_fp32
from axolotl.loaders.model import ModelLoader
from axolotl.utils.dict import DictDefault
from tokenizers import Tokenizer, models
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)


class Watch(TorchDispatchMode):
    """Bytes of the storages alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.sizes = 0, 0, {}

    def add(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.drop, key)

    def drop(self, key):
        self.alive -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def write_model(directory, config):
    given = {k: v for k, v in config.items() if k != "model_type"}
    loaded = AutoConfig.for_model(config["model_type"], **given)
    AutoModelForCausalLM.from_config(loaded).to(torch.bfloat16).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({"x": 0}, "x"))
    ends = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "x")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **ends)
    tokenizer.save_pretrained(directory)
    return tokenizer


def load(directory, tokenizer, tree):
    dtype = torch.bfloat16 if tree.get("bf16") else torch.float32
    given = {"base_model": str(directory), "base_model_config": str(directory),
             "model_config_type": tree.pop("model_type"), "torch_dtype": dtype, "lora_alpha": 16,
             "lora_dropout": 0.0, "device_map": {"": "cpu"}, "tensor_parallel_size": 1,
             "context_parallel_size": 1, "dp_shard_size": 1,
             "gradient_checkpointing_kwargs": {"use_reentrant": False}}  # fmt: skip
    return ModelLoader(DictDefault({"sequence_len": 64, **tree, **given}), tokenizer).load()[0]


def tensors_of(parameter):
    """The parameter, and what bitsandbytes keeps beside it."""
    yield parameter.data
    state = getattr(parameter, "quant_state", None)
    for level in (state, getattr(state, "state2", None)):
        if level is not None:
            yield from (level.absmax, level.code)
    if state is not None and state.offset is not None:
        yield state.offset
    if getattr(parameter, "SCB", None) is not None:
        yield parameter.SCB


def size(tensors):
    found = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(found.values())


def optimizer_bytes(model, name):
    arguments = TrainingArguments(output_dir="unused", optim=name, use_cpu=True, report_to=[])
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = kind([p for p in model.parameters() if p.requires_grad], **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    values = [v for state in optimizer.state.values() for v in state.values()]
    return size(v for v in values if isinstance(v, torch.Tensor) and v.dim())


def step_bytes(model, tree):
    """What one forward and backward pass adds at its peak, as the Trainer runs them."""
    model.train()
    model.config.use_cache = False
    if tree.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(model, "peft_config"):
            model.enable_input_require_grads()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.zeros(tree["micro_batch_size"], tree["sequence_len"], dtype=torch.long)

    def forward():
        # PEFT asks whether CUDA's autocast is on; on a GPU the answer would be yes.
        torch.set_autocast_enabled("cuda", True)
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=ids, labels=ids)

    watch = Watch()
    with watch:
        for parameter in model.parameters():
            for tensor in (*tensors_of(parameter), parameter.grad):
                if tensor is not None:
                    watch.add(tensor)
        before = watch.alive
        convert_outputs_to_fp32(forward)()["loss"].backward()
        return watch.peak - before


def weigh(case):
    directory = Path(case["directory"])
    tokenizer = write_model(directory, case["config"])
    tree = {**case["tree"], "model_type": case["config"]["model_type"]}
    model = load(directory, tokenizer, tree)
    parameters = dict(model.named_parameters())
    whole = not case["tree"].get("adapter")
    base = [p for p in parameters.values() if whole or not p.requires_grad]
    found = {
        "weights": size(t for p in base for t in tensors_of(p)),
        "adapter": 0 if whole else size(p for p in parameters.values() if p.requires_grad),
    }
    if case["tree"].get("micro_batch_size"):
        found["step"] = step_bytes(model, case["tree"])
    if case["tree"].get("optimizer"):
        found["optimizer"] = optimizer_bytes(model, case["tree"]["optimizer"])
    return found


print("\n" + json.dumps([weigh(case) for case in json.load(sys.stdin)]))
