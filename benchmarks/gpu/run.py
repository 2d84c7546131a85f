"""Measures on one NVIDIA GPU what only a GPU can show, within 8 minutes and without a network.

    python benchmarks/gpu/run.py [--out FOLDER] [--minutes 7.5] [--only NAME,NAME]
    python benchmarks/gpu/run.py --tiny          # the same on the CPU, with a tiny model

The profiles a4000 (memory capped to what such a card has) and a100-80gb on the shape of
Llama-3.1-8B with random weights, beside the guide's own values and a plain Trainer with PEFT,
all on rows of one made-up corpus, one after the other; and the plan's prediction for each.
Printed: one table. Written: results.json, calibrations.jsonl and logs, into the folder.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watcher import Watcher

from leviathan import calibrations, cards, config, layers, machine, runs, stand_in

HERE = Path(__file__).resolve().parent
RECIPE, SAMPLE, CORPUS = "leviathan", "full", "rows.jsonl"
CALIBRATIONS = calibrations.FILE
ROWS = 3000
SPREAD = 1.0  # of the logarithm of a row's bytes; assumed, the guide gives the mean alone
USABLE = 0.98  # of a card's nominal memory (docs/planning.md)
LEAST_S = 20.0  # in less nothing is even loaded
STOP_S = 20.0
TINY_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
# What no CPU can do goes; sizes shrink.
TINY = [
    "base_model=tiny", "hardware.device=cpu", "hardware.bf16_tflops=null", "bf16=false",
    "tf32=false", "sequence_len=256", "gradient_accumulation_steps=2",
    "dataset_num_proc=1", "lora_r=8", "plugins=null",
    *(f"lora_{name}_kernel=false" for name in ("qkv", "o", "mlp", "embedding")),
    *(f"liger_{name}=null" for name in ("rope", "rms_norm", "glu_activation",
                                        "fused_linear_cross_entropy")),
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One thing to measure."""

    name: str
    profile: str
    """Name or file."""
    card_gib: float
    """Memory of the card it is for."""
    plain: bool = False
    """By ``plain_trainer.py`` instead of ``leviathan bench``."""

    @property
    def group(self) -> str:
        """Variants of one group are compared."""
        return self.name.partition("-")[2]


# The most telling first: time may run out.
VARIANTS = (
    Variant("leviathan-a4000", "a4000", 16),
    Variant("plain-a4000", str(HERE / "plain-a4000.yaml"), 16, plain=True),
    Variant("leviathan-a100", "a100-80gb", 80),
    Variant("guide-a100", str(HERE / "guide-a100.yaml"), 80),
    Variant("guide-a4000", str(HERE / "guide-a4000.yaml"), 16),
    Variant("plain-a100", str(HERE / "plain-a100.yaml"), 80, plain=True),
)


@dataclass(frozen=True)
class Result:
    """What became of one variant. Memory in GiB is that of training steps."""

    name: str
    outcome: str
    """``measured``, ``out of memory in phase train`` or why there is nothing."""
    capped_gib: float | None = None
    tok_s: float | None = None
    """Without padding."""
    padded_tok_s: float | None = None
    step_s: float | None = None
    steps: int = 0
    allocated_gib: float | None = None
    reserved_gib: float | None = None
    """Torch's reserve and the CUDA context; resident memory on a CPU."""
    driver_gib: float | None = None
    """As nvidia-smi shows it, over the whole run; managed memory included."""
    utilisation_pct: float | None = None
    seconds: float = 0.0
    """In all, from the start of the process."""
    predicted: dict[str, Any] = field(default_factory=dict)
    """The plan's memory_gib, tok_s (padding included) and verdict, made before measuring."""


