"""The README's example: one's own guest program and one's own client library, put through a migration."""

import pytest

from tests.example.shouting import Client


@pytest.mark.testbed(program="tests.example.shouting:Server", connections=0)
def test_whoever_shouts_does_not_notice(vm, clients, continuity):
    with clients[0]:  # what is made here is on that machine
        client = Client(vm.address)
    with continuity(lambda: client.shout("hello")) as c:  # asked again and again meanwhile
        vm.migrate("host-b")
    assert vm.host == "host-b"
    assert client.last == len(c.asked[0].waits_ns)  # every question has its own answer, none came twice
