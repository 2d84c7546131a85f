"""The corpora of the recipes made from nothing, and the suite of what is held out of them."""

import json
from pathlib import Path

import pytest

from leviathan import classroom, corpus, files, layers, lessons, prompts, stages
from leviathan.errors import BadInput

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "configs/demo/stdlib.jsonl"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    made = classroom.prepare(SHIPPED, tmp_path_factory.mktemp("demo"))
    return {path.name: path for path in made}


def test_the_shipped_suite_is_what_is_held_out():
    text = (ROOT / "configs/suites/nanochat.yaml").read_text()
    assert text == classroom.suite(SHIPPED), "run scripts/make_nanochat_suite.py"
    assert len(prompts.load(ROOT / "configs/suites/nanochat.yaml").cases) == 52


def test_no_name_of_the_suite_is_in_a_corpus(corpora):
    _, held_out = classroom.split(files.read_json_lines(SHIPPED))
    for path in corpora.values():
        text = path.read_text()
        assert not [one.name for one in held_out
                    if f"`{one.name}`" in text or f'"{one.name}\\n' in text], path.name  # fmt: skip


def test_every_choice_is_sound_and_every_letter_is_the_right_one(corpora):
    rows = files.read_json_lines(corpora["choices.jsonl"])
    assert not [problem for row in rows for problem in lessons.problems(row)]
    spoken = files.read_json_lines(corpora["lessons.jsonl"])
    assert [row["messages"][-1]["content"] for row in spoken] == [row["answer"] for row in rows]
    told = {row["messages"][0]["content"]: row["messages"][1]["content"]
            for row in files.read_json_lines(SHIPPED)}  # fmt: skip
    for row in rows:
        assert row["choices"][lessons.LETTERS.index(row["answer"])] in told[row["question"]]


def test_guessing_is_told_as_it_is():
    _, held_out = classroom.split(files.read_json_lines(SHIPPED))
    assert {len(lesson.choices) for lesson in held_out} == {3, 4, 5}
    assert classroom.guessed_pct(held_out) == pytest.approx(24.5, abs=0.1)


def test_what_is_there_is_left_and_what_was_changed_is_written_again(tmp_path):
    first = classroom.prepare(SHIPPED, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first}
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    classroom.prepare(SHIPPED, tmp_path)
    changed = [path.name for path in first if path.stat().st_mtime_ns != before[path]]
    assert changed == ["chat.jsonl"]
    assert (tmp_path / "chat.jsonl").stat().st_size > 500_000


def test_the_corpora_are_made_where_a_stage_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = layers.build("nanochat", "a100-40gb", None, ["stage=sft"])
    stages.select(stages.legs(whole), None, None)
    assert not Path("work").exists()  # its corpora are the user's own
    legs = stages.legs(layers.build("nanochat", "cpu", None, ["mode=demo"]))
    with pytest.raises(BadInput, match="no stage"):
        stages.select(legs, "sftt", None)
    assert not Path("work").exists()
    stages.select(legs, "sft", None)
    assert sorted(path.name for path in Path("work/demo").iterdir()) == sorted(classroom.NAMES)
    with pytest.raises(BadInput) as refused:
        corpus.parts(Path("work/demo/other.jsonl"))
    assert refused.value.hint == "leviathan demo --prepare"
