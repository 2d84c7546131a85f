"""The fork server: imports the training stack once, then forks one trainer for each launch.

    python server.py SOCKET     (started by ``forked.client``; ends when its stdin closes)

A launch costs 15 s of imports; a fork costs none. The child takes over the launcher's
arguments, environment, directory and standard streams, asks the real accelerate what
environment it would give, and runs the real ``axolotl.cli.train`` as ``__main__``. It
begins in the state right after the imports: this process itself never trains.

Not covered: several processes a launch, the interpreter's teardown, ``sitecustomize``
hooks of the launch's PYTHONPATH, and variables that are read while importing: a launch
that wants others than the server was started with is refused. ``FORK_HOOK`` names a Python file that the
child runs first, for tests that must meddle with a training process.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = "axolotl.cli.train"
_PRELOADED = (
    "accelerate.commands.launch", "axolotl.cli.checks", "axolotl.cli.config",
    "axolotl.common.datasets", "axolotl.core.builders", "axolotl.train", "leviathan.plugin",
    "torch.utils.tensorboard", "transformers.models.llama.modeling_llama",
)  # fmt: skip
_READ_AT_IMPORT = (
    "AXOLOTL_DO_NOT_TRACK", "BNB_", "CUDA_", "HF_", "MKL_", "OMP_", "OPENBLAS_", "PYTHONHASHSEED",
    "PYTHONUNBUFFERED", "PYTORCH_", "TOKENIZERS_", "TORCH_", "TRANSFORMERS_",
)  # fmt: skip
_FAKE = str(Path(__file__).parent / "fake")


@dataclass
class Launch:
    """What one launcher asked for, and its standard streams."""

    arguments: list[str]
    environment: dict[str, str]
    directory: str
    streams: list[int]

    @property
    def config(self) -> Path:
        """The rendered YAML."""
        return Path(self.directory, self.arguments[-1])


@dataclass
class Child:
    """A trainer that was forked, and the launcher that waits for it."""

    pid: int
    pidfd: int
    connection: socket.socket
    launch: Launch

    def has_begun(self) -> bool:
        """Whether our plugin runs in it, so that a supervisor can find it by itself."""
        import yaml

        try:
            keys = yaml.safe_load(self.launch.config.read_text())["leviathan"]
            beat = json.loads(Path(keys["run_dir"], ".plugin.json").read_text())
        except (OSError, ValueError, KeyError):
            return False
        return bool(beat["pid"] == self.pid)


class Server:
    """Forks children for launchers; single-threaded, since a fork copies only one thread."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(16)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(0, selectors.EVENT_READ, self._owner_gone)
        self.children: dict[int, Child] = {}

    def serve(self) -> Launch:
        """Serve until the owner is gone; returns only in a child, with what to run."""
        while True:
            for key, _ in self.selector.select():
                launch = key.data(key.fileobj)
                if launch:
                    return launch

    def _accept(self, listener: socket.socket) -> Launch | None:
        connection, _ = listener.accept()
        data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not data:
            connection.close()
            return None
        launch = Launch(**json.loads(data), streams=list(streams))
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._close()
            return launch
        for stream in streams:
            os.close(stream)
        child = Child(pid, os.pidfd_open(pid), connection, launch)
        self.children[pid] = child
        self.selector.register(child.pidfd, selectors.EVENT_READ, lambda _: self._ended(child))
        self.selector.register(connection, selectors.EVENT_READ, lambda _: self._orphaned(child))
        return None

    def _close(self) -> None:
        """In a child: nothing of the server stays open."""
        for child in self.children.values():
            os.close(child.pidfd)
            child.connection.close()
        self.selector.close()
        self.listener.close()

    def _ended(self, child: Child) -> None:
        # A supervisor knows a training's workers by its session and environment, which a fork
        # does not have: those that were forked while it was killed would wait for ever.
        _kill_all(child.pid)
        _, status = os.waitpid(child.pid, 0)
        self.selector.unregister(child.pidfd)
        os.close(child.pidfd)
        del self.children[child.pid]
        answer = {"code": os.waitstatus_to_exitcode(status), "command": _command(child.launch)}
        with suppress(KeyError):  # the launcher went first
            self.selector.unregister(child.connection)
        with suppress(OSError):
            child.connection.send(json.dumps(answer).encode())
        child.connection.close()

    def _orphaned(self, child: Child) -> None:
        """The launcher was killed.

        A real trainer would live on, in the launcher's session, where the supervisor
        finds it. A fork cannot join that session; until it can be found by its
        heartbeat, this end is brought about here.
        """
        self.selector.unregister(child.connection)
        if not child.has_begun():
            _kill_all(child.pid)

    def _owner_gone(self, _: int) -> None:
        for pid in self.children:
            _kill_all(pid)
        os._exit(0)


