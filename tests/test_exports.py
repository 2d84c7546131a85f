"""GGUF by a converter that is not ours, and what is refused when a tool is missing."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from leviathan import corpus, evidence, exports
from leviathan.errors import BadInput, LeviathanError, Refused

# What llama.cpp's convert_hf_to_gguf.py is asked, and what it leaves.
CONVERTER = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"])
parser.add_argument("model", type=pathlib.Path)
asked = parser.parse_args()
kind = json.loads((asked.model / "config.json").read_text()).get("model_type")
if kind != "llama":
    print(f"ERROR:hf-to-gguf:Model {kind} is not supported")
    sys.exit(1)
asked.outfile.write_bytes({magic!r} + asked.outtype.encode())
"""


@pytest.fixture
def merged(tmp_path):
    directory = tmp_path / "models" / "m"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    document = {"verdict": "equal", "hashes": {"config.json": "xxh3_128:c"}}
    (directory / evidence.PROOF).write_text(json.dumps(document))
    return directory


@pytest.fixture
def llama_cpp(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    def install(magic: bytes = b"GGUF") -> Path:
        directory = tmp_path / "llama.cpp"
        directory.mkdir()
        script = CONVERTER.replace("{magic!r}", repr(magic))
        (directory / exports.CONVERTER).write_text(script)
        return directory

    return install


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix != ".lock"}


def test_gguf_is_made_by_the_converter_with_a_record_of_its_origin(merged, llama_cpp):
    told = []
    script = exports.converter("bf16", llama_cpp())
    made = exports.gguf(merged, "bf16", script, told.append)
    assert made == merged.with_name("m.gguf")
    assert made.read_bytes() == b"GGUFbf16"
    record = json.loads(made.with_name("m.gguf.json").read_text())
    assert record["verdict"] == "unproven"
    assert record["made_of"] == {"config.json": "xxh3_128:c"}
    assert record["hashes"] == {"m.gguf": corpus.file_digest(made)}
    assert names(merged.parent) == {"m", "m.gguf", "m.gguf.json"}
    assert told == [f"converting with {script}"]


@pytest.mark.parametrize(
    ("config", "magic", "reason"),
    [
        ('{"model_type": "odd"}', b"GGUF", r"failed \(exit code 1\): ERROR:hf-to-gguf:Model odd"),
        ('{"model_type": "llama"}', b"ELF!", "wrote no GGUF"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(merged, llama_cpp, config, magic, reason):
    (merged / "config.json").write_text(config)
    script = exports.converter("f16", llama_cpp(magic))
    with pytest.raises(LeviathanError, match=reason):
        exports.gguf(merged, "f16", script, print)
    assert names(merged.parent) == {"m"}


def test_a_disk_that_is_too_small_is_told_before(merged, llama_cpp, monkeypatch):
    script = exports.converter("f32", llama_cpp())
    usage = shutil.disk_usage(merged)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(Refused, match="not enough disk space"):
        exports.gguf(merged, "f32", script, print)


def test_the_converter_is_found_by_option_variable_or_path(llama_cpp, monkeypatch):
    directory = llama_cpp()
    script = directory / exports.CONVERTER
    assert exports.converter("auto", script) == exports.converter("auto", directory) == script
    with pytest.raises(Refused, match="is not on the PATH"):
        exports.converter("auto", None)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))
    assert exports.converter("auto", None) == script
    monkeypatch.setenv("LLAMA_CPP", str(directory))
    monkeypatch.setenv("PATH", "")
    assert exports.converter("auto", None) == script
    monkeypatch.setenv("LLAMA_CPP", str(directory.parent))
    with pytest.raises(Refused, match=r"has no convert_hf_to_gguf\.py"):
        exports.converter("auto", None)
    with pytest.raises(BadInput, match="--gguf 'q4_k_m' is unknown") as error:
        exports.converter("q4_k_m", directory)
    assert error.value.hint == "use one of auto, f32, f16, bf16, q8_0"


def test_a_quantiser_that_is_missing_or_unknown_is_told(monkeypatch):
    exports.demand_quantiser("int8-int4")
    with pytest.raises(BadInput, match="--quantize 'gptq' is unknown"):
        exports.demand_quantiser("gptq")
    monkeypatch.setattr(exports, "find_spec", lambda name: None if name == "torchao" else name)
    with pytest.raises(Refused, match="--quantize needs torchao") as error:
        exports.demand_quantiser("int4")
    assert error.value.hint == "pip install 'leviathan[train]'"


def test_names_that_are_taken_are_told_before_anything_is_merged(tmp_path):
    merged = tmp_path / "m"
    exports.demand_names(merged, "int4", gguf=True, replace=False)
    (tmp_path / "m.gguf").write_text("the user's own")
    with pytest.raises(BadInput, match=r"m\.gguf exists already"):
        exports.demand_names(merged, None, gguf=True, replace=False)
    exports.demand_names(merged, None, gguf=True, replace=True)
    (tmp_path / "m-int4").mkdir()
    (tmp_path / "m-int4/mine").touch()
    with pytest.raises(BadInput, match="m-int4 exists and is no merged model"):
        exports.demand_names(merged, "int4", gguf=False, replace=True)
