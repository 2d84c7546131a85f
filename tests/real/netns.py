"""Two hosts on one machine: network namespaces joined by a cable, root or not."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Host:
    """One end of the cable; both see the same files and processes."""

    address: str
    pid: int
    """Of a process that keeps its namespaces."""
    user: bool

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that runs another one on this host."""
        return (
            "nsenter",
            "-t",
            str(self.pid),
            *(["-U", "--preserve-credentials"] * self.user),
            "-n",
        )

    def ip(self, *words: str) -> None:
        subprocess.run([*self.prefix, "ip", *words], check=True, timeout=10)

    def cut(self) -> None:
        """Pull the cable."""
        self.ip("link", "set", "eth0", "down")

    def mend(self) -> None:
        """Put it in again; the address has gone with it only where it is IPv6."""
        self.ip("link", "set", "eth0", "up")


class Cable:
    """A context with both hosts; they end with it."""

    def __enter__(self) -> "Cable":
        user = _user_namespaces()
        self._keepers: list[subprocess.Popen] = []
        first = self._keep(["unshare", *(["-U", "-r"] * user), "-n", "cat"])
        within = ("nsenter", "-t", str(first), "-U", "--preserve-credentials") if user else ()
        second = self._keep([*within, "unshare", "-n", "cat"])
        self.hosts = tuple(
            Host(address, pid, user)
            for address, pid in zip(ADDRESSES, (first, second), strict=True)
        )
        self.hosts[0].ip(
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(second)
        )
        for host in self.hosts:
            host.ip("address", "add", f"{host.address}/24", "dev", "eth0")
            host.ip("link", "set", "lo", "up")
            host.ip("link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.stdin.close()
            keeper.wait(10)

    def _keep(self, command: list[str]) -> int:
        """Start what keeps a namespace; its pid once it is there."""
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._keepers.append(keeper)
        end = time.monotonic() + 10
        while Path(f"/proc/{keeper.pid}/comm").read_text() != "cat\n":
            assert keeper.poll() is None, _NEEDED
            assert time.monotonic() < end, _NEEDED
            time.sleep(0.02)
        return keeper.pid


_NEEDED = (
    "two hosts need network namespaces: root, or unprivileged user namespaces "
    "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
)


def _user_namespaces() -> bool:
    """Whether user namespaces are to be used: nobody needs to be root then."""
    for user in (True, False):
        tried = ["unshare", *(["-U", "-r"] * user), "-n", "true"]
        if subprocess.run(tried, check=False, capture_output=True, timeout=10).returncode == 0:
            return user
    raise AssertionError(f"{_NEEDED}; this is user {os.getuid()}")
