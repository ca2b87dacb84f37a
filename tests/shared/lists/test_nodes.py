import pytest

from shared.lists import nodes
from shared.protocol import directory


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nats", "NATS"),
        ("direct", "Direct"),
        ("punched", "Direct (NAT)"),
        ("web", "HTTPS, readable at the mesh"),
        ("relayed", "Relay"),
    ],
)
def test_paths_are_named_and_say_who_reads_along(path: str, words: str) -> None:
    assert path in directory.PATHS
    assert nodes.path(path) == words
