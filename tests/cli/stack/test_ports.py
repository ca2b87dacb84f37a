import os
import socket
from pathlib import Path

import pytest

from cli.stack import ports
from cli.stack.ports import Wanted
from shared import errors
from shared.processes import Listener

WEB = Wanted(3000, "web", "WEB_SERVICE_PORT")
AUTH = Wanted(3001, "auth", "AUTH_SERVICE_PORT")


@pytest.mark.parametrize(
    ("wanted", "held", "words"),
    [
        pytest.param([WEB, AUTH], {}, [], id="all are free"),
        pytest.param([WEB], {3000: Listener(7, "node")}, ["port 3000", "node (pid 7)", "WEB_SERVICE_PORT"], id="taken"),
        pytest.param([WEB], {3000: Listener(None, None)}, ["another user's process", "WEB_SERVICE_PORT"], id="taken by a stranger"),
        pytest.param([WEB, Wanted(3000, "auth", "AUTH_SERVICE_PORT")], {}, ["wanted by web and auth"], id="wanted twice"),
        pytest.param([Wanted(70000, "web", "WEB_SERVICE_PORT")], {}, ["WEB_SERVICE_PORT=70000 is not a port"], id="not a port"),
    ],
)
def test_find_conflicts(wanted: list[Wanted], held: dict[int, Listener], words: list[str]) -> None:
    found = ports.find_conflicts(wanted, held)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_a_taken_port_is_told_with_its_process_and_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.BadSettings) as caught:
            ports.check([Wanted(ports.find_free(), "auth", "AUTH_SERVICE_PORT"), Wanted(port, "web", "WEB_SERVICE_PORT")])
        name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
        for word in (str(port), f"{name} (pid {os.getpid()})", "set WEB_SERVICE_PORT"):
            assert word in caught.value.message
        assert "WEB_SERVICE_PORT=" in caught.value.hint


def test_a_free_port_passes() -> None:
    ports.check([Wanted(ports.find_free(), "web", "WEB_SERVICE_PORT")])
