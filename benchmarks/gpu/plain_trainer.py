"""A plain transformers.Trainer with PEFT, measured: what Leviathan is compared with.

    python benchmarks/gpu/plain_trainer.py plain-a4000.yaml --corpus rows.jsonl --base DIR
        --directory DIR [--steps 8] [--warm-up 3] [--cap-gib 15.7] [--set KEY=VALUE ...]

Knobs come from the profile, rows as ``leviathan bench`` chooses them, and durations, tokens and
memory are taken by the same callback. The result is ``result.json`` in the directory.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

from leviathan import bench, gauge, knobs, layers, machine, probe, runs
from leviathan.journal import Journal
from leviathan.knobs import Knobs

CUDA = torch.cuda.is_available()


def load(base: Path, chosen: Knobs, alpha: float) -> Any:
    """The base model on the device, with its adapter."""
    quantised = chosen.method == "qlora"
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if CUDA else torch.float32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16 if CUDA else torch.float32,
        quantization_config=four_bit if quantised else None,
        attn_implementation=chosen.attention, device_map={"": 0} if CUDA else {"": "cpu"},
    )  # fmt: skip
    model.config.use_cache = False
    if quantised:
        model = prepare_model_for_kbit_training(
            model, chosen.gradient_checkpointing, {"use_reentrant": False}
        )
    elif chosen.gradient_checkpointing:
        model.enable_input_require_grads()
    adapter = LoraConfig(r=chosen.rank, lora_alpha=alpha, lora_dropout=0.0, task_type="CAUSAL_LM",
                         target_modules=list(chosen.targets))  # fmt: skip
    return get_peft_model(model, adapter)


def tokenised(rows: list[bytes], tokenizer: Any, length: int) -> list[dict[str, list[int]]]:
    """Instruction, input and answer as one text, cut to ``length`` tokens."""
    texts = ["\n\n".join(json.loads(row).values()) + tokenizer.eos_token for row in rows]
    return [{"input_ids": tokenizer(text)["input_ids"][:length]} for text in texts]


def measure(options: argparse.Namespace, journal: Journal) -> dict[str, Any]:
    """Train the steps; what ``leviathan bench`` would tell of them."""
    config = layers.build("leviathan", options.profile, "full", options.set)
    chosen, tree = knobs.read(config.tree), config.tree
    total = options.warm_up + options.steps
    rows = probe.from_corpus(
        options.corpus, chosen, total, bench.ACCUMULATION, layers.row_fields(config)
    )
    others = [gpu.memory_gib - gpu.free_gib for gpu in machine.probe().gpus[:1]] or [0.0]
    if options.cap_gib:
        gauge.limit(options.cap_gib + others[0])
    set_seed(chosen.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    settings = TrainingArguments(
        output_dir=str(options.directory), max_steps=total, use_cpu=not CUDA, bf16=CUDA,
        per_device_train_batch_size=chosen.micro_batch_size,
        gradient_accumulation_steps=min(chosen.gradient_accumulation_steps, bench.ACCUMULATION),
        gradient_checkpointing=chosen.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False}, optim=chosen.optimizer,
        learning_rate=float(tree["learning_rate"]), seed=chosen.seed, logging_steps=1,
        train_sampling_strategy="sequential", save_strategy="no", report_to=[],
        remove_unused_columns=False,
    )  # fmt: skip
    (options.directory / "phase").write_text("load")
    model = load(options.base, chosen, float(tree["lora_alpha"]))
    (options.directory / "phase").write_text("train")
    measuring = gauge.Gauge(journal, options.warm_up)
    trainer = Trainer(
        model=model, args=settings, processing_class=tokenizer, callbacks=[measuring],
        train_dataset=tokenised(rows.train, tokenizer, chosen.sequence_len),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip
    measuring.install(trainer)
    trainer.train()
    found = {e["phase"]: e for e in runs.events(journal.paths) if e["event"] == "measured"}
    step = found["train"]
    context = max((found["load"]["beside_gib"] or 0.0) - others[0], 0.0)
    peak = step["resident_gib"] if "resident_gib" in step else step["reserved_gib"] + context
    speeds = bench.speeds(step, chosen.gradient_accumulation_steps)
    return {"verdict": "fits", "peak_gib": peak, "allocated_gib": step.get("allocated_gib"),
            "rows": rows.source, **speeds}  # fmt: skip


def main() -> None:
    """Measure; memory that runs out is a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    for name in ("--corpus", "--base", "--directory"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--cap-gib", type=float)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    journal = Journal(runs.RunPaths(options.directory), 1)
    try:
        result = measure(options, journal)
    except torch.OutOfMemoryError as error:
        phase = (options.directory / "phase").read_text()
        result = {"verdict": "does_not_fit", "phase": phase, "problem": str(error).split(". ")[0]}
    (options.directory / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
