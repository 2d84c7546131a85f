"""Reading YAML with positions."""

from pathlib import Path

import pytest
import yaml

from leviathan import yamlfile
from leviathan.errors import BadInput

TEXT = """\
# a comment
name: x
block:
  first: 1

  datasets:
    - path: a
      type: b
    - {path: c}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "file.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ((), 2),
        (("name",), 2),
        (("block",), 3),
        (("block", "first"), 4),
        (("block", "datasets", 0, "type"), 8),
        (("block", "datasets", 1, "path"), 9),
        (("block", "datasets", 1, "not there"), 9),
        (("block", "not there", "at all"), 3),
        (("not there",), 2),
    ],
)
def test_where_names_the_line_of_the_deepest_known_part(write, key, line):
    path = write(TEXT)
    assert yamlfile.load(path).where(key) == f"{path}:{line}"


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
def test_empty_file_is_an_empty_mapping(write, text):
    found = yamlfile.load(write(text))
    assert found.data == {}
    assert found.where(("any",)).endswith(":1")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E5", 2e5),
        ("-1.5e-3", -1.5e-3),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("3", 3),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e4", "e4"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[q_proj, 1e-4]", ["q_proj", 1e-4]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("<|pad|>", "<|pad|>"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_values_are_read_as_people_mean_them(text, value):
    found = yamlfile.parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["2026-11-21", "2026-02-30", "2026-11-21 10:00:00"])
def test_dates_stay_text(text):
    """A date object cannot be written to run.json, an impossible one cannot even be made."""
    assert yamlfile.parse_value(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1\n", ":3: not valid YAML"),
        ("a:\n\t- 1\n", ":2: not valid YAML"),
        ("a: 1\n b: 2\n", ":2: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: a is given twice"),
        ("x:\n  a: 1\n  a: 1\n", ":3: x.a is given twice"),
        ("x: [{a: 1, a: 2}]\n", ":1: x.0.a is given twice"),
        ("- a\n- b\n", ":1: expected keys and values, found list"),
        ("text\n", ":1: expected keys and values, found str"),
        ("a: !!python/object/apply:os.system [id]\n", ":1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        ("a: *unknown\n", ":1: not valid YAML"),
        (b"a: \xff\n", "cannot read"),
        ("a: \x00\n", "not valid YAML"),
        ("a: &x {b: *x}\n", "not valid YAML"),
        ("a: 0x_\n", "not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_one_bad_input_with_its_line(write, text, message):
    path = write(text)
    with pytest.raises(BadInput) as caught:
        yamlfile.load(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["[1", "{a: 1", "'open", "!!python/name:os.system", "a: b: c", "\x00"]
)
def test_unreadable_value_is_bad_input(text):
    with pytest.raises(BadInput):
        yamlfile.parse_value(text)


def test_missing_file_and_directory_are_bad_input(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(BadInput, match="cannot read"):
            yamlfile.load(path)


def test_merge_keys_are_no_duplicates(write):
    found = yamlfile.load(write("base: &b {x: 1}\none: {<<: *b, y: 2}\n"))
    assert found.data["one"] == {"x": 1, "y": 2}


def test_dump_keeps_order_and_reads_back():
    data = {
        "z": 1e-4,
        "a": [1, {"k": None}],
        "text": "ünï: code",
        "off": "off",
        "day": "2026-11-21",
    }
    text = yamlfile.dump(data)
    assert list(yaml.safe_load(text)) == list(data)
    assert yaml.safe_load(text) == data  # Axolotl reads YAML 1.1
    assert "ünï" in text
