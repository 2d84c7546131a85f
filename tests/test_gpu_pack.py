"""benchmarks/gpu/pack.py: what of the wheels is carried; downloading them is not tested."""

import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks/gpu"))
import pack

FILES = {
    "bitsandbytes": ["__init__.py", "libbitsandbytes_cuda130.so", "libbitsandbytes_cuda128.so",
                     "libbitsandbytes_rocm70.so", "libbitsandbytes_cpu.so"],
    "wandb": ["__init__.py", "bin/wandb-core", "old/tests/test_x.py"],
    "mistral_common": ["__init__.py", "data/tekken.json"],
}  # fmt: skip


@pytest.fixture
def wheels(tmp_path) -> Path:
    for name, paths in FILES.items():
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for path in paths:
                wheel.writestr(f"{name}/{path}", "x" * 100)
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Name: {name}")
    return tmp_path


def test_only_what_is_needed_is_carried(wheels, tmp_path):
    pack.unpack(wheels, tmp_path / "packages", "130")
    kept = {str(p.relative_to(tmp_path / "packages"))
            for p in (tmp_path / "packages").rglob("*") if p.is_file()}  # fmt: skip
    assert kept == {
        "bitsandbytes/__init__.py", "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/libbitsandbytes_cpu.so", "wandb/__init__.py", "mistral_common/__init__.py",
        *(f"{name}-1.0.dist-info/METADATA" for name in FILES),
    }  # fmt: skip
    assert pack.size_mib(tmp_path / "packages/wandb") == 100 / 2**20


def test_a_cuda_that_bitsandbytes_does_not_know_is_told(wheels, tmp_path):
    with pytest.raises(SystemExit, match="no library for CUDA 999"):
        pack.unpack(wheels, tmp_path / "packages", "999")
