"""Questions with choices: what is wrong with a row, and the prompt it becomes."""

import pytest

import leviathan
import tiny
from leviathan import formats, lessons, templates
from leviathan.formats import Shape
from leviathan.tokenizer import Tokenizer

ROW = {"question": "Which is a river?", "choices": ["Thames", "London", "Rome"], "answer": 0}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"answer": "C"}, []),
        ({"answer": "c"}, []),
        ({"system": None, "explanation": "it flows"}, []),
        ({"question": None}, [("missing_field", "no 'question'")]),
        ({"question": 3}, [("wrong_type", "'question' is not text")]),
        ({"question": " "}, [("empty_field", "empty 'question'")]),
        ({"system": 3}, [("wrong_type", "'system' is not text")]),
        ({"choices": None}, [("missing_field", "no 'choices'")]),
        ({"choices": "A"}, [("wrong_type", "'choices' is not a list of texts")]),
        ({"choices": ["a", 1]}, [("wrong_type", "'choices' is not a list of texts")]),
        ({"choices": ["a"]}, [("bad_choices", "1 choices, not 2 to 26")]),
        (
            {"choices": ["a"] + [str(n) for n in range(26)]},
            [("bad_choices", "27 choices, not 2 to 26")],
        ),
        ({"choices": ["a", ""]}, [("bad_choices", "choices[1] is empty")]),
        ({"choices": ["a", "b", "a "]}, [("bad_choices", "choices[2] equals choices[0]")]),
        ({"answer": None}, [("missing_field", "no 'answer'")]),
        ({"answer": True}, [("wrong_type", "'answer' is neither an index from 0 nor a letter")]),
        ({"answer": 1.0}, [("wrong_type", "'answer' is neither an index from 0 nor a letter")]),
        ({"answer": 3}, [("bad_answer", "answer '3' names none of 3 choices")]),
        ({"answer": -1}, [("bad_answer", "answer '-1' names none of 3 choices")]),
        ({"answer": "D"}, [("bad_answer", "answer 'D' names none of 3 choices")]),
        ({"answer": "Thames"}, [("bad_answer", "answer 'Thames' names none of 3 choices")]),
    ],
)
def test_what_is_wrong_with_a_row(change, found):
    assert list(lessons.problems({**ROW, **change})) == found
    assert list(Shape("choices").problems({**ROW, **change})) == found


def test_rows_of_this_shape_are_known_by_their_fields():
    assert formats.detect([ROW]) == formats.of({"datasets": [{"type": "leviathan.choices"}]})
    assert Shape("choices").texts(ROW) == ("", ROW["question"], "Thames\0London\0Rome")


def test_the_transform_makes_a_conversation_for_a_model_with_a_chat_template():
    transform, options = leviathan.choices(None, dataset_idx=0)
    spoken = type("Tokenizer", (), {"chat_template": CHATML})()
    made = transform({**ROW, "system": "Be brief."}, tokenizer=spoken)
    asked = (
        "Which is a river?\n\nA) Thames\nB) London\nC) Rome\n\n"
        "Answer with the letter of the right choice."
    )
    assert options == {"remove_columns": "__all__"}
    assert made == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
        "answer": "A",
        "choices": ROW["choices"],
    }
    plain = transform(ROW, tokenizer=type("Tokenizer", (), {"chat_template": None})())
    assert plain == {**made, "prompt": f"{asked}\n\nAnswer:"}


def test_the_transform_refuses_a_row_that_data_check_would():
    transform, _ = leviathan.choices(None)
    with pytest.raises(ValueError, match="answer '7' names none of 3 choices"):
        transform({**ROW, "answer": 7})


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("spoken", [False, True])
def test_questions_are_counted_as_trl_tokenises_them(tmp_path, spoken, begins):
    from transformers import AutoTokenizer

    rows = tiny.write_rows(tmp_path / "rows.jsonl", 20)
    directory = tiny.write_tokenizer(tmp_path / "base", rows, begins=begins)
    theirs = AutoTokenizer.from_pretrained(directory)
    tree = {"base_model": str(directory), "datasets": [{"type": "leviathan.choices"}], "rl": "grpo"}
    form = templates.read(tree, {}, CHATML if spoken else None)
    ours = Tokenizer(directory / "tokenizer.json", tree)
    (counted,) = ours.count([form.render(ROW)], adds_special_tokens=form.adds_special_tokens)
    if spoken:
        theirs.chat_template = CHATML
        ids = theirs.apply_chat_template(
            lessons.messages(ROW), add_generation_prompt=True, return_dict=True
        )["input_ids"]
    else:
        ids = theirs(text=lessons.text(ROW))["input_ids"]
    assert form.unfollowed == ()
    assert (counted.tokens, counted.trainable) == (len(ids), len(ids))
