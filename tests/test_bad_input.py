"""Bad input of every kind: exit code 2, one line per problem, no traceback, nothing written."""

import json
from pathlib import Path

import pytest

from fakes import fake_files
from fakes.processes import listing
from leviathan import checkpoints, runs

TINY = ["-p", "tiny", "-r", "tiny"]
TRAIN = ["train", *TINY, "-s", "full"]
RENDER = ["render", *TINY]


def write(path: str, text: str | bytes):
    """A change to the project: ``path`` holds ``text``."""

    def change() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change  # fmt: skip


def edit(path: str, old: str, new: str):
    """A change to the project: in ``path``, ``new`` for ``old``."""

    def change() -> None:
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new))

    return change  # fmt: skip


def rows(*lines: str):
    return write("rows.jsonl", "".join(f"{line}\n" for line in lines))


ROW = '{"instruction": "i", "input": "", "output": "o"}'
PLAN = ["plan", *TINY, "-s", "full"]
SHAPE = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
PROFILE, RECIPE = "configs/profiles/tiny.yaml", "configs/recipes/tiny.yaml"


def model(**fields):
    """A change to the project: the base model's config.json says this."""
    return write("base/config.json", json.dumps({**SHAPE, **fields}))


def make_run(*steps: int):
    """A change to the project: a run ``r`` with these checkpoints."""

    def change() -> None:
        directory = runs.TRAINING / "r"
        directory.mkdir(parents=True)
        for step in steps:
            checkpoints.commit(fake_files.write_checkpoint(directory, step), {})
        record = runs.RunRecord(
            "r", "tiny", "tiny", "full", [], {"base_model": "base", "corpus": "rows.jsonl"},
            {"base_model": "base"}, 1, {"rows": 72, "path": "rows.jsonl"}, None, {}, 0.0, "stopped",
        )  # fmt: skip
        runs.write(runs.RunPaths(directory), record)
        (directory / "axolotl.yaml").write_text("base_model: base\n")

    return change


def both(*changes):
    return lambda: [change() for change in changes]


def nothing() -> None:
    pass


