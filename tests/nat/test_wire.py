"""A segment whose machines are far from each other."""

import socket
import sys

from tests import capabilities, stopwatch
from tests.nat import topology

#: One way.
DELAY_MS = 40.0
_UDP = f"import socket; s = socket.socket(type={int(socket.SOCK_DGRAM)})"


async def test_a_far_machine_answers_after_the_delay_both_ways() -> None:
    capabilities.require("nat")
    async with topology.internet(is_far=True) as net:
        near, far = await net.host("near"), await net.host("far")
        async with net.connected(DELAY_MS):
            answer = f"s.bind(('{far.address}', 9)); print(flush=True); s.sendto(*s.recvfrom(99))"
            server = await far.start(sys.executable, "-c", f"{_UDP}; {answer}")
            assert server.stdout is not None
            await server.stdout.readline()
            began = stopwatch.now()
            said = await near.run(sys.executable, "-c", f"{_UDP}; s.sendto(b'hello', ('{far.address}', 9)); print(s.recv(99))")
            assert said == "b'hello'\n"
            assert stopwatch.now() - began >= 2 * DELAY_MS / 1000
            await server.wait()
