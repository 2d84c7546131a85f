"""Owns reading a failure: from what is left of a dead session to its cause and its cure.

Pure but for reading the log. Does not decide what to do about it (``recovery``).
"""

import re
from dataclasses import dataclass
from pathlib import Path

_LOG_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Evidence:
    """What a session that failed left behind."""

    exit_code: int | None
    log: str
    """The end of the training log."""
    phase: str
    """What the training process was at: start, load, train, eval or save."""
    step: int
    kernel_killed: bool = False
    """The kernel's OOM killer ended some process meanwhile."""
    disk_short: bool = False
    """Less disk space is free than the next checkpoint needs."""
    guard: str = ""
    """Kind of the guard that ended the training (nan, stall), if one did."""


@dataclass(frozen=True)
class Diagnosis:
    """What went wrong, in a word and in a line, and what cures it."""

    kind: str
    """memory, host_memory, nan, stall, disk, package, hub, gpu, killed, setup or unknown."""
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
        return f"{self.cause} ({self.line})" if self.line else self.cause


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
        r"OutOfMemoryError|CUDA out of memory|HIP out of memory|CUBLAS_STATUS_ALLOC_FAILED"
        r"|CUDNN_STATUS_ALLOC_FAILED|DefaultCPUAllocator|^MemoryError|std::bad_alloc"
        r"|Cannot allocate memory",
        "out of memory", "lower sequence_len or micro_batch_size, or add rungs to out_of_memory",
        "usual",
    ),
    _known(
        "hub",
        r"GatedRepoError|RepositoryNotFoundError|401 Client Error|403 Client Error",
        "the model hub refuses the base model",
        "check base_model, accept its licence on the hub, and set HF_TOKEN", "never",
    ),
    _known(
        "hub",
        r"couldn't connect to|LocalEntryNotFoundError|MaxRetryError|ConnectionError|OfflineModeIs",
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
        r"driver version is insufficient|no kernel image is available|Found no NVIDIA driver"
        r"|CUDA unknown error|not compiled with CUDA",
        "this torch does not fit the GPU or its driver", "install the torch build for your driver",
        "never",
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
        "disk", r"No space left on device|Disk quota exceeded|Errno 28|Errno 122",
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


def tail(log: Path) -> str:
    """The end of a log as text, at most 64 KiB; empty when there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_error(log: Path) -> str:
    """The line of a log that says best what went wrong."""
    return error_line(tail(log))


def error_line(text: str) -> str:
    """The last line that starts with an exception's name, as tracebacks end; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for raw in reversed(lines):
        # torchrun puts the rank before each line: "[rank0]: ValueError: ...".
        line = re.sub(r"^\[rank\d+\]:\s*", "", raw)
        name, separator, _ = line.partition(": ")
        # accelerate's and torchrun's reports that their child failed hide the child's reason.
        is_error = name.endswith(("Error", "Exception", "Interrupt", "Exit"))
        foreign = "CalledProcess" in name or "ChildFailed" in name
        if (separator and is_error and " " not in name and not foreign) or line == "MemoryError":
            return line
    return lines[-1] if lines else "the log is empty"
