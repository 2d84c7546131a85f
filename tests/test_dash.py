"""``dash``: TensorBoard that only this machine reaches, and nothing of it left behind."""

import json
import signal
import socket
import urllib.request

import psutil
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fakes.processes import wait_for
from leviathan import dashboard, loopback
from leviathan.errors import BadInput


@pytest.fixture
def curves(trainings):
    """A finished run with one point on its TensorBoard curve."""
    done = trainings.run()
    assert done.code == 0, done
    writer = EventFileWriter(str(trainings.run_dir / "tensorboard"))
    value = summary_pb2.Summary.Value(tag="train/loss", simple_value=1.5)
    writer.add_event(
        event_pb2.Event(step=7, wall_time=1.0, summary=summary_pb2.Summary(value=[value]))
    )
    writer.close()
    return trainings


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listening(trainings):
    """Where processes of this test listen."""
    return [
        connection.laddr
        for pid in trainings.left()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("run", "name", "number"),
    [((), "tiny_full_tiny/tensorboard", signal.SIGINT), (("tiny_full_tiny",), ".", signal.SIGTERM)],
)
def test_it_serves_this_machine_only_and_ends(curves, port, run, name, number):
    dash = curves.command("dash", *run, "--port", str(port))
    wait_for(lambda: "ssh -N" in dash.stdout, 60)
    assert f"TensorBoard: http://127.0.0.1:{port}/" in dash.stdout
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in dash.stdout
    assert b"TensorBoard" in get(port, "/")
    wait_for(lambda: name in json.loads(get(port, "/data/runs")), 30)
    assert {address.ip for address in listening(curves)} == {"127.0.0.1"}
    dash.signal(number)
    assert dash.end() == 0, dash
    assert not curves.left()


def test_its_end_is_noticed(curves, port):
    dash = curves.command("dash", "--port", str(port))
    wait_for(lambda: "ssh -N" in dash.stdout, 60)
    for child in psutil.Process(dash.process.pid).children():
        child.kill()
    assert dash.end() == 1
    assert "TensorBoard ended by itself" in dash.stderr


def test_what_it_cannot_show_is_one_line(run_cli, curves):
    for arguments, message in (
        (("dash", "nonsense"), "no run 'nonsense'"),
        (("dash", "--port", "70000"), "70000"),
    ):
        done = run_cli(*arguments)
        assert (done.exit_code, len(done.stderr.strip().splitlines())) == (2, 1)
        assert message in done.stderr
    for file in (curves.run_dir / "tensorboard").iterdir():
        file.unlink()
    for arguments in ((), ("tiny_full_tiny",)):
        done = run_cli("dash", *arguments)
        assert (done.exit_code, len(done.stderr.strip().splitlines())) == (2, 1)
        assert "has TensorBoard data" in done.stderr or "has no TensorBoard data" in done.stderr


def test_a_taken_port_is_refused_or_passed_over(port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(BadInput, match=f"port {port} is in use"):
            loopback.free_port(port, dashboard.PORT)
    assert loopback.free_port(port, dashboard.PORT) == port
    assert loopback.free_port(None, dashboard.PORT) >= 1024
