"""Owns reading a failure: from what is left of a dead session to its cause and its cure.

Pure but for reading the log. Does not decide what to do about it (``recovery``).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOG_TAIL_BYTES = 64 << 10
_SHORT = 160


@dataclass(frozen=True)
class Evidence:
    """What a session that failed left behind."""

    exit_code: int | None
    log: str
    """The end of the training log."""
    phase: str
    """What the training process was at: start, load, train, eval or save."""
    kernel_killed: bool = False
    """The kernel's OOM killer ended some process meanwhile."""
    disk_short: bool = False
    """Less disk space is free than the next checkpoint needs."""
    guard: str = ""
    """What ended the training on purpose (nan, stall, plugin, host), if anything did."""


@dataclass(frozen=True)
class Diagnosis:
    """What went wrong, in a word and in a line, and what cures it."""

    kind: str
    """memory, host_memory, nan, stall, disk, package, hub, gpu, host, killed, setup or unknown."""
    phase: str
    line: str
    """The log's line that says it, or what was observed."""
    cause: str
    fix: str
    retry: str
    """never; once; or usual: as often as the profile allows."""

    @property
    def text(self) -> str:
        """The cause, with the evidence for it."""
        return f"{self.cause} ({short(self.line)})" if self.line else self.cause


@dataclass(frozen=True)
class _Known:
    kind: str
    pattern: re.Pattern[str]
    cause: str
    fix: str
    retry: str


def _known(kind: str, pattern: str, cause: str, fix: str, retry: str) -> _Known:
    return _Known(kind, re.compile(pattern), cause, fix, retry)


# Messages as torch, CUDA, huggingface_hub and Python print them; the first match wins.
_TABLE = (
    _known(
        "memory",
        r"MemoryError\b|CUDA out of memory|CUDA error: out of memory|HIP out of memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|DefaultCPUAllocator"
        r"|std::bad_alloc|Cannot allocate memory|Error out of memory at line",
        "out of memory", "lower sequence_len or micro_batch_size, or add rungs to out_of_memory",
        "usual",
    ),
    _known(
        "hub",
        r"GatedRepoError|RepositoryNotFoundError|401 Client Error|403 Client Error"
        r"|gated repo|is not a local folder and is not a valid model identifier",
        "the model hub refuses the base model",
        "check base_model, accept its licence on the hub, and set HF_TOKEN", "never",
    ),
    _known(
        "hub",
        r"couldn't connect to|LocalEntryNotFoundError|MaxRetryError|requests\S*ConnectionError"
        r"|OfflineModeIs|httpx\.\w*(?:Connect|Timeout)|HfHubHTTPError: 5|HfHubHTTPError: 429",
        "the model hub cannot be reached",
        "download the base model once and give its directory as base_model", "usual",
    ),
    _known(
        "package",
        r"ModuleNotFoundError: No module named|ImportError: |PackageNotFoundError",
        "a package is missing or does not import", "install it where leviathan is installed",
        "never",
    ),
    _known(
        "gpu",
        r"driver version is insufficient|driver on your system is too old|Found no NVIDIA driver"
        r"|no kernel image is available|CUDA unknown error|not compiled with CUDA",
        "this torch does not fit the GPU or its driver", "install the torch build for your driver",
        "never",
    ),
    _known(
        "host_memory",
        r"DataLoader worker \(pid|subprocesses has abruptly died",
        "a data loading process was killed, most often because RAM or /dev/shm ran out",
        "lower dataloader_num_workers and dataset_num_proc", "usual",
    ),
    _known(
        "nan", r"NonFiniteError", "the loss or a gradient became NaN or infinite",
        "lower learning_rate, or look at the rows of this step", "once",
    ),
    _known(
        "gpu",
        r"triton\S*OutOfResources",
        "a Triton kernel needs more than this GPU has",
        "turn off the lora_*_kernel and liger_* keys", "never",
    ),
    _known(
        "gpu",
        r"device-side assert",
        "a kernel met an index out of range: most often a token id beyond the vocabulary",
        "check tokenizer and special_tokens against the base model; CUDA_LAUNCH_BLOCKING=1 says "
        "where", "once",
    ),
    _known(
        "gpu",
        r"CUDA error|cuDNN error|CUBLAS_STATUS|NCCL (?:error|WARN)|ncclInternalError"
        r"|uncorrectable ECC|fallen off the bus|Watchdog caught collective",
        "the GPU or its driver failed",
        "see dmesg for Xid lines; a card that repeats this is too hot, overclocked or broken",
        "usual",
    ),
    _known(
        "disk",
        # The last two are what torch.save says; which of them depends on where it was cut off.
        r"No space left on device|Disk quota exceeded|Errno 28|Errno 122"
        r"|inline_container\S+ \. unexpected pos|PytorchStreamWriter failed writing",
        "the disk is full", "free some space; leviathan checkpoints cleanup helps", "usual",
    ),
)  # fmt: skip


def diagnose(evidence: Evidence) -> Diagnosis:
    """The most likely cause, from the strongest evidence to the weakest."""
    line = error_line(evidence.log)
    # What an unhandled signal cut off printed no reason; lines before it are older stories.
    cut_off = death_signal(evidence) in (7, 9, 11, 15)
    return (
        _from_observation(evidence, line)
        or (None if cut_off else _from_message(evidence, line))
        or _from_signal(evidence)
        or _unknown(evidence, line)
    )


