"""What NVML sees of a GPU while something else runs on it: memory in use, utilisation."""

import os
import statistics
import threading
import time
from types import TracebackType

import pynvml

INTERVAL_S = 0.2


class Watcher(threading.Thread):
    """A context: looks at the first visible GPU until it ends. Without a GPU it sees nothing."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float, int]] = []
        """Unix seconds, GiB in use (all processes), per cent of the time that kernels ran."""
        self._over = threading.Event()

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Sample until the end; a driver that answers nothing leaves no samples."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
            while not self._over.wait(INTERVAL_S):
                used = pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30
                share = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                self.samples.append((time.time(), used, share))
        except (pynvml.NVMLError, ValueError):
            return

    def peak_gib(self) -> float | None:
        """Most memory in use beyond what was in use at first."""
        used = [gib for _, gib, _ in self.samples]
        return max(used) - used[0] if used else None

    def utilisation_pct(self, began: float, ended: float) -> float | None:
        """The median between two moments."""
        found = [share for at, _, share in self.samples if began <= at <= ended]
        return statistics.median(found) if found else None