def _kill_all(pid: int) -> None:
    """Kill a training and the workers it tokenises with, which would wait for it for ever."""
    for kill in (os.killpg, os.kill):  # it may not have a group of its own yet
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _command(launch: Launch) -> list[str]:
    return [sys.executable, *launch.arguments[2:]]


def preload() -> None:
    """Everything a training imports, and nothing that would start a thread or keep state."""
    for module in _PRELOADED:
        importlib.import_module(module)
    from axolotl.integrations.base import PluginManager

    threads = {Path(t, "comm").read_text().strip() for t in Path("/proc/self/task").iterdir()}
    # pyarrow's jemalloc stops and restarts its thread around a fork by itself.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, threads
    assert not [n for n in PluginManager.get_instance().plugins if n.startswith("leviathan")]
    assert MODULE not in sys.modules
    gc.collect()
    gc.freeze()


def become(launch: Launch, at_start: dict[str, str]) -> None:
    """Turn this child into the process that the launcher would have started."""
    os.setsid()
    for number, stream in enumerate(launch.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(launch.directory)
    by_imports = {k: v for k, v in os.environ.items() if at_start.get(k) != v}
    os.environ.clear()
    os.environ.update(launch.environment)
    kept = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p != _FAKE]
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    os.environ.update(_accelerate_environment(launch))
    _refuse_other_imports(at_start)
    for name, value in by_imports.items():
        if name in at_start:
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    sys.path[0] = launch.directory
    sys.path[1:1] = [p for p in kept if p and p not in sys.path]
    _seed_afresh()
    _show_as(_command(launch))


def _accelerate_environment(launch: Launch) -> dict[str, str]:
    """The real accelerate's decision, for a launch of one process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(launch.arguments))
    if arguments.multi_gpu or arguments.num_processes != 1:
        sys.exit("the fork server makes one process a launch")
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    assert command == _command(launch), command
    return environment


def _refuse_other_imports(at_start: dict[str, str]) -> None:
    for name in sorted({*at_start, *os.environ}):
        ours, theirs = at_start.get(name), os.environ.get(name)
        if name.startswith(_READ_AT_IMPORT) and ours != theirs:
            sys.exit(f"the fork server imported with {name}={ours}, this launch has {theirs}")


def _seed_afresh() -> None:
    """A new process has random seeds of its own; forgetting to seed must stay visible."""
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()  # torch 2.13 begins with a random seed, too


def _show_as(command: list[str]) -> None:
    """Write ``command`` over this process's command line, where ``ps`` and tests look."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc(5)
    line = b"\0".join(part.encode() for part in command) + b"\0"
    assert len(line) <= end - start, "the padding is too short"
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


def main(path: str) -> None:
    """Serve; in a child, train."""
    at_start = dict(os.environ)
    preload()
    server: Any = Server(path)
    print("ready", flush=True)
    launch = server.serve()
    del server
    try:
        become(launch, at_start)
        if "FORK_HOOK" in os.environ:
            runpy.run_path(os.environ["FORK_HOOK"])
        sys.argv = [MODULE, *launch.arguments[-1:]]
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        end(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        end(1)
    end(0)


def end(code: int) -> None:
    """End as the interpreter does, less its teardown: 3 s for memory shared with the server."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