def _from_observation(evidence: Evidence, line: str) -> Diagnosis | None:
    """What a guard saw, or the disk shows: stronger than any message."""
    if evidence.guard == "plugin":
        return Diagnosis(
            "setup", evidence.phase, line, "our plugin does not run inside the training process",
            "the log has the whole message", "never",
        )  # fmt: skip
    if evidence.guard == "host":
        return Diagnosis(
            "host", evidence.phase, "", "a host was lost",
            "see to it that all hosts are up and reach each other", "never",
        )  # fmt: skip
    if evidence.guard == "nan":
        return Diagnosis(
            "nan", evidence.phase, line, "the loss or a gradient became NaN or infinite",
            "lower learning_rate, or look at the rows of this step; with embeddings_skip_upcast "
            "set it to false", "once",
        )  # fmt: skip
    if evidence.guard == "stall":
        return Diagnosis(
            "stall", evidence.phase, f"nothing happened in phase {evidence.phase}",
            "training stood still", "look at dmesg and the disk; a hung driver needs a reboot",
            "usual",
        )  # fmt: skip
    # torch reports a full disk as a broken archive, not as errno 28 (facts measured).
    if evidence.disk_short and evidence.phase == "save":
        return Diagnosis(
            "disk", "save", line, "the disk is full",
            "free some space; leviathan checkpoints cleanup helps", "usual",
        )  # fmt: skip
    return None


def _from_message(evidence: Evidence, line: str) -> Diagnosis | None:
    for known in _TABLE:
        if known.pattern.search(line):
            return Diagnosis(known.kind, evidence.phase, line, known.cause, known.fix, known.retry)
    return None


def _from_signal(evidence: Evidence) -> Diagnosis | None:
    number = death_signal(evidence)
    if number is None:
        return None
    if number == 9 and evidence.kernel_killed:
        return Diagnosis(
            "host_memory", evidence.phase, "the kernel's OOM killer ended it (signal 9)",
            "the machine's RAM ran out", "close other programs, or lower dataset_num_proc and "
            "micro_batch_size", "usual",
        )  # fmt: skip
    what = "somebody or something killed it" if number in (9, 15) else "it crashed"
    return Diagnosis(
        "killed", evidence.phase, f"signal {number}", f"the training process died: {what}",
        "see dmesg and the log", "usual",
    )  # fmt: skip


def _unknown(evidence: Evidence, line: str) -> Diagnosis:
    # Before the first step nothing random has happened: it would fail the same way again.
    if evidence.phase in {"start", "load"}:
        return Diagnosis(
            "setup", evidence.phase, line, "training could not begin",
            "the log has the whole message", "never",
        )  # fmt: skip
    return Diagnosis(
        "unknown", evidence.phase, line, "the training process failed",
        "the log has the whole message", "usual",
    )  # fmt: skip


_DIED = re.compile(r"died with <Signals\.\w+: (\d+)>|exitcode\s*:\s*-(\d+)|Signal (\d+) \(SIG")


def death_signal(evidence: Evidence) -> int | None:
    """The signal that ended the training process, as its launcher tells; None if none did."""
    found = _DIED.findall(evidence.log)
    if found:
        return int(next(filter(None, found[0])))
    code = evidence.exit_code
    return -code if code is not None and code < 0 else None


def short(line: str) -> str:
    """``line`` for people: torch's messages run on for 500 characters, the log has them all."""
    return line if len(line) <= _SHORT else f"{line[:_SHORT].rstrip()}..."


def tail(log: Path) -> str:
    """The end of a log as text, at most 64 KiB; empty when there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def is_echo(line: str) -> bool:
    """Whether an error only tells that another process of the training is gone."""
    return bool(_ECHO.search(line))


def last_error(log: Path) -> str:
    """The line of a log that says best what went wrong."""
    return error_line(tail(log))


_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"[\w.]*(?:Error|Exception|Interrupt|Exit)(?=: )|MemoryError$")
# What a process says when another one of its training has died: never the cause.
_ECHO = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|DistBackendError"
    r"|ncclRemoteError|ncclSystemError|gloo/transport|Timed out waiting|Failed to recv, got 0 bytes"
)
# accelerate's and torchrun's reports that their child failed hide the child's reason.
_FOREIGN = re.compile(r"\S*(?:CalledProcess|ChildFailed)\w*")
_ELASTIC = re.compile(r"[EWI]\d{4} \S+ +\d+ \S*torch/distributed/elastic/")


def error_line(text: str) -> str:
    """The last exception in a log, as tracebacks end; else its last line."""
    # torchrun puts the rank before each line: "[rank0]: ValueError: ...".
    ranks = (re.sub(r"^\[rank\d+\]: ?", "", raw).rstrip() for raw in text.splitlines())
    lines = [line for line in ranks if line and not _ELASTIC.match(line)]
    ends = list(_ends_of_tracebacks(lines))
    if ends and _FOREIGN.match(lines[ends[-1][1]]):
        begin, _ = ends.pop()
        lines = lines[:begin] or lines
    last = max((end for _, end in ends if end < len(lines)), default=-1)
    for index in range(len(lines) - 1, last, -1):
        if _EXCEPTION.match(lines[index].strip()) and not _FOREIGN.match(lines[index]):
            return lines[index].strip()
    if last >= 0:
        return lines[last]
    return lines[-1].strip() if lines else "the log is empty"


def _ends_of_tracebacks(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Where each traceback begins, and the line after its frames: the exception's."""
    begin = None
    for index, line in enumerate(lines):
        if line.endswith(_TRACEBACK):  # a progress bar may stand before it
            begin = index
        elif begin is not None and not line.startswith(" "):
            yield begin, index
            begin = None
