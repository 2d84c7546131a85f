"""What the real Axolotl prepares is what data stats --exact says: rows, tokens, tokens with loss."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from project import Project

import tiny

pytestmark = pytest.mark.real

CHATML = ("format=chat", "chat_template=chatml")


@dataclass
class Case:
    """A corpus in one format, and what is set."""

    format: str
    sequence_len: int
    sets: tuple[str, ...] = ()
    sample: str = "full"


# Of each format some rows are longer than sequence_len; of one, none is.
CASES = [
    Case("alpaca", 180),
    Case("alpaca", 2000, sample="60pct"),
    Case("alpaca", 180, ("excess_length_strategy=truncate",)),
    Case("alpaca", 180, ("sample_packing=true", "dataset_num_proc=1")),
    Case("chat", 64, CHATML),
    Case("completion", 100, ("format=completion",)),
]


def text(chance: random.Random, longest: int) -> str:
    return " ".join(chance.choices(tiny.WORDS, k=chance.randint(1, longest)))


def row(chance: random.Random, case: Case) -> dict:
    if case.format == "completion":
        return {"text": text(chance, 200)}
    if case.format == "chat":
        roles = ["system", *["user", "assistant"] * 3][chance.randint(0, 1) :][
            : chance.choice([3, 5])
        ]
        return {"messages": [{"role": role, "content": text(chance, 8)} for role in roles]}
    made = {"instruction": text(chance, 5), "output": text(chance, 60)}
    return {**made, "input": text(chance, 5)} if chance.random() < 0.3 else made


def write(path: Path, case: Case) -> None:
    chance = random.Random(5)
    path.write_text("".join(json.dumps(row(chance, case)) + "\n" for _ in range(90)))


def prepared(project: Project, run: str) -> dict:
    """Rows, tokens and tokens with loss of the dataset that Axolotl prepared for a run."""
    (folder,) = (project.path(run) / "prepared").glob("*/dataset_info.json")
    found = {"rows": 0, "tokens": 0, "trainable_tokens": 0}
    for file in sorted(folder.parent.glob("*.arrow")):
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_stream(source).read_all()
        found["rows"] += table.num_rows
        found["tokens"] += sum(len(ids) for ids in table.column("input_ids").to_pylist())
        labels = table.column("labels").to_pylist()
        found["trainable_tokens"] += sum(label != -100 for row in labels for label in row)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}-{'-'.join(case.sets)}")
def test_prepared_rows_are_those_of_the_statistics(case, forked_project):
    project = forked_project
    write(project.directory / "rows.jsonl", case)
    sets = (f"sequence_len={case.sequence_len}", "max_steps=1", "save_steps=1000", *case.sets)
    options = ["--profile", "tiny", "--recipe", "tiny", "--sample", case.sample]
    options += [option for value in sets for option in ("--set", value)]

    told = project.run("data", "stats", "--exact", "--json", *options)
    assert told.code == 0, told.err
    statistics = json.loads(told.out)
    assert statistics["exact"] is True
    done = project.run("train", *options)
    assert done.code == 0, done.err

    found = prepared(project, f"tiny_{case.sample}_tiny")
    assert statistics["prepared"] == found
    assert statistics["rows"] == {"full": 90, "60pct": 54}[case.sample]
    if case.sequence_len == 2000:  # nothing is dropped: the corpus itself
        assert (statistics["rows"], statistics["tokens"]["total"]) == (
            found["rows"],
            found["tokens"],
        )
        trainable = statistics["trainable_share"] * statistics["tokens"]["total"]
        assert trainable == pytest.approx(found["trainable_tokens"])
    else:
        assert statistics["truncated"][str(case.sequence_len)]["rows"]["value"] > 0.1
