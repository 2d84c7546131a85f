"""A fake NVML binding: its GPUs are the JSON in FAKE_GPUS, each a mapping query -> answer."""

import json
import os
from types import SimpleNamespace


class NVMLError(Exception):
    """What the real binding raises; here, for every query that a GPU has no answer to."""


def _device(query, *arguments):
    gpus = json.loads(os.environ["FAKE_GPUS"])
    if query == "Count":
        return len(gpus)
    if query == "HandleByIndex":
        return gpus[arguments[0]]
    handle, *rest = arguments
    if query not in handle:
        raise NVMLError(query)
    if query == "MemoryInfo":
        return SimpleNamespace(total=handle[query], free=handle[query])
    if query == "MaxClockInfo":  # 1: streaming multiprocessors, 2: memory
        return handle[query][rest[0] - 1]
    return handle[query]


def __getattr__(name):
    if name.startswith("nvmlDeviceGet"):
        return lambda *arguments: _device(name.removeprefix("nvmlDeviceGet"), *arguments)
    if name in {"nvmlInit", "nvmlShutdown"}:
        return lambda: None
    raise AttributeError(name)
