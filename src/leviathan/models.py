"""Owns loading models the way they were trained or will be served, and their logits.

Imports torch inside its functions: only commands that need a model pay for it. Does
not train, merge, judge or answer (``generation``).
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from leviathan import basemodel, evidence, quantisation
from leviathan.errors import BadInput

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
)
"""What Axolotl's ``alpaca`` strategy puts before an answer (a test compares them)."""


@dataclass(frozen=True)
class Source:
    """A model on disk: a whole one, or a base and the adapter trained on it."""

    model: str
    """Directory or hub name of the whole or base model."""
    adapter: Path | None = None
    row_format: str = "alpaca"
    """The recipe's format: how a prompt is put where there is no chat template."""
    trust_remote_code: bool = False
    quantised: dict[str, Any] | None = None
    """How training quantised the base (``quantisation.settings``)."""
    train_dtype: str = ""
    """torch's name of the type a quantised base was held in before; empty: as it is computed."""
    tokenizer_from: str = ""
    """Where the tokenizer lies, if neither beside the adapter nor the model."""

    caution: str = ""
    """What is to be said of it before it is believed; empty where a run or a proof vouches."""

    @property
    def tokenizer(self) -> str:
        """Where the trained tokenizer lies: beside the adapter, if there is one."""
        return self.tokenizer_from or str(self.adapter or self.model)


def rendered(prompt: str, row_format: str) -> str:
    """A user's prompt as training put it before an answer, where there is no chat template."""
    return ALPACA.format(prompt=prompt) if row_format == "alpaca" else prompt


def local_or_hub(base_model: str) -> str:
    """An absolute path for a local model directory, a hub name as it is.

    Raises:
        BadInput: it can only be meant as a directory, and there is none.
    """
    path = Path(base_model)
    if path.is_dir():
        return str(path.resolve())
    if (
        base_model.startswith((".", "/", "~"))
        or base_model.count("/") > 1
        or ("/" in base_model and path.parent.is_dir())
    ):
        raise BadInput(f"base model directory {base_model} does not exist", "set base_model")
    return base_model


def fingerprint(base_model: str) -> str | None:
    """``xxh3_128:<hex>`` over the files of a local model; None for a hub name."""
    directory = Path(base_model)
    if not directory.is_dir():
        return None
    digest = xxhash.xxh3_128()
    for file in sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin"),
                        *directory.glob("*.json")]):  # fmt: skip
        digest.update(f"{file.name}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"


def from_run(tree: dict[str, Any], base_model: str, checkpoint: Path, row_format: str) -> Source:
    """The model a checkpoint stands for: base and adapter, quantised as in training."""
    is_adapter = (checkpoint / "adapter_config.json").exists()
    return Source(
        model=base_model if is_adapter else str(checkpoint),
        adapter=checkpoint if is_adapter else None,
        row_format=row_format,
        trust_remote_code=bool(tree.get("trust_remote_code")),
        quantised=quantisation.settings(tree, _model_type(base_model)) if is_adapter else None,
        train_dtype=quantisation.train_dtype(tree),
    )


def _model_type(base_model: str) -> str:
    """Of a model that is here; empty of another."""
    directory = basemodel.locate({"base_model": base_model}, os.environ).directory
    try:
        return str(json.loads(((directory or Path()) / "config.json").read_bytes())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def embedding_rows(shapes: Mapping[str, tuple[int, ...]], embedding: str) -> int | None:
    """Rows of the input embeddings that an adapter holds; None: it holds none.

    ``shapes`` are its tensors', ``embedding`` the module's name, such as model.embed_tokens.
    """
    for name, shape in shapes.items():
        _, found, leaf = name.partition(f"{embedding}.")
        if found and leaf in {"weight", "base_layer.weight", "modules_to_save.weight"}:
            return shape[0]
        if found and leaf.startswith("lora_embedding_A"):
            return shape[1]
    return None


def from_directory(directory: Path) -> Source:
    """A merged model; its proof remembers the format it was trained in.

    Raises:
        BadInput: not a model directory.
    """
    if not (directory / "config.json").is_file():
        raise BadInput(f"{directory} is neither a run nor a model", "give a run's name or a model")
    told = evidence.of(directory).told
    return Source(str(directory), row_format=str(told.get("format", "alpaca")))


def keep_4bit_weights(model: Any) -> None:
    """Forbid bitsandbytes to repack 4-bit weights on CPUs with AVX512-BF16.

    At the first forward pass without gradients it rounds their scales to bf16, and the way
    back does not restore them: an evaluation would change the model under training, and
    a proof would compare with another one. On a GPU there is no such path.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet() -> None:
    """Keep the training stack's import chatter and progress bars off the user's screen.

    torchao and bitsandbytes report on every import which optional kernels this machine
    cannot load; none of it is about what the user asked.
    """
    warnings.filterwarnings("ignore", module="bitsandbytes")
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torch resets it
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class Model:
    """A loaded model with its tokenizer; prompts in, logits or text out."""

    def __init__(self, source: Source, *, precise: bool = False, dtype: str | None = None) -> None:
        """``dtype``, torch's name, if it is not to be chosen by what fits."""
        quiet()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.source = source
        trust = source.trust_remote_code
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                source.tokenizer, trust_remote_code=trust
            )
            precise = precise or dtype == "float32"
            device, chosen = _placement(source, precise=precise)
            chosen = getattr(torch, dtype) if dtype else chosen
        except OSError as error:  # transformers' word for a model that is not there
            raise BadInput(f"cannot load {source.model}: {str(error).splitlines()[0]}") from error
        model = AutoModelForCausalLM.from_pretrained(
            source.model,
            dtype=_held_as(source, chosen),
            **_quantization(source, chosen),
            device_map={"": device},
            trust_remote_code=trust,
        )
        keep_4bit_weights(model)
        if source.quantised:
            _compute_as(model, chosen)
        rows = _rows(model, source.adapter, len(self.tokenizer))
        if rows != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(rows)
        if source.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(source.adapter))
        self.model: Any = model.eval()
        self.device = device
        self.computed = f"{device} {str(chosen).removeprefix('torch.')}"
        torch.manual_seed(0)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside the block this is the base model."""
        with self.model.disable_adapter() if self.source.adapter else nullcontext():
            yield

    def swap(self, adapter: Path) -> None:
        """Put another adapter on the same base: of the same run, so with the same tokenizer."""
        before = self.model.active_adapter
        self.model.load_adapter(
            str(adapter), adapter_name=adapter.name, torch_device=str(self.device)
        )
        self.model.set_adapter(adapter.name)
        self.model.delete_adapter(before)
        self.model.eval()
        self.source = replace(self.source, adapter=adapter)

    def render(self, prompt: str) -> str:
        """A user's prompt as training put it before an answer."""
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        return rendered(prompt, self.source.row_format)

    def token_ids(self, text: str) -> Any:
        """Tokens of rendered text, shape [1, T]; a template brings its own BOS."""
        templated = bool(getattr(self.tokenizer, "chat_template", None))
        encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=not templated)
        return encoded["input_ids"].to(self.device)

    def logits(self, ids: Any) -> Any:
        """Logits at every position of ``ids`` [1, T]: [T, vocabulary], float32 on the CPU."""
        import torch

        with torch.no_grad():
            return self.model(input_ids=ids.to(self.device)).logits[0].float().cpu()

    def greedy(self, ids: Any, new_tokens: int) -> tuple[list[int], Any]:
        """Exactly ``new_tokens`` greedy tokens after ``ids`` [1, T]; scores [new, vocabulary]."""
        import torch

        with torch.no_grad():
            made = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=torch.ones_like(ids, device=self.device),
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                # Which ids end a text is told by files, and a base's may tell others than a merged
                # model's. They are kept out of the way here, so all must keep out the same.
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                output_scores=True,
                return_dict_in_generate=True,
            )
        scores = torch.stack([step[0] for step in made.scores]).float().cpu()
        return made.sequences[0, ids.shape[1] :].tolist(), scores


