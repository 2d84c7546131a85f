"""Owns what else is made of a run's model for shipping: the adapter alone, a quantised model, GGUF.

Each by the tool whose trade it is, proven where it can be run here. Does not merge (``merge``).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from leviathan import (
    corpus,
    evidence,
    files,
    merge,
    models,
    parity_finding,
    proving,
    quantisation,
    runs,
    staging,
)
from leviathan.checkpoints import Checkpoint
from leviathan.diagnosis import last_error
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.proving import Job, Merged

Tell = Callable[[str], None]

QUANTISED: dict[str, dict[str, Any]] = {
    "int8-int4": {"weight_dtype": "int4", "activation_dtype": "int8", "group_size": 32},
    "int4": {"weight_dtype": "int4", "group_size": 128},
    "fp8": {"weight_dtype": "fp8", "activation_dtype": "fp8"},
    "nvfp4": {"weight_dtype": "nvfp4", "group_size": 16},
}
"""Axolotl's ``quantization`` for each --quantize. Its other kinds are refused by Axolotl itself
(int8 alone) or saved as a pickle (mxfp4)."""
GGUF_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
"""What llama.cpp's converter writes without a further tool."""
CONVERTER = "convert_hf_to_gguf.py"
_LLAMA_CPP = "LLAMA_CPP"


def adapter(run: runs.RunPaths, checkpoint: Checkpoint, directory: Path, tell: Tell) -> Merged:
    """The adapter with its tokenizer, to be served on the base model as it is stored.

    Proven that way: on an unquantised base. What was trained on a quantised one is another model
    there, and the verdict says so.

    Raises:
        Refused: the base model is not the one trained on.
        LeviathanError: the proof failed to run.
    """
    job = proving.prepare(run, checkpoint)
    with staging.aside(directory, tell) as partial:
        made = partial / "adapter"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        for file in checkpoint.path.glob("adapter_*"):
            shutil.copyfile(file, made / file.name)
        merge.copy_tokenizer(job.base, checkpoint.path, made)
        tell("proving: the trained model, and the adapter on the base as it is stored")
        served = models.Source(
            str(job.base.resolve()), made.resolve(), row_format=job.recipe.format,
            trust_remote_code=bool(job.tree.get("trust_remote_code")),
        )  # fmt: skip
        result = proving.prove(job, made, tell, served, {"kind": "adapter"}, form="adapter")
        final = staging.put_in_place(made, directory, result.verdict)
    is_by_files = parity_finding.failed(result.parity) is not None
    if result.verdict == "different" and not is_by_files and quantisation.settings(job.tree, ""):
        reason = f"trained on a quantised base, on the base as it is stored {result.reason}"
        result = replace(result, reason=f"{reason}; merge it instead")
    return replace(result, directory=final)


def demand_quantiser(kind: str) -> None:
    """See that a model can be quantised so; only reads.

    Raises:
        BadInput: no such kind.
        Refused: the tool for it is not installed.
    """
    if kind not in QUANTISED:
        raise BadInput(f"--quantize {kind!r} is unknown", f"use one of {', '.join(QUANTISED)}")
    lacking = [name for name in ("axolotl", "torchao") if find_spec(name) is None]
    if lacking:
        raise Refused(f"--quantize needs {' and '.join(lacking)}", "pip install 'leviathan[train]'")


def quantised_name(merged: Path, kind: str) -> Path:
    """Where the quantised copy of a merged model goes."""
    return merged.with_name(f"{merged.name}-{kind}")


def gguf_name(merged: Path) -> Path:
    """Where the GGUF file of a merged model goes."""
    return merged.with_name(f"{merged.name}.gguf")


def quantised(job: Job, merged: Path, kind: str, tell: Tell) -> Merged:
    """A quantised copy beside a merged model, by ``axolotl quantize``, proven like the merge.

    The verdict keeps its meaning: within the recipe's limits of the trained model, or not. Four
    bits mostly are not; the figures say by how much.

    Raises:
        LeviathanError: Axolotl or the proof failed.
    """
    directory = quantised_name(merged, kind)
    with staging.aside(directory, tell) as partial:
        made = partial / "quantized"  # Axolotl's name
        shutil.rmtree(made, ignore_errors=True)
        tell(f"quantising to {kind} with axolotl quantize")
        _axolotl_quantize(merged, QUANTISED[kind], partial)
        merge.copy_tokenizer(merged, merged, made)
        tell("proving: base, base + adapter and quantised on the same probes")
        told = {"kind": f"quantised {kind}"}
        result = proving.prove(job, made, tell, told=told, form="quantised")
        final = staging.put_in_place(made, directory, "equal")  # under a name that says what it is
    return replace(result, directory=final)


