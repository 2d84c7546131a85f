"""Peak memory and time of a merge: ours, Axolotl's merge-lora and PEFT's merge_and_unload.

    python benchmarks/merge_memory.py [--layers 12] [--shard-mb 100] [--nf4]

Makes a random Llama in bf16 in several files and a LoRA adapter on all its linears in a
temporary directory (twice the model's size is needed), then merges it with each tool, one
after the other, each in a process of its own. Peak memory is the kernel's high-water mark of
resident memory, libraries and mapped files included; "imports" is a process that only imports
torch, transformers and peft.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MAKE = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
directory, layers, shard_mb = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32000, hidden_size=1024, intermediate_size=2816,
                     num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=4)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(f"{directory}/base", max_shard_size=f"{shard_mb}MB")
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b", pad_token="b")
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
adapted = get_peft_model(model, lora)
for name, parameter in adapted.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.01)
adapted.save_pretrained(f"{directory}/adapter")
for place in ("base", "adapter"):
    tokenizer.save_pretrained(f"{directory}/{place}")
"""
IMPORTS = "import torch, transformers, peft; from transformers import LlamaForCausalLM"
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out, shard_mb, nf4 = sys.argv[1:]
how = {}
if nf4 == "True":
    from transformers import BitsAndBytesConfig
    how["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **how)
merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
if nf4 == "True":
    merged = merged.dequantize()
merged.save_pretrained(out, max_shard_size=f"{shard_mb}MB")
"""


@dataclass
class Measured:
    name: str
    peak_mib: float
    wall_s: float
    written_mib: float


def run(name: str, command: list[str], out: Path, text: str = "") -> Measured:
    """One process to its end; its high-water mark from wait4."""
    began = time.monotonic()
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
                   "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
        process.stdin.write(text.encode())
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(f"{name} failed:\n{log.read().decode(errors='replace')[-3000:]}")
    written = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    wall = time.monotonic() - began
    return Measured(name, usage.ru_maxrss / 1024, wall, written / 2**20)


def ours(directory: Path, arguments: argparse.Namespace) -> Measured:
    tree = {"bf16": True, **({"adapter": "qlora", "load_in_4bit": True} if arguments.nf4 else {})}
    (directory / "ours").mkdir()
    job = {"base": directory / "base", "adapter": directory / "adapter",
           "directory": directory / "ours/model", "key": "benchmark", "dtype": None,
           "shard_bytes": arguments.shard_mb * 10**6, "tree": tree,
           "parent": os.getpid()}  # fmt: skip
    return run("leviathan merge", [sys.executable, "-m", "leviathan.fusion"], directory / "ours",
               json.dumps(job, default=str))  # fmt: skip


def axolotl(directory: Path, arguments: argparse.Namespace) -> Measured:
    tree = {"base_model": str(directory / "base"), "output_dir": str(directory / "axolotl"),
            "adapter": "qlora" if arguments.nf4 else "lora", "load_in_4bit": arguments.nf4,
            "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True, "bf16": True,
            "datasets": [{"path": "json", "type": "alpaca"}], "learning_rate": 1e-4,
            "micro_batch_size": 1, "gradient_accumulation_steps": 1}  # fmt: skip
    config = directory / "axolotl.yaml"
    config.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "axolotl.cli.merge_lora", str(config),
               f"--lora_model_dir={directory / 'adapter'}"]  # fmt: skip
    return run("axolotl merge-lora", command, directory / "axolotl")


def peft(directory: Path, arguments: argparse.Namespace) -> Measured:
    out = directory / "peft"
    command = [sys.executable, "-c", PEFT, str(directory / "base"), str(directory / "adapter"),
               str(out), str(arguments.shard_mb), str(arguments.nf4)]  # fmt: skip
    return run("peft merge_and_unload", command, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--shard-mb", type=int, default=100)
    parser.add_argument("--nf4", action="store_true", help="as of a QLoRA run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = run("make", [sys.executable, "-c", MAKE, name, str(arguments.layers),
                            str(arguments.shard_mb)], directory / "base")  # fmt: skip
        shards = len(list((directory / "base").glob("*.safetensors")))
        idle = run("imports", [sys.executable, "-c", IMPORTS], directory / "none")
        results = [ours(directory, arguments), axolotl(directory, arguments)]
        results.append(peft(directory, arguments))
    kind = "NF4 base (QLoRA)" if arguments.nf4 else "bf16 base (LoRA)"
    print(f"{kind}: {made.written_mib:.0f} MiB in {shards} files of {arguments.shard_mb} MB")
    print(f"{'':<24}{'peak MiB':>9}{'over imports':>14}{'wall s':>8}{'ratio peak':>12}"
          f"{'over':>7}{'wall':>7}")  # fmt: skip
    first = results[0]
    for one in (idle, *results):
        over = one.peak_mib - idle.peak_mib
        share = over / (first.peak_mib - idle.peak_mib)
        print(f"{one.name:<24}{one.peak_mib:>9.0f}{over:>14.0f}{one.wall_s:>8.1f}"
              f"{one.peak_mib / first.peak_mib:>12.2f}{share:>7.1f}"
              f"{one.wall_s / first.wall_s:>7.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
