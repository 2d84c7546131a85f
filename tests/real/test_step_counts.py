"""Predicted rows, tokens and steps are those of the real Axolotl."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from project import Project

import tiny
from leviathan import figures, knobs, layers, steps, tokens

pytestmark = pytest.mark.real

MESSAGES = ("system", "user", "assistant", "user", "assistant")
CHAT = ("format=chat", "chat_template=chatml")
PACKED = ("sample_packing=true", "dataset_num_proc=1")


@dataclass
class Case:
    """One training: its rows, and what is set."""

    rows: int
    sets: tuple[str, ...] = ()
    sample: str = "full"
    profile: str = "tiny"
    format: str = "alpaca"
    longest: int = 60
    """Words in the longest row; sequence_len is 64."""

    @property
    def packed(self) -> bool:
        return PACKED[0] in self.sets


ALPACA = [
    Case(37),
    Case(50, ("micro_batch_size=3", "gradient_accumulation_steps=4", "epochs=2")),
    Case(61, ("val_set_size=0.1", "gradient_accumulation_steps=2", "epochs=1.5")),
    Case(45, ("excess_length_strategy=truncate", "micro_batch_size=2", "val_set_size=0", "eval_steps=null")),
    Case(80, ("train_on_inputs=true", "dataloader_drop_last=true", "epochs=2"), sample="53"),
    Case(40, ("max_steps=7", "min_sample_len=50")),
    Case(90, (*PACKED, "micro_batch_size=2", "epochs=2")),
    Case(130, (*PACKED, "gradient_accumulation_steps=3", "epochs=1.5", "val_set_size=0.2"), sample="80pct"),
    Case(120, (*PACKED, "excess_length_strategy=truncate", "micro_batch_size=1", "eval_sample_packing=false")),
    Case(120, (*PACKED, "curriculum_sampling=true", "epochs=2", "gradient_accumulation_steps=2")),
    Case(150, (*PACKED, "sample_packing_bin_size=2", "sample_packing_group_size=40", "micro_batch_size=1")),
    Case(110, (*PACKED, "sample_packing_sequentially=true", "micro_batch_size=2")),
    Case(100, (*PACKED, "multipack_real_batches=false", "micro_batch_size=2", "val_set_size=20")),
]  # fmt: skip
OTHERS = [
    Case(60, ("format=completion", "epochs=2"), format="completion", longest=200),
    Case(90, ("format=completion", *PACKED, "micro_batch_size=2"), format="completion", longest=200),
    Case(50, (*CHAT, "micro_batch_size=2", "gradient_accumulation_steps=2"), format="chat"),
    Case(80, (*CHAT, *PACKED, "micro_batch_size=1", "val_set_size=0.1"), format="chat"),
]  # fmt: skip
TWO = [
    Case(83, ("gradient_accumulation_steps=2", "epochs=2", "val_set_size=9"), profile="two"),
    Case(160, (*PACKED, "gradient_accumulation_steps=2", "micro_batch_size=1", "epochs=2"), profile="two"),
]  # fmt: skip


def text(chance: random.Random, longest: int) -> str:
    return " ".join(chance.choices(tiny.WORDS, k=chance.randint(1, longest)))


def row(chance: random.Random, case: Case) -> dict:
    if case.format == "completion":
        return {"text": text(chance, case.longest)}
    if case.format == "chat":
        ends = [2, 3, 5] if case.packed else [3, 5]
        roles = MESSAGES[chance.randint(0, 1) : chance.choice(ends)]
        return {"messages": [{"role": r, "content": text(chance, 8)} for r in roles]}
    # Some without an answer: packed, Axolotl drops them. The prompt alone takes some 100 tokens.
    # (Unpacked they are kept, and a batch of nothing else has no loss.)
    answer = "" if case.packed and chance.random() < 0.1 else text(chance, case.longest)
    made = {"instruction": text(chance, 5), "output": answer}
    return {**made, "input": text(chance, 5)} if chance.random() < 0.3 else made


def write(path: Path, case: Case) -> None:
    chance = random.Random(case.rows)
    rows = [row(chance, case) for _ in range(case.rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def predicted(case: Case, sets: list[str]) -> tuple[list[int], steps.Steps]:
    """Tokens of the rows that are kept, and the steps."""
    config = layers.build("tiny", case.profile, case.sample, sets)
    corpus = Path(config.recipe.corpus)
    source = figures.Source(corpus, case.sample, config.recipe.seed, Path("elsewhere"), config.tree)
    found = tokens.measure(source)
    assert found.exact
    read = knobs.read(config.tree, config.profile.hardware.count)
    rules = steps.rules(config.tree)
    kept = sorted(filter(None, steps.prepare(found, read, rules)))
    return kept, steps.predict(found, read, rules)


def prepared(project: Project, run: str) -> list[int]:
    """Tokens of every row of the prepared dataset."""
    (folder,) = (project.path(run) / "prepared").glob("*/dataset_info.json")
    lengths: list[int] = []
    for file in sorted(folder.parent.glob("*.arrow")):
        with pa.memory_map(str(file)) as source:
            column = pa.ipc.open_stream(source).read_all().column("input_ids")
        lengths += [len(ids) for ids in column.to_pylist()]
    return sorted(lengths)


def check(project: Project, case: Case, monkeypatch) -> None:
    monkeypatch.chdir(project.directory)
    write(project.directory / "rows.jsonl", case)
    limit = 64 if case.format == "chat" else 180 if case.format == "alpaca" else 100
    sets = [f"sequence_len={limit}", "save_steps=1000", "eval_steps=1000", *case.sets]
    rows, expected = predicted(case, sets)
    assert expected.exact

    options = [option for value in sets for option in ("--set", value)]
    done = project.run("train", "--profile", case.profile, "--recipe", "tiny",
                       "--sample", case.sample, *options)  # fmt: skip
    assert done.code == 0, done.err
    run = f"tiny_{case.sample}_{case.profile}"

    assert prepared(project, run) == rows
    assert len(rows) == expected.train_rows + expected.eval_rows
    lines = [line for line in project.metrics(run) if "loss" in line]
    assert lines[0]["max_steps"] == expected.steps
    assert lines[-1]["step"] == expected.steps
    assert lines[-1]["tokens/total"] == pytest.approx(
        expected.slots, rel=0.03 if case.packed else 0.1
    )
    epochs = lines[-1]["epoch"] * expected.train_rows / len(rows)
    assert expected.train_tokens == pytest.approx(sum(rows) * epochs, rel=0.05)
    evaluations = [line for line in project.metrics(run) if "eval_runtime" in line]
    assert bool(evaluations) == bool(expected.eval_rows)
    if expected.eval_rows and (
        not case.packed or "eval_sample_packing=false" in case.sets
    ):  # packed, the Trainer counts rows
        batches = evaluations[0]["eval_runtime"] * evaluations[0]["eval_steps_per_second"]
        assert batches == pytest.approx(expected.eval_batches, abs=0.3)


@pytest.mark.parametrize("case", ALPACA + OTHERS, ids=lambda case: f"{case.format}-{case.rows}")
def test_one_process(case, forked_project, monkeypatch):
    check(forked_project, case, monkeypatch)


@pytest.mark.parametrize("case", TWO, ids=["unpacked", "packed"])
def test_two_processes(case, project, monkeypatch):
    check(project, case, monkeypatch)