def _axolotl_quantize(merged: Path, settings: dict[str, Any], partial: Path) -> None:
    # Its schema asks for these; nothing is trained.
    tree = {"base_model": str(merged.resolve()), "output_dir": str(partial.resolve()),
            "datasets": [{"path": "json", "type": "alpaca"}], "learning_rate": 1e-4,
            "micro_batch_size": 1, "gradient_accumulation_steps": 1,
            "quantization": settings}  # fmt: skip
    config, log = partial / "quantize.yaml", partial / "quantize.log"
    files.write_text(config, yaml.safe_dump(tree))
    command = [
        sys.executable, "-m", "axolotl.cli.main", "quantize", str(config),
        "--base-model", str(merged.resolve()), "--output-dir", str(partial.resolve()),
    ]  # fmt: skip
    _run(command, log, "axolotl quantize")
    if not list((partial / "quantized").glob("*.safetensors")):
        raise LeviathanError(f"axolotl quantize wrote no weights: {last_error(log)}")


def _run(command: list[str], log: Path, what: str) -> None:
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=environment, check=False,
        )  # fmt: skip
    if done.returncode:
        raise LeviathanError(f"{what} failed (exit code {done.returncode}): {last_error(log)}")


def converter(kind: str, given: Path | None) -> Path:
    """llama.cpp's converter: where ``given`` or $LLAMA_CPP says, or on the PATH.

    Raises:
        BadInput: no such type of file.
        Refused: it is not there.
    """
    if kind not in GGUF_TYPES:
        raise BadInput(f"--gguf {kind!r} is unknown", f"use one of {', '.join(GGUF_TYPES)}")
    place = given or (Path(os.environ[_LLAMA_CPP]) if os.environ.get(_LLAMA_CPP) else None)
    if place is None:
        found = shutil.which(CONVERTER)
        place = Path(found) if found else None
    script = place / CONVERTER if place and place.is_dir() else place
    if script is None or not script.is_file():
        where = f"{place} has no {CONVERTER}" if place else f"{CONVERTER} is not on the PATH"
        raise Refused(
            f"--gguf needs llama.cpp's converter: {where}",
            f"git clone llama.cpp, and give its directory with --llama-cpp or ${_LLAMA_CPP}",
        )
    return script


def demand_names(merged: Path, kind: str | None, *, gguf: bool, replace: bool) -> None:
    """See that what is made besides the merge may have its names; only reads.

    Raises:
        BadInput: one of them is taken.
    """
    if kind:
        staging.demand_name(quantised_name(merged, kind), replace=replace)
    target = gguf_name(merged)
    if gguf and target.exists() and not replace:
        raise BadInput(f"{target} exists already", "move it away, or --force to replace it")


def gguf(merged: Path, kind: str, script: Path, tell: Tell) -> Path:
    """``<merged>.gguf`` by llama.cpp's converter, and a record of what it was made of.

    Nothing here runs GGUF, so it is not proven: the record has the proven model's hashes.

    Raises:
        Refused: there is no room for it.
        LeviathanError: the converter failed, or wrote no GGUF.
    """
    target = gguf_name(merged)
    # The type may be wider than the merged model's: fp32 of bf16 is twice as much.
    needed = files.directory_bytes(merged) * (2 if kind == "f32" else 1)
    if needed > shutil.disk_usage(merged.parent).free:
        raise Refused(f"not enough disk space for {target}: about {needed / 1e9:.1f} GB")
    with staging.aside(target, tell) as partial:
        made, log = partial / "model.gguf", partial / "convert.log"
        tell(f"converting with {script}")
        command = [sys.executable, str(script), str(merged.resolve()),
                   "--outfile", str(made.resolve()), "--outtype", kind]  # fmt: skip
        _run(command, log, CONVERTER)
        if not made.is_file() or made.open("rb").read(4) != b"GGUF":
            raise LeviathanError(f"{CONVERTER} wrote no GGUF: {last_error(log)}")
        files.fsync_file(made)
        record = {
            "verdict": "unproven",
            "reason": "nothing here runs GGUF; made of the model whose hashes these are",
            "made_of": evidence.of(merged).told.get("hashes", {}),
            "type": kind,
            "hashes": {target.name: corpus.file_digest(made)},
        }
        made.replace(target)
        files.write_json(target.with_name(f"{target.name}.json"), record)
    return target
