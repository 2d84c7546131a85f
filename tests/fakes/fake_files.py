"""Checkpoints as Axolotl writes them: the same names and file formats, a few kilobytes, no torch."""

import io
import json
import struct
import zipfile
from pathlib import Path

ADAPTER = "adapter_model.safetensors"
TORCH_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")


def safetensors(payload: bytes = bytes(range(1, 65)), **extra) -> bytes:
    """One tensor called ``w``; ``extra`` replaces parts of its header entry."""
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)], **extra}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    return struct.pack("<Q", len(header)) + header + payload


def torch_archive(
    pickled: bytes = b"\x80\x02}q\x00.", payload: bytes = b"\x01\x02\x03" * 40
) -> bytes:
    """What ``torch.save`` writes: an uncompressed zip of a pickle and raw storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", payload)
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def trainer_state(step: int, loss: float | None, eval_loss: float | None) -> dict:
    history = []
    if loss is not None:
        history.append({"loss": loss, "step": step, "epoch": step / 10})
    if eval_loss is not None:
        history.append({"eval_loss": eval_loss, "step": step, "epoch": step / 10})
    return {"global_step": step, "epoch": step / 10, "max_steps": 100, "log_history": history}


def write_checkpoint(
    run_dir: Path, step: int, *, loss: float | None = 1.5, eval_loss: float | None = None
) -> Path:
    """A whole checkpoint without a commit record."""
    path = run_dir / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in TORCH_FILES:
        (path / name).write_bytes(torch_archive())
    (path / ADAPTER).write_bytes(safetensors(step.to_bytes(4, "big") * 16))
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "tokens_state.json").write_text('{"total": 1}')
    (path / "README.md").write_text("# adapter\n")
    (path / "trainer_state.json").write_text(json.dumps(trainer_state(step, loss, eval_loss)))
    return path


def refuse_removal(path: Path) -> None:
    """Make removing a sound checkpoint fail, for root too: its commit record is a directory."""
    (path / "leviathan-commit.json").unlink(missing_ok=True)
    (path / "leviathan-commit.json").mkdir()
