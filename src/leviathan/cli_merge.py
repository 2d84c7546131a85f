"""Owns the command ``merge``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from leviathan.cli_checkpoints import CheckpointOption, RunArgument
from leviathan.cli_config import JsonOption


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("merge", short_help="Merge, and prove the merge.")(merge)


def merge(
    run: RunArgument = None,
    checkpoint: CheckpointOption = "best",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default models/<run>-merged, or <run>-adapter."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing output directory.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bf16, fp16 or fp32. Default: as the base has it.")
    ] = None,
    shard_gb: Annotated[
        float | None,
        typer.Option("--shard-gb", help="Largest file of weights, in GB. Default 5."),
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option("--adapter-only", help="No merge: the adapter, ready to serve on its base."),
    ] = False,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize", help="Also a quantised copy: int8-int4, int4, fp8 or nvfp4 (torchao)."
        ),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option("--gguf", help="Also a GGUF file: auto, f32, f16, bf16 or q8_0."),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="Where llama.cpp lies, for --gguf. Default $LLAMA_CPP."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge a checkpoint into the base model, and prove that the result is what was trained.

    Of a training of every weight nothing is merged: the checkpoint's own files, proven.
    """
    from leviathan import exports, runs, ui
    from leviathan import merge as merging
    from leviathan.errors import BadInput

    if adapter_only and (dtype or quantize or gguf):
        raise BadInput("--adapter-only makes no model", "leave out --dtype, --quantize and --gguf")
    if llama_cpp and not gguf:
        raise BadInput("--llama-cpp is for --gguf", "say which type: --gguf bf16")
    options = merging.Options(dtype, shard_gb)
    if quantize:
        exports.demand_quantiser(quantize)
    script = exports.converter(gguf, llama_cpp) if gguf else None
    paths = runs.find(run)
    suffix = "adapter" if adapter_only else "merged"
    chosen, directory = merging.plan(paths, checkpoint, output, replace=force, suffix=suffix)
    exports.demand_names(directory, quantize, gguf=bool(gguf), replace=force)
    if adapter_only:
        result = exports.adapter(paths, chosen, directory, ui.notice)
    else:
        result = merging.merge(paths, chosen, directory, ui.notice, options)
    more: dict[str, Any] = {}
    try:
        if quantize and result.verdict == "equal":
            copy = exports.quantised(result.job, result.directory, quantize, ui.notice)
            more["quantised"] = copy
        if gguf and script and result.verdict == "equal":
            more["gguf"] = exports.gguf(result.directory, gguf, script, ui.notice)
    finally:  # the merge is made and proven, whatever became of its copies
        _show(result, more, as_json=as_json, adapter_only=adapter_only)


def _show(result: Any, more: dict[str, Any], *, as_json: bool, adapter_only: bool) -> None:
    from leviathan import evidence, ui, wholemodel
    from leviathan.errors import Refused

    if as_json:
        document = _document(result)
        if "quantised" in more:
            document["quantised"] = _document(more["quantised"])
        if "gguf" in more:
            document["gguf"] = str(more["gguf"])
        ui.document(document)
    if result.verdict != "equal":
        if not as_json:
            _parity(result)
        raise Refused(
            f"{result.directory} is unverified: {result.reason}",
            f"see {result.directory / evidence.PROOF}",
        )
    if as_json:
        return
    as_it_is = adapter_only or wholemodel.is_whole(result.checkpoint.path)
    done = "is ready in" if as_it_is else "merged into"
    ui.say(f"{result.checkpoint.path.name} {done} {result.directory}")
    ui.say(f"proof: equal; {_figures(result.comparison)}")
    _parity(result)
    if "quantised" in more:
        found = more["quantised"]
        ui.say(f"quantised into {found.directory}")
        ui.say(f"  against the trained model: {found.verdict}; {_figures(found.comparison)}")
        _parity(found)
    if "gguf" in more:
        ui.say(f"GGUF in {more['gguf']}, not proven: nothing here runs it")


def _document(result: Any) -> dict[str, Any]:
    return {"verdict": result.verdict, "reason": result.reason,
            "output": str(result.directory), **result.comparison,
            "serving_parity": [asdict(one) for one in result.parity]}  # fmt: skip


def _parity(result: Any) -> None:
    from leviathan import parity_finding, ui

    for line in parity_finding.lines(result.parity):
        ui.say(line)


def _figures(found: dict[str, Any]) -> str:
    served = found["serving"]
    kind = served["computed"].split()[-1]
    return (
        f"{found['argmax_agreement']:.1%} of {found['positions']} positions agree, max difference "
        f"{found['max_abs_diff']:.2g} where training's effect is {found['adapter_effect']:.2g}; "
        f"in {kind} {served['argmax_agreement']:.1%} and {served['max_abs_diff']:.2g}, greedy "
        f"tokens {served['greedy_agreement']:.0%} (base {served['base_greedy_agreement']:.0%})"
    )
