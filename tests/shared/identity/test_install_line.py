from pathlib import Path

import pytest

from shared.identity import install_line


@pytest.mark.parametrize(
    ("pin", "ticket", "line"),
    [
        pytest.param(None, None, "curl -fsS https://ai.example.org/install.sh | sh", id="a client"),
        pytest.param(None, "aip_join_x", "curl -fsS https://ai.example.org/install.sh | sh -s -- aip_join_x", id="a worker"),
        pytest.param(
            "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "aip_join_x",
            "curl -fsSk --pinnedpubkey sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU= https://ai.example.org/install.sh"
            " | sh -s -- aip_join_x",
            id="a certificate of its own",
        ),
    ],
)
def test_line_for_another_machine(pin: str | None, ticket: str | None, line: str) -> None:
    assert install_line.make("https://ai.example.org/", pin=pin, ticket=ticket) == line


def test_line_of_a_client_that_connects_as_workers_do() -> None:
    line = install_line.make("https://ai.example.org", ticket="aip_join_x", is_client=True)
    assert line == "curl -fsS https://ai.example.org/install.sh | AIMESH_MESH=1 sh -s -- aip_join_x"


def test_lines_of_a_worker_without_an_engine() -> None:
    line = install_line.make("https://ai.example.org", ticket="aip_join_x")
    assert install_line.without_engine(line) == "curl -fsS https://ai.example.org/install.sh | AIMESH_FRONT=1 sh -s -- aip_join_x"
    windows = install_line.make_powershell("https://ai.example.org/", "aip_join_x")
    assert windows == "$env:AIMESH_TICKET='aip_join_x'; irm https://ai.example.org/install.ps1 | iex"


def test_line_with_a_certificate_that_this_machine_has() -> None:
    line = install_line.make("https://10.0.0.2:3000", ca_file=Path("/home/my name/mesh.pem"))
    assert line == "curl -fsS --cacert '/home/my name/mesh.pem' https://10.0.0.2:3000/install.sh | sh"


def test_ticket_is_quoted() -> None:
    assert install_line.make("https://ai.example.org", ticket="x; reboot").endswith("/install.sh | sh -s -- 'x; reboot'")
