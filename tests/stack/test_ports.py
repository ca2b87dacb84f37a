import contextlib
import os
import socket
from pathlib import Path

import pytest

from shared import errors
from shared.processes import PortListener
from stack import ports
from stack.ports import WantedPort

WEB = WantedPort(3000, "web", "WEB_SERVICE_PORT")
AUTH = WantedPort(3001, "auth", "AUTH_SERVICE_PORT")
DHT = WantedPort(3000, "a DHT node", "DHT_PORT", is_udp=True)


@pytest.mark.parametrize(
    ("wanted", "held", "words"),
    [
        pytest.param([WEB, AUTH], {}, [], id="all are free"),
        pytest.param([WEB], {WEB: PortListener(7, "node")}, ["port 3000", "node (pid 7)", "WEB_SERVICE_PORT"], id="taken"),
        pytest.param(
            [WEB, AUTH, DHT],
            {want: PortListener(7, "node") for want in (WEB, AUTH, DHT)},
            ["3 ports are taken by node (pid 7): 3000 (web), 3001 (auth), UDP port 3000 (a DHT node). Stop it"],
            id="all taken by one program",
        ),
        pytest.param([WEB], {WEB: PortListener(None, None)}, ["may not inspect", "WEB_SERVICE_PORT"], id="taken by a stranger"),
        pytest.param([WEB, WantedPort(3000, "auth", "AUTH_SERVICE_PORT")], {}, ["used by both web and auth"], id="wanted twice"),
        pytest.param(
            [DHT], {DHT: PortListener(7, "node")}, ["UDP port 3000 for a DHT node", "node (pid 7)", "DHT_PORT"], id="taken for UDP"
        ),
        pytest.param([WEB, DHT], {}, [], id="TCP and UDP do not meet"),
        pytest.param([WantedPort(70000, "web", "WEB_SERVICE_PORT")], {}, ["WEB_SERVICE_PORT=70000 is not a port"], id="not a port"),
    ],
)
def test_find_conflicts(wanted: list[WantedPort], held: dict[WantedPort, PortListener], words: list[str]) -> None:
    found = ports.find_conflicts(wanted, held)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_occupied_port_is_reported_with_its_process_and_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.BadSettings) as caught:
            ports.check([WantedPort(ports.find_free(), "auth", "AUTH_SERVICE_PORT"), WantedPort(port, "web", "WEB_SERVICE_PORT")])
        name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
        for word in (str(port), f"{name} (pid {os.getpid()})", "set WEB_SERVICE_PORT"):
            assert word in caught.value.message
        assert "WEB_SERVICE_PORT=" in caught.value.hint


def test_occupied_udp_port_is_reported_with_enough_free_ones() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        wanted = [WantedPort(port + number, "a DHT node", "DHT_PORT", is_udp=True) for number in range(3)]
        with pytest.raises(errors.BadSettings, match=f"UDP port {port} for a DHT node is taken by .*pid {os.getpid()}") as caught:
            ports.check(wanted)
    free = int(caught.value.hint.partition("DHT_PORT=")[2].split()[0])
    assert all(ports.is_free(free + number, is_udp=True) for number in range(3))


def test_every_taken_port_gets_a_free_one() -> None:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(10)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
            one.listen()
        wanted = [WantedPort(one.getsockname()[1], f"p{number}", f"P{number}_PORT") for number, one in enumerate(taken)]
        with pytest.raises(errors.BadSettings, match=f"10 ports are taken by .*pid {os.getpid()}") as caught:
            ports.check(wanted)
    chosen = dict(part.split("=") for part in caught.value.hint.removeprefix("for example: ").removesuffix(" make up").split())
    assert list(chosen) == [want.variable for want in wanted]
    ports.check([WantedPort(int(chosen[want.variable]), want.program, want.variable) for want in wanted])


def test_foreign_address_is_reported() -> None:
    with pytest.raises(errors.BadSettings, match=r"no address 203\.0\.113\.7"):
        ports.check([WantedPort(4737, "a DHT node", "DHT_PORT", is_udp=True, bind="203.0.113.7")])


def test_free_port_passes() -> None:
    ports.check([WantedPort(ports.find_free(), "web", "WEB_SERVICE_PORT")])