# name: (change to the project, command, start of every line expected on stderr)
CASES = {
    # --- names
    "unknown profile": (nothing, ["train", "-p", "a400"], ["no profile called 'a400'; did you mean a4000? known: a100-40gb, a100-80gb, a100x8, a4000, cpu, h100-80gb, h100x8, h200, rtx3090, rtx4090, tiny"]),
    "misspelt alias": (nothing, ["render", "-p", "a10"], ["no profile called 'a10'; did you mean a100"]),
    "unknown recipe": (nothing, ["train", "-p", "tiny", "-r", "tinny"], ["no recipe called 'tinny'; did you mean tiny?"]),
    "profile file that is not there": (nothing, ["render", "-p", "no/such.yaml"], ["profile file no/such.yaml does not exist"]),
    "show an unknown profile": (nothing, ["profiles", "show", "zzz"], ["no profile called 'zzz'"]),
    "diff with an unknown profile": (nothing, ["profiles", "diff", "cpu", "zzz"], ["no profile called 'zzz'"]),
    "unknown suite": (make_run(5), ["test", "r", "--suite", "leviatan"], ["no prompt suite called 'leviatan'; did you mean leviathan?"]),
    "no suite named anywhere": (make_run(5), ["test", "r"], ["which prompt suite?"]),
    # --- YAML
    "syntax error": (edit(PROFILE, "  lora_r: 8", "  lora_r: [8"), RENDER, [f"{PROFILE}:11: not valid YAML"]),
    "tab": (edit(RECIPE, "  warmup_steps", "\twarmup_steps"), RENDER, [f"{RECIPE}:10: not valid YAML"]),
    "duplicate key": (edit(PROFILE, "  lora_r: 8", "  lora_r: 8\n  lora_r: 9"), RENDER, [f"{PROFILE}:11: axolotl.lora_r is given twice"]),
    "a list, not a mapping": (write(RECIPE, "- a\n"), RENDER, [f"{RECIPE}:1: expected keys and values, found list"]),
    "binary file": (write(RECIPE, b"\x80\x04\x95"), RENDER, [f"cannot read {RECIPE}"]),
    "NUL in a file": (write(RECIPE, b"a: \x00b\n"), RENDER, [RECIPE]),
    "impossible date": (edit(RECIPE, "description: tiny, for tests", "description: 2026-02-30"), [*TRAIN, "--dry-run", "--set", "zzz=1"], ["--set zzz=1: zzz is not a key"]),
    "impossible date in --set": (nothing, [*RENDER, "--set", "zzz=2026-02-30"], ["--set zzz=2026-02-30: zzz is not a key"]),
    # --- own keys
    "misspelt own key": (edit(PROFILE, "checkpoints:", "chekpoints:"), RENDER, [f"{PROFILE}:3: chekpoints is not a known key; did you mean checkpoints?"]),
    "wrong type of an own key": (edit(PROFILE, "{keep: 5}", "{keep: five}"), RENDER, [f"{PROFILE}:3: checkpoints.keep: "]),
    "axolotl block that is no mapping": (write(PROFILE, "axolotl: [lora_r]\n"), RENDER, [f"{PROFILE}:1: axolotl: "]),
    "missing own key": (edit(RECIPE, "corpus: rows.jsonl\n", ""), RENDER, [f"{RECIPE}:1: corpus is required and missing"]),
    "two own errors at once": (edit(PROFILE, "{keep: 5}", "{keep: 0, kep: 1}"), RENDER, [f"{PROFILE}:3: checkpoints.keep: ", f"{PROFILE}:3: checkpoints.kep is not a known key"]),
    "broken profile beside the one asked for by alias": (write("configs/profiles/zz.yaml", "aliases: 5\n"), ["render", "-p", "nobody"], [""]),
    # --- axolotl's keys
    "misspelt axolotl key": (edit(PROFILE, "  lora_alpha: 16", "  lora_alfa: 16"), RENDER, [f"{PROFILE}:11: lora_alfa is not a key Axolotl knows; did you mean lora_alpha?"]),
    "wrong type of an axolotl key": (edit(PROFILE, "  lora_r: 8", "  lora_r: eight"), RENDER, [f"{PROFILE}:10: lora_r: 'eight' does not fit; expected int"]),
    "misspelt key inside datasets": (edit(RECIPE, "  warmup_steps: 2", "  datasets:\n    - ds_type: json\n      tpye: alpaca"), RENDER, [f"{RECIPE}:12: datasets.0.tpye is not a key Axolotl knows; did you mean type?"]),
    "unknown optimizer": (edit(PROFILE, "adamw_torch", "adam_torch"), TRAIN, [f"{PROFILE}:9: optimizer: 'adam_torch' does not fit"]),
    "integration key without its plugin": (edit(PROFILE, "  lora_r: 8", "  lora_r: 8\n  liger_rope: true"), RENDER, [f"{PROFILE}:11: liger_rope has no effect without its plugin"]),
    "errors of both files and of --set at once": (both(edit(PROFILE, "  lora_r: 8", "  lora_rr: 8"), edit(RECIPE, "  warmup_steps", "  warmup_step")), [*TRAIN, "--set", "xx=1"], [f"{RECIPE}:10: warmup_step is not a key", f"{PROFILE}:10: lora_rr is not a key", "--set xx=1: xx is not a key"]),
    "owned key in a file": (edit(PROFILE, "  lora_r: 8", "  lora_r: 8\n  output_dir: x"), RENDER, [f"{PROFILE}:11: output_dir is not yours to set here; the run directory decides it"]),
    "datasets that is no list": (nothing, [*RENDER, "--set", "datasets=rows.jsonl"], ["--set datasets=rows.jsonl: "]),
    "datasets taken away": (nothing, [*RENDER, "--set", "datasets=null"], [""]),
    # --- --set
    "set without =": (nothing, [*TRAIN, "--set", "lora_r"], ["--set 'lora_r' is not key=value; example: --set learning_rate=1e-4"]),
    "set of an owned key": (nothing, [*TRAIN, "--set", "output_dir=/tmp/x"], ["--set output_dir=/tmp/x: output_dir is not yours to set here"]),
    "set of an unknown key": (nothing, [*TRAIN, "--set", "lora_rr=4"], ["--set lora_rr=4: lora_rr is not a key Axolotl knows; did you mean lora_r?"]),
    "set of a wrong type": (nothing, [*TRAIN, "--set", "lora_r=[1, 2]"], ["--set lora_r=[1, 2]: lora_r: [1, 2] does not fit; expected int"]),
    "set of an unclosed list": (nothing, [*TRAIN, "--set", "lora_r=[1"], ["cannot read '[1' as a YAML value"]),
    "set of a list item that is not there": (nothing, [*RENDER, "--set", "datasets.4.type=x"], ["datasets.4 is not in the list it names"]),
    # --- sample and run name
    **{f"sample {text}": (nothing, ["train", *TINY, "-s", text], [f"--sample '{text}' is not a sample; use a share like 10pct"]) for text in ("0pct", "150pct", "-3", "abc", "0", "1.5", "10%")},
    "more rows than there are": (nothing, ["data", "sample", "rows.jsonl", "-s", "73"], ["--sample 73 asks for more rows than rows.jsonl has (72); use full"]),
    "train on more rows than there are": (nothing, ["train", *TINY, "-s", "73"], ["--sample 73 asks for more rows than rows.jsonl has (72); use full"]),
    "run name with a slash": (nothing, [*TRAIN, "--name", "a/b"], ["--name 'a/b' cannot be a run's name"]),
    "run name ..": (nothing, [*TRAIN, "--name", ".."], ["--name '..' cannot be a run's name"]),
    "run name of render": (nothing, [*RENDER, "--name", "../x"], ["--name '../x' cannot be a run's name"]),
    # --- corpus
    "missing corpus": (lambda: Path("rows.jsonl").unlink(), TRAIN, ["corpus rows.jsonl does not exist; set corpus: in the recipe"]),
    "corpus that is a directory": (nothing, [*TRAIN, "--set", "corpus=configs"], ["corpus configs is a directory without data files"]),
    "corpus that is not JSONL": (rows(ROW, ROW, "hello"), TRAIN, ["rows.jsonl:3: not JSON"]),
    "bad row far down": (rows(*[ROW] * 150, "hello"), TRAIN, ["rows.jsonl:151: not JSON"]),
    "bad row far down in a share": (rows(*[ROW] * 150, "hello"), ["train", *TINY, "-s", "150"], ["rows.jsonl:151: not JSON"]),
    "a JSON array instead of lines": (rows("[", ROW + ",", ROW, "]"), TRAIN, ["rows.jsonl:1: not JSON"]),
    "rows that are no objects": (rows("1", "2"), TRAIN, ["rows.jsonl:1: a row must be an object, found int"]),
    "empty corpus": (write("rows.jsonl", ""), TRAIN, ["corpus rows.jsonl is empty; it needs one JSON object per line"]),
    "blank corpus": (write("rows.jsonl", "\n \n"), TRAIN, ["corpus rows.jsonl is empty"]),
    "row without the format's field": (rows(ROW, '{"prompt": "p"}'), TRAIN, ["rows.jsonl:2: no 'instruction' in this row (it has: prompt); set format:"]),
    "rows of another format": (nothing, [*TRAIN, "--set", "format=chat"], ["rows.jsonl:1: no 'messages' in this row"]),
    "sample of a corpus that is not there": (nothing, ["data", "sample", "no.jsonl"], ["corpus no.jsonl does not exist"]),
    # --- plan
    "plan for a model that nobody knows": (nothing, [*PLAN, "--set", "base_model=my/model"], ["the shape of my/model is unknown"]),
    "plan for a mixture of experts": (model(model_type="mixtral"), PLAN, ["base/config.json: model_type 'mixtral' is none of the dense decoders"]),
    "plan for a model of absurd size": (model(hidden_size=0), PLAN, ["base/config.json: hidden_size must be a whole number from 1 to"]),
    "plan for a model without layers": (model(num_hidden_layers=None), PLAN, ["base/config.json: num_hidden_layers is missing"]),
    "plan without a corpus": (both(model(), lambda: Path("rows.jsonl").unlink()), PLAN, ["corpus rows.jsonl does not exist"]),
    "plan on a corpus without text": (both(model(), rows(*['{"instruction": "", "input": "", "output": ""}'] * 20)), PLAN, ["corpus rows.jsonl has no text to train on"]),
    "plan on rows of another format": (both(model(), rows('{"text": "t"}')), PLAN, ["rows.jsonl:1: no 'instruction' in this row"]),
    "plan on fewer rows than are held out": (model(), [*PLAN, "--set", "val_set_size=100"], ["val_set_size is 100"]),
    "plan with an impossible share": (model(), ["plan", *TINY, "-s", "0pct"], ["--sample '0pct' is not a sample"]),
    "plan for no hours": (model(), [*PLAN, "--fit-hours", "0"], ["--fit-hours 0 is no limit; example: --fit-hours 36"]),
    "plan for a negative budget": (model(), [*PLAN, "--budget-usd", "-5"], ["--budget-usd -5 is no limit"]),
    "plan for a budget that is no number": (model(), [*PLAN, "--budget-usd", "nan"], ["--budget-usd nan is no limit"]),
    "plan for money where nothing has a price": (model(), [*PLAN, "--budget-usd", "5"], ["no price is known for profile tiny; set price_usd_hour"]),
    "plan of an unknown key": (model(), [*PLAN, "--set", "lora_rr=4"], ["--set lora_rr=4: lora_rr is not a key Axolotl knows"]),
    "plan with no rows left": (model(), [*PLAN, "--set", "sequence_len=4"], ["no row is left to train on"]),
    "comparison with an unknown machine": (model(), [*PLAN, "--compare", "tiny,a400"], ["no profile called 'a400'; did you mean a4000?"]),
    "fit of several machines": (model(), [*PLAN, "--compare", "tiny", "--fit"], ["--fit is for one machine; leave out --compare"]),
    "plan for another corpus that is not there": (nothing, ["plan", "-p", "a4000", "--set", "corpus=typo.jsonl"], ["corpus typo.jsonl does not exist"]),
    "comparison of nothing": (model(), [*PLAN, "--compare", ","], ["--compare ',' names no profiles"]),
    # --- runs and checkpoints
    "resume from a checkpoint of no run": (nothing, [*TRAIN, "--resume", "checkpoint-999"], ["work/training/tiny_full_tiny has no checkpoints"]),
    "resume from a checkpoint that is not there": (make_run(5), [*TRAIN, "--name", "r2", "--resume", "checkpoint-999"], ["work/training/r2 has no checkpoints"]),
    "resume from nonsense": (lambda: checkpoints.commit(fake_files.write_checkpoint(runs.TRAINING / "n", 5), {}), [*TRAIN, "--name", "n", "--resume", "newest"], ["'newest' names no checkpoint; use best, latest, N or checkpoint-N"]),
    "resume from a number that is not there": (lambda: checkpoints.commit(fake_files.write_checkpoint(runs.TRAINING / "n", 5), {}), [*TRAIN, "--name", "n", "--resume", "checkpoint-999"], ["no checkpoint 'checkpoint-999' in work/training/n; there are: 5"]),
    "checkpoints of an unknown run": (make_run(5), ["checkpoints", "list", "nope"], ["no run 'nope'; runs in work/training: r"]),
    "checkpoints where there is no run": (nothing, ["checkpoints", "list"], ["which run? name it; runs in work/training: none"]),
    "checkpoint that is not there": (make_run(5), ["checkpoints", "show", "r", "-c", "7"], ["no checkpoint '7' in work/training/r; there are: 5"]),
    "damaged run record": (both(make_run(5), write("work/training/r/run.json", '{"schema": 1, ')), [*TRAIN, "--name", "r"], ["work/training/r/run.json is damaged"]),
    "run record of a newer Leviathan": (both(make_run(5), write("work/training/r/run.json", '{"schema": 9}')), [*TRAIN, "--name", "r"], ["work/training/r/run.json has schema 9; this Leviathan reads 1; use the Leviathan version that wrote it"]),
    # --- merge, test, infer
    "merge of a run without checkpoints": (make_run(), ["merge", "r"], ["work/training/r has no checkpoints; train first"]),
    "merge of an unknown checkpoint": (make_run(5), ["merge", "r", "-c", "9"], ["no checkpoint '9' in work/training/r"]),
    "merge into an existing directory": (both(make_run(5), write("models/r-merged/merge-proof.json", "{}")), ["merge", "r"], ["models/r-merged exists already; choose another with --output, or --force"]),
    "merge into a file, forced": (both(make_run(5), write("m", "")), ["merge", "r", "-o", "m", "--force"], ["m exists and is no merged model"]),
    "merge below a file": (both(make_run(5), write("m", "")), ["merge", "r", "-o", "m/x"], [""]),
    "merge in an unknown type": (make_run(5), ["merge", "r", "--dtype", "int8"], ["--dtype 'int8' is no type to merge in; use one of bf16, fp16, fp32"]),
    "merge into files of no size": (make_run(5), ["merge", "r", "--shard-gb", "0"], ["--shard-gb 0 is no size of a file"]),
    "merge into files of nan GB": (make_run(5), ["merge", "r", "--shard-gb", "nan"], ["--shard-gb nan is no size of a file"]),
    "adapter alone, and quantised": (make_run(5), ["merge", "r", "--adapter-only", "--quantize", "int4"], ["--adapter-only makes no model; leave out --dtype, --quantize and --gguf"]),
    "quantised in an unknown way": (make_run(5), ["merge", "r", "--quantize", "gptq"], ["--quantize 'gptq' is unknown; use one of int8-int4, int4, fp8, nvfp4"]),
    "GGUF of an unknown type": (make_run(5), ["merge", "r", "--gguf", "q4_k_m"], ["--gguf 'q4_k_m' is unknown; use one of auto, f32, f16, bf16, q8_0"]),
    "min-pass of 150%": (make_run(5), ["test", "r", "--suite", "leviathan", "--min-pass", "150%"], ["--min-pass '150%' is not a percentage; use 75 or 75%"]),
    "min-pass of words": (make_run(5), ["test", "r", "--suite", "leviathan", "--min-pass", "most"], ["--min-pass 'most' is not a percentage"]),
    "test of an unknown target": (nothing, ["test", "nope"], ["no run 'nope'"]),
    "suite with two errors": (both(make_run(5), write("s.yaml", "cases:\n  - nam: a\n    prompt: p\n    checks: [{exact: b}]\n")), ["test", "r", "--suite", "s.yaml"], ["s.yaml:2: cases.0.name is required and missing", "s.yaml:2: cases.0.nam is not a known key; did you mean name?"]),
    "tasks and all checkpoints": (make_run(5), ["test", "r", "--tasks", "a", "--all-checkpoints"], ["--tasks and --all-checkpoints together; --checkpoint N takes --tasks"]),
    "a path of tasks without tasks": (make_run(5), ["test", "r", "--task-path", "."], ["--task-path without --tasks; name the tasks"]),
    "all checkpoints of a server": (nothing, ["test", "http://127.0.0.1:9", "--suite", "leviathan", "--all-checkpoints"], ["--all-checkpoints is about a run; name the run"]),
    "nothing to ask": (make_run(5), ["infer", "r"], ["nothing to ask: no --prompt and no terminal"]),
    "three wrong --set at once": (nothing, [*RENDER, "--set", "lora_r", "--set", "a b=1", "--set", "x=[1"], ["--set 'lora_r' is not", "--set 'a b=1' is not", "cannot read '[1'"]),
    "owned and unknown keys at once": (nothing, [*RENDER, "--set", "output_dir=x", "--set", "sequence_length=5"], ["--set output_dir=x: output_dir is not yours", "--set sequence_length=5: sequence_length is not a key Axolotl knows"]),
    "own and axolotl keys of one file at once": (both(edit(PROFILE, "{keep: 5}", "{kep: 5}"), edit(PROFILE, "  lora_alpha: 16", "  lora_alfa: 16")), RENDER, [f"{PROFILE}:3: checkpoints.kep", f"{PROFILE}:11: lora_alfa is not a key"]),
    "base model directory that is not there": (edit(RECIPE, "base_model: base", "base_model: ./bsae"), TRAIN, ["base model directory ./bsae does not exist"]),
    "dataset path of the user's own": (nothing, [*TRAIN, "--set", "datasets.0.path=other.jsonl"], ["--set datasets.0.path=other.jsonl: datasets.0.path is where the sample is put"]),
    "merge --force over what is no model": (both(make_run(5), write("m/notes.txt", "mine")), ["merge", "r", "-o", "m", "--force"], ["m exists and is no merged model"]),
    "cleanup without a terminal": (make_run(5, 10, 15), ["checkpoints", "cleanup", "r", "--keep", "1"], ["nothing was deleted; these would go: checkpoint-5, checkpoint-10; say --yes"]),
    "one alias in two profiles": (both(write("configs/profiles/p1.yaml", "aliases: [zz]\n"), write("configs/profiles/p2.yaml", "aliases: [zz]\n")), ["profiles", "show", "zz"], ["configs/profiles/p2.yaml and configs/profiles/p1.yaml both have the alias zz"]),
    "unknown option": (nothing, ["train", "--smaple", "5"], ["No such option"]),
    "unknown command": (nothing, ["trian"], ["No such command 'trian'. Did you mean 'train'; see "]),
    "option of a wrong type": (make_run(5), ["checkpoints", "cleanup", "r", "--keep", "0"], ["Invalid value for '--keep'"]),
    "missing argument": (nothing, ["profiles", "show"], ["Missing argument"]),
    "two files wrong at once": (both(edit(RECIPE, "seed: 42", "sed: 42"), edit(PROFILE, "{keep: 5}", "{kep: 5}")), RENDER, [f"{RECIPE}:", f"{PROFILE}:3: checkpoints.kep"]),
    "set of a nested own key": (nothing, [*RENDER, "--set", "merge.argmax_agrement=1"], ["--set merge.argmax_agrement=1: merge.argmax_agrement is not a known key; did you mean argmax_agreement?"]),
    "set of a profile's own key": (nothing, [*RENDER, "--set", "checkpoints.keep=none"], ["--set checkpoints.keep=none: checkpoints.keep: "]),
    # --- disk
    "work is a file": (write("work", ""), TRAIN, ["cannot write to work; runs live in work/ of this directory"]),
    "data sample with a file as work": (write("work", ""), ["data", "sample", "rows.jsonl", "-s", "5"], [""]),
    "render below a file": (write("m", ""), [*RENDER, "-o", "m/x.yaml"], [""]),
    "render over a directory": (nothing, [*RENDER, "-o", "configs"], [""]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(run_cli, project, name):
    change, command, starts = CASES[name]
    change()
    before = listing(project)
    done = run_cli(*command)
    problem = done.exception
    assert problem is None or isinstance(problem, SystemExit), f"traceback: {problem!r}"
    lines = done.stderr.splitlines()
    assert done.exit_code == 2, done.output
    assert len(lines) == len(starts), done.stderr
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"leviathan: {start}")
    assert done.stdout == ""
    assert listing(project) == before


def test_a_date_is_text_and_a_run_can_remember_it(trainings):
    """--set wandb_name=2026-11-21 is what people write; run.json is JSON."""
    run = trainings.run("--set", "wandb_name=2026-11-21", steps=1)
    assert run.code == 0, run
    record = json.loads((trainings.run_dir / "run.json").read_text())
    assert record["tree"]["wandb_name"] == "2026-11-21"
