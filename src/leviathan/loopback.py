"""Owns what is asked of this machine's own network: a free port, and the way in from elsewhere.

Starts no server (``dashboard``, ``serve``).
"""

import errno
import getpass
import socket

from leviathan.errors import BadInput

HOST = "127.0.0.1"
_PORTS_TRIED = 20


def free_port(wanted: int | None, usual: int, host: str = HOST) -> int:
    """``wanted``, or the first free port from the ``usual`` one on.

    Raises:
        BadInput: it is taken, or no address of this machine.
    """
    if wanted is not None:
        if is_free(wanted, host):
            return wanted
        raise BadInput(f"port {wanted} is in use", "leave --port out to get a free one")
    for port in range(usual, usual + _PORTS_TRIED):
        if is_free(port, host):
            return port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as any_port:
        any_port.bind((host, 0))
        return int(any_port.getsockname()[1])


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen there.

    Raises:
        BadInput: the host is no address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadInput(f"--host {host} is no address", "use 127.0.0.1") from error
    with socket.socket(family, kind) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise BadInput(
                    f"--host {host} is no address of this machine", "use 127.0.0.1"
                ) from error
            return False
    return True


def tunnel(port: int) -> str:
    """What to type on one's own machine to reach a server on this one's loopback."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "USER"
    return f"ssh -N -L {port}:{HOST}:{port} {user}@{socket.gethostname()}"
