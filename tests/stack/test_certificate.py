import pytest

from stack import certificate


@pytest.mark.parametrize(
    ("names", "host"),
    [
        pytest.param(["ai.example.com", "127.0.0.1", "localhost"], "127.0.0.1", id="loopback first"),
        pytest.param(["ai.example.com", "localhost"], "localhost", id="then localhost"),
        pytest.param(["*.example.com", "ai.example.com"], "ai.example.com", id="then a whole name"),
        pytest.param(["*.example.com"], "127.0.0.1", id="nothing usable"),
        pytest.param([], "127.0.0.1", id="no names"),
    ],
)
def test_choose_host(names: list[str], host: str) -> None:
    assert certificate.choose_host(names) == host
