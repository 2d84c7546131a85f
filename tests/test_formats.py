"""What is wrong with a row, by the shape it should have."""

import pytest

from leviathan import formats
from leviathan.formats import Shape

ALPACA, TEXT = Shape("alpaca"), Shape("completion", "text")
CHAT = Shape("chat", "messages")
GPT = Shape("sharegpt", "conversations", "from", "value")


def chat(*turns: tuple[str, object]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def gpt(*turns: tuple[str, str]) -> dict:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("shape", "row", "expected"),
    [
        (ALPACA, {"instruction": "a", "input": "", "output": "b"}, []),
        (ALPACA, {"instruction": "a", "input": None, "output": "b", "id": 3}, []),
        (ALPACA, {"instruction": "a", "output": " \n"}, ["nothing_trained"]),
        (ALPACA, {"instruction": "", "output": "b"}, ["empty_field"]),
        (ALPACA, {"instruction": "a"}, ["missing_field"]),
        (ALPACA, {"instruction": None, "output": "b"}, ["missing_field"]),
        (ALPACA, {}, ["missing_field", "missing_field"]),
        (ALPACA, {"instruction": 1, "input": [], "output": {}}, ["wrong_type"] * 3),
        (TEXT, {"text": "a"}, []),
        (TEXT, {"text": ""}, ["nothing_trained"]),
        (TEXT, {"body": "a"}, ["missing_field"]),
        (TEXT, {"text": ["a"]}, ["wrong_type"]),
        (Shape("completion", "body"), {"body": "a"}, []),
        (CHAT, chat(("user", "a"), ("assistant", "b")), []),
        (CHAT, chat(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"),
                    ("assistant", "d")), []),
        (CHAT, chat(("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d")), []),
        (CHAT, {"messages": []}, ["nothing_trained"]),
        (CHAT, {"messages": "a"}, ["wrong_type"]),
        (CHAT, {"messages": ["a"]}, ["wrong_type"]),
        (CHAT, {}, ["missing_field"]),
        (CHAT, {"messages": [{"content": "a"}]}, ["missing_field"]),
        (CHAT, {"messages": [{"role": 3, "content": "a"}]}, ["wrong_type"]),
        (CHAT, chat(("user", "a"), ("assistant", "")), ["empty_field", "nothing_trained"]),
        (CHAT, chat(("user", "a"), ("assistant", None)), ["missing_field", "nothing_trained"]),
        (CHAT, chat(("user", "a"), ("assistant", 3)), ["wrong_type"]),
        (CHAT, chat(("user", [{"type": "text", "text": "a"}]), ("assistant", "b")), []),
        (CHAT, chat(("user", "a")), ["nothing_trained"]),
        (CHAT, chat(("usr", "a"), ("assistant", "b")), ["unknown_role"]),
        (CHAT, chat(("user", "a"), ("system", "s"), ("assistant", "b")), ["role_order"]),
        (CHAT, chat(("assistant", "b"), ("user", "a"), ("assistant", "b")), ["role_order"]),
        (CHAT, chat(("user", "a"), ("user", "a"), ("assistant", "b")), ["role_order"]),
        (CHAT, chat(("user", "a"), ("assistant", "b"), ("user", "c")), ["role_order"]),
        (GPT, gpt(("human", "a"), ("gpt", "b")), []),
        (GPT, gpt(("human", "a"), ("bot", "b")), ["unknown_role", "nothing_trained"]),
        (GPT, {"conversations": [{"from": "human"}]}, ["missing_field", "nothing_trained"]),
        (Shape("unknown"), {"anything": 1}, []),
    ],
)  # fmt: skip
def test_problems(shape, row, expected):
    assert [kind for kind, _ in shape.problems(row)] == expected


def test_a_call_of_a_tool_needs_no_text():
    row = chat(("user", "a"), ("assistant", None), ("tool", "c"), ("assistant", "d"))
    row["messages"][1]["tool_calls"] = [{"function": {"name": "f"}}]
    assert list(CHAT.problems(row)) == []


def test_the_same_talk_in_either_format_trains_the_same():
    talk = chat(("user", "a"), ("assistant", "b"))
    assert CHAT.texts(talk) == GPT.texts(gpt(("human", "a"), ("gpt", "b"))) == (
        "user", "a", "assistant", "b",
    )  # fmt: skip
    assert CHAT.texts(talk | {"id": 3}) == CHAT.texts(talk) != CHAT.texts(talk | {"system": "s"})


def test_a_problem_says_where_and_what():
    assert list(CHAT.problems(chat(("user", "a"), ("bot", "b")))) == [
        ("unknown_role", "messages[1]: role 'bot'"),
        ("nothing_trained", "no answer by the assistant"),
    ]
    assert list(ALPACA.problems({"instruction": "a", "output": 3})) == [
        ("wrong_type", "'output' holds a number, not text")
    ]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"instruction": "a", "output": "b"}, ALPACA),
        ({"text": "a"}, TEXT),
        (chat(("user", "a")), CHAT),
        (gpt(("human", "a")), GPT),
        ({"conversations": chat(("user", "a"))["messages"]}, Shape("chat", "conversations")),
        (chat(("user", "a")) | {"text": "x"}, CHAT),
        ({"messages": []}, Shape("unknown")),
        ({"prompt": "a"}, Shape("unknown")),
    ],
)
def test_a_shape_is_detected(row, shape):
    assert formats.detect([row, row, {"odd": 1}]) == shape


def test_of_no_rows_nothing_is_known():
    assert formats.detect([]) == Shape("unknown")


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        ({"type": "alpaca"}, ALPACA),
        ({"type": "completion", "field": "body"}, Shape("completion", "body")),
        ({"type": "chat_template"}, CHAT),
        ({"type": "chat_template", "field_messages": "conversations",
          "message_property_mappings": {"role": "from", "content": "value"}}, GPT),
        ({"type": "my.module"}, Shape("unknown")),
    ],
)  # fmt: skip
def test_a_configuration_says_its_shape(entry, shape):
    assert formats.of({"datasets": [entry]}) == shape
