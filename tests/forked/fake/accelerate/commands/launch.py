"""Acts ``accelerate launch``: the fork server makes the training process, this one waits for it.

To its parent it is the launcher: same command line, same session, same exit code and
traceback when the training fails; killed, it leaves the training process behind.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

STANDARD = (0, 1, 2)


def main(arguments: list[str]) -> None:
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "directory": str(Path.cwd()),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ["FORK_SERVER"])
        socket.send_fds(server, [json.dumps(request).encode()], STANDARD)
        answer = server.recv(1 << 16)
    if not answer:
        sys.exit("the fork server has gone")
    ended = json.loads(answer)
    if ended["code"]:  # what accelerate's simple_launcher does
        raise subprocess.CalledProcessError(ended["code"], ended["command"])


if __name__ == "__main__":
    main(sys.argv[1:])
