"""Memory of real GPU trainings as others measured and published it: data for test_memory.py.

FitCheck: fitcheck-llm 0.3.1 (MIT), data/measurements of its source distribution: one Tesla T4
(sm_75), a plain PEFT loop without autocast, fp16, LoRA on q, k, v and o, AdamW with fp32 states,
gradient checkpointing, NF4 without double quantisation where quantised. One row a setting (the
repeats are equal); its older ten rows repeat these settings.

FMS: foundation-model-stack/fms-acceleration (Apache-2.0), scripts/benchmarks/refs/a100_80gb.csv
and a100_80gb_liger.csv with scenarios.yaml and defaults.yaml: A100 80 GB, Hugging Face's
SFTTrainer, sequences of 4,096 tokens, LoRA of rank 16 on q, k, v and o, AdamW (adamw_torch,
foreach), gradient checkpointing, no accumulation. Bytes are torch's peak allocation, MiB what
nvidia-smi showed.

UNSLOTH: docs.unsloth.ai, "Unsloth Benchmarks", column "Hugging Face + FA2": the longest context
that Llama 3.1 8B trains at on cards of a size; QLoRA, rank 32, all linears, batch 1.
"""

# name: model_type, hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, tied
T4_SHAPES = {
    "Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, True),
    "SmolLM2-1.7B": ("llama", 2048, 24, 32, 32, 64, 8192, 49152, True),
    "SmolLM2-135M": ("llama", 576, 30, 9, 3, 64, 1536, 49152, True),
    "SmolLM2-360M": ("llama", 960, 32, 15, 5, 64, 2560, 49152, True),
    "TinyLlama-1.1B-Chat-v1.0": ("llama", 2048, 22, 32, 4, 64, 5632, 32000, False),
    "Qwen2.5-7B-Instruct": ("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False),
    "Mistral-7B-Instruct-v0.3": ("mistral", 4096, 32, 32, 8, 128, 14336, 32768, False),
    "deepseek-coder-1.3b-instruct": ("llama", 2048, 24, 16, 16, 128, 5504, 32256, False),
    "Qwen2.5-Coder-1.5B-Instruct": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, True),
    "Llama-3.2-3B-Instruct": ("llama", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "Llama-3.2-1B-Instruct": ("llama", 2048, 16, 32, 8, 64, 8192, 128256, True),
}  # fmt: skip

# model, attention, storage, rank, batch, sequence, peak allocated MiB, process MiB
T4 = [
    ("Qwen2.5-1.5B-Instruct", "eager", "nf4", 32, 2, 1024, 6838.5, 7688.9),
    ("Qwen2.5-1.5B-Instruct", "eager", "none", 32, 2, 1024, 7405.8, 8050.9),
    ("Qwen2.5-1.5B-Instruct", "sdpa", "nf4", 32, 2, 1024, 6827.7, 7540.9),
    ("Qwen2.5-1.5B-Instruct", "sdpa", "none", 32, 2, 1024, 7401.8, 7906.9),
    ("SmolLM2-1.7B", "eager", "nf4", 32, 4, 1024, 5297.3, 7136.9),
    ("SmolLM2-1.7B", "eager", "none", 32, 4, 1024, 6536.7, 7874.9),
    ("SmolLM2-1.7B", "sdpa", "nf4", 32, 4, 1024, 5281.3, 6080.9),
    ("SmolLM2-1.7B", "sdpa", "none", 32, 4, 1024, 6528.7, 7234.9),
    ("SmolLM2-135M", "eager", "nf4", 32, 1, 4096, 3679.3, 5364.9),
    ("SmolLM2-135M", "eager", "none", 32, 1, 4096, 3180.1, 4616.9),
    ("SmolLM2-135M", "sdpa", "nf4", 32, 1, 4096, 3576.8, 3924.9),
    ("SmolLM2-135M", "sdpa", "none", 32, 1, 4096, 3148.1, 3424.9),
    ("SmolLM2-135M", "eager", "nf4", 32, 2, 512, 1067.2, 1332.9),
    ("SmolLM2-135M", "eager", "none", 32, 2, 512, 1027.3, 1244.9),
    ("SmolLM2-135M", "sdpa", "nf4", 32, 2, 512, 1063.8, 1334.9),
    ("SmolLM2-135M", "sdpa", "none", 32, 2, 512, 1026.9, 1210.9),
    ("SmolLM2-360M", "eager", "nf4", 32, 1, 4096, 5687.2, 8304.9),
    ("SmolLM2-360M", "eager", "none", 32, 1, 4096, 4908.5, 7444.9),
    ("SmolLM2-360M", "sdpa", "nf4", 32, 1, 4096, 4017.8, 4658.9),
    ("SmolLM2-360M", "sdpa", "none", 32, 1, 4096, 3754.8, 4052.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "nf4", 32, 2, 1024, 2876.3, 3806.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "none", 32, 2, 1024, 3518.1, 4366.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 2, 1024, 2531.6, 3036.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "none", 32, 2, 1024, 3287.8, 3672.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "nf4", 32, 2, 2048, 6651.0, 7980.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "none", 32, 2, 2048, 6616.1, 7802.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 2, 2048, 3895.9, 4890.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "none", 32, 2, 2048, 4354.1, 4836.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "nf4", 32, 2, 512, 1850.3, 2356.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "none", 32, 2, 512, 2757.2, 3048.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 2, 512, 1849.3, 2194.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "none", 32, 2, 512, 2756.2, 3020.9),
    ("Qwen2.5-1.5B-Instruct", "eager", "nf4", 32, 1, 2048, 6850.0, 7724.9),
    ("Qwen2.5-1.5B-Instruct", "eager", "none", 32, 1, 2048, 7410.3, 8262.9),
    ("Qwen2.5-1.5B-Instruct", "sdpa", "nf4", 32, 1, 2048, 6831.2, 7744.9),
    ("Qwen2.5-1.5B-Instruct", "sdpa", "none", 32, 1, 2048, 7402.3, 7906.9),
    ("SmolLM2-1.7B", "eager", "nf4", 32, 1, 2048, 4323.0, 4960.9),
    ("SmolLM2-1.7B", "eager", "none", 32, 1, 2048, 5706.2, 7286.9),
    ("SmolLM2-1.7B", "sdpa", "nf4", 32, 1, 2048, 3345.8, 3936.9),
    ("SmolLM2-1.7B", "sdpa", "none", 32, 1, 2048, 4977.0, 5538.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "nf4", 32, 1, 1024, 2020.4, 2496.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 1, 1024, 1843.1, 2174.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 12, 1024, 9371.7, 11398.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "nf4", 32, 4, 1024, 4589.6, 6312.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 4, 1024, 3895.6, 5026.9),
    ("TinyLlama-1.1B-Chat-v1.0", "eager", "nf4", 32, 8, 1024, 8017.9, 11172.9),
    ("TinyLlama-1.1B-Chat-v1.0", "sdpa", "nf4", 32, 8, 1024, 6631.7, 8178.9),
    ("Qwen2.5-7B-Instruct", "eager", "nf4", 16, 1, 1024, 10584.8, 11886.9),
    ("Mistral-7B-Instruct-v0.3", "eager", "nf4", 16, 1, 1024, 6190.6, 6880.9),
    ("deepseek-coder-1.3b-instruct", "eager", "nf4", 16, 1, 1024, 1975.5, 2414.9),
    ("deepseek-coder-1.3b-instruct", "sdpa", "nf4", 16, 1, 1024, 1971.7, 2312.9),
    ("Mistral-7B-Instruct-v0.3", "sdpa", "nf4", 16, 1, 1024, 6056.3, 6540.9),
    ("Qwen2.5-Coder-1.5B-Instruct", "sdpa", "nf4", 16, 1, 1024, 4235.2, 5352.9),
    ("Qwen2.5-Coder-1.5B-Instruct", "eager", "nf4", 16, 1, 1024, 4235.8, 5200.9),
    ("Qwen2.5-7B-Instruct", "sdpa", "nf4", 16, 1, 1024, 10585.8, 12020.9),
    ("Llama-3.2-3B-Instruct", "eager", "nf4", 16, 1, 1024, 5498.5, 6352.9),
    ("Llama-3.2-3B-Instruct", "sdpa", "nf4", 16, 1, 1024, 5495.0, 6408.9),
    ("Llama-3.2-1B-Instruct", "sdpa", "nf4", 16, 1, 1024, 3723.1, 4166.9),
    ("Llama-3.2-1B-Instruct", "eager", "nf4", 16, 1, 1024, 3728.1, 4198.9),
]  # fmt: skip

# model, method, GPUs, batch, fused cross-entropy, stack, peak allocated bytes, nvidia-smi MiB.
# Stacks: "liger": bf16, with fused RMSNorm and LoRA kernels ("foak"); "fp16": pure fp16;
# "amp": fp16 autocast; "prepared": likewise, after PEFT's prepare_model_for_kbit_training.
FMS = [
    ("Llama-3-8B", "lora", 1, 4, True, "liger", 24905936896, 25465),
    ("Llama-3-8B", "lora", 1, 8, True, "liger", 33567698944, 34681),
    ("Llama-3-8B", "lora", 1, 16, True, "liger", 50891223040, 53115),
    ("Llama-3-8B", "qlora", 1, 4, True, "liger", 14411297792, 15527),
    ("Llama-3-8B", "qlora", 1, 8, True, "liger", 22936744960, 24359),
    ("Llama-3-8B", "qlora", 1, 16, True, "liger", 39987639296, 42409),
    ("Llama-3-8B", "qlora", 1, 32, True, "liger", 74089427968, 78505),
    ("Llama-3-8B", "full", 1, 4, True, "liger", 80318097408, 77537),
    ("Llama-3-8B", "full", 1, 8, True, "liger", 80318490624, 79881),
    ("Llama-3-8B", "lora", 2, 4, True, "liger", 23383704064, 26877),
    ("Llama-3-8B", "lora", 2, 8, True, "liger", 36071997952, 41607),
    ("Llama-3-8B", "lora", 2, 16, True, "liger", 61448585728, 70589),
    ("Llama-3-8B", "lora", 4, 4, True, "liger", 19315503616, 23197),
    ("Llama-3-8B", "lora", 4, 8, True, "liger", 32003797504, 37981),
    ("Llama-3-8B", "lora", 4, 16, True, "liger", 57380385280, 66909),
    ("Llama-3-8B", "qlora", 2, 4, True, "liger", 17850271232, 22164),
    ("Llama-3-8B", "qlora", 2, 8, True, "liger", 30402250240, 35872),
    ("Llama-3-8B", "qlora", 2, 16, True, "liger", 55506208256, 63878),
    ("Llama-3-8B", "qlora", 4, 4, True, "liger", 16453416448, 21677),
    ("Llama-3-8B", "qlora", 4, 8, True, "liger", 29005395456, 35376),
    ("Llama-3-8B", "qlora", 4, 16, True, "liger", 54109353472, 63405),
    ("Llama-3-8B", "full", 2, 4, True, "liger", 80320219648, 80809),
    ("Llama-3-8B", "full", 2, 8, True, "liger", 80320612864, 81135),
    ("Llama-3-8B", "full", 4, 4, True, "liger", 40168839680, 54707.5),
    ("Llama-3-8B", "full", 4, 8, True, "liger", 44061352448, 63613),
    ("Llama-3-8B", "full", 4, 16, True, "liger", 60306944512, 79252.5),
    ("Mistral-7B", "full", 1, 4, False, "fp16", 72971724288, 77705),
    ("Mistral-7B", "lora", 1, 4, False, "fp16", 26108963328, 29731),
    ("Mistral-7B", "lora", 1, 8, False, "fp16", 37098695168, 43195),
    ("Mistral-7B", "qlora", 1, 4, False, "amp", 15860019712, 19931),
    ("Mistral-7B", "qlora", 1, 8, False, "amp", 26849751552, 34355),
    ("Mistral-7B", "qlora", 1, 4, False, "prepared", 22825932800, 27023),
    ("Mistral-7B", "qlora", 1, 8, False, "prepared", 40278956032, 47145),
    ("Llama-2-70B", "qlora", 1, 4, False, "amp", 68159977472, 72829),
]
OLD_ROTARY = {"Mistral-7B": 32 * 32768, "Llama-2-70B": 80 * 4096}
"""Layers x positions of the cosines and sines that transformers kept in every attention module
when the second table was measured: fp16, two tables of 128 columns."""

# card in GB, longest context
UNSLOTH = [(12, 932), (16, 2551), (24, 5789), (40, 12264), (48, 15502), (80, 28454)]
