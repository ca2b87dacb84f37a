"""A service whose port is in use."""

import os
import socket
from pathlib import Path

import pytest

from shared import errors
from shared.node import http_server


def test_a_taken_port_is_reported_with_its_process_and_the_setting() -> None:
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.BadSettings) as refused:
            http_server.listen("127.0.0.1", port, "AUTH_SERVICE_PORT")
    assert refused.value.message == f"port {port} is taken by {name} (pid {os.getpid()})"
    assert "AUTH_SERVICE_PORT" in refused.value.hint


def test_an_address_of_another_machine_is_reported_with_the_setting() -> None:
    with pytest.raises(errors.BadSettings, match=r"cannot listen on 192\.0\.2\.1:0"):
        http_server.listen("192.0.2.1", 0, "AUTH_SERVICE_PORT")


def test_port_0_is_a_free_port() -> None:
    with http_server.listen("127.0.0.1", 0, "AUTH_SERVICE_PORT") as sock:
        assert sock.getsockname()[1] > 0