def main() -> None:
    """Measure until everything is or time is up; print and write what there is."""
    options = _options()
    deadline = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    gpus = machine.probe().gpus
    if not gpus and not options.tiny:
        sys.exit("there is no NVIDIA GPU here; --tiny goes through everything on the CPU")
    path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in path)
    os.chdir(work)
    bench = Bench(options, deadline, gpus[0] if gpus and not options.tiny else None, out)
    bench.prepare()
    chosen = [v for v in VARIANTS if not options.only or v.name in options.only.split(",")]
    predictions = {v.name: bench.predict(v) for v in chosen}
    results = []
    for variant in chosen:
        results.append(replace(bench.measure(variant), predicted=predictions[variant.name]))
        write(bench, results)
        print(f"{variant.name}: {results[-1].outcome}, {results[-1].seconds:.0f} s", flush=True)
    print(table(bench.title, results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("work/gpu/out"), help="for the results")
    parser.add_argument("--work", type=Path, default=Path("work/gpu"), help="16 GiB of weights")
    parser.add_argument("--minutes", type=float, default=7.5, help="in all")
    parser.add_argument("--steps", type=int, default=8, help="measured")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before those")
    parser.add_argument("--only", help=", ".join(v.name for v in VARIANTS))
    parser.add_argument("--tiny", action="store_true", help="on the CPU, nothing of real size")
    options = parser.parse_args()
    unknown = set((options.only or VARIANTS[0].name).split(",")) - {v.name for v in VARIANTS}
    if unknown:
        parser.error(f"no variant called {', '.join(sorted(unknown))}")
    return options


class Bench:
    """Carries the variants out, each in processes of its own."""

    def __init__(
        self, options: argparse.Namespace, deadline: float, gpu: machine.Gpu | None, out: Path
    ) -> None:
        self.options, self.deadline, self.gpu, self.out = options, deadline, gpu, out
        self.sets = ["--set", f"corpus={CORPUS}"]
        self.sets += [word for each in TINY if options.tiny for word in ("--set", each)]
        self.base = Path()
        self.environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        }  # fmt: skip

    @property
    def title(self) -> str:
        """Where it was measured."""
        name = self.gpu.name if self.gpu else f"{machine.cpu_name()} (a trial, no measurement)"
        return f"{name}, {datetime.now(UTC):%d %B %Y}"

    def prepare(self) -> None:
        """The corpus, and the base model that all variants train; no earlier measurement."""
        CALIBRATIONS.unlink(missing_ok=True)  # the plan would go by them
        if self.options.tiny:
            Path("tiny").mkdir(exist_ok=True)
            Path("tiny/config.json").write_text(json.dumps(TINY_CONFIG))
        write_rows(Path(CORPUS))
        tree = layers.build(RECIPE, VARIANTS[0].profile, SAMPLE, self.sets[1::2]).tree
        found = stand_in.find(tree)
        self.base = stand_in.make(found, print) if not found.real else Path(found.name)

    def predict(self, variant: Variant) -> dict[str, Any]:
        """The plan for this GPU; nothing that is measured here is known to it yet."""
        facts = []
        if self.gpu:
            card = cards.card(self.gpu, cards.shipped())
            facts = [f"hardware.gpu={card.name}", f"hardware.bf16_tflops={card.bf16_tflops}",
                     f"hardware.memory_gb_s={card.memory_gb_s}"]  # fmt: skip
        sets = [word for each in facts if "None" not in each for word in ("--set", each)]
        words = ["plan", "--json", *self._what(variant), *sets]
        done = subprocess.run(
            [sys.executable, "-m", "leviathan.cli", *words],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode not in {0, 3}:  # 3: it does not fit
            sys.exit(f"the plan of {variant.name} failed:\n{done.stderr}")
        told = json.loads(done.stdout)
        return {name: told[name] for name in ("verdict", "memory_gib", "tok_s")}

    def _what(self, variant: Variant) -> list[str]:
        return ["-p", variant.profile, "-r", RECIPE, "-s", SAMPLE, *self.sets]

    def measure(self, variant: Variant) -> Result:
        """Run one variant, if card and time allow."""
        cap = None
        if self.gpu:
            if self.gpu.memory_gib < 0.9 * variant.card_gib:
                return Result(variant.name, f"needs a card of {variant.card_gib:g} GiB")
            smaller = self.gpu.memory_gib > 1.1 * variant.card_gib
            cap = variant.card_gib * USABLE if smaller and variant.card_gib < 80 else None
        if self.deadline - time.monotonic() < LEAST_S:
            return Result(variant.name, "no time left")
        began = time.monotonic()
        with Watcher() as watcher:
            result = (self._plain if variant.plain else self._bench)(variant, cap, watcher)
        seconds = time.monotonic() - began
        return replace(result, capped_gib=cap, driver_gib=watcher.peak_gib(), seconds=seconds)

    def _bench(self, variant: Variant, cap: float | None, watcher: Watcher) -> Result:
        command = [sys.executable, "-m", "leviathan.cli", "bench", "--json", "--force",
                   *self._what(variant), *self._length(cap)]  # fmt: skip
        output, ended = self._run(variant, command)
        try:
            told = json.loads(output)
        except ValueError:
            return Result(variant.name, ended)
        if told["verdict"] != "fits":
            return Result(variant.name, f"out of memory in phase {told['phase']}")
        return Result(
            variant.name, "measured",
            **{name: told[name] for name in ("tok_s", "padded_tok_s", "step_s", "steps")},
            allocated_gib=told["allocated_gib"].get("train"),
            reserved_gib=told["peaks_gib"]["train"],
            utilisation_pct=utilisation(watcher, Path(told["run"])),
        )  # fmt: skip

    def _plain(self, variant: Variant, cap: float | None, watcher: Watcher) -> Result:
        directory = Path("plain") / variant.name
        shutil.rmtree(directory, ignore_errors=True)
        command = [sys.executable, str(HERE / "plain_trainer.py"), variant.profile,
                   "--corpus", CORPUS, "--base", str(self.base), "--directory", str(directory),
                   *self.sets, *self._length(cap)]  # fmt: skip
        _, ended = self._run(variant, command)
        try:
            told = json.loads((directory / "result.json").read_text())
        except (OSError, ValueError):
            return Result(variant.name, ended)
        if told["verdict"] != "fits":
            return Result(variant.name, f"out of memory in phase {told['phase']}")
        return Result(
            variant.name, "measured",
            **{name: told[name] for name in ("tok_s", "padded_tok_s", "step_s", "steps")},
            allocated_gib=told["allocated_gib"], reserved_gib=told["peak_gib"],
            utilisation_pct=utilisation(watcher, directory),
        )  # fmt: skip

    def _length(self, cap: float | None) -> list[str]:
        capped = ["--cap-gib", str(cap)] if cap else []
        return ["--steps", str(self.options.steps), "--warm-up", str(self.options.warm_up), *capped]

    def _run(self, variant: Variant, command: list[str]) -> tuple[str, str]:
        """What it printed, and how it ended in words; interrupted when time is up."""
        with (self.out / f"{variant.name}.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
            try:
                output, _ = process.communicate(timeout=self.deadline - time.monotonic())
            except subprocess.TimeoutExpired:
                stop(process)
                return "", "out of time"
            except KeyboardInterrupt:
                stop(process)
                raise
        return output, f"failed with exit code {process.returncode}, see {variant.name}.log"


def stop(process: subprocess.Popen[str]) -> None:
    """As Ctrl+C would; at once if that does not help."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def utilisation(watcher: Watcher, directory: Path) -> float | None:
    """Of the GPU between the first and the last training step."""
    found = [e for e in runs.events(runs.RunPaths(directory)) if e["event"] == "measured"]
    at = {e["phase"]: e["time"] for e in found}
    return watcher.utilisation_pct(at["load"], at["train"])


def write_rows(path: Path) -> None:
    """A made-up corpus as long-tailed as the guide's and of its mean row; always the same.

    The text is the shipped documentation, from random places.
    """
    size = config.load_recipe(RECIPE)[1].corpus_size
    assert size
    lines = (config.directories("demo")[-1] / "stdlib.jsonl").read_text().splitlines()
    text = "\n".join(t for line in lines if isinstance(t := json.loads(line).get("text"), str))
    text *= 2
    chance = random.Random(42)  # noqa: S311 - a sample, not a secret
    median = size.bytes / size.rows / math.exp(SPREAD**2 / 2)  # of a log-normal distribution
    with path.open("w") as out:
        for _ in range(ROWS):
            at = chance.randrange(len(text) // 2)
            length = int(median * math.exp(chance.gauss(0, SPREAD)))
            answer = text[at : at + min(max(length, 50), len(text) // 2)]
            row = {"instruction": "Go on.", "input": "", "output": answer}
            out.write(json.dumps(row) + "\n")


def write(bench: Bench, results: list[Result]) -> None:
    """results.json, and what ``bench`` keeps, into the folder."""
    document = {
        "where": bench.title, "tiny": bench.options.tiny, "versions": machine.versions(),
        "steps": bench.options.steps, "warm_up": bench.options.warm_up,
        "results": [asdict(result) for result in results],
    }  # fmt: skip
    (bench.out / "results.json").write_text(json.dumps(document, indent=2))
    if CALIBRATIONS.exists():
        shutil.copyfile(CALIBRATIONS, bench.out / "calibrations.jsonl")


HEADERS = ("variant", "tok/s", "of ours", "padded", "plan", "step s", "alloc", "reserved",
           "driver", "plan GiB", "busy")  # fmt: skip


def table(title: str, results: list[Result]) -> str:
    """One line a variant; speeds also as a share of Leviathan's in the same group."""
    ours = {r.name.partition("-")[2]: r.tok_s for r in results if r.name.startswith("leviathan-")}
    rows = [HEADERS]
    for r in results:
        reference = ours.get(r.name.partition("-")[2])
        share = f"{r.tok_s / reference:.0%}" if r.tok_s and reference else "-"
        rows.append(
            (r.name, _n(r.tok_s, 0), share, _n(r.padded_tok_s, 0), _range(r, "tok_s", 0),
             _n(r.step_s, 2), _n(r.allocated_gib), _n(r.reserved_gib), _n(r.driver_gib),
             _range(r, "memory_gib", 1), _n(r.utilisation_pct, 0))
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADERS))]
    lines = [title, "tok/s without padding; plan's tok/s with; memory in GiB, of training steps"]
    for row, result in zip(rows, [None, *results], strict=True):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([*cells, *(_remarks(result) if result else ())]))
    return "\n".join(lines)


def _remarks(result: Result) -> Iterator[str]:
    if result.capped_gib:
        yield f"capped to {result.capped_gib:.1f} GiB"
    if result.outcome != "measured":
        yield f"{result.outcome} (plan: {result.predicted['verdict'].replace('_', ' ')})"


def _n(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _range(result: Result, name: str, digits: int) -> str:
    found = result.predicted.get(name)
    if not found:
        return "-"
    return f"{_n(found['low'], digits)}-{_n(found['high'], digits)}"


if __name__ == "__main__":
    main()
