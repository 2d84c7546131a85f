"""The A4000 profile's own path on a CPU: NF4, packing, paged 8-bit Adam; less only the kernels."""

import json
import signal

import pytest

pytestmark = pytest.mark.real

# What needs a GPU, taken back: bf16, tf32, Triton kernels, Liger. Everything else is
# the profile as shipped, at a size that a CPU finishes.
WITHOUT_GPU = [
    "bf16=false", "tf32=null", "lora_qkv_kernel=false", "lora_o_kernel=false", "plugins=null",
    "liger_rope=null", "liger_rms_norm=null", "liger_glu_activation=null",
    "liger_fused_linear_cross_entropy=null",
]  # fmt: skip
SMALL = [
    "sequence_len=256",
    "gradient_accumulation_steps=2",
    "save_steps=20",
    "eval_steps=20",
    "dataset_num_proc=1",
]
RUN = "tiny_full_a4000"


# Forked trainers have imported torch without a GPU to look for; a smoke test was made by then.
FORKED = ("--set", "hardware.device=cpu", "--no-smoke")


def command() -> tuple[str, ...]:
    sets = [part for text in (*WITHOUT_GPU, *SMALL) for part in ("--set", text)]
    return ("train", "--profile", "a4000", "--recipe", "tiny", "--sample", "full", "--force", *sets)


def test_qlora_stops_resumes_ends_and_merges_into_what_was_trained(make_project, forked_project):
    whole, halves = make_project("whole"), forked_project
    done = whole.run(*command())
    assert done.code == 0, done.err
    launched = (whole.path(RUN) / "axolotl.yaml").read_text()
    for line in ("adapter: qlora", "load_in_4bit: true", "sample_packing: true",
                 "optimizer: paged_adamw_8bit", "attn_implementation: sdpa"):  # fmt: skip
        assert line in launched
    done = halves.signal_at(RUN, 4, signal.SIGINT, arguments=(*command(), *FORKED))
    assert done.code == 4, done.err
    done = halves.run(*command(), *FORKED)
    assert done.code == 0, done.err
    assert "resuming from checkpoint-" in done.err
    assert halves.curve(RUN) == whole.curve(RUN)
    assert halves.adapter(RUN) == whole.adapter(RUN)
    done = whole.run("merge", RUN)
    assert done.code == 0, done.err
    assert "proof: equal" in done.out
    text = (whole.directory / "models" / f"{RUN}-merged" / "merge-proof.json").read_text()
    proof = json.loads(text)
    # Quantised as in training, embeddings and head untouched: only fp32 rounding is left.
    assert proof["argmax_agreement"] == 1.0
    assert proof["relative_error"] < 1e-4
