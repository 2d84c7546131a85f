"""NVML as the file $FAKE_NVML tells it: {"error", "driver", "cuda", "gpus": [{query: answer}]}.

A query that a GPU has no answer to is one that its driver does not support.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    """As pynvml's."""


STATE = json.loads(Path(os.environ["FAKE_NVML"]).read_text())


def _init():
    if "error" in STATE:
        raise NVMLError(STATE["error"])


def _ask(gpu, query, *rest):
    if query not in gpu:
        raise NVMLError("Not Supported")
    answer = gpu[query]
    if query == "MaxClockInfo":  # 1: streaming multiprocessors, 2: memory
        return answer[rest[0] - 1]
    if isinstance(answer, dict):
        return SimpleNamespace(**answer)
    return [SimpleNamespace(**a) for a in answer] if query.endswith("Processes") else answer


_CALLS = {
    "Init": _init,
    "Shutdown": lambda: None,
    "DeviceGetCount": lambda: len(STATE["gpus"]),
    "DeviceGetHandleByIndex": lambda index: STATE["gpus"][index],
    "SystemGetDriverVersion": lambda: STATE["driver"],
    "SystemGetCudaDriverVersion": lambda: STATE["cuda"],
}


def __getattr__(name):
    if not name.startswith("nvml"):
        raise AttributeError(name)
    query = name.removeprefix("nvml")
    return _CALLS.get(query) or (
        lambda gpu, *rest: _ask(gpu, query.removeprefix("DeviceGet"), *rest)
    )
