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


def test_ticket_is_quoted() -> None:
    assert install_line.make("https://ai.example.org", ticket="x; reboot").endswith("/install.sh | sh -s -- 'x; reboot'")
