#!/usr/bin/env python3
"""Write the table of docs/scratch-models.md: what each depth and size weighs and takes.

python scripts/make_scratch_table.py          # rewrite the table
python scripts/make_scratch_table.py --check  # exit 1 when it is out of date
"""

import sys
from pathlib import Path
from typing import Any

from leviathan import knobs, memory, scratch
from leviathan.blueprint import NewModel
from leviathan.decoder import Shape

PAGE = Path(__file__).parents[1] / "docs" / "scratch-models.md"
BEGIN, END = "<!-- table: scripts/make_scratch_table.py -->", "<!-- end of the table -->"
GPUS = 8
CLAIMS = {
    "d24": ("680 M", ""), "d48": ("2.4 B", "60"), "d64": ("4.3 B", "75"), "d80": ("6.7 B", "95"),
    "tiny": ("85 M", ""), "small": ("178 M", ""), "medium": ("374 M", ""),
    "medium-large": ("401 M", ""), "large": ("763 M", ""), "xlarge": ("1.46 B", "44"),
}  # fmt: skip
"""Parameters and GB a GPU, as the guides have them."""
DEPTHS = (12, 20, 24, 48, 64, 80)
SIZES = ("tiny", "small", "medium", "medium-large", "large", "xlarge")


def models() -> dict[str, tuple[NewModel, int]]:
    """Every row's model, and the rows of a micro batch in its guide."""
    depths = {
        f"d{d}": (NewModel(depth=d, tokenizer="characters", vocab_size=32), 4) for d in DEPTHS
    }
    depths["d20 bpe"] = (NewModel(depth=20), 4)
    return depths | {name: (NewModel(size=name), 16) for name in SIZES}  # type: ignore[arg-type]


def total_gib(shape: Shape, micro_batch: int, **strategy: Any) -> float:
    """GiB of one of eight GPUs, every weight trained with AdamW on rows of 2,048 tokens."""
    tree = {
        "sequence_len": 2048, "micro_batch_size": micro_batch, "gradient_checkpointing": True,
        "bf16": True, "optimizer": "adamw_torch_fused", "attn_implementation": "flash_attention_2",
        "liger_fused_linear_cross_entropy": True, "liger_rms_norm": True,
        "liger_glu_activation": True, **strategy,
    }  # fmt: skip
    return memory.estimate(shape, knobs.read(tree, GPUS)).total_gib


def row(name: str, model: NewModel, micro_batch: int) -> str:
    """One line of the table."""
    shape = scratch.shape(model, name)
    claimed, claimed_gb = CLAIMS.get(name, ("", ""))
    whole = total_gib(shape, micro_batch)
    shared = total_gib(shape, micro_batch, fsdp_config={"reshard_after_forward": True})
    cells = [
        f"`{name}`", str(shape.layers), f"{shape.hidden:,}", f"{shape.heads}/{shape.kv_heads}",
        f"{shape.intermediate:,}", f"{shape.vocab:,}", counted(shape.parameters), claimed,
        str(micro_batch), f"{whole:.1f}", f"{shared:.1f}", claimed_gb,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def counted(parameters: int) -> str:
    """A count as the guides write theirs, with a digit more."""
    billions = parameters / 1e9
    return f"{billions:.2f} B" if billions >= 1 else f"{parameters / 1e6:.1f} M"


def table() -> str:
    """The table, with its marks."""
    head = ("model", "layers", "width", "heads/kv", "feed-forward", "vocabulary", "parameters",
            "guide", "micro batch", "DDP GiB", "FSDP GiB", "guide GB")  # fmt: skip
    rows = [row(name, *found) for name, found in models().items()]
    return "\n".join([BEGIN, f"| {' | '.join(head)} |", "|-" * len(head) + "|", *rows, END])


def page() -> str:
    """The page with a new table in the place of the old one."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + table() + rest.partition(END)[2]


def main() -> int:
    """Rewrite the table, or compare it."""
    if "--check" in sys.argv:
        return 0 if PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