def _placement(source: Source, *, precise: bool) -> tuple[str, Any]:
    """Where and how wide to compute: device and torch dtype.

    Precise work (proofs) prefers fp32 on the CPU, which takes rounding out of the
    comparison and fits an 8B model in 32 GB; speed prefers the GPU in bf16. Whatever
    fits the memory that is free now is taken, the CPU in bf16 as the last resort.
    """
    import psutil
    import torch

    parameters = _parameter_count(source)
    # Weights, a tenth for activations and buffers, and room for the CUDA context.
    on_gpu = parameters * (0.6 if (source.quantised or {}).get("load_in_4bit") else 2) * 1.1 + 2**30
    gpu_fits = torch.cuda.is_available() and on_gpu < torch.cuda.mem_get_info()[0]
    cpu_fits = parameters * 4 * 1.1 < psutil.virtual_memory().available
    if cpu_fits and (precise or not gpu_fits):
        return "cpu", torch.float32
    if gpu_fits:
        return "cuda:0", torch.bfloat16
    return "cpu", torch.bfloat16


def _parameter_count(source: Source) -> int:
    """Parameters of the model's architecture, counted without making weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = source.trust_remote_code
    config = AutoConfig.from_pretrained(source.model, trust_remote_code=trust)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    return int(model.num_parameters())


def _held_as(source: Source, dtype: Any) -> Any:
    """The type to load in: a quantised base is rounded to what training held it in first."""
    import torch

    return getattr(torch, source.train_dtype) if source.quantised and source.train_dtype else dtype


def _compute_as(model: Any, dtype: Any) -> None:
    """Widen or narrow what is not quantised; the way back from 4 bits keeps its own rounding."""
    for parameter in model.parameters():
        if type(parameter).__name__ not in {"Params4bit", "Int8Params"}:
            parameter.data = parameter.data.to(dtype)


def _rows(model: Any, adapter: Path | None, tokens: int) -> int:
    """How many embeddings the model had in training: as many as the adapter holds, if any."""
    into = model.get_input_embeddings()
    have = int(into.num_embeddings)
    held = None
    if adapter and (adapter / "adapter_model.safetensors").is_file():
        name = next(name for name, module in model.named_modules() if module is into)
        header = basemodel.safetensors_header(adapter / "adapter_model.safetensors")
        entries = header[1] if header else {}
        held = embedding_rows({k: tuple(v["shape"]) for k, v in entries.items()}, name)
    return held or max(have, tokens)


def _quantization(source: Source, dtype: Any) -> dict[str, Any]:
    """bitsandbytes' settings as Axolotl made them for training, or none.

    Not None: transformers would take that for the model's own settings, and a quantised model
    would be loaded with random weights.
    """
    if source.quantised is None:
        return {}
    return {"quantization_config": quantisation.bitsandbytes(source.quantised, dtype)}
