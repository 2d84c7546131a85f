"""GPUs as NVML reports them; figures of nvidia-smi and NVIDIA's data sheets."""

from leviathan.machine import Gpu


def gpu(name: str, mib: int, sm: str, watts: float | None, cores: int, sm_mhz: int, memory_mhz: int,
        bits: int) -> Gpu:  # fmt: skip
    return Gpu(name, mib / 1024, mib / 1024, sm, power_limit_w=watts, cores=cores,
               max_sm_clock_mhz=sm_mhz, max_memory_clock_mhz=memory_mhz, memory_bus_bits=bits)  # fmt: skip


A4000 = gpu("NVIDIA RTX A4000", 16376, "sm_86", 140, 6144, 2100, 7001, 256)
RTX_3090 = gpu("NVIDIA GeForce RTX 3090", 24576, "sm_86", 350, 10496, 2100, 9751, 384)
RTX_2080_TI = gpu("NVIDIA GeForce RTX 2080 Ti", 11264, "sm_75", 250, 4352, 2100, 7000, 352)
T4 = gpu("Tesla T4", 15360, "sm_75", 70, 2560, 1590, 5001, 256)
L40S = gpu("NVIDIA L40S", 46068, "sm_89", 350, 18176, 2520, 9001, 384)
A100_40 = gpu("NVIDIA A100-SXM4-40GB", 40960, "sm_80", 400, 6912, 1410, 1215, 5120)
A100_80 = gpu("NVIDIA A100-SXM4-80GB", 81920, "sm_80", 400, 6912, 1410, 1593, 5120)
H100_PCIE = gpu("NVIDIA H100 PCIe", 81559, "sm_90", 350, 14592, 1755, 1593, 5120)
T400 = gpu("NVIDIA T400 4GB", 4096, "sm_75", None, 384, 1425, 5001, 64)
NEW = Gpu("NVIDIA RTX Next", 48.0, 48.0, "sm_200")
"""A card of tomorrow, of which NVML tells nothing but name, memory and architecture."""

MACHINES: dict[str, tuple[Gpu, ...]] = {
    "a4000": (A4000,),
    "two-3090": (RTX_3090, RTX_3090),
    "2080ti": (RTX_2080_TI,),
    "t4": (T4,),
    "l40s": (L40S,),
    "a100-40": (A100_40,),
    "h100-pcie": (H100_PCIE,),
    "eight-a100": (A100_80,) * 8,
    "three-a100": (A100_80,) * 3,
    "sixteen-a100": (A100_80,) * 16,
    "mixed": (RTX_3090, A4000),
    "with-display-card": (T400, A4000),
    "new": (NEW,),
}
