"""An Axolotl plugin for tests: has accelerate shard over CPUs, which it does over GPUs only."""

from accelerate import ParallelismConfig, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from axolotl.integrations.base import BasePlugin


class Plugin(BasePlugin):
    def register(self, cfg) -> None:
        mesh, begin = ParallelismConfig.build_device_mesh, AcceleratorState.__init__

        def sharded(self, *arguments, fsdp_plugin=None, **named) -> None:
            begin(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
            if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
                PartialState._shared_state["distributed_type"] = DistributedType.FSDP

        ParallelismConfig.build_device_mesh = lambda self, _: mesh(self, "cpu")
        AcceleratorState.__init__ = sharded
