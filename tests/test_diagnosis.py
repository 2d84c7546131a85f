"""Causes, from logs as torch, accelerate, huggingface_hub and others really write them."""

import re
import signal
import subprocess

import pytest

from leviathan import diagnosis
from leviathan.diagnosis import Evidence, diagnose


def traceback(line: str, rank: str = "") -> str:
    """An uncaught exception below a progress bar, as a log holds it."""
    return (
        "{'loss': 1.2, 'grad_norm': 0.4, 'learning_rate': 0.0002, 'epoch': 0.1}\n"
        "  4%|4         | 5/120 [00:12<04:40,  2.44s/it]"
        f"{rank}Traceback (most recent call last):\n"
        f'{rank}  File "/opt/venv/lib/python3.11/site-packages/axolotl/train.py", line 210, in train\n'
        f"{rank}    trainer.train(resume_from_checkpoint=resume_from_checkpoint)\n"
        f"{rank}{line}\n"
    )


def launcher(code: int = 1) -> str:
    """What accelerate's launcher adds when its child failed."""
    error = subprocess.CalledProcessError(code, ["python3", "-m", "axolotl.cli.train", "a.yaml"])
    return (
        "Traceback (most recent call last):\n"
        '  File "<frozen runpy>", line 198, in _run_module_as_main\n'
        "    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)\n"
        f"subprocess.CalledProcessError: {error}\n"
    )


ELASTIC = """\
W1121 08:15:01.000000 4711 torch/distributed/elastic/multiprocessing/api.py:1010] Sending process 4714 closing signal SIGTERM
E1121 08:15:02.000000 4711 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: {code}) local_rank: 0 (pid: 4713) of binary: /opt/venv/bin/python3
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/torch/distributed/launcher/api.py", line 300, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
axolotl.cli.train FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_08:15:02
  host      : box
  rank      : 0 (local_rank: 0)
  exitcode  : {code} (pid: 4713)
  error_file: <N/A>
  traceback : {why}
============================================================
"""

OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total "
    "capacity of 15.70 GiB of which 512.12 MiB is free. Including non-PyTorch memory, this process "
    "has 15.18 GiB memory in use."
)
GATED = (
    "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
    "https://huggingface.co/meta-llama/Llama-3.1-8B.\n401 Client Error."
)
UNREACHABLE = (
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find "
    "them in the cached files.\nCheck your internet connection"
)


@pytest.mark.parametrize(
    ("line", "kind", "retry"),
    [
        (OUT_OF_MEMORY, "memory", "usual"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 MiB.", "memory", "usual"),
        ("torch.AcceleratorError: CUDA error: out of memory", "memory", "usual"),
        ("RuntimeError: CUDA error: out of memory", "memory", "usual"),
        ("RuntimeError: HIP out of memory. Tried to allocate 2 MiB.", "memory", "usual"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 800000000 bytes. Error code 12 (Cannot allocate memory)", "memory", "usual"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory", "usual"),
        ("MemoryError", "memory", "usual"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array", "memory", "usual"),
        ("pyarrow.lib.ArrowMemoryError: malloc of size 4294967296 failed", "memory", "usual"),
        ("OSError: [Errno 12] Cannot allocate memory", "memory", "usual"),
        (GATED, "hub", "never"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)", "hub", "never"),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: Root=1-6)", "hub", "never"),
        ("OSError: lama/lama is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'", "hub", "never"),
        (UNREACHABLE, "hub", "usual"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache", "hub", "usual"),
        ("huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api: offline mode is enabled.", "hub", "usual"),
        ("huggingface_hub.errors.HfHubHTTPError: 504 Server Error: Gateway Time-out for url", "hub", "usual"),
        ("httpx.ConnectError: [Errno -3] Temporary failure in name resolution", "hub", "usual"),
        ("httpx.ReadTimeout: The read operation timed out", "hub", "usual"),
        ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443)", "hub", "usual"),
        ("ModuleNotFoundError: No module named 'flash_attn'", "package", "never"),
        ("ImportError: FlashAttention2 has been toggled on, but it cannot be used due to the following error", "package", "never"),
        ("importlib.metadata.PackageNotFoundError: No package metadata was found for bitsandbytes", "package", "never"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "gpu", "never"),
        ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", "gpu", "never"),
        ("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device", "gpu", "never"),
        ("AssertionError: Torch not compiled with CUDA enabled", "gpu", "never"),
        ("triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 131072, Hardware limit: 101376", "gpu", "never"),
        ("torch.AcceleratorError: CUDA error: device-side assert triggered", "gpu", "once"),
        ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "gpu", "usual"),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "gpu", "usual"),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "gpu", "usual"),
        ("torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error", "gpu", "usual"),
        ("OSError: [Errno 28] No space left on device: '/w/checkpoint-5/optimizer.pt'", "disk", "usual"),
        ("OSError: [Errno 122] Disk quota exceeded", "disk", "usual"),
        ("safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)", "disk", "usual"),
        ("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 14528 vs 14422", "disk", "usual"),
        ("RuntimeError: PytorchStreamWriter failed writing file data/3: file write failed", "disk", "usual"),
        ("RuntimeError: DataLoader worker (pid 4720) is killed by signal: Killed. ", "host_memory", "usual"),
        ("RuntimeError: DataLoader worker (pid(s) 4720) exited unexpectedly", "host_memory", "usual"),
        ("RuntimeError: One of the subprocesses has abruptly died during map operation.", "host_memory", "usual"),
        ("leviathan.safeguards.NonFiniteError: the gradient of step 7 is nan", "nan", "once"),
        ("ValueError: something nobody has seen before", "unknown", "usual"),
        ("KeyError: 'CUDA'", "unknown", "usual"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("report", ["accelerate", "torchrun"])
def test_known_messages(line, kind, retry, report):
    if report == "accelerate":
        log = traceback(line) + launcher()
    else:
        log = traceback(line, "[rank0]: ") + ELASTIC.format(
            code=1,
            why="To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html",
        )
    found = diagnose(Evidence(1, log, "train"))
    assert (found.kind, found.retry) == (kind, retry)
    assert found.line == line.splitlines()[0].rstrip()
    assert found.cause
    assert found.fix


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        # bitsandbytes prints and exits, without an exception.
        ("Error out of memory at line 72 in file /src/csrc/ops.cu\n" + launcher(), "memory"),
        # C++ code that runs out of memory aborts.
        ("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
         + launcher(-6), "memory"),
        ("Fatal Python error: Segmentation fault\n" + launcher(-11), "killed"),
    ],
)  # fmt: skip
def test_failures_without_an_exception(log, kind):
    assert diagnose(Evidence(1, log, "train")).kind == kind


