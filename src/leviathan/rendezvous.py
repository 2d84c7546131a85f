"""Owns where several hosts meet: the address, which of them is the head, over which interface.

Does not talk to the other hosts (``hosts``) nor build their launch (``launch``): it asks the
kernel for addresses and routes, and sends nothing.
"""

import socket
from dataclasses import dataclass
from ipaddress import ip_address

import psutil

from leviathan.errors import BadInput

_HINT = "every host gets the same --rdzv HOST:PORT: the head's address, and two free ports there"


@dataclass(frozen=True)
class Meeting:
    """Where the hosts of one training meet, as one of them knows it."""

    host: str
    """Name or address of the head, as given."""
    port: int
    """Where the head's supervisor listens; torch's own store takes the next port."""
    nodes: int
    rank: int | None
    """This host's number; 0 is the head. None until the head has assigned it."""

    @property
    def is_head(self) -> bool:
        """Whether this host writes the run directory and decides."""
        return self.rank == 0

    @property
    def store_port(self) -> int:
        """Where torch's store listens, on the head."""
        return self.port + 1

    @property
    def place(self) -> str:
        """``HOST:PORT`` as it is typed."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def meeting(nodes: int, place: str | None, rank: int | None = None) -> Meeting | None:
    """Where ``nodes`` hosts meet; None for a single one, wherever it would.

    Without ``rank`` the host that owns the address is the head, and the others are
    numbered as they come.

    Raises:
        BadInput: no place, one that is none, or a rank that is none.
    """
    if nodes == 1:
        return None
    if place is None:
        raise BadInput(f"{nodes} hosts need a place to meet", _HINT)
    host, port = _parsed(place)
    if rank is not None and not 0 <= rank < nodes:
        raise BadInput(f"--node-rank {rank} is not a number of {nodes} hosts", f"0 to {nodes - 1}")
    if rank is None and _is_loopback_name(host):
        raise BadInput(f"--rdzv: {host} is this machine's loopback here, where no other host can "
                       "come in", "give the address by which the others reach it")  # fmt: skip
    if rank is None and is_here(host):
        rank = 0
    return Meeting(host, port, nodes, rank)


def _parsed(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or (":" in host and not bracketed) or not (port.isascii() and port.isdecimal()):
        raise BadInput(f"--rdzv {place!r} is not HOST:PORT", _HINT)
    if not 1 <= int(port) < 65535:
        raise BadInput(f"--rdzv {place!r}: the port is not between 1 and 65534", _HINT)
    return host, int(port)


def _is_loopback_name(host: str) -> bool:
    """A machine's own name often is, in /etc/hosts; an address is taken as it is meant."""
    found = {address for _, address in _addresses(host)}
    return host not in found and any(ip_address(a.partition("%")[0]).is_loopback for a in found)


def is_here(host: str) -> bool:
    """Whether one of this host's interfaces has that address.

    Raises:
        BadInput: the name is not known here.
    """
    return any(_binds(family, address) for family, address in _addresses(host))


def _addresses(host: str) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise BadInput(f"--rdzv: {host} is not known here ({error.strerror})", _HINT) from error
    return [(int(family), str(address[0])) for family, _, _, _, address in found]


def _binds(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def interface_to(host: str) -> str | None:
    """Name of the interface that traffic to ``host`` leaves by; None where that is unknown.

    Of the head itself, whose traffic to its own address never leaves, the one with that
    address: the others come in there.
    """
    own = _own_address(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == own for a in addresses):
            return name
    return None


def _own_address(host: str) -> str | None:
    try:
        family, address = _addresses(host)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # asks for a route; a datagram socket sends nothing
            return str(probe.getsockname()[0])
    except (OSError, BadInput, IndexError):
        return None
