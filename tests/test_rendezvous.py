"""Where hosts meet: what is typed, who is the head, over which interface."""

import psutil
import pytest

from leviathan import rendezvous
from leviathan.errors import BadInput
from leviathan.rendezvous import Meeting


@pytest.mark.parametrize(
    ("nodes", "place", "rank", "why"),
    [
        (2, None, None, "2 hosts need a place to meet"),
        (2, "", None, "is not HOST:PORT"),
        (2, "10.0.0.1", None, "is not HOST:PORT"),
        (2, ":29400", None, "is not HOST:PORT"),
        (2, "10.0.0.1:", None, "is not HOST:PORT"),
        (2, "10.0.0.1:abc", None, "is not HOST:PORT"),
        (2, "10.0.0.1:²", None, "is not HOST:PORT"),
        (2, "fd00::1:29400", 1, "is not HOST:PORT"),
        (2, "10.0.0.1:0", None, "not between 1 and 65534"),
        (2, "10.0.0.1:65535", None, "not between 1 and 65534"),
        (2, "10.0.0.1:99999", None, "not between 1 and 65534"),
        (2, "10.0.0.1:29400", 2, "--node-rank 2 is not a number of 2 hosts"),
        (2, "10.0.0.1:29400", -1, "--node-rank -1 is not a number of 2 hosts"),
        (2, "no-such-host.invalid:29400", None, "no-such-host.invalid is not known here"),
    ],
)
def test_what_is_no_meeting_is_refused(nodes, place, rank, why):
    with pytest.raises(BadInput, match=why) as refused:
        rendezvous.meeting(nodes, place, rank)
    assert refused.value.hint


def test_one_host_meets_nobody():
    assert rendezvous.meeting(1, None) is None
    assert rendezvous.meeting(1, "10.0.0.1:29400", 5) is None  # as an export writes it for any N


def test_the_head_is_who_has_the_address_or_is_told():
    assert rendezvous.meeting(2, "127.0.0.1:29400") == Meeting("127.0.0.1", 29400, 2, 0)
    away = rendezvous.meeting(3, "192.0.2.1:29400")  # an address that nobody has
    assert away == Meeting("192.0.2.1", 29400, 3, None)
    assert not away.is_head
    assert rendezvous.meeting(3, "192.0.2.1:29400", 0).is_head
    told = rendezvous.meeting(3, "127.0.0.1:29400", 2)
    assert (told.rank, told.is_head, told.store_port) == (2, False, 29401)


def test_an_ipv6_address_is_typed_in_brackets():
    told = rendezvous.meeting(2, "[fd00::1]:29400", 1)
    assert (told.host, told.place) == ("fd00::1", "[fd00::1]:29400")


def test_the_interface_is_the_one_with_the_address():
    assert rendezvous.interface_to("127.0.0.1") == "lo"
    assert rendezvous.interface_to("no-such-host.invalid") is None
    others = {name: a.address for name, found in psutil.net_if_addrs().items()
              for a in found if a.family.name == "AF_INET" and name != "lo"}  # fmt: skip
    for name, address in others.items():  # the head to itself: not lo, where nobody comes in
        assert rendezvous.interface_to(address) == name


def test_a_name_that_is_only_loopback_here_is_no_place_to_meet():
    """Debian's /etc/hosts maps a machine's own name so: the others would knock in vain."""
    with pytest.raises(BadInput, match="localhost is this machine's loopback here"):
        rendezvous.meeting(2, "localhost:29400")
    assert rendezvous.meeting(2, "localhost:29400", 0).is_head  # who says so, means it
