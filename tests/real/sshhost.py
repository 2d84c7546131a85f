"""A second machine: a network namespace with an sshd of its own, reached over a veth pair."""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

NEEDS = ("ip", "ssh", "ssh-keygen", "rsync", "tmux", "/usr/sbin/sshd")


class SshHost:
    """A context: ``command`` runs here, ``address`` answers there."""

    address, port = "10.231.7.2", 2222

    def __init__(self, directory: Path) -> None:
        lacking = [name for name in NEEDS if not shutil.which(name)]
        assert not lacking, f"run scripts/install_test_tools.sh; not here: {', '.join(lacking)}"
        assert os.geteuid() == 0, "network namespaces want root"
        self.directory = directory
        self.key = directory / "the key"
        mark = uuid.uuid4().hex[:6]
        self.here, self.there = f"lvh-{mark}", f"lvt-{mark}"

    def __enter__(self) -> "SshHost":
        here, there = self.here, self.there
        try:
            for line in (
                f"netns add {here}",
                f"netns add {there}",
                f"-n {here} link add far type veth peer name near netns {there}",
                f"-n {here} addr add 10.231.7.1/24 dev far",
                f"-n {there} addr add {self.address}/24 dev near",
                f"-n {here} link set far up",
                f"-n {there} link set near up",
                f"-n {there} link set lo up",
            ):
                subprocess.run(["ip", *line.split()], check=True)
            self._serve()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if server := getattr(self, "server", None):
            server.kill()
            server.wait()
        for name in (self.here, self.there):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def _serve(self) -> None:
        for path in (self.key, self.directory / "host_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
            subprocess.run(keygen, check=True)
        public = Path(f"{self.key}.pub").read_text()
        (self.directory / "authorized").write_text(public)
        host = " ".join((self.directory / "host_key.pub").read_text().split()[:2])
        (self.directory / "known").write_text(f"[{self.address}]:{self.port} {host}\n")
        # Of the client: that it knows the host, which a person says yes to once.
        (self.directory / "client").write_text(
            f"UserKnownHostsFile {self.directory}/known\nStrictHostKeyChecking yes\nBatchMode yes\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        (self.directory / "server").write_text(
            f"Port {self.port}\nHostKey {self.directory}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.directory}/authorized\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\n"
        )
        config = str(self.directory / "server")
        self.server = subprocess.Popen(
            ["ip", "netns", "exec", self.there, "/usr/sbin/sshd", "-D", "-e", "-f", config],
            stderr=subprocess.PIPE,
        )
        assert b"listening" in self.server.stderr.readline()

    def command(self, *words: object, **options) -> subprocess.CompletedProcess:
        """Run a command on this side of the network."""
        return subprocess.run(
            ["ip", "netns", "exec", self.here, *map(str, words)],
            env={**os.environ, "REMOTE_CONFIG": str(self.directory / "client")},
            capture_output=True, text=True, check=False, timeout=120, **options,
        )  # fmt: skip


def write_environment(directory: Path, variables: dict[str, str]) -> Path:
    """What looks like a virtual environment: ours, with these variables set."""
    (directory / "bin").mkdir(parents=True)
    real = Path(sys.executable).with_name("leviathan")
    lines = [f"export {name}={_quoted(value)}" for name, value in variables.items()]
    script = directory / "bin/leviathan"
    script.write_text("\n".join(["#!/bin/sh", *lines, f'exec {_quoted(str(real))} "$@"', ""]))
    script.chmod(0o755)
    return directory


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
