"""Packs what a bare GPU machine lacks for ``run.py``, on a machine that can download.

    python benchmarks/gpu/pack.py [--cuda 130] [--to work/gpu]

For x86-64 Linux, Python 3.12, and PyTorch, transformers, peft and accelerate already there.
Wheels are downloaded for that platform whatever this one is, unpacked without their
dependencies, slimmed, and put into one archive. It prints sizes and the command to type there.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LIMIT_MIB = 64
# What a QLoRA run of axolotl 0.19.0 imports beyond PyTorch and the Hugging Face libraries,
# found by tracing one; the pins are its own.
PACKAGES = [
    "addict==2.4.0", "annotated-types==0.8.0", "axolotl==0.19.0", "backoff==2.2.1",
    "bitsandbytes==0.50.2", "brotli==1.2.1", "chardet==6.0.0.post1", "datasets==4.8.4",
    "defusedxml==0.7.1", "dill==0.4.1", "distro==1.9.0", "evaluate==0.4.1", "fastcore==2.2.39",
    "fire==0.7.1", "google-api-core==2.44.0", "google-auth==2.62.2", "google-cloud-core==2.8.0",
    "google-cloud-storage==3.17.1", "google-crc32c==1.9.0", "google-resumable-media==2.11.0",
    "googleapis-common-protos==1.76.0", "h2==4.4.1", "hpack==4.2.0", "hyperframe==6.1.0",
    "kernels==0.16.2", "kernels-data==0.16.2", "liger-kernel==0.8.1", "mistral-common==1.11.5",
    "multiprocess==0.70.19", "opentelemetry-api==1.45.2", "opentelemetry-sdk==1.45.2",
    "opentelemetry-semantic-conventions==0.66b2", "platformdirs==4.14.7", "posthog==6.7.11",
    "pycountry==26.2.16", "pydantic==2.12.5", "pydantic-core==2.41.5",
    "pydantic-extra-types==2.11.1", "python-dotenv==1.0.1", "pytz==2026.6", "sniffio==1.3.1",
    "termcolor==3.3.0", "torchao==0.17.0", "trl==1.9.0", "typing-inspection==0.4.5",
    "wandb==0.31.0", "zstandard==0.22.0",
]  # fmt: skip
# Published as sources; nothing in them is compiled.
SOURCES = ["axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"]
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64",
             "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
# Imported, but never asked for what these hold.
NOT_NEEDED = ("wandb/bin", "mistral_common/data", "pycountry/locales", "torchao/*.so")
ANYWHERE = ("tests", "test", "__pycache__", "*.pyc", "*.pyi", "*.h", "*.c", "*.pyx")


def download(to: Path) -> None:
    """The wheels of ``PACKAGES``, without their dependencies."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip"]
    there = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    quiet = ["--quiet", "--no-deps"]
    subprocess.run([*pip, "download", *quiet, *there, *platforms, "--dest", str(to), *PACKAGES],
                   check=True)  # fmt: skip
    subprocess.run([*pip, "wheel", *quiet, "--wheel-dir", str(to), *SOURCES], check=True)


def unpack(wheels: Path, to: Path, cuda: str) -> None:
    """Every wheel into one folder, without what is not needed."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(to)  # noqa: S202 - zipfile leaves out absolute paths and ".."
    gone = [path for pattern in NOT_NEEDED for path in to.glob(pattern)]
    gone += [path for pattern in ANYWHERE for path in to.rglob(pattern)]
    kept = {f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so"}
    gone += [p for p in to.glob("bitsandbytes/libbitsandbytes_*") if p.name not in kept]
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if not (to / "bitsandbytes" / f"libbitsandbytes_cuda{cuda}.so").exists():
        sys.exit(f"bitsandbytes has no library for CUDA {cuda}; try another --cuda")


def size_mib(path: Path) -> float:
    """Of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files) / 2**20


def main() -> None:
    """Pack, check the size, print the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", default="130", help="CUDA of the PyTorch there, without dots")
    parser.add_argument("--to", type=Path, default=Path("work/gpu"))
    options = parser.parse_args()
    archive = options.to / "packages.tar.xz"
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        wheels, packages = Path(name) / "wheels", Path(name) / "packages"
        download(wheels)
        unpack(wheels, packages, options.cuda)
        with tarfile.open(archive, "w:xz") as out:
            out.add(packages, arcname="packages")
        print(f"{archive}: {size_mib(archive):.1f} MiB to carry, {size_mib(packages):.1f} unpacked")
    if size_mib(archive) > LIMIT_MIB:
        sys.exit(f"more than {LIMIT_MIB} MiB: drop more")
    print("There, in the repository with this archive in its place, type:\n")
    unpacked = options.to / "unpacked"
    print(f"  python3 -m tarfile -e {archive} {unpacked} && PYTHONPATH=src:{unpacked}/packages "
          "python3 benchmarks/gpu/run.py --out ${OUT:-work/gpu/out}")  # fmt: skip


if __name__ == "__main__":
    main()