@pytest.mark.parametrize("phase", ["start", "load"])
def test_what_is_unknown_before_the_first_step_is_not_tried_again(phase):
    log = traceback("ValueError: Please set datasets") + launcher()
    found = diagnose(Evidence(1, log, phase))
    assert (found.kind, found.retry) == ("setup", "never")


HARMLESS = (
    "ImportError: cannot import name 'x' (harmless, caught)\n"
    "/opt/venv/a.py:1: UserWarning: you may see CUDA out of memory or No space left on device\n"
    "[WARNING] Cannot allocate memory for pinned buffers, falling back\n"
)


@pytest.mark.parametrize(
    ("log", "exit_code", "number"),
    [
        (HARMLESS + launcher(-9), 1, 9),
        (HARMLESS + ELASTIC.format(code=-9, why="Signal 9 (SIGKILL) received by PID 4713"), 1, 9),
        (HARMLESS + launcher(-15), 1, 15),
        (HARMLESS + launcher(-11), 1, 11),
        (HARMLESS, -9, 9),
        (HARMLESS, -15, 15),
    ],
)  # fmt: skip
def test_older_lines_do_not_explain_a_kill(log, exit_code, number):
    evidence = Evidence(exit_code, log, "train")
    assert diagnosis.death_signal(evidence) == number
    found = diagnose(evidence)
    assert (found.kind, found.line) == ("killed", f"signal {number}")
    assert ("somebody" in found.cause) == (number in (signal.SIGKILL, signal.SIGTERM))
    killed = diagnose(Evidence(exit_code, log, "train", kernel_killed=True))
    assert (killed.kind == "host_memory") == (number == signal.SIGKILL)


def test_warnings_that_contain_the_words_are_not_the_cause():
    log = HARMLESS + traceback("KeyError: 'labels'") + launcher()
    found = diagnose(Evidence(1, log, "train"))
    assert (found.kind, found.line) == ("unknown", "KeyError: 'labels'")


@pytest.mark.parametrize(
    ("facts", "kind", "retry"),
    [
        ({"guard": "nan"}, "nan", "once"),
        ({"guard": "stall"}, "stall", "usual"),
        ({"guard": "plugin"}, "setup", "never"),
        ({"disk_short": True, "phase": "save"}, "disk", "usual"),
        ({"disk_short": True, "phase": "train"}, "unknown", "usual"),
    ],
)
def test_what_was_observed_is_stronger_than_what_was_printed(facts, kind, retry):
    log = traceback("RuntimeError: some consequence") + launcher()
    found = diagnose(Evidence(**{"exit_code": 1, "log": log, "phase": "train", **facts}))
    assert (found.kind, found.retry) == (kind, retry)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (traceback("queue.Empty") + "printed on the way out\n" + launcher(), "queue.Empty"),
        (traceback("KeyError: 1") + "\nDuring handling of the above exception, another exception "
         "occurred:\n\n" + traceback("ValueError: 2") + launcher(), "ValueError: 2"),
        # A compiler that the training process itself called.
        (traceback("subprocess.CalledProcessError: Command '['gcc']' returned non-zero exit status 1.")
         + launcher(), "subprocess.CalledProcessError: Command '['gcc']' returned non-zero exit status 1."),
        (launcher(), None),
    ],
)  # fmt: skip
def test_the_line_that_says_it(log, line):
    found = diagnosis.error_line(log)
    assert found == line if line else re.match(r"subprocess\.CalledProcessError", found)


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_text("ValueError: old\n" + "x" * (1 << 17) + "\nKeyError: 'new'\n")
    assert len(diagnosis.tail(log)) == 1 << 16
    assert diagnosis.last_error(log) == "KeyError: 'new'"
    assert diagnosis.tail(tmp_path / "none") == ""
